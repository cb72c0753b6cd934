"""`clip` over JPEGs beside open_clip's own loop, with a model of realistic size (ViT-B-32, random weights) on the CPU, one thread of torch.

    python -m benchmarks.clip_step [--images 192] [--turns 3] [--data ../shared/data]

Two bare loops, because "the bare model" may mean either:
    whole    opens each file with Pillow, preprocesses it as open_clip does, encodes batches of 32: what anybody would write, one thread.
    encode   encodes batches that lie in memory already decoded and preprocessed: the model and nothing else.
Two of ours, over the same files:
    step     the step's function over views, in this process.
    runner   as the engine runs it: the child process, bytes hashed, rows checked and stored in tables.
Ours decode on a second thread while the model has the first. All take turns; the best turn of each counts. Start-up and loading the model
are no part of any rate. CPU seconds for each picture are printed too (the runner's with its child's): they hold on a machine that others
use as well, and say what the step costs where no core is idle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; as Ray sets it for an actor of one CPU

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.engine import make_pictures
from curation.clip import STEP, ClipHow, What
from curation.encoders import open_clip_model, parse_weights
from curation.group import GroupRunner
from curation.view import MediaView
from shards.media import Limits
from tests.curation.units import call, picture_unit
from tests.curation.views import media_view

ARCHITECTURE, WEIGHTS = "ViT-B-32", "random:0"
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="clip-bench-"))
    try:
        make_pictures(folder, args.data, args.images)
        print(json.dumps(measured(sorted(folder.rglob("*.jpg")), args.turns), indent=1))
    finally:
        shutil.rmtree(folder)


def measured(places: list[Path], turns: int) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, _ = open_clip_model(ARCHITECTURE, parse_weights(WEIGHTS))
    module = module.eval()
    transform = open_clip_transform(module)
    what, how = What(model=f"open_clip:{ARCHITECTURE}", weights=WEIGHTS), ClipHow(device="cpu")
    assert STEP.open is not None
    function = STEP.open(what, how)
    ready = [torch.stack([transform(Image.open(p).convert("RGB")) for p in part]) for part in parts(places, BATCH)]
    step_call = call("clip", {"model": what.model, "weights": what.weights}, {"device": "cpu"})
    with GroupRunner([step_call], Limits()) as runner:
        runner.run(picture_unit(places[:BATCH]))  # starts the child, loads the model
        ways: dict[str, Callable[[], Any]] = {
            "whole": lambda: [
                encode(module, torch.stack([transform(Image.open(p).convert("RGB")) for p in part])) for part in parts(places, BATCH)
            ],
            "encode": lambda: [encode(module, batch) for batch in ready],
            "step": lambda: [row for part in parts(places, how.batch) for row in function(views(part))],
            "runner": lambda: runner.run(picture_unit(places)),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                at, cpu_at = time.perf_counter(), cpu_seconds()
                way()
                rates[name].append(round(len(places) / (time.perf_counter() - at), 2))
                cpu[name].append(round((cpu_seconds() - cpu_at) / len(places), 4))
    check(np.concatenate([encode(module, batch) for batch in ready[:1]]), function(views(places[:BATCH])))
    best = {name: max(found) for name, found in rates.items()}
    ratios = {f"{ours}/{bare}": round(best[ours] / best[bare], 3) for ours in ("step", "runner") for bare in ("whole", "encode")}
    work = {f"{bare}/{ours}": round(min(cpu[bare]) / min(cpu[ours]), 3) for ours in ("step", "runner") for bare in ("whole", "encode")}
    return {
        "images": len(places),
        "images_per_second": rates,
        "ratio of the best turns": ratios,
        "cpu_seconds_a_picture": cpu,
        "ratio of the least CPU": work,
    }


def cpu_seconds() -> float:
    """Of this process and its children."""
    times = [process.cpu_times() for process in (psutil.Process(), *psutil.Process().children(recursive=True))]
    return sum(found.user + found.system for found in times)


def open_clip_transform(module: Any) -> Callable[[Image.Image], torch.Tensor]:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform: Callable[[Image.Image], torch.Tensor] = image_transform_v2(PreprocessCfg(**module.visual.preprocess_cfg), is_train=False)
    return transform


@torch.inference_mode()
def encode(module: Any, batch: torch.Tensor) -> np.ndarray:
    vectors: np.ndarray = module.encode_image(batch, normalize=True).numpy()
    return vectors


def views(places: list[Path]) -> list[MediaView]:
    return [media_view(place) for place in places]


def parts(places: list[Path], size: int) -> list[list[Path]]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def check(bare: np.ndarray, rows: Any) -> None:
    """Both did the same work."""
    np.testing.assert_allclose([row["embedding"] for row in rows], bare, atol=1e-4)


if __name__ == "__main__":
    main()
