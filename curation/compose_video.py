"""Items about a video from the captions of its shots: every shot with its time, the time of one shot, and answers while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rapidfuzz.fuzz import ratio

from curation.compose_prompts import question
from shards.errors import InfrastructureError, LimitError
from shards.items import Message, Part
from shards.sample import digest_of

SHOT_TASKS = ("temporal_grounding", "streaming")  # what shots alone can teach, besides `video`
ALIKE = 90.0  # per cent of the letters (rapidfuzz's ratio) from which two captions could be meant by one question
SPEAKS_AFTER = 1.0  # seconds of a shot that are seen before it is told at its beginning
_BEFORE = 0.001  # seconds: the frame at the end of a shot is the first of the next

Speaks = Literal["end", "start"]


@dataclass(frozen=True, slots=True)
class Shot:
    """start and end in seconds, start < end. text: its caption, "" where it has none."""

    start: float
    end: float
    text: str

    @property
    def span(self) -> str:
        return f"{self.start:.1f}-{self.end:.1f} s"


def shots_of(column: str, value: Any, most: int) -> list[Shot]:
    """The shots that `caption` wrote (a list of {start, end, text}), in their order; none for NULL.

    Raises LimitError for a caption of more than `most` characters, InfrastructureError for a column of something else.
    """
    if value is None:
        return []
    try:
        shots = [Shot(float(one["start"]), float(one["end"]), (one["text"] or "").strip()) for one in value]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InfrastructureError(
            f"shots: the column {column!r} lists no {{start, end, text}}; name the `…_each` of a caption step"
        ) from error
    if longest := max((len(shot.text) for shot in shots if len(shot.text) > most), default=0):
        raise LimitError(f"a caption in {column!r} has {longest:,} characters, more than max_caption_chars: {most:,}")
    return sorted((shot for shot in shots if shot.end > shot.start), key=lambda shot: (shot.start, shot.end))


def of_shots(
    shots: Sequence[Shot],
    tasks: Sequence[str],
    prompts: Mapping[str, Sequence[str]],
    uid: str,
    number: int,
    least: float,
    most: int,
    speaks: Speaks,
) -> Iterator[tuple[str, tuple[Message, ...]]]:
    """(task, messages) about medium `number`.

    least   seconds: shorter shots may have no frame among those a model is shown, so nothing is said of them.
    most    so many shots are asked for by their caption, chosen by a hash of uid and place.
    speaks  when a shot is told in a stream: at its end, or when SPEAKS_AFTER seconds of it were seen.

    A video of one shot gives nothing. Where a shot that is long enough has no caption, no item speaks of all shots.
    """
    seen = [shot for shot in shots if shot.end - shot.start >= least]
    if len(shots) < 2 or not seen:
        return
    part = Part("video", media=number)
    place = (number,)
    if all(shot.text for shot in seen):
        if "video" in tasks and len(seen) > 1:
            answer = "\n".join(f"{shot.span}: {_one_line(shot.text)}" for shot in seen)
            yield "video", _asked(part, question(prompts, "video_shots", uid, *place), answer)
        if "streaming" in tasks:
            yield "streaming", _stream(seen, number, question(prompts, f"streaming_{speaks}", uid, *place), speaks)
    if "temporal_grounding" in tasks:
        alone = [shot for shot in seen if shot.text and _unique(shot, shots)]
        ranked = sorted(range(len(alone)), key=lambda i: (digest_of(uid, "moment", number, i), i))
        for i in sorted(ranked[:most]):
            asks = question(prompts, "temporal_grounding", uid, number, i, text=_quoted(alone[i].text))
            yield "temporal_grounding", _asked(part, asks, alone[i].span)


def _stream(shots: Sequence[Shot], number: int, asks: str, speaks: Speaks) -> tuple[Message, ...]:
    """The question, then for each shot the frames up to where it is told, and its caption."""
    messages = [Message("user", (Part("text", text=asks),))]
    reached = -1.0
    for shot in shots:
        last = shot.end - _BEFORE
        until = round(last if speaks == "end" else min(shot.start + SPEAKS_AFTER, last), 3)
        reached = max(reached, until)
        messages.append(Message("stream", (Part("video", media=number, until=reached),)))
        messages.append(Message("assistant", (Part("text", text=shot.text),)))
    return tuple(messages)


def _unique(shot: Shot, shots: Sequence[Shot]) -> bool:
    return all(other is shot or ratio(_plain(shot.text), _plain(other.text)) < ALIKE for other in shots)


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() else " " for c in text.casefold())


def _quoted(text: str) -> str:
    """A caption as part of a sentence of ours: one line, its closing full stop gone."""
    return _one_line(text).removesuffix(".").removesuffix("。")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _asked(part: Part, text: str, answer: str) -> tuple[Message, ...]:
    return Message("user", (part, Part("text", text=text))), Message("assistant", (Part("text", text=answer),))
