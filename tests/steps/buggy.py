"""Breaks the contract of a step in one way or another."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curation.step import ALL_KINDS, Column, How, Result, Step
from shards.errors import DecodeError


@dataclass(frozen=True, slots=True)
class What:
    way: str = "raise"


def open_buggy(what: What, how: How) -> Callable[[Sequence[Any]], Sequence[Result]]:
    if what.way == "open":
        raise FileNotFoundError("weights/of/nothing.safetensors")

    def run(views: Sequence[Any]) -> Sequence[Result]:
        good: list[Result] = [{"value": 1, "note": "fine"} for _ in views]
        match what.way:
            case "raise":
                raise KeyError("a typo")
            case "raise_sample_error":
                raise DecodeError("which sample?")
            case "short":
                return good[1:]
            case "extra":
                return [{"value": 1, "note": "", "other": 2} for _ in views]
            case "missing":
                return [{"value": 1} for _ in views]
            case "type":
                return [{"value": "one", "note": ""} for _ in views]
            case "surrogate":
                return [{"value": 1, "note": view.sample.texts.caption} for view in views]
            case "memory":
                raise MemoryError
            case "disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "network":
                raise ConnectionResetError("the endpoint hung up")
            case "print":
                print("not a message", flush=True)
        return good

    return run


STEP = Step(
    version=1,
    columns=lambda what: (Column("value", pa.int64()), Column("note", pa.string())),
    reads=lambda what: ("texts",),
    level="sample",
    applies=ALL_KINDS,
    prefix="buggy_",
    what=What,
    open=open_buggy,
)
