"""Rows as deduplicate takes them: in their order, those of one content as one, and in which sets they are searched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.ladder import TEXTS, Content, whole_codes

NO_SOURCE = -1  # of a reference: like none and unlike none, so that everything is compared with it


@dataclass(frozen=True, slots=True)
class Taken:
    """The rows of a population as they are compared.

    rank, source, fixed  int64, int32, bool (n,): place in the order (fixed ones first), number of the source, whether it stays whatever
                         it is near to. code: int64 (n,), rows of equal content have the same; -1: not known.
    unit     int64 (n,): rows that share one verdict, numbered by the rank of the best of them. leader: int64 (u,), that best row.
    shown    int64 (u,): the row of lowest number of each unit, which stands for it in searches whatever the order is.
    """

    rank: np.ndarray
    source: np.ndarray
    fixed: np.ndarray
    code: np.ndarray
    unit: np.ndarray
    leader: np.ndarray
    shown: np.ndarray

    @property
    def units(self) -> int:
        return len(self.leader)


@dataclass(frozen=True, slots=True)
class Domain:
    """Rows that may be copies of each other.

    rows   int64, ascending. media: how many each has. text: whether their texts are compared too.
    anchor the component by which pairs are looked for, the others are then compared: a medium's number, or TEXTS.
    """

    rows: np.ndarray
    media: int
    text: bool
    anchor: int

    @property
    def alone(self) -> bool:
        """Whether the anchor is all there is to compare."""
        return self.media + self.text == 1


def take(code: np.ndarray, order: np.ndarray, source: np.ndarray, fixed: np.ndarray, across: str) -> Taken:
    """code: int64 (n,), equal for rows of equal content. order: the rows, best first; fixed ones are put before the others.

    Rows of one content are a unit: they are near to the same ones. Where copies count only within a source, the source is part of it;
    where they count only between sources each row is a unit, for two of one source are no copies.
    """
    n = len(code)
    order = order[np.argsort(~fixed[order], kind="stable")]
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    key = code
    if across == "source":
        key = np.where(code >= 0, code * (int(source.max(initial=0)) + 2) + source + 1, -1)
    if across == "sources":
        key = np.full(n, -1)
    key = np.where(key >= 0, key, int(key.max(initial=0)) + 1 + np.arange(n))
    _, shown, inverse = np.unique(key, return_index=True, return_inverse=True)
    best = np.full(len(shown), n, np.int64)
    np.minimum.at(best, inverse, rank)
    by_rank = np.argsort(best)
    number = np.empty(len(shown), np.int64)
    number[by_rank] = np.arange(len(shown))
    return Taken(rank, source, fixed, code, number[inverse], order[best[by_rank]], shown[by_rank].astype(np.int64))


def domains(content: Content, taken: Taken, on: str, across: str) -> list[Domain]:
    """The sets of rows that are searched: as many media, and where copies count only within a source, one source and the references."""
    rows = np.sort(taken.shown)
    if on == "texts":
        told = (content.text[rows] >= 0) | (content.signature_ids(rows) >= 0)
        groups = [(0, rows[told])]
    else:
        counts = content.count[rows]
        groups = [(int(media), rows[counts == media]) for media in np.unique(counts[counts > 0])]
    found = []
    for media, group in groups:
        anchor = _anchor(content, group, media, on)
        parts = [group]
        if across == "source":
            source = taken.source[group]
            parts = [group[(source == s) | (source == NO_SOURCE)] for s in np.unique(source[source != NO_SOURCE])]
        found += [Domain(part, media, on != "media", anchor) for part in parts if len(part) > 1]
    return found


def content_codes(content: Content, on: str, equal: bool) -> np.ndarray:
    """int64 (n,): rows of equal content have one code ≥ 0. equal: whether equal bytes count."""
    codes = np.full(len(content), -1, np.int64)
    if on == "texts":
        return content.text
    if not equal:
        return codes
    used = 0
    for media in np.unique(content.count[content.count > 0]).tolist():
        rows = np.flatnonzero(content.count == media)
        found = whole_codes(content, rows, media, on == "both")
        codes[rows] = np.where(found >= 0, found + used, -1)
        used += int(found.max(initial=-1)) + 1
    return codes


def _anchor(content: Content, rows: np.ndarray, media: int, on: str) -> int:
    """The component that tells most rows apart, so that few pairs are looked at for nothing."""
    if on == "texts":
        return TEXTS
    if media == 1 and on == "media":
        return 0
    start = content.start[rows]
    kinds = [len(np.unique(content.bytes[start + m])) + len(np.unique(content.hash[start + m])) for m in range(media)]
    if on == "both" and 2 * len(np.unique(content.text[rows])) > max(kinds):
        return TEXTS
    return int(np.argmax(kinds))
