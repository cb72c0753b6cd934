"""Packing: items into rows of bounded tokens and patches, and packs to ranks. Random enough to train on, full enough to pay for."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np

from shards.errors import ConfigError

_BUCKET_PACKS = 64  # packs' worth of shuffled items that are packed together: what lies further apart never shares a pack
_FULL = 0.97  # packs below it are opened again with the next bucket's items,
_REOPENED = 0.25  # at most this share of them, so that the work stays linear


@dataclass(frozen=True, slots=True)
class Packed:
    """P packs of n items: pack p holds items[start[p]:start[p + 1]], positions into what was packed. int64."""

    start: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.start) - 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over each pack of a value for each item."""
        total = np.concatenate([np.zeros(1, dtype=values.dtype), np.cumsum(values[self.items])])
        return total[self.start[1:]] - total[self.start[:-1]]


def pack_items(tokens: np.ndarray, patches: np.ndarray, order: np.ndarray, max_tokens: int, max_patches: int) -> Packed:
    """Packs of positions into `tokens` and `patches` (int64), each within both bounds; every position of `order` in exactly one pack.

    Buckets of `order` are packed by best fit, largest first (Johnson 1973: within 11/9 of the optimum in one dimension); the emptiest packs
    of a bucket are opened again with the next. Items above a bound must have been taken out before. Releases the interpreter lock.
    """
    pack, count = _pack(order, tokens, patches, max_tokens, max_patches, _BUCKET_PACKS, _FULL, _REOPENED)
    by_pack = np.argsort(pack, kind="stable")
    return Packed(np.searchsorted(pack[by_pack], np.arange(count + 1)), order[by_pack])


@numba.njit(cache=True, nogil=True)
def _pack(order, tokens, patches, max_tokens, max_patches, bucket_packs, full, reopened):  # type: ignore[no-untyped-def]
    """(int64: the pack of each place of `order`, number of packs)."""
    n = len(order)
    pack_of = np.full(n, -1, np.int64)
    again = np.zeros(0, np.int64)  # places of items whose packs were opened again
    done = 0
    upto = 0
    while upto < n or len(again) > 0:
        first, sum_tokens, sum_patches = upto, 0.0, 0.0
        while upto < n and max(sum_tokens / max_tokens, sum_patches / max_patches) < bucket_packs:
            sum_tokens += tokens[order[upto]]
            sum_patches += patches[order[upto]]
            upto += 1
        bucket = np.concatenate((again, np.arange(first, upto)))
        size = np.empty(len(bucket))
        for b in range(len(bucket)):
            item = order[bucket[b]]
            size[b] = -max(tokens[item] / max_tokens, patches[item] / max_patches)
        left, room = np.empty(len(bucket), np.int64), np.empty(len(bucket), np.int64)
        placed = np.empty(len(bucket), np.int64)
        packs = 0
        for b in np.argsort(size, kind="mergesort"):
            item = order[bucket[b]]
            best, best_left = -1, max_tokens + 1
            for p in range(packs):
                if tokens[item] <= left[p] < best_left and room[p] >= patches[item]:
                    best, best_left = p, left[p]
            if best < 0:
                best, packs = packs, packs + 1
                left[best], room[best] = max_tokens, max_patches
            left[best] -= tokens[item]
            room[best] -= patches[item]
            placed[b] = best
        opened = np.zeros(packs, np.bool_)
        if upto < n:
            fill = np.empty(packs)
            for p in range(packs):
                fill[p] = max(1 - left[p] / max_tokens, 1 - room[p] / max_patches)
            emptiest = np.argsort(fill, kind="mergesort")
            for p in emptiest[: int(packs * reopened)]:
                opened[p] = fill[p] < full
        number = np.empty(packs, np.int64)
        for p in range(packs):
            number[p] = -1 if opened[p] else done
            done += 0 if opened[p] else 1
        held = 0
        for b in range(len(bucket)):
            pack_of[bucket[b]] = number[placed[b]]
            held += opened[placed[b]]
        again = np.empty(held, np.int64)
        held = 0
        for b in range(len(bucket)):
            if opened[placed[b]]:
                again[held] = bucket[b]
                held += 1
    return pack_of, done


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Positions of a step's packs for each rank: equally many, dearest first, by longest processing time (Graham 1969).

    Packs of equal place are run at the same time on all ranks, so they are of like cost too. Raises ConfigError when the ranks do not
    divide the packs.
    """
    if ranks < 1 or len(costs) % ranks:
        divisors = [str(n) for n in range(1, len(costs) + 1) if len(costs) % n == 0]
        raise ConfigError(
            f"{len(costs)} packs a step cannot be dealt to {ranks} ranks equally; run {' or '.join(divisors)} ranks, or set "
            f"step: {{packs: N}} to a multiple of {max(ranks, 1)}, or divisible_by (that begins a new plan)"
        )
    each = len(costs) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    lightest = [(0.0, rank) for rank in range(ranks)]
    for pack in sorted(range(len(costs)), key=lambda p: (-costs[p], p)):
        load, rank = heapq.heappop(lightest)
        hands[rank].append(pack)
        if len(hands[rank]) < each:
            heapq.heappush(lightest, (load + costs[pack], rank))
    return hands
