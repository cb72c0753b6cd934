"""Samples a second of packed rows beside padded batches: the same items, the same model, the same number of updates.

python benchmarks/trainer_padding.py [--items 192] [--batch 8] [--threads 2] [--json OUT]

Padded is the plain way of transformers: random batches, padded to their longest item, an attention mask, labels, and the loss that the
model returns. Packed is `train_step`, with all its counting. Steps of both alternate, so that neither has the machine to itself. Lengths
are a sixteenth of real ones (rows of 1,024 tokens for 16,384) in the shares of the paper's third stage: 60 % one picture, 4 % several, 16 %
clips with 40 % of their tokens dropped, 20 % text with a heavy tail. The model has the proportions of the 2B: an encoder of about a third
of the language model's size, a head of 15 % of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.collate import ItemName, LoadedItem, LoadedMedium, PackBatch, collate
from training.engine import build_engine, start_ranks, train_step
from training.model import build_tiny, parameter_groups
from training.packing import pack_items
from training.stages import StageConfig, TinyShape, TrainingConfig

VOCABULARY, PATCH, ROW = 2048, 14, 1024
IDS = {"image_token_id": 2040, "video_token_id": 2041, "eos_token_id": 2042}
SHAPE = TinyShape(hidden=192, llm_layers=4, heads=6, kv_heads=2, vision_hidden=128, vision_layers=4, vision_heads=4)
RATES = {"vision_encoder": 1e-4, "projector": 1e-4, "llm": 1e-4}
GOAL = 1.5


def item(number: int) -> LoadedItem:
    """One item by its number alone."""
    random = np.random.default_rng(number)
    kind = random.choice(["image", "multi_image", "video", "text"], p=[0.60, 0.04, 0.16, 0.20])
    media: tuple[LoadedMedium, ...] = ()
    if kind in ("image", "multi_image"):
        media = tuple(_medium(random, False) for _ in range(1 if kind == "image" else random.integers(2, 5)))
    elif kind == "video":
        media = (_medium(random, True),)
    visual = [IDS["video_token_id" if m.video else "image_token_id"] for m in media for _ in range(m.kept)]
    # medians of 6 + 10 tokens beside a medium and 40 for text; σ 0.9: one in a hundred is eight times as long
    asked, answered = (int(np.clip(random.lognormal(np.log(m), 0.9), 2, 500)) for m in ((20, 40) if kind == "text" else (6, 10)))
    prompt = [1, *visual, *random.integers(2, 2000, asked).tolist()]
    text = [*random.integers(2, 2000, answered).tolist(), IDS["eos_token_id"]]
    task = {"image": "vqa"}.get(str(kind), str(kind))
    return LoadedItem(ItemName(str(number), task, 0, 0, task), np.array(prompt + text), np.array([-100] * len(prompt) + text), media)


def _medium(random: np.random.Generator, video: bool) -> LoadedMedium:
    if video:
        t, h, w, merge = int(random.integers(2, 13)), 8, 8, 2
        keep = random.random(t * h * w // merge**2) < 0.6
        keep[0] = True
    else:
        (h, w), t, merge, keep = random.integers(4, 15, 2), 1, 1, None
    return LoadedMedium(
        video, t, int(h), int(w), merge, random.standard_normal((t * int(h) * int(w), 3 * PATCH**2), dtype=np.float32), keep
    )


def padded(items: Sequence[LoadedItem]) -> dict[str, torch.Tensor]:
    """Arguments of the model's forward for a batch padded on the right to its longest item."""
    inputs = collate(items, PATCH).model_inputs()
    inputs.pop("position_ids")
    rows = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    values = {"input_ids": [i.input_ids for i in items], "labels": [i.labels for i in items]}
    values["attention_mask"] = [np.ones(len(i.input_ids), dtype=np.int64) for i in items]
    for name, filler in rows.items():
        inputs[name] = nn.utils.rnn.pad_sequence([torch.from_numpy(v) for v in values[name]], batch_first=True, padding_value=filler)
    return inputs


def padded_step(model: Any, optimizer: torch.optim.Optimizer, batches: Sequence[dict[str, torch.Tensor]]) -> None:
    for batch in batches:
        (model(**batch, use_cache=False).loss / len(batches)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def packed_steps(items: Sequence[LoadedItem], steps: int) -> list[list[PackBatch]]:
    tokens = np.array([len(i.input_ids) for i in items])
    patches = np.array([sum(len(m.pixels) for m in i.media) for i in items])
    packs = pack_items(tokens, patches, np.arange(len(items)), ROW, 4 * ROW)
    made = [collate([items[n] for n in packs.items[a:b]], PATCH) for a, b in zip(packs.start, packs.start[1:], strict=False)]
    return [made[step::steps] for step in range(steps)]


def measure(items: int, batch: int, per_step: int) -> dict[str, Any]:
    ranks = start_ranks()
    values = {"profile": "tiny", "compress": True, "train": RATES, "step": {"packs": 1}, "seq_tokens": ROW, "pack_patches": 4 * ROW}
    stage = StageConfig.model_validate(values)
    engine = build_engine(build_tiny(VOCABULARY, SHAPE, IDS, 0), stage, TrainingConfig(name="benchmark", stages={1: stage}), ranks)
    plain: Any = build_tiny(VOCABULARY, SHAPE, IDS, 0)
    optimizer = torch.optim.AdamW(parameter_groups(plain, RATES, 0.0), betas=stage.betas)
    made = [item(n) for n in range(items)]
    steps = items // per_step
    ours = packed_steps(made, steps)
    theirs = [[padded(made[n : n + batch]) for n in range(s * per_step, (s + 1) * per_step, batch)] for s in range(steps)]
    train_step(engine, stage, ours[0][:1], 0, 100)
    padded_step(plain, optimizer, theirs[0][:1])
    seconds = {"packed": np.zeros(2), "padded": np.zeros(2)}  # of the clock, of the processor
    for step in range(steps):
        started = np.array([time.perf_counter(), time.process_time()])
        train_step(engine, stage, ours[step], step, 100)
        between = np.array([time.perf_counter(), time.process_time()])
        padded_step(plain, optimizer, theirs[step])
        seconds["packed"] += between - started
        seconds["padded"] += np.array([time.perf_counter(), time.process_time()]) - between
    real = sum(len(i.input_ids) for i in made)
    packs = [pack for step in ours for pack in step]
    return {
        "items": items,
        "packed_per_s": round(items / seconds["packed"][0], 2),
        "padded_per_s": round(items / seconds["padded"][0], 2),
        "ratio": round(seconds["padded"][0] / seconds["packed"][0], 3),
        "ratio_of_cpu_seconds": round(seconds["padded"][1] / seconds["packed"][1], 3),
        "goal": GOAL,
        "batch": batch,
        "updates": steps,
        "packs": len(packs),
        "tokens": real,
        "padded_tokens": sum(b["input_ids"].numel() for step in theirs for b in step),
        "longest": max(len(i.input_ids) for i in made),
        "patches": sum(p.counts.patches for p in packs),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--items", type=int, default=192)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--per-step", type=int, default=32)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    result = measure(given.items, given.batch, given.per_step)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))
    print(f"packed {result['packed_per_s']} samples/s, padded {result['padded_per_s']}: {result['ratio']} times (goal {GOAL})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
