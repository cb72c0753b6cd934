"""Conversations in LLaVA's form as messages: media tags in the human turns become the sample's media, in order; with times, a stream."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from shards.errors import SampleError
from shards.items import Message, Part, Role
from shards.sample import MediaKind

Tagged = Literal["image", "video"]

ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

_TAG = re.compile(r"<(image|video)>")
_VIDEO_TAG = re.compile(r"<video>\s*")


def from_llava(turns: Sequence[Mapping[str, Any]], kinds: Sequence[MediaKind]) -> tuple[Message, ...]:
    """The messages of a conversation {"from": human | gpt | system, "value": text}, over media of these kinds; () if nobody answers.

    The k-th `<image>` of the human turns is the k-th image, likewise `<video>`; white space after a tag belongs to the tag (whoever renders
    the message ends a medium's line). With fewer tags than media, the first media stand before the first human turn and the tags mean the
    rest. Tags in other turns are text. Raises SampleError for more tags than media, an unknown speaker, or a turn without text.
    """
    roles = _roles(turns)
    if not _answered(turns, roles):
        return ()
    values = [turn["value"] for turn in turns]
    return tuple(message for _, message in _spoken(values, roles, _by_kind(kinds)))


def from_stream(turns: Sequence[Mapping[str, Any]], kinds: Sequence[MediaKind]) -> tuple[Message, ...]:
    """The messages of a conversation while a video runs: turns as in `from_llava`, each with its "time" in seconds of the video; () if
    nobody answers.

    Before a turn stand the frames up to its time (and at it) that no turn before has seen, as VideoLLaMA3's trainer puts them; frames after
    the last turn are left out. System turns need no time. A `<video>` tag names what is streamed anyway and is dropped; images are as in
    `from_llava`. Raises SampleError as that does, for anything but one video, and for times that are missing or go backwards.
    """
    roles = _roles(turns)
    if not _answered(turns, roles):
        return ()
    waiting = _by_kind(kinds)
    if len(waiting["video"]) != 1:
        raise SampleError(f"a conversation that streams is about one video, the sample has {len(waiting['video'])}")
    times, reached = _times(turns, roles), -1.0
    video = waiting.pop("video")[0]
    values = [_VIDEO_TAG.sub("", turn["value"]) if role == "user" else turn["value"] for role, turn in zip(roles, turns, strict=True)]
    messages: list[Message] = []
    for number, message in _spoken(values, roles, waiting):
        if times[number] > reached and times[number] >= 0:
            reached = times[number]
            messages.append(Message("stream", (Part("video", media=video, until=reached),)))
        messages.append(message)
    return tuple(messages)


def _roles(turns: Sequence[Mapping[str, Any]]) -> list[Role]:
    for number, turn in enumerate(turns):
        if not isinstance(turn.get("from"), str) or turn["from"] not in ROLES:
            raise SampleError(f"turn {number} of the conversation is from {turn.get('from')!r}; known are {', '.join(ROLES)}")
        if not isinstance(turn.get("value"), str):
            raise SampleError(f"turn {number} of the conversation has no text in 'value'")
    return [ROLES[turn["from"]] for turn in turns]


def _answered(turns: Sequence[Mapping[str, Any]], roles: Sequence[Role]) -> bool:
    return any(role == "assistant" and turn["value"].strip() for role, turn in zip(roles, turns, strict=True))


def _times(turns: Sequence[Mapping[str, Any]], roles: Sequence[Role]) -> list[float]:
    """Of each turn; that of a system turn is the one before it."""
    times: list[float] = []
    for number, (role, turn) in enumerate(zip(roles, turns, strict=True)):
        before = times[-1] if times else -math.inf
        told = before if role == "system" else turn.get("time")
        if told is None:
            raise SampleError(f"turn {number} of a conversation that streams has no number of seconds in 'time'")
        if told < before:
            raise SampleError(f"turn {number} of the conversation is said at {told} s, after one at {before} s")
        times.append(told)
    return times


def _spoken(values: Sequence[str], roles: Sequence[Role], waiting: dict[Tagged, list[int]]) -> Iterator[tuple[int, Message]]:
    """(number of its turn, message), without empty ones. `waiting`: the media by kind; the tags of human turns name the last of them."""
    leading: list[Part] = []
    for kind, numbers in waiting.items():
        tags = sum(value.count(f"<{kind}>") for role, value in zip(roles, values, strict=True) if role == "user")
        if tags > len(numbers):
            raise SampleError(f"the conversation has {tags} <{kind}> tags and the sample {len(numbers)} such media")
        leading += [Part(kind, media=number) for number in numbers[: len(numbers) - tags]]
        waiting[kind] = numbers[len(numbers) - tags :]
    leading.sort(key=lambda part: part.media)

    for number, (role, value) in enumerate(zip(roles, values, strict=True)):
        content: tuple[Part, ...] = (Part("text", text=value.strip()),)
        if role == "user":
            content = (*leading, *_parts(value, waiting))
            leading = []
        elif role == "assistant" and leading:  # an answer before any question: the media ask it
            yield number, Message("user", tuple(leading))
            leading = []
        if content:
            yield number, Message(role, content)


def _by_kind(kinds: Sequence[MediaKind]) -> dict[Tagged, list[int]]:
    return {"image": [i for i, k in enumerate(kinds) if k == "image"], "video": [i for i, k in enumerate(kinds) if k == "video"]}


def _parts(value: str, waiting: dict[Tagged, list[int]]) -> list[Part]:
    """Takes the media it names from `waiting`."""
    parts: list[Part] = []
    end = 0
    kind: Tagged
    for tag in _TAG.finditer(value):
        _add_text(parts, value[end : tag.start()])
        kind = "image" if tag[1] == "image" else "video"
        parts.append(Part(kind, media=waiting[kind].pop(0)))
        end = tag.end()
    _add_text(parts, value[end:])
    if parts and parts[-1].type == "text":
        parts[-1] = Part("text", text=parts[-1].text.rstrip())
    return parts


def _add_text(parts: list[Part], text: str) -> None:
    text = text.lstrip()  # of the message, or after a tag
    if text:
        parts.append(Part("text", text=text))
