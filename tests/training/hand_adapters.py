"""A stage that learns by adapters over packs made by hand, as a process of its own, as the launcher runs one.

python -m tests.training.hand_adapters OUT DEEPSPEED_JSON [--dropout P] [--die-before STEP]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tests.training import handmade
from tests.training.hand_train import PACKS, HandFeed
from training.adapters import add_adapters, merge_adapters
from training.checkpoint import save_final, stage_dir
from training.engine import start_ranks
from training.loop import run_stage
from training.metrics import Metrics
from training.stages import TrainingConfig

STEPS = 4


def config(deepspeed: str, dropout: float) -> TrainingConfig:
    stage = {
        "profile": "tiny",
        "compress": True,
        "train": {"projector": 2e-3, "llm": {"lr": 5e-3, "lora": {"rank": 4, "alpha": 8, "dropout": dropout}}},
        "step": {"packs": PACKS},
        "seq_tokens": 64,
        "pack_patches": 64,
        "steps": STEPS,
        "schedule": "constant",
    }
    return TrainingConfig.model_validate({"name": "hand", "stages": {1: stage}, "checkpoint_steps": 2, "deepspeed": deepspeed})


def main(words: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("deepspeed")
    arguments.add_argument("--dropout", type=float, default=0.1)
    arguments.add_argument("--die-before", type=int)
    given = arguments.parse_args(words)
    ranks, settings = start_ranks(), config(given.deepspeed, given.dropout)
    stage = settings.stages[1]
    given.out.mkdir(parents=True, exist_ok=True)
    metrics = Metrics(given.out, ranks.rank == 0)
    model = handmade.model()
    add_adapters(model, stage.adapters, settings.seed)
    run_stage(model, 1, settings, HandFeed(ranks, given.out / f"ids-{ranks.rank}.jsonl", given.die_before), given.out, ranks, metrics)
    merge_adapters(model, stage_dir(given.out, 1) / "adapters" if ranks.rank == 0 else None)
    save_final(model, given.out, 1, {"stage_digest": settings.stage_digest(1)}, ranks)
    metrics.close()


if __name__ == "__main__":
    main()
