"""`train` as a process of its own, for the tests that kill it.

python -m tests.training.hand_launch DATASET TOKENIZER OUT [--config FILE] [--stage STAGE] [--die-at STAGE STEP] [--on RANK] …

Exit codes: 1 an error of ours, which is printed, 3 that of a rank that ends because another did.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from shards.errors import FoveaError, ShardError
from training import loop, rank_group
from training.launch import train
from training.rank_group import EndedElsewhere
from training.stages import TrainingConfig

RATES = {"vision_encoder": 3e-3, "projector": 3e-3, "llm": 3e-3}
STAGE = {"step": {"packs": 2}, "seq_tokens": 512, "pack_patches": 512}
TINY = {"hidden": 32, "vision_hidden": 32, "vision_layers": 2, "vision_heads": 2}
CONFIG = TrainingConfig.model_validate(
    {
        "name": "small",
        "model": {"tiny": TINY},
        "stages": {
            1: {**STAGE, "profile": "tiny", "compress": False, "train": {"vision_encoder": 1e-2, "projector": 1e-2}, "steps": 6}
            | {"mixture": {"tasks": {"short_caption": 2, "document": 1}}},
            2: {**STAGE, "profile": "tiny", "compress": False, "train": RATES, "epochs": 3},
            4: {**STAGE, "profile": "tiny_video", "compress": True, "train": RATES, "steps": 6}
            | {"mixture": {"missing": "leave_out", "tasks": {"video": 1, "text": 1, "vqa": 1, "streaming": 1}}},
        },
        "checkpoint_steps": 2,
        "held_out_packs": 8,
    }
)


def main(words: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("dataset")
    arguments.add_argument("tokenizer")
    arguments.add_argument("out")
    arguments.add_argument("--config")
    arguments.add_argument("--stage", type=int, action="append")
    for what in ("die", "break", "end"):
        arguments.add_argument(f"--{what}-at", type=int, nargs=2, metavar=("STAGE", "STEP"))
    arguments.add_argument("--on", type=int, default=0, help="the rank that --die-at and so on are for")
    arguments.add_argument("--blind", type=int, help="a rank that does not see the dataset")
    arguments.add_argument("--apart", type=int, help="a rank with an output directory of its own")
    arguments.add_argument("--no-resume", dest="resume", action="store_false")
    given = arguments.parse_args(words)
    rank = int(os.environ.get("RANK", "0"))
    first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    deeds: dict[tuple[int, int], Any] = {}
    if rank == given.on and first_life:
        for place, deed in ((given.die_at, _die), (given.break_at, _break), (given.end_at, _end)):
            if place is not None:
                deeds[tuple(place)] = deed
    take = loop.train_step

    def taken(engine: Any, block: Any, batches: Any, done: int, total: int) -> Any:
        for (stage, step), deed in deeds.items():
            if block is CONFIG.stages[stage] and done == step:
                deed()
        return take(engine, block, batches, done, total)

    loop.train_step = taken  # type: ignore[assignment]
    rank_group.SHARED_WITHIN = 1.0
    dataset = given.dataset if rank != given.blind else f"{given.dataset}-gone"
    out = given.out if rank != given.apart else f"{given.out}-apart"
    try:
        train(given.config or CONFIG, dataset, out, tokenizer=given.tokenizer, stages=given.stage, resume=given.resume)
    except EndedElsewhere:
        sys.exit(3)
    except FoveaError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _break() -> None:
    raise ShardError("shard train-000000.tar is torn")


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
