"""Splits a text into its words, as pictures of its letters' codes; some words do what a splitter must not, or may."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from curation.step import ALL_KINDS, Child, ChildMedium, How, Result, Step
from curation.view import SampleView
from shards.errors import DecodeError, InfrastructureError
from shards.sample import Texts


@dataclass(frozen=True, slots=True)
class What:
    size: int = 8


def words(what: What, view: SampleView) -> Iterator[Child]:
    transform = json.dumps({"operator": "splits", "version": 1, "parameters": {}})
    for place, word in enumerate((view.sample.texts.text or "").split()):
        match word:
            case "BAD":
                raise DecodeError("a bad word")
            case "BUG":
                raise KeyError("a typo")
            case "CRASH":
                ctypes.string_at(0)
            case "DISK":
                raise InfrastructureError("the disk went away")
        if word == "DAMAGED":
            yield Child("word", (place,), damage=DecodeError("a damaged word"))
            continue
        data = np.full(what.size, len(word), np.uint8).tobytes() + word.encode()
        media = (ChildMedium("image", f"{word}.bin", data, transform),) if view.media else ()
        yield Child("word", (0 if word == "TWICE" else place,), media, Texts(caption=word))


def open_splits(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    return lambda views: [{"children": words(what, view)} for view in views]


STEP = Step(
    version=1,
    shape="splitter",
    level="sample",
    applies=ALL_KINDS,
    prefix="splits_",
    what=What,
    columns=lambda what: (),
    reads=lambda what: ("media", "texts"),
    open=open_splits,
)
