"""video: the shots of a clip, how much moves in it, when it stands still or is black, and hashes of its frames for copies of clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from curation.step import Column, How, Result, Row, Step
from curation.video_shots import DETECTORS, Cuts, Detector, check_library, shots_of, stretches
from curation.video_watch import GRID, Watch, mean_motion
from curation.view import MediaView, each
from shards.errors import LimitError
from shards.video_scan import scan, told_frames

VIDEO = frozenset({"video"})
SPAN_TYPE = pa.struct([pa.field("start", pa.float32(), nullable=False), pa.field("end", pa.float32(), nullable=False)])
HASHES_PER_SECOND = (1, 2, 4, 8)
ALL, KEY = "frames", "key frames"


@dataclass(frozen=True, slots=True)
class What:
    """detector   how shot changes are told, by PySceneDetect: "adaptive" (difference from frame to frame, against that around it; among key
               frames as "content"), "content" (that difference alone), "threshold" (fades to black alone), "hash", "histogram".
    threshold  of that detector, in its own unit; 0 = the library's own: 3, 27, 12, 0.35, 0.2.
    min_shot   seconds that no shot is shorter than, unless the clip is.
    fades      shots are also told apart by fades to black and back (a mean grey level below 12).
    side       the longer side of the frames as they are looked at, pixels.
    frames     "all": every frame is decoded; "key": key frames, a second apart at least, and an eighth of a second behind each;
               "auto": "key" for clips of more than `many` frames by their container's word. many: frames.
    still      grey levels of 255: a clip stands still while no cell of an 8×8 grid changes by more (curation/video_watch.py) within an
               eighth of a second ("key": from one key frame looked at to the next).
    min_stretch  seconds: shorter stretches of stillness or black are not counted.
    hash_fps   hashes of frames a second: 1, 2, 4 or 8. max_hashes: of a clip; where there would be more, every other one is left out, again
               and again.
    """

    detector: Detector = "adaptive"
    threshold: float = 0.0
    min_shot: float = 0.6
    fades: bool = True
    side: int = 160
    frames: Literal["auto", "all", "key"] = "auto"
    many: int = 9_000
    still: float = 2.0
    min_stretch: float = 0.5
    hash_fps: int = 2
    max_hashes: int = 240


def open_video(what: What, how: How) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    import cv2

    check_library()
    cv2.setNumThreads(1)  # so that the time a clip takes is counted, and one actor is one core
    return lambda views: each(views, lambda view: _video(what, view))


def _video(what: What, view: MediaView) -> Row:
    with view.open() as file, view.decoding():
        keys = what.frames == "key" or (what.frames == "auto" and told_frames(file, view.limits) > what.many)
        cuts = _cuts(what, keys)
        watch = Watch(keys, what.hash_fps, what.max_hashes)

        def see(at: float, pixels: np.ndarray, first: bool) -> None:
            if first or not keys:
                cuts.see(at, pixels)
            watch.see(at, pixels, first)

        file.seek(0)
        try:
            scanned = scan(file, view.limits, what.side, see, keys)
        except LimitError as error:
            mend = "" if keys else "; `video: {frames: key}`, or a lower `many`, looks at its key frames alone"
            raise LimitError(f"{error}{mend}") from error
        watch.end(scanned.end)
        changes = cuts.times()
    end = scanned.end
    still = stretches(watch.looks.times, watch.looks.still(what.still, tail=not keys), end, what.min_stretch)
    black = stretches(watch.looks.times, watch.looks.black, end, what.min_stretch)
    shots = shots_of(changes, end, what.min_shot)
    return {
        "shots": _spans(shots),
        "n_shots": len(shots),
        "seconds": end,
        "motion": mean_motion(watch.motion, [start for start, _ in shots[1:]]),
        "static_share": _share(still, end),
        "black_share": _share(black, end),
        "static": _spans(still),
        "black": _spans(black),
        "hashes": watch.hashes,
        "hash_step": watch.step,
        "by": KEY if keys else ALL,
        "looked": scanned.frames,
    }


def _cuts(what: What, keys: bool) -> Cuts:
    """What lies around a key frame is seconds away and as unlike as the next shot: there is nothing to adapt to."""
    return Cuts("content", 0.0, what.fades) if keys and what.detector == "adaptive" else Cuts(what.detector, what.threshold, what.fades)


def _spans(found: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    return [{"start": start, "end": end} for start, end in found]


def _share(found: Sequence[tuple[float, float]], end: float) -> float:
    """Of the clip's time; of a clip without a length, whether there is such a stretch at all."""
    return min(1.0, sum(until - start for start, until in found) / end) if end > 0 else float(bool(found))


