"""What the tasks of a search found, made one: each pair once, of each worse one its best-ranked betters, by ranges beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curation.near import Found, most_in_room
from curation.population import Workers
from curation.search_files import mapped, pairs_in, put, range_of, runs_of

AT_ONCE = 1 << 22  # pairs of a range: 80 MB, and three times that while they are sorted


def merge(paths: Sequence[Path], by_rank: np.ndarray, most: int, workers: Workers, folder: Path) -> Found:
    """The files of tasks as one answer, about things that `by_rank`, int64 (n,), numbers.

    paths: of runs (search_files), each with at least the best-ranked `most` + 1 betters that its task found of each thing.

    An answer has room for ROOM pairs a thing (LEAST_ROOM at least): where a corpus is one blob, `most` is halved until it fits, and who has
    more betters than are given is `cut`, as ever. This depends on the pairs alone.
    """
    n = len(by_rank)
    sizes = [pairs_in(path) for path in paths]
    ranges = max(1, -(-sum(sizes) // AT_ONCE))
    names = [str(path) for path, size in zip(paths, sizes, strict=True) if size]
    files = [folder / f"merged-{i:06d}.npy" for i in range(ranges)]
    tasks = ((names, n * i // ranges, n * (i + 1) // ranges, most, str(file)) for i, file in enumerate(files) if not file.exists())
    for _ in workers.map(_merge_range, tasks):
        pass
    counts = np.zeros(n, np.int64)
    for i, file in enumerate(files):
        first, last = n * i // ranges, n * (i + 1) // ranges
        counts[first:last] = np.bincount(mapped(file)["worse"] - first, minlength=last - first)
    most = most_in_room(counts, most)
    size = int(np.minimum(counts, most).sum())
    worse, better, similarity = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.float32)
    filled = 0
    for file in files:
        pairs = np.load(file, allow_pickle=False)
        pairs = pairs[_place(pairs["worse"]) < most]
        to = filled + len(pairs)
        worse[filled:to], better[filled:to], similarity[filled:to] = pairs["worse"], pairs["better"], pairs["similarity"]
        filled = to
    order = np.argsort(better, kind="stable")  # in order of worse already
    better, worse, similarity = by_rank[better[order]], by_rank[worse[order]], similarity[order]
    cut = np.zeros(n, bool)
    cut[by_rank[counts > most]] = True
    return Found(better, worse, similarity, cut)


def betters_of(paths: Sequence[Path], n: int) -> np.ndarray:
    """int64 (n,): how many pairs each rank is the worse one of, in files of runs."""
    counts = np.zeros(n, np.int64)
    for path in paths:
        for run in runs_of(path):
            which, times = np.unique(run["worse"], return_counts=True)
            counts[which] += times
    return counts


def _merge_range(names: Sequence[str], first: int, last: int, most: int, path: str) -> None:
    pairs = range_of([Path(name) for name in names], first, last)
    pairs = pairs[np.lexsort((pairs["better"], pairs["worse"]))]
    once = np.ones(len(pairs), bool)
    once[1:] = (pairs["worse"][1:] != pairs["worse"][:-1]) | (pairs["better"][1:] != pairs["better"][:-1])
    pairs = pairs[once]
    put(Path(path), pairs[_place(pairs["worse"]) <= most])


def _place(sorted_: np.ndarray) -> np.ndarray:
    """int64: the how-manieth of its value each is, from 0."""
    starts = np.flatnonzero(np.concatenate([[True], sorted_[1:] != sorted_[:-1]])) if len(sorted_) else np.zeros(0, np.int64)
    return np.arange(len(sorted_)) - np.repeat(starts, np.diff(np.append(starts, len(sorted_))))
