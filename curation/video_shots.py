"""Where one shot of a clip ends and the next begins: the detectors of PySceneDetect, fed frame by frame."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np

from shards.errors import InfrastructureError

INSTALL = "pip install --no-deps -r requirements-nodeps.txt (scenedetect 0.7.2; with its dependencies two opencv wheels would clash)"
Detector = Literal["adaptive", "content", "threshold", "hash", "histogram"]
DETECTORS: tuple[str, ...] = get_args(Detector)
DEFAULTS = {"adaptive": 3.0, "content": 27.0, "threshold": 12.0, "hash": 0.35, "histogram": 0.2}  # the library's own
FLASH = 0.3  # seconds: what is gone after that was no shot
_THUMB = 16  # pixels of a side
_SLACK = 1e-4  # seconds, more than times lose by being counted in ticks
_CLOCK = 90_000  # ticks of a second in which it is told times
_COUNTED = Fraction(1000)  # frames a second that it counts where it counts frames: one for each millisecond


class Cuts:
    """The times at which a detector, and with `fades` the one of fades to black and back too, see a new shot begin.

    threshold: of the detector, in its own unit; 0 = the library's. Of each frame a thumbnail of 256 bytes is kept, to tell flashes.
    """

    def __init__(self, detector: str, threshold: float, fades: bool) -> None:
        self._detectors = [_made(detector, threshold or DEFAULTS[detector])]
        if fades and detector != "threshold":
            self._detectors.append(_made("threshold", DEFAULTS["threshold"]))
        self._found: list[Any] = []
        self._last: Any = None
        self._times: list[float] = []
        self._thumbs = bytearray()

    def see(self, at: float, pixels: np.ndarray) -> None:
        """The next frame: seconds since the first one, uint8 H×W×3 RGB."""
        import cv2
        from scenedetect.common import FrameTimecode, Timecode

        self._last = FrameTimecode(Timecode(round(at * _CLOCK), Fraction(1, _CLOCK)), fps=_COUNTED)
        blue_first = np.ascontiguousarray(pixels[:, :, ::-1])
        for one in self._detectors:
            self._found += one.process_frame(self._last, blue_first)
        self._times.append(at)
        grey = cv2.cvtColor(blue_first, cv2.COLOR_BGR2GRAY)
        self._thumbs += cv2.resize(grey, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA).tobytes()

    def times(self) -> list[float]:
        """All of them, ascending, when there are no more frames; but not where a flash begins or ends."""
        if self._last is not None:
            for one in self._detectors:
                self._found += one.post_process(self._last)
            self._last = None
        return [cut for cut in sorted({found.seconds for found in self._found}) if not self._flash(cut)]

    def _flash(self, cut: float) -> bool:
        """Whether the picture before a cut is back, or the one behind it was there, within FLASH seconds: then it is half as unlike the
        other side as what lies between."""
        at = bisect_right(self._times, cut + _SLACK) - 1
        if at < 1:
            return False
        begins, ends = bisect_left(self._times, cut - FLASH - _SLACK), bisect_right(self._times, cut + FLASH + _SLACK)
        thumbs = np.frombuffer(self._thumbs, np.uint8).reshape(-1, _THUMB * _THUMB)
        before, behind = thumbs[at - 1], thumbs[at]
        apart = _apart(before, behind)
        back = any(2 * _apart(before, thumbs[k]) < apart for k in range(at + 1, ends))
        return back or any(2 * _apart(behind, thumbs[k]) < apart for k in range(begins, at - 1))


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


def shots_of(cuts: Iterable[float], end: float, shortest: float) -> list[tuple[float, float]]:
    """(start, end) seconds of the shots: contiguous, from 0 to `end`, none shorter than `shortest` unless the clip is.

    Of cuts that lie closer together than that the first counts.
    """
    starts = [0.0]
    for cut in sorted(cuts):
        if cut - starts[-1] >= shortest and end - cut >= shortest and cut > starts[-1]:
            starts.append(cut)
    return list(zip(starts, [*starts[1:], end], strict=True))


def check_library() -> None:
    """Raises InfrastructureError where PySceneDetect is not there."""
    _library()


def _library() -> Any:
    try:
        import scenedetect.detectors as detectors
    except ImportError as error:
        raise InfrastructureError(f"video: the shot detectors cannot be loaded ({error}): {INSTALL}") from error
    return detectors


def _made(detector: str, threshold: float) -> Any:
    library = _library()
    return {
        "adaptive": lambda: library.AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=0),
        "content": lambda: library.ContentDetector(threshold=threshold, min_scene_len=0),
        "threshold": lambda: library.ThresholdDetector(threshold=threshold, min_scene_len=0),
        "hash": lambda: library.HashDetector(threshold=threshold, min_scene_len=0),
        "histogram": lambda: library.HistogramDetector(threshold=threshold, min_scene_len=0),
    }[detector]()


def stretches(times: Sequence[float], holds: Sequence[bool], end: float, shortest: float) -> list[tuple[float, float]]:
    """(start, end) of the stretches of which it holds: `holds[k]` from times[k] to the next one, or to `end`. Shorter ones than `shortest`
    are left out, unless one is the whole clip."""
    found: list[tuple[float, float]] = []
    for start, until, there in zip(times, [*times[1:], end], holds, strict=True):
        if there and found and found[-1][1] == start:
            found[-1] = (found[-1][0], until)
        elif there:
            found.append((start, until))
    return [(start, until) for start, until in found if until - start >= shortest or until - start >= end]
