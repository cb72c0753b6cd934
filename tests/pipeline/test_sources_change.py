"""Sources that change between two runs in ways that leave most of their bytes alone: nobody vanishes, nothing old stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from shards.reader import Dataset
from shards.sample import uid_of
from tests.pipeline.small import ask, picture, pictures, recipe, run


def records(path: Path, *ids: str) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": ids, "text": [f"the text of {i}" for i in ids], "other": [f"else {i}" for i in ids]}), path)


def parquet(path: Path, source: Path, **more: Any) -> Path:
    sources = [{"name": "rows", "format": "parquet", "path": str(source), **more}]
    path.write_text(yaml.safe_dump({"name": "small", "sources": sources, "steps": [{"compose": {"tasks": ["text"]}}]}))
    return path


def keys(folder: Path) -> list[str]:
    return [str(key) for (key,) in ask(folder, "select key from samples order by key")]


@pytest.mark.usefixtures("one_ray")
def test_a_file_that_is_renamed_keeps_its_records(tmp_path: Path) -> None:
    records(tmp_path / "rows/a.parquet", "x", "y")
    path = parquet(tmp_path / "r.yaml", tmp_path / "rows")
    run(path, tmp_path / "run")
    (tmp_path / "rows/a.parquet").rename(tmp_path / "rows/b.parquet")
    for _ in range(2):  # the second look finds the file unchanged
        outcome = run(path, tmp_path / "run")
        assert outcome.calls == {}
        assert outcome.counts["kept"] == 2
    assert ask(tmp_path / "run", "select distinct unit from samples") == [("b.parquet#0",)]


@pytest.mark.usefixtures("one_ray")
def test_a_record_in_two_files_stays_while_one_of_them_has_it(tmp_path: Path) -> None:
    records(tmp_path / "rows/a.parquet", "x", "y")
    path = parquet(tmp_path / "r.yaml", tmp_path / "rows")
    run(path, tmp_path / "run")
    for ids in (("x", "z"), ("z",), ("z",)):
        records(tmp_path / "rows/b.parquet", *ids)
        run(path, tmp_path / "run")
        assert keys(tmp_path / "run") == ["x", "y", "z"]


@pytest.mark.usefixtures("one_ray")
def test_another_reading_of_the_same_files_is_seen(tmp_path: Path) -> None:
    records(tmp_path / "rows/a.parquet", "x", "y")
    path, folder = tmp_path / "r.yaml", tmp_path / "run"
    run(parquet(path, tmp_path / "rows"), folder)
    run(parquet(path, tmp_path / "rows", where="id = 'x'"), folder)
    assert keys(folder) == ["x"]
    run(parquet(path, tmp_path / "rows", fields={"text": "other"}), folder)
    opened = Dataset.open(str(folder / "dataset"))
    assert sorted(opened.record(raw)["texts"]["text"] for raw in opened.samples()) == ["else x", "else y"]


@pytest.mark.usefixtures("one_ray")
def test_a_changed_picture_that_no_step_reads_is_written_anew(tmp_path: Path) -> None:
    pics, folder = tmp_path / "pics", tmp_path / "run"
    pictures(pics, 2)
    path = recipe(tmp_path / "r.yaml", {"pics": pics}, [{"keep": "caption_chars > 0"}])
    first = run(path, folder).dataset
    again = run(path, folder).dataset
    assert first is not None
    assert again is not None
    assert again.version == first.version
    picture(pics / "000.jpg", 77, 200, 100)
    run(path, folder)
    opened = Dataset.open(str(folder / "dataset"))
    (raw,) = opened.read([uid_of("pics", "000.jpg")])
    assert raw.media == [(pics / "000.jpg").read_bytes()]


@pytest.mark.usefixtures("one_ray")
def test_a_run_that_keeps_nobody_can_be_asked(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 2)
    run(recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["probe", {"keep": "width > 5000"}]), tmp_path / "run")
    assert ask(tmp_path / "run", "select count(*), (select count(*) from items), (select count(*) from shards) from samples") == [(2, 0, 0)]


@pytest.mark.usefixtures("one_ray")
def test_a_source_that_lost_all_its_samples_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures(tmp_path / "pics", 2)
    pictures(tmp_path / "others", 2, first=5)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics", "others": tmp_path / "others"}, [{"keep": "caption_chars > 0"}])
    run(path, tmp_path / "run")
    for file in (tmp_path / "pics").iterdir():
        file.unlink()
    outcome = run(path, tmp_path / "run")
    assert outcome.counts["kept"] == 2
    assert "source pics gives no samples any more: the 2 it gave leave this run" in caplog.text
