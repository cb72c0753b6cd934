"""Workers that run tasks beside each other in some order of their own, and vectors on disk, for tests of global steps."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from curation.vectors import Vectors, write_vectors

T = TypeVar("T")
NO_MORE = np.zeros((0, 2), np.int64)


@dataclass
class Threads:
    """Tasks on `cpus` threads, the last one first, through pickle as on a cluster. `most` bytes that a task's arguments may have."""

    cpus: int = 3
    most: int = 1 << 20
    ran: list[str] = field(default_factory=list)

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        sent = [pickle.dumps((function, tuple(task))) for task in tasks]
        assert all(len(task) <= self.most for task in sent)
        self.ran += [function.__name__] * len(sent)
        with ThreadPoolExecutor(self.cpus) as pool:
            answers = [pool.submit(_run, task) for task in reversed(sent)]
            yield from [answer.result() for answer in reversed(answers)]


class Killed(Exception):
    """The power goes."""


@dataclass
class Dying:
    """One task after the other, until `left` have run."""

    left: int
    cpus: int = 1

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        for task in tasks:
            if not self.left:
                raise Killed
            self.left -= 1
            yield function(*task)


def _run(task: bytes) -> Any:
    function, arguments = pickle.loads(task)
    return function(*arguments)


def vectors_of(folder: Path, values: Any, digest: str = "") -> Vectors:
    """One vector for each row, in order."""
    values = np.asarray(values, np.float32)
    rows = np.arange(len(values))
    return write_vectors(folder, len(values), NO_MORE, [(rows, np.zeros(len(values), np.int64), values)], digest=digest)
