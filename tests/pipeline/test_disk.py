"""A disk that takes no shards ends the run with a message; the same task goes on when it does."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from pipeline import dataset
from pipeline.shardwork import ShardTask, try_one
from shards.errors import InfrastructureError
from shards.manifest import ShardInfo
from tests.pipeline.small import pictures, recipe, run


class Stopped(Exception):
    pass


@pytest.mark.usefixtures("one_ray")
def test_a_disk_that_takes_no_shards_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "pics", 3)
    planned: list[ShardTask] = []

    def instead(tasks: list[ShardTask], progress: Any) -> list[ShardInfo]:
        planned.extend(tasks)
        raise Stopped

    monkeypatch.setattr(dataset, "_write", instead)
    with pytest.raises(Stopped):
        run(recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["probe"]), tmp_path / "run")
    (task,) = planned

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # no file grows beyond it: an OSError in the midst of the tar
    try:
        refused = try_one(task)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(refused, InfrastructureError)
    assert "writing shard train-000000 to " in str(refused)
    assert "free space there or mend the disk, then run again" in str(refused)
    assert not [p for p in (tmp_path / "run/dataset").rglob("*") if p.is_file()]

    info = try_one(task)
    assert isinstance(info, ShardInfo)
    assert info.samples == 3
