"""One stage: packs in, steps taken, checkpoints and numbers out. Where the packs come from is the feed's affair."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from shards.errors import ConfigError
from training.agreement import bound_waiting
from training.checkpoint import TrainState, latest_state, load_state, make_universal, save_state, stage_dir
from training.engine import Ranks, build_engine, train_step
from training.measured import PackLog
from training.metrics import Metrics
from training.numbers import Meter, features_of, step_numbers
from training.pruning import pruning_numbers
from training.rank_group import Preempted, StopRequest
from training.stages import StageConfig, TrainingConfig
from training.whole import make_whole

if TYPE_CHECKING:
    from training.loader import LoadedStep
    from training.plan_parts import Cursor

log = logging.getLogger("fovea")

SAID_EVERY = 10  # steps between two lines of the log; metrics.jsonl has every one


class Feed(Protocol):
    """The data of a stage: passes (epochs, from 0) of planned steps, each this rank's packs of it."""

    def steps(self, epoch: int) -> int:
        """Optimizer steps of that pass."""

    def start(self, epoch: int) -> Cursor:
        """The cursor at its first step."""

    def run(self, epoch: int, cursor: Cursor) -> Iterator[LoadedStep]:
        """Its steps from `cursor` on. Raises ConfigError for a cursor of another plan."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stage stands: `done` of its `total` steps, the pass it is in (from 0), and the cursor in the plan of that pass."""

    done: int
    total: int
    epoch: int
    cursor: Cursor


def run_stage(
    model: nn.Module,
    number: int,
    config: TrainingConfig,
    feed: Feed,
    out: Path,
    ranks: Ranks,
    metrics: Metrics,
    stop: StopRequest | None = None,
) -> int:
    """Trains `model` through stage `number` of `config`, from the newest checkpoint under `out` if there is one. Returns its steps.

    Every `config.checkpoint_steps` steps a checkpoint is written: a process that is killed anywhere and started again sees the same packs.
    Raises ConfigError for a checkpoint of another config or plan, and what `run_steps` raises. At its end `model` has whole plain weights
    on every rank, whatever the stage of ZeRO.
    """
    stage, folder = config.stages[number], stage_dir(out, number)
    total = stage.steps if stage.steps is not None else sum(feed.steps(epoch) for epoch in range(stage.epochs))
    found = latest_state(folder)
    if found is not None:
        _refuse_other(found, config.stage_digest(number))
    resized = found is not None and found[1].world != ranks.world
    torch.manual_seed(config.seed + number)
    engine = build_engine(model, stage, config, ranks, universal=resized)
    bound_waiting(config.rank_timeout)
    place = Place(0, total, 0, feed.start(0))
    if found is not None:
        path, state = found
        if resized:
            make_universal(path, ranks)
        load_state(engine, path, state, ranks)
        place = Place(state.step, total, state.epoch, _cursor(state))
        log.info("stage %d continues at step %d of %d (%s)", number, state.step, total, path)
    metrics.forget_after(number, place.done)
    done = run_steps(engine, number, config, feed, out, metrics, place, stop)
    make_whole(engine)
    return done


def run_steps(
    engine: Any,
    number: int,
    config: TrainingConfig,
    feed: Feed,
    out: Path,
    metrics: Metrics,
    place: Place,
    stop: StopRequest | None = None,
) -> int:
    """The steps of stage `number` from `place` to its end: packs taken, trained, told of, and saved when it is time. Returns place.total.

    engine: of `build_engine`. Raises TrainingStopped for a loss or gradient that is not finite, Preempted after the checkpoint that answers
    a `stop` on any rank.
    """
    stage, folder, ranks = config.stages[number], stage_dir(out, number), engine.ranks
    digest = config.stage_digest(number)
    meter = Meter.of(engine.module.model.config, number, config, ranks)
    packs = PackLog(out, ranks.rank, number, digest, meter.flops.hardware, meter.told, ranks.world)
    done, total = place.done, place.total
    waited = time.perf_counter()
    for epoch, loaded in islice(_passes(feed, stage, place.epoch, place.cursor), total - done):
        wait = time.perf_counter() - waited
        features = features_of(loaded.batches)
        result = train_step(engine, stage, loaded.batches, done, total)
        done += 1
        numbers = step_numbers(meter, loaded, features, result, wait, engine.device)
        metrics.write({"kind": "step", "stage": number, "step": done, **numbers})
        if stage.encoder.prune and done % stage.encoder.compare_steps == 0:
            metrics.write({"kind": "pruning", "stage": number, "step": done, **pruning_numbers(engine, loaded.batches)})
        packs.note(features, result.pack_seconds)
        told = logging.INFO if done % SAID_EVERY == 0 or done in (1, total) else logging.DEBUG
        log.log(told, "stage %d step %d/%d loss %.4f", number, done, total, result.loss)
        ending = stop is not None and done < total and stop.asked(ranks)
        if (ending or done % config.checkpoint_steps == 0) and done < total:
            save_state(engine, folder, _state(number, done, epoch, loaded.cursor_after, digest, ranks), config.keep_checkpoints, ranks)
        if ending:
            raise Preempted(
                f"stage {number} was asked to end and has a checkpoint of step {done} of {total}; the same command goes on there"
            )
        waited = time.perf_counter()
    return done


def _passes(feed: Feed, stage: StageConfig, epoch: int, cursor: Cursor) -> Iterator[tuple[int, LoadedStep]]:
    """(epoch, step) from the cursor on: through `epochs` passes, or without end where the number of steps is given."""
    while stage.steps is not None or epoch < stage.epochs:
        for loaded in feed.run(epoch, cursor):
            yield epoch, loaded
        epoch += 1
        cursor = feed.start(epoch)


def _refuse_other(found: tuple[Path, TrainState], digest: str) -> None:
    path, state = found
    if state.stage_digest != digest:
        raise ConfigError(
            f"{path}: written under another config of this stage or of one before it; restore that config to continue, "
            f"or give another output directory, or delete {path.parent} to start the stage again"
        )


def _cursor(state: TrainState) -> Cursor:
    from training.plan_parts import Cursor

    return Cursor(state.plan_digest, state.window, state.plan_step)


def _state(stage: int, step: int, epoch: int, cursor: Cursor, digest: str, ranks: Ranks) -> TrainState:
    return TrainState(stage, step, epoch, cursor.plan_digest, cursor.window, cursor.step, digest, ranks.world)
