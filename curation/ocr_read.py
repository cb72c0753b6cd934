"""Reads one picture: finds its lines, stands it upright, reads them, puts them in reading order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.ocr_engine import Engine, cut_line
from curation.ocr_tiles import find_lines
from curation.ocr_turn import quarter_turns, turned_back
from curation.reading_order import reading_order

_LARGEST = 16_000  # pixels of a side: the detector's corners are 16-bit, and OpenCV cuts no lines from larger pictures
_WHOLE_SIDE = 256  # pixels of the shorter side up to which a picture may be one line cut out of another


@dataclass(frozen=True, slots=True)
class Settings:
    """As the step's What has them, in their plain form: longest, tiles ("off", "auto" or a side), rotate, whole."""

    longest: int
    tiles: str | int
    rotate: bool
    whole: float


@dataclass(frozen=True, slots=True)
class Line:
    """polygon (4, 2) float64: corners as shares 0..1 of the picture's width and height, clockwise around the text from its first letter's
    top where the page stands upright or its turn is known."""

    text: str
    confidence: float
    polygon: np.ndarray


@dataclass(frozen=True, slots=True)
class Reading:
    """lines in reading order; rotation: degrees (0, 90, 180, 270) by which the picture was turned clockwise to be read."""

    lines: list[Line]
    rotation: int


def read_picture(engine: Engine, settings: Settings, pixels: np.ndarray) -> Reading:
    """pixels: RGB uint8 H×W×3."""
    picture = _within(np.ascontiguousarray(pixels[:, :, ::-1]))
    polygons = find_lines(engine.detect, picture, settings.longest, settings.tiles)
    turns, known = quarter_turns(engine, picture, polygons) if settings.rotate else (0, {})
    height, width = picture.shape[:2]
    if turns:
        picture, known = np.ascontiguousarray(np.rot90(picture, turns)), {}
        polygons = find_lines(engine.detect, picture, settings.longest, settings.tiles)
    places = [i for i in range(len(polygons)) if i not in known]
    known |= dict(zip(places, engine.recognise([cut_line(picture, polygons[i]) for i in places]), strict=True))
    if len(polygons) == 0 and settings.whole and min(height, width) <= _WHOLE_SIDE:
        polygons, known = _one_line(engine, picture, settings.whole)
    shares = np.clip(turned_back(polygons, turns, width, height) / (width, height), 0, 1)
    lines = [Line(*known[i], shares[i]) for i in reading_order(polygons) if known[i][0].strip()]
    return Reading(lines, -90 * turns % 360)


def _one_line(engine: Engine, picture: np.ndarray, least: float) -> tuple[np.ndarray, dict[int, tuple[str, float]]]:
    """A picture in which no line is found, read as one: a word cut out so closely that the detector sees no edge of it."""
    [(text, confidence)] = engine.recognise([picture])
    if confidence < least:
        return np.zeros((0, 4, 2)), {}
    height, width = picture.shape[:2]
    return np.array([[[0, 0], [width, 0], [width, height], [0, height]]], dtype=np.float64), {0: (text, confidence)}


def _within(picture: np.ndarray) -> np.ndarray:
    largest = max(picture.shape[:2])
    if largest <= _LARGEST:
        return picture
    import cv2

    height, width = (max(round(side * _LARGEST / largest), 1) for side in picture.shape[:2])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
