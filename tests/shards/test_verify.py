"""Verification: every byte of every file counts, and the sample it belongs to is named."""

from __future__ import annotations

import io
import itertools
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import shards.twin as twin
from shards.index import MEASURE_TYPE, measure_type
from shards.manifest import Manifest, ShardInfo, load_manifest, save_manifest
from shards.publish import publish_index
from shards.reader import Dataset
from shards.store import open_store
from shards.twin import decode_index, encode_index
from shards.verify import Fault, verify
from shards.writer import ShardMedium
from tests.shards.corpus import VERSION, manifest, publish, sample, two_splits

TAR = f"v-{VERSION}/train-000000.tar"
INDEX = f"v-{VERSION}/train-000000.parquet"


@dataclass(frozen=True)
class Place:
    """Bytes [start, end) of the tar: header, content and padding of one member, or (uid None) the end of the archive."""

    start: int
    end: int
    uid: str | None
    member: str | None


@dataclass(frozen=True)
class Whole:
    root: Path
    tar: bytes
    places: list[Place]

    def at(self, byte: int) -> Place:
        return next(p for p in self.places if p.start <= byte < p.end)

    def with_tar(self, data: bytes) -> list[Fault]:
        (self.root / TAR).write_bytes(data)
        try:
            return verify(str(self.root))
        finally:
            (self.root / TAR).write_bytes(self.tar)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """One shard of six samples: small members, so that headers, padding and end are a good part of it."""
    scratch = tmp_path_factory.mktemp("whole")
    root = scratch / "ds"
    made = [replace(sample(i), media=[replace(m, data=bytes([i + 1]) * (200 * i + 3)) for m in sample(i).media]) for i in range(6)]
    publish(str(root), scratch, {"train-000000": made})
    places: list[Place] = []
    for row in Dataset.open(str(root)).index().to_pylist():
        for m in [*row["media"], row["json"]]:
            end = m["offset"] + m["length"] + -m["length"] % 512
            if not places or m["offset"] - 512 >= places[-1].end:
                places.append(Place(m["offset"] - 512, end, row["uid"], m["name"]))
    tar = (root / TAR).read_bytes()
    places.append(Place(places[-1].end, len(tar), None, None))
    assert places[0].start == 0
    assert all(a.end == b.start for a, b in itertools.pairwise(places))
    return Whole(root, tar, places)


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_whole_dataset_has_no_faults(tmp_path: Path, kind: str) -> None:
    url = str(tmp_path / "ds") if kind == "local" else f"memory://verify-{tmp_path.name}"
    publish(url, tmp_path, two_splits())
    seen: list[ShardInfo] = []
    assert verify(url, seen.append) == []
    assert [s.split for s in seen] == ["train", "train", "val"]
    assert verify(f"{url}/v-{VERSION}") == []


def test_a_flip_anywhere_is_noticed_and_its_sample_named(whole: Whole) -> None:
    for byte in range(0, len(whole.tar), 13):  # 13 shares no factor with 512: every field of a header is met in some header
        changed = bytearray(whole.tar)
        changed[byte] ^= 1 << byte % 8
        faults = whole.with_tar(bytes(changed))
        place = whole.at(byte)
        assert [(f.shard, f.uid, f.member) for f in faults] == [(TAR, place.uid, place.member)], byte


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_to_a_few_bytes_names_every_sample_it_met(whole: Whole, data: st.DataObject) -> None:
    flips = data.draw(st.dictionaries(st.integers(0, len(whole.tar) - 1), st.integers(1, 255), min_size=1, max_size=4))
    changed = bytearray(whole.tar)
    for byte, bits in flips.items():
        changed[byte] ^= bits
    faults = whole.with_tar(bytes(changed))
    assert {(f.uid, f.member) for f in faults} == {(whole.at(byte).uid, whole.at(byte).member) for byte in flips}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_anywhere_is_noticed_and_names_the_first_sample_lost(whole: Whole, data: st.DataObject) -> None:
    edges = [p.start for p in whole.places]
    length = data.draw(st.integers(0, len(whole.tar) - 1) | st.sampled_from(edges))
    faults = whole.with_tar(whole.tar[:length])
    place = whole.at(length)
    assert [(f.shard, f.uid, f.member) for f in faults] == [(TAR, place.uid, place.member)]
    assert "cut" in faults[0].what


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(extra=st.binary(min_size=1, max_size=2000))
@example(extra=bytes(512))
def test_bytes_after_the_end_are_noticed(whole: Whole, extra: bytes) -> None:
    assert [f.what for f in whole.with_tar(whole.tar + extra)] == [f"{len(extra)} bytes too long"]


