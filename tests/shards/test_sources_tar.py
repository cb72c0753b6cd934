"""WebDataset sources: tars of every dialect, and no cut or flipped byte that gives an exception or half a sample."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.media import Limits
from shards.read import read_media
from shards.sample import Sample
from shards.sources import SourceSpec, list_containers, scan
from shards.sources.tarscan import tar_members
from shards.sources.webdataset import split_name

LIMITS = Limits()


def samples(path: Path | str, **spec: Any) -> list[Sample]:
    source = SourceSpec("wds", "webdataset", str(path), **spec)
    return [s for c in list_containers(source) for s in scan(source, c)]


def tar_bytes(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.write_bytes(tar_bytes(members, form))
    return path


def img2dataset(count: int) -> list[tuple[str, bytes]]:
    members = []
    for n in range(count):
        record = {"caption": f"json {n}", "url": f"https://x/{n}", "width": n}
        members += [
            (f"{n:05d}.jpg", bytes([n]) * (700 * n + 5)),
            (f"{n:05d}.json", json.dumps(record).encode()),
            (f"{n:05d}.txt", f"txt {n}".encode()),
        ]
    return members


def test_the_layout_of_img2dataset(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    write(tmp_path / "part" / "00000.tar", img2dataset(5))
    write(tmp_path / "00001.tar", img2dataset(2))
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"")
    found = samples(tmp_path)
    assert [s.key for s in found] == ["00001.tar/00000", "00001.tar/00001", *(f"part/00000.tar/0000{n}" for n in range(5))]
    assert [s.unit for s in found] == ["00001.tar#0"] * 2 + ["part/00000.tar#0"] * 5
    sample = found[-1]
    assert (sample.texts.caption, sample.texts.meta) == ("txt 4", {"caption": "json 4", "url": "https://x/4", "width": 4})
    assert [read_media(m, LIMITS) for m in sample.media] == [b"\4" * 2805]
    assert len({m.stamp for s in found for m in s.media}) == 7
    (alone,) = [s for s in samples(tmp_path / "part" / "00000.tar") if s.key.endswith("4")]
    assert alone.key == "00000.tar/00004"
    by_field = samples(tmp_path, fields={"caption": "caption", "text": "txt"})
    assert (by_field[0].texts.caption, by_field[0].texts.text) == ("json 0", "txt 0")


def test_what_the_webdataset_library_writes(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=10, verbose=0) as sink:
        for n in range(25):
            sink.write({"__key__": f"dir/{n:04d}", "00.jpg": b"a%d" % n, "01.png": b"b%d" % n, "txt": f"t{n}", "json": {"n": n}})
    found = samples(tmp_path)
    assert len(found) == 25
    for n, sample in enumerate(found):
        assert sample.key == f"{n // 10:05d}.tar/dir/{n:04d}"
        assert [read_media(m, LIMITS) for m in sample.media] == [b"a%d" % n, b"b%d" % n]
        assert (sample.texts.caption, sample.texts.meta) == (f"t{n}", {"n": n})


NAMES = [
    "a.jpg",
    "../../etc/passwd.jpg",
    "/abs.jpg",
    "./dot/a.b.c.JPG",
    "ünï 图.mp4",
    "d" * 60 + "/" + "e" * 90 + ".jpg",
    "x" * 300 + ".webp",
    "long/" * 60 + "y.png",
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_dialect_are_data(tmp_path: Path, form: int) -> None:
    names = NAMES if form != tarfile.USTAR_FORMAT else NAMES[:6]
    path = write(tmp_path / "a.tar", [(n, n.encode()) for n in names], form)
    found = samples(path)
    assert [m.name for s in found for m in s.media] == names
    assert [s.key for s in found] == ["a.tar/" + (split_name(n) or ("",))[0] for n in names]
    assert [read_media(m, LIMITS) for s in found for m in s.media] == [n.encode() for n in names]
    assert found[4].kind == "video"


def test_members_agree_with_tarfile(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        for kind, name in ((tarfile.DIRTYPE, "dir"), (tarfile.SYMTYPE, "s.jpg"), (tarfile.LNKTYPE, "h.jpg"), (tarfile.FIFOTYPE, "f.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "plain.jpg"
            info.size = 77 if kind != tarfile.DIRTYPE else 0
            tar.addfile(info)
        info = tarfile.TarInfo("plain.jpg")
        info.size, info.mtime = 5, 1.5
        tar.addfile(info, io.BytesIO(b"plain"))
    with open(tmp_path / "a.tar", "rb") as file, tarfile.open(tmp_path / "a.tar") as tar:
        size = (tmp_path / "a.tar").stat().st_size
        mine = [(m.name.rstrip("/"), m.offset) for m in tar_members(file, size)]
        assert mine == [(m.name, m.offset_data) for m in tar.getmembers()]
    found = {s.key: s for s in samples(tmp_path)}
    assert "a symbolic link" in (found["a.tar/s"].damage or "")
    assert "a hard link" in (found["a.tar/h"].damage or "")
    assert "a pipe" in (found["a.tar/f"].damage or "")
    assert read_media(found["a.tar/plain"].media[0], LIMITS) == b"plain"
    assert len(found) == 4


def test_sizes_in_base_256_and_sparse_files(tmp_path: Path) -> None:
    raw = bytearray(tar_bytes([("a.jpg", b"12345"), ("b.jpg", b"67")], tarfile.GNU_FORMAT))

    def seal(at: int) -> None:
        raw[at + 148 : at + 156] = b" " * 8
        raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])

    raw[124:136] = b"\x80" + struct.pack(">3xQ", 5)
    seal(0)
    raw[1024 + 156 : 1024 + 157] = b"S"
    seal(1024)
    (tmp_path / "a.tar").write_bytes(raw)
    one, two = samples(tmp_path)
    assert read_media(one.media[0], LIMITS) == b"12345"
    assert "a sparse file" in (two.damage or "")
    raw[124:136] = b"\x80" + struct.pack(">3xQ", 2**60)
    seal(0)
    (tmp_path / "a.tar").write_bytes(raw)
    (only,) = samples(tmp_path)
    assert only.key == "a.tar/@damage"
    assert "needs" in (only.damage or "")


def test_groups_annotations_and_damaged_texts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar",
        [
            ("1.jpg", b"a"),
            ("1.seg.png", b"b"),
            ("1.ocr.xml", b"<x/>"),
            ("1.json", b"[1, 2]"),
            ("2.jpg", b"c"),
            ("2.json", b"{broken"),
            ("3.txt", b"\xff"),
            ("4.json", b'{"text": "alone"}'),
            ("noext", b"x"),
            (".hidden.jpg", b"x"),
        ],
    )
    found = {s.key: s for s in samples(path)}
    assert list(found) == [f"a.tar/{n}" for n in (1, 2, 3, 4)]
    assert [m.name for m in found["a.tar/1"].media] == ["1.jpg", "1.seg.png"]
    assert found["a.tar/1"].texts.meta == {"json": [1, 2], "annotations": ["1.ocr.xml"]}
    assert "2.json: no JSON" in (found["a.tar/2"].damage or "")
    assert "3.txt: no UTF-8" in (found["a.tar/3"].damage or "")
    assert (found["a.tar/4"].kind, found["a.tar/4"].texts.text) == ("text", "alone")


def test_a_key_that_comes_again_is_known_by_content(tmp_path: Path) -> None:
    one, two = [("k.jpg", b"1"), ("k.txt", b"one")], [("k.jpg", b"2"), ("k.txt", b"two")]
    other = [("o.jpg", b"x")]
    keys = []
    for n, order in enumerate((one + two + other, two + other + one + two)):
        path = write(tmp_path / "a.tar", order)
        found = samples(path)
        assert len({s.uid for s in found}) == len(found) == 3, n
        keys.append({s.key: s.texts.caption for s in found})
    assert keys[0] == keys[1]
    assert sorted(k[:8] for k in keys[0]) == ["a.tar/k~", "a.tar/k~", "a.tar/o"]


MEMBERS = [*img2dataset(4), ("z" * 150 + ".jpg", b"long"), ("z" * 150 + ".txt", b"long")]
TRUTH = {
    "00000": ("txt 0", bytes([0]) * 5),
    "00001": ("txt 1", bytes([1]) * 705),
    "00002": ("txt 2", bytes([2]) * 1405),
    "00003": ("txt 3", bytes([3]) * 2105),
    "z" * 150: ("long", b"long"),
}


def check_whole(found: list[Sample]) -> list[str]:
    """Every sample is whole and true; returns the keys."""
    for sample in found:
        if sample.damage is None:
            caption, data = TRUTH[sample.key.removeprefix("a.tar/")]
            assert sample.texts.caption == caption
            assert [read_media(m, LIMITS) for m in sample.media] == [data]
            assert sample.key.endswith("z") or sample.texts.meta["url"]
    return [s.key for s in found if s.damage is None]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_anywhere(tmp_path: Path, form: int) -> None:
    good = tar_bytes(MEMBERS, form)
    path = tmp_path / "a.tar"
    data_end = len(good.rstrip(b"\0"))
    last = -1
    for cut in sorted({*range(0, len(good), 61), *range(0, len(good), 512), *range(1, len(good), 512), *range(511, len(good), 512)}):
        path.write_bytes(good[:cut])
        found = samples(path)
        keys = check_whole(found)
        assert len(keys) >= last >= -1
        last = len(keys)
        damage = [s for s in found if s.damage]
        if cut < data_end:
            assert [s.key for s in damage] == ["a.tar/@damage"], cut
            assert len(keys) < 5
            assert str(path) in (damage[0].damage or "")
        else:
            assert len(damage) <= 1
    assert last == 5


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_flipped_bytes_never_raise_and_never_give_half_a_sample(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "a.tar"
    good = tar_bytes(MEMBERS, data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))
    headers = [m.offset - 512 for m in tar_members(io.BytesIO(good), len(good))]
    at = data.draw(st.one_of(st.integers(0, len(good) - 1), st.builds(int.__add__, st.sampled_from(headers), st.integers(0, 511))))
    junk = data.draw(st.binary(min_size=1, max_size=700))
    path.write_bytes(good[:at] + junk + good[at + len(junk) :])
    found = samples(path)
    whole = [s for s in found if s.damage is None]
    for sample in whole:
        for ref in sample.media:
            assert len(read_media(ref, LIMITS)) == ref.length
    if any(h <= at < h + 512 and junk[: h + 512 - at] != good[at : at + len(junk)][: h + 512 - at] for h in headers):
        torn = next(i for i, h in enumerate(headers) if h <= at < h + 512)
        complete = len({name.split(".")[0] for name, _ in MEMBERS[:torn]})
        assert len(whole) <= complete or len(found) == len(TRUTH)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=3000))
def test_garbage_is_damage(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "g.tar"
    path.write_bytes(junk)
    found = samples(path)
    if len(junk) < 512 or junk.strip(b"\0"):
        assert [s.key for s in found] == ["g.tar/@damage"]


def test_compressed_tars_are_refused_aloud_and_the_empty_tar_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_bytes([*MEMBERS, ("noise.jpg", random.Random(1).randbytes(2000))])))
    write(tmp_path / "empty.tar", [])
    found = samples(tmp_path)
    assert [s.key for s in found] == ["a.tar.gz/@damage"]
    assert "no tar header at byte 0" in (found[0].damage or "")


def test_data_after_the_end_marker_is_damage(tmp_path: Path) -> None:
    one, two = tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2")]), tar_bytes([("c.jpg", b"3")])
    (tmp_path / "a.tar").write_bytes(one + two)
    found = samples(tmp_path)
    assert [s.key for s in found] == ["a.tar/a", "a.tar/@damage"]
    assert "follows the end marker" in (found[1].damage or "")
