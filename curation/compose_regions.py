"""Regions of a picture and what they are: from a field of the record, or from recognised lines. Answers and questions of two tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from curation.compose_ocr import MARKUP, Box, Line
from shards.errors import SampleError
from shards.sample import digest_of

Unit = Literal["pixels", "shares", "mille"]
Form = Literal["corners", "size"]
OCR_CHARS = 2  # a single letter is found in too many places


@dataclass(frozen=True, slots=True)
class Region:
    """What is said of a place, and all the boxes of which just that is said. `read`: it is what is written there."""

    text: str
    boxes: tuple[Box, ...]
    read: bool = False


def record_regions(value: Any, field: str, number: int, alone: bool, unit: Unit, form: Form, size: tuple[int, int] | None) -> list[Region]:
    """The regions of medium `number` that a record lists: [{"box": [four numbers], "text": …, "image": its medium's place}, …].

    alone   the sample has one medium, so `image` may be absent.
    unit    of the numbers: pixels of the picture as shown, shares (0..1) of its sides, or thousandths of them.
    form    corners: left, top, right, bottom. size: left, top, width, height.
    size    (width, height) in pixels; needed for pixels only.
    Boxes are clipped to the picture. Raises SampleError for what is no such list, and for a box with nothing of the picture in it.
    """
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise SampleError(f"{field}: expected a list of {{box, text}}, found {type(value).__name__}")
    found: list[tuple[str, Box]] = []
    for place, entry in enumerate(value):
        where = f"{field}[{place}]"
        if not isinstance(entry, Mapping):
            raise SampleError(f"{where}: expected {{box, text}}, found {type(entry).__name__}")
        owner = entry.get("image", 0 if alone else None)
        if isinstance(owner, bool) or not isinstance(owner, int):
            raise SampleError(f"{where}: the sample has several media, so `image` must say which (0, 1, …)")
        text = entry.get("text")
        if not isinstance(text, str) or not text.strip():
            raise SampleError(f"{where}: `text` is {text!r}; it must say what is there"[:400])
        if owner == number:
            found.append((text.strip(), _box(entry.get("box"), where, unit, form, size)))
    return _grouped(found, read=False)


def line_regions(lines: Sequence[Line]) -> list[Region]:
    """Recognised lines as regions; without those of a single character, and those that themselves say `<box>`."""
    return _grouped([(x.text, x.box) for x in lines if len(x.text) >= OCR_CHARS and not MARKUP.search(x.text)], read=True)


def chosen(regions: Sequence[Region], most: int, uid: str, number: int) -> list[Region]:
    """At most so many of them, in their order; which ones is a hash of uid and place."""
    ranked = sorted(range(len(regions)), key=lambda i: (digest_of(uid, "region", number, i), i))
    return [regions[i] for i in sorted(ranked[:most])]


def _grouped(found: Sequence[tuple[str, Box]], read: bool) -> list[Region]:
    boxes: dict[str, list[Box]] = {}
    for text, box in found:
        boxes.setdefault(text, []).append(box)
    return [Region(text, tuple(dict.fromkeys(listed)), read) for text, listed in boxes.items()]


def _box(value: Any, where: str, unit: Unit, form: Form, size: tuple[int, int] | None) -> Box:
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    sound = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if len(numbers) != 4 or not sound:
        raise SampleError(f"{where}: `box` is {value!r}; it must be four numbers"[:400])
    left, top, right, bottom = numbers if form == "corners" else (*numbers[:2], numbers[0] + numbers[2], numbers[1] + numbers[3])
    if unit == "pixels":
        if size is None:
            raise SampleError(f"{where}: the picture's width and height are not known, so its pixels cannot be shares")
        wide, high = size
    else:
        wide = high = 1000 if unit == "mille" else 1
    box = tuple(min(max(edge, 0.0), 1.0) for edge in (left / wide, top / high, right / wide, bottom / high))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise SampleError(f"{where}: the box {value!r} holds nothing of the picture (as {form}, in {unit}); see `boxes` and `box_form`")
    return box[0], box[1], box[2], box[3]
