"""Copies of clips: two clips are as alike as the share of their frames that look the same at one offset in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from curation.hamming import near_hashes
from curation.near import MOST
from curation.population import Workers

SEED = 6  # bits within which two frames are taken for the same moment, so that clips are held against each other at that offset
FEWEST_BITS = 8  # a hash with fewer bits set, or fewer clear, is that of a flat frame (black, one colour) and says nothing
STEP_NAME = "hash_step"  # the column beside the hashes
OFFSETS = 256  # offsets tried of a pair of clips
AT_ONCE = 1 << 18  # pairs of clips compared at once


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of m media that are not flat, medium after medium; one that is no clip, or has no other frames, has none.

    start   int64 (m + 1,): those of medium k are start[k] … start[k + 1]. hash: uint64 (f,). time: int64 (f,), milliseconds.
    weight  float64 (f,): of a run of frames that look like its first one, 1 / their number, then scaled to 1 for each medium: a picture
            that stands for long counts once.
    seed    bool (f,): is further than SEED bits from every earlier seed of its medium. step: int64 (m,), milliseconds between hashes.
    """

    start: np.ndarray
    hash: np.ndarray
    time: np.ndarray
    weight: np.ndarray
    seed: np.ndarray
    step: np.ndarray

    def has(self, media: np.ndarray) -> np.ndarray:
        """bool: which media have frames to compare."""
        found: np.ndarray = self.start[media + 1] > self.start[media]
        return found


def frames_of(hashes: np.ndarray, counts: np.ndarray, steps: np.ndarray) -> Frames:
    """hashes: uint64, of all media in order; counts: int64 (m,), how many each has; steps: float (m,), seconds between two (NaN: none)."""
    owner = np.repeat(np.arange(len(counts)), counts)
    step = np.round(np.nan_to_num(np.asarray(steps, np.float64)) * 1000).astype(np.int64)
    place = np.arange(len(hashes)) - np.repeat(np.cumsum(counts) - counts, counts)
    bits = np.bitwise_count(hashes)
    told = (bits >= FEWEST_BITS) & (bits <= 64 - FEWEST_BITS)
    owner, kept = owner[told], np.ascontiguousarray(hashes[told], np.uint64)
    time = place[told] * step[owner]
    start = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(counts)))]).astype(np.int64)
    weight, seed = np.zeros(len(kept), np.float64), np.zeros(len(kept), bool)
    _weigh(start, kept, weight, seed)
    return Frames(start, kept, time, weight, seed, step)


def alike(frames: Frames, x: np.ndarray, y: np.ndarray, radius: int) -> np.ndarray:
    """float32: how alike media x[k] and y[k] are, 0..1, the same either way round.

    At an offset d a frame of one at t agrees if the other has, within one step of t + d, a frame whose hash differs in at most `radius`
    bits; the share of a clip is the sum of the weights of its frames that agree. How alike two clips are is the lesser of their shares, at
    the offset where that is largest. Offsets tried are those between seeds within SEED bits of each other (the first OFFSETS of them).
    """
    found = np.zeros(len(x), np.float32)
    _alike(frames.start, frames.hash, frames.time, frames.weight, frames.seed, frames.step, x, y, radius, found)
    return found


