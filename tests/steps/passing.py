"""Loses its network for so many calls after so many inputs; a line in `calls` for each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.step import ALL_KINDS, Column, How, Result, Step


@dataclass(frozen=True, slots=True)
class What:
    folder: str
    times: int = 1
    after: int = 0


def open_passing(what: What, how: How) -> Callable[[Sequence[Any]], Sequence[Result]]:
    path = Path(what.folder)

    def run(views: Sequence[Any]) -> Sequence[Result]:
        with (path / "calls").open("a") as file:
            file.write(f"{len(views)}\n")
        failed = path / "failed"
        count = len(failed.read_text()) if failed.exists() else 0
        number = int("".join(c for c in views[-1].sample.key if c.isdecimal()))
        if count < what.times and number >= what.after:
            failed.write_text("x" * (count + 1))
            raise ConnectionResetError("the endpoint hung up")
        return [{"value": 1} for _ in views]

    return run


STEP = Step(
    version=1,
    columns=lambda what: (Column("value", pa.int64()),),
    reads=lambda what: ("texts",),
    level="sample",
    applies=ALL_KINDS,
    prefix="passing_",
    what=What,
    open=open_passing,
)
