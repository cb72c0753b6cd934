"""`probe` over JPEGs by the engine, beside a bare process pool that calls the same function on the same files and writes the same Parquet.

    python -m benchmarks.engine [--images 20000] [--data ../shared/data]

Both use two processes and are measured between their first answer and their last, so that start-up is no part of the rate; start-up is
printed apart. Pictures are crops of the development data's photographs, encoded at quality 88, about 40 KB each.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

from curation.probe import STEP
from curation.rows import row_schema
from curation.view import MediaView, Room
from pipeline.curate import curate
from pipeline.recipe import load_recipe
from shards.media import Limits
from shards.sources import SourceSpec, list_containers, scan

PROCESSES = 2
BATCH = 1000  # as large as the engine's tasks here: a folder of a thousand pictures is a unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="engine-bench-"))
    try:
        make_pictures(folder / "pictures", args.data, args.images)
        found = {"images": args.images}
        for turn in (1, 2):  # alternating, so that a machine that slows down slows both
            found[f"pool_{turn}"] = pool(folder)
            found[f"engine_{turn}"] = engine(folder, turn)
        rates = {who: max(found[f"{who}_{turn}"]["images_per_second"] for turn in (1, 2)) for who in ("pool", "engine")}
        found["ratio"] = round(rates["engine"] / rates["pool"], 3)
        print(json.dumps(found, indent=1))
    finally:
        shutil.rmtree(folder)


def make_pictures(folder: Path, data: Path, count: int) -> None:
    sources = [Image.open(p).convert("RGB") for p in sorted((data / "caption" / "coco").glob("*.jpg"))]
    if not sources:
        raise SystemExit(f"no photographs under {data}/caption/coco: give --data")
    for i in range(count):
        image = sources[i % len(sources)]
        shift = (i // len(sources)) % 40
        place = folder / f"{i // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        image.crop((shift, shift, max(image.width - 40 + shift, 64), max(image.height - 40 + shift, 64))).save(buffer, "JPEG", quality=70)
        (place / f"{i:06d}.jpg").write_bytes(buffer.getvalue())


def pool(folder: Path) -> dict[str, float]:
    """What anybody would write: a process pool over batches of files, a Parquet file at the end."""
    samples = [s for c in list_containers(spec(folder)) for s in scan(spec(folder), c)]
    batches = [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]
    at = time.monotonic()
    times: list[tuple[float, int]] = []
    rows: list[pa.Table] = []
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as workers:
        for table in workers.imap_unordered(probe_batch, batches):
            rows.append(table)
            times.append((time.monotonic(), table.num_rows))
    pq.write_table(pa.concat_tables(rows), folder / "pool.parquet", compression="zstd")
    return rate(at, times, time.monotonic())


def probe_batch(samples: list) -> pa.Table:
    assert STEP.open is not None
    function = STEP.open(STEP.what(), STEP.how())
    schema = row_schema(STEP, STEP.what(), wide=False)
    lines = []
    for start in range(0, len(samples), STEP.how().batch):
        part = samples[start : start + STEP.how().batch]
        room = Room(Limits())
        views = [MediaView(room, i, s, 0) for i, s in enumerate(part)]
        for sample, view, row in zip(part, views, function(views), strict=True):
            lines.append({"uid": sample.uid, "fp": view.sha256()[:16], "error": None, **row})
    return pa.Table.from_pylist(lines, schema)


def engine(folder: Path, turn: int) -> dict[str, float]:
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(f'name: bench\nsources: [{{name: pictures, format: folder, path: "{folder}/pictures"}}]\nsteps: [probe]\n')
    times: list[tuple[float, int]] = []
    done = 0

    def progress(what: str, now: int, total: int) -> None:
        nonlocal done
        if what == "probe" and now > done:
            times.append((time.monotonic(), now - done))
            done = now

    recipe = load_recipe(recipe_file, until="probe")
    at = time.monotonic()
    outcome = curate(recipe, str(folder / f"run{turn}"), progress=progress)
    end = time.monotonic()
    found = rate(at, times, end)
    found["ray_start_seconds"] = round(outcome.seconds["ray"], 1)
    found["whole_run_seconds"] = round(end - at, 1)
    ray.shutdown()
    assert outcome.calls == {"probe": done}, outcome.calls
    return found


def rate(start: float, times: list[tuple[float, int]], end: float) -> dict[str, float]:
    """Images a second as the slope of images done over time, by least squares: answers that come in pairs and answers that take turns
    give the same. Until the first answer it is start-up."""
    first, last = times[0][0], times[-1][0]
    seconds, done = np.array([t for t, _ in times]), np.cumsum([n for _, n in times])
    return {
        "images_per_second": round(float(np.polyfit(seconds - first, done, 1)[0]), 1),
        "first_answer_seconds": round(first - start, 1),
        "after_last_answer_seconds": round(end - last, 1),
    }


def spec(folder: Path) -> SourceSpec:
    return SourceSpec("pictures", "folder", str(folder / "pictures"))


if __name__ == "__main__":
    main()
