"""What the stages would be, from the dataset's index alone: steps, packs, fill. No model, no GPU, no sample is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import ConfigError
from training.config_text import load_training_config
from training.plan import PlanReport
from training.stages import TrainingConfig


@dataclass(frozen=True, slots=True)
class StagePreview:
    """The first pass of a stage. steps: optimizer steps of the whole stage.   samples_per_step: mean items of a step."""

    stage: int
    steps: int
    samples_per_step: float
    first_pass: PlanReport


def preview(
    config: TrainingConfig | str | Path, dataset: str | None = None, *, tokenizer: str | None = None, stages: Sequence[int] | None = None
) -> list[StagePreview]:
    """Plans every stage (or those named). Raises what `training.launch.train` would before its first step."""
    from shards.reader import Dataset
    from shards.tokenizer import load_tokenizer, tokenizer_digest
    from training.feed import tell
    from training.launch import chosen_stages
    from training.plan import make_plan
    from training.preflight import refuse_unfit
    from training.stage_plan import THREADS, later_pass

    settings = config if isinstance(config, TrainingConfig) else load_training_config(config)
    where, words = dataset or settings.dataset, tokenizer or settings.tokenizer
    if where is None or words is None:
        raise ConfigError(f"{settings.name}: a plan needs a dataset and the tokenizer it was measured with; name them on the command line")
    opened, chosen = Dataset.open(where), chosen_stages(settings, stages)
    plans = refuse_unfit(settings, chosen, opened, load_tokenizer(Path(words)), tokenizer_digest(words))
    found = []
    for number, plan in plans.items():
        stage = settings.stages[number]
        tell(plan, aloud=True)
        first = plan.report()
        steps = stage.steps
        if steps is None:
            later = [later_pass(plan, epoch) for epoch in range(1, stage.epochs)]
            others = (make_plan(plan.source, plan.mixture, c, cost=plan.cost, threads=THREADS).steps_total for c in later)
            steps = first.steps + sum(others)
        found.append(StagePreview(number, steps, first.samples_per_step, first))
    return found
