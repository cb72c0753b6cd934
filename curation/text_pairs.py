"""All pairs of MinHash signatures that agree in a share of their numbers: exact, in bounded memory, spread over workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from math import ceil
from pathlib import Path

import numba
import numpy as np

from curation.near import MOST, Found, found_of, most_in_room
from curation.population import OneByOne, Workers
from curation.search_files import put
from curation.text_tokens import Search, count_tokens, deal_tokens, masks_of, slice_of
from curation.vectors import Vectors
from shards.sample import digest_of

VERSION = 2  # of what the files of a search hold
TILE = 1 << 16  # tokens whose signatures are in memory at once: 32 MB at 128 numbers
PAIRS = 1 << 22  # pairs that a task or the caller holds before it drops what is over `most`
ALONE = 20_000  # signatures below which nothing is gained by spreading them
FIXED, QUERY = 1, 2

Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # things, things, similarities


def near_signatures(
    vectors: Vectors,
    ids: np.ndarray,
    rank: np.ndarray,
    fixed: np.ndarray,
    floor: float,
    workers: Workers,
    scratch: Path,
    queries: np.ndarray | None = None,
    most: int = MOST,
) -> Found:
    """Every pair of signatures that are equal in a share ≥ floor of their numbers, which estimates the Jaccard similarity of their texts.

    vectors  uint32 signatures. ids: int64 (m,), each once, where `vectors.valid`. The pairs' numbers are places in ids.
    rank     int64 (m,), no two alike: 0 = best. fixed: bool (m,): pairs of two fixed ones are not wanted.
    floor    0 < floor ≤ 1. queries: bool (m,): only pairs with at least one of them; None = all.
    scratch  a folder that the workers see. What an earlier try of the same search left there is used.

    None is missed. Of signatures of w numbers, those that agree in at least t = ⌈floor · w⌉ places also share one of each one's w - t + 1
    rarest numbers, whatever order tells rare from common (the prefix filter of set joins: Chaudhuri, Ganti, Kaushik, ICDE 2006; Bayardo,
    Ma, Srikant, WWW 2007). So each is looked up by its rarest only, and texts that share a common phrase do not meet by it, as they do
    in the buckets of LSH bands.

    A pure function of the signatures, rank, fixed, queries, floor and most. A task holds a slice of tokens (about a million, or all that
    share one), two tiles of signatures, and of each signature's pairs the best-ranked `most` + 1. Time grows with the pairs that share a
    rare number; who has more than `most` near betters behind one number stops looking there, so near-copies in masses cost little.
    Raises ValueError for signatures that are none.
    """
    if vectors.count and vectors.dtype != "uint32":
        raise ValueError(f"signatures are uint32, not {vectors.dtype}: name the column of a minhash step")
    if not 0 < floor <= 1:
        raise ValueError(f"floor {floor} is outside 0..1, 0 itself left out (a share of equal numbers)")
    ids, rank = np.asarray(ids, np.int64), np.asarray(rank, np.int64)
    if len(ids) < 2:
        return found_of([], rank, most)
    if not vectors.valid[ids].all():
        raise ValueError("some of the ids have no signature")
    by_id = np.argsort(ids, kind="stable")
    search = _prepared(vectors, ids[by_id], rank[by_id], fixed[by_id], None if queries is None else queries[by_id], floor, most, scratch)
    if len(ids) <= ALONE:
        workers = OneByOne()
    for _ in workers.map(deal_tokens, ((search, group) for group in range(search.groups))):
        pass
    held = _Held(rank[by_id], most)
    for number, path in enumerate(workers.map(join_slice, ((search, number) for number in range(search.slices)))):
        pairs = np.load(path, allow_pickle=False)
        held.most = min(held.most, int(np.load(search.path("most", number), allow_pickle=False)))
        held.add(pairs["better"], pairs["worse"], pairs["equal"] / np.float32(vectors.width))
    held.fit()
    return found_of([(by_id[a], by_id[b], similarity) for a, b, similarity in held.parts], rank, held.most)


def _prepared(
    vectors: Vectors,
    ids: np.ndarray,
    rank: np.ndarray,
    fixed: np.ndarray,
    queries: np.ndarray | None,
    floor: float,
    most: int,
    scratch: Path,
) -> Search:
    """The search with what its tasks read on disk."""
    least = max(1, ceil(floor * vectors.width - 1e-9))
    content = hashlib.sha256()
    place = np.empty(len(rank), np.int64)
    place[np.argsort(rank)] = np.arange(len(rank))
    flags = np.where(fixed, FIXED, 0).astype(np.uint8) | np.where(False if queries is None else queries, QUERY, 0).astype(np.uint8)
    for values in (ids, place, flags):
        content.update(values.tobytes())
    name = digest_of(
        VERSION, vectors.folder, vectors.digest, vectors.count, vectors.width, least, most, queries is None, content.hexdigest()
    )
    folder = Path(scratch) / f"signatures-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "counts.npy").exists():
        for kind, values in (("ids", ids), ("place", place), ("flags", flags), ("counts", count_tokens(vectors, ids))):
            put(folder / f"{kind}.npy", values)
    nothing = np.zeros(0, np.int64)  # tasks read vectors by number only: what is as long as the population does not travel with each
    bare = replace(vectors, owner=nothing, place=nothing.astype(np.int16), valid=nothing.astype(bool))
    return Search(bare, str(folder), len(ids), least, most, queries is not None)


class _Held:
    """Pairs of things that come in parts, never many more than may be wanted: of each the best-ranked `most` + 1. `most` is halved where an
    answer would have no room for so many (curation/near.py); in which parts they come does not show, for more pairs never ask for less."""

    def __init__(self, rank: np.ndarray, most: int) -> None:
        self.rank, self.most = rank, most
        self.parts: list[Part] = []
        self.held, self.room = 0, PAIRS

    def add(self, better: np.ndarray, worse: np.ndarray, similarity: np.ndarray) -> None:
        if not len(better):
            return
        self.parts.append((better, worse, similarity))
        self.held += len(better)
        if self.held > self.room:
            self.fit()

    def fit(self) -> None:
        """Drop what is over `most` + 1."""
        found = found_of(self.parts, self.rank, self.most + 1)
        most = most_in_room(np.bincount(found.worse, minlength=len(self.rank)), self.most)
        if most < self.most:
            found = found_of([(found.better, found.worse, found.similarity)], self.rank, most + 1)
        self.most = most
        self.parts, self.held = [(found.better, found.worse, found.similarity)], len(found)
        self.room = max(PAIRS, 2 * self.held)


def join_slice(search: Search, number: int) -> str:
    """Path of the pairs that meet by a token of this slice and by none of a lower component: better int64, worse int64, equal uint16."""
    path = search.path("pairs", number)
    if path.exists():
        return str(path)
    place, flags = search.load("place"), search.load("flags")
    components, things, starts = _buckets(search, number, place, flags)
    held = _Held(place, search.most)
    for low in range(0, len(things), TILE):
        tile = _Tile(search, flags, components, things, low, min(low + TILE, len(things)))
        seen = np.zeros(tile.size, np.int32)
        until = np.searchsorted(starts[low : low + tile.size], low)  # tokens of a bucket that began before this tile
        for piece in range(int(starts[low]), low, TILE):
            if (seen[:until] > search.most).all():
                break
            earlier = _Tile(search, flags, components, things, piece, min(piece + TILE, low))
            held.add(*_walk(search, tile, earlier, np.zeros(until, np.int64), np.full(until, earlier.size), seen))
        first = np.maximum(starts[low : low + tile.size] - low, 0)
        held.add(*_walk(search, tile, tile, first, np.arange(tile.size), seen))
    put(search.path("most", number), np.array(held.most))  # what it had no room for the answer has none for either
    put(path, _stored(held.parts))
    return str(path)


def _stored(parts: Iterable[Part]) -> np.ndarray:
    held = list(parts)
    pairs = np.empty(sum(len(p[0]) for p in held), [("better", np.int64), ("worse", np.int64), ("equal", np.uint16)])
    for name, at in (("better", 0), ("worse", 1), ("equal", 2)):
        if held:
            pairs[name] = np.concatenate([p[at] for p in held])
    return pairs


def _buckets(search: Search, number: int, place: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(component int64, thing int64, where its bucket starts int64) of the slice's tokens that several have, best-ranked first in each
    bucket; buckets in which no wanted pair can be are left out."""
    tokens, things = slice_of(search, number)
    order = np.argsort(tokens)
    same = tokens[order[1:]] == tokens[order[:-1]]
    several = order[np.concatenate([same, [False]]) | np.concatenate([[False], same])] if len(order) else order
    tokens, things = tokens[several], things[several]
    order = np.lexsort((place[things], tokens))
    tokens, things = tokens[order], things[order]
    if not len(tokens):
        return things, things, things
    opens = np.flatnonzero(np.concatenate([[True], tokens[1:] != tokens[:-1]]))
    sizes = np.diff(np.append(opens, len(tokens)))
    kinds = flags[things]
    wanted = np.add.reduceat((kinds & FIXED) == 0, opens, dtype=np.int64) > 0
    if search.asked:
        wanted &= np.add.reduceat((kinds & QUERY) != 0, opens, dtype=np.int64) > 0
    keep = np.repeat(wanted, sizes)
    sizes = sizes[wanted]
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return (tokens[keep] >> np.uint64(32)).astype(np.int64), things[keep], starts


