"""What our training step costs beside a bare loop: forward, backward and step on the same DeepSpeed engine over the same packs.

python benchmarks/trainer_step.py [--steps 24] [--packs 2] [--threads 2] [--json OUT]

Both run in one process on one engine, alternating step by step, so that neither has the machine to itself. Ours adds the count of labelled
tokens over all ranks, the sums for each task, the check for what is not finite, and the rates. The goal is a ratio of 1.03 at most
for steps of 100 ms and more; seconds of the processor are told beside those of the clock, for on a busy machine the latter are noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.collate import ItemName, LoadedItem, LoadedMedium, PackBatch, collate
from training.engine import Ranks, build_engine, start_ranks, train_step
from training.model import build_tiny
from training.stages import StageConfig, TinyShape, TrainingConfig

VOCABULARY, PATCH = 4096, 14
IDS = {"image_token_id": 4090, "video_token_id": 4091, "eos_token_id": 4092}


def pack(seed: int, items: int = 6, side: int = 6, answer: int = 48) -> PackBatch:
    """`items` pictures of side × side patches, each with a question and an answer of `answer` random tokens."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(items):
        pixels = random.standard_normal((side * side, 3 * PATCH**2), dtype=np.float32)
        prompt = [1, *[IDS["image_token_id"]] * side * side, *random.integers(1, 4000, 16).tolist()]
        text = [*random.integers(1, 4000, answer).tolist(), IDS["eos_token_id"]]
        name = ItemName(f"{seed}-{number}", ("vqa", "ocr", "short_caption")[number % 3], 0)
        labels = np.array([-100] * len(prompt) + text)
        made.append(LoadedItem(name, np.array(prompt + text), labels, (LoadedMedium(False, 1, side, side, 1, pixels),)))
    return collate(made, PATCH)


def bare_step(engine: Any, batches: list[PackBatch]) -> None:
    for batch in batches:
        loss, _ = engine(batch)
        engine.backward(loss / (batch.counts.labelled * len(batches)))
    engine.step()


def measure(ranks: Ranks, steps: int, packs_per_step: int) -> dict[str, Any]:
    rates = {"vision_encoder": 1e-3, "projector": 1e-3, "llm": 1e-3}
    stage = StageConfig.model_validate(
        {"profile": "tiny", "compress": False, "train": rates, "step": {"packs": packs_per_step}, "seq_tokens": 1024, "pack_patches": 1024}
    )
    shape = TinyShape(hidden=128, llm_layers=4, vision_hidden=128, vision_layers=4)
    engine = build_engine(build_tiny(VOCABULARY, shape, IDS, 0), stage, TrainingConfig(name="benchmark", stages={1: stage}), ranks)
    batches = [pack(seed) for seed in range(packs_per_step)]
    ours: list[float] = []
    bare: list[float] = []
    spent: list[list[float]] = [[], []]
    for step in range(2 * (steps + 2)):
        started, worked = time.perf_counter(), time.process_time()
        if step % 2:
            train_step(engine, stage, batches, step, 10 * steps)
        else:
            bare_step(engine, batches)
        (ours if step % 2 else bare).append(time.perf_counter() - started)
        spent[step % 2].append(time.process_time() - worked)
    ours, bare = ours[2:], bare[2:]  # the first two of each warm caches and allocators
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    return {
        "steps": steps,
        "packs_per_step": packs_per_step,
        "tokens": sum(b.counts.tokens for b in batches),
        "ours_ms": round(1000 * statistics.median(ours), 2),
        "bare_ms": round(1000 * statistics.median(bare), 2),
        "ratio": round(statistics.median(ours) / statistics.median(bare), 4),
        "ratio_of_pairs": round(statistics.median(ratios), 4),
        "ratio_of_cpu_seconds": round(statistics.median(spent[1][2:]) / statistics.median(spent[0][2:]), 4),
        "goal": 1.03,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=24)
    arguments.add_argument("--packs", type=int, default=2)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    result = measure(start_ranks(), given.steps, given.packs)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))
    print(f"ours {result['ours_ms']} ms, bare {result['bare_ms']} ms: {result['ratio']} of the bare step (goal {result['goal']})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
