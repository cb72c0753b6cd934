"""How well an answer finds a stretch of time: the overlap of its intervals with those of a gold answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

Interval = tuple[float, float]  # seconds, start ≤ end

RECALLS = (0.3, 0.5, 0.7)  # overlaps at which a moment counts as found

_NUMBER = r"(?<![\d.:])((?:\d+:){0,2}(?:\d+(?:\.\d+)?|\.\d+))"
_UNIT = r"\s*(?:s|secs?|seconds?)?"
_RANGE = re.compile(rf"{_NUMBER}{_UNIT}\s*(?:-|–|—|~|\bto\b|\buntil\b|\band\b)\s*{_NUMBER}", re.IGNORECASE)
_ALONE = re.compile(_NUMBER)


def intervals_of(text: str) -> list[Interval]:
    """The intervals that a text names, in order, the earlier end first: `1.0-2.0 s`, `from 1 to 2.5 seconds`, `between 0:58 and 1:05`,
    several of them; where there is none, but just two numbers, these are one (`start: 3.0, end: 4.5`)."""
    found = _RANGE.findall(text)
    if not found and len(alone := _ALONE.findall(text)) == 2:
        found = [tuple(alone)]
    return [(min(ends), max(ends)) for ends in (tuple(map(_seconds, pair)) for pair in found)]


def iou(answer: str, golds: Sequence[str]) -> float:
    """Length of what is in both over length of what is in either, 0..1; the best over the gold answers that name intervals. Several
    intervals count as the time they cover together. 0 for an answer that names none.

    The mean of it is mIoU, the share of answers that reach a bound R@1 at it (Gao et al. 2017, TALL, which has one interval on each side).
    """
    said = _merged(intervals_of(answer))
    return max((_overlap(said, meant) for gold in golds if (meant := _merged(intervals_of(gold)))), default=0.0)


def _seconds(clock: str) -> float:
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total


def _merged(intervals: Sequence[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _overlap(one: Sequence[Interval], other: Sequence[Interval]) -> float:
    both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in one for b in other)
    either = sum(end - start for start, end in (*one, *other)) - both
    return both / either if either else float(list(one) == list(other))  # moments without length are found or not
