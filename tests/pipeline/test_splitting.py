"""A splitter in the engine: children are samples, paid for once, whose bytes lie in the run; nothing vanishes on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import committer
from pipeline.curate import counts
from pipeline.explain import explain
from pipeline.ledger import Ledger, open_ledger
from pipeline.plan import make_plan
from pipeline.recipe import Recipe, load_recipe, load_run_recipe
from pipeline.report import report
from pipeline.verdicts import Judge
from shards.errors import InfrastructureError, LedgerError
from shards.reader import Dataset
from shards.sample import child_uid, uid_of
from shards.verify import verify
from tests.pdfs import Page, pdf, write_pdf
from tests.pipeline.small import ask, files_of, picture, recipe, run, seq, verdicts

pytestmark = pytest.mark.usefixtures("one_ray")

PAGES = {"pages": {"dpi": 36}}
STEPS = [PAGES, "probe", {"keep": {"name": "size", "if": "width >= 80"}}, {"compose": {"tasks": ["document", "short_caption"]}}]


def corpus(folder: Path) -> Path:
    """Three documents (one with a bad page), one that is none, two pictures."""
    docs = folder / "docs"
    write_pdf(docs / "two.pdf", 2)
    write_pdf(docs / "sub/three.pdf", 3, title="other")
    (docs / "torn.pdf").write_bytes(
        pdf([Page(("a page that can be drawn",)), Page(broken=True), Page(("and one more of them",), box=(100, 50))])
    )
    (docs / "none.pdf").write_bytes(b"<html>404</html>")
    picture(docs / "a.jpg", 1)
    (docs / "a.txt").write_text("a picture")
    picture(docs / "b.jpg", 2, width=64)
    return docs


def written(folder: Path, steps: Sequence[Any] = STEPS, **more: Any) -> Path:
    return recipe(folder / "r.yaml", {"docs": folder / "docs"}, steps, **more)


FATES = {
    "two.pdf": ("split", "pages", "2 pages"),
    "two.pdf#page=1": ("kept", None, None),
    "two.pdf#page=2": ("kept", None, None),
    "sub/three.pdf": ("split", "pages", "3 pages"),
    **{f"sub/three.pdf#page={n}": ("kept", None, None) for n in (1, 2, 3)},
    "torn.pdf": ("split", "pages", "3 pages"),
    "torn.pdf#page=1": ("kept", None, None),
    "torn.pdf#page=2": ("errored", "pages", "decode: page 2 of 3 cannot be loaded: Failed to load page."),
    "torn.pdf#page=3": ("rejected", "size", "size: width >= 80"),
    "none.pdf": ("errored", "pages", "decode: no readable PDF: it is damaged, cut, or something else"),
    "a.jpg": ("kept", None, None),
    "b.jpg": ("rejected", "size", "size: width >= 80"),
}


@pytest.fixture(scope="module")
def split_run(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; beside it its recipe, and what was planned before it (`planned.json`). Tests do not change it."""
    folder = tmp_path_factory.mktemp("split")
    corpus(folder)
    path = written(folder, split={"val": 0.4})
    plan = make_plan(load_recipe(path), str(folder / "run"))
    (folder / "planned.json").write_text(json.dumps([[s.name, s.calls, s.exact, s.beyond] for s in plan.steps]))
    sums: list[dict[str, int]] = []
    loaded, commit = load_recipe(path), Ledger.commit

    def commit_and_count(ledger: Ledger, *arguments: Any, **options: Any) -> int:
        number = commit(ledger, *arguments, **options)
        sums.append(funnel(folder / "run", loaded))
        return number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(committer, "COMMIT_ROWS", 1)
        patch.setattr(Ledger, "commit", commit_and_count)
        outcome = run(path, folder / "run")
    (folder / "done.json").write_text(json.dumps([outcome.calls, outcome.media_opened, outcome.counts, sums]))
    return folder


def funnel(folder: Path, loaded: Recipe) -> dict[str, int]:
    """Verdicts by name as a reader of this moment counts them; the view `samples` has as many rows, and each uid once."""
    ledger = open_ledger(str(folder))
    connection = ledger.connect()
    try:
        judge = Judge(connection, ledger, loaded)
        judge.run()
        judged = connection.execute(f"select count(*), count(distinct uid) from {judge.verdict_sql()}").fetchall()
        found = counts(connection, judge)
        assert judged == [(found["inputs"], found["inputs"])]
        return found
    finally:
        connection.close()


def test_every_page_has_a_verdict(split_run: Path) -> None:
    assert verdicts(split_run / "run") == FATES
    calls, opened, counted, sums = json.loads((split_run / "done.json").read_text())
    assert counted == {"inputs": 14, "kept": 7, "rejected": 2, "errored": 2, "split": 3, "pending": 0}
    assert {k: v for k, v in calls.items() if v} == {"pages": 4, "probe": 9, "compose": 7}
    assert opened == 4 + 9  # a page is read from where it lies, once for all the steps after the splitter
    assert len({json.dumps(found) for found in sums}) >= 3
    for found in sums:
        assert found["inputs"] == sum(n for verdict, n in found.items() if verdict != "inputs")
    assert sums[0] == {"inputs": 6, "kept": 0, "rejected": 0, "errored": 0, "split": 0, "pending": 6}


