"""PDFs are media as others: listed by every format, counted against a unit, read under limits of their own."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import InfrastructureError, LimitError, SourceError
from shards.media import Limits
from shards.read import read_media
from shards.sample import MEDIA_REF_TYPE, MediaRef, Sample, media_kind
from shards.sources import SourceSpec, list_containers, scan
from tests.pdfs import write_pdf


def samples(spec: SourceSpec) -> list[Sample]:
    return [sample for container in list_containers(spec) for sample in scan(spec, container)]


def one(spec: SourceSpec, data: bytes) -> Sample:
    (sample,) = samples(spec)
    assert [m.kind for m in sample.media] == ["pdf"]
    assert sample.kind == "pdf"
    assert read_media(sample.media[0], Limits()) == data
    return sample


def test_every_format_lists_them(tmp_path: Path) -> None:
    data = write_pdf(tmp_path / "folder/a.PDF", 1).read_bytes()
    (tmp_path / "folder/a.txt").write_text("the caption")
    assert one(SourceSpec("s", "folder", str(tmp_path / "folder")), data).texts.caption == "the caption"
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "1", "files": ["folder/a.PDF"]}) + "\n")
    one(SourceSpec("s", "manifest", str(tmp_path / "m.jsonl")), data)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        member = tarfile.TarInfo("x.pdf")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    one(SourceSpec("s", "webdataset", str(tmp_path / "t.tar")), data)
    pq.write_table(pa.table({"id": ["1"], "pdf": pa.array([data], pa.binary())}), tmp_path / "p.parquet")
    one(SourceSpec("s", "parquet", str(tmp_path / "p.parquet")), data)
    one(SourceSpec("s", "parquet", str(tmp_path / "p.parquet"), fields={"pdf": "pdf"}), data)


def test_they_count_against_a_unit_and_have_limits(tmp_path: Path) -> None:
    for n in range(3):
        with write_pdf(tmp_path / f"{n}.pdf", 1).open("r+b") as file:
            file.truncate(60_000_000)
    found = samples(SourceSpec("s", "folder", str(tmp_path)))
    assert [(s.unit, s.ordinal) for s in found] == [(".#0", 0), (".#0", 1), (".#1", 0)]
    with pytest.raises(LimitError, match=r"limits\.pdf\.bytes = 1,000"):
        read_media(found[0].media[0], Limits(pdf_bytes=1_000))


def test_rows_written_before_there_were_transforms_are_read(tmp_path: Path) -> None:
    ref = MediaRef("image", "a.png", "/a.png", -1, 3, "s")
    row = ref.to_row()
    assert list(row) == [field.name for field in MEDIA_REF_TYPE]
    assert MediaRef.from_row({k: v for k, v in row.items() if k not in ("transform", "original")}) == ref
    made = MediaRef("image", "a.png", "/a.png", 0, 3, "s", None, '{"operator": "pages"}', "0" * 64)
    assert MediaRef.from_row(made.to_row()) == made


def test_a_missing_file_of_ours_is_nobodys_bad_data(tmp_path: Path) -> None:
    gone = MediaRef("image", "a.png", str(tmp_path / "gone"), 0, 3, "s")
    with pytest.raises(SourceError):
        read_media(gone, Limits())
    with pytest.raises(InfrastructureError, match="derived"):
        read_media(MediaRef.from_row({**gone.to_row(), "transform": "{}", "original": "0"}), Limits())


def test_kinds_by_name() -> None:
    assert [media_kind(name) for name in ("a.pdf", "b.PDF", "pdf", "a.pdf.txt")] == ["pdf", "pdf", None, None]
