"""Recall of a search for near pairs, estimated: a sample of rows is compared with all others by brute force, block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa

from curation.ladder import FRAMES, PHASH, TEXT, TEXTS
from curation.ladder_frames import near_by_frames
from curation.ladder_search import Ladder
from curation.ladder_units import Domain
from curation.vectors import Vectors

if TYPE_CHECKING:
    from pipeline.duplicates_pairs import Near

MISSED = 6  # pairs that are named
CHUNK = 8_192  # vectors or hashes compared at once with all sampled ones: 16 MB of cosines at 500
Hits = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]  # places in the sample, numbers of what is near them, similarities


@dataclass(frozen=True, slots=True)
class Share:
    """found of pairs. low, high: Wilson's interval at 95 %, as if pairs were independent of each other."""

    found: int
    pairs: int

    @property
    def value(self) -> float:
        return self.found / self.pairs if self.pairs else 1.0

    @property
    def low(self) -> float:
        return wilson(self.found, self.pairs)[0]

    @property
    def high(self) -> float:
        return wilson(self.found, self.pairs)[1]


@dataclass(frozen=True, slots=True)
class Recall:
    """Of the pairs that brute force finds for `sampled` rows among `among`, those that are stored.

    cut: pairs left out of the count, because one of the two has so many near ones that only its best are stored. missed: the most alike.
    """

    sampled: int
    among: int
    at_threshold: Share
    at_floor: Share
    cut: int = 0
    missed: tuple[Near, ...] = ()


def sampled_rows(ladder: Ladder, rung: int, uids: pa.ChunkedArray, sample: int, seed: int) -> tuple[np.ndarray, int]:
    """int64: `sample` of the rows that a rung searches, ascending; and how many it searches."""
    held = [_searched(ladder, rung, domain) for domain in _domains(ladder, rung)]
    among = np.unique(np.concatenate([np.zeros(0, np.int64), *held]))
    return drawn(lambda part: uids.take(pa.array(part)).to_pylist(), among, sample, seed), len(among)


def true_pairs(ladder: Ladder, rung: int, rows: np.ndarray, floor: float) -> dict[tuple[int, int], float]:
    """(row, row), the lower number first → similarity: all pairs at or above a similarity `floor` with one of `rows`, by brute force.

    Memory: the vectors of `rows`, CHUNK of the others, and the pairs that are found.
    """
    found: dict[tuple[int, int], float] = {}
    for domain in _domains(ladder, rung):
        found.update(_truth(ladder, rung, domain, _searched(ladder, rung, domain), rows, floor))
    return found


def recall_of(
    connection: duckdb.DuckDBPyConnection,
    pairs: str,
    truth: Mapping[tuple[int, int], float],
    rows: np.ndarray,
    among: int,
    threshold: float,
    cut: np.ndarray,
    named: Callable[[Sequence[tuple[int, int, float]]], Sequence[Near]],
) -> Recall:
    """Which of the true pairs of `rows` are among the stored `pairs` (a view of better, worse, similarity).

    cut: rows that have more near ones than are stored. named: makes pairs of rows those that people read; it is given the missed ones
    that are most alike.
    """
    stored = _stored(connection, pairs, rows)
    full = set(cut.tolist())
    missing = [pair for pair in truth if pair not in stored]
    left_out = {pair for pair in missing if pair[0] in full or pair[1] in full}
    counted = [pair for pair in truth if pair not in left_out]
    above = [pair for pair in counted if truth[pair] >= threshold]
    shares = [Share(sum(pair in stored for pair in part), len(part)) for part in (above, counted)]
    worst = sorted((pair for pair in missing if pair not in left_out), key=lambda pair: (-truth[pair], pair))[:MISSED]
    return Recall(len(rows), among, shares[0], shares[1], len(left_out), tuple(named([(a, b, truth[a, b]) for a, b in worst])))


def _domains(ladder: Ladder, rung: int) -> list[Domain]:
    return [domain for domain in ladder.domains if (domain.anchor == TEXTS) == (rung == TEXT)]


def _searched(ladder: Ladder, rung: int, domain: Domain) -> np.ndarray:
    """The rows of a domain that have what the rung compares."""
    rows: np.ndarray = domain.rows[_ids(ladder, rung, domain, domain.rows) >= 0]
    return rows


def _truth(ladder: Ladder, rung: int, domain: Domain, searched: np.ndarray, rows: np.ndarray, floor: float) -> dict[tuple[int, int], float]:
    """(row, row) → similarity, lower row first, of all pairs of a sampled row that the search should have found in a domain."""
    rows = rows[np.isin(rows, searched, assume_unique=True)]
    found: dict[tuple[int, int], float] = {}
    if not len(rows):
        return found
    for a, b, similarity in _hits(ladder, rung, domain, searched, rows, floor):
        mine = rows[a]
        good = (b != mine) & ~(ladder.taken.fixed[b] & ladder.taken.fixed[mine])
        for x, y, s in zip(mine[good].tolist(), b[good].tolist(), similarity[good].tolist(), strict=True):
            found[min(x, y), max(x, y)] = s
    return found


