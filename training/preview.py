"""What the stages would be, from the dataset's index and the model's sizes alone: steps, packs, fill, balance, operations, memory, hours.

No model, no GPU, no sample is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import ConfigError
from training.budget import MFU, Memory, fits, hours_of, memory_of
from training.config_text import load_training_config
from training.devices import Device
from training.flops import stage_flops
from training.plan_report import PlanReport
from training.stages import TrainingConfig, deepspeed_json

if TYPE_CHECKING:
    from training.plan import Plan


@dataclass(frozen=True, slots=True)
class Machine:
    """What training is planned for: `devices` of one kind (a rank each), used at `mfu` of their peak, each at `price` an hour."""

    device: Device | None = None
    devices: int = 1
    mfu: float = MFU
    price: float | None = None

    def __post_init__(self) -> None:
        if self.devices < 1 or not 0 < self.mfu <= 1 or (self.price is not None and self.price < 0):
            raise ConfigError(
                f"{self.devices} devices at MFU {self.mfu} for {self.price}: wanted are 1 or more, a share, and a price from 0"
            )


@dataclass(frozen=True, slots=True)
class StagePreview:
    """A stage before it is run.

    steps             optimizer steps of the whole stage.   samples_per_step  mean items of a step.
    first_pass        its first pass over the mixture, the imbalance at the machine's ranks in it where they divide a step's packs.
    keep              kept over all visual tokens, 1 without.   dropped  items in no pack, by reason.
    flops             of the whole stage, forward and backward, by encoder, projector, llm and head.   recomputed  what checkpointing adds.
    memory            of a rank for the fullest pack that the bounds allow.   fits  None where the device's memory is not known.
    hours             by `flops` at the machine's MFU; None without a stated peak.   price  of all its devices for so long.
    measured_hours    by measured costs (config.costs), forward and backward; None without.
    """

    stage: int
    steps: int
    samples_per_step: float
    first_pass: PlanReport
    keep: float
    dropped: dict[str, int]
    flops: dict[str, float]
    recomputed: float
    memory: Memory
    fits: bool | None
    hours: float | None
    price: float | None
    measured_hours: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the memory's peak."""
        values = asdict(self)
        values["memory"]["peak"] = self.memory.peak
        return values


def preview(
    config: TrainingConfig | str | Path,
    dataset: str | None = None,
    *,
    tokenizer: str | None = None,
    stages: Sequence[int] | None = None,
    machine: Machine | None = None,
) -> list[StagePreview]:
    """Plans every stage (or those named). Raises what `training.launch.train` would before its first step, and ConfigError where the sizes
    of the model are not known."""
    from shards.reader import Dataset
    from shards.tokenizer import load_tokenizer, tokenizer_digest
    from training.preflight import refuse_unfit
    from training.stage_chain import chosen_stages
    from training.stage_plan import tell

    settings = config if isinstance(config, TrainingConfig) else load_training_config(config)
    where, words = dataset or settings.dataset, tokenizer or settings.tokenizer
    if where is None or words is None:
        raise ConfigError(f"{settings.name}: a plan needs a dataset and the tokenizer it was measured with; name them on the command line")
    opened, chosen = Dataset.open(where), chosen_stages(settings, stages)
    loaded = load_tokenizer(Path(words))
    plans = refuse_unfit(settings, chosen, opened, loaded, tokenizer_digest(words))
    found = []
    for number, plan in plans.items():
        tell(plan, aloud=True)
        found.append(preview_stage(settings, number, plan, len(loaded), machine or Machine()))
    return found


def preview_stage(config: TrainingConfig, number: int, plan: Plan, tokens: int, machine: Machine) -> StagePreview:
    """One stage whose first pass is `plan`; `tokens`: size of the tokenizer."""
    from training.shapes import shape_of

    stage, shape = config.stages[number], shape_of(config.model, tokens)
    first = plan.report(ranks=(machine.devices,))
    steps = _steps(config, number, plan, first)
    passes = steps / first.steps
    counts = (first.packs, first.patches, first.frame_squares, first.projected, first.tokens, first.token_squares, first.labelled)
    features = passes * np.array(counts, dtype=np.float64)
    flops = stage_flops(shape, stage, config.model.gradient_checkpointing)
    by_part = {part: value for part, value in flops.model.by_part(features).items() if part != "pack"}
    memory = memory_of(shape, stage, config.model, deepspeed_json(config.deepspeed), machine.devices)
    device = machine.device
    hours = None if device is None else hours_of(sum(by_part.values()), device, machine.devices, machine.mfu)
    seconds = float(features @ plan.cost.vector) if plan.cost.unit == "seconds" else None
    measured = None if seconds is None else seconds / machine.devices / 3600
    likely = hours if measured is None else measured
    return StagePreview(
        stage=number,
        steps=steps,
        samples_per_step=first.samples_per_step,
        first_pass=first,
        keep=first.kept / first.visual if first.visual else 1.0,
        dropped={"tokens": first.over_tokens, "patches": first.dropped - first.over_tokens},
        flops=by_part,
        recomputed=float(features @ flops.recomputed.vector),
        memory=memory,
        fits=None if device is None else fits(memory, device),
        hours=hours,
        price=None if machine.price is None or likely is None else machine.price * machine.devices * likely,
        measured_hours=measured,
    )


def _steps(config: TrainingConfig, number: int, plan: Plan, first: PlanReport) -> int:
    """Optimizer steps of the whole stage; later passes, which are shuffled otherwise, are planned for it."""
    from training.plan import make_plan
    from training.stage_plan import THREADS, later_pass

    stage = config.stages[number]
    if stage.steps is not None:
        return stage.steps
    later = [later_pass(plan, epoch) for epoch in range(1, stage.epochs)]
    return first.steps + sum(make_plan(plan.source, plan.mixture, c, cost=plan.cost, threads=THREADS).steps_total for c in later)
