"""Never comes back from a sample with a certain key: busy, in one native call, or asleep."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from curation.step import ALL_KINDS, Column, How, Result, Row, Step
from curation.view import SampleView, each


@dataclass(frozen=True, slots=True)
class What:
    key: str = ""
    busy: bool = True
    native: bool = False


def open_hang(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    def answer(view: SampleView) -> Row:
        while view.sample.key == what.key:
            if what.native:
                re.match(r"(a+)+$", "a" * 80 + "b")  # holds the interpreter for longer than anybody lives
            if not what.busy:
                time.sleep(0.05)
        return {"done": True}

    return lambda views: each(views, answer)


STEP = Step(
    version=1,
    columns=lambda what: (Column("done", pa.bool_()),),
    reads=lambda what: (),
    level="sample",
    applies=ALL_KINDS,
    prefix="hang_",
    what=What,
    open=open_hang,
)