def test_children_are_rows_of_the_views(split_run: Path) -> None:
    parent = uid_of("docs", "two.pdf")
    rows = ask(
        split_run / "run",
        "select uid, parent, kind, width, transcription_chars, source from samples where key like 'two.pdf#%' order by key",
    )
    text = len("report page 1\nof text in its layer")
    assert rows == [(child_uid(parent, "page", n), parent, "image", 100, text, "docs") for n in (1, 2)]
    assert ask(split_run / "run", "select count(*), count(width) from samples where kind = 'pdf'") == [(4, 0)]
    assert ask(split_run / "run", "select distinct unit from samples where parent is not null order by 1") == [
        (".#0/pages#0.0",),
        ("sub#0/pages#0.0",),
    ]
    ledger = open_ledger(str(split_run / "run"))
    found = report(ledger, load_run_recipe(ledger.store))
    assert found["inputs"] == 14
    assert found["verdicts"]["split"] == 3


def test_a_page_lies_in_a_shard_with_its_transform(split_run: Path) -> None:
    assert verify(str(split_run / "run/dataset")) == []
    shards = Dataset.open(str(split_run / "run/dataset"))
    uid = child_uid(uid_of("docs", "two.pdf"), "page", 2)
    (raw,) = shards.read([uid])
    told = json.loads(raw.json)
    (medium,) = told["media"]
    assert medium["member"] == f"{uid}.png"
    assert medium["transform"] == {
        "operator": "pages", "version": 1, "parameters": {"page": 2, "dpi": 36.0, "format": "png", "annotations": False},
    }  # fmt: skip
    assert medium["original_sha256"] == hashlib.sha256((split_run / "docs/two.pdf").read_bytes()).hexdigest()
    assert medium["sha256"] == hashlib.sha256(raw.media[0]).hexdigest() != medium["original_sha256"]
    assert told["texts"]["transcription"] == "report page 2\nof text in its layer"
    assert told["texts"]["meta"]["page"] == 2
    assert [item["task"] for item in told["items"]] == ["document"]
    splits = ask(
        split_run / "run",
        "select s.parent, count(distinct i.split) from items i join samples s using (uid) where s.parent is not null group by 1",
    )
    assert {count for _, count in splits} == {1}  # pages of one document do not cross


def test_a_life_begins_with_the_parent_and_a_parent_lists_its_children(split_run: Path) -> None:
    ledger = open_ledger(str(split_run / "run"))
    loaded = load_run_recipe(ledger.store)
    parent = uid_of("docs", "torn.pdf")
    told = explain(ledger, loaded, parent)
    assert (told["verdict"], told["reason"]) == ("split", "3 pages")
    assert [(c["key"], c["verdict"], c["step"]) for c in told["children"]] == [
        ("torn.pdf#page=1", "kept", None), ("torn.pdf#page=2", "errored", "pages"), ("torn.pdf#page=3", "rejected", "size"),
    ]  # fmt: skip
    assert told["children"][0]["uid"] == child_uid(parent, "page", 1)
    child = explain(ledger, loaded, child_uid(parent, "page", 1)[:12])
    assert child["life"][0]["parent"] == parent
    assert child["life"][0]["scores"] == {"parent": parent, "parent_key": "torn.pdf"}
    assert [event.get("step") or event["rule"] for event in child["life"]] == ["pages", "probe", "size", "compose"]
    assert child["life"][1]["scores"]["width"] == 100
    assert child["placement"] is not None
    assert child["listing"]["parent"] == parent
    assert child["media"][0]["sha256"] == child["life"][1]["scores"]["sha256"]
    bad = explain(ledger, loaded, child_uid(parent, "page", 2))
    assert (bad["verdict"], bad["step"], len(bad["life"])) == ("errored", "pages", 1)
    assert explain(ledger, loaded, uid_of("docs", "a.jpg"))["children"] == []


def test_the_plan_says_what_cannot_be_counted(split_run: Path) -> None:
    planned = json.loads((split_run / "planned.json").read_text())
    beyond = "the children of 4 samples that pages has yet to split"
    assert planned == [["pages", 4, True, ""], ["probe", 2, False, beyond], ["compose", 2, False, beyond]]
    again = make_plan(load_recipe(split_run / "r.yaml"), str(split_run / "run"))
    assert [(s.calls, s.exact, s.beyond) for s in again.steps] == [(0, True, "")] * 3
    assert again.counts["split"] == 3
    assert again.flips == {}


