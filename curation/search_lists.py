"""Vectors laid out for a search by lists, so that a task reads ranges; and who asks which list.

A *place* is a number in the order of the second file of vectors. A list has two *runs*, each in order of rank: run 2·l those of list l
that are queries, run 2·l + 1 the others. Pairs of two that are no queries are wanted by nobody: the others are asked by queries only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numba
import numpy as np

from curation.population import Workers
from curation.search_files import mapped, new_mapped, put
from curation.vectors import BLOCK, Vectors, block_path

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Lists:
    """n things in order of (run, rank).

    vectors   (n, width) float32 in blocks, by place. ranks: file of int32 or int64 (n,), by place.
    starts    int64 (runs + 1,): run r is places starts[r] … starts[r + 1].
    probes    file for each block of places: int32 (≤ BLOCK, p), the lists nearest to each, its own first; none where there is one list.
    """

    vectors: Vectors
    ranks: str
    starts: np.ndarray
    probes: tuple[str, ...]


def lay_out(
    vectors: Vectors, ids: np.ndarray, rank: np.ndarray, asks: np.ndarray, near: np.ndarray, lists: int, workers: Workers, folder: Path
) -> Lists:
    """Write vectors, ranks and probes in order of (run, rank). Blocks that are there already are not written again.

    ids   int64 (n,): of `vectors`. rank: int64 (n,), 0 … n - 1. asks: bool (n,), who is a query.
    near  int32 (n, p), the lists nearest to each; where there are several it is mapped from a file that the workers see.
    """
    narrow = np.int32 if len(ids) < 2**31 else np.int64
    starts, thing_at = _order(_by_rank(rank), np.ascontiguousarray(near[:, 0]), asks, lists)
    ranks = folder / "ranks.npy"
    put(ranks, rank[thing_at].astype(narrow))
    bookless = replace(vectors, owner=_NONE, place=_NONE.astype(np.int16), valid=_NONE.astype(bool))
    laid = replace(bookless, folder=str(folder), count=len(ids), rows=len(ids))
    near_path = str(near.filename) if isinstance(near, np.memmap) else ""
    probes = tuple(str(folder / f"probes-{b:06d}.npy") for b in range(laid.blocks)) if lists > 1 else ()
    tasks = (
        (bookless, ids[t], t, near_path if lists > 1 else "", str(folder), b)
        for b in range(laid.blocks)
        for t in [thing_at[b * BLOCK : (b + 1) * BLOCK]]
        if not block_path(folder, b).exists()
    )
    for _ in workers.map(_lay_block, tasks):
        pass
    return Lists(laid, str(ranks), starts, probes)


def _lay_block(vectors: Vectors, ids: np.ndarray, things: np.ndarray, near_path: str, folder: str, number: int) -> None:
    if near_path:
        put(Path(folder) / f"probes-{number:06d}.npy", mapped(near_path)[things])
    put(block_path(folder, number), vectors.take(ids))  # the last: its being there says that both are


def write_asking(lists: Lists, still_open: np.ndarray, path: Path) -> np.ndarray:
    """Write who asks each run: the places of run r's rows are file[starts[r]:starts[r + 1]], ascending; returns starts int64 (runs + 1,).

    still_open: bool (n,), by place: who may still get betters. Rows that can be in no wanted pair with a run are left out: such that may
    get no more betters and have no open worse one in it, or that may and have no better one in it.
    """
    runs = len(lists.starts) - 1
    ranks = mapped(lists.ranks)
    best, worst_open = _borders(lists.starts, ranks, still_open)

    def walk(visit: Callable[..., None], *state: np.ndarray) -> None:
        for number, probes in enumerate(lists.probes):
            visit(mapped(probes), number * BLOCK, lists.starts, ranks, still_open, best, worst_open, *state)
        if not lists.probes:
            for first in range(0, lists.vectors.count, BLOCK):
                own = np.zeros((min(BLOCK, lists.vectors.count - first), 1), np.int32)
                visit(own, first, lists.starts, ranks, still_open, best, worst_open, *state)

    starts = np.zeros(runs + 1, np.int64)
    walk(_count_asking, starts[1:])
    np.cumsum(starts, out=starts)
    with new_mapped(path, ranks.dtype, int(starts[-1])) as filled:
        walk(_fill_asking, starts[:-1].copy(), filled)
    return starts


@numba.njit(cache=True)
def _by_rank(rank: np.ndarray) -> np.ndarray:
    things = np.empty(len(rank), np.int64)
    for thing in range(len(rank)):
        things[rank[thing]] = thing
    return things


@numba.njit(cache=True)
def _order(by_rank: np.ndarray, own: np.ndarray, asks: np.ndarray, lists: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each run starts, and which thing is at each place: a counting sort of things that come in order of rank."""
    starts = np.zeros(2 * lists + 1, np.int64)
    for thing in range(len(own)):
        starts[2 * own[thing] + (0 if asks[thing] else 1) + 1] += 1
    starts = np.cumsum(starts)
    after = starts[:-1].copy()
    things = np.empty(len(own), np.int64)
    for thing in by_rank:
        run = 2 * own[thing] + (0 if asks[thing] else 1)
        things[after[run]] = thing
        after[run] += 1
    return starts, things


@numba.njit(cache=True)
def _borders(starts: np.ndarray, ranks: np.ndarray, still_open: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best rank in each run, and the worst rank of those in it that are open (-1: none)."""
    best, worst_open = np.full(len(starts) - 1, 2**62, np.int64), np.full(len(starts) - 1, -1, np.int64)
    for run in range(len(starts) - 1):
        if starts[run] == starts[run + 1]:
            continue
        best[run] = ranks[starts[run]]
        for place in range(starts[run + 1] - 1, starts[run] - 1, -1):
            if still_open[place]:
                worst_open[run] = ranks[place]
                break
    return best, worst_open


@numba.njit(cache=True, inline="always")
def _asks(own_list, is_query, listed, part, rank, is_open, best, worst_open):  # type: ignore[no-untyped-def]
    """Whether a thing is a row of run 2·listed + part. Its own run it meets in a triangle; the others of its list ask the queries in it."""
    if part == 1 and not is_query:
        return False
    if listed == own_list and is_query:
        return False
    run = 2 * listed + part
    return (is_open and rank > best[run]) or rank < worst_open[run]


@numba.njit(cache=True)
def _count_asking(probes, first, starts, ranks, still_open, best, worst_open, counts):  # type: ignore[no-untyped-def]
    run = np.searchsorted(starts, first, side="right") - 1
    for i in range(len(probes)):
        place = first + i
        while starts[run + 1] <= place:
            run += 1
        for probe in range(probes.shape[1]):
            for part in range(2):
                if _asks(run // 2, run % 2 == 0, probes[i, probe], part, ranks[place], still_open[place], best, worst_open):
                    counts[2 * probes[i, probe] + part] += 1


@numba.njit(cache=True)
def _fill_asking(probes, first, starts, ranks, still_open, best, worst_open, after, filled):  # type: ignore[no-untyped-def]
    run = np.searchsorted(starts, first, side="right") - 1
    for i in range(len(probes)):
        place = first + i
        while starts[run + 1] <= place:
            run += 1
        for probe in range(probes.shape[1]):
            for part in range(2):
                if _asks(run // 2, run % 2 == 0, probes[i, probe], part, ranks[place], still_open[place], best, worst_open):
                    asked = 2 * probes[i, probe] + part
                    filled[after[asked]] = place
                    after[asked] += 1
