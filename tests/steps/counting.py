"""Writes a line for each medium it is given, so that a test can count calls across processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from curation.step import MEDIA_KINDS, Column, NoParameters, Result, Row, Step
from curation.view import MediaView, each


@dataclass(frozen=True, slots=True)
class How:
    batch: int = 64
    gpus: float = 0.0
    memory: int = 0
    actors: int = 0
    counter: str = ""


def open_counting(what: NoParameters, how: How) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    def run(views: Sequence[MediaView]) -> Sequence[Result]:
        if how.counter:
            with open(how.counter, "a") as file:
                file.writelines(f"{view.sample.key} {len(views)}\n" for view in views)
        return each(views, answer)

    return run


def answer(view: MediaView) -> Row:
    return {"size": len(view.data()), "first": list(view.data()[:4])}


STEP = Step(
    version=1,
    columns=lambda what: (Column("size", pa.int64(), MEDIA_KINDS), Column("first", pa.list_(pa.float32()), MEDIA_KINDS, wide=True)),
    reads=lambda what: ("media",),
    prefix="counting_",
    how=How,
    open=open_counting,
)
