"""The reader: every way in gives the same bytes, and damage is named."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import ranges
from shards.errors import ShardError
from shards.manifest import load_manifest, save_manifest
from shards.members import UidTable, joined, members_of
from shards.publish import publish_index
from shards.reader import Dataset, RawSample
from shards.sample import uid_of
from shards.store import open_store
from shards.writer import ShardMedium, ShardSample
from tests.shards.corpus import SCHEMA, VERSION, manifest, publish, sample, two_splits


@pytest.fixture(params=["local", "remote"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = str(tmp_path / "ds") if request.param == "local" else f"memory://reader-{tmp_path.name}"
    publish(place, tmp_path, two_splits())
    return place


def _all() -> list[ShardSample]:
    return [s for samples in two_splits().values() for s in samples]


def _media(raw: RawSample) -> list[bytes]:
    return raw.media


def _given(made: ShardSample) -> list[object]:
    return [m.data for m in made.media]


def test_in_sequence_every_sample_once_and_in_order(url: str) -> None:
    dataset = Dataset.open(url)
    raws = list(dataset.samples())
    assert [r.uid for r in raws] == [s.uid for s in _all()]
    assert [r.media for r in raws] == [_given(s) for s in _all()]
    assert [r.uid for r in dataset.samples("val")] == [s.uid for s in two_splits()["val-000000"]]


def test_records_are_the_samples_that_were_written(url: str) -> None:
    dataset = Dataset.open(url)
    for raw, made in zip(dataset.samples(), _all(), strict=True):
        record = dataset.record(raw)
        assert record["items"] == list(made.items)
        assert (record["uid"], record["source"], record["key"], record["texts"]["caption"]) == (made.uid, "s", made.key, made.texts.caption)
    with pytest.raises(ShardError, match="sample 00"):
        dataset.record(RawSample("00", b"{}", []))


def test_at_random_by_uid_in_the_order_asked_for(url: str) -> None:
    dataset = Dataset.open(url)
    by_uid = {s.uid: s for s in _all()}
    wanted = [list(by_uid)[i] for i in (14, 0, 3, 3, 11, 1, 14)]
    raws = dataset.read(wanted)
    assert [r.uid for r in raws] == wanted
    assert [r.media for r in raws] == [_given(by_uid[uid]) for uid in wanted]
    assert dataset.read([]) == []


def test_by_row_number_of_the_index_whole_or_of_a_split(url: str) -> None:
    dataset = Dataset.open(url)
    for split in (None, "train", "val"):
        uids = dataset.index(["uid"], split)["uid"].to_pylist()
        rows = np.random.default_rng(0).integers(0, len(uids), 40)
        assert [r.uid for r in dataset.read_rows(rows, split)] == [uids[row] for row in rows]
        for beyond in (len(uids), -1):
            with pytest.raises(IndexError, match=f"row {beyond} of an index of {len(uids)} rows"):
                dataset.read_rows([0, beyond], split)
    assert dataset.read_rows([]) == []


def test_the_index_is_one_table_of_all_shards(url: str) -> None:
    dataset = Dataset.open(url)
    table = dataset.index()
    assert table.schema.names == SCHEMA.names
    assert table.num_rows == sum(max(1, len(s.items)) for s in _all()) == sum(s.rows for s in dataset.manifest.shards)
    assert set(dataset.index(split="val")["split"].to_pylist()) == {"val"}
    assert dataset.index(["uid", "tiny"]).schema.names == ["uid", "tiny"]
    with pytest.raises(ShardError, match="no column colour"):
        dataset.index(["colour"])
    with pytest.raises(ShardError, match="no split 'test'"):
        dataset.index(split="test")


def test_one_shards_index_by_its_name_or_paths(url: str, tmp_path: Path) -> None:
    dataset = Dataset.open(url)
    shard = dataset.manifest.shards[1]
    whole = dataset.index().filter(pc.equal(dataset.index()["shard"], shard.name))
    for name in (shard.name, shard.path, shard.index):
        assert dataset.index_of(name).equals(whole)
    leaf = dataset.index_of(shard.name, ["uid", "tiny.media.list.element.t"])
    assert leaf["uid"].equals(whole["uid"])
    assert leaf.schema.field("tiny").type.field("media").type.value_type.num_fields == 1
    with pytest.raises(ShardError, match=r"no shards train-000009\.tar"):
        dataset.index_of("train-000009.tar")
    publish(url, tmp_path, {"train-000001": [sample(40)]}, "bbbb")
    new = load_manifest(dataset.store).shards[0]
    save_manifest(dataset.store, manifest([*dataset.manifest.shards, new], "cccc", VERSION))
    grown = Dataset.open(url)
    with pytest.raises(ShardError, match=r"has 2 shards train-000001\.tar: name one of v-abcd1234/train-000001\.tar, v-bbbb/"):
        grown.index_of(new.name)
    assert set(grown.index_of(new.path, ["uid"])["uid"].to_pylist()) == {sample(40).uid}


def test_a_uid_that_is_not_there_is_named(url: str) -> None:
    missing = uid_of("s", "nowhere")
    dataset = Dataset.open(url)
    with pytest.raises(ShardError, match=missing):
        dataset.read([sample(0).uid, missing])
    with pytest.raises(ShardError, match="not 32 hexadecimal"):
        dataset.read(["x"])


def test_it_survives_pickling_and_stays_at_its_version(url: str, tmp_path: Path) -> None:
    dataset = Dataset.open(url)
    frozen = pickle.dumps(dataset)
    save_manifest(dataset.store, manifest([], "eeee"))
    assert Dataset.open(url).manifest.version == "eeee"
    thawed = pickle.loads(frozen)
    assert thawed.manifest.version == VERSION
    assert [r.uid for r in thawed.read([sample(3).uid])] == [sample(3).uid]


def test_an_old_version_opens_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(str(tmp_path / "v-ab"), tmp_path, {"train-000000": [sample(0)]}, "aaaa")  # a dataset may be called like a version
    publish(str(tmp_path / "v-ab"), tmp_path, {"train-000000": [sample(1)]}, "bbbb")
    ds = tmp_path / "v-ab"
    monkeypatch.chdir(ds)
    for place, number in (
        (str(ds), 1),
        (f"{ds}/", 1),
        (f"{ds}/manifest.json", 1),
        ("manifest.json", 1),
        (".", 1),
        (f"{ds}/v-aaaa", 0),
        (f"{ds}/v-aaaa/manifest.json", 0),
        ("v-aaaa", 0),
        (f"file://{ds}/v-aaaa", 0),
    ):
        assert [r.uid for r in Dataset.open(place).samples()] == [sample(number).uid], place


def test_no_dataset_says_so(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no manifest"):
        Dataset.open(str(tmp_path))


def test_a_dataset_of_nothing(tmp_path: Path) -> None:
    publish(str(tmp_path / "ds"), tmp_path, {"train-000000": []})
    dataset = Dataset.open(str(tmp_path / "ds"))
    assert list(dataset.samples()) == []
    assert dataset.index().num_rows == 0
    with pytest.raises(ShardError, match="no sample"):
        dataset.read([sample(0).uid])
    save_manifest(dataset.store, manifest([], "ffff"))
    with pytest.raises(ShardError, match="no shards"):
        Dataset.open(str(tmp_path / "ds")).index()


def _spoil(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_named_in_every_way_of_reading_and_may_be_overlooked_on_demand(tmp_path: Path) -> None:
    publish(str(tmp_path / "ds"), tmp_path, two_splits())
    dataset = Dataset.open(str(tmp_path / "ds"))
    victim = sample(8)
    row = next(r for r in dataset.index().to_pylist() if r["uid"] == victim.uid)
    for member in (row["json"], row["media"][0]) if row["media"] else (row["json"],):
        tar = tmp_path / "ds" / dataset.manifest.shards[1].path
        _spoil(tar, member["offset"] + member["length"] - 1)
        message = rf"train-000001\.tar: sample {victim.uid}, member {member['name']} is damaged"
        with pytest.raises(ShardError, match=message):
            list(dataset.samples())
        with pytest.raises(ShardError, match=message):
            dataset.read([sample(0).uid, victim.uid])
        assert [r.uid for r in dataset.read([victim.uid], check=False)] == [victim.uid]
        assert len(list(dataset.samples(check=False))) == len(_all())
        _spoil(tar, member["offset"] + member["length"] - 1)
    assert len(list(dataset.samples())) == len(_all())


@pytest.mark.parametrize("check", [True, False])
def test_a_cut_tar_is_named_where_it_is_cut_and_the_rest_is_still_read(url: str, check: bool) -> None:
    dataset = Dataset.open(url)
    row = next(r for r in dataset.index().to_pylist() if r["uid"] == sample(4).uid)
    path = dataset.manifest.shards[0].path
    dataset.store.put_replace(path, dataset.store.read(path)[: row["media"][1]["offset"] + 5])
    with pytest.raises(ShardError, match=rf"train-000000\.tar: sample {row['uid']}, member {row['media'][1]['name']} is cut: 5 of"):
        list(dataset.samples(check=check))
    assert dataset.read([sample(3).uid], check=check)[0].uid == sample(3).uid


def test_missing_files_are_named(url: str) -> None:
    dataset = Dataset.open(url)
    dataset.store.delete(dataset.manifest.shards[0].path)
    with pytest.raises(ShardError, match=r"train-000000\.tar is missing"):
        list(dataset.samples())
    dataset.store.delete(dataset.manifest.shards[1].index)
    with pytest.raises(ShardError, match=r"train-000001\.parquet is missing"):
        dataset.index()


def test_an_index_that_is_not_the_manifests_is_refused(url: str) -> None:
    dataset = Dataset.open(url)
    one, two = dataset.manifest.shards[:2]
    dataset.store.put_replace(one.index, dataset.store.read(two.index))
    for read in (dataset.index, lambda: list(dataset.samples()), lambda: dataset.read([sample(0).uid])):
        with pytest.raises(ShardError, match=r"train-000000\.parquet: not the index that the manifest names"):
            read()


def test_a_uid_in_two_shards_is_refused_at_random_reading(tmp_path: Path) -> None:
    publish(str(tmp_path / "ds"), tmp_path, {"train-000000": [sample(0)], "train-000001": [sample(1), sample(0)]})
    with pytest.raises(ShardError, match=f"{sample(0).uid} is twice"):
        Dataset.open(str(tmp_path / "ds")).read([sample(1).uid])


def test_a_new_index_over_an_old_tar_hides_what_it_does_not_list(url: str) -> None:
    dataset = Dataset.open(url)
    old = dataset.manifest.shards
    table = dataset.index(split="train")
    keep = pc.and_(pc.equal(table["shard"], old[0].name), pc.greater(table["sharp"], pa.scalar(1.5)))
    info = publish_index(dataset.store, "v-cccc", old[0], table.filter(keep))
    assert info == publish_index(dataset.store, "v-cccc", old[0], table.filter(keep))
    assert (info.path, info.index, info.samples) == (old[0].path, f"v-cccc/train-000000.over-{VERSION}.parquet", 2)
    save_manifest(dataset.store, manifest([info, *old[2:]], "cccc", VERSION))
    now = Dataset.open(url)
    expected = [sample(5), sample(6), *two_splits()["val-000000"]]
    assert [r.uid for r in now.samples()] == [s.uid for s in expected]
    assert [_media(r) for r in now.read([sample(6).uid, sample(13).uid])] == [_given(sample(6)), _given(sample(13))]
    with pytest.raises(ShardError, match="no sample"):
        now.read([sample(0).uid])
    with pytest.raises(ShardError, match="one split only"):
        publish_index(dataset.store, "v-cccc", old[0], dataset.index())


def test_large_samples_are_read_in_batches_of_bounded_size(tmp_path: Path) -> None:
    samples = [sample(i, media=[ShardMedium("video", "x.mp4", os.urandom(3 << 20))], items=1) for i in range(9)]
    for url in (str(tmp_path / "ds"), f"memory://large-{tmp_path.name}"):
        publish(url, tmp_path, {"train-000000": samples})
        assert [r.media for r in Dataset.open(url).samples()] == [_given(s) for s in samples]


def test_more_shards_than_open_files_from_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "OPEN_FILES", 2)
    publish(str(tmp_path / "ds"), tmp_path, {f"train-{i:06d}": [sample(2 * i), sample(2 * i + 1)] for i in range(8)})
    dataset = Dataset.open(str(tmp_path / "ds"))
    uids = [sample(i).uid for i in range(16)]

    def read(turn: int) -> bool:
        wanted = [uids[(turn * k) % 16] for k in range(1, 20)]
        return [r.uid for r in dataset.read(wanted)] == wanted

    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_forked_process_reads_with_the_same_open_files(tmp_path: Path) -> None:
    publish(str(tmp_path / "ds"), tmp_path, two_splits())
    dataset = Dataset.open(str(tmp_path / "ds"))
    wanted = [s.uid for s in _all()]
    dataset.read(wanted)
    child = os.fork()
    if child == 0:
        same = all([r.media for r in dataset.read(wanted)] == [_given(s) for s in _all()] for _ in range(50))
        os._exit(0 if same else 1)
    assert all([r.uid for r in dataset.read(wanted)] == wanted for _ in range(50))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), unique=True), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5))))
def test_uids_that_share_their_first_half_are_told_apart(there: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    def packed(pairs: list[tuple[int, int]]) -> np.ndarray:
        return np.frombuffer(b"".join(a.to_bytes(8, "big") + b.to_bytes(8, "big") for a, b in pairs), np.uint8).reshape(-1, 16)

    found = UidTable(packed(there)).find(packed(asked)).tolist()
    assert found == [there.index(pair) if pair in there else -1 for pair in asked]


def test_members_of_parts_joined_are_members_of_the_whole(tmp_path: Path) -> None:
    infos = publish(str(tmp_path / "ds"), tmp_path, two_splits())
    dataset = Dataset(open_store(str(tmp_path / "ds")), replace(load_manifest(tmp_path / "ds"), shards=tuple(infos[:1])))
    part = members_of(dataset.index(), "here")
    both = joined([part, part])
    assert (len(both), both.rows) == (2 * len(part), 2 * part.rows)
    assert both.uids(slice(None)) == 2 * part.uids(slice(None))
    assert both.of(np.arange(len(part), len(both)))[0] == part.of(np.arange(len(part)))[0]
    assert both.first_row.tolist() == [*part.first_row, *(part.first_row + part.rows)]
