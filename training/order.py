"""Pseudo-random order from names alone: the same items come in the same order wherever they lie in the index."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

from shards.members import uid_bytes

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def name_key(*parts: object) -> int:
    """64-bit key of a name: xxh3_64 of its parts, joined by 0x00."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"))


def item_keys(items: pa.Table) -> np.ndarray:
    """uint64 key of each row by (uid, task, n)."""
    uid = uid_bytes(items["uid"].to_pylist(), "the index").reshape(-1).view("<u8").reshape(-1, 2)
    tasks = items["task"].combine_chunks().dictionary_encode()
    tasks = tasks.combine_chunks() if isinstance(tasks, pa.ChunkedArray) else tasks
    of_task = np.array([name_key(name) for name in tasks.dictionary.to_pylist()], dtype=np.uint64)
    n = items["n"].to_numpy().astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):
        second = mix(uid[:, 1] ^ mix(of_task[tasks.indices.to_numpy()] + n * _GOLDEN))
    return mix(uid[:, 0] ^ second)


def repeat_keys(keys: np.ndarray, repeat: np.ndarray) -> np.ndarray:
    """uint64 keys of (item, repeat); those of repeat 0 are the items' own."""
    with np.errstate(over="ignore"):
        return keys ^ mix(repeat.astype(np.uint64) * _GOLDEN)


def mix(keys: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), on uint64 arrays.

    Used instead of numpy's generators, whose streams may change between releases: an order must outlive an upgrade.
    """
    with np.errstate(over="ignore"):
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return keys ^ (keys >> np.uint64(31))


def ranks(keys: np.ndarray, *seed: object) -> np.ndarray:
    """uint64 pseudo-random rank of each key in the order that `seed` names."""
    with np.errstate(over="ignore"):
        return mix(keys * _GOLDEN + np.uint64(name_key(*seed)))


def shuffle(keys: np.ndarray, *seed: object) -> np.ndarray:
    """int64 positions of `keys` in the pseudo-random order that `seed` names; equal keys keep their order."""
    return np.argsort(ranks(keys, *seed), kind="stable")


def shuffle_names(names: Iterable[str], *seed: object) -> list[str]:
    """The distinct names in the pseudo-random order that `seed` names."""
    return sorted(set(names), key=lambda name: (name_key(*seed, name), name))
