"""Near pairs of the rungs of deduplicate: searched among rows above a floor, and again among those that stay where lists were cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from curation.hamming import near_hashes
from curation.ladder import EMBEDDING, FRAMES, PHASH, SHA256, TEXT, TEXTS, Content, Thresholds, cosines, equal_pairs, relate
from curation.ladder_frames import near_clips
from curation.ladder_scan import scan
from curation.ladder_units import NO_SOURCE, Domain, Taken
from curation.near import MOST, Found
from curation.near_vectors import EXACT, Search, near_vectors
from curation.orientations import near_oriented
from curation.population import Population
from curation.stars import Links, Stars, links_of
from curation.text_pairs import near_signatures

BLOB = 16  # copies from which on a sample that stays is held against all others of the kind
BRUTE = 2_000_000_000  # cosines that are computed one by one rather than through lists: about 20 s of one core at 512 numbers
BRUTE_CLIPS = 50_000_000  # pairs of clips compared one by one rather than through lists of seeds: about 10 s of one core

Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # units, units, similarity, rung
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a search found. better, worse: int64 rows; similarity: float32; cut: int64, rows that have more near ones than are listed."""

    better: np.ndarray
    worse: np.ndarray
    similarity: np.ndarray
    cut: np.ndarray

    @staticmethod
    def joined(parts: list[Pairs]) -> Pairs:
        none = np.zeros(0, np.int64)
        better, worse, cut = (np.concatenate([none, *(getattr(p, name) for p in parts)]) for name in ("better", "worse", "cut"))
        return Pairs(better, worse, np.concatenate([none.astype(np.float32), *(p.similarity for p in parts)]), np.unique(cut))


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rungs over a population. cut: rung → bool (n,), rows with more near ones than their lists hold."""

    content: Content
    taken: Taken
    domains: list[Domain]
    on: str
    across: str
    limits: Thresholds
    search: Search
    population: Population
    most: int = MOST
    cut: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def rungs(self) -> list[int]:
        """Those that have to be searched for."""
        limits = self.limits
        on = {PHASH: limits.radius >= 0, FRAMES: limits.share <= 1, EMBEDDING: limits.cosine <= 1, TEXT: limits.jaccard <= 1}
        return [rung for rung, used in on.items() if used]

    def found(self, rung: int, floor: float) -> Pairs:
        """All pairs of a rung at or above a floor (for hashes: within a radius) in all domains."""
        return Pairs.joined([self._search(rung, d, d.rows, floor, None) for d in self.domains if (d.anchor == TEXTS) == (rung == TEXT)])

    def links(self, found: Mapping[int, Pairs]) -> Links:
        """The near pairs by the thresholds, of what was found by rung. Sets `cut`."""
        parts: list[Part] = []
        for rung, pairs in found.items():
            self._mark(rung, pairs.cut)
            parts += self._near(pairs, rung)
        for domain in self.domains:
            if not domain.alone:
                rung = TEXT if domain.anchor == TEXTS else SHA256
                equal = self._equal(domain)
                self._mark(rung, equal.cut)
                parts += self._near(equal, rung)
        if self.across == "source":
            parts.append(self._references())
        return links_of(parts)

    def again(self, stars: Stars) -> Links:
        """Near pairs among what stays: of rows whose lists were cut, and of the centres of blobs that lists may have divided."""
        kept = stars.of < 0
        parts: list[Part] = []
        for domain in self.domains:
            rows = domain.rows[kept[self.taken.unit[domain.rows]]]
            if domain.alone and self.across != "sources":
                for rung in self.rungs:
                    asked = self.cut[rung][rows]
                    if asked.any():
                        parts += self._near(self._search(rung, domain, rows, self._least(rung), asked), rung)
                if EMBEDDING in self.rungs and (self.search.lists > 1 or (self.search.lists == 0 and len(domain.rows) > EXACT)):
                    parts += self._blobs(domain, rows, stars)
            else:
                asked = np.logical_or.reduce([np.zeros(len(rows), bool), *(marks[rows] for marks in self.cut.values())])
                if asked.any():
                    parts.append(self._scan(domain, rows, asked))
        return links_of(parts)

    def _search(self, rung: int, domain: Domain, rows: np.ndarray, floor: float, asked: np.ndarray | None) -> Pairs:
        """Pairs of a rung among rows of a domain; asked: bool (len(rows),), only theirs are wanted."""
        content, workers, scratch = self.content, self.population.workers, self.population.scratch
        if rung == PHASH:
            ids = content.start[rows] + domain.anchor
            there = content.hashed[ids]
        elif rung == FRAMES:
            assert content.frames is not None
            ids = content.start[rows] + domain.anchor
            there = content.frames.has(ids)
        else:
            ids = content.signature_ids(rows) if rung == TEXT else content.vector_ids(rows, domain.anchor)
            there = ids >= 0
        rows, ids, asked = rows[there], ids[there], None if asked is None else asked[there]
        rank = self.taken.unit[rows]
        fixed = self.taken.fixed[self.taken.leader[rank]]
        if len(rows) < 2 or (asked is not None and not asked.any()):
            return Pairs.joined([])
        if rung == FRAMES:
            assert content.frames is not None
            few = asked is not None and int(asked.sum()) * len(rows) <= BRUTE_CLIPS
            a, b, similarity, cut = near_clips(
                content.frames, ids, rank, fixed, floor, self.limits.frame_radius, workers, scratch, asked, few, self.most
            )
            return Pairs(rows[a], rows[b], similarity, rows[cut])
        if rung == PHASH:
            found = self._near_hashes(content.hash[ids], rank, fixed, int(floor), asked)
        elif rung == TEXT:
            assert content.signatures is not None
            found = near_signatures(content.signatures, ids, rank, fixed, floor, workers, scratch, queries=asked, most=self.most)
        else:
            assert content.vectors is not None
            one_by_one = asked is not None and int(asked.sum()) * len(rows) <= BRUTE
            search = replace(self.search, lists=1) if one_by_one else self.search
            gpus = self.population.how.gpus
            found = near_vectors(
                content.vectors, ids, rank, fixed, floor, search, workers, scratch, queries=asked, most=self.most, gpus=gpus
            )
        return Pairs(rows[found.better], rows[found.worse], found.similarity, rows[found.cut])

    def _near_hashes(self, hashes: np.ndarray, rank: np.ndarray, fixed: np.ndarray, radius: int, asked: np.ndarray | None) -> Found:
        workers, scratch, flips, rotations = self.population.workers, self.population.scratch, self.limits.flips, self.limits.rotations
        if flips or rotations:
            return near_oriented(hashes, rank, fixed, radius, flips, rotations, workers, scratch, queries=asked, most=self.most)
        return near_hashes(hashes, rank, fixed, radius, workers, scratch, queries=asked, most=self.most)

    def _equal(self, domain: Domain) -> Pairs:
        """Rows of a domain that have more to compare than the anchor, and equal ones there."""
        rows = domain.rows
        codes = self.content.text[rows] if domain.anchor == TEXTS else self.content.bytes[self.content.start[rows] + domain.anchor]
        better, worse, cut = equal_pairs(codes, self.taken.unit[rows], self.most)
        return Pairs(rows[better], rows[worse], np.ones(len(better), np.float32), rows[cut])

    def _near(self, pairs: Pairs, rung: int) -> list[Part]:
        """Of pairs that are near at their anchor by a rung those that are near by the thresholds in everything."""
        content, taken, limits = self.content, self.taken, self.limits
        wanted = ~(self._fixed(pairs.better) & self._fixed(pairs.worse))
        if self.across == "sources":
            a, b = taken.source[pairs.better], taken.source[pairs.worse]
            wanted &= (a != b) | (a == NO_SOURCE)
        a, b, similarity = pairs.better[wanted], pairs.worse[wanted], pairs.similarity[wanted]
        media = content.count[a]
        alone = np.full(len(a), self.on == "texts") | ((media == 1) & (self.on == "media"))
        near = alone & (similarity >= self._least_similarity(rung))
        parts = [(taken.unit[a[near]], taken.unit[b[near]], similarity[near], np.full(int(near.sum()), rung, np.int8))]
        for k in np.unique(media[~alone]).tolist():
            at = np.flatnonzero(~alone & (media == k))
            good, by, alike = relate(content, a[at], b[at], k, self.on == "both", limits)
            parts.append((taken.unit[a[at[good]]], taken.unit[b[at[good]]], alike[good], by[good]))
        return parts

    def _scan(self, domain: Domain, rows: np.ndarray, asked: np.ndarray) -> Part:
        a, b = scan(self.content, self.taken, domain, rows, asked, self.across == "sources", self.limits)
        _, rung, alike = relate(self.content, a, b, domain.media, domain.text, self.limits)
        return self.taken.unit[a], self.taken.unit[b], alike, np.full(len(a), TEXT, np.int8) if self.on == "texts" else rung

    def _blobs(self, domain: Domain, rows: np.ndarray, stars: Stars) -> list[Part]:
        """Lists divide a blob that is larger than they are, and each part keeps one of its own: so those that stand for many are compared
        with all that stay (where they are too many for that, with each other), and where two are near, the copies of the worse one with
        the better one too."""
        assert self.content.vectors is not None
        copies = np.flatnonzero(stars.of >= 0)
        copies = copies[np.argsort(stars.of[copies], kind="stable")]
        of = stars.of[copies]
        many = (np.bincount(of, minlength=self.taken.units) >= BLOB)[self.taken.unit[rows]]
        exact = replace(self, search=replace(self.search, lists=1))
        if int(many.sum()) * len(rows) <= BRUTE:
            found = exact._search(EMBEDDING, domain, rows, self.limits.cosine, many)
        else:
            few = int(many.sum()) ** 2 <= BRUTE
            found = (exact if few else self)._search(EMBEDDING, domain, rows[many], self.limits.cosine, None)
        parts = self._near(found, EMBEDDING)
        better, worse = self.taken.unit[found.better], self.taken.unit[found.worse]
        low, high = np.searchsorted(of, worse), np.searchsorted(of, worse, "right")
        size = high - low
        moved = copies[np.repeat(low - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))]
        a, b = self.taken.shown[np.repeat(better, size)], self.taken.shown[moved]
        i, j = self.content.vector_ids(a, domain.anchor), self.content.vector_ids(b, domain.anchor)
        there = (i >= 0) & (j >= 0)
        alike = cosines(self.content.vectors, i[there], j[there])
        return parts + self._near(Pairs(a[there], b[there], alike, _NONE), EMBEDDING)

    def _references(self) -> Part:
        """Where the source is part of a row's content, what has the content of a reference is a copy of it all the same."""
        taken = self.taken
        held = np.flatnonzero((taken.source == NO_SOURCE) & (taken.code >= 0))
        held = held[np.argsort(taken.rank[held])]
        codes, first = np.unique(taken.code[held], return_index=True)
        rows = np.flatnonzero((taken.source != NO_SOURCE) & np.isin(taken.code, codes))
        rows = rows[taken.leader[taken.unit[rows]] == rows]
        a = held[first][np.searchsorted(codes, taken.code[rows])]
        wanted = ~self._fixed(rows)
        a, rows = a[wanted], rows[wanted]
        return taken.unit[a], taken.unit[rows], np.ones(len(a), np.float32), np.full(len(a), SHA256, np.int8)

    def _fixed(self, rows: np.ndarray) -> np.ndarray:
        """bool: whether the best of each row's unit is fixed."""
        found: np.ndarray = self.taken.fixed[self.taken.leader[self.taken.unit[rows]]]
        return found

    def _mark(self, rung: int, rows: np.ndarray) -> None:
        self.cut.setdefault(rung, np.zeros(len(self.content), bool))[rows] = True

    def _least(self, rung: int) -> float:
        limits = self.limits
        return {PHASH: limits.radius, FRAMES: limits.share, EMBEDDING: limits.cosine, TEXT: limits.jaccard}.get(rung, 0.0)

    def _least_similarity(self, rung: int) -> np.float32:
        return np.float32(1 - self.limits.radius / 64 if rung == PHASH else self._least(rung))
