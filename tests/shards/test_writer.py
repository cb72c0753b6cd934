"""The writer: exact bytes in the tar, an index that tells the truth, nothing half done."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import subprocess
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import ShardError, SourceError
from shards.index import INDEX_FORMAT, index_schema
from shards.items import items_from_json
from shards.manifest import ShardInfo
from shards.publish import publish_shard, published_shard
from shards.sample import Texts, uid_of
from shards.store import open_store
from shards.tar import member_extension, member_names, parse_header, tar_header
from shards.writer import ShardMedium, ShardSample, score_name, write_shard
from tests.shards.corpus import SCHEMA, item, sample


def test_the_same_samples_give_the_same_bytes_however_their_media_come(tmp_path: Path) -> None:
    shards = []
    for way in range(3):
        samples = [sample(i) for i in range(9)]
        if way:
            for s in samples:
                for m in s.media:
                    assert isinstance(m.data, bytes)
                    (tmp_path / m.name.replace("/", "_")).write_bytes(m.data)
            ways: list[Any] = [None, lambda p: p, lambda p: lambda: p.open("rb")]
            samples = [
                replace(s, media=[replace(m, data=ways[way](tmp_path / m.name.replace("/", "_"))) for m in s.media]) for s in samples
            ]
        shards.append(write_shard(tmp_path / f"{way}.tar", "train-000000", samples, SCHEMA))
    tars = {(tmp_path / f"{way}.tar").read_bytes() for way in range(3)}
    assert len(tars) == 1
    assert len({s.index_data for s in shards}) == 1
    assert shards[0].info.sha256 == hashlib.sha256(tars.pop()).hexdigest()


def test_members_lie_in_the_documented_order_with_fixed_headers(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(3)]
    written = write_shard(tmp_path / "a.tar", "train-000000", samples, SCHEMA)
    one, two, none = (s.uid for s in samples)
    with tarfile.open(tmp_path / "a.tar", "r:") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"{one}.jpg", f"{one}.json", f"{two}.00.jpg", f"{two}.01.jpg", f"{two}.json", f"{none}.json"]
    for m in members:
        assert (m.mtime, m.uid, m.gid, m.mode, m.uname, m.gname, m.type) == (0, 0, 0, 0o644, "", "", tarfile.REGTYPE)
    end = members[-1].offset_data + members[-1].size
    data = (tmp_path / "a.tar").read_bytes()
    assert len(data) == written.info.bytes == end + (-end % 512) + 1024
    assert not any(data[end:])


def test_gnu_tar_reads_it_without_a_word(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("NO tar PROGRAM on this machine")
    write_shard(tmp_path / "a.tar", "train-000000", [sample(i) for i in range(6)], SCHEMA)
    done = subprocess.run(["tar", "-tvf", str(tmp_path / "a.tar")], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 6 + 6


def test_a_shard_without_samples_is_an_empty_tar(tmp_path: Path) -> None:
    written = write_shard(tmp_path / "a.tar", "val-000000", [], SCHEMA)
    assert (tmp_path / "a.tar").read_bytes() == bytes(1024)
    assert (written.info.samples, written.info.rows, written.index.num_rows) == (0, 0, 0)


@given(name=st.from_regex(r"[0-9a-f]{32}(\.[0-9]{2})?\.[a-z0-9]{1,5}", fullmatch=True), size=st.integers(0, 2**70))
def test_headers_are_understood_by_pythons_tarfile_at_any_size(name: str, size: int) -> None:
    header = tar_header(name, size)
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (info.name, info.size) == (name, size)
    assert parse_header(header) == (name, size)


@given(st.binary(min_size=512, max_size=512))
def test_what_is_no_header_is_none(block: bytes) -> None:
    assert parse_header(block) is None


def test_every_changed_byte_of_a_header_makes_it_none() -> None:
    for size in (37_000, 8**11):
        header = tar_header("0" * 32 + ".jpg", size)
        for place in range(512):
            changed = bytearray(header)
            changed[place] ^= 0x10
            assert parse_header(bytes(changed)) is None, place


@pytest.mark.parametrize(
    ("name", "found", "extension"),
    [
        ("a/b.JPEG", "", "jpg"),
        ("a/b.png", "JPEG", "jpg"),  # the bytes have the last word
        ("clip.MOV", "mov,mp4,m4a,3gp,3g2,mj2", "mov"),
        ("clip", "mov,mp4,m4a,3gp,3g2,mj2", "mp4"),
        ("clip.webm", "matroska,webm", "webm"),
        ("clip.avi", "matroska,webm", "mkv"),
        ("stream", "MPEGTS", "ts"),
        ("scan.tiff", "", "tif"),
        ("no-extension", "", "bin"),
        ("a.b/c", "", "bin"),
        ("x.p/../../etc", "", "bin"),
        ("x.jp\u00e9g", "", "bin"),
        ("x.extension", "", "bin"),
        ("x.json", "", "bin"),
    ],
)
def test_extensions_are_tame(name: str, found: str, extension: str) -> None:
    assert member_extension(name, found) == extension


def test_many_media_keep_their_order_by_name() -> None:
    uid = uid_of("s", "k")
    names = member_names(uid, ["jpg"] * 101)
    assert names[:2] == [f"{uid}.000.jpg", f"{uid}.001.jpg"]
    assert names[:-1] == sorted(names[:-1])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(st.binary(max_size=1500), max_size=4), st.integers(0, 3), st.text(max_size=20)), max_size=6))
def test_the_index_tells_the_truth_about_the_tar(tmp_path: Path, made: list[tuple[list[bytes], int, str]]) -> None:
    samples = [
        replace(sample(i, media=[ShardMedium("image", "x.png", data) for data in blobs], items=items), texts=Texts(caption=text))
        for i, (blobs, items, text) in enumerate(made)
    ]
    written = write_shard(tmp_path / "p.tar", "train-000000", samples, SCHEMA)
    data = (tmp_path / "p.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        real = {m.name: (m.offset_data, m.size) for m in tar.getmembers()}
    rows = written.index.to_pylist()
    assert [(r["uid"], r["task"], r["n"]) for r in rows] == [
        key for s in samples for key in ([(s.uid, i.task, i.n) for i in s.items] or [(s.uid, "", -1)])
    ]
    named = {}
    for row in rows:
        source = next(s for s in samples if s.uid == row["uid"])
        for m in [*row["media"], row["json"]]:
            body = data[m["offset"] : m["offset"] + m["length"]]
            named[m["name"]] = (m["offset"], m["length"])
            assert xxhash.xxh3_64_intdigest(body) == m["xxh3"]
            if "sha256" in m:
                assert m["sha256"] == m["original_sha256"] == hashlib.sha256(body).hexdigest()
        assert [data[m["offset"] : m["offset"] + m["length"]] for m in row["media"]] == [m.data for m in source.media]
        assert json.loads(data[row["json"]["offset"] :][: row["json"]["length"]])["texts"].get("caption") == source.texts.caption
        members = [*row["media"], row["json"]]
        assert row["offset"] == members[0]["offset"] - 512
        assert row["bytes"] == sum(512 + m["length"] + -m["length"] % 512 for m in members)
    assert named == real
    assert (written.info.samples, written.info.items) == (len(samples), sum(len(s.items) for s in samples))


def test_the_index_has_the_schema_of_the_contract_and_its_file_says_the_same(tmp_path: Path) -> None:
    written = write_shard(tmp_path / "a.tar", "train-000000", [sample(i) for i in range(5)], SCHEMA)
    assert written.index.schema.equals(SCHEMA)
    file = pq.read_table(io.BytesIO(written.index_data))
    assert file.to_pylist() == written.index.to_pylist()
    assert file.schema.metadata[b"format"] == INDEX_FORMAT.encode()
    rows = [r for r in written.index.to_pylist() if r["uid"] == sample(1).uid]
    assert [r["tiny"]["text_tokens"] for r in rows] == [1, 2]
    assert [r["sharp"] for r in rows] == pytest.approx([1 / 3, 1 / 3])
    lone = next(r for r in written.index.to_pylist() if r["uid"] == sample(3).uid)
    assert (lone["task"], lone["n"], lone["tiny"]) == ("", -1, None)


def test_the_json_member_holds_what_the_contract_says(tmp_path: Path) -> None:
    cut = {"operator": "cut", "version": 1, "parameters": {"start": 0}}
    medium = ShardMedium("video", "film.MP4", b"bytes", original_sha256="ab" * 32, transform=cut)
    given_ = replace(
        sample(0, media=[medium], items=2), texts=Texts(conversations=({"from": "human", "value": "hi"},), meta={"lang": "zh", "t": "你好"})
    )
    written = write_shard(tmp_path / "a.tar", "train-000000", [given_], SCHEMA)
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.extractfile(f"{given_.uid}.json")
        assert member is not None
        said = json.loads(member.read())
    digest = hashlib.sha256(b"bytes").hexdigest()
    assert said.pop("items") == json.loads(json.dumps([i.to_json() for i in given_.items]))
    assert said == {
        "format": "fovea-sample/1",
        "uid": given_.uid,
        "source": "s",
        "key": "k0",
        "kind": "image",
        "media": [
            {
                "member": f"{given_.uid}.mp4",
                "kind": "video",
                "name": "film.MP4",
                "sha256": digest,
                "original_sha256": "ab" * 32,
                "transform": cut,
            }
        ],
        "texts": {"conversations": [{"from": "human", "value": "hi"}], "meta": {"lang": "zh", "t": "你好"}},
        "scores": {"width": 0, "sharp": 0.0, "format": "JPEG"},
    }
    indexed = written.index.to_pylist()[0]["media"][0]
    assert (indexed["sha256"], indexed["original_sha256"], json.loads(indexed["transform"])) == (digest, "ab" * 32, cut)


def test_values_that_json_or_utf8_cannot_hold(tmp_path: Path) -> None:
    odd = replace(sample(0), key="caf\udce9", scores={"width": 1, "sharp": math.nan, "format": "\ud800"}, texts=Texts(caption="\udcff x"))
    written = write_shard(tmp_path / "a.tar", "train-000000", [odd], SCHEMA)
    row = written.index.to_pylist()[0]
    assert (row["key"], row["format"]) == ("caf\\udce9", "\\ud800")
    assert math.isnan(row["sharp"])
    data = (tmp_path / "a.tar").read_bytes()
    said = json.loads(data[row["json"]["offset"] :][: row["json"]["length"]].decode("utf-8"))
    assert said["scores"] == {"width": 1, "sharp": None, "format": "\ud800"}
    assert (said["key"], said["texts"]["caption"]) == ("caf\udce9", "\udcff x")


class _Film(io.RawIOBase):
    """A seekable file of `length` bytes that never exist at once; ends early at `real`."""

    def __init__(self, length: int, real: int | None = None) -> None:
        self.length, self.real, self.at, self.largest = length, length if real is None else real, 0, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (self.length if whence == io.SEEK_END else 0)
        return self.at

    def read(self, size: int = -1) -> bytes:
        self.largest = max(self.largest, size if size >= 0 else self.length)
        data = bytes([self.at >> 20 & 255]) * max(0, min(size if size >= 0 else self.length, self.real - self.at))
        self.at += len(data)
        return data


def test_a_film_is_streamed_and_never_held_whole(tmp_path: Path) -> None:
    film = _Film(96 << 20)
    opener: Any = lambda: film  # noqa: E731
    tracemalloc.start()
    written = write_shard(tmp_path / "a.tar", "train-000000", [sample(0, media=[ShardMedium("video", "x.mp4", opener)])], SCHEMA)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written.index.to_pylist()[0]["media"][0]["length"] == 96 << 20
    assert film.largest <= 1 << 20
    assert peak < 24 << 20


@pytest.mark.parametrize("change", ["sha256", "shorter"])
def test_a_medium_that_changed_since_it_was_read_is_an_error_of_the_sample_and_leaves_no_file(tmp_path: Path, change: str) -> None:
    film: Any = lambda: _Film(5000, 4000)  # noqa: E731
    medium = ShardMedium("image", "x.jpg", b"now", sha256="0" * 64) if change == "sha256" else ShardMedium("video", "x.mp4", film)
    with pytest.raises(SourceError, match=r"x\.\w+ of sample .* changed"):
        write_shard(tmp_path / "a.tar", "train-000000", [sample(0), sample(1, media=[medium])], SCHEMA)
    assert list(tmp_path.iterdir()) == []


def test_a_medium_with_the_declared_content_passes(tmp_path: Path) -> None:
    medium = ShardMedium("image", "x.jpg", b"now", sha256=hashlib.sha256(b"now").hexdigest())
    assert write_shard(tmp_path / "a.tar", "train-000000", [sample(0, media=[medium])], SCHEMA).info.samples == 1


def test_a_local_file_that_is_gone_is_an_error_of_the_sample(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.jpg"):
        write_shard(
            tmp_path / "a.tar", "train-000000", [sample(0, media=[ShardMedium("image", "gone.jpg", tmp_path / "gone.jpg")])], SCHEMA
        )


BAD: dict[str, tuple[list[ShardSample], str]] = {
    "uid": ([replace(sample(0), uid="../../etc/passwd")], "is no uid"),
    "twice": ([sample(0), sample(0)], "given twice"),
    "split": ([sample(0, "val")], "belongs to split 'val'"),
    "medium": ([replace(sample(2), items=[item("vqa", 0, 0)])], "medium 0 of 0"),
    "same item": ([replace(sample(0), items=[item("vqa", 0, 0)] * 2)], r"same \(task, n\)"),
    "task": ([replace(sample(0), items=[item("singing", 0, 0)])], "no such task"),
    "unknown score": ([replace(sample(0), scores={"beauty": 1})], "'beauty'"),
    "type of score": ([replace(sample(0), scores={"width": "wide"})], "score width"),
    "measures": ([replace(sample(0), measures={"tiny": []}), replace(sample(1), measures={"tiny": [None]})], "has 2 items"),
    "measure's keys": ([replace(sample(0), measures={"tiny": [{"text_tokens": 1}]})], "kept_tokens"),
    "profile": ([replace(sample(0), measures={"huge": [None]})], "'huge'"),
    "json": ([replace(sample(0), texts=Texts(meta={"x": b"bytes"}))], "cannot be written as JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_samples_that_do_not_fit_the_contract_are_refused(tmp_path: Path, case: str) -> None:
    samples, message = BAD[case]
    with pytest.raises(ShardError, match=message):
        write_shard(tmp_path / "a.tar", "train-000000", samples, SCHEMA)


def test_names_and_schemas_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name in ("train", "train-1", "../x-000000", "Train-000000", "train-00000٠"):
        with pytest.raises(ShardError, match="no shard's name"):
            write_shard(tmp_path / "a.tar", name, [], SCHEMA)
    with pytest.raises(ShardError, match="same name"):
        write_shard(tmp_path / "a.tar", "train-000000", [], index_schema([pa.field("bytes", pa.int64())]))
    with pytest.raises(ShardError, match="begins with the columns"):
        write_shard(tmp_path / "a.tar", "train-000000", [], pa.schema([pa.field("uid", pa.string())]))
    assert (score_name("bytes"), score_name("width")) == ("score_bytes", "width")


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_publishing_is_safe_to_repeat_and_refuses_other_bytes(tmp_path: Path, kind: str) -> None:
    store = open_store(str(tmp_path / "ds") if kind == "local" else f"memory://writer-{tmp_path.name}")
    written = write_shard(tmp_path / "a.tar", "train-000000", [sample(i) for i in range(4)], SCHEMA)
    assert published_shard(store, "v-abcd", "train-000000") is None
    info = publish_shard(store, "v-abcd", written)
    assert info == publish_shard(store, "v-abcd", written) == published_shard(store, "v-abcd", "train-000000")
    assert (info.path, info.index) == ("v-abcd/train-000000.tar", "v-abcd/train-000000.parquet")
    assert store.read(info.path) == (tmp_path / "a.tar").read_bytes()
    other = write_shard(tmp_path / "b.tar", "train-000000", [sample(i) for i in range(5)], SCHEMA)
    with pytest.raises(ShardError, match="other bytes"):
        publish_shard(store, "v-abcd", other)
    store.delete(info.path)
    with pytest.raises(ShardError, match="gone or cut"):
        published_shard(store, "v-abcd", "train-000000")


def test_killed_between_tar_and_index_the_shard_is_not_published(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ds"))
    written = write_shard(tmp_path / "a.tar", "train-000000", [sample(0)], SCHEMA)
    store.put_new_file("v-abcd/train-000000.tar", written.local_path)
    assert published_shard(store, "v-abcd", "train-000000") is None
    info: ShardInfo = publish_shard(store, "v-abcd", written)
    assert published_shard(store, "v-abcd", "train-000000") == info


def test_plain_webdataset_reads_the_tar(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(7)]
    write_shard(tmp_path / "train-000000.tar", "train-000000", samples, SCHEMA)
    read = list(webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False))
    assert [r["__key__"] for r in read] == [s.uid for s in samples]
    for s, r in zip(samples, read, strict=True):
        keys = {0: [], 1: ["jpg"], 2: ["00.jpg", "01.jpg"]}[len(s.media)]
        assert sorted(k for k in r if not k.startswith("__")) == sorted([*keys, "json"])
        assert [r[k] for k in keys] == [m.data for m in s.media]
        assert items_from_json(json.dumps(json.loads(r["json"])["items"])) == list(s.items)
    decoded = list(
        webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg;00.jpg json", missing_is_error=False)
    )
    assert {d[0].size for d in decoded if d[0] is not None} == {(24, 24)}


def test_real_files_come_out_as_they_went_in(tmp_path: Path, data_dir: Path) -> None:
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    chosen: list[Path] = []
    for kind in ("caption", "video", "hostile"):
        paths = [data_dir / p for r in records if r["kind"] == kind for p in r["files"]]
        chosen += [p for p in paths if p.is_file() and p.stat().st_size < 2_000_000][:8]
    assert len(chosen) == 24
    samples = [sample(i, media=[ShardMedium("image", p.name, p)], items=1) for i, p in enumerate(chosen)]
    write_shard(tmp_path / "a.tar", "train-000000", samples, SCHEMA)
    with tarfile.open(tmp_path / "a.tar") as tar:
        bodies = [tar.extractfile(m).read() for m in tar.getmembers() if not m.name.endswith(".json")]  # type: ignore[union-attr]
    assert bodies == [p.read_bytes() for p in chosen]


def test_another_tar_left_without_its_index_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ds"))
    store.put_new("v-abcd/train-000000.tar", b"another run's tar")
    written = write_shard(tmp_path / "a.tar", "train-000000", [sample(0)], SCHEMA)
    with pytest.raises(ShardError, match=r"train-000000\.tar is there already with other bytes"):
        publish_shard(store, "v-abcd", written)
    assert not store.exists("v-abcd/train-000000.parquet")
