"""Infrastructure that fails in the midst of a run: tried again, then ended with what is done kept and a message how to go on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import payload, work
from pipeline.pools import GroupActor, program_to_json
from pipeline.work import Task
from shards.errors import InfrastructureError
from shards.media import Limits
from tests.curation.units import call, row, unit
from tests.pipeline.small import ask, pictures, recipe, run, texts

PASSING = "tests.steps.passing"


@pytest.mark.usefixtures("one_ray")
def test_what_is_done_is_kept_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "TASK_ROWS", 64)
    texts(tmp_path / "t.jsonl", 100)
    lost = {PASSING: {"as": "passing", "folder": str(tmp_path), "times": 3, "after": 0, "batch": 8, "gpus": 0}}
    steps = [{"tests.steps.words": {"as": "words", "batch": 8}}, lost]
    path = recipe(tmp_path / "r.yaml", {"texts": tmp_path / "t.jsonl"}, steps)
    with pytest.raises(InfrastructureError) as caught:
        run(path, tmp_path / "run")
    told = str(caught.value)
    assert "step 'passing': ConnectionResetError: the endpoint hung up\ngiven up after 3 tries" in told
    ((words, done),) = ask(tmp_path / "run", "select count(words_n), count(passing_value) from samples")
    assert words > 0
    assert f"{done:,} of the 100 samples that waited for words + passing are done and kept, {100 - done:,} are pending" in told
    mended = run(path, tmp_path / "run")
    assert (mended.pending, mended.counts["kept"]) == (0, 100)
    assert mended.calls == {"words": 100 - words, "passing": 100 - done}


@pytest.mark.usefixtures("one_ray")
def test_the_other_workers_stop_and_what_they_did_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "TASK_ROWS", 8)
    for part in range(12):
        pictures(tmp_path / f"many/{part:02d}", 4, first=4 * part)
    lost = {PASSING: {"as": "passing", "folder": str(tmp_path), "times": 99, "after": 6000}}  # met from folder 06 on
    path = recipe(tmp_path / "r.yaml", {"many": tmp_path / "many"}, [lost])
    with pytest.raises(InfrastructureError, match="given up after 3 tries"):
        run(path, tmp_path / "run")
    ((total, done),) = ask(tmp_path / "run", "select count(*), count(passing_value) from samples")
    assert total == 48
    assert 0 < done <= 24
    assert not list((tmp_path / "run").rglob("*.stop"))


def test_a_worker_that_is_told_to_stop_starts_nothing_and_keeps_what_it_did(tmp_path: Path) -> None:
    """Two units in a task: the flag appears in the midst of the first, whose chunk is finished; the second is left."""
    step = call("tests.steps.flagging", {"flag": str(tmp_path / "stop")}, {"batch": 8})
    file = tmp_path / "work.parquet"
    with pq.ParquetWriter(file, unit([]).schema) as writer:
        for name in ("one", "two"):
            writer.write_table(unit([row(f"{name}{i}", i, unit=name) for i in range(40)]))
    actor = GroupActor(program_to_json((step,)), asdict(Limits()), 0, "", str(tmp_path / "stop"), str(tmp_path / "derived"))
    batch = {name: [value] for name, value in asdict(Task(str(file), 0, 2, 80)).items()}
    for done in (32, 0):  # the second task of this worker does not even begin
        header, tables = payload.decode(actor(batch)["payload"][0].as_py())
        assert ("failure" in header, sum(cost["calls"] for cost in header["costs"])) == (False, done)
        assert (tables[f"step-{step.digest}"].num_rows if tables else 0) == done
