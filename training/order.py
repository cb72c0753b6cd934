"""Pseudo-random order from names alone: the same items come in the same order wherever they lie in the index."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def name_key(*parts: object) -> int:
    """64-bit key of a name: xxh3_64 of its parts, joined by 0x00."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"))


def item_keys(items: pa.Table) -> np.ndarray:
    """uint64 key of each row by (uid, task, n), and by `repeat` where the table has that column."""
    names = zip(items["uid"].to_pylist(), items["task"].to_pylist(), items["n"].to_pylist(), strict=True)
    keys = np.fromiter((name_key(*name) for name in names), dtype=np.uint64, count=items.num_rows)
    if "repeat" in items.column_names:
        keys = keys ^ mix(items["repeat"].to_numpy().astype(np.uint64) * _GOLDEN)
    return keys


def mix(keys: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), on uint64 arrays.

    Used instead of numpy's generators, whose streams may change between releases: an order must outlive an upgrade.
    """
    with np.errstate(over="ignore"):
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return keys ^ (keys >> np.uint64(31))


def shuffle(keys: np.ndarray, *seed: object) -> np.ndarray:
    """int64 positions of `keys` in the pseudo-random order that `seed` names; equal keys keep their order."""
    with np.errstate(over="ignore"):
        ranks = mix(keys * _GOLDEN + np.uint64(name_key(*seed)))
    return np.argsort(ranks, kind="stable")


def shuffle_names(names: Iterable[str], *seed: object) -> list[str]:
    """The distinct names in the pseudo-random order that `seed` names."""
    return sorted(set(names), key=lambda name: (name_key(*seed, name), name))
