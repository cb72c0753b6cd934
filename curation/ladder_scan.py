"""Near rows found by comparing all with all, in blocks: for the few whose lists were cut and of which more than one thing is compared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from curation.ladder import Content, Thresholds, distances, relate
from curation.ladder_frames import may_be_alike
from curation.ladder_units import NO_SOURCE, Domain, Taken

ASKED = 256
BESIDE = 16_384  # rows that a block of the asked ones is held against: 4 M pairs
SLACK = 1e-4  # by which a product of matrices may lie below the cosine that `relate` computes


def scan(
    content: Content, taken: Taken, domain: Domain, rows: np.ndarray, asked: np.ndarray, sources: bool, limits: Thresholds
) -> tuple[np.ndarray, np.ndarray]:
    """(row, row): of each asked row the best-ranked one of `rows` that is near it, where there is one. Exact.

    asked: bool (len(rows),). sources: rows of one source are not compared. Pairs of two fixed ones are left out.
    """
    found_a, found_b = [], []
    for mine, beside in _blocks(taken, rows, asked, sources):
        best = np.full(len(mine), -1, np.int64)
        rank = np.full(len(mine), np.iinfo(np.int64).max)
        for start in range(0, len(beside), BESIDE):
            others = beside[start : start + BESIDE]
            i, j = np.nonzero(_maybe(content, taken, domain, mine, others, sources, limits))
            near, _, _ = relate(content, mine[i], others[j], domain.media, domain.text, limits)
            i, j = i[near], j[near]
            order = np.argsort(taken.rank[others[j]], kind="stable")
            first, place = np.unique(i[order], return_index=True)
            nearest = others[j[order][place]]
            better = taken.rank[nearest] < rank[first]
            best[first[better]], rank[first[better]] = nearest[better], taken.rank[nearest[better]]
        there = best >= 0
        found_a.append(mine[there])
        found_b.append(best[there])
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *found_a]), np.concatenate([none, *found_b])


def _blocks(taken: Taken, rows: np.ndarray, asked: np.ndarray, sources: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(some asked rows, the rows they are held against); with `sources` asked ones of one source, and no rows of that source."""
    of = taken.source[rows] if sources else np.full(len(rows), NO_SOURCE, np.int32)
    for source in np.unique(of[asked]).tolist():
        mine = rows[asked & (of == source)]
        beside = rows if source == NO_SOURCE else rows[of != source]
        for at in range(0, len(mine), ASKED):
            yield mine[at : at + ASKED], beside


def _maybe(
    content: Content, taken: Taken, domain: Domain, mine: np.ndarray, others: np.ndarray, sources: bool, limits: Thresholds
) -> np.ndarray:
    """bool (len(mine), len(others)): which may be near, by all media."""
    maybe = mine[:, None] != others[None, :]
    maybe &= ~(taken.fixed[mine][:, None] & taken.fixed[others][None, :])
    if sources:
        of_one = taken.source[mine][:, None] == taken.source[others][None, :]
        maybe &= ~of_one | (taken.source[mine] == NO_SOURCE)[:, None]
    for medium in range(domain.media):
        x, y = content.start[mine] + medium, content.start[others] + medium
        near = (content.bytes[x][:, None] == content.bytes[y][None, :]) & (content.bytes[x] >= 0)[:, None]
        if limits.radius >= 0:
            hashed = content.hashed[x][:, None] & content.hashed[y][None, :]
            near |= hashed & (distances(content.hash[x][:, None], content.hash[y][None, :], limits) <= limits.radius)
        if content.frames is not None and limits.share <= 1:
            near |= may_be_alike(content.frames, x, y)
        if content.vectors is not None and limits.cosine <= 1:
            i, j = content.vector_ids(mine, medium), content.vector_ids(others, medium)
            a, b = np.flatnonzero(i >= 0), np.flatnonzero(j >= 0)
            if len(a) and len(b):
                near[np.ix_(a, b)] |= content.vectors.take(i[a]) @ content.vectors.take(j[b]).T >= limits.cosine - SLACK
        maybe &= near
    return maybe
