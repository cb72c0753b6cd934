"""Takes memory without end at a sample with a certain key."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from curation.step import ALL_KINDS, Column, How, Result, Row, Step
from curation.view import SampleView, each

BLOCK = 32 << 20
MOST = 3 << 30  # the machine's memory is not the test's to take: by then the child must be dead


@dataclass(frozen=True, slots=True)
class What:
    key: str = ""


def open_hog(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    def answer(view: SampleView) -> Row:
        held: list[bytearray] = []
        while view.sample.key == what.key:
            held.append(bytearray(b"\1" * BLOCK))
            if len(held) * BLOCK > MOST:
                raise RuntimeError("nobody stopped the hog")
            time.sleep(0.01)
        return {"done": True}

    return lambda views: each(views, answer)


STEP = Step(
    version=1,
    columns=lambda what: (Column("done", pa.bool_()),),
    reads=lambda what: (),
    level="sample",
    applies=ALL_KINDS,
    prefix="hog_",
    what=What,
    open=open_hog,
)
