"""Hashes looked up in the tables: of each the best-ranked others within the radius, and no further than needed to know them."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from curation.hamming_tables import gathered

NONE = 0xFFFFFFFF  # no place
_BLOCK = 16  # hashes compared between two looks at where to stop


@intrinsic
def popcount(typing: Any, x: Any) -> Any:
    """Bits set of a uint64, as one instruction where the machine has it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@numba.njit(cache=True)
def walk(tables, leads, following, below, hashes, variants, places, radius, most, begin, pairs, cut):  # type: ignore[no-untyped-def]
    """Fills `pairs` and `cut` for the hashes from `begin` on; returns (first that did not fit whole, pairs, cut filled).

    tables     of distinct hashes, numbered in order of the best place that has them: leads uint32 (numbers,).
    following  uint32 (all,): the next place with the same hash among what is in the tables, or NONE.
    below      uint32 (all + 1,): how many numbers have a lead before each place.
    hashes     uint64 (k,) ascending; variants: uint64 (k, v): what to look up for each; places: uint32 (k,), ascending among equal hashes.
    pairs      uint64: better place << 32 | worse place. cut: uint32, places that have more than `most` betters.

    Equal hashes have the same others around them: they are looked up once, for the worst of them, and each has those before itself. What
    is kept of a look-up is its `most` + 1 best places; a bucket is left at the first number whose lead is not before the last of those.
    """
    best = np.empty(most + 1, np.uint32)
    pile = np.empty(tables.pending[0], np.int64)
    filled = cuts = 0
    i = begin
    while i < len(hashes):
        end = i + 1
        while end < len(hashes) and hashes[end] == hashes[i]:
            end += 1
        count = 0
        for variant in range(variants.shape[1]):
            count = _look_up(tables, leads, following, below, variants[i, variant], radius, best, count, places[end - 1], pile)
        if filled + (end - i) * min(count, most) > len(pairs) or cuts + (end - i) > len(cut):
            break
        before = 0
        for k in range(i, end):
            while before < count and best[before] < places[k]:
                before += 1
            for p in range(min(before, most)):
                pairs[filled] = np.uint64(best[p]) << np.uint64(32) | np.uint64(places[k])
                filled += 1
            if before > most:
                cut[cuts] = places[k]
                cuts += 1
        i = end
    return i, filled, cuts


@numba.njit(cache=True)
def _look_up(tables, leads, following, below, h, radius, best, count, place, pile):  # type: ignore[no-untyped-def]
    """`best` with the places before `place` that have a hash within the radius of h; returns how many it holds now."""
    limit = best[count - 1] if count == len(best) else place
    stop = below[limit]
    pile[0] = 0
    waiting = 1
    while waiting:
        waiting -= 1
        node = pile[waiting]
        left = np.int64(radius) - np.int64(popcount((h ^ tables.value[node]) & tables.same[node]))
        if left < 0:
            continue
        together = gathered(h, tables.gather[node])
        parts = tables.parts[node]
        first = tables.first_band[node]
        for band in range(first, tables.first_band[node + 1]):
            away = (left - (band - first)) // parts
            if away < 0:
                break
            width = tables.width[band]
            if width == 0:
                away = 0
            value = (together >> np.uint64(tables.shift[band])) & ((np.uint64(1) << np.uint64(width)) - np.uint64(1))
            flips_at = tables.flips_at[width]
            starts = tables.starts_at[band]
            entries = tables.entries_at[band]
            for flip in range(flips_at, flips_at + tables.flips_of[width, away]):
                bucket = np.int64(value ^ np.uint64(tables.flips[flip]))
                at = entries + np.int64(tables.starts[starts + bucket])
                end = entries + np.int64(tables.starts[starts + bucket + 1])
                child = -1
                if end - at > tables.look[0] and tables.children_at[band + 1] > tables.children_at[band]:
                    child = _child(tables, band, bucket)
                    if child >= 0:
                        end = at + tables.look[0]
                while at < end and tables.numbers[at] < stop:
                    last = min(at + _BLOCK, end)
                    near = False
                    if last - at == _BLOCK:
                        for k in range(_BLOCK):  # branchless: several at once
                            near |= popcount(h ^ tables.hashes[at + k]) <= np.uint64(radius)
                    else:
                        near = True
                    if near:
                        for k in range(at, last):
                            if popcount(h ^ tables.hashes[k]) <= np.uint64(radius) and tables.numbers[k] < stop:
                                count = _keep(leads[tables.numbers[k]], limit, following, best, count)
                                if count == len(best):
                                    limit = best[count - 1]
                                    stop = below[limit]
                    at = last
                if child >= 0 and tables.numbers[at] < stop:
                    pile[waiting] = child
                    waiting += 1
    return count


@numba.njit(cache=True)
def _child(tables, band, bucket):  # type: ignore[no-untyped-def]
    low, high = tables.children_at[band], tables.children_at[band + 1]
    while low < high:
        middle = (low + high) // 2
        if tables.child_bucket[middle] < bucket:
            low = middle + 1
        else:
            high = middle
    return tables.child_node[low] if low < tables.children_at[band + 1] and tables.child_bucket[low] == bucket else -1


@numba.njit(cache=True)
def _keep(place, limit, following, best, count):  # type: ignore[no-untyped-def]
    """`best`, ascending, with a place and all that have its hash and come before `limit`; its length. Found again, nothing changes."""
    first = True
    while place < limit:
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if best[middle] < place:
                low = middle + 1
            else:
                high = middle
        if first and low < count and best[low] == place:
            return count  # came with all its like before
        first = False
        if low == len(best):
            break
        last = min(count, len(best) - 1)
        for k in range(last, low, -1):
            best[k] = best[k - 1]
        best[low] = place
        count = last + 1
        place = following[place]
    return count
