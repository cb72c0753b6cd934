"""OCR over frames of a video: what is read when, and each line told once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from curation.ocr import STEP, What
from curation.ocr_read import Line
from curation.ocr_video import standing, told_once
from curation.step import step_digest

GOLDEN = Path(__file__).parent / "golden" / f"ocr_v{STEP.version}.json"
Read = Callable[..., Sequence[Any]]


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


def test_digests_of_pictures_are_what_they_were() -> None:
    names: dict[str, Any] = {"det": "PP-OCRv6_small_det", "rec": "PP-OCRv6_small_rec"}
    assert step_digest("ocr", STEP, What(**names), []) == "fe3f041a3b1b2ab0"
    assert step_digest("ocr", STEP, What(**names, frames=4), []) != "fe3f041a3b1b2ab0"
    assert [column.kinds for column in STEP.columns(What(frames=1))] == [frozenset({"video"})] * 5
    assert asdict(What())["frames"] == 0
