"""Parquet sources: media in cells or named by paths, identity by id or by content, damage."""

from __future__ import annotations

import datetime
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.errors import RecipeError
from shards.media import Limits
from shards.read import read_media
from shards.sample import Sample
from shards.sources import SourceSpec, check_source, list_containers, scan

LIMITS = Limits()


def picture(n: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8 + n, 8), (n, n, n)).save(out, "PNG")
    return out.getvalue()


def source(path: Path, **spec: Any) -> SourceSpec:
    return SourceSpec("pq", "parquet", str(path), **spec)


def samples(path: Path, **spec: Any) -> list[Sample]:
    return [s for c in list_containers(source(path, **spec)) for s in scan(source(path, **spec), c)]


def media(sample: Sample) -> list[bytes]:
    return [read_media(m, LIMITS) for m in sample.media]


def test_hugging_face_images(tmp_path: Path) -> None:
    rows = [
        {"id": n, "image": {"bytes": picture(n), "path": f"{n}.png"}, "caption": f"c{n}", "score": float("nan") if n == 0 else n / 2}
        for n in range(50)
    ]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20)
    assert check_source(source(path), ".") == []
    found = samples(path)
    assert [s.key for s in found] == [str(n) for n in range(50)]
    assert [s.unit for s in found] == ["a.parquet#0"] * 20 + ["a.parquet#1"] * 20 + ["a.parquet#2"] * 10
    for n, sample in enumerate(found):
        assert sample.texts.caption == f"c{n}"
        assert sample.texts.meta == {"score": None if n == 0 else n / 2}
        assert (sample.media[0].name, sample.media[0].cell) == (f"{n}.png", f"image.bytes/{n // 20}/{n % 20}")
        assert media(sample) == [picture(n)]
    assert [c.external for c in list_containers(source(path))] == [False]
    assert len(samples(path, where="score > 20")) == 9


def test_listing_reads_no_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": n, "image": {"bytes": picture(n), "path": "x.png"}, "caption": "c"} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    asked: list[list[str]] = []
    real = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, **kwargs: Any) -> Any:
        asked.append(kwargs["columns"])
        return real(self, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert len(samples(tmp_path)) == 5
    assert [sorted(columns) for columns in asked] == [["id"], ["caption", "id", "image.path"]]  # to count the ids, then to list


def test_without_id_the_content_is_the_identity(tmp_path: Path) -> None:
    rows = [{"image": picture(n), "text": "same"} for n in range(4)]
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "1" / "a.parquet")
    pq.write_table(pa.Table.from_pylist([*reversed(rows), rows[2]]), tmp_path / "2" / "b.parquet", row_group_size=2)
    one = {s.uid: media(s) for s in samples(tmp_path / "1")}
    other = {s.uid: media(s) for s in samples(tmp_path / "2")}
    assert one == other
    assert len(one) == 4


def test_one_id_with_other_bytes_is_two_samples(tmp_path: Path) -> None:
    rows = [{"id": "a", "image": picture(1)}, {"id": "b", "image": picture(2)}, {"id": "a", "image": picture(3)}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    one = {s.key: media(s) for s in samples(tmp_path)}
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "a.parquet")
    assert one == {s.key: media(s) for s in samples(tmp_path)}
    assert sorted(k[:2] for k in one) == ["a~", "a~", "b"]


