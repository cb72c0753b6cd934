"""A global step over a score that it is told, with an implied rule."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from curation.step import Column, Step


@dataclass(frozen=True, slots=True)
class What:
    by: str = "width"


STEP = Step(
    version=1,
    shape="global",
    level="sample",
    prefix="best_",
    columns=lambda what: (Column("of", pa.string()),),
    reads=lambda what: (what.by,),
    reduce=lambda what, population: population.table.select(["uid"]).append_column("of", pa.nulls(population.samples, pa.string())),
    implied=lambda what: "{prefix}of is null or turns > 0",
    what=What,
)
