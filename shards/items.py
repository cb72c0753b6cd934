"""An item is one conversation of one sample: what a trainer eats, key (uid, task, n)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a message: text, or the medium with that number (its place in the sample's media)."""

    type: Literal["text", "image", "video"]
    text: str = ""
    media: int = -1

    def to_json(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text} if self.type == "text" else {"type": self.type, "media": self.media}


@dataclass(frozen=True, slots=True)
class Message:
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
    if value["role"] not in ("system", "user", "assistant"):
        raise ValueError(f"unknown role {value['role']!r}")
    return Message(value["role"], tuple(_part(p) for p in value["content"]))


def _part(value: Mapping[str, Any]) -> Part:
    if value["type"] == "text":
        return Part("text", text=str(value["text"]))
    if value["type"] in ("image", "video"):
        return Part(value["type"], media=int(value["media"]))
    raise ValueError(f"unknown part {value['type']!r}")
