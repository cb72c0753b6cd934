"""Which frames of a video a step looks at: so many of the clip, of each of its shots, or of each piece of so many seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from curation.view import MediaView
from shards.errors import InfrastructureError, LimitError, SampleError

MOST_FRAMES = 1024  # of one video, in one step
MOST_TOGETHER = 256  # frames of one stretch
_DECIMALS = 3  # of a second: what a file says of its length in other digits is the same frame


class Moments(Protocol):
    """The part of a step's What that says which frames; all three at their default: the step looks at pictures and not at videos.

    frames   so many, spread evenly (the middles of so many equal parts); of each stretch where there are several. 0 = 1 of each.
    at       column of stretches, [{start, end}, …] in seconds, such as the shots that `video` finds.
    every    seconds: the video is cut into stretches of about that length.
    """

    frames: int
    at: str
    every: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """Seconds from start to end, and those at which its frames are taken, ascending."""

    start: float
    end: float
    times: tuple[float, ...]


def of_videos(moments: Any) -> bool:
    """Whether the step looks at videos."""
    return bool(moments.frames or moments.at or moments.every)


def by_stretch(moments: Any) -> bool:
    """Whether there is an answer for each stretch, and not one for the whole clip."""
    return bool(moments.at or moments.every)


def stretches(moments: Any, view: MediaView) -> list[Stretch]:
    """The stretches of a video, one of its whole length where none are asked for or the column has none. Opens the video for its length,
    unless a column tells the stretches.

    Raises DecodeError and LimitError of the video, LimitError for more than MOST_FRAMES frames, SampleError for stretches that overlap,
    InfrastructureError for a column of something else.
    """
    told = _told(moments.at, view.columns.get(moments.at)) if moments.at else []
    bounds = told or _pieces(moments.every, view.video_header().good)
    count = max(moments.frames, 1)
    if len(bounds) * count > MOST_FRAMES:
        raise LimitError(
            f"{len(bounds):,} stretches of {count} frames are more than {MOST_FRAMES:,} frames of one video; cut it into clips first, or "
            "take longer stretches"
        )
    found = [Stretch(start, end, _middles(start, end, count)) for start, end in bounds]
    if any(a.times[-1] > b.times[0] for a, b in pairwise(found)):
        raise SampleError(f"the stretches in {moments.at!r} overlap or are out of order")
    return found


def moments_identity(moments: Any) -> dict[str, Any]:
    """What of it belongs to a step's digest: nothing where it looks at pictures."""
    return {"frames": moments.frames, "at": moments.at, "every": moments.every} if of_videos(moments) else {}


def check_moments(moments: Any) -> None:
    """Raises ValueError."""
    if not 0 <= moments.frames <= MOST_TOGETHER:
        raise ValueError(f"frames: {moments.frames}; it is 0 (pictures, and no videos) to {MOST_TOGETHER}")
    if moments.at and moments.every:
        raise ValueError("every: the stretches are those of `at`; write one of the two")
    if moments.every and not 0.1 <= moments.every <= 86_400:
        raise ValueError(f"every: {moments.every:g} seconds; it is at least 0.1, or 0 for the whole clip")


def _told(name: str, value: Any) -> list[tuple[float, float]]:
    try:
        bounds = [(max(float(one["start"]), 0.0), float(one["end"])) for one in value or ()]
    except (TypeError, KeyError, ValueError) as error:
        raise InfrastructureError(f"at: the column {name!r} lists no {{start, end}} in seconds; name one that does: video_shots") from error
    return [(start, end) for start, end in bounds if end > start]


def _pieces(every: float, duration: float) -> list[tuple[float, float]]:
    count = max(round(duration / every), 1) if every else 1
    edges = [*(place * every for place in range(count)), duration]
    return [(round(start, _DECIMALS), round(end, _DECIMALS)) for start, end in pairwise(edges)]


def _middles(start: float, end: float, count: int) -> tuple[float, ...]:
    return tuple(round(start + (end - start) * (place + 0.5) / count, _DECIMALS) for place in range(count))


def frame_times(found: Sequence[Stretch]) -> list[float]:
    """Of all stretches, in order."""
    return [time for stretch in found for time in stretch.times]
