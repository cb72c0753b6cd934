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
from shards.errors import InfrastructureError, SourceError, StepBug
from shards.verify import verify
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


@pytest.mark.slow
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


SEGFAULT, BUGGY = "tests.steps.segfault", "tests.steps.buggy"


def test_a_step_that_kills_its_process_costs_one_row(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 6)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{SEGFAULT: {"as": "deadly", "keys": ["003.jpg"]}}])
    outcome = run(path, tmp_path / "run")
    assert (outcome.counts["kept"], outcome.counts["errored"], outcome.pending) == (5, 1, 0)
    assert outcome.crashes >= 2  # with the others, and alone
    verdict, step, reason = verdicts(tmp_path / "run")["003.jpg"]
    assert (verdict, step) == ("errored", "deadly")
    assert str(reason).startswith("crash: signal 11")
    assert run(path, tmp_path / "run").calls == {}  # an errored sample is done
    mended = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{SEGFAULT: {"as": "deadly"}}])
    assert run(mended, tmp_path / "run").counts["kept"] == 6


def test_errors_are_tried_again_when_asked(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 4)
    (tmp_path / "pics/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["probe"])
    assert run(path, tmp_path / "run").counts["errored"] == 1
    again = run(path, tmp_path / "run", retry_errors=True)
    assert (called(again), again.counts["errored"], again.counts["kept"], again.media_opened) == ({"probe": 1}, 1, 4, 1)
    picture(tmp_path / "pics/broken.jpg", 50)
    mended = run(path, tmp_path / "run")
    assert (called(mended), mended.counts["kept"]) == ({"probe": 1}, 5)


def test_an_error_is_not_computed_again_when_an_earlier_step_is_new(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 4)
    (tmp_path / "pics/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    assert run(recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["probe"]), tmp_path / "run").counts["errored"] == 1
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"tests.steps.counting": {"as": "counting"}}, "probe"])
    plan = make_plan(load_recipe(path), str(tmp_path / "run"))
    more = run(path, tmp_path / "run")
    assert called(more) == {s.name: s.calls for s in plan.steps if s.calls} == {"counting": 5}
    assert (more.counts["errored"], more.counts["kept"]) == (1, 4)


@pytest.mark.parametrize("way", ["raise", "memory"])
def test_a_bug_ends_the_run_as_a_message_and_what_was_done_stays(tmp_path: Path, way: str) -> None:
    pictures(tmp_path / "pics", 4)
    texts(tmp_path / "texts.jsonl", 1)
    sources = {"pics": tmp_path / "pics", "texts": tmp_path / "texts.jsonl"}
    steps = [{"tests.steps.counting": {"as": "counting"}}, {"keep": {"name": "late", "if": "key >= '001.jpg'"}}, {BUGGY: {"way": way}}]
    path = recipe(tmp_path / "r.yaml", sources, steps)
    run(path, tmp_path / "run", until="late")
    with pytest.raises(StepBug if way == "raise" else InfrastructureError) as caught:
        run(path, tmp_path / "run")
    assert BUGGY in str(caught.value)
    if isinstance(caught.value, StepBug):
        assert set(caught.value.uids) <= {uid for (uid,) in ask(tmp_path / "run", "select uid from samples")}
        assert "a typo" in caught.value.what
    assert Counter(v for v, _, _ in verdicts(tmp_path / "run").values()) == {"pending": 4, "rejected": 1}
    steps[-1] = {BUGGY: {"way": "none"}}
    mended = run(recipe(path, sources, steps), tmp_path / "run")
    assert (called(mended), mended.pending, mended.counts["kept"]) == ({"buggy": 4}, 0, 4)


def test_a_bug_leaves_the_rows_of_other_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in range(5):
        pictures(tmp_path / f"pics/{part}", 2, first=2 * part)
    monkeypatch.setattr(work, "TASK_ROWS", 2)
    steps = [{"tests.steps.counting": {"as": "counting"}}, {"keep": "key >= '4'"}, BUGGY]  # met in the last folder only
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, steps)
    with pytest.raises(StepBug):
        run(path, tmp_path / "run")
    ((known,),) = ask(tmp_path / "run", "select count(*) from samples where verdict = 'rejected'")
    assert known > 0
    mended = run(recipe(path, {"pics": tmp_path / "pics"}, [*steps[:2], {BUGGY: {"way": "none"}}]), tmp_path / "run")
    assert (called(mended), mended.pending) == ({"counting": 10 - known, "buggy": 2}, 0)


def test_max_errors_ends_a_run_that_goes_wrong(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 3)
    for i in range(3):
        (tmp_path / f"pics/broken{i}.jpg").write_bytes(b"\xff\xd8\xff nothing" + bytes([i]))
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"probe": {"max_errors": 2}}])
    with pytest.raises(InfrastructureError, match=r"step probe: 3 of 6 samples errored, max_errors is 2"):
        run(path, tmp_path / "run")
    assert ask(tmp_path / "run", "select count(*) from samples where verdict = 'errored'") == [(3,)]
    patient = run(recipe(path, {"pics": tmp_path / "pics"}, [{"probe": {"max_errors": 3}}]), tmp_path / "run")
    assert (patient.calls, patient.counts["errored"]) == ({}, 3)


def test_a_file_that_changes_under_the_run_is_named(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 3)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"tests.steps.counting": {"as": "counting"}}])

    def change(what: str, done: int, total: int) -> None:
        if what == "write shards" and done == 0:
            picture(tmp_path / "pics/001.jpg", 60)

    with pytest.raises(SourceError, match=r"001\.jpg") as caught:
        run(path, tmp_path / "run", progress=change)
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "run/dataset/manifest.json").exists()
    again = run(path, tmp_path / "run")
    assert (called(again), again.counts["kept"]) == ({"counting": 1}, 3)
    assert verify(str(tmp_path / "run/dataset")) == []
