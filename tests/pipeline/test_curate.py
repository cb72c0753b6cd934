"""The engine on real files: the funnel adds up, scores are paid for once, errors are rows and bugs are messages."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import committer, work
from pipeline.curate import Outcome, counts
from pipeline.ledger import Ledger, open_ledger
from pipeline.plan import RunPlan, make_plan
from pipeline.recipe import Recipe, load_recipe
from pipeline.verdicts import Judge
from tests.pipeline.small import ask, picture, pictures, recipe, run, seq, talk, texts, verdicts
from tests.steps import counting

pytestmark = pytest.mark.usefixtures("one_ray")


def called(outcome: Outcome) -> dict[str, int]:
    return {name.rsplit(".", 1)[-1]: calls for name, calls in outcome.calls.items() if calls}


def planned(plan: RunPlan) -> dict[str, int]:
    return {step.name.rsplit(".", 1)[-1]: step.calls for step in plan.steps if step.calls}


def as_planned(path: Path, folder: Path) -> Outcome:
    """Runs a recipe, and holds the plan's numbers against the calls it made."""
    plan = make_plan(load_recipe(path), str(folder))
    assert all(step.exact for step in plan.steps), plan.steps
    outcome = run(path, folder)
    assert called(outcome) == planned(plan)
    return outcome


