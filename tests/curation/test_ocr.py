from __future__ import annotations

import base64
import io
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
import yaml
from PIL import Image, ImageDraw, ImageFont

from curation import ocr, ocr_models
from curation.compose import recognised_lines
from curation.ocr import LINE_TYPE, STEP, OcrHow, What
from curation.ocr_engine import Engine
from curation.ocr_languages import RECOGNISERS
from curation.ocr_models import device_of, paddle_names, prepare_model
from curation.step import step_digest
from shards.errors import DecodeError, InfrastructureError
from tests.curation.stills import film, grey
from tests.curation.views import media_view

GOLDEN = Path(__file__).parent / "golden" / f"ocr_v{STEP.version}.json"
Read = Callable[[Sequence[Any]], Sequence[Any]]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FOVEA_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def engine(cache: Path) -> Engine:
    return ocr.engine_of(What(), OcrHow())


@pytest.fixture(scope="module")
def reader(engine: Engine) -> Read:
    return lambda views: ocr.each(views, lambda view: ocr.read(engine, ocr.settings_of(What()), view))


@pytest.fixture
def read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sequence[Any]]:
    """(views, What's fields) -> the step's rows."""
    monkeypatch.setattr(ocr, "engine_of", lambda what, how: engine)
    assert STEP.open is not None
    return lambda views, **what: STEP.open(What(**what), OcrHow())(views)  # type: ignore[misc]


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
    boxes = [line.box for line in recognised_lines({"ocr_lines": [row["lines"]]}, "ocr", 0, 0.5)]
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
    assert blank == dot == {"text": "", "confidence": 0.0, "n_lines": 0, "rotation": 0, "coverage": 0.0, "lines": []}
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
    assert 0 < row["coverage"] < 0.7
    assert row["rotation"] == 0