def may_be_alike(frames: Frames, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool (len(x), len(y)): which media share a seed; the others are not alike at all."""
    found = np.zeros((len(x), len(y)), bool)
    _share_seeds(frames.start, frames.hash, frames.seed, x, y, found)
    return found


def near_clips(
    frames: Frames,
    media: np.ndarray,
    rank: np.ndarray,
    fixed: np.ndarray,
    floor: float,
    radius: int,
    workers: Workers,
    scratch: Path,
    queries: np.ndarray | None = None,
    one_by_one: bool = False,
    most: int = MOST,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(better, worse, similarity, cut): places in `media` of the pairs that are alike at least as `floor`, which is above 0; and bool,
    which of them have a seed near more than `most` better ones, so that pairs may be missing.

    rank, fixed, queries: of each medium, as of `near_hashes`, which finds the seeds that are near. one_by_one: all pairs of the asked ones
    are compared instead, and none is missed.
    """
    if one_by_one and queries is not None:
        return *_one_by_one(frames, media, rank, fixed, floor, radius, np.flatnonzero(queries)), np.zeros(len(media), bool)
    counts = frames.start[media + 1] - frames.start[media]
    ids = np.repeat(frames.start[media] - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
    owner = np.repeat(np.arange(len(media)), counts)
    seeds = frames.seed[ids]
    ids, owner = ids[seeds], owner[seeds]
    order = np.lexsort((ids, rank[owner], ~fixed[owner]))
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    asked = None if queries is None else queries[owner]
    found = near_hashes(frames.hash[ids], place, fixed[owner], SEED, workers, scratch, queries=asked, most=most)
    cut = np.zeros(len(media), bool)
    cut[owner[found.cut]] = True
    pairs = np.unique(owner[found.better] * len(media) + owner[found.worse])
    better, worse = np.divmod(pairs, max(len(media), 1))
    apart = better != worse
    better, worse = better[apart], worse[apart]
    parts = [slice(k, k + AT_ONCE) for k in range(0, len(better), AT_ONCE)]
    none = np.zeros(0, np.float32)
    similarity = np.concatenate([none, *(alike(frames, media[better[part]], media[worse[part]], radius) for part in parts)])
    enough = similarity >= np.float32(floor)
    return better[enough], worse[enough], similarity[enough], cut


def _one_by_one(
    frames: Frames, media: np.ndarray, rank: np.ndarray, fixed: np.ndarray, floor: float, radius: int, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = list(near_by_frames(frames, media, media[asked], floor, radius))
    none = np.zeros(0, np.int64)
    a = np.concatenate([none, *(asked[part[0]] for part in parts)])
    b = np.concatenate([none, *(part[1] for part in parts)])
    similarity = np.concatenate([none.astype(np.float32), *(part[2] for part in parts)])
    wanted = (a != b) & ~(fixed[a] & fixed[b])
    a, b, similarity = a[wanted], b[wanted], similarity[wanted]
    first = rank[a] < rank[b]
    return np.where(first, a, b), np.where(first, b, a), similarity


def near_by_frames(
    frames: Frames, media: np.ndarray, asked: np.ndarray, floor: float, radius: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(places in `asked`, places in `media`, similarity) of all that are alike at least as `floor`, by comparing all with all."""
    for start in range(0, len(media), 8_192):
        i, j = np.nonzero(may_be_alike(frames, asked, media[start : start + 8_192]))
        similarity = alike(frames, asked[i], media[start + j], radius)
        enough = similarity >= np.float32(floor)
        yield i[enough], start + j[enough], similarity[enough]


@numba.njit(cache=True)
def _weigh(start, hashes, weight, seed):  # type: ignore[no-untyped-def]
    for m in range(len(start) - 1):
        runs, begin = 0, start[m]
        for i in range(start[m], start[m + 1]):
            if _bits(hashes[i] ^ hashes[begin]) > SEED:
                for k in range(begin, i):
                    weight[k] = 1.0 / (i - begin)
                runs, begin = runs + 1, i
            new = True
            for k in range(start[m], i):
                if seed[k] and _bits(hashes[i] ^ hashes[k]) <= SEED:
                    new = False
                    break
            seed[i] = new
        for k in range(begin, start[m + 1]):
            weight[k] = 1.0 / (start[m + 1] - begin)
        for k in range(start[m], start[m + 1]):
            weight[k] /= runs + 1


@numba.njit(cache=True)
def _bits(x):  # type: ignore[no-untyped-def]
    """How many of 64 bits are set (Warren, Hacker's Delight, 5-1)."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(cache=True)
def _agreeing(hashes, time, weight, a, a_end, b, b_end, offset, slack, radius):  # type: ignore[no-untyped-def]
    """Weights of the frames a … a_end that have one like them among b … b_end, `offset` later."""
    share, first = 0.0, b
    for i in range(a, a_end):
        at = time[i] + offset
        while first < b_end and time[first] < at - slack:
            first += 1
        j = first
        while j < b_end and time[j] <= at + slack:
            if _bits(hashes[i] ^ hashes[j]) <= radius:
                share += weight[i]
                break
            j += 1
    return share


@numba.njit(cache=True)
def _alike(start, hashes, time, weight, seed, step, x, y, radius, found):  # type: ignore[no-untyped-def]
    tried = np.empty(OFFSETS, np.int64)
    for p in range(len(x)):
        a, b = min(x[p], y[p]), max(x[p], y[p])  # in one order, so that the same offsets are tried whoever asks
        slack, best, count = max(step[a], step[b]), 0.0, 0
        for i in range(start[a], start[a + 1]):
            if not seed[i]:
                continue
            for j in range(start[b], start[b + 1]):
                if not seed[j] or count == OFFSETS or _bits(hashes[i] ^ hashes[j]) > SEED:
                    continue
                offset = np.int64(time[j]) - np.int64(time[i])
                known = False
                for k in range(count):
                    known = known or tried[k] == offset
                if known:
                    continue
                tried[count] = offset
                count += 1
                of_a = _agreeing(hashes, time, weight, start[a], start[a + 1], start[b], start[b + 1], offset, slack, radius)
                if of_a > best:
                    of_b = _agreeing(hashes, time, weight, start[b], start[b + 1], start[a], start[a + 1], -offset, slack, radius)
                    best = max(best, min(of_a, of_b))
        found[p] = min(best, 1.0)


@numba.njit(cache=True)
def _share_seeds(start, hashes, seed, x, y, found):  # type: ignore[no-untyped-def]
    for p in range(len(x)):
        for q in range(len(y)):
            for i in range(start[x[p]], start[x[p] + 1]):
                if not seed[i]:
                    continue
                for j in range(start[y[q]], start[y[q] + 1]):
                    if seed[j] and _bits(hashes[i] ^ hashes[j]) <= SEED:
                        found[p, q] = True
                        break
                if found[p, q]:
                    break
