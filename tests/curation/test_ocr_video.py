"""OCR over frames of a video: what is read when, and each line told once."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from curation import ocr
from curation.ocr import STEP, OcrHow, What
from curation.ocr_read import Line
from curation.ocr_video import standing, told_once
from curation.step import step_digest
from shards.errors import DecodeError
from tests.curation.films import film, grey
from tests.curation.views import media_view

GOLDEN = Path(__file__).parent / "golden" / f"ocr_v{STEP.version}.json"
Read = Callable[..., Sequence[Any]]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(What's fields, views) -> rows; the models are loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEA_CACHE", str(tmp_path_factory.mktemp("cache")))
        engine = ocr.engine_of(What(), OcrHow())
        patch.setattr(ocr, "engine_of", lambda what, how: engine)
        assert STEP.open is not None
        yield lambda views, **what: STEP.open(What(**what), OcrHow())(views)


def sheet(*lines: str) -> np.ndarray:
    image = Image.new("RGB", (420, 40 + 70 * max(len(lines), 1)), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((30, 25 + 70 * number), line, "black", ImageFont.load_default(34))
    return np.asarray(image)


def line(text: str, left: float = 0.1, top: float = 0.1, confidence: float = 0.9) -> Line:
    return Line(text, confidence, np.array([[left, top], [left + 0.2, top], [left + 0.2, top + 0.1], [left, top + 0.1]]))


def spans(*frames: Sequence[Line]) -> list[tuple[str, float, float]]:
    return [(one.line.text, one.start, one.end) for one in standing((float(i), found) for i, found in enumerate(frames))]


def test_a_line_that_stands_is_told_once_by_its_surest_reading() -> None:
    readings = [[line("Opening titl3", confidence=0.6)], [line("opening  title", confidence=0.95)], [line("Opening titIe")], []]
    assert spans(*readings[1:]) == [("opening  title", 0, 1)]
    assert spans(*readings)[0] == ("Opening titl3", 0, 0)  # another digit is another text
    back = [[line("ON AIR")], [], [line("ON AIR")]]
    assert spans(*back) == [("ON AIR", 0, 0), ("ON AIR", 2, 2)]
    assert told_once(standing((float(i), found) for i, found in enumerate(back))) == "ON AIR"


def test_a_clock_is_a_new_line_each_time_and_credits_that_scroll_are_not() -> None:
    assert spans([line("10:45")], [line("10:46")], [line("10:46")]) == [("10:45", 0, 0), ("10:46", 1, 2)]
    credits = [[line("Directed by A. Lee", top=0.5)], [line("Directed by A. Lee", top=0.2), line("Music by B. Ray", top=0.6)]]
    assert spans(*credits) == [("Directed by A. Lee", 0, 1), ("Music by B. Ray", 1, 1)]


def test_two_equal_lines_stay_two_and_the_nearer_goes_on() -> None:
    left, right = line("SALE", 0.1), line("SALE", 0.7)
    found = standing([(0.0, [left, right]), (1.0, [right]), (2.0, [right, left])])
    assert [(one.start, one.end, one.line.polygon[0, 0]) for one in found] == [(0, 0, 0.1), (0, 2, 0.7), (2, 2, 0.1)]


def test_titles_of_a_film_with_their_times(read: Read, tmp_path: Path) -> None:
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


def test_a_frame_reads_as_the_picture_does(read: Read, tmp_path: Path) -> None:
    """The golden row of pictures holds that of videos too."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    with Image.open(io.BytesIO(base64.b64decode(golden["page.png"]))) as page:
        pixels = np.asarray(page.convert("RGB"))
    [row] = read([media_view(film(tmp_path / "page.mkv", [(pixels, 0.5)]))], frames=1)
    listed = [[one["text"], round(one["confidence"], 1), [round(v, 2) for v in one["polygon"]]] for one in row["lines"]]
    assert listed == golden["row"]["lines"]
    assert [(one["start"], one["end"]) for one in row["lines"]] == [(0.25, 0.25)] * len(listed)


def test_a_film_without_text_and_one_that_is_torn(read: Read, tmp_path: Path) -> None:
    path = film(tmp_path / "grey.mkv", [(grey(90), 1)])
    (tmp_path / "torn.mkv").write_bytes(path.read_bytes()[:200])
    plain, torn = read([media_view(path), media_view(tmp_path / "torn.mkv")], frames=2)
    assert plain == {"text": "", "confidence": 0.0, "n_lines": 0, "coverage": 0.0, "lines": []}
    assert isinstance(torn, DecodeError)


def test_a_real_title_card_is_read_while_it_stands(read: Read, data_dir: Path) -> None:
    [row] = read([media_view(data_dir / "video/interactive-examples__stream-of-water-audioless.webm")], frames=4)
    assert "audioless" in row["text"].lower()
    [title] = [one for one in row["lines"] if "audioless" in one["text"].lower()]
    assert title["start"] < 0.6  # the first of four frames
    assert title["end"] < 2.0


def test_digests_of_pictures_are_what_they_were() -> None:
    names: dict[str, Any] = {"det": "PP-OCRv6_small_det", "rec": "PP-OCRv6_small_rec"}
    assert step_digest("ocr", STEP, What(**names), []) == "fe3f041a3b1b2ab0"
    assert step_digest("ocr", STEP, What(**names, frames=4), []) != "fe3f041a3b1b2ab0"
    assert [column.kinds for column in STEP.columns(What(frames=1))] == [frozenset({"video"})] * 5
    assert asdict(What())["frames"] == 0
