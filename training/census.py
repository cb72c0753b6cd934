"""What there is to train on: one look at every shard's index, kept as counts of a fixed size however many items there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from training.candidates import Bounds, Candidates, Dropped, candidates
from training.index_source import IndexSource
from training.order import ranks

BINS = 1 << 14  # of an item's rank: where an item of a thinned cell falls is known to one part in so many, and exactly in small cells
DROPPED_LISTED = 100

Of = TypeVar("Of")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Cell:
    """The items of one task and one source. counts, weights: int64 BINS, of items and of their weight, by rank (see `mixture_ranks`)."""

    task: str
    source: str
    counts: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, slots=True)
class Census:
    """cells sorted by (task, source).   rows  all index rows' items that the predicate lets through.   dropped  how many of them fit into
    no pack, `over_tokens` of those for their tokens, the others for their patches alone; `listed` the first in the order of the shards."""

    cells: tuple[Cell, ...]
    rows: int
    dropped: int
    over_tokens: int
    listed: tuple[Dropped, ...]


def take_census(
    source: IndexSource, bounds: Bounds, where: str | None, by: Literal["items", "tokens"], seed: int, threads: int = 1
) -> Census:
    """Reads every shard once, `threads` at a time; memory is a shard's for each, and 256 KB for each cell."""
    tally: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    rows = dropped = over_tokens = 0
    listed: list[Dropped] = []
    for found in in_order(partial(candidates, source, bounds=bounds, where=where), source.shards, threads):
        rows, dropped = rows + found.found, dropped + len(found.dropped)
        over_tokens += sum(item.tokens > bounds.seq_tokens for item in found.dropped)
        listed.extend(found.dropped[: DROPPED_LISTED - len(listed)])
        _count(tally, found, weights_of(found, by), seed)
    cells = tuple(Cell(*name, *tally[name]) for name in sorted(tally))
    return Census(cells, rows, dropped, over_tokens, tuple(listed))


def weights_of(items: Candidates, by: Literal["items", "tokens"]) -> np.ndarray:
    """int64 weight of each item in a share."""
    return items.sizes.tokens if by == "tokens" else np.ones(len(items.row), dtype=np.int64)


def mixture_ranks(keys: np.ndarray, seed: int) -> np.ndarray:
    """uint64: who comes first when a cell is thinned out or partly repeated."""
    return ranks(keys, "mixture", seed)


def in_order(work: Callable[[Of], Found], parts: Sequence[Of], threads: int) -> Iterator[Found]:
    """`work` of each part, in order, no more than a few of them finished in advance."""
    if threads < 2:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(threads) as pool:
        coming = []
        for part in parts:
            coming.append(pool.submit(work, part))
            if len(coming) > 2 * threads:
                yield coming.pop(0).result()
        for future in coming:
            yield future.result()


def _count(tally: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]], items: Candidates, weights: np.ndarray, seed: int) -> None:
    bins = (mixture_ranks(items.key, seed) >> np.uint64(64 - 14)).astype(np.int64)
    for number, name in enumerate(items.cells):
        if not (items.cell == number).any():
            continue  # all of its items here are too long
        counts, weight = tally.setdefault(name, (np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)))
        mine = items.cell == number
        np.add.at(counts, bins[mine], 1)
        np.add.at(weight, bins[mine], weights[mine])
