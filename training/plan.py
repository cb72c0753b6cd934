"""The order of an epoch: a pure function of (index, mixture, seed, epoch, budgets). No ranks, no processes, no pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from shards.errors import ConfigError
from shards.sample import digest_of
from training.cost import CostModel, ItemSizes, item_sizes
from training.mixture import Mixture, select_items
from training.order import item_keys, shuffle, shuffle_names
from training.packing import pack_items

PLAN_VERSION = 1  # bump when the same arguments give another order: a cursor of the old one is then refused
_WINDOWS_HELD = 3


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """Budgets and seeds of an epoch.

    profile         measure profile whose counts are used.   compress  drop visual tokens by the profile's mask (stages 3 and 4).
    packs_per_step  packs in an optimizer step, over all ranks.
    seq_tokens      bound of a pack's tokens.                pack_patches  bound of its encoder patches.
    window_shards   shards that are shuffled and packed together.
    drop_long       items above a bound are left out and listed in `Plan.dropped`; False refuses to plan with any.
    """

    profile: str
    compress: bool
    packs_per_step: int
    seq_tokens: int = 16_384
    pack_patches: int = 40_960
    seed: int = 42
    epoch: int = 0
    window_shards: int = 64
    drop_long: bool = True

    def __post_init__(self) -> None:
        for name in ("packs_per_step", "seq_tokens", "pack_patches", "window_shards"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is at least 1")


@dataclass(frozen=True, slots=True)
class Cursor:
    """The whole state of a loader: the next step to run is the `step`-th that begins in `window`."""

    plan_digest: str
    window: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows of `Plan.items` that share one row of tokens. Without rows it is empty: it fills up the epoch's last step and trains nothing."""

    rows: tuple[int, ...] = ()
    tokens: int = 0
    patches: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """`number` counts the steps of the epoch from 0; `after` is the cursor once it is done."""

    window: int
    step: int
    number: int
    packs: tuple[Pack, ...]
    after: Cursor


