"""Files behind fsspec URLs: found, opened for reading, and what a driver may raise turned into errors with a mend."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import fsspec

from shards.errors import InfrastructureError, SourceError

DRIVERS = frozenset("botocore aiobotocore aiohttp google gcsfs azure adlfs requests urllib3 huggingface_hub httpx paramiko".split())
BUFFER = 1 << 16
# what tells a changed file from an unchanged one, the surest first; what a driver lacks is absent from its `info`
TAGS = (
    *("ETag", "etag", "md5", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified"),
    "created",
)
ABSENT = (403, 404, 410)  # HTTP answers that are about the file and not about the server


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec filesystem, place in it). Raises InfrastructureError where its driver is not installed, SourceError for no known URL."""
    if "::" in url:
        raise SourceError(f"{url} is a chain of URLs, which is not read; copy or unpack what it leads to")
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except ImportError as error:
        raise InfrastructureError(f"{url} needs a driver that is not installed: {error}; install it on every node") from error
    except ValueError as error:
        raise SourceError(f"{url}: {error}") from error


def file_info(url: str) -> tuple[int, str]:
    """(bytes, tag) of a file; the tag is an etag or a time, "" where the driver has none. Raises SourceError for what is no file or
    does not tell its size, FileNotFoundError, InfrastructureError."""
    fs, place = filesystem(url)
    with driver_failures("looking for", url):
        info = fs.info(place)
    if info.get("type") != "file":
        raise SourceError(f"{url} is no file")
    if info.get("size") is None:
        raise SourceError(f"{url}: the server does not say how large it is")
    return int(info["size"]), tag_of(info)


def open_url(url: str) -> tuple[BinaryIO, int]:
    """(file for reading, seekable and with a reader's position of its own; its bytes). Raises as `file_info`."""
    fs, place = filesystem(url)
    size, _ = file_info(url)
    with driver_failures("opening", url):
        if fs.protocol == "memory":  # it hands out the very buffer that it stores, with one position for all readers
            return io.BytesIO(fs.cat_file(place)), size
        # drivers' files know only some of what a file can do; a BufferedReader over one can do all of it
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, _Readable(fs.open(place, "rb"), url)), BUFFER)), size


def tag_of(info: Mapping[str, Any]) -> str:
    return str(next((info[name] for name in TAGS if info.get(name)), ""))


@contextmanager
def driver_failures(doing: str, url: str) -> Iterator[None]:
    """Errors of a network driver, which are of many types, as InfrastructureError. OSErrors are left to the caller."""
    try:
        yield
    except FileNotFoundError as error:  # over HTTP every answer that is no success is said so, a server's own failure too
        cause = error.__cause__
        if type(cause).__module__.partition(".")[0] not in DRIVERS or getattr(cause, "status", None) in ABSENT:
            raise
        raise InfrastructureError(
            f"{doing} {url} failed: {type(cause).__name__}: {cause}; check network and credentials, then run again"
        ) from error
    except Exception as error:
        ranges = isinstance(error, ValueError) and "range requests" in str(error)
        if isinstance(error, OSError) or not (ranges or type(error).__module__.partition(".")[0] in DRIVERS):
            raise
        mend = "the server must answer range requests" if ranges else "check network and credentials, then run again"
        raise InfrastructureError(f"{doing} {url} failed: {type(error).__name__}: {error}; {mend}") from error


class _Readable(io.RawIOBase):
    """A driver's file, with its errors as ours."""

    def __init__(self, file: Any, url: str) -> None:
        super().__init__()
        self.file, self.url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with driver_failures("reading", self.url):
            return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        with driver_failures("reading", self.url):
            data = self.file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()