def test_lists_paths_nulls_and_conversations(tmp_path: Path) -> None:
    (tmp_path / "beside.jpg").write_bytes(b"beside")
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = [
        {"id": "inline", "image": {"bytes": b"in", "path": None}, "conversations": turns, "day": datetime.date(2024, 1, 2)},
        {"id": "path", "image": {"bytes": None, "path": "beside.jpg"}, "conversations": None, "day": None},
        {"id": "gone", "image": {"bytes": None, "path": "gone.jpg"}, "conversations": None, "day": None},
        {"id": "none", "image": None, "conversations": turns, "day": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = {s.key: s for s in samples(tmp_path / "a.parquet")}
    assert media(found["inline"]) == [b"in"]
    assert found["inline"].texts.conversations == tuple(turns)
    assert found["inline"].texts.meta == {"day": "2024-01-02"}
    assert media(found["path"]) == [b"beside"]
    assert "gone.jpg" in (found["gone"].damage or "")
    assert (found["none"].kind, found["none"].damage) == ("text", None)
    assert [c.external for c in list_containers(source(tmp_path / "a.parquet"))] == [True]

    lists = [{"id": n, "images": [{"bytes": b"%d" % i, "path": f"{i}.jpg"} for i in range(n)], "clip": b"v%d" % n} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(lists), tmp_path / "b.parquet")
    found = {s.key: s for s in samples(tmp_path / "b.parquet", fields={"images": "images", "video": "clip"})}
    assert [media(found[str(n)]) for n in range(3)] == [[b"v0"], [b"0", b"v1"], [b"0", b"1", b"v2"]]
    assert found["2"].kind == "mixed"

    pq.write_table(pa.table({"id": ["p", "q"], "image_path": ["beside.jpg", None], "name": ["x", "y"]}), tmp_path / "c.parquet")
    one, two = samples(tmp_path / "c.parquet", fields={"caption": "name"})
    assert (media(one), one.texts.caption, two.kind) == ([b"beside"], "x", "text")


def test_text_only_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", None]}), tmp_path / "a.parquet")
    assert [(s.kind, s.texts.text) for s in samples(tmp_path)] == [("text", "a"), ("text", "b"), ("text", None)]


def test_wrong_fields_are_the_recipes_fault(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "text": ["a"]}), tmp_path / "a.parquet")
    for fields in ({"image": "picture"}, {"caption": "cap"}, {"image": "n"}):
        with pytest.raises(RecipeError, match="source 'pq'"):
            samples(tmp_path, fields=fields)


def test_damaged_files_are_said_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = [{"id": f"{n:04d}", "image": picture(n % 9), "caption": f"caption {n}" * 20} for n in range(300)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, compression="zstd", use_dictionary=False)
    good = (tmp_path / "a.parquet").read_bytes()
    chunk = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(2)
    middle = chunk.data_page_offset + chunk.total_compressed_size * 2 // 3
    (tmp_path / "a.parquet").write_bytes(good[:middle] + b"\xff" * 40 + good[middle + 40 :])
    found = samples(tmp_path)
    damage = [s for s in found if s.damage]
    assert len(damage) == 1
    assert "row group 1" in (damage[0].damage or "")
    assert {s.key for s in found if not s.damage} >= {f"{n:04d}" for n in (*range(100), *range(200, 300))}
    for cut in (0, 3, 100, len(good) // 2, len(good) - 1):
        (tmp_path / "a.parquet").write_bytes(good[:cut])
        (only,) = samples(tmp_path)
        assert "a.parquet" in (only.damage or "")
        assert only.key.startswith("a.parquet/@damage")


def test_ids_are_counted_without_reading_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in range(3):
        rows = [{"id": f"{part}-{n}", "kind": "a", "text": "long " * 50, "image": picture(n)} for n in range(20)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{part}.parquet")
    read: list[tuple[str, ...]] = []
    plain = pq.ParquetFile.iter_batches

    def spied(self: pq.ParquetFile, *args: Any, columns: list[str], **more: Any) -> Any:
        read.append(tuple(columns))
        return plain(self, *args, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spied)
    assert len(samples(tmp_path, where="kind = 'a'")) == 60
    assert read.count(("id", "kind")) == 3
    assert sum("text" in columns for columns in read) == 3
    with pytest.raises(RecipeError, match=r"named 'knid'; fields are id, kind, text"):
        samples(tmp_path, where="knid = 'a'")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_flipped_bytes_are_samples_or_damage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.parquet"
    table = pa.Table.from_pylist([{"id": f"{n}", "image": picture(n), "caption": f"caption {n}"} for n in range(6)])
    pq.write_table(table, path, row_group_size=2, compression=data.draw(st.sampled_from(["none", "zstd"])))
    raw = bytearray(path.read_bytes())
    pages = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")  # pyarrow itself aborts on some damaged footers
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, pages - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    found = samples(path)
    assert len({s.uid for s in found}) == len(found)
    for sample in found:
        sample.key.encode("utf-8")
        assert sample.damage is None or not sample.media