def _hits(ladder: Ladder, rung: int, domain: Domain, searched: np.ndarray, rows: np.ndarray, floor: float) -> Hits:
    """(places in `rows`, the rows of a domain that are near them, similarities)."""
    content = ladder.content
    if rung == PHASH:
        hashes = content.hash[content.start[searched] + domain.anchor]
        for a, b, similarity in near_by_bits(hashes, np.searchsorted(searched, rows), round((1 - floor) * 64)):
            yield a, searched[b], similarity
        return
    if rung == FRAMES:
        assert content.frames is not None
        clips = content.start[searched] + domain.anchor
        asked, radius = content.start[rows] + domain.anchor, ladder.limits.frame_radius
        for a, b, similarity in near_by_frames(content.frames, clips, asked, floor, radius):
            yield a, searched[b], similarity
        return
    vectors = content.signatures if rung == TEXT else content.vectors
    assert vectors is not None
    near = near_by_places if rung == TEXT else near_by_cosine
    for a, b, similarity in near(vectors, _ids(ladder, rung, domain, rows), floor):
        other = vectors.row_of(b)
        here = vectors.medium_of(b) == max(domain.anchor, 0)
        here &= searched[np.minimum(np.searchsorted(searched, other), len(searched) - 1)] == other
        yield a[here], other[here], similarity[here]


def _ids(ladder: Ladder, rung: int, domain: Domain, rows: np.ndarray) -> np.ndarray:
    """int64: number of the hash, vector or signature by which each row is searched in a domain; -1 where it has none."""
    content = ladder.content
    if rung == TEXT:
        return content.signature_ids(rows)
    if rung == PHASH:
        ids = content.start[rows] + domain.anchor
        return np.where(content.hashed[ids], ids, -1)
    if rung == FRAMES:
        assert content.frames is not None
        ids = content.start[rows] + domain.anchor
        return np.where(content.frames.has(ids), ids, -1)
    return content.vector_ids(rows, domain.anchor)


def _stored(connection: duckdb.DuckDBPyConnection, pairs: str, rows: np.ndarray) -> set[tuple[int, int]]:
    connection.register("audit_rows", pa.table({"row": rows}))
    try:
        among = "(select row from audit_rows)"
        query = f"select least(better, worse), greatest(better, worse) from {pairs} where better in {among} or worse in {among}"
        return set(connection.execute(query).fetchall())
    finally:
        connection.unregister("audit_rows")


def wilson(found: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927, eq. for the binomial): (low, high) within 0..1; (0, 1) where nothing was counted."""
    if not of:
        return 0.0, 1.0
    share, extra = found / of, z * z / of
    middle = (share + extra / 2) / (1 + extra)
    half = z * sqrt(share * (1 - share) / of + extra / (4 * of)) / (1 + extra)
    return (0.0 if found == 0 else max(0.0, middle - half)), (1.0 if found == of else min(1.0, middle + half))


def drawn(uids: Callable[[np.ndarray], list[str]], among: np.ndarray, sample: int, seed: int) -> np.ndarray:
    """`sample` of the rows `among`: those whose uid has the least hash with the seed. Ascending; all of them where there are no more."""
    if len(among) <= sample:
        return np.sort(among)
    kept: list[tuple[bytes, int]] = []
    for start in range(0, len(among), 1 << 20):
        rows = among[start : start + (1 << 20)]
        hashes = [hashlib.blake2b(f"{seed}/{uid}".encode(), digest_size=12).digest() for uid in uids(rows)]
        kept = sorted([*kept, *zip(hashes, rows.tolist(), strict=True)])[:sample]
    return np.sort(np.array([row for _, row in kept], np.int64))


def near_by_cosine(vectors: Vectors, sampled: np.ndarray, floor: float) -> Hits:
    """Exactly all vectors with a cosine ≥ floor to a sampled one. Memory: the sampled ones and CHUNK of the others."""
    queries = vectors.take(sampled)
    exact = queries.astype(np.float64)
    for start, part in _chunks(vectors):
        a, b = np.nonzero(queries @ part.T >= floor - 1e-4)  # the last digits of a product depend on its shape; so they are made anew
        cosines = np.einsum("ij,ij->i", exact[a], part[b], dtype=np.float64).astype(np.float32)
        good = cosines >= floor
        yield a[good], start + b[good], cosines[good]


def near_by_places(vectors: Vectors, sampled: np.ndarray, floor: float) -> Hits:
    """Exactly all signatures equal to a sampled one in a share ≥ floor of their numbers."""
    queries = vectors.take(sampled)
    for start, part in _chunks(vectors):
        for place, query in enumerate(queries):
            alike = (part == query).sum(axis=1) / vectors.width
            b = np.flatnonzero(alike >= floor - 1e-9)
            yield np.full(len(b), place), start + b, alike[b].astype(np.float32)


def near_by_bits(hashes: np.ndarray, sampled: np.ndarray, radius: int) -> Hits:
    """Exactly all of `hashes` (uint64) that differ in at most `radius` bits from a sampled one; similarity 1 − bits / 64."""
    queries = hashes[sampled]
    for start in range(0, len(hashes), CHUNK):
        bits = np.bitwise_count(queries[:, None] ^ hashes[None, start : start + CHUNK])
        a, b = np.nonzero(bits <= radius)
        yield a, start + b, (1.0 - bits[a, b] / 64.0).astype(np.float32)


def _chunks(vectors: Vectors) -> Iterator[tuple[int, np.ndarray]]:
    number = 0
    for block in range(vectors.blocks):
        mapped = vectors.block(block)
        for start in range(0, len(mapped), CHUNK):
            part = np.asarray(mapped[start : start + CHUNK])
            yield number, part
            number += len(part)
