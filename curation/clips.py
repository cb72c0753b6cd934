"""Clips: a video is cut into its shots, or into pieces of a fixed length; each becomes a sample of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from curation.clips_cut import NotCopied, copied, encoded
from curation.step import Child, ChildMedium, How, Result, Step
from curation.view import MediaView, SampleView
from shards.errors import DecodeError, LimitError, SampleError
from shards.sample import Texts

VERSION = 2
TEXTS = ("caption", "transcription", "conversations", "text")
TORN_SECONDS = 1.0  # what a container tells beyond the good part before a video is called torn
_GAP = 0.1  # seconds between two shots that count as none

Part = tuple[float, float]  # seconds from the first frame: begin, end


@dataclass(frozen=True, slots=True)
class What:
    """Where a video is cut, and how. Either `at` or `every`.

    at           column with its shots: list<struct<start, end>> in seconds, as the step `video` writes it.
    every        seconds of each clip.
    min_seconds  a part that is shorter is merged with the one before it (`short: merge`; the first with the one behind), or dropped
                 (`short: drop`). max_seconds: a longer part is cut into equal ones; 0 = never. max_clips: the first so many; 0 = all.
    method       "copy": packets from the key frame before the start on, an edit list hides what comes before; exact, cheap, no loss. Videos
                 whose packets MP4 cannot take are encoded. "encode": x264 with `crf` and `preset`.
    texts        which of the parent's texts its clips get. What is said of a film is not said of a clip: none.
    """

    at: str = ""
    every: float = 0.0
    min_seconds: float = 1.0
    max_seconds: float = 300.0
    max_clips: int = 0
    short: str = "merge"
    method: str = "copy"
    crf: int = 18
    preset: str = "medium"
    texts: tuple[str, ...] = ()


def parts_of(shots: Sequence[Part] | None, good: float, what: What) -> list[Part]:
    """The parts that become clips: in order, within [0, good], none shorter than min_seconds but a whole video that is (with
    `short: merge`). Shots that overlap stay as they are told."""
    if shots is None:
        count = max(1, int(-(-round(good / what.every, 6) // 1)))
        shots = [(k * what.every, (k + 1) * what.every) for k in range(count)]
    inside = sorted((max(0.0, begin), min(end, good)) for begin, end in shots)
    inside = [(begin, end) for begin, end in inside if end > begin]
    fit = _merged(inside, what.min_seconds) if what.short == "merge" else [p for p in inside if p[1] - p[0] >= what.min_seconds]
    parts: list[Part] = []
    for begin, end in fit:
        pieces = max(1, int(-(-round((end - begin) / what.max_seconds, 6) // 1))) if what.max_seconds else 1
        edges = [*(begin + (end - begin) * k / pieces for k in range(pieces)), end]
        parts += list(pairwise(edges))
    return parts[: what.max_clips or None]


def clips_of(what: What, view: SampleView) -> Iterator[Child]:
    """The clips of a sample's video, one after another; place = (start ms, end ms), or (medium, start ms, end ms) where there are several.

    A clip that cannot be made is a child with `damage`. In a torn video the clip at the tear ends there; one that would be shorter than
    min_seconds then is merged or dropped as any other. Raises DecodeError and LimitError of a single video, SampleError for a sample with
    other media beside, without shots, with nothing long enough in it, or with a conversation in time that its clips are to have.
    """
    others = sum(medium.ref.kind != "video" for medium in view.media)
    if others:
        raise SampleError(f"{others} other media lie beside its video, which clips would lose; give the videos a source of their own")
    if "conversations" in what.texts and any("time" in turn for turn in view.sample.texts.conversations):
        raise SampleError("its conversation has times of the whole video, wrong in its clips: leave `conversations` out of `texts`")
    for number, medium in enumerate(view.media):
        before = () if len(view.media) == 1 else (number,)
        try:
            header = medium.video_header()
            parts = parts_of(_shots(what, view, number), header.good, what)
            torn = header.good < header.duration - TORN_SECONDS
            for index, part in enumerate(parts):
                yield _clip(what, view, medium, part, before, {"clip": index, "clips": len(parts), "parent_torn": torn})
        except SampleError as error:
            if not before:
                raise
            yield Child("clip", (*before, 0, 0), damage=error)


def _merged(parts: Sequence[Part], least: float) -> list[Part]:
    """Short parts joined to the one before, the first to the one behind, where they touch; those that touch none stay only if alone."""
    out: list[Part] = []
    for begin, end in parts:
        if out and begin - out[-1][1] <= _GAP and (end - begin < least or out[-1][1] - out[-1][0] < least):
            out[-1] = (out[-1][0], end)
        else:
            out.append((begin, end))
    return out if len(out) == 1 else [part for part in out if part[1] - part[0] >= least]


def _shots(what: What, view: SampleView, number: int) -> list[Part] | None:
    if not what.at:
        return None
    found: Any = view.columns[what.at]
    if found and (found[0] is None or not isinstance(found[0], Mapping)):  # a list for each medium
        found = found[number]
    if not found:
        raise SampleError(f"{what.at} names no shots of it; give the step that writes them a threshold that it passes, or cut by `every`")
    return [(float(shot["start"]), float(shot["end"])) for shot in found]


def _clip(what: What, view: SampleView, medium: MediaView, part: Part, before: tuple[int, ...], told: dict[str, Any]) -> Child:
    begin, end = part
    place = (*before, round(begin * 1000), round(end * 1000))
    method = what.method
    try:
        with medium.open() as file, medium.decoding():
            if method == "copy":
                try:
                    data, length = copied(file, begin, end, medium.limits)
                except NotCopied:
                    method = "encode"
            if method == "encode":
                data, length = encoded(file, begin, end, medium.limits, what.crf, what.preset)
    except (DecodeError, LimitError) as error:
        return Child("clip", place, damage=error)
    parameters: dict[str, Any] = {"start": round(begin, 3), "end": round(end, 3), "method": method}
    if method == "encode":
        parameters |= {"crf": what.crf, "preset": what.preset}
    transform = json.dumps({"operator": "clips", "version": VERSION, "parameters": parameters}, sort_keys=True)
    name = f"{medium.ref.name}#clip={place[-2]}-{place[-1]}.mp4"
    own = view.sample.texts
    meta = {**own.meta, "parent_key": view.sample.key, "start": round(begin, 3), "end": round(end, 3), "seconds": round(length, 3), **told}
    texts = Texts(**{name: getattr(own, name) for name in what.texts}, meta=meta)
    return Child("clip", place, (ChildMedium("video", name, data, transform, medium.number),), texts)


def _open(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    return lambda views: [{"children": clips_of(what, view)} for view in views]


def _check(what: What) -> None:
    if bool(what.at) == (what.every > 0):
        raise ValueError("at, every: give one of them: the column with the shots, or the seconds of each clip")
    for name, low, high in (("every", 0, 86_400), ("min_seconds", 0, 86_400), ("max_seconds", 0, 86_400), ("crf", 0, 51)):
        if not low <= getattr(what, name) <= high:
            raise ValueError(f"{name}: {getattr(what, name)} is outside {low}..{high}")
    if what.max_clips < 0:
        raise ValueError(f"max_clips: {what.max_clips} is less than 0, which stands for all")
    if what.max_seconds and what.max_seconds < 2 * what.min_seconds:
        raise ValueError("max_seconds: must be at least twice min_seconds, for longer parts are cut into equal ones")
    for name, value, known in (
        ("short", what.short, ("merge", "drop")),
        ("method", what.method, ("copy", "encode")),
        ("preset", what.preset, ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")),
        *(("texts", text, TEXTS) for text in what.texts),
    ):
        if value not in known:
            raise ValueError(f"{name}: {value!r} is unknown; it is one of {', '.join(known)}")


STEP = Step(
    version=VERSION,
    shape="splitter",
    level="sample",
    applies=frozenset({"video"}),
    prefix="clips_",
    what=What,
    how=How,
    columns=lambda what: (),
    reads=lambda what: ("media", what.at) if what.at else ("media",),
    open=_open,
    check=_check,
)
