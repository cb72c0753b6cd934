"""The order of an epoch: a pure function of (index, mixture, seed, epoch, budgets, costs). No ranks, no processes, no pixels."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from shards.errors import ConfigError, ShardError
from shards.sample import digest_of
from training.census import in_order, take_census
from training.cost import CostModel, ItemSizes
from training.index_source import IndexSource, TableIndex
from training.mixture import Mixture, choose
from training.order import shuffle_names
from training.packing import Packed
from training.plan_parts import Cursor, Laid, Pack, PlanConfig, PlannedStep, Window
from training.plan_report import PlanReport, report_of
from training.window import Counts, Drawn, counts_of, draw, in_steps, pack

PLAN_VERSION = 4  # bump when the same arguments give another order: a cursor of the old one is then refused
_WINDOWS_HELD = 3


@dataclass(frozen=True)
class _Held:
    """A window in memory: the shards it visits, its items, their costs, and its packs in the order of steps."""

    shards: tuple[str, ...]
    drawn: Drawn
    costs: np.ndarray
    packed: Packed
    packs: tuple[Pack, ...]


@dataclass(eq=False)
class Plan:
    """Build with `make_plan`. Two plans of one digest give the same steps. Safe for threads."""

    source: IndexSource
    mixture: Mixture
    config: PlanConfig
    cost: CostModel
    laid: Laid
    digest: str
    _held: OrderedDict[int, _Held] = field(default_factory=OrderedDict)
    _tables: OrderedDict[str, pa.Table] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=threading.RLock)

    @property
    def windows(self) -> tuple[tuple[str, ...], ...]:
        """Shards of each window."""
        return self.laid.windows

    @property
    def packs_per_step(self) -> int:
        return self.laid.packs_per_step

    @property
    def shards_at_once(self) -> int:
        """Shards that the items of two windows lie in, at most."""
        return 2 * self.laid.spread * self.config.window_shards

    @property
    def start(self) -> Cursor:
        return Cursor(self.digest)

    @cached_property
    def _before(self) -> tuple[int, ...]:
        """Packs before each window, and in all."""
        return tuple(accumulate((counts.packs for counts in self.laid.counts), initial=0))

    @property
    def steps_total(self) -> int:
        """Steps of the epoch."""
        return -(-self._before[-1] // self.packs_per_step)

    def window(self, number: int) -> Window:
        """The steps of a window; it and perhaps the next are packed for it, no other."""
        packs, per_step, before = self._window(number).packs, self.packs_per_step, self._before[number]
        first = -(-before // per_step)
        steps = []
        for i, start in enumerate(range(first * per_step, before + len(packs), per_step)):
            chosen = self._packs_from(number, start - before, per_step)
            steps.append(PlannedStep(number, i, first + i, chosen, Cursor(self.digest, number, i + 1)))
        return Window(number, self.windows[number], packs, tuple(steps))

    def steps(self, cursor: Cursor | None = None) -> Iterator[PlannedStep]:
        """The steps from `cursor` (default: the start) to the end of the epoch. Raises ConfigError for a cursor of another plan, ShardError
        for an index that is not what the plan was made from."""
        cursor = cursor or self.start
        self.check(cursor)
        for number in range(cursor.window, len(self.windows)):
            steps = self.window(number).steps
            first = cursor.step if number == cursor.window else 0
            if first > len(steps):
                raise ConfigError(f"the cursor {cursor} lies behind window {number}, which has {len(steps)} steps")
            yield from steps[first:]

    def check(self, cursor: Cursor) -> None:
        if cursor.plan_digest != self.digest:
            raise ConfigError(
                f"the checkpoint's cursor belongs to plan {cursor.plan_digest}, this is plan {self.digest}: dataset version, mixture, "
                "seed, budgets, size of a step or costs differ. Restore them to resume, or start the stage again in a new folder"
            )
        if not (0 <= cursor.window < max(len(self.windows), 1) and cursor.step >= 0):
            raise ConfigError(f"the cursor {cursor} lies outside the plan's {len(self.windows)} windows")

    def position(self, cursor: Cursor) -> int:
        """Steps of the epoch that are done at `cursor`."""
        self.check(cursor)
        return -(-self._before[cursor.window] // self.packs_per_step) + cursor.step

    def items_of(self, chosen: Pack) -> pa.Table:
        """The pack's items, in order: uid, task, n, source, the profile's measure struct (as in the index), repeat (int64), shard (as the
        index source names it) and row (int64, in that shard's index)."""
        names, drawn, at = self._rows(chosen)
        shards, rows = drawn.shard[at].tolist(), drawn.row[at]
        pieces = [self._table(names[shard]).slice(row, 1) for shard, row in zip(shards, rows.tolist(), strict=True)]
        table = pa.concat_tables(pieces) if pieces else self._table(names[0]).slice(0, 0)
        table = table.append_column("repeat", pa.array(drawn.repeat[at]))
        table = table.append_column("shard", pa.array([names[shard] for shard in shards], pa.string()))
        return table.append_column("row", pa.array(rows))

    def sizes_of(self, chosen: Pack) -> ItemSizes:
        """Sizes of the pack's items, as planned."""
        _, drawn, at = self._rows(chosen)
        return drawn.sizes.take(at)

    def reads_of(self, chosen: Pack) -> list[tuple[str, int]]:
        """(shard, row) of the pack's items: what is to be read for it."""
        names, drawn, at = self._rows(chosen)
        return [(names[shard], row) for shard, row in zip(drawn.shard[at].tolist(), drawn.row[at].tolist(), strict=True)]

    def report(self, ranks: tuple[int, ...] = ()) -> PlanReport:
        """The epoch in numbers; the imbalance over `ranks` (those that divide a step's packs) by composing a few windows."""
        return report_of(self, ranks)

    def _window(self, number: int) -> _Held:
        with self._lock:
            if number in self._held:
                self._held.move_to_end(number)
                return self._held[number]
            drawn, costs, packed = _packed(self, number)
            if len(packed) != self.laid.counts[number].packs or len(drawn) != self.laid.counts[number].items:
                raise ShardError(
                    f"window {number} ({self.windows[number][0]} …) has {len(drawn)} items in {len(packed)} packs, planned were "
                    f"{self.laid.counts[number].items} in {self.laid.counts[number].packs}: its indexes are not those of the plan"
                )
            packed = in_steps(packed, drawn, costs, self._before[number], self.packs_per_step, len(self.laid.sources))
            shards = tuple(visit.shard for visit in self.laid.visits(number))
            self._held[number] = held = _Held(shards, drawn, costs, packed, _packs(number, drawn, costs, packed, self.cost.pack))
            while len(self._held) > _WINDOWS_HELD:
                self._held.popitem(last=False)
            return held

    def _rows(self, chosen: Pack) -> tuple[tuple[str, ...], Drawn, np.ndarray]:
        """(shards that the pack's window visits, the window's items, which of them are the pack's). Empty packs come last, with the last
        window."""
        number = chosen.window if chosen.items else len(self.windows) - 1
        held = self._window(number)
        start = held.packed.start[chosen.place : chosen.place + 2] if chosen.items else (0, 0)
        return held.shards, held.drawn, held.packed.items[start[0] : start[1]]

    def _packs_from(self, number: int, offset: int, count: int) -> tuple[Pack, ...]:
        """`count` packs from one of a window's on, into later windows, and empty ones behind the last."""
        chosen = list(self._window(number).packs[offset : offset + count])
        while len(chosen) < count and number + 1 < len(self.windows):
            number += 1
            chosen.extend(self._window(number).packs[: count - len(chosen)])
        return (*chosen, *[Pack()] * (count - len(chosen)))

    def _table(self, shard: str) -> pa.Table:
        """The index's columns of `items_of` for a whole shard; those of about two windows are held."""
        with self._lock:
            if shard not in self._tables:
                self._tables[shard] = self.source.read(shard, ["uid", "task", "n", "source", self.config.profile]).combine_chunks()
                while len(self._tables) > self.shards_at_once:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(shard)
            return self._tables[shard]


def make_plan(
    source: IndexSource | pa.Table,
    mixture: Mixture,
    config: PlanConfig,
    *,
    index_digest: str = "",
    cost: CostModel | None = None,
    threads: int = 1,
) -> Plan:
    """The plan of an epoch over the rows of `source` (a table in memory is called `index_digest`). Every window is packed once.

    `cost` weighs packs when they are put into steps and dealt to ranks.
    Raises ConfigError (nothing to train on, impossible shares, items too long where they are refused) and ProfileError (not measured).
    """
    if isinstance(source, pa.Table):
        source = TableIndex(source, index_digest)
    census = take_census(source, config.bounds, mixture.where, mixture.by, config.seed, threads)
    if census.dropped and config.too_long == "refuse":
        first = census.listed[0]
        raise ConfigError(
            f"{census.dropped} items are too long for a pack of {config.seq_tokens} tokens and {config.pack_patches} patches, first "
            f"{first.uid} ({first.task} {first.n}: {first.tokens} tokens, {first.patches} patches); raise the budgets, or leave them out "
            "(too_long: leave_out)"
        )
    choices = choose(census, mixture)
    sources = tuple(sorted({cell.source for cell in census.cells}))
    names = shuffle_names(source.shards, "shards", config.seed, config.epoch)
    windows = tuple(tuple(names[i : i + config.window_shards]) for i in range(0, len(names), config.window_shards))
    chosen_cost = cost or CostModel()
    digest = plan_digest(source, mixture, config, chosen_cost)
    laid = Laid(choices, sources, windows, (), census.dropped, census.over_tokens, census.listed, 1)
    plan = Plan(source, mixture, config, chosen_cost, laid, digest)
    counts = tuple(in_order(lambda number: _counted(plan, number), range(len(windows)), threads))
    packs, items = sum(c.packs for c in counts), sum(c.items for c in counts)
    per_step = config.packs or max(1, round((config.samples or 1) * packs / items / config.divisible_by)) * config.divisible_by
    return Plan(source, mixture, config, chosen_cost, replace(laid, counts=counts, packs_per_step=per_step), digest)


def plan_digest(source: IndexSource, mixture: Mixture, config: PlanConfig, cost: CostModel | None) -> str:
    """Identity of a plan; with a `cost` of None, of everything but the costs."""
    return digest_of(PLAN_VERSION, source.digest, mixture.to_json(), asdict(config), None if cost is None else asdict(cost))


def _packed(plan: Plan, number: int) -> tuple[Drawn, np.ndarray, Packed]:
    config, laid = plan.config, plan.laid
    choices = {(c.task, c.source): c for c in laid.choices}
    places = {name: place for place, name in enumerate(laid.sources)}
    drawn = draw(plan.source, laid.visits(number), config.bounds, plan.mixture.where, choices, places, config.seed)
    return drawn, plan.cost.of(drawn.sizes), pack(drawn, config.bounds, (config.seed, config.epoch))


def _counted(plan: Plan, number: int) -> Counts:
    drawn, costs, packed = _packed(plan, number)
    return counts_of(drawn, packed, costs, plan.config.bounds, len(plan.laid.sources))


def _packs(number: int, drawn: Drawn, costs: np.ndarray, packed: Packed, each: float) -> tuple[Pack, ...]:
    columns = [
        np.diff(packed.start).tolist(),
        packed.sums(drawn.sizes.tokens).tolist(),
        packed.sums(drawn.sizes.patches).tolist(),
        packed.sums(drawn.sizes.labelled).tolist(),
        (packed.sums(costs) + each).tolist(),
    ]
    return tuple(Pack(number, place, *row) for place, row in enumerate(zip(*columns, strict=True)))
