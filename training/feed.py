"""The data of a stage: plans of its passes over a dataset, and the loader that turns them into packs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import torch

from shards.errors import ConfigError
from shards.media import Limits
from shards.profile import Profile
from shards.reader import Dataset
from training.cost import CostModel
from training.loader import LoadedStep, Loader
from training.mixture import Mixture
from training.plan import Cursor, Plan, PlanConfig, make_plan

if TYPE_CHECKING:
    import pyarrow as pa

    from training.engine import Ranks
    from training.stages import MixtureConfig, StageConfig

log = logging.getLogger("fovea")

TRAIN_SPLIT = "train"


@dataclass(eq=False)
class DatasetFeed:
    """training.loop.Feed over a dataset's split, each pass planned when it is asked for.

    `skips` is where items that left their pack are noted: {"stage", "epoch", "step", "uid", "task", "n", "reason"}, one JSON object a line.
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
    cost: CostModel | None = None
    stage: int = 0
    skips: Path | None = None
    _plans: dict[int, Plan] = field(default_factory=dict)
    _index: pa.Table | None = None

    def plan(self, epoch: int) -> Plan:
        """The plan of a pass (from 0). Raises ConfigError and ProfileError as `make_plan` does."""
        if epoch not in self._plans:
            if self._index is None:
                self._index = self.dataset.index(split=self.split)
            config = PlanConfig(**{**_fields(self.plan_config), "epoch": epoch})
            digest = f"{self.dataset.manifest.version}/{self.split}"
            plan = make_plan(self._index, self.mixture, config, index_digest=digest, cost=self.cost)
            for item in plan.dropped:
                log.warning("%s/%s/%d is in no pack: %d tokens, %d patches", item.uid, item.task, item.n, item.tokens, item.patches)
            self._plans = {epoch: plan}  # one at a time: an index is large
        return self._plans[epoch]

    def steps(self, epoch: int) -> int:
        return self.plan(epoch).steps_total

    def start(self, epoch: int) -> Cursor:
        return self.plan(epoch).start

    def run(self, epoch: int, cursor: Cursor) -> Iterator[LoadedStep]:
        plan = self.plan(epoch)
        plan.check(cursor)
        if self.skips is not None:
            if self.ranks.rank == 0:
                _forget_skips(self.skips, self.stage, epoch, plan.position(cursor))
            torch.distributed.barrier()  # nobody notes before the old notes are gone
        report = partial(_note_skip, self.skips, self.stage, epoch) if self.skips is not None else None
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
        )
        return loader.steps(cursor)


def plan_config(stage: StageConfig, seed: int) -> PlanConfig:
    return PlanConfig(
        profile=stage.profile,
        compress=stage.compress,
        packs_per_step=stage.step.packs or 16,
        seq_tokens=stage.seq_tokens,
        pack_patches=stage.pack_patches,
        seed=seed,
    )


def mixture_of(config: MixtureConfig, index: pa.Table, told: int = logging.INFO) -> Mixture:
    """The stage's mixture over what the index has: with `missing: leave_out`, named ones without items are left out, and logged at `told`.

    Raises ConfigError where nothing is left.
    """
    shares: dict[str, dict[str, float] | None] = {}
    for column, wanted in (("task", config.tasks), ("source", config.sources)):
        if wanted is None or config.missing == "refuse":
            shares[column] = wanted
            continue
        there = set(pc.unique(index[column]).to_pylist())
        left = {name: share for name, share in wanted.items() if name in there}
        if not left:
            raise ConfigError(
                f"mixture.{column}s: the dataset has items of none of {', '.join(wanted)}; it has {', '.join(sorted(there - {''}))}"
            )
        if absent := sorted(wanted.keys() - left.keys()):
            log.log(told, "mixture.%ss: no items for %s; left out", column, ", ".join(absent))
        shares[column] = left
    return Mixture(tasks=shares["task"], sources=shares["source"], where=config.where, by=config.by)


def _fields(config: PlanConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in PlanConfig.__slots__}


def _note_skip(path: Path, stage: int, epoch: int, uid: str, task: str, n: int, reason: str, step: int) -> None:
    record = {"stage": stage, "epoch": epoch, "step": step, "uid": uid, "task": task, "n": n, "reason": reason}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _forget_skips(path: Path, stage: int, epoch: int, step: int) -> None:
    """Drops what is noted of steps that are about to be made (again)."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines(keepends=True):
        record = json.loads(line) if line.endswith("\n") else None
        if record is not None and (record["stage"], record["epoch"], record["step"]) < (stage, epoch, step):
            kept.append(line)
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(kept), "utf-8")
    scratch.replace(path)
