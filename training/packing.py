"""Packing: items into rows of bounded tokens and patches. Random enough to train on, full enough to pay for."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from shards.errors import ConfigError

_BUCKET_PACKS = 64  # packs' worth of shuffled items that are packed together: what lies further apart never shares a pack
_FULL = 0.97  # packs below it are opened again with the next bucket's items,
_REOPENED = 0.25  # at most this share of them, so that the work stays linear


def pack_items(tokens: np.ndarray, patches: np.ndarray, order: np.ndarray, max_tokens: int, max_patches: int) -> list[list[int]]:
    """Packs of positions into `tokens` and `patches` (int64), each within both bounds; every position of `order` in exactly one pack.

    Buckets of `order` are packed by best fit, largest first (Johnson 1973: within 11/9 of the optimum in one dimension); the emptiest packs
    of a bucket are opened again with the next. Items above a bound must have been taken out before.
    """
    size = np.maximum(tokens / max_tokens, patches / max_patches)
    filled = np.maximum(np.cumsum(tokens[order]) / max_tokens, np.cumsum(patches[order]) / max_patches)
    bounds = np.searchsorted(filled, np.arange(_BUCKET_PACKS, filled.max(initial=0), _BUCKET_PACKS))
    done: list[list[int]] = []
    again: list[int] = []
    buckets = [bucket for bucket in np.split(order, bounds) if len(bucket)]
    for number, bucket in enumerate(buckets, start=1):
        packs = _best_fit([*again, *bucket.tolist()], size, tokens, patches, max_tokens, max_patches)
        again = []
        if number < len(buckets):
            fill = [max(tokens[pack].sum() / max_tokens, patches[pack].sum() / max_patches) for pack in packs]
            emptiest = np.argsort(fill, kind="stable")[: int(len(packs) * _REOPENED)]
            reopened = {int(p) for p in emptiest if fill[p] < _FULL}
            again = [item for p in sorted(reopened) for item in packs[p]]
            packs = [pack for p, pack in enumerate(packs) if p not in reopened]
        done.extend(packs)
    return done


def _best_fit(
    bucket: list[int], size: np.ndarray, tokens: np.ndarray, patches: np.ndarray, max_tokens: int, max_patches: int
) -> list[list[int]]:
    packs: list[list[int]] = []
    room: list[int] = []  # patches that still fit into each pack
    free: list[tuple[int, int]] = []  # (tokens that still fit, pack), ascending
    positions = np.array(bucket)
    by_size = np.argsort(-size[positions], kind="stable").tolist()
    tokens_of, patches_of = tokens[positions].tolist(), patches[positions].tolist()
    for i in by_size:
        item, need, need_patches = bucket[i], tokens_of[i], patches_of[i]
        for at in range(bisect_left(free, (need, -1)), len(free)):
            left, pack = free[at]
            if room[pack] >= need_patches:
                del free[at]
                break
        else:
            left, pack = max_tokens, len(packs)
            packs.append([])
            room.append(max_patches)
        packs[pack].append(item)
        room[pack] -= need_patches
        insort(free, (left - need, pack))
    return packs


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Positions of a step's packs for each rank: equally many, dearest first, by longest processing time (Graham 1969).

    Packs of equal place are run at the same time on all ranks, so they are of like cost too. Raises ConfigError when the ranks do not
    divide the packs.
    """
    if ranks < 1 or len(costs) % ranks:
        divisors = [str(n) for n in range(1, len(costs) + 1) if len(costs) % n == 0]
        raise ConfigError(
            f"{len(costs)} packs a step cannot be dealt to {ranks} ranks equally; "
            f"run {' or '.join(divisors)} ranks, or set packs_per_step to a multiple of {max(ranks, 1)} (that begins a new plan)"
        )
    each = len(costs) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for pack in sorted(range(len(costs)), key=lambda p: (-costs[p], p)):
        rank = min((r for r in range(ranks) if len(hands[r]) < each), key=lambda r: (loads[r], r))
        hands[rank].append(pack)
        loads[rank] += costs[pack]
    return hands
