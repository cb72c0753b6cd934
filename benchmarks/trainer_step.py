"""What a step of ours costs beside a bare loop: forward, backward and step on the same DeepSpeed engine over the same packs.

python -m benchmarks.trainer_step [--steps 48] [--packs 2] [--items 4] [--threads 1] [--json OUT]

Ours is training.loop.run_steps over a feed that hands over ready packs, from the packs of one step to the call for those of the next: all
that the loop does is counted, so the weights and sums over ranks, the check for what is not finite, the rates, metrics.jsonl, TensorBoard,
the log of packs and the log. A bare step goes before each of ours, in the same process on the same engine, so that neither has the machine
to itself. Reading is in neither (benchmarks/loader.py), nor are checkpoints.

The goal is 1.03 at most for steps of 100 ms and more: the median, over steps, of ours over the bare one before it. Seconds of the processor
are told beside those of the clock, for on a machine that does other work the latter are noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.collate import ItemName, LoadedItem, LoadedMedium, PackBatch, collate
from training.engine import Ranks, build_engine, start_ranks
from training.loader import LoadedStep
from training.loop import Place, run_steps
from training.metrics import Metrics
from training.model import build_tiny
from training.plan_parts import Cursor
from training.rank_group import StopRequest
from training.stages import StageConfig, TinyShape, TrainingConfig

VOCABULARY, PATCH = 4096, 14
IDS = {"image_token_id": 4090, "video_token_id": 4091, "eos_token_id": 4092}
GOAL = 1.03  # ours over bare
SHORTEST = 100.0  # milliseconds: of shorter steps the goal does not speak
WARM = 4  # steps of each that warm caches and allocators; packs are noted from the fourth on


def pack(seed: int, items: int, side: int = 6, answer: int = 48) -> PackBatch:
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


@dataclass
class ReadyPacks:
    """training.loop.Feed of the same packs for ever. Before each step that it hands over it takes a bare one itself.

    bare, ours  seconds of each by the clock and of the processor.
    """

    engine: Any
    batches: list[PackBatch]
    bare: list[tuple[float, float]] = field(default_factory=list)
    ours: list[tuple[float, float]] = field(default_factory=list)

    def steps(self, epoch: int) -> int:
        return WARM

    def start(self, epoch: int) -> Cursor:
        return Cursor("ready")

    def run(self, epoch: int, cursor: Cursor) -> Iterator[LoadedStep]:
        for step in itertools.count():
            began = _now()
            bare_step(self.engine, self.batches)
            self.bare.append(_since(began))
            began = _now()
            yield LoadedStep(0, step, step, self.batches, Cursor("ready", 0, step + 1), wait=0.0, bytes_read=0, predicted=1.0)
            self.ours.append(_since(began))  # the loop has come back for more


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(began: tuple[float, float]) -> tuple[float, float]:
    clock, processor = _now()
    return clock - began[0], processor - began[1]


def measure(ranks: Ranks, steps: int, packs_per_step: int, items: int) -> dict[str, Any]:
    rates = {"vision_encoder": 1e-3, "projector": 1e-3, "llm": 1e-3}
    bounds = {"step": {"packs": packs_per_step}, "seq_tokens": 1024, "pack_patches": 1024, "steps": WARM + steps + 1}
    stage = StageConfig.model_validate({"profile": "tiny", "compress": False, "train": rates, **bounds})
    config = TrainingConfig(name="benchmark", stages={1: stage}, checkpoint_steps=10**9)
    shape = TinyShape(hidden=128, llm_layers=4, vision_hidden=128, vision_layers=4)
    engine = build_engine(build_tiny(VOCABULARY, shape, IDS, 0), stage, config, ranks)
    feed = ReadyPacks(engine, [pack(seed, items) for seed in range(packs_per_step)])
    with tempfile.TemporaryDirectory() as folder, StopRequest().listening() as stop:
        metrics = Metrics(Path(folder), active=True)
        run_steps(engine, 1, config, feed, Path(folder), metrics, Place(0, WARM + steps + 1, 0, feed.start(0)), stop)
        metrics.close()
    bare, ours = np.array(feed.bare[WARM:-1]), np.array(feed.ours[WARM:])  # after the last step none asks for more, so it has no end
    clock, processor = np.median(ours / bare, axis=0).tolist()
    (bare_ms, bare_cpu), (ours_ms, ours_cpu) = (1000 * np.median(taken, axis=0) for taken in (bare, ours))
    return {
        "steps": len(ours),
        "packs_per_step": packs_per_step,
        "tokens": sum(b.counts.tokens for b in feed.batches),
        "ours_ms": round(ours_ms, 2),
        "bare_ms": round(bare_ms, 2),
        "ours_cpu_ms": round(ours_cpu, 2),
        "bare_cpu_ms": round(bare_cpu, 2),
        "ratio": round(clock, 4),
        "ratio_of_cpu_seconds": round(processor, 4),
        "ratio_of_medians": round(ours_ms / bare_ms, 4),
        "goal": GOAL,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def verdict(ratio: float, step_ms: float) -> str:
    if step_ms < SHORTEST:
        return f"no verdict: a step of {step_ms:.0f} ms is shorter than {SHORTEST:.0f}"
    return "reached" if ratio <= GOAL else "MISSED"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=48)
    arguments.add_argument("--packs", type=int, default=2)
    arguments.add_argument("--items", type=int, default=4, help="pictures with a question in a pack: makes the step longer or shorter")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    logging.getLogger("fovea").addHandler(logging.StreamHandler())  # as `fovea train` does: lines are made and written
    logging.getLogger("fovea").setLevel(logging.INFO)
    torch.set_num_threads(given.threads)
    result = measure(start_ranks(), given.steps, given.packs, given.items)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))
    print(f"{'':12}{'ours':>10}{'bare':>10}{'ratio':>9}   goal {GOAL}")
    for name, ratio, kind in (("clock", "ratio", "_ms"), ("processor", "ratio_of_cpu_seconds", "_cpu_ms")):
        ours, bare = result[f"ours{kind}"], result[f"bare{kind}"]
        print(f"{name:12}{ours:>7.1f} ms{bare:>7.1f} ms{result[ratio]:>9.3f}   {verdict(result[ratio], bare)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
