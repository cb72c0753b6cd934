"""A step over media with a What and a How, as recipes of the tests use it: nothing opens it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from curation.step import MEDIA_KINDS, Column, How, Step


@dataclass(frozen=True, slots=True)
class What:
    scale: int = 1
    kernel: str = "area"
    sizes: tuple[int, ...] = (1, 2)
    threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class SizeHow(How):
    endpoint: str = ""
    api_key_env: str = ""


def _check(what: What) -> None:
    if what.scale < 1:
        raise ValueError(f"scale: {what.scale} is below 1")


STEP = Step(
    version=1,
    columns=lambda what: (
        Column("width", pa.int32()),
        Column("height", pa.int32()),
        Column("beauty", pa.float32(), frozenset({"image"})),
        Column("vector", pa.list_(pa.float32()), wide=True),
    ),
    reads=lambda what: ("media",),
    applies=MEDIA_KINDS,
    what=What,
    how=SizeHow,
    check=_check,
)
