"""Near pairs as every search gives them: who is near whom, how much, the better of the two first; and how tasks' findings become one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MOST = 128  # pairs kept of one that has more betters near it
ROOM = 16  # pairs for each thing, on the average, that an answer has room for
LEAST_ROOM = 1 << 22


@dataclass(frozen=True, slots=True)
class Found:
    """Pairs among m things that are ranked (rank 0 is best, no two alike), in order of (rank of the better, rank of the worse), each once.

    better, worse  int64 (k,): numbers of the things. similarity: float32 (k,).
    cut            bool (m,): has more than `most` betters near it; only the best-ranked `most` of them are among the pairs.
    """

    better: np.ndarray
    worse: np.ndarray
    similarity: np.ndarray
    cut: np.ndarray

    def __len__(self) -> int:
        return len(self.better)


def most_in_room(counts: np.ndarray, most: int) -> int:
    """`most`, halved until an answer has room for as many pairs of each thing: ROOM a thing, LEAST_ROOM at least.

    counts: int64 (m,), betters near each of m things. Those of a part of the pairs give no less than those of all.
    """
    room = max(LEAST_ROOM, ROOM * len(counts))
    while most > 1 and int(np.minimum(counts, most).sum()) > room:
        most //= 2
    return most


def found_of(parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], rank: np.ndarray, most: int = MOST) -> Found:
    """What tasks found, joined: pairs (a, b, similarity) in either direction, some of them twice.

    rank: int64 (m,). A part that was cut itself must hold, of each thing, at least the best-ranked `most` + 1 of its own pairs.
    """
    held = list(parts)
    a = np.concatenate([np.asarray(p[0], np.int64) for p in held]) if held else np.zeros(0, np.int64)
    b = np.concatenate([np.asarray(p[1], np.int64) for p in held]) if held else np.zeros(0, np.int64)
    similarity = np.concatenate([np.asarray(p[2], np.float32) for p in held]) if held else np.zeros(0, np.float32)
    held.clear()
    swap = rank[a] > rank[b]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    order = np.lexsort((rank[a], rank[b]))  # by worse, then by better: what each has, best first
    a, b, similarity = a[order], b[order], similarity[order]
    first = np.ones(len(a), bool)
    first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    a, b, similarity = a[first], b[first], similarity[first]
    starts = np.flatnonzero(np.concatenate([[True], b[1:] != b[:-1]])) if len(b) else np.zeros(0, np.int64)
    place = np.arange(len(b)) - np.repeat(starts, np.diff(np.append(starts, len(b))))
    cut = np.zeros(len(rank), bool)
    cut[b[place >= most]] = True
    keep = place < most
    a, b, similarity = a[keep], b[keep], similarity[keep]
    order = np.lexsort((rank[b], rank[a]))
    return Found(a[order], b[order], similarity[order], cut)
