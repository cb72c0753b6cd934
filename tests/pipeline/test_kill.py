"""kill -9 of a run at six moments; the same command then ends with the same bytes as a run left in peace."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from shards.verify import verify
from tests.pipeline.small import ask, environment, files_of, picture, pictures, recipe, talk, texts, verdicts
from tests.processes import alive_after, command_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over 60 files; every fate is among them."""
    folder = tmp_path_factory.mktemp("killed")
    for part in range(3):
        pictures(folder / f"pics/{part}", 8, first=8 * part, step=1)
    for i in range(4):
        picture(folder / f"pics/copies/{i}.jpg", i, 110, 70, quality=60)
    talk(folder / "pics/copies/0.json")
    (folder / "pics/copies/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    texts(folder / "texts.jsonl", 6)
    steps = ["probe", {"keep": "width >= 98"}, {"compose": {"tasks": ["short_caption", "vqa", "text"]}}, "deduplicate"]
    sources = {"pics": folder / "pics", "texts": folder / "texts.jsonl"}
    return recipe(folder / "r.yaml", sources, steps, split={"val": 0.2}, write={"max_samples": 5})


def start(corpus: Path, run: Path, address: str | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.cli", "curate", str(corpus), "--run", str(run), "--json"]
    command += ["--address", address] if address else []
    with (run.parent / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=corpus.parent, env=environment(), stdout=log, stderr=log, start_new_session=True)


def to_the_end(corpus: Path, run: Path, address: str | None) -> None:
    process = start(corpus, run, address)
    assert process.wait(timeout=120) == 0, (run.parent / f"{run.name}.log").read_text()


def after(seconds: float) -> Callable[[Path], bool]:
    began = time.monotonic()
    return lambda run: time.monotonic() - began >= seconds


def when(pattern: str, more: int, seconds: float = 0.0) -> Callable[[Path], bool]:
    """So many files of this pattern are there more than at first sight, and `seconds` have passed since."""
    at_first: list[int] = []
    seen: list[float] = []

    def reached(run: Path) -> bool:
        count = len(list(run.glob(pattern)))
        at_first[:] = at_first or [count]
        if not seen and count >= at_first[0] + more:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] >= seconds

    return reached


def kill_at(process: subprocess.Popen[bytes], run: Path, moment: Callable[[Path], bool]) -> bool:
    """Whether the process was still there to be killed."""
    while process.poll() is None:
        if moment(run):
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(0.002)
    return False


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bytes(one_ray: None, corpus: Path, tmp_path: Path) -> None:
    rng = random.Random(6)
    address = ray.get_runtime_context().gcs_address
    to_the_end(corpus, tmp_path / "peace", address)
    expected, fates = files_of(tmp_path / "peace/dataset"), verdicts(tmp_path / "peace")
    assert sum(name.endswith(".tar") for name in expected) >= 6
    assert {fate[0] for fate in fates.values()} == {"kept", "rejected", "errored"}
    moments: list[Callable[[Path], bool]] = [
        when("lease/*.json", 1, rng.uniform(0, 1)),
        when("tables/step-*/*.parquet", 1),
        when("log/*.json", 1, rng.uniform(0, 0.1)),
        when("log/*.json", 1, rng.uniform(0.5, 1)),
        when("dataset/v-*/*.tar", 1),
        when("dataset/v-*/manifest.json", 1),
    ]
    run, killed = tmp_path / "run", 0
    for moment in moments:  # one run, killed again and again: what a kill leaves is what the next one finds
        killed += kill_at(start(corpus, run, address), run, moment)
    to_the_end(corpus, run, address)
    assert files_of(run / "dataset") == expected
    assert verdicts(run) == fates
    assert ask(run, "select count(*), count(distinct uid) from samples") == [(len(fates), len(fates))]
    assert verify(str(run / "dataset")) == []
    assert killed >= 4  # a fast machine may be at the end before the last moments


@pytest.mark.slow
def test_a_killed_run_takes_its_ray_along(one_ray: None, corpus: Path, tmp_path: Path) -> None:
    """Without a cluster of its own, a killed command leaves no process behind, and no lease that holds."""
    process = start(corpus, tmp_path / "run", None)
    family: set[psutil.Process] = set()

    def with_its_actors(run: Path) -> bool:
        family.update(psutil.Process(process.pid).children(recursive=True))
        return any("curation.child" in command_of(p) for p in family)

    assert kill_at(process, tmp_path / "run", with_its_actors)
    assert alive_after(30, family) == []
    to_the_end(corpus, tmp_path / "run", ray.get_runtime_context().gcs_address)
    assert verify(str(tmp_path / "run/dataset")) == []
