"""`fovea evaluate` as its users meet it: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from shards.errors import ConfigError, InfrastructureError
from tests.training import asked


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return asked.finished_stage(tmp_path_factory.mktemp("evaluate"), 40)


def _fovea(made: SimpleNamespace, *words: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", str(made.final), made.dataset, "--packs", "4", "--max-new-tokens", "6", *map(str, words)])


def test_one_object_tells_all_to_machines(made: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "answers.jsonl"
    done = _fovea(made, "--json", "--out", out, "--gold", "short_caption=captions", "--batch", 3)
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["split"], found["version"], found["profile"], found["compress"]) == ("val", asked.VERSION, "tiny_video", True)
    assert found["loss"] > 0
    assert set(found["loss_by_source"]) == {"made", "other"}
    assert (found["items"], found["skipped"], found["asked"], found["unasked"], found["answers"]) == (8, 1, 7, 1, 8)
    assert [f["uid"] for f in found["failed"]] == [made.uid["broken"]]
    assert found["scores"]["vqa"]["choice"]["n"] == 1
    assert set(found["scores"]["short_caption"]) == {"bleu4", "rouge_l", "cider_d"}
    rows = [json.loads(row) for row in out.read_text().splitlines()]
    assert len(rows) == 9
    assert sum(row.get("cut", False) for row in rows) == found["cut"]
    assert {len(row["gold"]) for row in rows if row["task"] == "short_caption"} == {3}
    again = _fovea(made, "--json", "--gold", "short_caption=captions", "--batch", 3)
    assert json.loads(again.stdout) == found


def test_people_see_tables_and_what_is_not_in_them(made: SimpleNamespace) -> None:
    done = _fovea(made)
    assert done.exit_code == 0, done.output
    for told in (
        "source other",
        "task vqa",
        "all",
        "exact_match",
        "rouge_l",
        "8 answers to 7 items",
        "1 items ask nothing",
        "1 unreadable",
    ):
        assert told in done.stdout
    assert f"{made.uid['broken']}/vqa/0: decode: " in done.stdout


def test_metrics_may_be_named(made: SimpleNamespace) -> None:
    found = json.loads(_fovea(made, "--json", "--metrics", "anls,choice", "--items", 1).stdout)
    assert "loss" not in found
    assert {name for scores in found["scores"].values() for name in scores} <= {"anls", "choice", "named"}
    assert found["asked"] < 7


def test_what_is_wrong_is_said(made: SimpleNamespace, tmp_path: Path) -> None:
    for words, error, told in (
        (["--metrics", "cider"], ConfigError, "unknown metric 'cider'"),
        (["--profile", "tiny"], ConfigError, "says itself"),
        (["--gold", "vqu=captions"], ConfigError, "did you mean 'vqa'"),
    ):
        done = _fovea(made, *words)
        assert isinstance(done.exception, error)
        assert told in str(done.exception)
    missing = CliRunner().invoke(app, ["evaluate", str(tmp_path), made.dataset])
    assert isinstance(missing.exception, InfrastructureError)
    assert _fovea(made, "--items", 0).exit_code == 2
