"""Media bytes by reference: a whole file, a byte range of a tar, a cell of a Parquet file. Nothing is read beyond the limits."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pyarrow as pa

from shards.cells import read_cell
from shards.errors import InfrastructureError, LimitError, SourceError
from shards.media import Limits
from shards.paths import is_url, to_local
from shards.remote import open_url
from shards.sample import MediaRef

GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}

_opened = 0
_lock = threading.Lock()


def opened() -> int:
    """How many media this process has opened so far."""
    return _opened


def read_media(ref: MediaRef, limits: Limits) -> bytes:
    """The encoded bytes of one medium. Raises LimitError before reading more than the limit for its kind, SourceError where it is gone,
    unreadable or of another length than was listed, InfrastructureError where the disk or network fails."""
    if ref.cell is not None:
        return _cell(ref, limits)
    with open_media(ref, limits) as file, _failures(ref):
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        data = file.read(length)
    if len(data) != length:
        raise SourceError(f"{_where(ref)} ends after {len(data)} of {length} bytes")
    return data


def open_media(ref: MediaRef, limits: Limits) -> BinaryIO:
    """The medium as a seekable file for reading; a member of a tar is a window that cannot be left. Raises as `read_media`."""
    if ref.cell is not None:
        return io.BytesIO(_cell(ref, limits))
    _check_limit(ref, ref.length, limits)
    _count()
    with _failures(ref):
        file, size = open_url(ref.path) if is_url(ref.path) else _open_local(ref)
    try:
        if ref.offset >= 0:
            if ref.length < 0 or ref.offset + ref.length > size:
                raise SourceError(f"{_where(ref)} reaches to byte {ref.offset + ref.length}, the file has {size}: it changed; run again")
            return cast(BinaryIO, io.BufferedReader(_Window(file, ref)))
        if ref.length >= 0 and size != ref.length:
            raise SourceError(f"{_where(ref)} has {size} bytes, {ref.length} when it was listed: it changed; run again")
        _check_limit(ref, size, limits)
    except BaseException:
        file.close()
        raise
    return file


class _Window(io.RawIOBase):
    """Bytes [offset, offset + length) of a file, as a file of its own."""

    def __init__(self, file: BinaryIO, ref: MediaRef) -> None:
        super().__init__()
        self.file, self.ref, self.place = file, ref, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.ref.length}[whence]
        if place < 0:
            raise ValueError("negative seek position")
        self.place = place
        return place

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        wanted = max(0, min(len(view), self.ref.length - self.place))
        if not wanted:
            return 0
        with _failures(self.ref):
            self.file.seek(self.ref.offset + self.place)
            data = self.file.read(wanted)
        if not data:
            raise SourceError(f"{_where(self.ref)} ends after {self.place} of {self.ref.length} bytes")
        view[: len(data)] = data
        self.place += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def _open_local(ref: MediaRef) -> tuple[BinaryIO, int]:
    # non-blocking, because a named pipe in a source would otherwise be waited for without end
    handle = os.open(to_local(ref.path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{_where(ref)} is no regular file")
        return os.fdopen(handle, "rb"), status.st_size
    except BaseException:
        os.close(handle)
        raise


def _cell(ref: MediaRef, limits: Limits) -> bytes:
    _check_limit(ref, ref.length, limits)
    _count()
    with _failures(ref):
        try:
            data = read_cell(ref.path, ref.cell or "")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, IndexError, KeyError, StopIteration) as error:
            raise SourceError(f"{_where(ref)} cannot be read: {error}") from error
    if data is None:
        raise SourceError(f"{_where(ref)} is empty (null)")
    _check_limit(ref, len(data), limits)
    return data


def _check_limit(ref: MediaRef, size: int, limits: Limits) -> None:
    limit = limits.bytes_of(ref.kind)
    if size > limit:
        raise LimitError(f"{_where(ref)} has {size:,} bytes, more than limits.{ref.kind}.bytes = {limit:,}")


def _count() -> None:
    global _opened
    with _lock:
        _opened += 1


def _where(ref: MediaRef) -> str:
    if ref.cell is not None:
        return f"{ref.path} cell {ref.cell}"
    return ref.path if ref.offset < 0 else f"{ref.path} ({ref.name} at byte {ref.offset})"


@contextmanager
def _failures(ref: MediaRef) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # a NUL in a path
        if "null" not in str(error):
            raise
        raise SourceError(f"{_where(ref)!r} cannot be a file's name") from error
    except OSError as error:
        if ref.transform is not None:  # our own file, which no source can have taken away
            told = f"{_where(ref)}, made by this run from another medium, cannot be read: {error.strerror or error}"
            raise InfrastructureError(f"{told}; bring the run's folder `derived` back, or start a new run directory") from error
        # pyarrow reports damaged pages as OSError without a number: that is the file's fault, not the disk's
        if error.errno in GONE or isinstance(error, (FileNotFoundError, PermissionError)) or (error.errno is None and ref.cell is not None):
            raise SourceError(f"{_where(ref)} cannot be read: {error.strerror or error}") from error
        raise InfrastructureError(
            f"reading {_where(ref)} failed: {error.strerror or error}; mend the disk or network, then run again"
        ) from error
