"""`train` as a process of its own, for the tests that kill it.

python -m tests.training.hand_launch DATASET TOKENIZER OUT [--config FILE] [--die-at STAGE STEP]
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from typing import Any

from training import loop
from training.launch import train
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
    arguments.add_argument("--die-at", type=int, nargs=2, metavar=("STAGE", "STEP"))
    given = arguments.parse_args(words)
    if given.die_at is not None:
        stage, step = given.die_at
        take = loop.train_step

        def mortal(engine: Any, block: Any, batches: Any, done: int, total: int) -> Any:
            if block is CONFIG.stages[stage] and done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return take(engine, block, batches, done, total)

        loop.train_step = mortal
    train(given.config or CONFIG, given.dataset, given.out, tokenizer=given.tokenizer)


if __name__ == "__main__":
    main()