def test_inserted_and_removed_blocks_are_noticed(whole: Whole) -> None:
    for place in whole.places[1:-1]:
        inserted = whole.tar[: place.start] + bytes(512) + whole.tar[place.start :]
        removed = whole.tar[: place.start] + whole.tar[place.end :]
        for faults in (whole.with_tar(inserted), whole.with_tar(removed)):
            assert (faults[0].uid, faults[0].member) == (place.uid, place.member)


@pytest.mark.parametrize("file", [INDEX, "manifest.json", f"v-{VERSION}/manifest.json"])
def test_every_flip_and_cut_of_index_and_manifest_is_noticed(whole: Whole, file: str) -> None:
    path = whole.root / file
    data = path.read_bytes()
    try:
        for byte in range(0, len(data), 1 + len(data) // 150):
            changed = bytearray(data)
            changed[byte] ^= 1 << byte % 8
            for damaged in (bytes(changed), data[:byte]):
                path.write_bytes(damaged)
                faults = verify(str(whole.root))
                assert faults
                assert {f.shard for f in faults} <= {file, f"v-{VERSION}/manifest.json"}
        path.unlink()
        assert file in {f.shard for f in verify(str(whole.root))}
    finally:
        path.write_bytes(data)
    assert verify(str(whole.root)) == []


def test_with_a_damaged_index_the_tar_is_still_checked_by_its_own_headers(whole: Whole) -> None:
    index = (whole.root / INDEX).read_bytes()
    (whole.root / INDEX).write_bytes(index[:-1])
    try:
        assert [f.shard for f in whole.with_tar(whole.tar)] == [INDEX]
        for place in whole.places[:-1]:
            padded = bytearray(whole.tar)
            padded[place.end - 1] ^= 1
            header = bytearray(whole.tar)
            header[place.start + 257] ^= 1
            faults = whole.with_tar(bytes(padded))
            assert [f.shard for f in faults] == [INDEX, TAR]
            assert f"byte {place.start}" in whole.with_tar(bytes(header))[1].what
            if whole.tar[place.end - 1] == 0:  # else the member has no padding, and only sha256 covers its content
                assert faults[1].uid == place.uid
    finally:
        (whole.root / INDEX).write_bytes(index)


def test_missing_and_extra_files_are_named(tmp_path: Path) -> None:
    root = tmp_path / "ds"
    publish(str(root), tmp_path, two_splits())
    (root / f"v-{VERSION}" / "train-000009.tar").write_bytes(b"stray")
    (root / "notes.txt").write_bytes(b"stray")
    (root / "v-0ld0").mkdir()
    (root / "v-0ld0" / "train-000000.tar").write_bytes(b"another version's")
    (root / TAR).unlink()
    (root / f"v-{VERSION}" / "val-000000.parquet").unlink()
    assert {f.shard for f in verify(str(root))} == {
        f"v-{VERSION}/train-000009.tar",
        "notes.txt",
        TAR,
        f"v-{VERSION}/val-000000.parquet",
    }
    assert verify(str(tmp_path / "nowhere"))[0].what.startswith("missing")


def _republished(root: Path, change: Callable[[pa.Table], pa.Table], **said: object) -> list[Fault]:
    """Faults of a dataset whose first index was changed with all its checksums made to fit, as a faulty writer would leave it."""
    store = open_store(str(root))
    made = load_manifest(root)
    shard = made.shards[0]
    table = change(decode_index(store.read(shard.index), shard.index))
    samples = len(set(zip(table["uid"].to_pylist(), table["offset"].to_pylist(), strict=True)))
    items = sum(task != "" for task in table["task"].to_pylist())
    info, data = encode_index(table, replace(shard, rows=table.num_rows, samples=samples, items=items, **said))  # type: ignore[arg-type]
    _publish(root, replace(made, shards=(info, *made.shards[1:])), {shard.index: data})
    return verify(str(root))


def _publish(root: Path, made: Manifest, files: dict[str, bytes]) -> None:
    store = open_store(str(root))
    for name, data in files.items():
        store.put_replace(name, data)
    store.delete(f"{made.folder}/manifest.json")
    save_manifest(store, made)


def _set(table: pa.Table, column: str, row: int, change: Callable[[object], object]) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = change(values[row])
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


CHANGES: dict[str, tuple[Callable[[pa.Table], pa.Table], str, bool]] = {
    # what was changed in the index, what the fault says, whether sample 0 is named
    "checksum": (lambda t: _set(t, "json", 0, lambda m: {**m, "xxh3": 1}), "checksum", True),
    "length": (lambda t: _set(t, "json", 0, lambda m: {**m, "length": m["length"] - 1}), "tar header", True),
    "name": (lambda t: _set(t, "json", 0, lambda m: {**m, "name": "x.json"}), "tar header", True),
    "unwritable name": (lambda t: _set(t, "json", 0, lambda m: {**m, "name": "é" * 200}), "tar header", True),
    "place": (lambda t: _set(t, "json", 0, lambda m: {**m, "offset": m["offset"] + 512}), "does not follow", True),
    "below zero": (lambda t: _set(t, "json", 0, lambda m: {**m, "length": -5}), "does not follow", True),
    "bytes": (lambda t: _set(t, "bytes", 0, lambda b: b + 512), "its members take", True),
    "task": (lambda t: _set(t, "task", 0, lambda _: "ocr"), "it has the items", True),
    "uid": (lambda t: _set(t, "uid", 0, lambda _: "f" * 32), "JSON of sample", False),
    "no uid": (lambda t: _set(t, "uid", 0, lambda _: "é"), "JSON of sample", False),
    "split": (lambda t: _set(t, "split", 0, lambda _: "val"), "column split says 'val'", False),
    "shard": (lambda t: _set(t, "shard", 0, lambda _: "other.tar"), "column shard says", False),
    "row lost": (lambda t: t.slice(1), "belong to no sample of its index", False),
    "row twice": (lambda t: pa.concat_tables([t.slice(0, 1), t]), "same (uid, task, n)", True),
    "order": (lambda t: pa.concat_tables([t.slice(1), t.slice(0, 1)]), "before the sample before it ends", True),
    "column lost": (lambda t: t.drop_columns(["sharp"]), "its columns are not those", False),
    "column more": (lambda t: t.append_column("more", t["n"]), "its columns are not those", False),
    "type": (lambda t: t.set_column(t.schema.get_field_index("sharp"), "sharp", t["sharp"].cast(pa.float64())), "its columns", False),
    "profile more": (lambda t: t.append_column(pa.field("huge", MEASURE_TYPE), t["tiny"]), "its columns", False),
}


def test_an_index_of_the_first_format_is_read_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lacks what was measured later, and only that."""
    old = "fovea-index/1"
    monkeypatch.setattr(twin, "INDEX_FORMAT", old)
    root = tmp_path / "ds"
    publish(str(root), tmp_path, two_splits())

    def before(table: pa.Table) -> pa.Table:
        values = [
            None if v is None else {**v, "media": [{k: m[k] for k in m if not k.startswith("distinct")} for m in v["media"]]}
            for v in table["tiny"].to_pylist()
        ]
        field = pa.field("tiny", measure_type(old))
        return table.set_column(table.schema.get_field_index("tiny"), field, pa.array(values, field.type))

    store, made = open_store(str(root)), load_manifest(root)
    infos = []
    for shard in made.shards:
        info, data = encode_index(before(decode_index(store.read(shard.index), shard.index)), shard)
        store.put_replace(info.index, data)
        infos.append(info)
    _publish(root, replace(made, shards=tuple(infos)), {})
    assert verify(str(root)) == []
    table = Dataset.open(str(root)).index(["uid", "tiny.media.list.element.t", "tiny.media.list.element.distinct"])
    assert table.schema.field("tiny").type.field("media").type.value_type.names == ["t"]


@pytest.mark.parametrize("case", CHANGES)
def test_an_index_that_disagrees_with_tar_or_manifest_is_noticed_though_its_checksums_fit(tmp_path: Path, case: str) -> None:
    publish(str(tmp_path / "ds"), tmp_path, {"train-000000": [sample(i) for i in range(5)]})
    change, what, named = CHANGES[case]
    faults = _republished(tmp_path / "ds", change)
    assert any(what in f.what and (f.uid == sample(0).uid or not named) for f in faults), faults


def test_an_index_unchanged_but_written_again_is_no_fault(tmp_path: Path) -> None:
    publish(str(tmp_path / "ds"), tmp_path, {"train-000000": [sample(i) for i in range(5)]})
    assert _republished(tmp_path / "ds", lambda table: table) == []


@pytest.mark.parametrize(("said", "what"), [({"bytes": 5120}, "made for a tar"), ({"sha256": "a" * 64}, "made for a tar")])
def test_a_manifest_that_says_another_tar_is_noticed(tmp_path: Path, said: dict[str, object], what: str) -> None:
    root = tmp_path / "ds"
    publish(str(root), tmp_path, {"train-000000": [sample(i) for i in range(5)]})
    made = load_manifest(root)
    _publish(root, replace(made, shards=(replace(made.shards[0], **said),)), {})  # type: ignore[arg-type]
    faults = verify(str(root))
    assert any(what in f.what for f in faults)
    assert TAR in {f.shard for f in faults}


@pytest.mark.parametrize("count", ["rows", "samples", "items"])
def test_counts_of_the_manifest_that_are_not_the_indexs_are_noticed(tmp_path: Path, count: str) -> None:
    root = tmp_path / "ds"
    publish(str(root), tmp_path, {"train-000000": [sample(i) for i in range(5)]})
    made = load_manifest(root)
    _publish(root, replace(made, shards=(replace(made.shards[0], **{count: 99}),)), {})
    assert [(f.shard, f.what.split(", ")[-1]) for f in verify(str(root))] == [(INDEX, "the manifest says 99")]


def test_a_sample_in_two_shards_is_noticed(tmp_path: Path) -> None:
    publish(str(tmp_path / "ds"), tmp_path, {"train-000000": [sample(0)], "train-000001": [sample(1), sample(0)]})
    assert [(f.uid, f.what) for f in verify(str(tmp_path / "ds"))] == [(sample(0).uid, f"the same sample is in {INDEX} too")]


def test_under_a_new_index_unlisted_samples_are_no_fault_but_their_damage_is(tmp_path: Path) -> None:
    root = tmp_path / "ds"
    old = publish(str(root), tmp_path, {"train-000000": [sample(i) for i in range(6)]})[0]
    table = Dataset.open(str(root)).index()
    info = publish_index(open_store(str(root)), "v-cccc", old, table.filter(pc.is_in(table["key"], pa.array(["k1", "k4"]))))
    save_manifest(open_store(str(root)), manifest([info], "cccc", VERSION))
    assert verify(str(root)) == []
    tar = (root / TAR).read_bytes()
    last = table.to_pylist()[-1]
    for byte, uid in ((last["offset"] + 3, None), (last["json"]["offset"] + 3, None), (len(tar) - 1, None)):
        changed = bytearray(tar)
        changed[byte] ^= 1
        (root / TAR).write_bytes(changed)
        assert [(f.shard, f.uid) for f in verify(str(root))] == [(TAR, uid)]
    for length in (last["offset"] + 100, last["json"]["offset"] + 3, 5):
        (root / TAR).write_bytes(tar[:length])
        assert ["cut" in f.what for f in verify(str(root))] == [True]


def test_a_large_tar_is_not_held_in_memory(tmp_path: Path) -> None:
    class Film(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return os.urandom(len(super().read(size)))

    medium = ShardMedium("video", "x.mp4", lambda: Film(bytes(64 << 20)))
    publish(str(tmp_path / "ds"), tmp_path, {"train-000000": [sample(0, media=[medium], items=1)]})
    tracemalloc.start()
    faults = verify(str(tmp_path / "ds"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert faults == []
    assert peak < 24 << 20


def test_faults_speak_to_people() -> None:
    assert str(Fault(TAR, "ab", "ab.jpg", "its content is damaged")) == f"{TAR}, sample ab, member ab.jpg: its content is damaged"
    assert str(Fault(TAR, None, None, "missing")) == f"{TAR}: missing"
