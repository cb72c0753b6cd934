"""Who stays and who is a copy of whom: the walk over near pairs in which every copy is near the very thing that replaces it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numba
import numpy as np


@dataclass(frozen=True, slots=True)
class Links:
    """Near pairs of things that are numbered by rank (0 is best), in order of (worse, better), each once.

    better, worse  int64 (k,), better < worse. similarity: float32 (k,). rung: int8 (k,), 0 is the strongest.
    """

    better: np.ndarray
    worse: np.ndarray
    similarity: np.ndarray
    rung: np.ndarray

    def __len__(self) -> int:
        return len(self.better)


@dataclass(frozen=True, slots=True)
class Classes:
    """Things that are alike at rung 0 without being listed as pairs.

    content  int64 (n,): those of the same number ≥ 0 are alike, unless they are of one source. source: int32 (n,).
    """

    content: np.ndarray
    source: np.ndarray


@dataclass(frozen=True, slots=True)
class Stars:
    """of  int64 (n,): the number of what stands for it; -1: it stays. rung: int8 (n,), -1. similarity: float32 (n,), NaN."""

    of: np.ndarray
    rung: np.ndarray
    similarity: np.ndarray


def links_of(parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> Links:
    """From (a, b, similarity, rung) of numbers in either order. Of a pair that is there several times the strongest rung counts, of equal
    rungs the highest similarity."""
    held = [p for p in parts if len(p[0])]
    if not held:
        return Links(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int8))
    a, b, similarity, rung = (np.concatenate([np.asarray(p[i], kind) for p in held]) for i, kind in enumerate(_TYPES))
    held.clear()
    better, worse = np.minimum(a, b), np.maximum(a, b)
    del a, b
    order = np.lexsort((-similarity, rung, better, worse))
    better, worse, similarity, rung = better[order], worse[order], similarity[order], rung[order]
    first = np.ones(len(better), bool)
    first[1:] = (better[1:] != better[:-1]) | (worse[1:] != worse[:-1])
    return Links(better[first], worse[first], similarity[first], rung[first])


def walk(n: int, links: Links, fixed: np.ndarray, classes: Classes | None = None) -> Stars:
    """The stars among n things, taken in order of rank: what is near a thing that stays already is its copy, everything else stays.

    fixed: bool (n,), these stay whatever they are near to. Of several near ones that stay a copy is of that of the strongest rung, then of
    the highest similarity, then of the best rank. One pass, in compiled code; memory O(n + pairs).
    """
    starts = np.searchsorted(links.worse, np.arange(n + 1))
    of, rung, similarity = np.full(n, -1, np.int64), np.full(n, -1, np.int8), np.full(n, np.nan, np.float32)
    content = classes.content if classes is not None else np.full(n, -1, np.int64)
    source = classes.source if classes is not None else np.zeros(n, np.int32)
    contents = int(content.max(initial=-1)) + 1
    _walk(starts, links.better, links.similarity, links.rung, fixed, content, source, contents, of, rung, similarity)
    return Stars(of, rung, similarity)


def settle(
    n: int,
    links: Links,
    fixed: np.ndarray,
    again: Callable[[Stars], Links],
    classes: Classes | None = None,
) -> Stars:
    """The stars on all near pairs, of which `links` may lack some.

    again  near pairs that a search among the things that stay finds, when there may be some that are not in `links` (those of things whose
           lists were cut); empty where there are none. It is asked until it tells nothing new.

    When it ends, what stays is what the walk over all near pairs keeps (the lexicographically first maximal independent set of the graph of
    near pairs, in order of rank; fixed ones aside). For let G be that graph, K what stays at the end:
    - two of K are never near: `again` finds such a pair, for it searches among all of K; it would have been new, since the walk never
      keeps both ends of a pair that it knows;
    - each thing outside K is near a better one in K: the walk's own rule, and pairs are only ever added that are true.
    A set with both properties is unique. Go by rank: suppose K and another such set agree on all better than x. If x has a near better one
    in them, both leave x out (first property); if it has none, both hold x (second property). So they agree on x.
    It ends because every round adds a pair, and there are finitely many.
    """
    while True:
        stars = walk(n, links, fixed, classes)
        more = again(stars)
        if not len(more):
            return stars
        joined = links_of((p.better, p.worse, p.similarity, p.rung) for p in (links, more))
        if len(joined) == len(links):
            return stars
        links = joined


_TYPES = (np.int64, np.int64, np.float32, np.int8)


@numba.njit(cache=True)
def _walk(  # type: ignore[no-untyped-def]
    starts, better, similarities, rungs, fixed, content, source, contents, of, of_rung, of_similarity
):
    first = np.full(contents, -1, np.int64)  # of each content the best that stays, and the best of another source than that
    other = np.full(contents, -1, np.int64)
    for x in range(len(of)):
        c = content[x]
        if not fixed[x]:
            if c >= 0:
                y = first[c]
                if y >= 0 and source[y] == source[x]:
                    y = other[c]
                if y >= 0:
                    of[x], of_rung[x], of_similarity[x] = y, 0, 1.0
            for p in range(starts[x], starts[x + 1]):
                y = better[p]
                if of[y] >= 0:
                    continue
                now = of[x]
                stronger = now < 0 or rungs[p] < of_rung[x]
                if now >= 0 and rungs[p] == of_rung[x]:
                    stronger = similarities[p] > of_similarity[x] or (similarities[p] == of_similarity[x] and y < now)
                if stronger:
                    of[x], of_rung[x], of_similarity[x] = y, rungs[p], similarities[p]
        if of[x] < 0 and c >= 0:
            if first[c] < 0:
                first[c] = x
            elif other[c] < 0 and source[first[c]] != source[x]:
                other[c] = x
