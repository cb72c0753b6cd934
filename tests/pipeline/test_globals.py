"""What a global step is shown out of the ledger, and what is kept of it."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.vectors import Vectors, write_vectors
from pipeline.ledger import open_ledger
from pipeline.plan import make_plan
from pipeline.ray_workers import RayWorkers, full_disk
from pipeline.recipe import load_recipe
from shards.errors import InfrastructureError, LimitError
from tests.pipeline.small import ask, recipe, run

COLOURS = {"red": (200, 0, 0), "green": (0, 100, 0), "blue": (0, 0, 50), "black": (0, 0, 0), "grey": (90, 90, 90)}


def steps(**what: Any) -> list[Any]:
    return ["probe", "tests.steps.colours", {"tests.steps.population": {"as": "told", **what}}]


@pytest.fixture
def corpus(tmp_path: Path, one_ray: None) -> Path:
    for i, (name, colour) in enumerate(COLOURS.items()):
        (tmp_path / "pics").mkdir(exist_ok=True)
        Image.new("RGB", (40 + i, 40), colour).save(tmp_path / "pics" / f"{name}.png")
    pair = {"id": "pair", "files": ["pics/red.png", "pics/blue.png"], "caption": "two"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics", "pairs": tmp_path / "pairs.jsonl"}, steps())
    return tmp_path


def told(folder: Path) -> dict[str, tuple[Any, ...]]:
    return {key: rest for key, *rest in ask(folder, "select key, told_vectors, told_width, told_searched, told_refused from samples")}


def test_vectors_of_every_medium_come_at_unit_length_and_zero_ones_are_refused(corpus: Path) -> None:
    run(corpus / "r.yaml", corpus / "run")
    third = 1 / np.sqrt(3)
    assert {k: v[0] for k, v in told(corpus / "run").items()} == {
        "red.png": "0:1.000,0.000,0.000",
        "green.png": "0:0.000,1.000,0.000",
        "blue.png": "0:0.000,0.000,1.000",
        "black.png": "",
        "grey.png": f"0:{third:.3f},{third:.3f},{third:.3f}",
        "pair": "0:1.000,0.000,0.000 1:0.000,0.000,1.000",
    }
    assert {v[3] for v in told(corpus / "run").values()} == {1}
    assert not list((corpus / "run" / "work").glob("global-*"))


def test_pairs_are_kept_for_the_newest_populations(corpus: Path) -> None:
    run(corpus / "r.yaml", corpus / "run")
    sources = {"pics": corpus / "pics", "pairs": corpus / "pairs.jsonl"}
    recipe(corpus / "other.yaml", sources, steps(add=1))
    plan = make_plan(load_recipe(corpus / "other.yaml"), str(corpus / "run"))
    assert [s.calls for s in plan.steps] == [0, 0, 1]
    run(corpus / "other.yaml", corpus / "run")
    assert {v[2] for v in told(corpus / "run").values()} == {False}
    assert told(corpus / "run")["red.png"][1] == 41
    for shade in range(4):
        Image.new("RGB", (64, 64), (10, 10, 10 + shade)).save(corpus / "pics" / "green.png")
        run(corpus / "other.yaml", corpus / "run")
        assert {v[2] for v in told(corpus / "run").values()} == {True}
    assert len([t for t in open_ledger(str(corpus / "run")).log.state.tables() if t.startswith("pairs-")]) == 3


def test_a_plan_leaves_a_great_search_to_the_run(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(corpus / "r.yaml", corpus / "run", until="tests.steps.colours")
    small = make_plan(load_recipe(corpus / "r.yaml"), str(corpus / "run"))
    assert small.counts["pending"] == 0
    monkeypatch.setattr("pipeline.plan.PLANNED_ROWS", 3)
    great = make_plan(load_recipe(corpus / "r.yaml"), str(corpus / "run"))
    assert great.counts["pending"] == 6
    assert [s.calls for s in great.steps] == [0, 0, 1]


def test_a_plan_lays_no_vectors_of_very_many(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(corpus / "r.yaml", corpus / "run", until="tests.steps.colours")
    laid: list[int] = []

    def counted(*args: Any, **more: Any) -> Vectors:
        laid.append(args[1])
        return write_vectors(*args, **more)

    monkeypatch.setattr("pipeline.globals.write_vectors", counted)
    monkeypatch.setattr("pipeline.plan.PLANNED_ROWS", 3)
    assert make_plan(load_recipe(corpus / "r.yaml"), str(corpus / "run")).counts["pending"] == 6
    assert laid == [6]
    monkeypatch.setattr("pipeline.globals.PLANNED_VECTORS", 5)
    assert make_plan(load_recipe(corpus / "r.yaml"), str(corpus / "run")).counts["pending"] == 6
    assert laid == [6]


def test_an_error_of_a_task_ends_the_run_as_itself_and_the_next_goes_on(corpus: Path) -> None:
    recipe(corpus / "bad.yaml", {"pics": corpus / "pics", "pairs": corpus / "pairs.jsonl"}, steps(fail=True))
    with pytest.raises(LimitError, match="row 0 is too much"):
        run(corpus / "bad.yaml", corpus / "run")
    left = list((corpus / "run" / "work").glob("global-*"))
    assert len(left) == 1
    (left[0] / "of-a-killed-try").write_bytes(b"1")
    run(corpus / "r.yaml", corpus / "run")
    assert not list((corpus / "run" / "work").glob("global-*"))


def test_answers_come_in_the_order_of_the_tasks(one_ray: None) -> None:
    assert list(RayWorkers(2).map(pow, [(i, 2) for i in range(9)])) == [i * i for i in range(9)]
    assert list(RayWorkers(1, here=True).map(pow, [])) == []


def test_a_task_that_finds_no_room_is_told_to_people() -> None:
    with pytest.raises(InfrastructureError, match="free space"), full_disk():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), full_disk():
        raise FileNotFoundError(errno.ENOENT, "gone")
