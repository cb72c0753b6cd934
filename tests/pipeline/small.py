"""Small corpora of real files, recipes over them, and `fovea` as its users start it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pipeline.curate import Outcome, curate
from pipeline.ledger import open_ledger
from pipeline.query import connect
from pipeline.recipe import load_recipe, load_run_recipe

ROOT = Path(__file__).resolve().parents[2]


def picture(path: Path, seed: int, width: int = 96, height: int = 72, quality: int = 90) -> None:
    """A JPEG of coarse noise: pictures of two seeds look nothing alike, those of one seed do at any size and quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=quality)


def pictures(folder: Path, count: int, first: int = 0, step: int = 4) -> None:
    """`count` captioned pictures 000.jpg …; picture i is 96 + i·step wide."""
    for i in range(first, first + count):
        picture(folder / f"{i:03d}.jpg", i, width=96 + i * step)
        (folder / f"{i:03d}.txt").write_text(f"picture number {i}")


def talk(path: Path, answer: str = "a pattern") -> None:
    """The conversation beside a picture."""
    path.write_text(json.dumps({"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]}))


def texts(path: Path, count: int) -> None:
    """A manifest of text-only records."""
    lines = [
        {"id": f"t{i}", "conversations": [{"from": "human", "value": f"{i} + 1?"}, {"from": "gpt", "value": str(i + 1)}]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def recipe(path: Path, sources: Mapping[str, Path], steps: Sequence[Any], **more: Any) -> Path:
    """Writes a recipe; a source whose path is a file is a manifest, else a folder."""
    listed = [{"name": n, "format": "manifest" if p.is_file() else "folder", "path": str(p)} for n, p in sources.items()]
    path.write_text(yaml.safe_dump({"name": "small", "sources": listed, "steps": list(steps), **more}, sort_keys=False))
    return path


def run(path: Path, folder: Path, **options: Any) -> Outcome:
    return curate(load_recipe(path, options.pop("until", None)), str(folder), **options)


def ask(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a query over a run's views."""
    ledger = open_ledger(str(folder))
    connection = connect(ledger, load_run_recipe(ledger.store))
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def verdicts(folder: Path) -> dict[str, tuple[str, str | None, str | None]]:
    """key → verdict, step, reason."""
    return {key: (verdict, step, why) for key, verdict, step, why in ask(folder, "select key, verdict, step, reason from samples")}


def seq(folder: Path) -> int:
    """The number of the newest commit."""
    return open_ledger(str(folder)).log.state.seq


def files_of(dataset: Path) -> dict[str, str]:
    """sha256 of every file of a dataset."""
    return {str(p.relative_to(dataset)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(dataset.rglob("*")) if p.is_file()}


def environment() -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_BACKEND_LOG_LEVEL"}  # this process's Ray set it
    return {**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def fovea(*arguments: str | Path, cwd: Path, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """`fovea …` as a user starts it, in a process of its own."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout)
