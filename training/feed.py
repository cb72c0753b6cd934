"""The data of a stage: plans of its passes over a dataset, and the loader that turns them into packs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.cache import ShardCache
from shards.media import Limits
from shards.profile import Profile
from shards.reader import Dataset
from shards.sample import digest_of
from training.agreement import first_works
from training.cost import CostModel
from training.index_source import DatasetIndex
from training.loader import LoadedStep, Loader
from training.mixture import Mixture
from training.node import Node
from training.plan import Plan
from training.plan_parts import Cursor, PlanConfig
from training.rank_group import refuse_different
from training.skips import SkipCount, forget_skips, note_skip
from training.stage_plan import keep_plan, kept_plan, later_pass, plan_path, tell
from training.stages import CacheConfig, SkipLimit

if TYPE_CHECKING:
    from training.engine import Ranks

log = logging.getLogger("fovea")


@dataclass(eq=False)
class DatasetFeed:
    """training.loop.Feed over a dataset's split, each pass planned when it is asked for.

    `skips` is where items that left their pack are noted, one JSON object a line: {"stage", "epoch", "step", "uid", "task", "n", "source",
    "kind", "reason"}.
    `plans` is the folder where plans are kept; without it every rank makes its own. `begun`: a checkpoint names those that are there, so
    that they are not replaced. `cost` is asked when a plan is made.
    """

    dataset: Dataset
    split: str
    mixture: Mixture
    plan_config: PlanConfig
    profile: Profile
    tokenizer: Any
    ranks: Ranks
    workers: int = 1
    limits: Limits = field(default_factory=Limits)
    cost: Callable[[], CostModel] = CostModel
    stage: int = 0
    skips: Path | None = None
    plans: Path | None = None
    begun: bool = False
    cache: CacheConfig | None = None
    limit: SkipLimit = field(default_factory=SkipLimit)
    _plans: dict[int, Plan] = field(default_factory=dict)

    def plan(self, epoch: int) -> Plan:
        """The plan of a pass (from 0); every rank must ask for it. Raises ConfigError and ProfileError as `make_plan` does."""
        if epoch not in self._plans:
            source = DatasetIndex(self.dataset.cached(self._cache), self.split)
            config = self.plan_config if epoch == 0 else later_pass(self.plan(0), epoch)
            path = None if self.plans is None else plan_path(self.plans, self.stage, epoch)
            if path is not None:
                first_works(self.ranks, partial(self._keep, path, source, config))  # the others read what the first has made
            plan = kept_plan(path, source, self.mixture, config, self.cost)
            packs = [(pack.items, pack.tokens, pack.patches, pack.cost) for pack in plan.window(0).packs]
            refuse_different(self.ranks, "plan", f"{plan.digest}, {digest_of(packs)}")
            tell(plan, self.ranks.rank == 0, steps=self.stage > 0)
            self._plans = {number: kept for number, kept in self._plans.items() if number == 0} | {epoch: plan}
        return self._plans[epoch]

    def _keep(self, path: Path, source: DatasetIndex, config: PlanConfig) -> None:
        if not (self.begun and path.is_file()):
            keep_plan(path, kept_plan(path, source, self.mixture, config, self.cost))

    @cached_property
    def _count(self) -> SkipCount:
        return SkipCount(self.limit)

    @cached_property
    def _cache(self) -> ShardCache | None:
        return None if self.cache is None else ShardCache(Path(self.cache.path), self.cache.bytes)

    def steps(self, epoch: int) -> int:
        return self.plan(epoch).steps_total

    def start(self, epoch: int) -> Cursor:
        return self.plan(epoch).start

    def run(self, epoch: int, cursor: Cursor) -> Iterator[LoadedStep]:
        plan = self.plan(epoch)
        plan.check(cursor)
        if self.skips is not None:
            # nobody notes before the old notes are gone
            first_works(self.ranks, partial(forget_skips, self.skips.parent, self.stage, epoch, plan.position(cursor)))
        report = partial(note_skip, self.skips, self.stage, epoch) if self.skips is not None else None
        loader = Loader(
            self.dataset,
            plan,
            self.tokenizer,
            self.profile,
            rank=self.ranks.rank,
            world=self.ranks.world,
            workers=self.workers,
            limits=self.limits,
            skipped=report,
            cache=self._cache,
            node=Node.here(self.ranks.rank, self.ranks.world),
            count=self._count,
        )
        return loader.steps(cursor)
