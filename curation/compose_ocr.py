"""Texts in a picture as compose writes them: recognised lines, boxes, the OCR target."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares (0..1) of the picture's width and height
MARKUP = re.compile(r"</?box>")


@dataclass(frozen=True, slots=True)
class Line:
    """A recognised line of text and its box."""

    text: str
    box: Box


def recognised_lines(columns: Mapping[str, Any], ocr: str, number: int, min_confidence: float) -> list[Line]:
    """The lines that an OCR step read in medium `number`, in its reading order; none where it has no row.

    ocr   prefix of the step's columns without the underscore; "" = none is read.
    """
    found = columns.get(f"{ocr}_lines") if ocr else None
    lines = []
    for line in (found[number] or []) if found and number < len(found) else []:
        if line["confidence"] >= min_confidence and line["text"].strip():
            xs, ys = line["polygon"][0::2], line["polygon"][1::2]
            lines.append(Line(line["text"].strip(), (min(xs), min(ys), max(xs), max(ys))))
    return lines


def box_text(box: Box, scale: int) -> str:
    """`<box>[left, top, right, bottom]</box>`, integers 0..scale-1."""
    return f"<box>[{', '.join(str(min(max(int(edge * scale), 0), scale - 1)) for edge in box)}]</box>"


def boxed(lines: Sequence[Line], scale: int) -> list[str]:
    """Each line with its box behind it. A line that itself says `<box>` is left out: nobody could tell the one from the other."""
    return [f"{line.text}{box_text(line.box, scale)}" for line in lines if not MARKUP.search(line.text)]


def ocr_answer(caption: str, texts: Sequence[str]) -> str:
    """`{caption}. The texts in this image are {text1}<box>[{bbox}]</box>, …` (VideoLLaMA3 report, stage 2), without what is missing."""
    listed = f"The texts in this image are {', '.join(texts)}"
    if not caption:
        return listed
    return f"{caption} {listed}" if caption[-1] in ".!?。！？؟۔।" else f"{caption}. {listed}"