@dataclass(frozen=True, slots=True)
class Window:
    """The steps that begin in a window; the last of them may end in the next one."""

    number: int
    shards: tuple[str, ...]
    packs: tuple[Pack, ...]
    steps: tuple[PlannedStep, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """An item that no pack can hold."""

    uid: str
    task: str
    n: int
    repeat: int
    tokens: int
    patches: int


@dataclass(frozen=True, slots=True)
class PlanReport:
    """An epoch in numbers. Fills are shares of the bounds over all packs with items; `fill` counts the fuller bound of each pack."""

    items: int
    dropped: int
    windows: int
    steps: int
    packs: int
    empty_packs: int
    tokens: int
    labelled: int
    patches: int
    visual: int
    kept: int
    fill_tokens: float
    fill_patches: float
    fill: float
    cost: float


@dataclass(eq=False)
class Plan:
    """Build with `make_plan`. Two plans of one digest give the same steps.

    items    the item table: index columns and `repeat`; packs hold its row numbers.
    sizes    int64 sizes of its rows.   costs   float64 predicted operations.   dropped   items above a bound, in no pack.
    windows  shards of each window.
    """

    items: pa.Table
    config: PlanConfig
    digest: str
    sizes: ItemSizes
    costs: np.ndarray
    dropped: tuple[Dropped, ...]
    windows: tuple[tuple[str, ...], ...]
    _keys: np.ndarray
    _rows: tuple[np.ndarray, ...]
    _held: OrderedDict[int, tuple[Pack, ...]] = field(default_factory=OrderedDict)
    _counts: dict[int, int] = field(default_factory=dict)

    @property
    def start(self) -> Cursor:
        return Cursor(self.digest)

    @cached_property
    def steps_total(self) -> int:
        """Steps of the epoch. Packs all windows once."""
        return -(-self._packs_before(len(self.windows)) // self.config.packs_per_step)

    def window(self, number: int) -> Window:
        """The steps of a window. Packs every earlier window once, to know how many packs they have."""
        packs, per_step = self._packs(number), self.config.packs_per_step
        before = self._packs_before(number)
        first = -(-before // per_step)
        steps = []
        for i, start in enumerate(range(first * per_step, before + len(packs), per_step)):
            chosen = self._packs_from(number, start - before, per_step)
            steps.append(PlannedStep(number, i, first + i, chosen, Cursor(self.digest, number, i + 1)))
        return Window(number, self.windows[number], packs, tuple(steps))

    def steps(self, cursor: Cursor | None = None) -> Iterator[PlannedStep]:
        """The steps from `cursor` (default: the start) to the end of the epoch. Raises ConfigError for a cursor of another plan."""
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
                "seed, budgets or packs_per_step differ. Restore them to resume, or start the stage again in a new folder"
            )
        if not (0 <= cursor.window < max(len(self.windows), 1) and cursor.step >= 0):
            raise ConfigError(f"the cursor {cursor} lies outside the plan's {len(self.windows)} windows")

    def position(self, cursor: Cursor) -> int:
        """Steps of the epoch that are done at `cursor`."""
        self.check(cursor)
        return -(-self._packs_before(cursor.window) // self.config.packs_per_step) + cursor.step

    def report(self) -> PlanReport:
        """Counts, fills and cost of the whole epoch. Packs all windows once."""
        tokens = patches = packs = 0
        fuller = 0.0
        for number in range(len(self.windows)):
            for pack in self._packs(number):
                packs, tokens, patches = packs + 1, tokens + pack.tokens, patches + pack.patches
                fuller += max(pack.tokens / self.config.seq_tokens, pack.patches / self.config.pack_patches)
        rows = np.concatenate([*self._rows, np.array([], dtype=np.int64)])
        return PlanReport(
            items=len(rows),
            dropped=len(self.dropped),
            windows=len(self.windows),
            steps=self.steps_total,
            packs=packs,
            empty_packs=self.steps_total * self.config.packs_per_step - packs,
            tokens=tokens,
            labelled=int(self.sizes.labelled[rows].sum()),
            patches=patches,
            visual=int(self.sizes.visual[rows].sum()),
            kept=int(self.sizes.kept[rows].sum()),
            fill_tokens=tokens / (packs * self.config.seq_tokens),
            fill_patches=patches / (packs * self.config.pack_patches),
            fill=fuller / packs,
            cost=float(self.costs[rows].sum()),
        )

    def _packs(self, number: int) -> tuple[Pack, ...]:
        """Packs of one window, from its rows alone."""
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        rows, config = self._rows[number], self.config
        seed = (config.seed, config.epoch)
        tokens, patches = self.sizes.tokens[rows], self.sizes.patches[rows]
        order = shuffle(self._keys[rows], "items", *seed)
        groups = pack_items(tokens, patches, order, config.seq_tokens, config.pack_patches)
        packs = [
            Pack(tuple(rows[g].tolist()), int(tokens[g].sum()), int(patches[g].sum()), float(self.costs[rows[g]].sum())) for g in groups
        ]
        heads = self._keys[[pack.rows[0] for pack in packs]]
        shuffled = tuple(packs[p] for p in shuffle(heads, "packs", *seed))
        self._counts[number] = len(shuffled)
        self._held[number] = shuffled
        while len(self._held) > _WINDOWS_HELD:
            self._held.popitem(last=False)
        return shuffled

    def _packs_before(self, number: int) -> int:
        return sum(self._counts[w] if w in self._counts else len(self._packs(w)) for w in range(number))

    def _packs_from(self, number: int, offset: int, count: int) -> tuple[Pack, ...]:
        """`count` packs from one of a window's on, into later windows, and empty ones behind the last."""
        chosen = list(self._packs(number)[offset : offset + count])
        while len(chosen) < count and number + 1 < len(self.windows):
            number += 1
            chosen.extend(self._packs(number)[: count - len(chosen)])
        return (*chosen, *[Pack()] * (count - len(chosen)))


def make_plan(index: pa.Table, mixture: Mixture, config: PlanConfig, *, index_digest: str, cost: CostModel | None = None) -> Plan:
    """The plan of an epoch over `index` (schema: shards.index.index_schema) whose dataset version is `index_digest`.

    `cost` weighs packs when they are dealt to ranks; it changes no order and is no part of the digest.
    Raises ConfigError (nothing to train on, impossible shares, items too long with `drop_long=False`) and ProfileError (not measured).
    """
    items = select_items(index, mixture, profile=config.profile, compress=config.compress, seed=config.seed)
    sizes = item_sizes(items, config.profile, config.compress)
    long = (sizes.tokens > config.seq_tokens) | (sizes.patches > config.pack_patches)
    dropped = tuple(_dropped(items, sizes, row) for row in np.flatnonzero(long).tolist())
    if dropped and not config.drop_long:
        first = dropped[0]
        raise ConfigError(
            f"{len(dropped)} items are too long for a pack of {config.seq_tokens} tokens and {config.pack_patches} patches, first "
            f"{first.uid} ({first.task} {first.n}: {first.tokens} tokens, {first.patches} patches); raise the budgets or allow drop_long"
        )
    if len(dropped) == items.num_rows:
        raise ConfigError(f"all {len(dropped)} items are too long for {config.seq_tokens} tokens and {config.pack_patches} patches")
    shards = items["shard"].to_numpy()
    usable: dict[str, list[int]] = {}
    for row in np.flatnonzero(~long).tolist():
        usable.setdefault(shards[row], []).append(row)
    names = shuffle_names(usable, "shards", config.seed, config.epoch)
    windows = tuple(tuple(names[i : i + config.window_shards]) for i in range(0, len(names), config.window_shards))
    rows = tuple(np.array([row for name in window for row in usable[name]], dtype=np.int64) for window in windows)
    digest = digest_of(PLAN_VERSION, index_digest, mixture.to_json(), asdict(config))
    return Plan(items, config, digest, sizes, (cost or CostModel()).of(sizes), dropped, windows, item_keys(items), rows)


def _dropped(items: pa.Table, sizes: ItemSizes, row: int) -> Dropped:
    uid, task, n, repeat = (items[name][row].as_py() for name in ("uid", "task", "n", "repeat"))
    return Dropped(uid, task, n, repeat, int(sizes.tokens[row]), int(sizes.patches[row]))
