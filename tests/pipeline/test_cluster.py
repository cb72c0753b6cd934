"""More machines than one: the same shards, also when one of them dies in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from pipeline import cluster
from shards.errors import FoveaError, InfrastructureError, SourceError, StepBug
from shards.verify import verify
from tests.pipeline.small import environment, files_of, fovea, pictures, recipe, run, verdicts


@pytest.mark.slow
def test_a_node_that_dies_changes_nothing(one_ray: None, tmp_path: Path) -> None:
    for part in range(12):
        pictures(tmp_path / f"pics/{part:02d}", 3, first=3 * part, step=1)
    (tmp_path / "pics/00/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    steps = ["probe", {"keep": "width >= 98"}, {"compose": {"tasks": ["short_caption"]}}]
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, steps, split={"val": 0.2}, write={"max_samples": 6})
    local = run(path, tmp_path / "local")
    command = [sys.executable, "-m", "tests.pipeline.three_nodes", str(path), str(tmp_path / "far")]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()  # what Ray has to say of a dead node does not mix with ours
    told = json.loads(line)
    assert told["alive"] == [3, 2]
    assert told["counts"] == local.counts
    assert files_of(tmp_path / "far/dataset") == files_of(tmp_path / "local/dataset")
    assert verdicts(tmp_path / "far") == verdicts(tmp_path / "local")
    assert verify(str(tmp_path / "far/dataset")) == []


def test_an_address_where_nothing_is_is_named(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 1)
    recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["probe"])
    done = fovea("curate", "r.yaml", "--run", "run", "--address", "127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("InfrastructureError: no Ray cluster at 127.0.0.1:1: Connection refused")


@pytest.mark.parametrize("error", [SourceError("gone"), StepBug("probe", ["a", "b"], "it broke"), InfrastructureError("the disk is full")])
def test_errors_of_tasks_are_ours_again(one_ray: None, error: FoveaError) -> None:
    @ray.remote
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        cluster.get(fail.remote())
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    if isinstance(error, StepBug):
        assert (caught.value.step, caught.value.uids) == ("probe", ["a", "b"])  # type: ignore[attr-defined]


def test_a_bug_in_a_task_keeps_its_traceback_and_a_dead_worker_is_infrastructure(one_ray: None) -> None:
    @ray.remote
    def typo() -> None:
        raise KeyError("a typo")

    with pytest.raises(KeyError):
        cluster.get(typo.remote())

    @ray.remote(max_retries=0)
    def die() -> None:
        import os

        os._exit(1)

    with pytest.raises(InfrastructureError, match="Ray: "):
        cluster.get(die.remote())
