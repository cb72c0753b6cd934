"""The lease: one owner at a time; a dead owner does not hold a run up."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from pipeline import lease as leases
from shards.errors import LedgerError
from shards.store import open_store


def test_a_second_owner_is_refused_until_release(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = leases.acquire(store)
    with pytest.raises(LedgerError, match=f"process {os.getpid()}"):
        leases.acquire(store)
    first.release()
    second = leases.acquire(store)
    assert second.number == first.number + 1
    with pytest.raises(LedgerError, match="was taken"):
        first.check()
    second.check()
    second.release()


def _hold(folder: str, ready: multiprocessing.Queue[int]) -> None:
    leases.acquire(open_store(folder))
    ready.put(os.getpid())
    time.sleep(60)


def test_a_killed_owner_is_replaced_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready: multiprocessing.Queue[int] = context.Queue()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    pid = ready.get(timeout=30)
    with pytest.raises(LedgerError):
        leases.acquire(open_store(tmp_path))
    os.kill(pid, signal.SIGKILL)
    holder.join()
    leases.acquire(open_store(tmp_path)).release()


def test_an_owner_elsewhere_is_believed_while_its_heart_beats(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    owner = {"id": "x", "host": socket.gethostname() + "-other", "boot": "", "pid": 1, "started": 0.0, "heartbeat": time.time()}
    store.put_new("lease/00000001.json", json.dumps(owner).encode())
    with pytest.raises(LedgerError, match="-other"):
        leases.acquire(store)
    store.put_replace("lease/00000001.json", json.dumps({**owner, "heartbeat": time.time() - leases.STALE_SECONDS - 1}).encode())
    leases.acquire(store).release()
