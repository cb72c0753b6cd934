"""A store that counts what is read of it, and by whom nothing is known but the name of the file."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

from shards.store import Store, open_store


class CountedStore:
    """A store as another one, its reads counted: bytes by file, and requests."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.bytes: Counter[str] = Counter()
        self.requests = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def read(self, name: str) -> bytes:
        return self._counted(name, self.store.read(name))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        return self._counted(name, self.store.read_range(name, offset, length))

    def of(self, suffix: str) -> int:
        return sum(count for name, count in self.bytes.items() if name.endswith(suffix))

    def _counted(self, name: str, data: bytes) -> bytes:
        with self._lock:
            self.bytes[name] += len(data)
            self.requests += 1
        return data


def remote_copy(folder: Path, url: str) -> CountedStore:
    """The files of a dataset in a store that is not this machine's disk (memory://…)."""
    source, target = open_store(str(folder)), open_store(url)
    for name in source.list():
        target.put_replace(name, source.read(name))
    return CountedStore(target)