def test_a_run_again_opens_nothing_and_a_moved_run_finds_its_pages(split_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(split_run / "run", moved)
    (moved / "derived/orphan").mkdir()
    (moved / "derived/orphan/blob").write_bytes(b"of a killed run")
    (moved / "derived/.tmp-0").write_bytes(b"half of one")
    before = {p.relative_to(moved) for p in (moved / "derived").rglob("*") if p.is_file()}
    again = run(split_run / "r.yaml", moved)
    assert (again.calls, again.media_opened) == ({}, 0)
    assert again.dataset is not None
    assert again.dataset.written == 0
    after = {p.relative_to(moved) for p in (moved / "derived").rglob("*") if p.is_file()}
    assert {str(p) for p in before - after} == {"derived/orphan/blob", "derived/.tmp-0"}
    assert after
    shutil.rmtree(moved / "dataset")
    assert seq(moved) >= 1
    written_again = run(split_run / "r.yaml", moved)
    assert written_again.calls == {}
    assert files_of(moved / "dataset") == files_of(split_run / "run/dataset")
    shutil.rmtree(moved / "derived")
    shutil.rmtree(moved / "dataset")
    with pytest.raises(InfrastructureError, match="derived"):
        run(split_run / "r.yaml", moved)


@pytest.mark.slow
def test_changed_documents_and_another_what(tmp_path: Path) -> None:
    docs = corpus(tmp_path)
    path, folder = written(tmp_path), tmp_path / "run"
    run(path, folder, until="pages")
    assert verdicts(folder)["two.pdf#page=1"] == ("kept", None, None)  # the children come out of the last operator
    first = run(path, folder)
    assert {k: v for k, v in first.calls.items() if v} == {"probe": 9, "compose": 7}
    write_pdf(docs / "two.pdf", 4)
    (docs / "none.pdf").unlink()
    changed = run(path, folder)
    assert {k: v for k, v in changed.calls.items() if v} == {
        "pages": 1,
        "probe": 2,
        "compose": 4,
    }  # 1 and 2 look as they did, of 4 pages now
    assert changed.counts["inputs"] == 15
    assert verdicts(folder)["two.pdf"] == ("split", "pages", "4 pages")
    write_pdf(docs / "two.pdf", 1)
    assert run(path, folder).counts["inputs"] == 12
    assert [key for key in verdicts(folder) if key.startswith("two.pdf#")] == ["two.pdf#page=1"]
    ledger = open_ledger(str(folder))
    with pytest.raises(LedgerError, match="not split any more"):
        explain(ledger, load_run_recipe(ledger.store), child_uid(uid_of("docs", "two.pdf"), "page", 3))
    finer = written(tmp_path, [{"pages": {"dpi": 72}}, *STEPS[1:]])
    other = run(finer, folder)
    assert {k: v for k, v in other.calls.items() if v} == {"pages": 3, "probe": 6, "compose": 6}
    assert set(ask(folder, "select width from samples where key like 'sub%page%'")) == {(200,)}
    back = run(written(tmp_path), folder)
    assert (back.calls, back.media_opened) == ({}, 0)
    rejected = run(written(tmp_path, [{"keep": {"name": "none", "if": "key not like '%.pdf'"}}, *STEPS]), folder)
    assert (rejected.calls, rejected.counts["split"], rejected.counts["inputs"]) == ({}, 0, 5)
    assert not [key for key in verdicts(folder) if "#" in key]


def test_a_run_that_dies_anywhere_ends_with_the_same_bytes(split_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commits a run makes, each in turn the last one it lives to see."""
    expected, commit = files_of(split_run / "run/dataset"), Ledger.commit

    class Killed(BaseException):
        pass

    for lives in (1, 2, 4):
        left = [lives]

        def dying(ledger: Ledger, *arguments: Any, left: list[int] = left, **options: Any) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return commit(ledger, *arguments, **options)

        folder = tmp_path / f"run{lives}"
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "commit", dying)
            with pytest.raises(Killed):
                run(split_run / "r.yaml", folder)
        run(split_run / "r.yaml", folder)
        assert files_of(folder / "dataset") == expected
        assert verdicts(folder) == FATES


def test_a_document_that_nobody_splits_is_a_sample_like_others(tmp_path: Path) -> None:
    write_pdf(tmp_path / "docs/two.pdf", 2)
    picture(tmp_path / "docs/a.jpg", 1)
    steps = [
        "probe",
        {"keep": {"name": "big", "if": "media_bytes > 100", "for": ["pdf"]}},
        {"keep": "width > 10"},
        "deduplicate",
        "compose",
    ]
    outcome = run(written(tmp_path, steps), tmp_path / "run")
    assert outcome.counts["kept"] == 2
    assert ask(tmp_path / "run", "select width, kind from samples where key = 'two.pdf'") == [(None, "pdf")]
    (raw,) = Dataset.open(str(tmp_path / "run/dataset")).read([uid_of("docs", "two.pdf")])
    assert raw.media[0] == (tmp_path / "docs/two.pdf").read_bytes()
    told = json.loads(raw.json)
    assert told["items"] == []
    assert told["media"][0]["member"].endswith(".pdf")
    assert verify(str(tmp_path / "run/dataset")) == []
