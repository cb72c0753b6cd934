"""An item is one conversation of one sample: what a trainer eats, key (uid, task, n)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shards.errors import SampleError

TASKS = (
    "short_caption",
    "detailed_caption",
    "ocr",
    "document",
    "chart",
    "region",
    "grounding",
    "vqa",
    "multi_image",
    "text",
    "video",
    "temporal_grounding",
    "streaming",
)

Role = Literal["system", "user", "assistant", "stream"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "stream")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a message: text, or the medium with that number (its place in the sample's media).

    until  of a video in a stream message: it shows all frames up to this second (and at it) that no stream message before has shown; None:
           all that are left.
    """

    type: Literal["text", "image", "video"]
    text: str = ""
    media: int = -1
    until: float | None = None

    def to_json(self) -> dict[str, Any]:
        if self.type == "text":
            return {"type": "text", "text": self.text}
        return {"type": self.type, "media": self.media} | ({} if self.until is None else {"until": self.until})


@dataclass(frozen=True, slots=True)
class Message:
    """A turn. One of role "stream" holds one video part and no text: the next of its frames, as they come in while others speak."""

    role: Role
    content: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "content": [part.to_json() for part in self.content]}


@dataclass(frozen=True, slots=True)
class Item:
    """`n` counts the items of one task within a sample, from 0."""

    task: str
    n: int
    messages: tuple[Message, ...]

    def to_json(self) -> dict[str, Any]:
        return {"task": self.task, "n": self.n, "messages": [m.to_json() for m in self.messages]}


def shown(item: Item) -> tuple[Part, ...]:
    """The media of an item as they are measured, decoded and counted, in the order of their features: each medium part of its messages; but
    all stream messages of a video are one, where the first of them stands, with the last one's `until` (later frames are not of the item).

    Raises SampleError for a stream message that is not one video part, an `until` elsewhere, below 0 or before the one before it, and a
    stream that goes on after another video: the features of videos come one video after another.
    """
    parts: list[Part] = []
    streams: dict[int, int] = {}  # video -> the place of its stream in `parts`
    latest = -1  # the place of the video that came last
    where = f"item {item.task}/{item.n}"
    for message in item.messages:
        streamed = message.role == "stream"
        if streamed and not _streams(message):
            raise SampleError(f"{where}: a stream message is one video until a second from 0 on, not {message.to_json()['content']}")
        for part in message.content:
            if streamed and part.media in streams:
                place = streams[part.media]
                if place != latest:
                    raise SampleError(f"{where} goes on with the stream of video {part.media} after another video")
                if _end(part) < _end(parts[place]):
                    raise SampleError(f"{where} streams video {part.media} until {_end(part)} s after {_end(parts[place])} s")
                parts[place] = part
                continue
            if not streamed and part.until is not None:
                raise SampleError(f"{where} says `until` of a part that is in no stream message")
            if streamed:
                streams[part.media] = len(parts)
            if part.type == "video":
                latest = len(parts)
            if part.type != "text":
                parts.append(part)
    return tuple(parts)


def _streams(message: Message) -> bool:
    if len(message.content) != 1 or message.content[0].type != "video":
        return False
    return message.content[0].until is None or 0 <= message.content[0].until < math.inf


def _end(part: Part) -> float:
    return math.inf if part.until is None else part.until


def item_from_json(value: Mapping[str, Any]) -> Item:
    """Inverse of `Item.to_json`. Raises ValueError for an unknown task, role or part."""
    if value["task"] not in TASKS:
        raise ValueError(f"unknown task {value['task']!r}; tasks are {', '.join(TASKS)}")
    return Item(value["task"], int(value["n"]), tuple(_message(m) for m in value["messages"]))


def items_to_json(items: Sequence[Item]) -> str:
    """The column `items` as compose writes it: a JSON array."""
    return json.dumps([item.to_json() for item in items], ensure_ascii=False, separators=(",", ":"))


def items_from_json(text: str) -> list[Item]:
    return [item_from_json(value) for value in json.loads(text)]


def _message(value: Mapping[str, Any]) -> Message:
    if value["role"] not in ROLES:
        raise ValueError(f"unknown role {value['role']!r}")
    return Message(value["role"], tuple(_part(p) for p in value["content"]))


def _part(value: Mapping[str, Any]) -> Part:
    if value["type"] == "text":
        return Part("text", text=str(value["text"]))
    if value["type"] in ("image", "video"):
        until = value.get("until")
        return Part(value["type"], media=int(value["media"]), until=None if until is None else float(until))
    raise ValueError(f"unknown part {value['type']!r}")
