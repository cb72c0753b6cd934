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
HOLE = 1 << 20  # what lies between two ranges is read along if it is no more than so many bytes,
WASTE = 0.125  # and all that is read along in a span no more than this share of what is wanted of it


class Traffic:
    """Bytes that came from a store, by what they were read as: `ranges` of tars, whole `tars`, whole `indexes`. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {"ranges": 0, "tars": 0, "indexes": 0}

    def add(self, kind: str, count: int) -> None:
        with self._lock:
            self._counts[kind] += count

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    @property
    def total(self) -> int:
        return sum(self.counts().values())


class OpenFile:
    """An open file that closes when the last reader lets go of it, so that none is closed under a thread that reads."""

    def __init__(self, path: str, traffic: Traffic | None = None) -> None:
        self.path, self.traffic = path, traffic
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
        if self.traffic is not None:
            self.traffic.add("ranges", len(data))
        return data


class Ranges:
    """Reads ranges of a store's files. Safe for threads, and in processes forked after it was made."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.traffic = Traffic()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._lock = threading.Lock()
        self.local = store.local_path() is not None

    def reader(self, name: str) -> Read:
        """For a local file. Raises ShardError if it is missing."""
        with self._lock:
            file = self._files.get(name)
            if file is None:
                try:
                    file = self._files[name] = OpenFile(str(self._store.local_path(name)), self.traffic)
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
        spans, of = join(wanted)
        with ThreadPoolExecutor(max(1, min(REQUESTS, len(spans)))) as pool:
            readers = list(pool.map(self.span, spans))
        return [readers[number] for number in of]

    def span(self, span: tuple[str, int, int]) -> Read:
        """One (file, offset, length) of a remote store in memory. Raises ShardError if the file is missing."""
        name, base, length = span
        try:
            data = memoryview(self._store.read_range(name, base, length))
        except FileNotFoundError as error:
            raise ShardError(f"{self._store.url(name)} is missing, though the manifest names it") from error
        self.traffic.add("ranges", len(data))
        return lambda size, offset: bytes(data[offset - base : offset - base + size]) if offset >= base else b""


def join(wanted: Sequence[tuple[str, int, int]]) -> tuple[list[tuple[str, int, int]], list[int]]:
    """(spans, the span of each range): (file, offset, length) of files sorted by place, neighbours joined within SPAN, HOLE and WASTE.

    A range that is longer than SPAN is a span of its own; ranges that overlap are always joined.
    """
    spans: list[tuple[str, int, int]] = []
    of = [0] * len(wanted)
    useful = holes = 0
    for i in sorted(range(len(wanted)), key=wanted.__getitem__):
        name, offset, length = wanted[i]
        if spans and spans[-1][0] == name:
            _, start, size = spans[-1]
            end, more = start + size, offset + length - (start + size)
            hole = max(offset - end, 0)
            within = offset + length - start <= SPAN and hole <= HOLE and holes + hole <= WASTE * (useful + length)
            if offset < end or within:
                spans[-1] = (name, start, max(size, size + more))
                useful, holes = useful + max(more - hole, 0), holes + hole
                of[i] = len(spans) - 1
                continue
        spans.append((name, offset, length))
        useful, holes = length, 0
        of[i] = len(spans) - 1
    return spans, of
