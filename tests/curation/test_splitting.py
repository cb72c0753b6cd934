"""A splitter in its child process: children as rows, their bytes in files of the run, and what happens to a sample that fails midway."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from curation import splitting
from curation.group import GroupResult, GroupRunner
from shards.errors import InfrastructureError, StepBug
from shards.media import Limits
from shards.read import read_media
from shards.sample import MediaRef, Texts, child_uid, content_fingerprint, uid_of
from tests.curation.units import call, pictures, reference, row, unit

CALL = call("tests.steps.splits", how={"batch": 2})


@pytest.fixture
def split(tmp_path: Path) -> Any:
    """text of each sample → what became of them; every sample has one picture."""
    (path,) = pictures(tmp_path / "pics", 1)

    def run(*texts: str) -> GroupResult:
        rows = [row(f"s{i}", i, [reference(path)], Texts(text=text)) for i, text in enumerate(texts)]
        with GroupRunner([CALL], Limits(), derived=str(tmp_path / "derived")) as runner:
            return runner.run(unit(rows))

    return run


def children(result: GroupResult) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = result.children[CALL.digest].sort_by([("parent", "ascending"), ("ordinal", "ascending")]).to_pylist()
    return found


def rows(result: GroupResult) -> list[tuple[str | None, int | None]]:
    return [(r["error"], r["n"]) for r in result.rows[CALL.digest].to_pylist()]


def read(folder: Path, child: dict[str, Any]) -> bytes:
    (ref,) = child["media"]
    return read_media(MediaRef.from_row({**ref, "path": str(folder / ref["path"])}), Limits())


def test_children_are_rows_and_their_bytes_lie_in_the_run(split: Any, tmp_path: Path) -> None:
    result = split("one two", "three")
    parent = uid_of("test", "s0")
    first, second, _ = sorted(children(result), key=lambda c: c["key"])
    assert rows(result) == [(None, 2), (None, 1)]
    assert (first["uid"], first["key"], first["parent"], first["kind"]) == (child_uid(parent, "word", 0), "s0#word=0", parent, "image")
    assert [read(tmp_path, c)[8:] for c in (first, second)] == [b"one", b"two"]
    (blob,) = {c["blob"] for c in children(result)}
    assert hashlib.sha256((tmp_path / blob).read_bytes()).hexdigest() == Path(blob).name
    assert [p for p in (tmp_path / "derived").rglob("*") if p.name.startswith(".tmp-")] == []
    (ref,) = first["media"]
    assert ref["original"] == hashlib.sha256((tmp_path / "pics/000.png").read_bytes()).hexdigest()
    known = {c["uid"]: c for c in result.contents.to_pylist()}
    sha256 = hashlib.sha256(read(tmp_path, first)).hexdigest()
    assert known[first["uid"]] == {
        "uid": first["uid"], "stamp": first["media_stamp"], "content": content_fingerprint([("image", sha256)]), "sha256": [sha256],
    }  # fmt: skip
    assert first["fp"] == f"{known[parent]['content']}+{first_text_fp(result, parent)}"
    assert len(result.onward) == 0
    again = split("one two", "three")
    assert children(again) == children(result)


def first_text_fp(result: GroupResult, parent: str) -> str:
    (fp,) = [r["fp"] for r in result.rows[CALL.digest].to_pylist() if r["uid"] == parent]
    return str(fp).split("+")[1]


def test_half_a_sample_is_none(split: Any, tmp_path: Path) -> None:
    result = split("keep this", "lost words BAD never", "", "and DAMAGED this")
    assert rows(result) == [
        (None, 2), ("decode: a bad word", None), ("sample: splits found nothing in it to make a sample of", None), (None, 3),
    ]  # fmt: skip
    found = children(result)
    assert sorted(c["key"] for c in found) == ["s0#word=0", "s0#word=1", "s3#word=0", "s3#word=1", "s3#word=2"]
    (damaged,) = [c for c in found if c["damage"]]
    assert (damaged["key"], damaged["damage"], damaged["media"], damaged["blob"]) == ("s3#word=1", "decode: a damaged word", [], None)
    (blob,) = {c["blob"] for c in found if c["blob"]}
    assert b"lost" not in (tmp_path / blob).read_bytes()
    assert [read(tmp_path, c)[8:] for c in sorted(found, key=lambda c: c["key"]) if c["media"]] == [b"keep", b"this", b"and", b"this"]


def test_a_sample_that_kills_its_process_costs_one_row(split: Any, tmp_path: Path) -> None:
    result = split("a", "words that CRASH", "b c")
    assert [n for _, n in rows(result)] == [1, None, 2]
    assert str(rows(result)[1][0]).startswith("crash: signal 11")
    assert sorted(read(tmp_path, c)[8:] for c in children(result)) == [b"a", b"b", b"c"]


@pytest.mark.parametrize(("text", "what"), [("a BUG", "a typo"), ("a b TWICE", "two of them lie in the same place")])
def test_a_bug_is_a_bug(split: Any, text: str, what: str) -> None:
    with pytest.raises(StepBug, match=what):
        split(text)


def test_trouble_that_is_nobodys_fault_leaves_rows_pending(split: Any) -> None:
    with pytest.raises(InfrastructureError, match="the disk went away"):
        split("a", "b DISK")


def test_a_large_file_ends_with_the_sample_it_is_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where the size of a file can be set."""
    from curation.fused import Group
    from curation.view import Room

    monkeypatch.setattr(splitting, "BLOB_BYTES", 20)
    (path,) = pictures(tmp_path / "pics", 1)
    room = Room(Limits(), derived=str(tmp_path / "derived"))
    texts = ("one two", "three", "four", "five")
    chunk = Group((CALL,), room).run(unit([row(f"s{i}", i, [reference(path)], Texts(text=text)) for i, text in enumerate(texts)]))
    found = chunk.children[CALL.digest].to_pylist()
    assert len({c["blob"] for c in found}) == 3
    assert {c["blob"] for c in found if c["key"].startswith("s0")} != {c["blob"] for c in found if c["key"].startswith("s1")}
    assert sorted(read(tmp_path, c)[8:] for c in found) == [b"five", b"four", b"one", b"three", b"two"]
