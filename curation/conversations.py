"""Conversations in LLaVA's form as messages: media tags in the human turns become the sample's media, in order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from shards.errors import SampleError
from shards.items import Message, Part, Role
from shards.sample import MediaKind

Tagged = Literal["image", "video"]

ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

_TAG = re.compile(r"<(image|video)>")


def from_llava(turns: Sequence[Mapping[str, str]], kinds: Sequence[MediaKind]) -> tuple[Message, ...]:
    """The messages of a conversation {"from": human | gpt | system, "value": text}, over media of these kinds; () if nobody answers.

    The k-th `<image>` of the human turns is the k-th image, likewise `<video>`; white space after a tag belongs to the tag (whoever renders
    the message ends a medium's line). With fewer tags than media, the first media stand before the first human turn and the tags mean the
    rest. Tags in other turns are text. Raises SampleError for more tags than media, an unknown speaker, or a turn without text.
    """
    for number, turn in enumerate(turns):
        if not isinstance(turn.get("from"), str) or turn["from"] not in ROLES:
            raise SampleError(f"turn {number} of the conversation is from {turn.get('from')!r}; known are {', '.join(ROLES)}")
        if not isinstance(turn.get("value"), str):
            raise SampleError(f"turn {number} of the conversation has no text in 'value'")
    roles = [ROLES[turn["from"]] for turn in turns]
    if not any(role == "assistant" and turn["value"].strip() for role, turn in zip(roles, turns, strict=True)):
        return ()
    waiting = _by_kind(kinds)
    leading: list[Part] = []
    for kind, numbers in waiting.items():
        tags = sum(turn["value"].count(f"<{kind}>") for role, turn in zip(roles, turns, strict=True) if role == "user")
        if tags > len(numbers):
            raise SampleError(f"the conversation has {tags} <{kind}> tags and the sample {len(numbers)} such media")
        leading += [Part(kind, media=number) for number in numbers[: len(numbers) - tags]]
        waiting[kind] = numbers[len(numbers) - tags :]
    leading.sort(key=lambda part: part.media)

    messages: list[Message] = []
    for role, turn in zip(roles, turns, strict=True):
        value = turn["value"]
        if role == "user":
            messages.append(Message(role, (*leading, *_parts(value, waiting))))
            leading = []
        else:
            if role == "assistant" and leading:  # an answer before any question: the media ask it
                messages.append(Message("user", tuple(leading)))
                leading = []
            messages.append(Message(role, (Part("text", text=value.strip()),)))
    return tuple(message for message in messages if message.content)


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
