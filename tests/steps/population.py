"""A global step that tells what it was shown: vectors by worker tasks, and how often it had to search because no pairs were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation.population import Population
from curation.step import Column, Step
from curation.vectors import Vectors
from shards.errors import LimitError

PAIRS = "colours"


@dataclass(frozen=True, slots=True)
class What:
    add: int = 0
    fail: bool = False


def told(vectors: Vectors, row: int) -> list[str]:
    ids = np.arange(vectors.count)[vectors.valid]
    mine = ids[vectors.row_of(ids) == row]
    return [f"{m}:" + ",".join(f"{x:.3f}" for x in v) for m, v in zip(vectors.medium_of(mine), vectors.take(mine), strict=True)]


def broken(row: int) -> int:
    raise LimitError(f"row {row} is too much")


def reduce(what: What, population: Population) -> pa.Table:
    vectors = population.vectors["mean"]
    known = population.pairs.load(PAIRS)
    searched = known is None
    if searched:
        population.pairs.save(PAIRS, pa.table({"left": pa.array([0], pa.int64()), "right": pa.array([1], pa.int64())}))
    work: Any = broken if what.fail else told
    tasks: list[Sequence[Any]] = [(i,) if what.fail else (vectors, i) for i in range(population.samples)]
    lines = list(population.workers.map(work, tasks))
    return pa.table(
        {
            "uid": population.table["uid"],
            "vectors": pa.array([" ".join(line) for line in lines], pa.string()),
            "width": pa.array([w[0] + what.add for w in population.table["width"].to_pylist()], pa.int32()),
            "searched": pa.array([searched] * population.samples),
            "refused": pa.array([vectors.refused] * population.samples, pa.int32()),
        }
    )


STEP = Step(
    version=1,
    shape="global",
    level="sample",
    applies=frozenset({"image"}),
    prefix="told_",
    what=What,
    columns=lambda what: (
        Column("vectors", pa.string()),
        Column("width", pa.int32()),
        Column("searched", pa.bool_()),
        Column("refused", pa.int32()),
    ),
    reads=lambda what: ("mean", "width"),
    reduce=reduce,
)
