"""The dataset of a run over its life: input appends, a rule indexes anew, nothing is written twice, and everybody can read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import webdataset

from pipeline.dataset import _shards
from pipeline.scan import Changes
from shards.reader import Dataset
from shards.store import open_store
from shards.verify import verify
from tests.pipeline.small import ask, files_of, picture, pictures, recipe, run, talk, texts


@pytest.mark.usefixtures("one_ray")
def test_a_dataset_grows_shrinks_and_is_indexed_anew(tmp_path: Path) -> None:
    pics, folder, path = tmp_path / "pics", tmp_path / "run", tmp_path / "r.yaml"
    where = tmp_path / "elsewhere/dataset"  # absolute: not below the run
    pictures(pics, 8)
    talk(pics / "006.json")
    (pics / "006.txt").unlink()
    texts(tmp_path / "texts.jsonl", 3)

    def written(rule: str = "width >= 100") -> Path:
        sources = {"pics": pics, "texts": tmp_path / "texts.jsonl"}
        steps = ["probe", {"keep": rule}, {"compose": {"tasks": ["short_caption", "vqa", "text"]}}]
        return recipe(path, sources, steps, write={"path": str(where), "max_samples": 4}, split={"val": 0.3})

    first = run(written(), folder).dataset
    assert first is not None
    assert (first.path, first.reused, first.samples) == (str(where), 0, 10)
    assert verify(str(where)) == []
    opened = Dataset.open(str(where))
    assert {s.split for s in opened.manifest.shards} == {"train", "val"}
    assert all(s.samples <= 4 for s in opened.manifest.shards)
    assert opened.manifest.counts == {"inputs": 11, "kept": 10, "rejected": 1, "errored": 0, "split": 0, "pending": 0}
    records = {r["key"]: r for r in map(opened.record, opened.samples())}
    assert records["001.jpg"]["texts"]["caption"] == "picture number 1"
    assert records["001.jpg"]["scores"]["width"] == 100
    assert [i.task for i in records["006.jpg"]["items"]] == ["vqa"]
    assert [i.task for i in records["t0"]["items"]] == ["text"]
    for raw in opened.samples():
        if raw.media:
            key = opened.record(raw)["key"]
            assert raw.media == [(pics / key).read_bytes()]

    before = files_of(where)
    again = run(path, folder).dataset
    assert again is not None
    assert (again.version, again.written, again.reindexed) == (first.version, 0, 0)
    assert files_of(where) == before

    pictures(pics, 3, first=30)
    grown = run(path, folder).dataset
    assert grown is not None
    assert (grown.reused, grown.reindexed, grown.samples) == (len(opened.manifest.shards), 0, 13)
    assert grown.written >= 1
    after = files_of(where)
    assert {name: after[name] for name in before if name != "manifest.json"} == {n: s for n, s in before.items() if n != "manifest.json"}
    assert verify(str(where)) == []
    assert Dataset.open(str(where)).manifest.previous == first.version
    old = Dataset.open(str(where / f"v-{first.version}"))  # a reader of the older version still has all of it
    assert len(list(old.samples())) == 10

    tightened = run(written("width >= 108"), folder).dataset
    assert tightened is not None
    assert (tightened.written, tightened.samples) == (0, 11)
    assert tightened.reindexed >= 1
    assert verify(str(where)) == []
    assert {n: s for n, s in files_of(where).items() if n.endswith(".tar")} == {n: s for n, s in after.items() if n.endswith(".tar")}
    listed = set(Dataset.open(str(where)).index(["uid"])["uid"].to_pylist())
    assert listed == {uid for (uid,) in ask(folder, "select uid from samples where verdict = 'kept'")}
    assert {r.uid for r in Dataset.open(str(where)).samples()} == listed
    assert set(ask(folder, "select key from samples where uid in (select uid from items) and width < 108")) == set()

    loosened = run(written(), folder).dataset  # back: a state that was there before, on another path
    assert loosened is not None
    assert loosened.samples == 13
    assert loosened.version not in (first.version, grown.version)
    assert verify(str(where)) == []

    (pics / "005.jpg").unlink()
    (gone,) = ask(folder, "select uid from samples where key = '005.jpg'")
    removed = run(path, folder).dataset
    assert removed is not None
    assert (removed.written, removed.samples) == (0, 12)
    assert gone[0] not in Dataset.open(str(where)).index(["uid"])["uid"].to_pylist()
    assert verify(str(where)) == []

    picture(pics / "004.jpg", 90, width=120)
    changed = run(path, folder).dataset
    assert changed is not None
    assert (changed.samples, changed.written) == (12, 1)
    (record,) = [r for r in map(Dataset.open(str(where)).record, Dataset.open(str(where)).samples()) if r["key"] == "004.jpg"]
    assert record["scores"]["width"] == 120
    assert verify(str(where)) == []

    tars = sorted(str(p) for p in (where / f"v-{first.version}").glob("*.tar"))
    plain = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert {s["__key__"] for s in plain} == {r.uid for r in old.samples()}
    assert all("json" in s for s in plain)
    assert sum("jpg" in s for s in plain) == 7


@pytest.mark.usefixtures("one_ray")
def test_two_runs_over_one_corpus_write_the_same_bytes(tmp_path: Path) -> None:
    """Also where the corpus, the run and the number of commits differ."""
    pictures(tmp_path / "pics", 4)
    pictures(tmp_path / "pics/more", 2, first=10)
    shutil.copytree(tmp_path / "pics", tmp_path / "moved")
    steps = ["probe", {"deduplicate": {}}]
    one = recipe(tmp_path / "one.yaml", {"pics": tmp_path / "pics"}, steps, split={"val": 0.4}, write={"max_samples": 3})
    two = recipe(tmp_path / "two.yaml", {"pics": tmp_path / "moved"}, steps, split={"val": 0.4}, write={"max_samples": 3})
    run(one, tmp_path / "run1")
    run(two, tmp_path / "run2", until="probe")
    run(two, tmp_path / "run2")
    assert files_of(tmp_path / "run1/dataset") == files_of(tmp_path / "run2/dataset")


@pytest.mark.usefixtures("one_ray")
def test_a_corpus_may_move(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 3)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["probe", {"keep": "width >= 104"}])
    run(path, tmp_path / "run")
    shutil.move(tmp_path / "pics", tmp_path / "moved")
    path = recipe(path, {"pics": tmp_path / "moved"}, ["probe", {"keep": "width >= 100"}])
    moved = run(path, tmp_path / "run")
    assert (moved.changes, moved.calls) == (Changes(new=0, changed=0, gone=0, total=3, moved=3), {})
    assert moved.dataset is not None
    assert (moved.dataset.samples, moved.dataset.written) == (2, 1)
    assert verify(str(tmp_path / "run/dataset")) == []


@pytest.mark.usefixtures("one_ray")
def test_nothing_kept_is_a_dataset_too(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 2)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"keep": "key = 'none'"}])
    outcome = run(path, tmp_path / "run")
    assert outcome.dataset is not None
    assert (outcome.counts["rejected"], outcome.dataset.samples) == (2, 0)
    assert verify(str(tmp_path / "run/dataset")) == []
    assert run(recipe(path, {"pics": tmp_path / "pics"}, [{"keep": "key <> 'none'"}]), tmp_path / "run").counts["kept"] == 2
    assert verify(str(tmp_path / "run/dataset")) == []


def cut(sizes: list[tuple[str, int]], max_bytes: int, max_samples: int, batch: int) -> list[tuple[str, int, list[int]]]:
    table = pa.table({"_split": [s for s, _ in sizes], "_size": [b for _, b in sizes], "n": list(range(len(sizes)))})
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=batch))
    return [(split, number, rows["n"].to_pylist()) for split, number, rows in _shards(reader, max_bytes, max_samples)]


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_shards_are_cut_by_bytes_samples_and_splits_whatever_the_batches(batch: int) -> None:
    sizes = [("train", 4), ("train", 4), ("train", 4), ("train", 50), ("train", 1), ("train", 1), ("train", 1), ("val", 1), ("val", 9)]
    assert cut(sizes, 10, 3, batch) == [
        ("train", 0, [0, 1]), ("train", 1, [2]), ("train", 2, [3]), ("train", 3, [4, 5, 6]), ("val", 0, [7, 8]),
    ]  # fmt: skip
    assert cut([], 10, 3, batch) == []


@pytest.mark.usefixtures("one_ray")
def test_a_kill_between_placements_and_manifest_loses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "pics", 3)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"tests.steps.counting": {"as": "counting"}}])
    run(path, tmp_path / "run")
    pictures(tmp_path / "pics", 2, first=5)

    def killed(store: object, manifest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dataset.save_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            run(path, tmp_path / "run")
    assert len(list(Dataset.open(str(tmp_path / "run/dataset")).samples())) == 3
    again = run(path, tmp_path / "run")
    assert (again.calls, again.dataset.samples if again.dataset else 0) == ({}, 5)
    assert len(list(Dataset.open(str(tmp_path / "run/dataset")).samples())) == 5
    assert verify(str(tmp_path / "run/dataset")) == []


@pytest.mark.usefixtures("one_ray")
def test_what_a_killed_task_left_is_gone_when_the_manifest_is_there(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 2)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"keep": "key <> 'none'"}])
    first = run(path, tmp_path / "run").dataset
    assert first is not None
    expected = files_of(tmp_path / "run/dataset")
    shutil.rmtree(tmp_path / "run/dataset")
    for again in range(2):  # when the version is written, and when it is there already
        store = open_store(tmp_path / "run/dataset")
        store.put_new("note", b"a file of somebody else")
        store.tmp_path().write_bytes(b"half a tar")
        outcome = run(path, tmp_path / "run").dataset
        assert outcome is not None
        assert (outcome.version, outcome.written) == (first.version, 1 - again)
        assert {k: v for k, v in files_of(tmp_path / "run/dataset").items() if k != "note"} == expected
