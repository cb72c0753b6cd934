"""A folder on a node's disk that holds whole shards of a remote dataset, shared by all processes of the node and bounded in bytes.

Files are named by the sha256 of their content, so that versions and datasets that share a tar share its copy. A file appears whole, by a
rename; who writes it holds a lock on its ".part", who reads it holds a shared lock on it, and only what nobody has locked is removed.
The locks are flock's: the folder must be on a disk of the node's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.errors import InfrastructureError
from shards.manifest import ShardInfo
from shards.ranges import OpenFile, Traffic
from shards.store import Store

log = logging.getLogger("fovea")

CHUNK = 16 << 20  # bytes of a request for a whole tar
AT_ONCE = 4  # such requests
_PART = ".part"
_LOCK = "lock"

Filled = Literal["there", "busy", "no room", "differs"]


@dataclass(frozen=True)
class ShardCache:
    """`limit` bounds the bytes of all files in `folder`, unfinished ones too; what was used last stays longest.

    Safe for threads, processes, fork and pickle. Raises InfrastructureError if the folder cannot be made.
    """

    folder: Path
    limit: int

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _LOCK).touch()
        except OSError as error:
            raise InfrastructureError(
                f"cannot make the cache folder {self.folder}: {error.strerror or error}; name another one under `cache`, or none"
            ) from error

    def open(self, shard: ShardInfo) -> OpenFile | None:
        """The tar, if it is here; it stays until the file that is returned is let go of."""
        try:
            file = OpenFile(str(self._path(shard)))
        except OSError:
            return None
        fcntl.flock(file.handle, fcntl.LOCK_SH)
        found = os.fstat(file.handle)
        if found.st_nlink == 0:  # removed between opening and locking
            return None
        os.utime(file.handle)
        return file

    def fill(self, store: Store, shard: ShardInfo, traffic: Traffic, go_on: Callable[[], bool] = lambda: True) -> Filled:
        """Has the tar here, fetched whole and compared with the manifest's size and sha256.

        "busy": another process is fetching it, or `go_on` (asked now and then) said no.
        "no room": all else that is here is being read, or the limit or the disk is too small for it.
        "differs": the store's tar is missing, cut or not the manifest's, which is for whoever reads its samples to say.
        """
        try:
            return self._fill(store, shard, traffic, go_on)
        except OSError as error:
            log.warning("%s is not kept in the cache in %s: %s", shard.path, self.folder, error.strerror or error)
            return "no room"

    def _fill(self, store: Store, shard: ShardInfo, traffic: Traffic, go_on: Callable[[], bool]) -> Filled:
        if self._path(shard).exists():
            return "there"
        if shard.bytes > self.limit:
            return "no room"
        with self._part(self._path(shard), wait=False) as part:
            if part is None:
                return "busy"
            if self._path(shard).exists():
                return "there"
            if not self._reserve(part, self._path(shard), shard.bytes):
                return "no room"
            whole = _download(store, shard, part, traffic, go_on)
            if whole is None:
                return "busy"
            if not whole:
                log.warning("%s is missing, cut or not the tar that the manifest names: it is not kept in the cache", store.url(shard.path))
                return "differs"
            os.replace(self._unfinished(self._path(shard)), self._path(shard))
            return "there"

    def index(self, shard: ShardInfo, read: Callable[[], bytes]) -> bytes:
        """The shard's index from here, or from `read`, which checks it; then it is kept here. One process of the node reads it."""
        path = self.folder / f"{shard.index_sha256}.parquet"
        data = _index_at(path, shard)
        if data is not None:
            return data
        try:
            with self._part(path, wait=True) as part:
                data = _index_at(path, shard)
                if data is None:
                    data = read()
                    if part is not None and self._reserve(part, path, len(data)):
                        _write(part, data, 0)
                        os.replace(self._unfinished(path), path)
        except OSError as error:
            log.warning("%s is not kept in the cache in %s: %s", shard.index, self.folder, error.strerror or error)
        return read() if data is None else data

    def drop(self, shard: ShardInfo) -> None:
        """Forgets a tar whose copy turned out to be damaged."""
        self._path(shard).unlink(missing_ok=True)

    def _path(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    @staticmethod
    def _unfinished(path: Path) -> Path:
        return path.with_name(path.name + _PART)

    @contextlib.contextmanager
    def _part(self, path: Path, wait: bool) -> Iterator[int | None]:
        """A handle of the unfinished file, locked; None if another has it (never with `wait`). What is not renamed has gone afterwards."""
        unfinished = self._unfinished(path)
        while True:
            handle = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                mine = _same_file(handle, unfinished)
            except BlockingIOError:
                mine, wait = False, False
            if mine or not wait:
                break
            os.close(handle)  # it was finished or removed while its lock was waited for
        try:
            yield handle if mine else None
        finally:
            if mine and _same_file(handle, unfinished):
                unfinished.unlink()
            os.close(handle)

    def _files(self) -> list[tuple[os.stat_result, str]]:
        """What lies here, looked at again when a file was renamed (a fetch has ended) or removed while it was listed."""
        while True:
            entries = [entry for entry in os.scandir(self.folder) if entry.name != _LOCK]
            with contextlib.suppress(FileNotFoundError):
                return [(entry.stat(follow_symlinks=False), entry.path) for entry in entries]

    def _reserve(self, part: int, path: Path, size: int) -> bool:
        """Whether `size` bytes are now set aside for the unfinished file, others having been removed for it where it had to be."""
        with open(self.folder / _LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.ftruncate(part, 0)
            found = self._files()
            total = sum(stat.st_size for stat, _ in found)
            for stat, name in sorted(found, key=lambda entry: entry[0].st_mtime_ns):
                if total + size <= self.limit:
                    break
                if _removed(name):
                    total -= stat.st_size
            if total + size > self.limit:
                return False
            try:
                if size:
                    os.posix_fallocate(part, 0, size)
            except OSError as error:
                log.warning("the cache in %s has no room for %d bytes: %s", self.folder, size, error.strerror or error)
                os.ftruncate(part, 0)
                return False
            return True


def _index_at(path: Path, shard: ShardInfo) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) != shard.index_bytes or hashlib.sha256(data).hexdigest() != shard.index_sha256:
        return None
    with contextlib.suppress(FileNotFoundError):  # removed meanwhile: it was read all the same
        os.utime(path)
    return data


def _download(store: Store, shard: ShardInfo, part: int, traffic: Traffic, go_on: Callable[[], bool]) -> bool | None:
    """Whether what was written to `part` is the manifest's tar; None if it was not to go on. Raises InfrastructureError of the store."""
    digest = hashlib.sha256()

    def read(start: int) -> bytes:
        data = store.read_range(shard.path, start, min(CHUNK, shard.bytes - start))
        traffic.add("tars", len(data))
        return data

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fovea-tar") as pool:
        coming: deque[tuple[int, Future[bytes]]] = deque()
        for start in (*range(0, shard.bytes, CHUNK), *[None] * AT_ONCE):
            if not go_on():
                return None
            if start is not None:
                coming.append((start, pool.submit(read, start)))
            if coming and (start is None or len(coming) == AT_ONCE):
                at, future = coming.popleft()
                try:
                    data = future.result()
                except FileNotFoundError:
                    return False
                digest.update(data)
                _write(part, data, at)
    return digest.hexdigest() == shard.sha256


def _write(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _removed(name: str) -> bool:
    """Whether a file that nobody has locked was removed (or was gone)."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        os.close(handle)
    return True
