"""What ranks need to agree on around files: problems are told before they are raised, and one may work while the others wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from shards.errors import FoveaError, InfrastructureError
from training.durable import room
from training.rank_group import agreed

if TYPE_CHECKING:
    from training.engine import Ranks

RANK_TIMEOUT = 600.0  # seconds that a rank waits for another in one operation; see docs/checkpoints.md


def everywhere(value: Any, ranks: Ranks) -> list[Any]:
    """The values of all ranks, in their order. Every rank must call it."""
    if ranks.world == 1:
        return [value]
    import torch

    values: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(values, value)
    return values


def attempt(work: Callable[[], None], folder: Path) -> str | None:
    """What kept `work` from reading or writing under `folder`, for people; None if it was done.

    A rank that raised alone would leave the others waiting for it: problems are told first (`agree`) and raised after that. torch's
    writer reports a full disk as a RuntimeError without an errno, and safetensors as an error of its own, so the room that is left is told
    beside it.
    """
    try:
        work()
    except InfrastructureError as error:
        return str(error)
    except (OSError, RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"{lines[0][:300]} ({room(folder)})"
    return None


def agree(problem: str | None, ranks: Ranks, message: Callable[[str], str]) -> None:
    """Every rank must call it. If any has a problem, the lowest of those raises InfrastructureError(message(problem)), the others
    training.rank_group.EndedElsewhere."""

    def told() -> None:
        if problem is not None:
            raise InfrastructureError(message(problem))

    agreed(ranks, told)


def while_first_works(work: Callable[[], None], ranks: Ranks, pause: float = 0.2) -> None:
    """Rank 0 runs `work` for as long as it takes, the others wait. What it raises is raised on rank 0 alone: `work` should `attempt`.

    The ranks meet every `pause` seconds. In one barrier they would be cut off by the ranks' timeout, which the conversion of a large
    checkpoint may well exceed, and would not hear of rank 0's death before.
    """
    if ranks.world == 1:
        work()
        return
    raised: list[BaseException] = []

    def kept() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    worker = threading.Thread(target=kept, daemon=True) if ranks.rank == 0 else None
    if worker is not None:
        worker.start()
    while not everywhere(worker is None or not worker.is_alive(), ranks)[0]:
        time.sleep(pause)
    if raised:
        raise raised[0]


def first_works(ranks: Ranks, work: Callable[[], None]) -> None:
    """`while_first_works`, and a FoveaError of rank 0 ends all: EndedElsewhere on the others. Every rank must call it."""
    wrong: list[FoveaError] = []

    def kept() -> None:
        try:
            work()
        except FoveaError as error:
            wrong.append(error)

    def told() -> None:
        if wrong:
            raise wrong[0]

    while_first_works(kept, ranks)
    agreed(ranks, told)


def bound_waiting(seconds: float = RANK_TIMEOUT) -> None:
    """No operation among ranks waits longer for one of them, in torch's group and in those that DeepSpeed made of it.

    Without this the groups that DeepSpeed makes wait 30 minutes on gloo, whatever the first group's timeout is. A rank whose process died
    is noticed at once on gloo, as its connections close; this is for one that hangs, or whose machine is away. On NCCL its watchdog ends
    the waiting processes.
    """
    import torch
    from torch.distributed import distributed_c10d

    if torch.distributed.get_world_size() > 1:
        for group in list(distributed_c10d._world.pg_map):
            torch.distributed.set_timeout(timedelta(seconds=seconds), group)