def _columns(what: What) -> list[Column]:
    return [
        Column("shots", pa.list_(SPAN_TYPE), VIDEO, wide=True, doc="seconds from the clip's start; contiguous, covering the clip"),
        Column("n_shots", pa.int32(), VIDEO, doc="shots"),
        Column("seconds", pa.float32(), VIDEO, doc="from the first frame's beginning to the last one's end, as decoded"),
        Column("motion", pa.float32(), VIDEO, doc="how far the picture moves in a second, in shares of its longer side: mean optical flow"),
        Column("static_share", pa.float32(), VIDEO, doc="share of the time that lies in stretches in which nothing moves"),
        Column("black_share", pa.float32(), VIDEO, doc="share of the time that lies in black stretches"),
        Column("static", pa.list_(SPAN_TYPE), VIDEO, wide=True, doc="stretches in which nothing moves, seconds"),
        Column("black", pa.list_(SPAN_TYPE), VIDEO, wide=True, doc="black stretches, seconds"),
        Column("hashes", pa.list_(pa.uint64()), VIDEO, doc="perceptual hashes (probe's) of the frames at 0, hash_step, 2 hash_step …"),
        Column("hash_step", pa.float32(), VIDEO, doc="seconds between two hashes"),
        Column("by", pa.string(), VIDEO, doc=f"what was looked at: {ALL} or {KEY}"),
        Column("looked", pa.int32(), VIDEO, doc="how many frames that were"),
    ]


def _check(what: What) -> None:
    check_library()
    if what.detector not in DETECTORS:
        raise ValueError(f"detector: {what.detector!r} is unknown; it is one of {', '.join(DETECTORS)}")
    if what.frames not in ("auto", "all", "key"):
        raise ValueError(f"frames: {what.frames!r} is unknown; it is auto, all or key")
    most = {"adaptive": 255.0, "content": 255.0, "threshold": 255.0, "hash": 1.0, "histogram": 1.0}[what.detector]
    if not 0 <= what.threshold <= most:
        raise ValueError(f"threshold: {what.threshold:g} is outside 0..{most:g} of the detector {what.detector} (0 = the library's own)")
    if not 0 <= what.min_shot <= 3600:
        raise ValueError(f"min_shot: {what.min_shot:g} is outside 0..3600 seconds")
    if not 32 <= what.side <= 640:
        raise ValueError(f"side: {what.side} is outside 32..640 pixels")
    if what.many < 1:
        raise ValueError(f"many: {what.many} is below 1 (frames above which `frames: auto` looks at key frames alone)")
    if not 0 <= what.still <= 255:
        raise ValueError(f"still: {what.still:g} is outside 0..255 grey levels")
    if not 1 / GRID <= what.min_stretch <= 3600:
        raise ValueError(f"min_stretch: {what.min_stretch:g} is outside {1 / GRID:g}..3600 seconds")
    if what.hash_fps not in HASHES_PER_SECOND:
        raise ValueError(f"hash_fps: {what.hash_fps} is not one of {', '.join(map(str, HASHES_PER_SECOND))} (hashes a second)")
    if not 2 <= what.max_hashes <= 1000:
        raise ValueError(f"max_hashes: {what.max_hashes} is outside 2..1000")


STEP = Step(
    version=2,
    level="medium",
    applies=VIDEO,
    prefix="video_",
    what=What,
    columns=_columns,
    reads=lambda what: ("media",),
    open=open_video,
    check=_check,
)
