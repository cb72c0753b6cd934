"""All pairs of 64-bit hashes within a Hamming radius: exact, found through buckets of bit bands, spread over workers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numba
import numpy as np
import xxhash

from curation.hamming_tables import BITS, build_tables, load_tables
from curation.hamming_walk import NONE, walk
from curation.near import MOST, Found, most_in_room
from curation.population import Workers

VERSION = 1  # of what the files in scratch hold
TASK = 131_072  # hashes looked up by a task: at most MOST pairs of 8 bytes each, 134 MB
FURTHEST = 16

_SHARED = ("leads", "following", "below", "who", "asked")  # beside the tables

Variants = Callable[[np.ndarray], np.ndarray]


def near_hashes(
    hashes: np.ndarray,
    rank: np.ndarray,
    fixed: np.ndarray,
    radius: int,
    workers: Workers,
    scratch: Path,
    queries: np.ndarray | None = None,
    most: int = MOST,
) -> Found:
    """Every pair with popcount(hashes[i] ^ hashes[j]) ≤ radius, of each the `most` best-ranked betters; similarity 1 − distance / 64.

    hashes: uint64 (m,), equal ones welcome. rank: int64 (m,), no two alike, 0 is best. fixed: bool (m,): no pair of two of them; they rank
    before all others. queries: bool (m,): only pairs with an end in it. radius: 0..16 bits.

    A pure function of the set {(hash, rank, fixed, query)}. Tables and the answers of tasks lie in `scratch`; answers that are there
    already are used. Joining pairs takes 28 bytes for each; where there would be more than ROOM a thing (curation/near.py), as among very
    many that are alike, `most` is halved until they fit. Raises ValueError.
    """
    return near_variants(hashes, rank, fixed, radius, _itself, "", workers, scratch, queries, most)


def near_variants(
    hashes: np.ndarray,
    rank: np.ndarray,
    fixed: np.ndarray,
    radius: int,
    variants: Variants,
    name: str,
    workers: Workers,
    scratch: Path,
    queries: np.ndarray | None = None,
    most: int = MOST,
) -> Found:
    """`near_hashes` where a hash stands for several: the distance of two is that of the one to the nearest variant of the other.

    variants: uint64 (k,) -> uint64 (k, v), of a module's top level; name: what it is, among the files in scratch. It must make a group of
    changes that keep distances (permuted bits, inverted bits): then it does not matter which of two is varied.
    """
    hashes = np.ascontiguousarray(hashes, np.uint64)
    fixed = np.asarray(fixed, bool)
    _check(hashes, rank, fixed, radius, most, queries)
    order = np.argsort(rank, kind="stable")
    hashes, free = hashes[order], ~fixed[order]
    if not np.all(free[:-1] <= free[1:]):
        raise ValueError("fixed hashes must rank before all others")
    folders = []
    if queries is None:
        folders.append(_search(hashes, free, np.ones(len(hashes), bool), radius, most, variants, name, workers, scratch))
    else:
        wanted = np.asarray(queries, bool)[order]
        folders.append(_search(hashes, free & wanted, np.ones(len(hashes), bool), radius, most, variants, name, workers, scratch))
        folders.append(_search(hashes, free & ~wanted, wanted, radius, most, variants, name, workers, scratch))
    return _joined([file for files in folders for file in files], hashes, order, variants, most)


def _check(hashes: np.ndarray, rank: np.ndarray, fixed: np.ndarray, radius: int, most: int, queries: np.ndarray | None) -> None:
    if not 0 <= radius <= FURTHEST:
        raise ValueError(f"radius {radius} is outside 0..{FURTHEST}")
    if most < 1:
        raise ValueError(f"most {most} is below 1")
    if len(hashes) >= NONE:
        raise ValueError(f"{len(hashes)} hashes are more than the {NONE - 1} that are counted in 32 bits")
    for what, values in (("rank", rank), ("fixed", fixed), ("queries", queries)):
        if values is not None and len(values) != len(hashes):
            raise ValueError(f"{len(hashes)} hashes, but {what} of {len(values)}")


def _search(
    hashes: np.ndarray,
    asking: np.ndarray,
    held: np.ndarray,
    radius: int,
    most: int,
    variants: Variants,
    name: str,
    workers: Workers,
    scratch: Path,
) -> list[Path]:
    """Files with what each of `asking` has near it and before it in `held`. hashes in order of rank; asking, held: bool over them."""
    count, kept = int(asking.sum()), int(held.sum())
    if not count or not kept:
        return []
    digest = xxhash.xxh3_128(repr((VERSION, TASK, radius, most, name, len(hashes))).encode())
    for array in (hashes, asking, held):
        digest.update(array.data)
    folder = Path(scratch) / f"hashes-{digest.hexdigest()}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06d}.npz" for number in range(-(-count // TASK))]
    missing = [number for number, file in enumerate(files) if not file.exists()]

    def tasks() -> Iterator[tuple[str, int, int, int, Variants]]:
        _lay_out(folder, hashes, asking, held, radius)  # here, so that workers who refuse, as a plan's do, cost no tables
        for number in missing:
            yield str(folder), number, radius, most, variants

    if missing:
        for _ in workers.map(_look_up, tasks()):
            pass
        shutil.rmtree(folder / "tables", ignore_errors=True)
    return files


def _lay_out(folder: Path, hashes: np.ndarray, asking: np.ndarray, held: np.ndarray, radius: int) -> None:
    """What all tasks read: the tables, the places that share a hash, and who asks, in order of hash."""
    for torn in folder.glob("*.part"):
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    places = np.flatnonzero(held)
    places = places[np.argsort(hashes[places], kind="stable")].astype(np.uint32)
    sorted_hashes = hashes[places]
    leading = np.ones(len(places), bool)
    leading[1:] = sorted_hashes[1:] != sorted_hashes[:-1]
    following = np.full(len(hashes), NONE, np.uint32)
    following[places[:-1][~leading[1:]]] = places[1:][~leading[1:]]
    leads = np.sort(places[leading])
    below = np.zeros(len(hashes) + 1, np.uint32)
    below[leads + np.uint32(1)] = 1
    np.cumsum(below, out=below)
    who = np.flatnonzero(asking)
    who = who[np.argsort(hashes[who], kind="stable")].astype(np.uint32)
    build_tables(folder / "tables", hashes[leads], radius, len(who))
    for name, values in (("leads", leads), ("following", following), ("below", below), ("who", who), ("asked", hashes[who])):
        with _whole(folder / "tables" / f"{name}.npy") as file:
            np.save(file, values)


def _look_up(folder: str, number: int, radius: int, most: int, variants: Variants) -> None:
    """A task: what the hashes number · TASK … have near them, as (pairs uint64: better place << 32 | worse place; cut uint32: places)."""
    file = Path(folder) / f"{number:06d}.npz"
    if file.exists():
        return
    shared = Path(folder) / "tables"
    mapped = {name: np.asarray(np.load(shared / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in _SHARED}
    mine = slice(number * TASK, (number + 1) * TASK)
    hashes, places = mapped["asked"][mine], mapped["who"][mine]
    varied = variants(hashes)
    arguments = (load_tables(shared), mapped["leads"], mapped["following"], mapped["below"], hashes, varied, places, radius, most)
    pairs, cut = np.empty(4 * len(hashes), np.uint64), np.empty(len(hashes), np.uint32)
    done = filled = cuts = 0
    while True:
        done, more, more_cuts = walk(*arguments, done, pairs[filled:], cut[cuts:])
        filled, cuts = filled + more, cuts + more_cuts
        if done == len(hashes):
            break
        pairs = np.concatenate([pairs[:filled], np.empty(len(pairs) + most * TASK // 8, np.uint64)])
    with _whole(file) as out:
        np.savez(out, pairs=pairs[:filled], cut=cut[:cuts])


def _joined(files: list[Path], hashes: np.ndarray, order: np.ndarray, variants: Variants, most: int) -> Found:
    """No pair is in two files: a place asks in one task."""
    counts, cut = np.zeros(len(hashes), np.int64), np.zeros(len(hashes), bool)
    for file in files:
        with np.load(file, allow_pickle=False) as found:
            _count(found["pairs"], counts)
            cut[order[found["cut"]]] = True
    fitting = most_in_room(counts, most)
    joined = np.empty(int(np.minimum(counts, fitting).sum()), np.uint64)
    filled = 0
    for file in files:
        with np.load(file, allow_pickle=False) as found:
            pairs = found["pairs"] if fitting == most else _best(found["pairs"], fitting)
        joined[filled : filled + len(pairs)] = pairs
        filled += len(pairs)
    joined.sort()
    cut[order[counts > fitting]] = True
    similarity = np.empty(len(joined), np.float32)
    better, worse = np.empty(len(joined), np.int64), np.empty(len(joined), np.int64)
    for begin in range(0, len(joined), TASK):
        part = slice(begin, begin + TASK)
        a, b = joined[part] >> np.uint64(32), joined[part] & np.uint64(NONE)
        similarity[part] = 1.0 - np.bitwise_count(variants(hashes[a]) ^ hashes[b][:, None]).min(axis=1) / BITS
        better[part], worse[part] = order[a], order[b]
    return Found(better, worse, similarity, cut)


@numba.njit(cache=True)
def _count(pairs: np.ndarray, counts: np.ndarray) -> None:
    """Adds how many betters each worse place has."""
    for pair in pairs:
        counts[pair & np.uint64(NONE)] += 1


def _best(pairs: np.ndarray, most: int) -> np.ndarray:
    """Of each worse place the pairs with its `most` best betters, of all of them."""
    pairs = np.sort(pairs << np.uint64(32) | pairs >> np.uint64(32))
    worse = pairs >> np.uint64(32)
    begins = np.flatnonzero(np.concatenate([[True], worse[1:] != worse[:-1]])) if len(pairs) else np.zeros(0, np.int64)
    place = np.arange(len(pairs)) - np.repeat(begins, np.diff(np.append(begins, len(pairs))))
    pairs = pairs[place < most]
    return pairs << np.uint64(32) | pairs >> np.uint64(32)


def _itself(hashes: np.ndarray) -> np.ndarray:
    return hashes[:, None]


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears when all of it is written."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        yield file
    os.replace(file.name, path)
