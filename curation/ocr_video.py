"""The texts of a video: lines read in frames of it, each told once with the stretch of time in which it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rapidfuzz.fuzz import ratio

from curation.moments import frame_times, stretches
from curation.ocr_read import Line
from curation.view import MediaView
from shards.errors import DecodeError

ALIKE = 80.0  # per cent of the letters of two readings of one line that must agree (rapidfuzz's ratio: normalised insertions and deletions)


@dataclass(slots=True)
class Standing:
    """A line as it stands in frames one after the other. line: its surest reading. start, end: seconds of the first and the last of them.
    seen: as it was read last."""

    line: Line
    start: float
    end: float
    seen: Line


def frames_read(moments: Any, view: MediaView, read: Callable[[np.ndarray], Sequence[Line]]) -> Iterator[tuple[float, Sequence[Line]]]:
    """(seconds, lines) of each frame that a step's What asks for. A frame with the very pixels of the one before is not read again.

    Raises DecodeError, LimitError, SourceError of the video and what `moments.stretches` raises.
    """
    times = frame_times(stretches(moments, view))
    frames = view.frames(times)
    last: np.ndarray | None = None
    lines: Sequence[Line] = ()
    for time in times:
        frame = next(frames, None)
        if frame is None:
            raise DecodeError(f"the video ends before its frame at {time:.2f} s")
        if last is None or not np.array_equal(last, frame):
            lines, last = read(frame), frame
            view.alive()  # a film takes as long as it has frames
        yield time, lines


def standing(frames: Iterable[tuple[float, Sequence[Line]]]) -> list[Standing]:
    """Lines in the order in which they appear; those of one frame in its reading order.

    A line goes on where the next frame has one that reads alike: ALIKE per cent of the letters (case and blanks aside), and every digit.
    The likest goes first, then the nearest. Gone for a frame, it is another line when it is back.
    """
    found: list[Standing] = []
    going: list[Standing] = []
    for time, lines in frames:
        pairs = sorted(_likeness(one, i, line, j) for i, one in enumerate(going) for j, line in enumerate(lines) if _alike(one.seen, line))
        taken: dict[int, Standing] = {}
        for *_, i, j in pairs:
            if j not in taken and not any(one is going[i] for one in taken.values()):
                taken[j] = going[i]
        following: list[Standing] = []
        for j, line in enumerate(lines):
            one = taken.get(j)
            if one is None:
                one = Standing(line, time, time, line)
                found.append(one)
            one.end, one.seen = time, line
            if line.confidence > one.line.confidence:
                one.line = line
            following.append(one)
        going = following
    return found


def told_once(lines: Iterable[Standing]) -> str:
    """The texts, a line each; one that comes back is told where it stood first."""
    texts: dict[str, str] = {}
    for one in lines:
        texts.setdefault(_plain(one.line.text), one.line.text)
    return "\n".join(texts.values())


def _alike(a: Line, b: Line) -> bool:
    one, other = _plain(a.text), _plain(b.text)
    return _digits(one) == _digits(other) and ratio(one, other) >= ALIKE


def _likeness(one: Standing, i: int, line: Line, j: int) -> tuple[float, float, int, int]:
    moved = float(np.abs(one.seen.polygon.mean(axis=0) - line.polygon.mean(axis=0)).sum())
    return -ratio(_plain(one.seen.text), _plain(line.text)), moved, i, j


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())
