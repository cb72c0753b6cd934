"""The ledger at 10 M samples: open, explain, all verdicts, memory, number of files.

    python -m benchmarks.ledger [--samples 10000000]

Synthetic rows of a recipe with probe, a rule, deduplicate and compose, written as commits of 100,000 samples and compacted. Memory is the
peak resident set of a fresh process for each measurement; DuckDB is told to stay below a quarter of the machine's memory (at most 8 GB).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from curation.rows import row_schema
from pipeline.ledger import CONTENTS, LISTING, RECORDS, open_ledger
from pipeline.log import Cost
from pipeline.recipe import StepOp, load_recipe
from pipeline.segments import global_schema, global_table, step_table
from pipeline.verdicts import Judge

COMMIT = 100_000
RECIPE = """
name: synthetic
sources: [{{name: web, format: folder, path: "{folder}"}}]
steps:
  - probe
  - keep: "aspect_ratio between 0.33 and 3.0 and least(width, height) >= 200"
  - deduplicate: {{phash_radius: 4, keep_best: "width*height desc"}}
  - compose
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--keep", type=Path, help="use (and leave) this folder instead of a temporary one")
    parser.add_argument("--measure", choices=["open", "explain", "verdicts"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.keep)))
        return
    folder = args.keep or Path(tempfile.mkdtemp(prefix="ledger-bench-"))
    try:
        if not (folder / "run" / "run.json").is_file():
            build(folder, args.samples)
        found = {"samples": args.samples}
        for what in ("open", "explain", "verdicts"):
            command = [sys.executable, "-m", "benchmarks.ledger", "--measure", what, "--keep", str(folder)]
            found |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(json.dumps(found, indent=1))
    finally:
        if args.keep is None:
            shutil.rmtree(folder)


def build(folder: Path, samples: int) -> None:
    """Write the run: commits of 100,000 samples, the global result, then compaction."""
    (folder / "empty").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder / "empty"))
    recipe = load_recipe(folder / "recipe.yaml")
    probe, compose = (next(op for op in recipe.ops if isinstance(op, StepOp) and op.op == name) for name in ("probe", "compose"))
    dedup = next(op for op in recipe.ops if isinstance(op, StepOp) and op.step.shape == "global")
    ledger = open_ledger(str(folder / "run"), write=True)
    ledger.store.put_replace("recipe.yaml", recipe.text)
    at = time.monotonic()
    for start in range(0, samples, COMMIT):
        size = min(COMMIT, samples - start)
        tables = synthetic(start, size)
        tables[step_table(probe)] = probe_rows(start, size, row_schema(probe.step, probe.what, wide=False))
        tables[step_table(compose)] = compose_rows(start, size, row_schema(compose.step, compose.what, wide=False))
        ledger.commit("steps", tables, costs=[Cost(probe.digest, probe.name, calls=size, rows=size, seconds=1.0)])
    connection = ledger.connect()
    judge = Judge(connection, ledger, recipe)
    judge.judge(judge.segments[0])
    judge.judge(judge.segments[1])
    population = connection.sql(f"select uid from {judge.population_sql(1, dedup)}").to_arrow_table()
    duplicate = np.arange(population.num_rows) % 20 == 0
    rows = pa.table(
        {
            "uid": population["uid"],
            "of": pa.array(np.where(duplicate, population["uid"][0].as_py(), None).tolist(), pa.string()),
            "rung": pa.array(np.where(duplicate, "phash", None).tolist(), pa.string()),
            "similarity": pa.array(np.where(duplicate, 0.97, np.nan)),
            "group": population["uid"],
        }
    ).select(global_schema(dedup).names)
    table = global_table(dedup, judge.populations[dedup.digest])
    connection.close()
    ledger.commit("global", {table: rows.cast(global_schema(dedup))})
    commits = ledger.log.state.seq
    before = len(ledger.log.state.files)
    assert before <= sum(f.rows for f in ledger.log.state.files.values()) / 100_000 + commits
    ledger.compact()
    ledger.close()
    print(
        f"built in {time.monotonic() - at:.0f} s: {commits} commits, {before} files, {len(ledger.log.state.files)} after compaction",
        file=sys.stderr,
    )


def uids(start: int, size: int) -> np.ndarray:
    """32 hex digits, spread like a hash."""
    data = np.random.Generator(np.random.Philox(key=start)).bytes(16 * size).hex()
    return np.array([data[i : i + 32] for i in range(0, 32 * size, 32)])


