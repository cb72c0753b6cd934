"""reading_order: made pages of every kind, and what must hold whatever the page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.reading_order import page_angle, reading_order

Box = tuple[float, float, float, float]  # left, top, width, height


def polygons(boxes: list[Box]) -> np.ndarray:
    return np.array([[[x, y], [x + w, y], [x + w, y + h], [x, y + h]] for x, y, w, h in boxes], dtype=np.float64).reshape(-1, 4, 2)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Clockwise on the screen, about the origin."""
    a = np.radians(degrees)
    return points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def column(left: float, top: float, lines: int, width: float = 400, pitch: float = 28, height: float = 22) -> list[Box]:
    """Running text: full lines, the last one short."""
    return [(left, top + i * pitch, width if i < lines - 1 else width / 3, height) for i in range(lines)]


def table(left: float, top: float, rows: int, widths: list[float], step: float = 200) -> list[Box]:
    return [(left + k * step, top + r * 30, width, 22) for r in range(rows) for k, width in enumerate(widths)]


RECEIPT = [
    (150.0, 0.0, 300.0, 24.0),
    (120.0, 30.0, 360.0, 24.0),
    *(box for i in range(8) for box in ((20.0, 80.0 + 32 * i, 90.0 + 25 * (i % 4), 22.0), (480.0, 82.0 + 32 * i, 70.0, 22.0))),
    (20.0, 350.0, 80.0, 24.0),
    (470.0, 348.0, 80.0, 26.0),
]
LAYOUTS: dict[str, list[Box]] = {
    "one column": column(50, 40, 12),
    "title over two columns": [(200, 20, 500, 40), *column(50, 90, 14), *column(480, 90, 14)],
    "two columns, not level": [*column(50, 90, 14), *column(480, 101, 12, pitch=31)],
    "narrow gutter": [*column(50, 90, 14), *column(459, 90, 14)],
    "three columns": [*column(0, 90, 10, 260), *column(290, 90, 10, 260), *column(580, 90, 9, 260)],
    "title, columns, wide caption, columns": [
        (100, 10, 700, 36),
        *column(50, 60, 8),
        *column(480, 60, 8),
        (60, 300, 800, 22),
        *column(50, 340, 6),
        *column(480, 340, 6),
    ],
    "table": table(30, 40, 8, [90, 60, 70, 110]),
    "receipt": RECEIPT,
    "page with a table in it": [*column(40, 0, 6, 800), *table(60, 200, 6, [100, 80, 90, 60]), *column(40, 420, 6, 800)],
    "sidebar": [*column(20, 50, 10, 110, pitch=41, height=16), *column(180, 43, 16, 600, pitch=27)],
    "uneven row": [(0, 100, 100, 30), (120, 106, 60, 18), (200, 96, 90, 36), (0, 140, 300, 30)],
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("degrees", [0.0, 4.0, -7.0])
def test_layouts_are_read_as_they_were_written(name: str, degrees: float) -> None:
    """The boxes of a layout are listed in the order people read them."""
    page = turned(polygons(LAYOUTS[name]), degrees)
    shuffled = np.random.default_rng(3).permutation(len(page))
    assert [int(shuffled[i]) for i in reading_order(page[shuffled])] == list(range(len(page)))


def test_a_page_on_its_side_is_read_from_the_right_as_lines_run_down() -> None:
    page = turned(polygons(LAYOUTS["title over two columns"]), 90)
    assert page_angle(page) == pytest.approx(np.pi / 2)
    assert reading_order(page) == list(range(len(page)))


def test_without_lines_that_tell_an_angle_none_is_assumed() -> None:
    squares = turned(polygons([(0, 0, 20, 20), (40, 0, 20, 20)]), 12)
    assert page_angle(squares) == 0.0
    assert reading_order(squares) == [0, 1]
    assert reading_order(np.zeros((0, 4, 2))) == []
    assert reading_order(np.zeros((3, 4, 2))) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(2, 400), st.integers(2, 60)), max_size=40, unique=True),
    st.randoms(use_true_random=False),
)
def test_any_boxes_are_each_read_once_whatever_order_they_come_in(boxes: list[Box], random: object) -> None:
    page = polygons(boxes)
    order = reading_order(page)
    assert sorted(order) == list(range(len(boxes)))
    places = list(range(len(boxes)))
    random.shuffle(places)  # type: ignore[attr-defined]
    assert [places[i] for i in reading_order(page[places])] == order
    corners = np.roll(page[:, ::-1], 1, axis=1)
    assert reading_order(corners) == order


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(LAYOUTS)), st.floats(0.05, 20), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_scale_and_place_change_nothing(name: str, scale: float, x: float, y: float) -> None:
    page = polygons(LAYOUTS[name])
    assert reading_order(page * scale + (x, y)) == list(range(len(page)))


def test_a_thousand_lines_are_ordered() -> None:
    page = polygons([box for k in range(5) for box in column(k * 450, 0, 200)])
    assert reading_order(page) == list(range(1000))
