"""Makes a file when it is called: what a worker sees when another one has failed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.step import ALL_KINDS, Column, How, Result, Step


@dataclass(frozen=True, slots=True)
class What:
    flag: str


def open_flagging(what: What, how: How) -> Callable[[Sequence[Any]], Sequence[Result]]:
    def run(views: Sequence[Any]) -> Sequence[Result]:
        Path(what.flag).touch()
        return [{"value": 1} for _ in views]

    return run


STEP = Step(
    version=1,
    columns=lambda what: (Column("value", pa.int64()),),
    reads=lambda what: ("texts",),
    level="sample",
    applies=ALL_KINDS,
    prefix="flagging_",
    what=What,
    open=open_flagging,
)
