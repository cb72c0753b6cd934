"""What a global step sees: the samples as a table, their vectors as blocks on disk, workers, and a store for pairs it has found before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from curation.step import How
from curation.vectors import Vectors

T = TypeVar("T")


class Workers(Protocol):
    """Runs pure functions beside each other."""

    @property
    def cpus(self) -> int:
        """How many at once."""

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        """`function(*task)` of each task, answers in the order of the tasks, few of them waiting at a time.

        function: of a module's top level; it works on one thread and must not depend on where it runs. Arguments and answers are small:
        what is large lies in files that a path names.
        """


class Pairs(Protocol):
    """Pairs that were found before for this very population."""

    def load(self, key: str) -> pa.Table | None:
        """What was saved under `key`, a digest of all that decides it but the population; None where nothing was."""

    def save(self, key: str, pairs: pa.Table) -> None:
        """Keep it. The first one saved under a key stays."""


@dataclass(frozen=True, slots=True)
class Population:
    """The samples of a global step.

    table    uid string, kind string, then the narrow columns it reads under their final names: list<T> with a value for each medium where
             they are of level "medium", else T. In order of uid: row i here is vector i there. Behind the samples come `references` rows
             of what they are held against (`Step.references`): their uid is "reference:<name>/<key>", a column they lack is NULL.
    vectors  the wide columns of numbers that it reads, by final name.
    digests  of the steps that wrote the columns, by final name.
    how      the step's How.
    workers  to spread work on; scratch: a folder that they all see, which may hold what an earlier try of the same left behind.
    pairs    what it found before.
    dataset  URL of the run's own dataset folder; "" where there is none.
    """

    table: pa.Table
    vectors: Mapping[str, Vectors]
    digests: Mapping[str, str]
    how: How
    workers: Workers
    scratch: Path
    pairs: Pairs
    dataset: str = ""
    references: int = 0

    @property
    def samples(self) -> int:
        """Rows that are samples: the first so many of the table."""
        return int(self.table.num_rows) - self.references


class OneByOne:
    """Workers: this process, one task after the other."""

    cpus = 1

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        return (function(*task) for task in tasks)


@dataclass(slots=True)
class PairsInMemory:
    """Pairs for as long as the process lives."""

    kept: dict[str, pa.Table] = field(default_factory=dict)

    def load(self, key: str) -> pa.Table | None:
        return self.kept.get(key)

    def save(self, key: str, pairs: pa.Table) -> None:
        self.kept.setdefault(key, pairs)


def population_of(
    table: pa.Table,
    scratch: Path,
    *,
    vectors: Mapping[str, Vectors] | None = None,
    digests: Mapping[str, str] | None = None,
    how: How | None = None,
    workers: Workers | None = None,
    pairs: Pairs | None = None,
    dataset: str = "",
    references: int = 0,
) -> Population:
    """A population in this process alone: for small ones, and to try steps. Samples are put in order of uid; vectors must be so already."""
    samples = table.num_rows - references
    order = np.argsort(np.array(table["uid"].to_pylist()[:samples], dtype=object)) if samples else np.zeros(0, np.int64)
    order = np.concatenate([order, np.arange(samples, table.num_rows)])
    in_order = bool(np.all(order == np.arange(len(order))))
    if vectors and not in_order:
        raise ValueError("vectors are numbered by rows in order of uid: sort the table by uid first")
    return Population(
        table if in_order else table.take(pa.array(order)),
        vectors or {},
        digests or {},
        how or How(),
        workers or OneByOne(),
        scratch,
        pairs if pairs is not None else PairsInMemory(),
        dataset,
        references,
    )
