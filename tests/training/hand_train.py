"""A stage over packs made by hand, as a process of its own: what the checkpoint tests start, kill and start again.

python -m tests.training.hand_train OUT [--steps N] [--zero SETTINGS] [--die-before STEP] [--die-in-save STEP] …
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.training import handmade
from training import checkpoint
from training.engine import Ranks, start_ranks
from training.loader import LoadedStep
from training.loop import run_stage
from training.metrics import Metrics
from training.pack_loss import PackLoss
from training.plan_parts import Cursor
from training.rank_group import one_run
from training.stages import TrainingConfig

EPOCH_STEPS = 6
PACKS = 4
GAVE_UP = 7


class HandFeed:
    """Two windows of three steps an epoch, other packs in every step; notes the ids of every step it hands out."""

    def __init__(self, ranks: Ranks, notes: Path, die_before: int | None = None) -> None:
        self.ranks, self.notes, self.die_before = ranks, notes, die_before

    def steps(self, epoch: int) -> int:
        return EPOCH_STEPS

    def start(self, epoch: int) -> Cursor:
        return Cursor(f"plan-{epoch}")

    def run(self, epoch: int, cursor: Cursor) -> Iterator[LoadedStep]:
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
            yield LoadedStep(window, place, number, batches, after, wait=0.0, bytes_read=0, predicted=float(len(batches)))


def config(steps: int, every: int = 2, zero: str = "zero1", frozen: bool = False, **more: Any) -> TrainingConfig:
    """Three rates and a weight decay, so that no two parameter groups are alike: what mixes them up is seen in the losses."""
    rates = {"vision_encoder": 2e-3, "projector": 4e-3} | ({} if frozen else {"llm": 1e-3})
    stage = {
        "profile": "tiny",
        "compress": True,
        "train": rates,
        "step": {"packs": PACKS},
        "seq_tokens": 64,
        "pack_patches": 64,
        "steps": steps,
        "weight_decay": 0.1,
    }
    run = {"checkpoint_steps": every, "deepspeed": zero, **more}
    return TrainingConfig.model_validate({"name": "hand", "stages": {1: stage}, **run})


def zero_settings(folder: Path, zero: int, **more: Any) -> Path:
    """A file of DeepSpeed's settings. In ZeRO-3 no parameter is too small to be spread, and a parameter group is several sub-groups."""
    spread = {"stage3_param_persistence_threshold": 0, "sub_group_size": 20_000} if zero == 3 else {}
    stage = {"stage": zero, "overlap_comm": False, "contiguous_gradients": True, **spread, **more}
    settings = {"train_micro_batch_size_per_gpu": 1, "managed_gradient_accumulation": False, "steps_per_print": 10**9}
    path = folder / f"zero{zero}.json"
    path.write_text(json.dumps({**settings, "zero_force_ds_cpu_optimizer": False, "zero_optimization": stage}))
    return path


def main(words: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--steps", type=int, default=9)
    arguments.add_argument("--zero", default="zero1")
    arguments.add_argument("--frozen", action="store_true")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--die-before", type=int, help="all ranks, before this step (from 0)")
    arguments.add_argument("--die-in-save", type=int)
    arguments.add_argument("--full-in-save", type=int, help="the last rank's disk is full when its optimizer's state is written")
    arguments.add_argument("--lose", type=int, nargs=2, metavar=("RANK", "STEP"), help="one rank dies in the midst of a step")
    arguments.add_argument("--hang", type=int, nargs=2, metavar=("RANK", "STEP"), help="one rank stops answering in the midst of a step")
    given = arguments.parse_args(words)
    with one_run(given.out) as met:
        run(given, met or start_ranks())


def run(given: argparse.Namespace, ranks: Ranks) -> None:
    _arm(given, ranks)
    settings = config(given.steps, zero=given.zero, frozen=given.frozen, rank_timeout=6.0 if given.hang else 600.0)
    given.out.mkdir(parents=True, exist_ok=True)
    metrics = Metrics(given.out, ranks.rank == 0)
    feed = HandFeed(ranks, given.out / f"ids-{ranks.rank}.jsonl", given.die_before)
    model = handmade.model(given.seed)
    run_stage(model, 1, settings, feed, given.out, ranks, metrics)
    with torch.no_grad():  # every rank is left with a plain model: it measures held-out items with it, and hands it on
        after, _ = PackLoss(model)(handmade.packs(1, seed=7)[0])
    torch.save(
        {"after": after, "tied": model.lm_head.weight is model.model.language_model.embed_tokens.weight},
        given.out / f"after-{ranks.rank}.pt",
    )
    checkpoint.save_final(model, given.out, 1, {"stage_digest": settings.stage_digest(1)}, ranks)
    metrics.close()


def _arm(given: argparse.Namespace, ranks: Ranks) -> None:
    """Puts the accident in its place."""
    publish = checkpoint.publish

    def torn_publish(scratch: Path, target: Path) -> None:
        if target.name == f"step-{given.die_in_save:06d}":
            os.kill(os.getpid(), signal.SIGKILL)
        publish(scratch, target)

    if given.die_in_save is not None:
        checkpoint.publish = torn_publish

    save = torch.save

    def save_to_full_disk(value: Any, path: Any, *rest: Any, **more: Any) -> None:
        if f"step-{given.full_in_save:06d}" in str(path) and str(path).endswith("optim_states.pt") and ranks.rank == ranks.world - 1:
            os.symlink("/dev/full", path)  # the kernel's own "no space left on device", on any machine
        save(value, path, *rest, **more)

    if given.full_in_save is not None:
        torch.save = save_to_full_disk

    forward, calls = PackLoss.forward, [0]

    def mortal(*values: Any) -> Any:
        rank, step = given.lose or given.hang
        calls[0] += 1
        if ranks.rank == rank and calls[0] == step * PACKS // ranks.world + 2:
            if given.lose:
                os.kill(os.getpid(), signal.SIGKILL)
            while any(given.out.glob(".ranks-*")):  # until the others have given this one up
                time.sleep(0.1)
            os._exit(GAVE_UP)
        return forward(*values)

    if given.lose or given.hang:
        PackLoss.forward = mortal


if __name__ == "__main__":
    main()
