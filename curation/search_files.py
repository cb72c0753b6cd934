"""Files of a search: arrays that appear whole or not at all, and pairs as runs of sorted records, a range of which is found at once."""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from curation.vectors import new_array

RUN = 1 << 20  # pairs of a run: 20 MB
PAIR = np.dtype([("worse", "<i8"), ("better", "<i8"), ("similarity", "<f4")])  # by rank: 0 is best


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """The file under its name once it is written, whoever else writes it too."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def put(path: Path, array: np.ndarray) -> None:
    with whole(path) as file:
        np.save(file, array)


@contextmanager
def new_mapped(path: Path, dtype: np.dtype, count: int) -> Iterator[np.ndarray]:
    """An array of `count` on disk, to be filled; it has its name afterwards."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        if count:
            filled = new_array(partial, dtype, (count,))
            yield filled
            filled.flush()
        else:
            with partial.open("wb") as file:
                np.save(file, np.zeros(0, dtype))
            yield np.zeros(0, dtype)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def mapped(path: str | Path) -> np.ndarray:
    found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def pairs_of(worse: np.ndarray, better: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """PAIR (k,) of the three columns."""
    pairs = np.empty(len(worse), PAIR)
    pairs["worse"], pairs["better"], pairs["similarity"] = worse, better, similarity
    return pairs


def put_runs(path: Path, parts: Iterable[np.ndarray]) -> None:
    """Parts of PAIR, written as runs of RUN pairs (the last one has the rest), each in order of (worse, better). Holds about two runs."""
    with whole(path) as file:
        held: list[np.ndarray] = []
        waiting = 0
        for part in parts:
            held.append(part)
            waiting += len(part)
            while waiting >= RUN:
                joined = np.concatenate(held)
                _sorted(joined[:RUN]).tofile(file)
                held, waiting = [joined[RUN:]], waiting - RUN
        _sorted(np.concatenate(held) if held else np.zeros(0, PAIR)).tofile(file)


def runs_of(path: Path) -> Iterator[np.ndarray]:
    """The runs of a file, mapped one at a time."""
    for first in range(0, pairs_in(path), RUN):
        yield np.memmap(path, PAIR, "r", first * PAIR.itemsize, min(RUN, pairs_in(path) - first))


def pairs_in(path: Path) -> int:
    return path.stat().st_size // PAIR.itemsize


def range_of(paths: Sequence[Path], first: int, last: int) -> np.ndarray:
    """PAIR (k,), in no order: all pairs of the files with first ≤ worse < last."""
    found = [np.zeros(0, PAIR)]
    for path in paths:
        for run in runs_of(path):
            begin, end = bisect_left(run["worse"], first), bisect_left(run["worse"], last)
            if begin < end:
                found.append(np.array(run[begin:end]))
    return np.concatenate(found)


def _sorted(pairs: np.ndarray) -> np.ndarray:
    return pairs[np.lexsort((pairs["better"], pairs["worse"]))]
