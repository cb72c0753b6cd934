"""Frames that are equal to the last bit: found by hash, then compared byte by byte."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import xxhash


def first_equal(arrays: Sequence[np.ndarray], kinds: Sequence[Hashable] | None = None) -> np.ndarray:
    """int64 (n): for each array the place of the first one that has its kind, type, shape and bytes; its own where there is none before.

    kinds: what else must be equal. Bytes, not numbers: -0.0 is not 0.0, and a NaN is itself.
    """
    found = np.arange(len(arrays), dtype=np.int64)
    seen: dict[Hashable, list[int]] = {}
    for place, array in enumerate(arrays):
        data = _bytes(array)
        key = (None if kinds is None else kinds[place], array.dtype.str, array.shape, xxhash.xxh3_64_intdigest(data.data))
        alike = seen.setdefault(key, [])
        for other in alike:
            if np.array_equal(data, _bytes(arrays[other])):
                found[place] = other
                break
        else:
            alike.append(place)
    return found


def kept_once(first: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """bool (t, n), of `kept` (bool (t, n): which blocks of t frames are kept): the blocks of each frame that it or one equal to it keeps,
    under the first of them; nothing under the others. `first`: of `first_equal`."""
    union = np.zeros_like(kept)
    np.logical_or.at(union, first, kept)
    return union


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
