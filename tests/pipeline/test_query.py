"""The views of `query`."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from pipeline.cli import app
from shards.reader import Dataset
from tests.pipeline.small import ask, pictures, recipe, run


def test_samples_has_every_sample_with_its_verdict_and_scores(rich_run: Path) -> None:
    folder = rich_run / "run"
    verdicts = dict(ask(folder, "select verdict, count(*) from samples group by 1"))
    assert verdicts == {"kept": 7, "rejected": 2, "errored": 2}
    assert ask(folder, "select count(*), count(distinct uid) from samples") == [(11, 11)]
    first = [name for name, *_ in ask(folder, "describe samples")]
    assert first[:6] == ["uid", "source", "key", "verdict", "step", "reason"]
    assert {"kind", "n_media", "width", "phash", "duplicate_of", "n_items", "tasks"} <= set(first)
    assert "items" not in first  # wide
    assert ask(folder, "select width from samples where key = 'pair'") == [(108,)]  # of several media the first's
    assert ask(folder, "select width from samples where kind = 'text' and verdict = 'kept'") == [(None,), (None,)]


def test_items_and_shards_are_those_of_the_dataset(rich_run: Path) -> None:
    folder = rich_run / "run"
    dataset = Dataset.open(str(folder / "dataset"))
    index = [(r["uid"], r["task"], r["n"]) for r in dataset.index().to_pylist() if r["task"]]
    assert sorted(ask(folder, "select uid, task, n from items")) == sorted(index)
    assert ask(folder, "select sum(samples), sum(items) from shards") == [(7, len(index))]
    assert ask(folder, "select count(*) from items i join samples s using (uid) where s.verdict <> 'kept'") == [(0,)]


def test_costs_add_up(rich_run: Path) -> None:
    costs = {step: rest for step, *rest in ask(rich_run / "run", "select step, calls, rows, errors, bytes_read from costs")}
    assert costs["probe"][:3] == [9, 8, 1]  # a pair of pictures is two calls and one row
    assert costs["probe"][3] > 1000
    assert costs["compose"][1:3] == [7, 0]
    assert costs["deduplicate"][0] == 1


def test_a_run_without_a_dataset_has_empty_views(one_ray: None, tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 2)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"tests.steps.counting": {"as": "counting"}}, "probe"])
    run(path, tmp_path / "run", until="counting")
    assert ask(tmp_path / "run", "select count(*) from items") == [(0,)]
    assert ask(tmp_path / "run", "select count(*), sum(samples) from shards") == [(0, None)]
    assert ask(tmp_path / "run", "select count(*) from samples where counting_size > 0") == [(2,)]


def test_query_prints_tables_lines_and_reasons(rich_run: Path) -> None:
    folder = str(rich_run / "run")
    table = CliRunner().invoke(app, ["query", folder, "select uid, caption_chars, reason from samples order by key"])
    assert table.exit_code == 0
    for (uid,) in ask(rich_run / "run", "select uid from samples"):
        assert uid in table.output  # whole, so that it can be copied
    lines = CliRunner().invoke(app, ["query", folder, "select key, tasks, width from samples order by key", "--json"])
    rows = [json.loads(line) for line in lines.output.splitlines()]
    assert len(rows) == 11
    assert {"key": "002.jpg", "tasks": ["short_caption"], "width": 104} in rows
    wrong = CliRunner().invoke(app, ["query", folder, "select widht from samples"])
    assert wrong.exit_code == 1
    assert "widht" in wrong.output + wrong.stderr
