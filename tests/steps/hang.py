"""Never comes back from a sample with a certain key: busy, or asleep."""

from __future__ import annotations

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


def open_hang(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    def answer(view: SampleView) -> Row:
        while view.sample.key == what.key:
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
