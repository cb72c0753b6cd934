from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from curation import ocr_models
from curation.compose import What as ComposeWhat
from curation.compose import recognised_lines
from curation.ocr import STEP, OcrHow, What, reading_order
from curation.ocr_models import prepare_model
from curation.step import step_digest
from shards.errors import DecodeError, InfrastructureError
from tests.curation.views import media_view

Read = Callable[[Sequence[Any]], Sequence[Any]]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FOVEA_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def reader(cache: Path) -> Read:
    assert STEP.open is not None
    return STEP.open(What(), OcrHow())


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.upper()))


def recall(truth: str, found: str) -> float:
    wanted = words(truth)
    return sum((wanted & words(found)).values()) / sum(wanted.values())


@pytest.fixture(scope="module")
def sign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three lines: "Platform 9" at the top left, "DEPARTURES" right of it, "London 12:45" below."""
    image = Image.new("RGB", (800, 400), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(40)
    draw.text((40, 60), "Platform 9", "black", font)
    draw.text((440, 64), "DEPARTURES", "black", font)
    draw.text((40, 240), "London 12:45", "navy", font)
    path = tmp_path_factory.mktemp("sign") / "sign.png"
    image.save(path)
    return path


def test_rendered_lines_are_read_word_for_word_with_their_boxes(reader: Read, sign: Path) -> None:
    [row] = reader([media_view(sign)])
    assert row["text"] == "Platform 9\nDEPARTURES\nLondon 12:45"
    assert row["n_lines"] == 3
    assert 0.9 < row["confidence"] <= 1
    boxes = [line.box for line in recognised_lines(ComposeWhat(ocr="ocr"), {"ocr_lines": [row["lines"]]})]
    drawn = [(40, 240), (440, 700), (40, 290)]
    for (left, top, right, bottom), (x0, x1), (y0, y1) in zip(boxes, drawn, [(60, 105), (64, 110), (240, 285)], strict=True):
        assert abs(left * 800 - x0) < 25
        assert abs(right * 800 - x1) < 40
        assert y0 - 15 < top * 400 < y0 + 20
        assert y1 - 20 < bottom * 400 < y1 + 20


def test_rows_fit_their_columns_and_do_not_depend_on_the_batch(reader: Read, sign: Path, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "white").save(tmp_path / "blank.png")
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    paths = [tmp_path / "blank.png", tmp_path / "bad.jpg", sign, tmp_path / "dot.png"]
    blank, bad, text, dot = reader([media_view(p) for p in paths])
    assert isinstance(bad, DecodeError)
    assert blank == dot == {"text": "", "confidence": 0.0, "n_lines": 0, "lines": []}
    assert [text] == list(reader([media_view(sign)]))
    for column in STEP.columns(What()):
        pa.array([row[column.name] for row in (blank, text, dot)], column.type)


@pytest.mark.parametrize(("record", "floor"), [("d-ocr-0001", 0.9), ("d-ocr-0064", 0.97), ("d-ocr-0058", 0.97), ("d-ocr-0063", 0.97)])
def test_real_receipts_pages_and_signs(reader: Read, data_dir: Path, record: str, floor: float) -> None:
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    [truth] = [r for r in records if r["id"] == record]
    [row] = reader([media_view(data_dir / truth["files"][0])])
    assert recall(truth["text"], row["text"]) >= floor
    polygons = np.array([line["polygon"] for line in row["lines"]])
    assert polygons.shape == (row["n_lines"], 8)
    assert polygons.min() >= 0
    assert polygons.max() <= 1


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def test_reading_order_is_by_rows_then_from_the_left() -> None:
    boxes = np.array([box(50, 102, 90, 120), box(0, 0, 90, 20), box(0, 100, 40, 122), box(95, 98, 120, 118), box(0, 125, 9, 140)])
    assert reading_order(boxes) == [1, 2, 0, 3, 4]
    assert reading_order(np.zeros((0, 4, 2))) == []


def test_a_folder_of_the_same_files_reads_the_same(reader: Read, sign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert STEP.open is not None
    assert STEP.check is not None
    for part in ("det", "rec"):
        shutil.copytree(prepare_model(part, What().det).folder or "", tmp_path / part)
    monkeypatch.chdir(tmp_path)
    what = What(det="det", rec="rec")
    assert what.det == str(tmp_path / "det")
    STEP.check(what)
    assert list(STEP.open(what, OcrHow())([media_view(sign)])) == list(reader([media_view(sign)]))
    before = step_digest("ocr", STEP, what, [])
    (tmp_path / "rec" / "inference.onnx").write_bytes(b"other")
    assert step_digest("ocr", STEP, what, []) != before
    with pytest.raises(InfrastructureError, match="cannot be loaded"):
        STEP.open(what, OcrHow())


def test_the_cache_is_filled_once_and_never_half(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path))

    def torn(*_: Any, **__: Any) -> str:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(ocr_models.yaml, "safe_dump", torn)
        with pytest.raises(InfrastructureError, match="disk full"):
            prepare_model("det", What().det)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    folder = prepare_model("det", What().det).folder
    assert folder is not None
    written = (folder / "inference.yml").stat().st_mtime_ns
    assert prepare_model("det", What().det).folder == folder
    assert (folder / "inference.yml").stat().st_mtime_ns == written
    assert sorted(path.name for path in folder.iterdir()) == ["inference.onnx", "inference.yml"]


def test_missing_files_are_told_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert STEP.check is not None
    STEP.check(What())
    with pytest.raises(InfrastructureError, match=r"inference\.yml"):
        STEP.check(What(det=str(tmp_path)))
    (tmp_path / "inference.yml").write_text("Global: {model_name: PP-OCRv6_small_det}", "utf-8")
    with pytest.raises(InfrastructureError, match=r"inference\.onnx"):
        STEP.check(What(det=str(tmp_path)))
    monkeypatch.setitem(ocr_models._FILES, "rec", "models/absent.onnx")
    with pytest.raises(InfrastructureError, match=r"--no-deps -r requirements-nodeps\.txt"):
        STEP.check(What())


@pytest.mark.parametrize("what", [What(det=""), What(longest=10), What(longest=5000)])
def test_values_that_cannot_work_are_refused(what: What) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError):
        STEP.check(what)