def synthetic(start: int, size: int) -> dict[str, pa.Table]:
    ids = pa.array(uids(start, size))
    names = pa.array([f"{start + i:09d}.jpg" for i in range(size)])
    text = pa.array([f"{i:016x}" for i in range(start, start + size)])
    zeros = pa.array(np.zeros(size, np.int32))
    listing = pa.table(
        {
            "uid": ids,
            "source": pa.array(["web"] * size),
            "key": names,
            "unit": pa.array([f"d{start // 1024}#{i // 1024}" for i in range(size)]),
            "ordinal": pa.array(np.arange(size, dtype=np.int32) % 1024),
            "kind": pa.array(["image"] * size),
            "n_media": pa.array(np.ones(size, np.int16)),
            "media_kinds": pa.nulls(size, pa.list_(pa.string())),
            "media_bytes": pa.array(np.full(size, 40_000, np.int64)),
            "media_stamp": text,
            "text_fp": text,
            "damage": pa.nulls(size, pa.string()),
            "parent": pa.nulls(size, pa.string()),
            "caption_chars": pa.array(np.full(size, 40, np.int32)),
            "transcription_chars": zeros,
            "text_chars": zeros,
            "turns": zeros,
        },
        schema=LISTING,
    )
    contents = pa.table(
        {"uid": ids, "stamp": text, "content": text, "sha256": pa.array([[f"{i:064x}"] for i in range(start, start + size)])},
        schema=CONTENTS,
    )
    ref = {"kind": "image", "offset": -1, "length": 40_000, "cell": None}
    media = [[{**ref, "name": n, "path": f"/web/{n}", "stamp": s}] for n, s in zip(names.to_pylist(), text.to_pylist(), strict=True)]
    texts = ['{"caption":"a caption of forty characters, more or less"}'] * size
    records = pa.table({"uid": ids, "media": pa.array(media, RECORDS.field("media").type), "texts": texts}, schema=RECORDS)
    return {"listing": listing, "records": records, "contents": contents}


def probe_rows(start: int, size: int, schema: pa.Schema) -> pa.Table:
    rng = np.random.default_rng(start)
    width, height = rng.integers(100, 2000, size), rng.integers(100, 2000, size)
    fp = [f"{i:016x}" for i in range(start, start + size)]
    error = [None if i % 100 else "decode: broken" for i in range(size)]
    values = {
        "uid": pa.array(uids(start, size)),
        "fp": pa.array(fp),
        "error": pa.array(error, pa.string()),
        "width": pa.array(width, pa.int32()),
        "height": pa.array(height, pa.int32()),
        "aspect_ratio": pa.array(width / height),
        "format": pa.array(["JPEG"] * size),
        "mode": pa.array(["RGB"] * size),
        "bytes": pa.array(np.full(size, 40_000, np.int64)),
        "sha256": pa.array([f"{i:064x}" for i in range(start, start + size)]),
        "phash": pa.array(rng.integers(0, 2**63, size, dtype=np.uint64)),
    }
    return pa.table([values.get(f.name, pa.nulls(size, f.type)).cast(f.type) for f in schema], schema=schema)


def compose_rows(start: int, size: int, schema: pa.Schema) -> pa.Table:
    fp = [f"{i:016x}+{i:016x}" for i in range(start, start + size)]
    values = {"uid": pa.array(uids(start, size)), "fp": pa.array(fp), "n_items": pa.array(np.ones(size, np.int32))}
    return pa.table([values.get(f.name, pa.nulls(size, f.type)).cast(f.type) for f in schema], schema=schema)


def measure(what: str, folder: Path) -> dict[str, float | int]:
    from pipeline.curate import counts
    from pipeline.explain import explain
    from pipeline.recipe import load_run_recipe

    at = time.monotonic()
    ledger = open_ledger(str(folder / "run"))
    recipe = load_run_recipe(ledger.store)
    opened = time.monotonic() - at
    if what == "open":
        state = ledger.log.state
        rows = sum(f.rows for f in state.files.values())
        return {
            "open_seconds": round(opened, 2),
            "files": len(state.files),
            "rows": rows,
            "commits_since_compaction": state.commits_since_compaction,
        }
    if what == "explain":
        wanted = [uids(0, 10)[3], uids(COMMIT, 10)[7]]
        seconds = []
        for uid in wanted:
            at = time.monotonic()
            explain(ledger, recipe, str(uid))
            seconds.append(time.monotonic() - at)
        return {"explain_seconds": round(max(seconds), 2), "explain_peak_mb": peak()}
    connection = ledger.connect()
    at = time.monotonic()
    judge = Judge(connection, ledger, recipe)
    judge.run()
    found = counts(connection, judge)
    return {"verdicts_seconds": round(time.monotonic() - at, 1), "verdicts_peak_mb": peak(), **found}


def peak() -> int:
    """Peak resident set of this process, MB (ru_maxrss would be inherited from the parent)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


if __name__ == "__main__":
    main()
