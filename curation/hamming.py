"""All pairs of 64-bit hashes within a Hamming radius: exact, found through buckets of bit bands, handed out in bounded chunks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import comb

import numba
import numpy as np

BITS = 64
WIDEST_BAND = 22  # bits; a band has 2**bits buckets


def near_pairs(hashes: np.ndarray, radius: int, chunk: int = 1 << 22) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every pair i < j with popcount(hashes[i] ^ hashes[j]) ≤ radius, once: chunks of (i int64, j int64, distance int64).

    hashes: uint64 (n,). Pairs come grouped by i, and i never falls: a chunk ends between two values of i, so whoever walks the hashes in
    order has seen all pairs (k, i) with k < i before the first pair (i, j). A chunk holds about `chunk` pairs, or all those of one i.

    Pigeonhole: 64 bits cut into m bands differ by ≤ radius // m in at least one of them. Each band is a table of buckets that is asked for
    every value within that many bits; a pair that several bands find is given by the first of them. m is chosen by the expected work.
    Raises ValueError for a radius outside 0..16.
    """
    if not 0 <= radius <= 16:
        raise ValueError(f"radius {radius} is outside 0..16")
    hashes = np.ascontiguousarray(hashes, dtype=np.uint64)
    n = len(hashes)
    if n < 2:
        return
    bands = choose_bands(n, radius)
    edges = np.linspace(0, BITS, bands + 1).astype(np.int64)
    shifts, widths = edges[:-1].copy(), np.diff(edges)
    flips = [_flips(int(width), radius // bands) for width in widths]
    flip_starts = np.cumsum([0, *map(len, flips)]).astype(np.int64)
    tables = [_buckets(hashes, int(shift), int(width)) for shift, width in zip(shifts, widths, strict=True)]
    members = np.concatenate([order for order, _ in tables])
    starts = np.concatenate([start for _, start in tables])
    table_starts = np.cumsum([0, *(len(start) for _, start in tables)]).astype(np.int64)
    arguments = (hashes, radius, radius // bands, shifts, widths, np.concatenate(flips), flip_starts, members, starts, table_starts)
    room = chunk
    first = 0
    while first < n:
        left, right, distance = (np.empty(room, np.int64) for _ in range(3))
        filled, after = _search(first, *arguments, left, right, distance)
        if after == first:  # one hash alone has more neighbours than fit
            room *= 2
            continue
        if filled:
            yield left[:filled], right[:filled], distance[:filled]
        first, room = after, chunk


def choose_bands(n: int, radius: int) -> int:
    """The number of bands with the least expected work for n evenly spread hashes: buckets asked for and hashes compared."""
    best, least = radius + 1, float("inf")
    for bands in range(1, radius + 2):
        width = -(-BITS // bands)
        if width > WIDEST_BAND:
            continue
        asked = sum(comb(width, k) for k in range(radius // bands + 1))
        work = bands * (n * asked * (1.0 + n / 2.0 ** (BITS // bands)) + 2.0**width)
        if work < least:
            best, least = bands, work
    return max(best, -(-BITS // WIDEST_BAND))


def _flips(width: int, radius: int) -> np.ndarray:
    masks = [sum(1 << bit for bit in bits) for k in range(radius + 1) for bits in combinations(range(width), k)]
    return np.array(masks, dtype=np.int64)


def _buckets(hashes: np.ndarray, shift: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Members ordered by bucket, ascending within each, and where each bucket starts."""
    values = ((hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)).astype(np.int64)
    order = np.argsort(values, kind="stable")
    starts = np.zeros((1 << width) + 1, np.int64)
    np.cumsum(np.bincount(values, minlength=1 << width), out=starts[1:])
    return order, starts


@numba.njit(cache=True, inline="always")
def _popcount(x: np.uint64) -> np.int64:
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(cache=True)
def _search(  # type: ignore[no-untyped-def]
    first, hashes, radius, band_radius, shifts, widths, flips, flip_starts, members, starts, table_starts, left, right, distance
):
    """Fills the three arrays with the pairs of i = first, first + 1, …; returns (filled, first i that did not fit whole)."""
    n = len(hashes)
    room = len(left)
    filled = 0
    for i in range(first, n):
        before = filled
        for band in range(len(shifts)):
            ones = (np.uint64(1) << np.uint64(widths[band])) - np.uint64(1)
            value = np.int64((hashes[i] >> np.uint64(shifts[band])) & ones)
            for f in range(flip_starts[band], flip_starts[band + 1]):
                bucket = table_starts[band] + (value ^ flips[f])
                # ascending members: from the end, so that those at or before i end the walk
                for place in range(band * n + starts[bucket + 1] - 1, band * n + starts[bucket] - 1, -1):
                    j = members[place]
                    if j <= i:
                        break
                    difference = hashes[i] ^ hashes[j]
                    d = _popcount(difference)
                    if d > radius:
                        continue
                    known = False
                    for earlier in range(band):
                        earlier_ones = (np.uint64(1) << np.uint64(widths[earlier])) - np.uint64(1)
                        if _popcount((difference >> np.uint64(shifts[earlier])) & earlier_ones) <= band_radius:
                            known = True
                            break
                    if known:
                        continue
                    if filled == room:
                        return before, i
                    left[filled] = i
                    right[filled] = j
                    distance[filled] = d
                    filled += 1
    return filled, n
