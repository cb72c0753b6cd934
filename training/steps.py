"""Which packs share a step: so chosen that every step has its part of each source and of the work."""

from __future__ import annotations

import numba
import numpy as np

from training.order import shuffle

_CHUNK = 2_048  # packs that are composed together, at least one step's
_ROUNDS = 3  # of exchanges
_POOL = 512  # packs from which the next one of an even order is taken
COST_WEIGHT = 0.5  # of a step's cost against its sources' tokens: dealing evens out within a step what is left


def capacities(packs: int, before: int, per_step: int) -> list[int]:
    """Sizes of the groups that a window of `packs` packs is cut into when `before` packs came earlier in the epoch: what the last step
    still lacks, whole steps, and what begins the next one."""
    head = min(packs, -before % per_step)
    whole, rest = divmod(packs - head, per_step)
    return [size for size in (head, *[per_step] * whole, rest) if size]


def features(tokens_by_source: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """float64 (packs, sources + 1): tokens of each source over the mean pack's tokens, and the cost over the mean cost, weighted."""
    mean = max(float(tokens_by_source.sum(axis=1).mean()), 1e-300)
    cost = costs / max(float(costs.mean()), 1e-300)
    return np.column_stack([tokens_by_source / mean, COST_WEIGHT * cost])


def compose(values: np.ndarray, sizes: list[int]) -> np.ndarray:
    """int64 order of the packs, group after group, such that the sums of `values` (packs, features) in each group are near its size times
    the mean of all.

    First an order of which every stretch is near the mean; then, over stretches of a few thousand packs, packs are put into groups
    greedily, farthest from the mean first, and exchanged in pairs. Deterministic.
    """
    if not sizes:
        return np.zeros(0, dtype=np.int64)
    target, order, at = values.mean(axis=0), [], 0
    chunk: list[int] = []
    first = _even(values - target, _POOL)
    values = values[first]
    for number, size in enumerate(sizes):
        chunk.append(size)
        if sum(chunk) >= _CHUNK or number + 1 == len(sizes):
            mine = np.arange(at, at + sum(chunk))
            off = np.abs(values[mine] - target).sum(axis=1)
            group = _group(values[mine], np.argsort(-off, kind="stable"), np.array(chunk), target, _ROUNDS)
            order.append(mine[np.argsort(_spread(chunk)[group], kind="stable")])
            at, chunk = at + len(mine), []
    return first[np.concatenate(order)]


def _spread(sizes: list[int]) -> np.ndarray:
    """int64: where each group comes. Those of the common size in a pseudo-random order, for the farthest packs went to the first ones."""
    place = np.arange(len(sizes))
    like = np.flatnonzero(np.array(sizes) == max(sizes))
    place[like] = like[np.argsort(shuffle(like.astype(np.uint64), "steps"), kind="stable")]
    return place


@numba.njit(cache=True, nogil=True)
def _even(off, pool):  # type: ignore[no-untyped-def]
    """int64 order in which the running sum of `off` (packs, features; mean 0) stays small: next is the best of the first `pool` left."""
    n, width = off.shape
    order = np.empty(n, np.int64)
    waiting = np.empty(pool, np.int64)
    so_far = np.zeros(width)
    held, coming = 0, 0
    for q in range(n):
        while held < pool and coming < n:
            waiting[held] = coming
            held, coming = held + 1, coming + 1
        best, best_value = 0, np.inf
        for c in range(held):
            value = 0.0
            for k in range(width):
                e = so_far[k] + off[waiting[c], k]
                value += e * e
            if value < best_value:
                best, best_value = c, value
        order[q] = waiting[best]
        for k in range(width):
            so_far[k] += off[waiting[best], k]
        for c in range(best, held - 1):
            waiting[c] = waiting[c + 1]
        held -= 1
    return order


@numba.njit(cache=True, nogil=True)
def _group(values, order, sizes, target, rounds):  # type: ignore[no-untyped-def]
    """int64: the group of each pack. off[j] is the sum of a group's values less its number of packs times the target."""
    n, width = values.shape
    groups = len(sizes)
    group = np.zeros(n, np.int64)
    off = np.zeros((groups, width))
    held = np.zeros(groups, np.int64)
    for q in range(n):
        i = order[q]
        best, best_value = -1, np.inf
        for j in range(groups):
            if held[j] >= sizes[j]:
                continue
            value = 0.0
            for k in range(width):
                e = values[i, k] - target[k]
                value += e * (2 * off[j, k] + e)
            value /= sizes[j]
            if value < best_value:
                best, best_value = j, value
        group[i] = best
        held[best] += 1
        for k in range(width):
            off[best, k] += values[i, k] - target[k]
    for _ in range(rounds):
        moved = 0
        for a in range(n):
            one = group[a]
            best, best_value = -1, -1e-9
            for b in range(a + 1, n):
                other = group[b]
                if other == one:
                    continue
                value = 0.0
                for k in range(width):
                    d = values[b, k] - values[a, k]
                    value += 2 * d * (off[one, k] - off[other, k]) + 2 * d * d
                if value < best_value:
                    best, best_value = b, value
            if best >= 0:
                other = group[best]
                for k in range(width):
                    d = values[best, k] - values[a, k]
                    off[one, k] += d
                    off[other, k] -= d
                group[a], group[best] = other, one
                moved += 1
        if moved == 0:
            break
    return group
