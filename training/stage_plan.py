"""The plan of a stage from its config: what it is fed, how large its steps are, and what packs are weighed by. Made once and kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from training.cost import CostModel
from training.durable import replace_text
from training.flops import stage_flops
from training.mixture import Mixture, left_out
from training.plan import Plan, make_plan
from training.plan_file import load_plan, plan_bytes
from training.plan_parts import PlanConfig
from training.shapes import shape_of

if TYPE_CHECKING:
    from training.index_source import IndexSource
    from training.stages import MixtureConfig, StageConfig, TrainingConfig

log = logging.getLogger("fovea")

TRAIN_SPLIT = "train"
THREADS = min(8, os.cpu_count() or 1)  # that read indexes and pack windows; they let go of the interpreter lock


def plan_config(stage: StageConfig, seed: int, profile: str) -> PlanConfig:
    """profile: its name, by which a dataset has its counts; the stage may name a file."""
    return PlanConfig(
        profile=profile,
        compress=stage.compress,
        packs=stage.step.packs,
        samples=stage.step.samples,
        divisible_by=stage.step.divisible_by,
        seq_tokens=stage.seq_tokens,
        pack_patches=stage.pack_patches,
        seed=seed,
        window_shards=stage.window_shards,
        too_long=stage.too_long,
        savings=stage.savings,
    )


def mixture_of(config: MixtureConfig) -> Mixture:
    return Mixture(config.tasks, config.sources, config.where, config.by, config.missing)


def stage_cost(config: TrainingConfig, number: int, tokens: int) -> CostModel:
    """What the packs of a stage are weighed by: measured seconds where `costs` names them, else operations from the model's shape.

    `tokens`: size of the tokenizer, the vocabulary of a tiny model.
    """
    if config.costs is not None:
        return CostModel.load(config.costs, number)
    return stage_flops(shape_of(config.model, tokens), config.stages[number], config.model.gradient_checkpointing).hardware


def plan_path(folder: Path, number: int, epoch: int) -> Path:
    return folder / f"stage{number}-pass{epoch}.json"


def kept_plan(path: Path | None, source: IndexSource, mixture: Mixture, config: PlanConfig, cost: Callable[[], CostModel]) -> Plan:
    """The plan at `path`, with the costs it was made with; a new one if there is none of this dataset, mixture and config.

    `cost` is asked only then: a plan outlives the file that its costs were read from.
    """
    found = None if path is None else load_plan(path, source, mixture, config)
    return found or make_plan(source, mixture, config, cost=cost(), threads=THREADS)


def keep_plan(path: Path, plan: Plan) -> None:
    """Writes the plan to `path`, whole or not at all. Raises InfrastructureError where the disk does not take it."""
    replace_text(path, plan_bytes(plan))


def later_pass(first: Plan, epoch: int) -> PlanConfig:
    """The config of a later pass: a step of it has as many packs as one of the first, whose size the learning rate belongs to."""
    return replace(first.config, packs=first.packs_per_step, samples=None, divisible_by=1, epoch=epoch)


def tell(plan: Plan, aloud: bool, steps: bool = True) -> None:
    """Says what a plan leaves out. steps: also that a pass does not fill a step, which is nobody's affair where no steps are taken."""
    level = logging.WARNING if aloud else logging.DEBUG
    for kind, names in left_out(plan.mixture, plan.laid.choices).items():
        log.log(logging.INFO if aloud else logging.DEBUG, "mixture.%s: no items for %s; left out", kind, ", ".join(names))
    packs = sum(counts.packs for counts in plan.laid.counts)
    if steps and packs < plan.packs_per_step:
        log.log(level, "a step of %d packs is more than the %d that a pass has: the others stay empty", plan.packs_per_step, packs)
    if plan.laid.dropped:
        log.log(level, "%d items are in no pack: they are too long for it", plan.laid.dropped)
    for item in plan.laid.listed[:10]:
        log.log(level, "%s/%s/%d is in no pack: %d tokens, %d patches", item.uid, item.task, item.n, item.tokens, item.patches)
