"""What the media of a batch ask of a captioner, and what its replies make of them.

A picture or a clip asks one question, a video that is told shot by shot one for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curation.caption_cache import Cache
from curation.caption_reply import Reply, check_reply
from curation.caption_request import Request, bounded, fill, frames_id, places, reply_key
from curation.moments import Stretch, by_stretch, frame_times, of_videos, stretches
from curation.own_texts import value_of
from curation.step import Column, Result
from curation.view import MediaView
from shards.errors import DecodeError, SampleError

if TYPE_CHECKING:
    from curation.caption import What

IMAGE, VIDEO = frozenset({"image"}), frozenset({"video"})
WAVE_BYTES = 512_000_000  # of pixels that wait for a model at once
SHOT_TYPE = pa.struct(
    [
        pa.field("start", pa.float32(), nullable=False),
        pa.field("end", pa.float32(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("error", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Question:
    """key: of its reply, for the cache. picture: what stands for the pixels in it. stretch: None for a picture."""

    key: str
    picture: str
    prompt: str
    stretch: Stretch | None = None


@dataclass(slots=True)
class Asked:
    """What the views of a batch ask. errors: by place, for those that ask nothing. questions: by place, of the others.
    known: replies of the cache by key."""

    errors: dict[int, SampleError] = field(default_factory=dict)
    questions: dict[int, list[Question]] = field(default_factory=dict)
    known: Mapping[str, Reply] = field(default_factory=dict)


def ask(what: What, model: Sequence[str], cache: Cache, views: Sequence[MediaView]) -> Asked:
    """model: identity of the model, for the cache. No pixels are looked at."""
    names = places(what.prompt)
    asked = Asked()
    for place, view in enumerate(views):
        try:
            prompt = fill(what.prompt, {name: value_of(view, name) for name in names}, what.max_prompt_chars)
            found: Sequence[Stretch | None] = stretches(what, view) if of_videos(what) else [None]
            shown = [view.sha256() if one is None else frames_id(view.sha256(), one.times) for one in found]
        except SampleError as error:
            asked.errors[place] = error
            continue
        asked.questions[place] = [
            Question(reply_key(what, model, picture, prompt), picture, prompt, one) for picture, one in zip(shown, found, strict=True)
        ]
    asked.known = cache.get(list(dict.fromkeys(q.key for listed in asked.questions.values() for q in listed)))
    return asked


def waves(what: What, asked: Asked, views: Sequence[MediaView]) -> Iterator[dict[str, Request]]:
    """What must be asked, once each, by key and in the order of the views; so much at a time as WAVE_BYTES of pixels hold.

    A view whose pixels cannot be had moves from `asked.questions` to `asked.errors`, with all others that ask the same of the same bytes.
    """
    done, wave, held = set(asked.known), dict[str, Request](), 0
    for place, listed in list(asked.questions.items()):
        new = list({q.key: q for q in listed if q.key not in done}.values())
        if not new or place in asked.errors:
            continue
        done.update(q.key for q in new)
        try:
            for question, pixels in _shown(what, views[place], new):
                wave[question.key] = Request(views[place].sample.uid, question.picture, question.prompt, pixels)
                held += pixels.nbytes
                if held >= WAVE_BYTES:
                    yield wave
                    wave, held = {}, 0
        except SampleError as error:
            keys = {q.key for q in new}
            for other in [p for p, theirs in asked.questions.items() if keys & {q.key for q in theirs}]:
                asked.errors[other] = error
                del asked.questions[other]
    if wave:
        yield wave


def _shown(what: What, view: MediaView, new: Sequence[Question]) -> Iterator[tuple[Question, np.ndarray]]:
    """Each question with the pixels it is about (`Request.pixels`)."""
    frames = view.frames(frame_times([q.stretch for q in new if q.stretch is not None])) if of_videos(what) else iter(())
    for question in new:
        if question.stretch is None:
            yield question, bounded(view.image(), what.max_pixels)
            continue
        pixels = [bounded(_next(frames, time), what.max_pixels) for time in question.stretch.times]
        yield question, np.stack(pixels) if len(pixels) > 1 else pixels[0]


def _next(frames: Iterator[np.ndarray], time: float) -> np.ndarray:
    found = next(frames, None)
    if found is None:
        raise DecodeError(f"the video ends before its frame at {time:.2f} s")
    return found


def rows_of(what: What, asked: Asked, replies: Mapping[str, Reply | SampleError], count: int) -> list[Result]:
    """The rows of `count` views. replies: by key, of every question."""
    judged = {key: check_reply(what, came) if isinstance(came, Reply) else came for key, came in replies.items()}
    rows: list[Result] = []
    for place in range(count):
        listed = asked.questions.get(place, [])
        rows.append(row_of(what, listed, [judged[q.key] for q in listed]) if listed else asked.errors[place])
    return rows


def row_of(what: What, questions: Sequence[Question], judged: Sequence[Result]) -> Result:
    """The row of one medium. Of several shots those without a caption say why; a video none of whose shots has one is an error."""
    if not by_stretch(what):
        return judged[0]
    rows = [None if isinstance(result, SampleError) else result for result in judged]
    told = [row for row in rows if row is not None]
    if not told:
        return judged[0]
    return {
        "text": "\n".join(row["text"] for row in told),
        "tokens": None if any(row["tokens"] is None for row in told) else sum(row["tokens"] for row in told),
        "n": len(told),
        "each": [_shot(question.stretch, result) for question, result in zip(questions, judged, strict=True)],
    }


def _shot(stretch: Stretch | None, result: Result) -> dict[str, Any]:
    assert stretch is not None
    bounds = {"start": stretch.start, "end": stretch.end}
    if isinstance(result, SampleError):
        return {**bounds, "text": None, "error": f"{result.kind}: {result}".encode("utf-8", "replace").decode()}
    return {**bounds, "text": result["text"], "error": None}


def columns_of(what: What) -> list[Column]:
    """The step's columns: of pictures, or of videos where its What says so."""
    kinds, shown = (VIDEO, "video") if of_videos(what) else (IMAGE, "picture")
    found = [
        Column("text", pa.string(), kinds, doc=f"what the model says of the {shown}, without blanks around it"),
        Column("tokens", pa.int32(), kinds, doc="tokens of the reply, its end among them; NULL where a server does not say"),
    ]
    if not by_stretch(what):
        return found
    return [
        Column("text", pa.string(), kinds, doc="the captions of the shots in their order, a line break between them"),
        Column("tokens", pa.int32(), kinds, doc="tokens of all replies; NULL where a server does not say"),
        Column("n", pa.int32(), kinds, doc="shots with a caption"),
        Column("each", pa.list_(SHOT_TYPE), kinds, wide=True, doc="each shot: start, end in seconds, text, or error: why it has none"),
    ]