def test_a_folder_of_the_same_files_reads_the_same(reader: Read, sign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert STEP.open is not None
    assert STEP.check is not None
    for part in ("det", "rec"):
        shutil.copytree(prepare_model(part, What().det).folder, tmp_path / part)
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


def test_rows_on_a_fixture_hold_the_version(reader: Read, tmp_path: Path) -> None:
    """Other output under the same version is an error: bump STEP.version and store new rows. Coordinates to 1/100, confidence to 1/10."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    path = tmp_path / "page.png"
    path.write_bytes(base64.b64decode(golden["page.png"]))
    [row] = reader([media_view(path)])
    found = {**row, "confidence": round(row["confidence"], 1), "coverage": round(row["coverage"], 2)}
    found["lines"] = [[line["text"], round(line["confidence"], 1), [round(v, 2) for v in line["polygon"]]] for line in row["lines"]]
    assert found == golden["row"]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_page_is_read_upright_with_its_boxes_where_they_lie(reader: Read, sign: Path, tmp_path: Path, quarters: int) -> None:
    with Image.open(sign) as picture:
        picture.rotate(90 * quarters, expand=True).save(tmp_path / "turned.png")
    [upright], [row] = reader([media_view(sign)]), reader([media_view(tmp_path / "turned.png")])
    assert row["text"] == "Platform 9\nDEPARTURES\nLondon 12:45"
    assert row["rotation"] == 90 * quarters
    for line, other in zip(row["lines"], upright["lines"], strict=True):
        x, y = np.array(other["polygon"]).reshape(4, 2).T
        for _ in range(quarters):
            x, y = y, 1 - x
        np.testing.assert_allclose(np.array(line["polygon"]).reshape(4, 2), np.stack((x, y), axis=1), atol=0.03)


def test_without_rotation_a_page_on_its_head_stays_there(cache: Path, sign: Path, tmp_path: Path) -> None:
    assert STEP.open is not None
    with Image.open(sign) as picture:
        picture.rotate(180).save(tmp_path / "head.png")
    [row] = STEP.open(What(rotate="off"), OcrHow())([media_view(tmp_path / "head.png")])
    assert row["rotation"] == 0
    assert recall("Platform 9 DEPARTURES London 12:45", row["text"]) < 0.5


def test_small_text_on_a_large_picture_is_read_by_tiles_each_line_once(reader: Read, tmp_path: Path) -> None:
    assert STEP.open is not None
    image = Image.new("RGB", (2600, 2000), "white")
    draw = ImageDraw.Draw(image)
    texts = [f"Line {i} of a sheet with very small letters that runs on across {i * 37 + 11} tiles" for i in range(12)]
    for i, text in enumerate(texts):
        draw.text((950, 60 + 160 * i), text, "black", ImageFont.load_default(15))
    image.save(tmp_path / "sheet.png")
    [tiled] = reader([media_view(tmp_path / "sheet.png")])
    [whole] = STEP.open(What(tiles="off"), OcrHow())([media_view(tmp_path / "sheet.png")])
    assert recall("\n".join(texts), tiled["text"]) >= 0.97
    assert recall("\n".join(texts), whole["text"]) < recall("\n".join(texts), tiled["text"]) - 0.02
    assert tiled["n_lines"] == len(texts)
    for i, line in enumerate(tiled["lines"]):
        assert abs(line["polygon"][0] * 2600 - 950) < 15
        assert abs(line["polygon"][1] * 2000 - (60 + 160 * i)) < 25


def test_cropped_words_are_found_or_read_as_one_line(reader: Read, data_dir: Path) -> None:
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    crops = [record for record in records if record.get("subset") == "scene_word"]
    rows = reader([media_view(data_dir / record["files"][0]) for record in crops])
    assert sum(recall(record["text"], row["text"]) == 1 for record, row in zip(crops, rows, strict=True)) >= 9
    [unseen] = [row for record, row in zip(crops, rows, strict=True) if record["text"] == "university"]
    assert unseen["lines"][0]["polygon"] == [0, 0, 1, 0, 1, 1, 0, 1]
    assert unseen["coverage"] == 1


def test_pictures_without_text_have_none(reader: Read, data_dir: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (90, 200, 3)).astype(np.uint8)
    y, x = np.mgrid[0:120, 0:160]
    scene = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    for name, pixels in {"noise": noise, "scene": scene}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    photographs = sorted((data_dir / "caption" / "coco").glob("*.jpg"))[:3]
    with Image.open(photographs[0]) as photograph:
        photograph.crop((40, 40, 200, 120)).save(tmp_path / "patch.png")
    for row in reader([media_view(tmp_path / f"{name}.png") for name in ("noise", "scene", "patch")]):
        assert row["text"] == ""


@pytest.mark.parametrize("size", [(33000, 40), (40, 33000), (3000, 1), (1, 3000), (2, 2), (31, 33)])
def test_pictures_of_any_shape_get_a_row(reader: Read, tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((5, 2), "long and thin", "black", ImageFont.load_default(30))
    image.save(tmp_path / "odd.png")
    [row] = reader([media_view(tmp_path / "odd.png")])
    assert row["n_lines"] == len(row["lines"])
    assert all(0 <= value <= 1 for line in row["lines"] for value in line["polygon"])


def test_lines_read_together_are_read_as_alone(reader: Read, sign: Path, tmp_path: Path) -> None:
    assert STEP.open is not None
    image = Image.new("RGB", (700, 500), "white")
    for i in range(9):
        ImageDraw.Draw(image).text((20, 10 + 52 * i), f"Row {i} {'x' * (i % 3)} 12{i}", "black", ImageFont.load_default(30))
    image.save(tmp_path / "rows.png")
    [alone] = reader([media_view(tmp_path / "rows.png")])
    [together] = STEP.open(What(), OcrHow(lines=8))([media_view(tmp_path / "rows.png")])
    assert together["text"] == alone["text"]
    assert together["n_lines"] == 9
    for a, b in zip(alone["lines"], together["lines"], strict=True):
        assert b["confidence"] == pytest.approx(a["confidence"], abs=1e-4)
        assert b["polygon"] == a["polygon"]


def test_a_recogniser_of_another_script_is_taken_from_a_folder(sign: Path, tmp_path: Path) -> None:
    """The packaged recogniser under another alphabet: what it reads as P is here an Arabic letter, as 9 an emoji outside the BMP."""
    assert STEP.open is not None
    folder = tmp_path / "rec"
    shutil.copytree(prepare_model("rec", What().rec).folder, folder)
    config = yaml.safe_load((folder / "inference.yml").read_text("utf-8"))
    config["Global"]["model_name"] = "arabic_PP-OCRv5_mobile_rec"
    letters = config["PostProcess"]["character_dict"]
    for latin, other in {"P": "ش", "l": "ل", "a": "ا", "t": "ت", "f": "ف", "o": "و", "r": "ر", "m": "م", "9": "😀"}.items():
        letters[letters.index(latin)] = other
    (folder / "inference.yml").write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    STEP.check and STEP.check(What(rec=str(folder)))
    [row] = STEP.open(What(rec=str(folder)), OcrHow())([media_view(sign)])
    first = row["lines"][0]["text"]
    assert sorted(first.replace(" ", "")) == sorted("شلاتفورم😀")
    assert first.index("ش") > first.index("م")  # from left to right as it stands in the picture, as PaddleOCR gives it
    assert pa.array(row["lines"], pa.list_(LINE_TYPE).value_type).to_pylist()[0]["text"] == first
    del letters[-5:]
    (folder / "inference.yml").write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    with pytest.raises(InfrastructureError, match="take both files from one model"):
        STEP.open(What(rec=str(folder)), OcrHow())


def test_languages_and_names_stand_for_models_of_the_hub() -> None:
    assert STEP.models is not None
    assert STEP.identity is not None
    det, rec = STEP.models(What(language="fa", rec_revision="a" * 40))
    assert (det.kind, det.id) == ("package", "package:rapidocr")
    assert (rec.kind, rec.id, rec.revision, rec.field) == ("hub", "PaddlePaddle/arabic_PP-OCRv5_mobile_rec_onnx", "a" * 40, "rec_revision")
    assert rec.needs == ("inference.onnx", "inference.yml")
    named = What(rec="arabic_PP-OCRv5_mobile_rec", rec_revision="a" * 40)
    assert STEP.identity(named) == STEP.identity(What(language="fa", rec_revision="a" * 40))
    assert STEP.identity(What(language="de")) == STEP.identity(What())
    assert set(RECOGNISERS.values()) <= paddle_names("rec")
    [_, own] = STEP.models(What(rec="someone/their_rec_onnx"))
    assert (own.kind, own.id) == ("hub", "someone/their_rec_onnx")


@pytest.mark.parametrize("device", ["gpu:0", "gpu", "cuda", "gpu:x"])
def test_a_device_that_is_not_there_is_told_with_the_mend(device: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and device in ("gpu", "gpu:0"):
        pytest.skip("a GPU is there")
    with pytest.raises(InfrastructureError, match="onnxruntime-gpu" if device in ("gpu", "gpu:0") else "write cpu, gpu or gpu"):
        device_of(device)


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
    with pytest.raises(InfrastructureError, match=r"inference\.onnx is not there"):
        STEP.check(What(det=str(tmp_path)))
    (tmp_path / "inference.onnx").write_bytes(b"")
    with pytest.raises(InfrastructureError, match=r"inference\.yml is not there"):
        STEP.check(What(det=str(tmp_path)))
    for text, told in [
        ("Global: [", "no readable"),
        ("Global: {model_name: x}", "no readable"),
        ("{Global: {model_name: x}, PostProcess: {}}", "'x' is no text_detection model"),
        ("{Global: {model_name: PP-OCRv6_small_rec}, PostProcess: {}}", "is no text_detection model"),
    ]:
        (tmp_path / "inference.yml").write_text(text, "utf-8")
        with pytest.raises(InfrastructureError, match=told):
            STEP.check(What(det=str(tmp_path)))
    (tmp_path / "inference.yml").write_text("{Global: {model_name: PP-OCRv6_small_rec}, PostProcess: {}}", "utf-8")
    with pytest.raises(InfrastructureError, match="character_dict"):
        STEP.check(What(rec=str(tmp_path)))
    monkeypatch.setitem(ocr_models._FILES, "rec", "models/absent.onnx")
    with pytest.raises(InfrastructureError, match=r"--no-deps -r requirements-nodeps\.txt"):
        STEP.check(What())


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (What(det=""), "det: empty"),
        (What(rec="no such model"), "arabic_PP-OCRv5_mobile_rec"),
        (What(det="arabic_PP-OCRv5_mobile_rec"), "PP-OCRv6_small_det"),
        (What(longest=10), "longest"),
        (What(longest=5000), "longest"),
        (What(tiles=100), "tiles"),
        (What(tiles="on"), "tiles"),
        (What(tiles=True), "tiles"),
        (What(rotate="90"), "rotate"),
        (What(rotate=True), "rotate"),
        (What(whole=1.5), "whole"),
        (What(language="tlh"), "no recogniser is known for 'tlh'"),
        (What(language="ru", rec="PP-OCRv5_server_rec"), "one of the two"),
    ],
)
def test_values_that_cannot_work_are_refused(what: What, told: str) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError, match=told):
        STEP.check(what)


def test_an_off_that_yaml_read_as_false_is_off() -> None:
    what = What(tiles=False, rotate=False)
    assert (what.tiles, what.rotate) == ("off", "off")
    assert what == What(tiles="off", rotate="off")


def sheet(*lines: str) -> np.ndarray:
    image = Image.new("RGB", (420, 40 + 70 * max(len(lines), 1)), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((30, 25 + 70 * number), line, "black", ImageFont.load_default(34))
    return np.asarray(image)


def test_titles_of_a_film_with_their_times(read: Callable[..., Sequence[Any]], tmp_path: Path) -> None:
    blank = sheet("", "")
    path = film(tmp_path / "titles.mkv", [(sheet("Platform 9", "London"), 2), (sheet("Platform 9", "12:45"), 1), (blank, 1)], rate=4)
    view = media_view(path)
    reads: list[Any] = []
    real = ocr.read_picture

    def counted(*given: Any) -> Any:
        reads.append(given)
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocr, "read_picture", counted)
        [row] = read([view], frames=8)
    assert row["text"] == "Platform 9\nLondon\n12:45"
    assert [(one["text"], one["start"], one["end"]) for one in row["lines"]] == [
        ("Platform 9", 0.25, 2.75),
        ("London", 0.25, 1.75),
        ("12:45", 2.25, 2.75),
    ]
    assert len(reads) == 3  # eight frames, of which five have the pixels of the one before
    assert row["n_lines"] == 3
    assert 0 < row["coverage"] < 0.5
    assert all(len(one["polygon"]) == 8 for one in row["lines"])
    for column in STEP.columns(What(frames=8)):
        pa.array([row[column.name]], column.type)
    view.columns = {"video_shots": [{"start": 0.0, "end": 2.0}, {"start": 3.0, "end": 4.0}]}
    [shots] = read([view], at="video_shots")
    assert [(one["text"], one["start"]) for one in shots["lines"]] == [("Platform 9", 1.0), ("London", 1.0)]
    assert shots["coverage"] > 0


def test_a_frame_reads_as_the_picture_does(read: Callable[..., Sequence[Any]], tmp_path: Path) -> None:
    """The golden row of pictures holds that of videos too."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    with Image.open(io.BytesIO(base64.b64decode(golden["page.png"]))) as page:
        pixels = np.asarray(page.convert("RGB"))
    [row] = read([media_view(film(tmp_path / "page.mkv", [(pixels, 0.5)]))], frames=1)
    listed = [[one["text"], round(one["confidence"], 1), [round(v, 2) for v in one["polygon"]]] for one in row["lines"]]
    assert listed == golden["row"]["lines"]
    assert [(one["start"], one["end"]) for one in row["lines"]] == [(0.25, 0.25)] * len(listed)


def test_a_film_without_text_and_one_that_is_torn(read: Callable[..., Sequence[Any]], tmp_path: Path) -> None:
    path = film(tmp_path / "grey.mkv", [(grey(90), 1)])
    (tmp_path / "torn.mkv").write_bytes(path.read_bytes()[:200])
    plain, torn = read([media_view(path), media_view(tmp_path / "torn.mkv")], frames=2)
    assert plain == {"text": "", "confidence": 0.0, "n_lines": 0, "coverage": 0.0, "lines": []}
    assert isinstance(torn, DecodeError)


def test_a_real_title_card_is_read_while_it_stands(read: Callable[..., Sequence[Any]], data_dir: Path) -> None:
    [row] = read([media_view(data_dir / "video/interactive-examples__stream-of-water-audioless.webm")], frames=4)
    assert "audioless" in row["text"].lower()
    [title] = [one for one in row["lines"] if "audioless" in one["text"].lower()]
    assert title["start"] < 0.6  # the first of four frames
    assert title["end"] < 2.0
