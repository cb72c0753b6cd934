"""A window: the items of some shards, packed, and their packs put in the order of steps. From its index rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.candidates import Bounds, candidates
from training.census import mixture_ranks
from training.cost import ItemSizes
from training.index_source import IndexSource
from training.mixture import Choice
from training.order import repeat_keys, shuffle
from training.packing import Packed, pack_items
from training.steps import capacities, compose, features

_SOURCES = 16  # sources that are balanced one by one; the smaller ones together


@dataclass(frozen=True, slots=True)
class Drawn:
    """The n items of a window, an item once for each time that it comes.

    shard   int64 n: place of its shard among the window's visits.   row     int64 n: in that shard's index.   repeat  int64 n: from 0.
    key     uint64 n: of (item, repeat).   source  int64 n: place in the plan's sources.
    """

    shard: np.ndarray
    row: np.ndarray
    repeat: np.ndarray
    key: np.ndarray
    source: np.ndarray
    sizes: ItemSizes

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class Visit:
    """A shard in a window: of its items those repeats r that are `group` modulo `groups`."""

    shard: str
    group: int = 0
    groups: int = 1


def draw(
    source: IndexSource,
    visits: Sequence[Visit],
    bounds: Bounds,
    where: str | None,
    choices: Mapping[tuple[str, str], Choice],
    sources: Mapping[str, int],
    seed: int,
) -> Drawn:
    """The items that the mixture takes, as often as it takes them, in the order of the visits and of the shards' rows."""
    parts: list[tuple[np.ndarray, ...]] = []
    sizes: list[ItemSizes] = []
    for place, visit in enumerate(visits):
        found = candidates(source, visit.shard, bounds, where)
        order = mixture_ranks(found.key, seed)
        times = np.zeros(len(order), dtype=np.int64)
        of_cell = np.zeros(max(len(found.cells), 1), dtype=np.int64)
        for number, name in enumerate(found.cells):
            of_cell[number] = sources.get(name[1], 0)
            choice = choices.get(name)
            if choice is not None:
                mine = found.cell == number
                times[mine] = choice.times(order[mine])
        rows = np.repeat(np.arange(len(times)), times)
        repeat = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
        here = repeat % visit.groups == visit.group
        rows, repeat = rows[here], repeat[here]
        key = repeat_keys(found.key[rows], repeat)
        parts.append((np.full(len(rows), place), found.row[rows], repeat, key, of_cell[found.cell[rows]]))
        sizes.append(found.sizes.take(rows))
    shard_of, row, repeat, key, source_of = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Drawn(shard_of, row, repeat, key, source_of, ItemSizes.joined(sizes))


@dataclass(frozen=True, slots=True)
class Counts:
    """A window in numbers: sums over its packs. `fuller`: sum over packs of the fuller of the two bounds. `by_source`: tokens.
    patches, projected: through encoder and projector. frame_squares, token_squares: squared patches of frames, squared tokens of items:
    what attention costs."""

    items: int
    packs: int
    tokens: int
    labelled: int
    patches: int
    visual: int
    kept: int
    projected: int
    frame_squares: int
    token_squares: int
    fuller: float
    cost: float
    by_source: tuple[int, ...]


def counts_of(drawn: Drawn, packed: Packed, costs: np.ndarray, bounds: Bounds, sources: int) -> Counts:
    tokens, patches = packed.sums(drawn.sizes.tokens), packed.sums(drawn.sizes.patches)
    fuller = np.maximum(tokens / bounds.seq_tokens, patches / bounds.pack_patches)
    by_source = np.bincount(drawn.source, weights=drawn.sizes.tokens, minlength=sources).astype(np.int64)
    s = drawn.sizes
    return Counts(
        items=len(drawn),
        packs=len(packed),
        tokens=int(tokens.sum()),
        labelled=int(s.labelled.sum()),
        patches=int(patches.sum()),
        visual=int(s.visual.sum()),
        kept=int(s.kept.sum()),
        projected=int(s.projected.sum()),
        frame_squares=int(s.frame_squares.sum()),
        token_squares=int((s.tokens**2).sum()),
        fuller=float(fuller.sum()),
        cost=float(costs.sum()),
        by_source=tuple(by_source.tolist()),
    )


def pack(drawn: Drawn, bounds: Bounds, seed: tuple[int, int]) -> Packed:
    """The packs of a window in a pseudo-random order; which items share one does not depend on where they lie in the index."""
    order = shuffle(drawn.key, "items", *seed)
    packed = pack_items(drawn.sizes.tokens, drawn.sizes.patches, order, bounds.seq_tokens, bounds.pack_patches)
    heads = drawn.key[packed.items[packed.start[:-1]]]
    return reordered(packed, shuffle(heads, "packs", *seed))


def in_steps(packed: Packed, drawn: Drawn, costs: np.ndarray, before: int, per_step: int, sources: int) -> Packed:
    """The packs in the order of the epoch's steps, each of which gets its part of every source's tokens and of the cost."""
    if not len(packed):
        return packed
    tokens = by_source(packed, drawn, sources)
    values = features(tokens, packed.sums(costs))
    return reordered(packed, compose(values, capacities(len(packed), before, per_step)))


def by_source(packed: Packed, drawn: Drawn, sources: int) -> np.ndarray:
    """float64 (packs, columns): tokens of each source, the smallest sources together in the last column."""
    total = np.bincount(drawn.source, weights=drawn.sizes.tokens, minlength=sources)
    column = np.minimum(np.argsort(np.argsort(-total, kind="stable"), kind="stable"), _SOURCES)
    width = min(sources, _SOURCES + 1)
    pack_of = np.repeat(np.arange(len(packed)), np.diff(packed.start))
    flat = pack_of * width + column[drawn.source[packed.items]]
    return np.bincount(flat, weights=drawn.sizes.tokens[packed.items], minlength=len(packed) * width).reshape(len(packed), width)


def reordered(packed: Packed, order: np.ndarray) -> Packed:
    """The packs in this order (int64 positions)."""
    lengths = np.diff(packed.start)[order]
    start = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    inside = np.arange(start[-1]) - np.repeat(start[:-1], lengths)
    return Packed(start, packed.items[np.repeat(packed.start[:-1][order], lengths) + inside])
