"""The stages of a training as they lie on disk: which are asked for, which are finished, and what each starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import ConfigError
from training.checkpoint import final_dir, finished, forget_states
from training.stages import TrainingConfig


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a stage came to. before, after: held-out loss, nats a labelled token; None without held-out items. done_before: nothing was
    left to do."""

    stage: int
    steps: int
    before: float | None
    after: float | None
    after_by_task: dict[str, float]
    weights: Path
    done_before: bool


@dataclass(frozen=True, slots=True)
class TrainReport:
    stages: tuple[StageReport, ...]

    @property
    def weights(self) -> Path:
        """The plain weights of the last stage."""
        return self.stages[-1].weights


def chosen_stages(config: TrainingConfig, stages: Sequence[int] | None) -> list[int]:
    """In order; all for None. Raises ConfigError for one that the config has not."""
    wanted = sorted(config.stages if stages is None else set(stages))
    unknown = [k for k in wanted if k not in config.stages]
    if unknown or not wanted:
        raise ConfigError(f"{config.name}: no stage {', '.join(map(str, unknown))}; it has {', '.join(map(str, sorted(config.stages)))}")
    return wanted


def finished_stages(config: TrainingConfig, out: Path, chosen: Sequence[int]) -> dict[int, StageReport]:
    return {k: as_report(out, k, facts) for k in chosen if (facts := finished(out, k, config.stage_digest(k))) is not None}


def forget_leftovers(out: Path, stages: Sequence[int]) -> None:
    """Deletes what a kill left of finished stages' states."""
    for number in stages:
        forget_states(out, number)


def stage_before(config: TrainingConfig, number: int) -> int | None:
    """The stage whose weights `number` starts from; None for the first."""
    return max((k for k in config.stages if k < number), default=None)


def finished_before(config: TrainingConfig, out: Path, number: int, before: int) -> dict[str, Any]:
    facts = finished(out, before, config.stage_digest(before))
    if facts is None:
        raise ConfigError(f"stage {number} starts from the weights of stage {before}, which is not finished under {out}")
    return facts


def as_report(out: Path, number: int, facts: dict[str, Any], done_before: bool = True) -> StageReport:
    after = facts["after"] or {}
    return StageReport(
        stage=number,
        steps=facts["steps"],
        before=facts["before"],
        after=after.get("loss"),
        after_by_task=after.get("loss_by_task", {}),
        weights=final_dir(out, number),
        done_before=done_before,
    )