class _Tile:
    """Tokens low … high with the signatures behind them, each signature once."""

    def __init__(self, search: Search, flags: np.ndarray, components: np.ndarray, things: np.ndarray, low: int, high: int) -> None:
        self.size = high - low
        self.things = things[low:high]
        self.components = components[low:high]
        different, self.at = np.unique(self.things, return_inverse=True)
        self.signatures = search.vectors.take(search.load("ids")[different])
        self.masks = masks_of(search, different)
        self.flags = flags[different]


def _walk(search: Search, tile: _Tile, betters: _Tile, first: np.ndarray, last: np.ndarray, seen: np.ndarray) -> Part:
    """Pairs of the tile's tokens (as many as `first` has) with those from first to last of `betters`; (better, worse, equal numbers)."""
    room = len(first) * (search.most + 1)  # of memory that is only taken as it fills
    worse, better, equal = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.uint16)
    filled = _compare(
        tile.at, tile.components, tile.signatures, tile.masks, tile.flags,
        betters.at, betters.signatures, betters.masks, betters.flags,
        first, last, search.least, search.most, search.asked, seen, worse, better, equal,
    )  # fmt: skip
    return betters.things[better[:filled]], tile.things[worse[:filled]], equal[:filled].copy()


@numba.njit(cache=True)
def _compare(  # type: ignore[no-untyped-def]
    at, components, signatures, masks, flags, other_at, others, other_masks, other_flags, first, last, least, most, asked, seen,
    worse, better, equal
):  # fmt: skip
    filled = 0
    for e in range(len(first)):
        i = at[e]
        for c in range(first[e], last[e]):
            if seen[e] > most:
                break
            j = other_at[c]
            both = flags[i] & other_flags[j] & FIXED
            either = (flags[i] | other_flags[j]) & QUERY
            if both or (asked and not either):
                continue
            alike = np.int32(0)
            for k in range(signatures.shape[1]):
                alike += np.int32(signatures[i, k] == others[j, k])
            if alike < least:
                continue
            seen[e] += 1
            earlier = False  # is there a token of a lower component that both have: then the pair is found there
            for word in range((components[e] >> 6) + 1):
                common = masks[i, word] & other_masks[j, word]
                k = word << 6
                while common and k < components[e] and not earlier:
                    earlier = common & np.uint64(1) and signatures[i, k] == others[j, k]
                    common >>= np.uint64(1)
                    k += 1
            if not earlier:
                worse[filled], better[filled], equal[filled] = e, c, alike
                filled += 1
    return filled
