"""What the stages would be, from the dataset's index alone: steps, packs, fill. No model, no GPU, no sample is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    from shards.tokenizer import tokenizer_digest
    from training.feed import TRAIN_SPLIT, mixture_of, plan_config
    from training.launch import chosen_stages
    from training.plan import make_plan
    from training.preflight import refuse_unfit

    settings = config if isinstance(config, TrainingConfig) else load_training_config(config)
    where, words = dataset or settings.dataset, tokenizer or settings.tokenizer
    if where is None or words is None:
        raise ConfigError(f"{settings.name}: a plan needs a dataset and the tokenizer it was measured with; name them on the command line")
    opened, chosen = Dataset.open(where), chosen_stages(settings, stages)
    refuse_unfit(settings, chosen, opened, tokenizer_digest(words))
    index = opened.index(split=TRAIN_SPLIT)
    found = []
    for number in chosen:
        stage = settings.stages[number]
        mixture, base = mixture_of(stage.mixture, index), plan_config(stage, settings.seed)
        first = make_plan(index, mixture, base, index_digest=opened.manifest.version).report()
        steps = stage.steps
        if steps is None:
            later = [replace(base, epoch=epoch) for epoch in range(1, stage.epochs)]
            steps = first.steps + sum(make_plan(index, mixture, c, index_digest=opened.manifest.version).steps_total for c in later)
        found.append(StagePreview(number, steps, first.items / first.steps, first))
    return found
