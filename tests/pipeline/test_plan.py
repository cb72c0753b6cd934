"""What a plan can and cannot know. That its exact numbers are those of the run is held in test_curate.py."""

from __future__ import annotations

from pathlib import Path

from pipeline.plan import make_plan
from pipeline.recipe import load_recipe
from tests.pipeline.small import recipe

COUNTING = {"tests.steps.counting": {"as": "counting"}}


def test_a_plan_of_a_run_that_is_not_there_counts_media_and_makes_nothing(rich_run: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(rich_run / "recipe.yaml"), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert (plan.changes.new, plan.changes.total) == (11, 11)
    steps = {s.name: (s.calls, s.exact) for s in plan.steps}
    assert steps["probe"] == (9, True)  # 7 single pictures and a pair: media, not samples
    assert steps["deduplicate"] == (1, False)
    assert steps["compose"] == (10, False)  # every sample that its source could read may come so far
    assert plan.counts["inputs"] == 11
    assert plan.counts["errored"] == 1


def test_bounds_hold_behind_two_global_steps(rich_run: Path, tmp_path: Path) -> None:
    """Samples that wait in the first segment count in the third."""
    steps = ["probe", {"deduplicate": {"as": "one"}}, {"deduplicate": {"as": "two", "phash_radius": 0}}, COUNTING]
    path = recipe(tmp_path / "r.yaml", {"pics": rich_run / "pics", "pairs": rich_run / "pairs.jsonl"}, steps)
    plan = make_plan(load_recipe(path), str(tmp_path / "new"))
    assert {s.name: s.calls for s in plan.steps}["counting"] == 9
    assert not next(s for s in plan.steps if s.name == "counting").exact


def test_flips_are_told(rich_run: Path, tmp_path: Path) -> None:
    text = (rich_run / "recipe.yaml").read_text()
    (tmp_path / "tight.yaml").write_text(text.replace("width >= 100", "width >= 108"))
    before = {p: p.stat().st_mtime_ns for p in (rich_run / "run").rglob("*") if p.is_file()}
    plan = make_plan(load_recipe(tmp_path / "tight.yaml"), str(rich_run / "run"))
    assert plan.flips[("kept", "rejected")] == 2
    assert {s.name: s.calls for s in plan.steps} == {"probe": 0, "deduplicate": 1, "compose": 0}
    assert all(s.exact for s in plan.steps)
    assert {p: p.stat().st_mtime_ns for p in (rich_run / "run").rglob("*") if p.is_file()} == before
