"""Who of the ranks is gone: each signs in where the ranks met, and answers there when it ends because another one is away."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.engine import Ranks

_PATIENCE = 5.0  # seconds within which those that are alive notice, after the first has, that one is not


def sign_in(ranks: Ranks) -> None:
    """Notes where this rank runs. Every rank should call it once they have met."""
    _store().set(_key(ranks.rank), f"{socket.gethostname()}, process {os.getpid()}")


def answer(ranks: Ranks) -> None:
    """Notes that this rank is not the one that is gone. Silent where the place they met at is gone itself."""
    _within_patience(lambda: _store().set(_key(ranks.rank) + "/here", "1"))


def absent(ranks: Ranks) -> str:
    """The ranks that do not answer, with machine and process, for a message; "another rank" where that cannot be told.

    Without a launcher's own store the ranks meet at rank 0: nobody can be asked when it is rank 0 that is gone.
    """
    names: list[str] = []

    def ask() -> None:
        store, end = _store(), time.monotonic() + 0.8 * _PATIENCE
        away = [rank for rank in range(ranks.world) if rank != ranks.rank]
        while len(away) > 1 and time.monotonic() < end:  # of two ranks it can only be the other one
            away = [rank for rank in away if not store.check([_key(rank) + "/here"])]
            time.sleep(0.1)
        names.extend(f"rank {rank} ({store.get(_key(rank)).decode()})" for rank in away if store.check([_key(rank)]))

    _within_patience(ask)
    unknown = f"rank {1 - ranks.rank}" if ranks.world == 2 else "another rank"
    return ", ".join(names) or unknown


def _within_patience(work: Any) -> None:
    """A store on a machine that is switched off answers nothing and raises nothing: it is not waited for."""

    def tolerant() -> None:
        try:
            work()
        except RuntimeError:
            return  # the store went with the rank that held it: there is nobody to ask

    thread = threading.Thread(target=tolerant, daemon=True)
    thread.start()
    thread.join(_PATIENCE)


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _key(rank: int) -> str:
    return f"fovea/rank/{rank}"
