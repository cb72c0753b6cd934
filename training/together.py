"""What ranks do together: fail alike, wait while one of them works, and tell which of them is gone."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import InfrastructureError

if TYPE_CHECKING:
    from training.engine import Ranks

log = logging.getLogger("fovea")

_MEETING = 5.0  # seconds in which ranks that are alive notice that one is gone, once the first has
# What gloo, NCCL and torch's store say when a peer is gone or does not come: all of it is a plain RuntimeError on gloo.
_GONE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed? ?out|\bpeer\b", re.IGNORECASE)


def everywhere(value: Any, ranks: Ranks) -> list[Any]:
    """The values of all ranks, in their order. Every rank must call it."""
    if ranks.world == 1:
        return [value]
    import torch

    values: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(values, value)
    return values


def attempt(work: Callable[[], None], folder: Path) -> str | None:
    """What kept `work` from writing under `folder`, for people; None if it was done.

    A rank that raised alone would leave the others waiting for it: problems are told first (`agree`) and raised everywhere.
    torch's writer reports a full disk as a RuntimeError without an errno, so the room that is left is told beside it.
    """
    try:
        work()
    except (OSError, RuntimeError) as error:
        return f"{_first_line(error)} ({_room(folder)})"
    return None


def agree(problem: str | None, ranks: Ranks, message: Callable[[str], str]) -> None:
    """Raises InfrastructureError(message(problems)) on every rank if there is a problem on any. Every rank must call it."""
    problems = [f"rank {rank}: {told}" for rank, told in enumerate(everywhere(problem, ranks)) if told is not None]
    if problems:
        raise InfrastructureError(message("; ".join(problems)))


def while_one_works(work: Callable[[], None], ranks: Ranks, pause: float = 0.5) -> BaseException | None:
    """Rank 0 runs `work` for as long as it takes; the others wait, and notice if rank 0 dies. On rank 0: what it raised.

    A plain barrier would be cut off after the ranks' timeout, which a conversion of a large checkpoint may well exceed.
    """
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    worker = threading.Thread(target=guarded, daemon=True) if ranks.rank == 0 else None
    if worker is not None:
        worker.start()
    while not everywhere(worker is None or not worker.is_alive(), ranks)[0]:
        time.sleep(pause)
    return raised[0] if raised else None


@contextmanager
def watched(ranks: Ranks, timeout: float, resumes: Callable[[], str]) -> Iterator[None]:
    """Whatever is done inside ends with an InfrastructureError that names the missing ranks, when one of them is gone.

    timeout  seconds after which a rank that hangs, or whose machine is away, counts as gone. One whose process has died is noticed at
             once on gloo; on NCCL its watchdog ends the others after this time.
    resumes  what a new start would continue from, for the message.
    """
    if ranks.world == 1:
        yield
        return
    bound_waiting(timeout)
    store = _store()
    store.set(_key(ranks.rank), f"{socket.gethostname()}, process {os.getpid()}")
    try:
        yield
    except RuntimeError as error:
        if not (_is_distributed(error) or _GONE.search(str(error))):
            raise
        names = _missing(store, ranks)
        raise InfrastructureError(
            f"{names} gone, or did not answer within {timeout:.0f} s ({_first_line(error)}); the other ranks have stopped. "
            f"Look at its log and its machine (memory, disk), and start again: {resumes()}",
            retryable=True,
        ) from error


def bound_waiting(timeout: float) -> None:
    """No operation among ranks waits longer than `timeout` seconds: in torch's group, and in those that DeepSpeed made from it."""
    import torch
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        torch.distributed.set_timeout(timedelta(seconds=timeout), group)


def _missing(store: Any, ranks: Ranks) -> str:
    """Who of the others does not report within a few seconds, as the subject of a sentence."""
    try:
        store.set(f"{_key(ranks.rank)}/alive", "1")
        end = time.monotonic() + _MEETING
        away = [rank for rank in range(ranks.world) if rank != ranks.rank]
        while away and time.monotonic() < end:
            away = [rank for rank in away if not store.check([f"{_key(rank)}/alive"])]
            time.sleep(0.1)
        if not away:
            return "a rank is"
        names = [f"rank {rank} ({store.get(_key(rank)).decode()})" if store.check([_key(rank)]) else f"rank {rank}" for rank in away]
        return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
    except RuntimeError:
        return "rank 0, through which the ranks meet, is"  # its store went with it


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _is_distributed(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.distributed.DistError)


def _key(rank: int) -> str:
    return f"fovea/rank/{rank}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _room(folder: Path) -> str:
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    if there is None:
        return "the folder is gone"
    return f"{shutil.disk_usage(there).free / 1e9:,.3f} GB free at {there}"
