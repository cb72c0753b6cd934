"""Byte ranges out of many tars: by pread on a local disk, by range requests side by side from a remote store."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from shards.errors import InfrastructureError, ShardError
from shards.store import Store

Read = Callable[[int, int], bytes]  # (length, offset) -> so many bytes, fewer only where the file ends

OPEN_FILES = 256
REQUESTS = 16  # at once, from a remote store
SPAN = 8 << 20  # neighbouring ranges are joined up to so many bytes


class _File:
    """An open file that closes when the last reader lets go of it, so that none is closed under a thread that reads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)

    def read(self, length: int, offset: int) -> bytes:
        # pread and not mmap: a file that shrinks or a disk that fails is an error here, not a SIGBUS that kills the trainer
        try:
            data = os.pread(self.handle, length, offset)
            while len(data) < length and (more := os.pread(self.handle, length - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise InfrastructureError(f"cannot read {self.path} at {offset}: {error.strerror}; mend the disk, then run again") from error
        return data


class Ranges:
    """Reads ranges of a store's files. Safe for threads, and in processes forked after it was made."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()
        self.local = store.local_path() is not None

    def reader(self, name: str) -> Read:
        """For a local file. Raises ShardError if it is missing."""
        with self._lock:
            file = self._files.get(name)
            if file is None:
                try:
                    file = self._files[name] = _File(str(self._store.local_path(name)))
                except FileNotFoundError as error:
                    raise ShardError(f"{self._store.url(name)} is missing, though the manifest names it") from error
                except OSError as error:
                    raise InfrastructureError(f"cannot open {self._store.url(name)}: {error.strerror}") from error
                if len(self._files) > OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(name)
        return file.read

    def fetch(self, wanted: Sequence[tuple[str, int, int]]) -> list[Read]:
        """For a remote store: a reader for each (file, offset, length), neighbours joined, requests side by side."""
        spans: list[tuple[str, int, int]] = []
        of: list[int] = []
        for name, offset, length in wanted:
            if spans and spans[-1][0] == name and sum(spans[-1][1:]) == offset and spans[-1][2] + length <= SPAN:
                spans[-1] = (name, spans[-1][1], spans[-1][2] + length)
            else:
                spans.append((name, offset, length))
            of.append(len(spans) - 1)
        with ThreadPoolExecutor(max(1, min(REQUESTS, len(spans)))) as pool:
            readers = list(pool.map(self._span, spans))
        return [readers[number] for number in of]

    def _span(self, span: tuple[str, int, int]) -> Read:
        name, base, length = span
        try:
            data = memoryview(self._store.read_range(name, base, length))
        except FileNotFoundError as error:
            raise ShardError(f"{self._store.url(name)} is missing, though the manifest names it") from error
        return lambda size, offset: bytes(data[offset - base : offset - base + size]) if offset >= base else b""
