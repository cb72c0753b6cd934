"""A stage over packs made by hand, as a process of its own: what the checkpoint tests start, kill and start again.

python -m tests.training.hand_train OUT [--steps N] [--die-before STEP] [--die-in-save STEP]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

from tests.training import handmade
from training import checkpoint
from training.engine import Ranks, start_ranks
from training.loop import run_stage
from training.metrics import Metrics
from training.plan import Cursor
from training.stages import TrainingConfig

EPOCH_STEPS = 6
PACKS = 4


class HandFeed:
    """Two windows of three steps an epoch, other packs in every step; notes the ids of every step it hands out."""

    def __init__(self, ranks: Ranks, notes: Path, die_before: int | None = None) -> None:
        self.ranks, self.notes, self.die_before = ranks, notes, die_before

    def steps(self, epoch: int) -> int:
        return EPOCH_STEPS

    def start(self, epoch: int) -> Cursor:
        return Cursor(f"plan-{epoch}")

    def run(self, epoch: int, cursor: Cursor) -> Iterator[SimpleNamespace]:
        assert cursor.plan_digest == f"plan-{epoch}"
        for number in range(cursor.window * 3 + cursor.step, EPOCH_STEPS):
            step = epoch * EPOCH_STEPS + number
            if step == self.die_before:
                os.kill(os.getpid(), signal.SIGKILL)
            window, place = divmod(number, 3)
            batches = handmade.packs(PACKS, seed=1000 * step)[self.ranks.rank :: self.ranks.world]
            with self.notes.open("a") as file:
                file.write(json.dumps([step + 1, [item.uid for batch in batches for item in batch.items]]) + "\n")
            after = Cursor(cursor.plan_digest, window, place + 1)
            yield SimpleNamespace(window=window, step=place, batches=batches, cursor_after=after)


def config(steps: int, every: int = 2) -> TrainingConfig:
    rates = {"vision_encoder": 2e-3, "projector": 2e-3, "llm": 2e-3}
    stage = {
        "profile": "tiny",
        "compress": True,
        "train": rates,
        "step": {"packs": PACKS},
        "seq_tokens": 64,
        "pack_patches": 64,
        "steps": steps,
    }
    return TrainingConfig.model_validate({"name": "hand", "stages": {1: stage}, "checkpoint_steps": every})


def main(words: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--steps", type=int, default=9)
    arguments.add_argument("--die-before", type=int)
    arguments.add_argument("--die-in-save", type=int)
    given = arguments.parse_args(words)
    ranks = start_ranks()
    publish = checkpoint._publish

    def torn_publish(scratch: Path, target: Path) -> None:
        if target.name == f"step-{given.die_in_save:06d}":
            os.kill(os.getpid(), signal.SIGKILL)
        publish(scratch, target)

    if given.die_in_save is not None:
        checkpoint._publish = torn_publish
    metrics = Metrics(given.out, ranks.rank == 0)
    feed = HandFeed(ranks, given.out / f"ids-{ranks.rank}.jsonl", given.die_before)
    given.out.mkdir(parents=True, exist_ok=True)
    model = handmade.model()
    run_stage(model, 1, config(given.steps), feed, given.out, ranks, metrics)
    checkpoint.save_final(model, given.out, 1, {"stage_digest": config(given.steps).stage_digest(1)}, ranks)
    metrics.close()


if __name__ == "__main__":
    main()