def test_the_funnel_adds_up_at_every_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, first in (("a", 0), ("b", 3), ("c", 6)):
        pictures(tmp_path / "pics" / part, 3, first)
    picture(tmp_path / "pics/d/copy.jpg", 8, 112, 64, quality=60)
    picture(tmp_path / "pics/d/talk.jpg", 5, 104, 62, quality=60)
    talk(tmp_path / "pics/d/talk.json")
    (tmp_path / "pics/d/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    picture(tmp_path / "pics/d/torn.jpg", 999)
    (tmp_path / "pics/d/torn.json").write_text("{not JSON")
    texts(tmp_path / "texts.jsonl", 4)
    steps = [
        "probe",
        {"keep": "width >= 100 and height > 10"},
        {"deduplicate": {"keep_best": "width * height desc"}},
        "tests.steps.counting",
    ]
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics", "texts": tmp_path / "texts.jsonl"}, steps)
    monkeypatch.setattr(committer, "COMMIT_ROWS", 1)
    monkeypatch.setattr(work, "TASK_ROWS", 2)
    seen: list[dict[str, int]] = []
    loaded = load_recipe(path)
    commit = Ledger.commit

    def commit_and_count(ledger: Ledger, *arguments: Any, **options: Any) -> int:
        number = commit(ledger, *arguments, **options)
        seen.append(funnel(tmp_path / "run", loaded))
        return number

    monkeypatch.setattr(Ledger, "commit", commit_and_count)
    outcome = run(path, tmp_path / "run")
    assert len(seen) >= 10
    assert seen[0] == {"inputs": 17, "kept": 4, "rejected": 0, "errored": 1, "split": 0, "pending": 12}  # no step says anything of a text
    pending = [counted["pending"] for counted in seen]
    assert pending == sorted(pending, reverse=True)
    assert len(set(pending)) >= 5
    assert seen[-1] == outcome.counts == {"inputs": 17, "kept": 13, "rejected": 2, "errored": 2, "split": 0, "pending": 0}

    found = verdicts(tmp_path / "run")
    assert len(found) == 17
    assert {key for key in found if key.startswith("t")} == {"t0", "t1", "t2", "t3"}
    assert all(found[f"t{i}"] == ("kept", None, None) for i in range(4))  # no picture rule says anything of a text
    assert found["a/000.jpg"] == ("rejected", "keep", "keep: width >= 100")
    assert found["d/broken.jpg"][:2] == ("errored", "probe")
    assert found["d/torn.jpg"][:2] == ("errored", "source")
    assert "torn.json" in str(found["d/torn.jpg"][2])
    assert found["d/copy.jpg"] == ("rejected", "deduplicate", "deduplicate: duplicate_of is null or turns > 0")
    assert found["d/talk.jpg"] == ("kept", None, None)  # a conversation is marked, never rejected
    marks = "select d.key from samples c join samples d on d.uid = c.duplicate_of where c.key = 'd/talk.jpg'"
    assert ask(tmp_path / "run", marks) == [("b/005.jpg",)]
    ofs = "select count(*) from samples where kind = 'text' and (width is not null or counting_size is not null)"
    assert ask(tmp_path / "run", ofs) == [(0,)]


def funnel(folder: Path, loaded: Recipe) -> dict[str, int]:
    """Verdicts by name as a reader of this moment counts them; each sample of the listing has exactly one."""
    ledger = open_ledger(str(folder))
    connection = ledger.connect()
    try:
        judge = Judge(connection, ledger, loaded)
        judge.run()
        found = counts(connection, judge)
        listed = connection.execute(f"select count(*), count(distinct uid) from {judge.scan('listing')}").fetchone()
        judged = connection.execute(f"select count(*), count(distinct uid) from {judge.verdict_sql()}").fetchone()
        assert listed == judged
        assert found["inputs"] == listed[0] == sum(n for v, n in found.items() if v != "inputs")
        return found
    finally:
        connection.close()


def test_scores_are_paid_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pics, folder, path = tmp_path / "pics", tmp_path / "run", tmp_path / "r.yaml"
    pictures(pics, 8)
    pictures(pics / "more", 2, first=20)

    def written(below: str = "005.jpg", words: Any = None, **how: Any) -> Path:
        steps = [
            {"tests.steps.counting": {"as": "counting", "counter": str(tmp_path / "calls"), **how}},
            {"keep": f"key < '{below}'"},
            {"tests.steps.words": words or {"as": "words", "columns": ["counting_size"]}},
        ]
        return recipe(path, {"pics": pics}, steps)

    def lines() -> Counter[str]:
        """Media that were really given to the step, by key, since the last look."""
        file = tmp_path / "calls"
        found = Counter(line.split()[0] for line in file.read_text().splitlines()) if file.exists() else Counter()
        file.unlink(missing_ok=True)
        return found

    first = as_planned_at_most(written(), folder)
    assert called(first) == {"counting": 10, "words": 5}
    assert lines() == Counter({f"{i:03d}.jpg": 1 for i in range(8)} | {f"more/{i:03d}.jpg": 1 for i in (20, 21)})
    assert first.media_opened == 10

    last = seq(folder)
    for again in (written(), written(batch=3, actors=1)):  # as it was; another How
        assert planned(make_plan(load_recipe(again), str(folder))) == {}
        outcome = run(again, folder)
        assert (outcome.calls, outcome.media_opened, lines()) == ({}, 0, Counter())
        assert seq(folder) == last
        assert outcome.dataset is not None
        assert outcome.dataset.written == 0

    tightened = as_planned(written("003.jpg"), folder)
    assert (tightened.calls, tightened.media_opened, tightened.counts["kept"]) == ({}, 0, 3)

    loosened = as_planned(written("007.jpg"), folder)  # 003 and 004 are known, 005 and 006 are new to what comes after the rule
    assert (called(loosened), loosened.media_opened, loosened.counts["kept"]) == ({"words": 2}, 0, 7)

    status = (pics / "001.jpg").stat()
    os.utime(pics / "001.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    plan = make_plan(load_recipe(path), str(folder))
    assert plan.changes.changed == 1
    assert [(s.calls, s.exact) for s in plan.steps] == [(1, False), (1, False)]  # only its bytes can say whether it changed
    touched = run(path, folder)
    assert (touched.changes.changed, called(touched), touched.media_opened, lines()) == (1, {}, 1, Counter())
    assert run(path, folder).media_opened == 0

    picture(pics / "001.jpg", 77)
    changed = run(path, folder)
    assert (changed.changes.changed, called(changed), lines()) == (1, {"counting": 1, "words": 1}, Counter({"001.jpg": 1}))

    picture(pics / "0025.jpg", 78)
    new = as_planned_at_most(path, folder)
    assert (new.changes.new, called(new), lines()) == (1, {"counting": 1, "words": 1}, Counter({"0025.jpg": 1}))
    assert new.counts["kept"] == 8

    (pics / "002.jpg").unlink()
    (pics / "more/021.jpg").unlink()
    (pics / "more/021.txt").unlink()
    gone = as_planned(path, folder)
    assert (gone.changes.gone, gone.calls, gone.counts["inputs"], gone.counts["kept"]) == (2, {}, 9, 7)
    assert not ask(folder, "select * from samples where key in ('002.jpg', 'more/021.jpg')")
    assert ask(folder, "select count(*) from items") == ask(folder, "select count(*) from items where uid in (select uid from samples)")

    other = as_planned(written("007.jpg", {"as": "words", "columns": []}), folder)  # another What
    assert (called(other), other.media_opened) == ({"words": 7}, 0)
    back = as_planned(written("007.jpg"), folder)
    assert (back.calls, back.media_opened) == ({}, 0)

    monkeypatch.setattr(counting, "STEP", replace(counting.STEP, version=2))
    bumped = as_planned_at_most(written("007.jpg"), folder)  # that step, and what reads it
    assert (called(bumped), lines().total()) == ({"counting": 9, "words": 7}, 9)


def as_planned_at_most(path: Path, folder: Path) -> Outcome:
    """A run whose plan cannot know what passes a rule over what is not there yet: its numbers are bounds."""
    plan = make_plan(load_recipe(path), str(folder))
    outcome = run(path, folder)
    assert set(called(outcome)) <= set(planned(plan))
    for step in plan.steps:
        made = outcome.calls.get(step.name, 0)
        assert made == step.calls if step.exact else made <= step.calls
    return outcome
