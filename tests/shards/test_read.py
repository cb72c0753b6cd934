"""Media by reference: every way bytes can lie, limits before reading, and whose fault a failure is."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import cells
from shards.errors import InfrastructureError, LimitError, SourceError
from shards.media import Limits
from shards.paths import printable, to_local, to_text
from shards.read import open_media, opened, read_media
from shards.sample import MediaRef

LIMITS = Limits()


def whole(path: str | Path, length: int = -1, kind: str = "image") -> MediaRef:
    return MediaRef(kind, Path(str(path)).name, str(path), -1, length, "stamp")  # type: ignore[arg-type]


def test_whole_file_and_counter(tmp_path: Path) -> None:
    path = tmp_path / "ä b.jpg"
    path.write_bytes(b"0123456789")
    before = opened()
    assert read_media(whole(path), LIMITS) == b"0123456789"
    with open_media(whole(path, 10), LIMITS) as file:
        file.seek(4)
        assert file.read(3) == b"456"
    assert opened() == before + 2


def test_a_name_that_is_no_unicode_is_read(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 %41.jpg"
    with open(raw, "wb") as file:
        file.write(b"bytes")
    path = to_text(os.fsdecode(raw))
    path.encode("utf-8")
    assert to_local(path) == os.fsdecode(raw)
    assert read_media(whole(path), LIMITS) == b"bytes"
    assert printable("caf\udce9") != printable("caf\\udce9")


def test_limits_stop_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with open(path, "wb") as file:
        file.truncate(300_000_000)  # a hole: reading it would cost 300 MB of memory
    with pytest.raises(LimitError, match=r"300,000,000 bytes, more than limits.image.bytes = 200,000,000"):
        read_media(whole(path), LIMITS)
    with pytest.raises(LimitError):
        open_media(MediaRef("image", "a", str(path), 10, 200_000_001, "s"), LIMITS)
    with open_media(whole(path, kind="video"), LIMITS) as file:
        assert file.seek(0, io.SEEK_END) == 300_000_000
    with pytest.raises(LimitError, match=r"limits.video.bytes"):
        open_media(whole(path, kind="video"), Limits(video_bytes=1000))


def test_gone_changed_and_odd_files_belong_to_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with pytest.raises(SourceError, match=r"a\.jpg.*No such file"):
        read_media(whole(path), LIMITS)
    path.write_bytes(b"12345")
    with pytest.raises(SourceError, match="5 bytes, 9 when it was listed"):
        read_media(whole(path, 9), LIMITS)
    with pytest.raises(SourceError, match="no regular file"):
        read_media(whole(tmp_path), LIMITS)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(SourceError, match="no regular file"):
        read_media(whole(tmp_path / "pipe.jpg"), LIMITS)
    with pytest.raises(SourceError):
        read_media(whole(path / "below.jpg"), LIMITS)
    with pytest.raises(SourceError):
        read_media(whole(str(tmp_path / ("x" * 300))), LIMITS)
    with pytest.raises(SourceError, match="cannot be a file's name"):
        read_media(whole("/a\0b"), LIMITS)
    with pytest.raises(SourceError, match="reaches to byte 12"):
        read_media(MediaRef("image", "m", str(path), 2, 10, "s"), LIMITS)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EMFILE])
def test_a_failing_disk_is_infrastructure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")

    def fail(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(InfrastructureError, match=r"a\.jpg"):
        read_media(whole(path), LIMITS)


def test_no_permission_belongs_to_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")

    def refuse(*args: object, **kwargs: object) -> int:  # root may read everything, so the refusal is made here
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceError, match="Permission denied"):
        read_media(whole(path), LIMITS)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_window_is_a_file_of_its_own(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "window.bin"
    content = bytes(np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8))
    path.write_bytes(content)
    offset = data.draw(st.integers(0, 19_999))
    length = data.draw(st.integers(0, 20_000 - offset))
    expected = io.BytesIO(content[offset : offset + length])
    with open_media(MediaRef("video", "m", str(path), offset, length, "s"), LIMITS) as window:
        for _ in range(data.draw(st.integers(1, 8))):
            if data.draw(st.booleans()):
                place, whence = data.draw(st.sampled_from([(0, 0), (5, 0), (-length // 2, 2), (0, 2), (30_000, 0)]))
                assert window.seek(place, whence) == expected.seek(place, whence)
            size = data.draw(st.integers(-1, 12_000))
            assert window.read(size) == expected.read(size)
            assert window.tell() == expected.tell()


def test_remote_files_and_ranges() -> None:
    with fsspec.open("memory://read-test/a.bin", "wb") as file:
        file.write(b"0123456789")
    path = "memory://read-test/a.bin"
    assert read_media(whole(path, 10), LIMITS) == b"0123456789"
    assert read_media(MediaRef("image", "m", path, 3, 4, "s"), LIMITS) == b"3456"
    with open_media(whole(path), LIMITS) as one, open_media(whole(path), LIMITS) as other:
        assert one.read(2) == b"01"
        assert other.read(3) == b"012"
        assert one.read(2) == b"23"
    with pytest.raises(SourceError):
        read_media(whole("memory://read-test/none"), LIMITS)


def _table(rows: int, size: int) -> tuple[pa.Table, list[bytes]]:
    rng = np.random.default_rng(7)
    data = [rng.bytes(size + i % 5) for i in range(rows)]
    image = [{"bytes": d, "path": f"{i}.jpg"} for i, d in enumerate(data)]
    pages = [[{"bytes": d + b"0", "path": None}, {"bytes": d + b"1", "path": None}] for d in data]
    return pa.table({"image": image, "raw": pa.array(data, pa.large_binary()), "pages": pages, "a/b.c": data}), data


@pytest.mark.parametrize("whole_group", [1 << 28, 1])  # kept in memory; streamed
def test_cells_in_order_cost_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_group: int) -> None:
    monkeypatch.setattr(cells, "WHOLE_GROUP_BYTES", whole_group)
    monkeypatch.setattr(cells, "BATCH_BYTES", 16_000)
    table, data = _table(90, 1000)
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=30)
    streams: list[tuple[int, ...]] = []
    real = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, *args: object, **kwargs: object) -> object:
        streams.append(tuple(kwargs["row_groups"]))  # type: ignore[arg-type]
        return real(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)

    def cell(column: str, row: int) -> bytes:
        return read_media(MediaRef("image", "m", str(path), -1, -1, "s", f"{column}/{row // 30}/{row % 30}"), LIMITS)

    for row in range(90):
        assert cell("image.bytes", row) == data[row]
    assert streams == [(0,), (1,), (2,)]
    for row in range(90):
        assert cell("raw", row) == data[row]
        assert cell("pages[1].bytes", row) == data[row] + b"1"
        assert cell("a/b.c", row) == data[row]
    assert cell("pages[0].bytes", 3) == data[3] + b"0"


@settings(max_examples=25, deadline=None)
@given(order=st.lists(st.integers(0, 49), min_size=1, max_size=40), streamed=st.booleans())
def test_cells_in_any_order(tmp_path_factory: pytest.TempPathFactory, order: list[int], streamed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{streamed}.parquet"
    table, data = _table(50, 500)
    if not path.exists():
        pq.write_table(table, path, row_group_size=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "WHOLE_GROUP_BYTES", 1 if streamed else 1 << 28)
        patch.setattr(cells, "BATCH_BYTES", 4_000)
        cells._groups.clear()
        for row in order:
            ref = MediaRef("image", "m", str(path), -1, -1, "s", f"image.bytes/{row // 20}/{row % 20}")
            assert read_media(ref, LIMITS) == data[row]


def test_a_rewritten_parquet_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    ref = MediaRef("image", "m", str(path), -1, -1, "s", "b/0/0")
    pq.write_table(pa.table({"b": [b"old"]}), path)
    assert read_media(ref, LIMITS) == b"old"
    pq.write_table(pa.table({"b": [b"newer"]}), path)
    assert read_media(ref, LIMITS) == b"newer"


def test_bad_cells_belong_to_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table, _ = _table(5, 100)
    table = table.append_column("nulls", pa.array([None] * 5, pa.binary())).append_column("text", pa.array(["x"] * 5))
    pq.write_table(table, path)
    for cell, message in {
        "nulls/0/0": "null",
        "text/0/0": "holds str",
        "none/0/0": "no column",
        "raw/0/99": "no row 99",
        "raw/7/0": "cannot be read",
        "pages[9].bytes/0/0": "cannot be read",
        "image.nothing/0/0": "cannot be read",
    }.items():
        with pytest.raises(SourceError, match=message):
            read_media(MediaRef("image", "m", str(path), -1, -1, "s", cell), LIMITS)
    with pytest.raises(LimitError):
        read_media(MediaRef("image", "m", str(path), -1, -1, "s", "raw/0/1"), Limits(image_bytes=50))
    with pytest.raises(SourceError, match="No such file"):
        read_media(MediaRef("image", "m", str(tmp_path / "none"), -1, -1, "s", "raw/0/1"), LIMITS)


def test_damaged_parquet_pages_belong_to_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(3)
    pq.write_table(pa.table({"b": [rng.bytes(50) * 40 for _ in range(50)]}), path, compression="zstd", use_dictionary=False)
    good = path.read_bytes()
    refused = 0
    for at in range(10, len(good) - 400, 97):
        path.write_bytes(good[:at] + bytes(b ^ 0xFF for b in good[at : at + 8]) + good[at + 8 :])
        cells._groups.clear()
        try:
            read_media(MediaRef("image", "m", str(path), -1, -1, "s", "b/0/20"), LIMITS)
        except SourceError:
            refused += 1
    assert refused > 5
