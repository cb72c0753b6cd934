"""Tasks of a global step on Ray: pure functions side by side, answers in order, a bounded number on their way."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import cluster
from shards.errors import InfrastructureError

T = TypeVar("T")

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AHEAD = 2  # tasks on their way for each that runs, so that nobody waits for the next


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """`curation.population.Workers` on the connected cluster.

    cpus   tasks at once. here: on this machine only, because the scratch folder is on no disk that others see.
    """

    cpus: int
    here: bool = False

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        """See `Workers.map`. Raises the FoveaError of a task as itself, InfrastructureError where Ray fails."""
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus or None}
        if self.here:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote = _call.options(**options)
        shared = ray.put(function)
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(remote.remote(shared, os.getcwd(), tuple(task)))
                if len(waiting) >= AHEAD * self.cpus:
                    yield cluster.get(waiting.popleft())
            while waiting:
                yield cluster.get(waiting.popleft())
        finally:
            for reference in waiting:
                ray.cancel(reference, force=False)


@ray.remote(num_cpus=1)
def _call(function: Callable[..., Any], folder: str, task: Sequence[Any]) -> Any:
    if os.path.isdir(folder):
        os.chdir(folder)
    with full_disk():
        return function(*task)


@contextmanager
def full_disk() -> Iterator[None]:
    """Turns the errors of a disk that takes no more into InfrastructureError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InfrastructureError(f"{error}; what is done is kept: free space in the run's work/ and run again") from error
