"""What a plan is made of: its config, its packs and steps, and where in it a loader stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shards.errors import ConfigError
from training.candidates import Bounds, Dropped
from training.mixture import Choice
from training.savings import EXACT, Savings
from training.window import Counts, Visit

SPREAD = 4  # windows that the repeats of an item are dealt to; each of them reads the indexes of so many windows


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """Budgets and seeds of an epoch.

    profile        measure profile whose counts are used.   compress  drop visual tokens by the profile's mask (stages 3 and 4).
    packs          in an optimizer step, over all ranks; or
    samples        so many items in a step in the mean of the plan: the packs that hold them, rounded to a multiple of `divisible_by`.
    seq_tokens     bound of a pack's tokens.                pack_patches  bound of its encoder patches.
    window_shards  shards that are shuffled and packed together.
    too_long       items above a bound are left out and counted, or a plan with any is refused.
    savings        what the encoder need not compute: patches are those that it does.
    """

    profile: str
    compress: bool
    packs: int | None = None
    samples: int | None = None
    divisible_by: int = 1
    seq_tokens: int = 16_384
    pack_patches: int = 40_960
    seed: int = 42
    epoch: int = 0
    window_shards: int = 64
    too_long: Literal["leave_out", "refuse"] = "leave_out"
    savings: Savings = EXACT

    def __post_init__(self) -> None:
        if (self.packs is None) == (self.samples is None):
            raise ConfigError("a step is so many packs, or so many samples in the mean: give one of the two")
        for name in ("packs", "samples", "divisible_by", "seq_tokens", "pack_patches", "window_shards"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it is at least 1")

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.profile, self.compress, self.seq_tokens, self.pack_patches, self.savings)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The whole state of a loader: the next step to run is the `step`-th that begins in `window`."""

    plan_digest: str
    window: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Pack:
    """Items that share one row of tokens: the `place`-th pack of a window, in the order of its steps; `Plan.items_of` has its items.

    Without items it is empty (window -1): it fills up the epoch's last step and trains nothing. cost: predicted, in the cost model's unit.
    """

    window: int = -1
    place: int = 0
    items: int = 0
    tokens: int = 0
    patches: int = 0
    labelled: int = 0
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
    """The steps that begin in a window; the last of them may end in the next one. `packs`: all of the window's, in the order of steps."""

    number: int
    shards: tuple[str, ...]
    packs: tuple[Pack, ...]
    steps: tuple[PlannedStep, ...]


@dataclass(frozen=True, slots=True)
class Laid:
    """What is known of an epoch once every window was packed once; small, and all that a plan is made again from.

    choices  of the mixture.   sources  names, in the order of `Counts.by_source`.   windows  shards of each.   counts  of each.
    dropped  items that fit into no pack, `over_tokens` of them for their tokens; `listed` the first of them.
    packs_per_step  of the whole epoch.
    """

    choices: tuple[Choice, ...]
    sources: tuple[str, ...]
    windows: tuple[tuple[str, ...], ...]
    counts: tuple[Counts, ...]
    dropped: int
    over_tokens: int
    listed: tuple[Dropped, ...]
    packs_per_step: int

    @property
    def spread(self) -> int:
        """Windows that the repeats of an item are dealt to, in turn."""
        most = max((choice.full + (choice.limit > 0) for choice in self.choices), default=1)
        return max(1, min(most, len(self.windows), SPREAD))

    def visits(self, window: int) -> tuple[Visit, ...]:
        """What a window is drawn from: its own shards, and those of windows spread over the epoch whose repeats come here."""
        groups, count = self.spread, len(self.windows)
        return tuple(
            Visit(shard, group, groups) for group in range(groups) for shard in self.windows[(window - group * (count // groups)) % count]
        )
