"""The lease of a run: who may commit. A file for each owner there ever was, create-if-absent; the highest number holds the run."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from shards.errors import LedgerError
from shards.store import Store

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 30.0


@dataclass(slots=True)
class Lease:
    """Held from `acquire` to `release`; a daemon thread renews the heartbeat. `number` goes into every commit."""

    store: Store
    number: int
    owner: dict[str, Any]
    _stop: threading.Event

    def check(self) -> None:
        """Raises LedgerError when a newer owner exists."""
        newest = _newest(self.store)
        if newest != self.number:
            raise LedgerError(f"{self.store.url('lease')}: lease {newest} was taken while this process held {self.number}; it stops here")

    def release(self) -> None:
        self._stop.set()
        self.store.put_replace(_name(self.number), json.dumps({**self.owner, "heartbeat": 0.0}).encode())


def acquire(store: Store) -> Lease:
    """Take the run. Raises LedgerError, naming the owner, while another live process holds it."""
    number = _newest(store)
    if number:
        holder = json.loads(store.read(_name(number)))
        if _alive(holder):
            age = time.time() - holder["heartbeat"]
            raise LedgerError(
                f"{store.url('')} is held by process {holder['pid']} on {holder['host']} (heartbeat {age:.0f} s ago); "
                f"wait for it, stop it, or try again {STALE_SECONDS:.0f} s after it died"
            )
    owner = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "boot": _boot_id(), "pid": os.getpid(), "started": _started(os.getpid())}
    if not store.put_new(_name(number + 1), json.dumps({**owner, "heartbeat": time.time()}).encode()):
        raise LedgerError(f"{store.url('')}: another process took the run at this moment; try again")
    lease = Lease(store, number + 1, owner, threading.Event())
    threading.Thread(target=_beat, args=(lease,), name="fovea-lease", daemon=True).start()
    return lease


def _beat(lease: Lease) -> None:
    while not lease._stop.wait(HEARTBEAT_SECONDS):
        lease.store.put_replace(_name(lease.number), json.dumps({**lease.owner, "heartbeat": time.time()}).encode())


def _alive(holder: dict[str, Any]) -> bool:
    """A process of this boot of this host is looked up; any other is believed while its heartbeat is fresh."""
    if holder["heartbeat"] == 0.0:
        return False
    if holder["host"] == socket.gethostname() and holder["boot"] == _boot_id():
        return psutil.pid_exists(holder["pid"]) and _started(holder["pid"]) == holder["started"]
    return bool(time.time() - holder["heartbeat"] < STALE_SECONDS)


def _started(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return -1.0


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else ""


def _newest(store: Store) -> int:
    return max((int(n.rsplit("/", 1)[-1].split(".")[0]) for n in store.list("lease/")), default=0)


def _name(number: int) -> str:
    return f"lease/{number:08d}.json"
