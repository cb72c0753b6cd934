"""The one place where durable writes happen: create-if-absent, whole or not at all, on local disk and on object stores alike."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import fsspec

from shards.errors import InfrastructureError, RecipeError
from shards.paths import has_credentials, is_url, to_local

TMP = ".tmp-"  # names that begin so are unfinished: never listed, removed by `sweep`
COPY_CHUNK = 8 << 20
LINK_REFUSED = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK}  # then the file is copied beside its target first
DRIVERS = {"botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure", "adlfs", "requests", "urllib3"}
MENDS = {
    errno.ENOSPC: "the disk is full: free some space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space, then run the same command again",
    errno.EFBIG: "the file would be larger than this process or disk allows: raise the limit (ulimit -f) or write smaller files",
    errno.EROFS: "the disk is mounted read-only: choose another place, or mount it for writing",
    errno.EACCES: "no permission: give this user the right to it, or choose another place",
    errno.EPERM: "refused (no permission, or a disk without hard links): choose another place",
    errno.EOPNOTSUPP: "this disk has no hard links, which create-if-absent needs: choose another place",
}


class Store(Protocol):
    """Files by name under one root. A name is relative, with "/" between its parts.

    Every method raises InfrastructureError (place, cause, mend) for a full disk, missing permission or a failing network; methods that
    read raise FileNotFoundError for a name that is absent, and ValueError for a name that would leave the root.
    """

    def put_new(self, name: str, data: bytes) -> bool:
        """Create `name` durably. False, and nothing is changed, if it exists; among racing writers exactly one gets True."""

    def put_new_file(self, name: str, local_path: str | os.PathLike[str]) -> bool:
        """As put_new, from a finished local file. It may be linked instead of copied: do not write to it afterwards."""

    def put_replace(self, name: str, data: bytes) -> None:
        """Create or replace `name` durably; readers see the old content or the new one."""

    def read(self, name: str) -> bytes: ...
    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer only where the file ends."""

    def exists(self, name: str) -> bool: ...
    def size(self, name: str) -> int: ...
    def list(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix` (a prefix of the text, as in object stores), sorted; unfinished files are not among them."""

    def delete(self, name: str) -> None:
        """Remove `name`; nothing happens if it is absent."""

    def open(self, name: str) -> BinaryIO:
        """For reading, seekable."""

    def url(self, name: str = "") -> str: ...
    def local_path(self, name: str = "") -> Path | None:
        """The path on this machine's disk, or None for a remote store."""

    def tmp_path(self) -> Path:
        """A fresh local path to write to before `put_new_file`, beside the targets where that spares a copy. Delete it afterwards."""

    def sweep(self, older_than_seconds: float) -> int:
        """Remove unfinished files last written longer ago than that; returns how many."""


def open_store(url: str | os.PathLike[str]) -> Store:
    """A store at a local path, a file:// URL or any fsspec URL (s3://bucket/prefix, memory://x). The first write creates it."""
    place = os.fspath(url)
    if has_credentials(place):
        raise RecipeError("a store's URL holds credentials: take them out and pass them through the environment")
    if is_url(place):
        return RemoteStore(place)
    return LocalStore(Path(os.path.abspath(to_local(place))))


class LocalStore:
    """A folder on a disk with hard links. Files are written under a ".tmp-" name, flushed, linked to their name; the folder is flushed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_new(self, name: str, data: bytes) -> bool:
        target = self._target(name)
        with _failures("write", target):
            if os.path.lexists(target):
                _flush_folder(target.parent)
                return False
            _make_folders(target.parent)
            return _link_tmp(_write_tmp(target.parent, iter([data])), target)

    def put_new_file(self, name: str, local_path: str | os.PathLike[str]) -> bool:
        target = self._target(name)
        with _failures("write", target):
            if os.path.lexists(target):
                _flush_folder(target.parent)
                return False
            _make_folders(target.parent)
            with open(local_path, "rb") as file:
                os.fsync(file.fileno())
            try:
                os.link(local_path, target)
            except FileExistsError:
                _flush_folder(target.parent)
                return False
            except OSError as error:
                if error.errno not in LINK_REFUSED:
                    raise
                return _link_tmp(_write_tmp(target.parent, _chunks(local_path)), target)
            _flush_folder(target.parent)
            return True

    def put_replace(self, name: str, data: bytes) -> None:
        target = self._target(name)
        with _failures("write", target):
            _make_folders(target.parent)
            tmp = _write_tmp(target.parent, iter([data]))
            try:
                os.replace(tmp, target)
            except OSError:
                tmp.unlink(missing_ok=True)
                raise
            _flush_folder(target.parent)

    def read(self, name: str) -> bytes:
        with _failures("read", self._target(name), reading=True):
            return self._target(name).read_bytes()

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        with _failures("read", self._target(name), reading=True), open(self._target(name), "rb", buffering=0) as file:
            file.seek(offset)
            parts: list[bytes] = []
            while length > 0 and (part := file.read(length)):
                parts.append(part)
                length -= len(part)
            return b"".join(parts)

    def exists(self, name: str) -> bool:
        with _failures("look for", self._target(name)):
            return self._target(name).is_file()

    def size(self, name: str) -> int:
        with _failures("read", self._target(name), reading=True):
            return self._target(name).stat().st_size

    def list(self, prefix: str = "") -> list[str]:
        top = self.root / prefix.rpartition("/")[0]
        with _failures("list", top):
            names = ((Path(folder) / file).relative_to(self.root).as_posix() for folder, files in _walk(top) for file in files)
            return sorted(name for name in names if name.startswith(prefix) and not _unfinished(name))

    def delete(self, name: str) -> None:
        target = self._target(name)
        with _failures("delete", target):
            try:
                target.unlink()
            except FileNotFoundError:
                return
            _flush_folder(target.parent)

    def open(self, name: str) -> BinaryIO:
        with _failures("read", self._target(name), reading=True):
            return open(self._target(name), "rb")

    def url(self, name: str = "") -> str:
        return str(self._target(name)) if name else str(self.root)

    def local_path(self, name: str = "") -> Path | None:
        return self._target(name) if name else self.root

    def tmp_path(self) -> Path:
        with _failures("write", self.root):
            _make_folders(self.root)
        return self.root / f"{TMP}{uuid.uuid4().hex}"

    def sweep(self, older_than_seconds: float) -> int:
        removed = 0
        horizon = time.time() - older_than_seconds
        with _failures("sweep", self.root):
            for folder, files in _walk(self.root):
                for file in files:
                    path = Path(folder) / file
                    with contextlib.suppress(FileNotFoundError):  # its writer finished, or another sweep was faster
                        if file.startswith(TMP) and path.lstat().st_mtime < horizon:
                            path.unlink()
                            removed += 1
        return removed

    def _target(self, name: str) -> Path:
        return self.root / _checked(name)


class RemoteStore:
    """An object store through fsspec: its put is atomic by nature, create-if-absent is `pipe_file(mode="create")` (If-None-Match on S3)."""

    def __init__(self, url: str) -> None:
        self.root_url = url.rstrip("/")
        with _failures("open", url):
            try:
                self.fs, root = fsspec.core.url_to_fs(url)
            except (ImportError, ValueError) as error:
                raise InfrastructureError(
                    f"cannot open {url}: {error}. Install the fsspec driver of that protocol, or mend the URL"
                ) from error
        self.root = root.rstrip("/")

    def put_new(self, name: str, data: bytes) -> bool:
        with _failures("write", self.url(name)):
            try:
                self.fs.pipe_file(self._target(name), data, mode="create")
            except FileExistsError:
                return False
            return True

    def put_new_file(self, name: str, local_path: str | os.PathLike[str]) -> bool:
        with _failures("write", self.url(name)):
            try:
                self.fs.put_file(os.fspath(local_path), self._target(name), mode="create")
            except FileExistsError:
                return False
            return True

    def put_replace(self, name: str, data: bytes) -> None:
        with _failures("write", self.url(name)):
            self.fs.pipe_file(self._target(name), data)

    def read(self, name: str) -> bytes:
        with _failures("read", self.url(name), reading=True):
            return bytes(self.fs.cat_file(self._target(name)))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        with _failures("read", self.url(name), reading=True):
            return bytes(self.fs.cat_file(self._target(name), start=offset, end=offset + length)) if length > 0 else b""

    def exists(self, name: str) -> bool:
        with _failures("look for", self.url(name)):
            self.fs.invalidate_cache()
            return bool(self.fs.isfile(self._target(name)))

    def size(self, name: str) -> int:
        with _failures("read", self.url(name), reading=True):
            return int(self.fs.info(self._target(name))["size"])

    def list(self, prefix: str = "") -> list[str]:
        top = f"{self.root}/{prefix.rpartition('/')[0]}".rstrip("/")
        with _failures("list", self.url()):
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(top)
            except FileNotFoundError:
                return []
        names = (path[len(self.root) + 1 :] for path in found)
        return sorted(name for name in names if name.startswith(prefix) and not _unfinished(name))

    def delete(self, name: str) -> None:
        with _failures("delete", self.url(name)), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._target(name))

    def open(self, name: str) -> BinaryIO:
        with _failures("read", self.url(name), reading=True):
            return cast(BinaryIO, self.fs.open(self._target(name), "rb"))

    def url(self, name: str = "") -> str:
        return f"{self.root_url}/{_checked(name)}" if name else self.root_url

    def local_path(self, name: str = "") -> Path | None:
        return None

    def tmp_path(self) -> Path:
        return Path(tempfile.gettempdir()) / f"{TMP}{uuid.uuid4().hex}"

    def sweep(self, older_than_seconds: float) -> int:
        return 0

    def _target(self, name: str) -> str:
        return f"{self.root}/{_checked(name)}"


def _checked(name: str) -> str:
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") or part.startswith(TMP) for part in parts):
        raise ValueError(f"{name!r} is no name in a store: names are relative, without empty parts, '..' or '{TMP}'")
    return name


def _unfinished(name: str) -> bool:
    return any(part.startswith(TMP) for part in name.split("/"))


@contextlib.contextmanager
def _failures(doing: str, place: str | os.PathLike[str], reading: bool = False) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if reading:
            raise
        raise InfrastructureError(f"cannot {doing} {place}: {error}. Something removed it meanwhile: run again") from error
    except OSError as error:
        mend = MENDS.get(error.errno or 0, "mend the disk or the network, then run the same command again")
        raise InfrastructureError(f"cannot {doing} {place}: {error.strerror or error}; {mend}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in DRIVERS:
            raise
        raise InfrastructureError(f"cannot {doing} {place}: {type(error).__name__}: {error}. Check network and credentials") from error


def _write_tmp(folder: Path, chunks: Iterator[bytes]) -> Path:
    tmp = folder / f"{TMP}{uuid.uuid4().hex}"
    try:
        with open(tmp, "xb", buffering=0) as file:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    return tmp


def _link_tmp(tmp: Path, target: Path) -> bool:
    try:
        os.link(tmp, target)
        won = True
    except FileExistsError:
        won = os.stat(tmp).st_nlink > 1  # over NFS a link whose answer was lost is tried again: then it is ours
    finally:
        tmp.unlink(missing_ok=True)
    _flush_folder(target.parent)  # also where another writer won: whoever sees the name may rely on it
    return won


def _chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(COPY_CHUNK):
            yield chunk


def _make_folders(folder: Path) -> None:
    missing: list[Path] = []
    while not folder.is_dir():
        missing.append(folder)
        if folder == folder.parent:
            break
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, folders, files in os.walk(top, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(TMP)]
        yield folder, [f for f in files if stat.S_ISREG(_mode(os.path.join(folder, f)))]


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0
