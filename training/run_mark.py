"""One run at a time in an output directory: a second one would take away the checkpoints that the first is writing."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import InfrastructureError
from training.durable import replace_text

PATIENCE = 20.0  # seconds that a process which is being ended may take


@contextmanager
def only_run(out: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Notes in `out`/.running that this process trains there; one process of a run must enter it, once `out` is there.

    Raises InfrastructureError (retryable) where another process of this machine trains there and has not ended within `patience` seconds:
    ranks live on, for one, when torchrun itself is killed. What a killed process has left counts for nothing. Other machines are not seen:
    a lock on a network file system may outlive the machine that held it, and then no run could be continued.
    """
    note, mine = out / ".running", _self()
    end = time.monotonic() + patience
    while (other := _other(note)) is not None:
        if time.monotonic() > end:
            raise InfrastructureError(
                f"process {other} on this machine is training in {out}; wait for its end, or end it (kill {other}: it writes a checkpoint "
                "first), or give another --out",
                retryable=True,
            )
        time.sleep(0.2)
    replace_text(note, json.dumps(mine))
    try:
        yield
    finally:
        if _noted(note) == mine:
            note.unlink(missing_ok=True)


def _self() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()) or ""}


def _other(note: Path) -> int | None:
    """The process of the note, where it is of this machine, lives, and is not this one."""
    found = _noted(note)
    pid = found.get("pid")
    if found.get("host") != socket.gethostname() or not isinstance(pid, int) or pid == os.getpid():
        return None
    return pid if _started(pid) == found.get("started") else None


def _noted(note: Path) -> dict[str, object]:
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}  # none, or one that a disk has garbled: nobody is kept out by it
    return found if isinstance(found, dict) else {}


def _started(pid: int) -> str | None:
    """When a process began, by the kernel's clock, so that a number that was given again is not taken for it; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
