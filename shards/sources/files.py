"""Listing and opening the files of a source, on local disk and through fsspec alike. Nothing here opens a medium."""

from __future__ import annotations

import errno
import glob
import io
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import fsspec

from shards.errors import InfrastructureError, SourceError
from shards.paths import absolute, is_url, printable, to_local, to_text
from shards.sample import stamp_of

log = logging.getLogger("fovea")

BELONGS_TO_SOURCE = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a source. `name` is relative to the source's root as the disk has it; `tag` is mtime in ns, or an etag."""

    name: str
    path: str
    size: int
    tag: str

    @property
    def stamp(self) -> str:
        return stamp_of(self.size, self.tag)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a source and its regular files, by name. `fault` says why it could not be listed."""

    name: str
    path: str
    files: tuple[File, ...]
    fault: str | None = None


def stat_file(path: str, name: str = "") -> File:
    """The regular file at a local path or URL. Raises SourceError (gone, no regular file, no permission), InfrastructureError."""
    with_name = name or path.rsplit("/", 1)[-1]
    try:
        if is_url(path):
            fs, place = fsspec.core.url_to_fs(path)
            info = fs.info(place)
            if info.get("type") != "file":
                raise SourceError(f"{path} is no file")
            return File(with_name, path, int(info["size"]), _tag(info))
        status = os.stat(to_local(path))
    except BELONGS_TO_SOURCE as error:
        raise SourceError(f"{printable(path)} cannot be read: {error.strerror or 'there is no such file'}") from error
    except ValueError as error:  # a NUL in the name
        raise SourceError(f"{path!r} cannot be a file's name") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise SourceError(f"{printable(path)} cannot be read: {error.strerror}") from error
        raise InfrastructureError(f"looking for {printable(path)} failed: {error}; mend the disk or network, then run again") from error
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{printable(path)} is no regular file")
    return File(with_name, to_text(to_local(path)), status.st_size, str(status.st_mtime_ns))


def open_file(path: str) -> BinaryIO:
    """For reading, seekable. Raises SourceError, InfrastructureError."""
    stat_file(path)
    try:
        if is_url(path):
            fs, place = fsspec.core.url_to_fs(path)
            return io.BytesIO(fs.cat_file(place)) if fs.protocol == "memory" else cast(BinaryIO, fs.open(place, "rb"))
        return open(to_local(path), "rb")
    except BELONGS_TO_SOURCE as error:
        raise SourceError(f"{printable(path)} cannot be read: {error.strerror or error}") from error
    except OSError as error:
        raise InfrastructureError(f"opening {printable(path)} failed: {error}; mend the disk or network, then run again") from error


def find_files(path: str, wanted: Callable[[str], bool]) -> tuple[str, list[File]]:
    """(root, files in order of name) of a source given as a file, a folder (searched below, files that `wanted` takes) or a pattern.

    The root is the folder itself, the file's folder, or what stands before the first wildcard. Raises SourceError where nothing is there.
    """
    path = absolute(path)
    if _is_folder(path):
        return path, [f for folder in walk(path) for f in folder.files if wanted(f.name)]
    if not glob.has_magic(path) or _exists(path):
        file = stat_file(path)
        return path.rpartition("/")[0], [file]
    parts = path.split("/")
    root = "/".join(parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    if is_url(path):
        fs, place = fsspec.core.url_to_fs(path)
        found = [fs.unstrip_protocol(p) for p in fs.glob(place)]
    else:
        found = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    if not found:
        raise SourceError(f"no file matches {path}")
    return root, sorted((stat_file(p, p[len(root) + 1 :]) for p in found), key=lambda f: f.name)


def walk(root: str) -> Iterator[Folder]:
    """Every folder at and below `root`, in order of name. Links to folders are followed where they lead out of the root, each place once;
    a link to what lies below the root is left out, because its files are met under their own names."""
    if is_url(root):
        yield from _walk_remote(root)
        return
    real_root = os.path.realpath(root)
    seen: set[tuple[int, int]] = set()
    pending = [("", root)]
    while pending:
        name, path = pending.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                log.warning("folder %s was met before under another name: left out", printable(path))
                continue
            seen.add((status.st_dev, status.st_ino))
            yield list_folder(path, name)
            folders = [e for e in sorted(os.scandir(path), key=lambda e: e.name) if e.is_dir()]
        except BELONGS_TO_SOURCE as error:
            yield Folder(name, path, (), f"folder {printable(path)} cannot be listed: {error.strerror}")
            continue
        except OSError as error:
            raise InfrastructureError(f"listing {printable(path)} failed: {error}; mend the disk, then run again") from error
        for entry in reversed(folders):
            if entry.is_symlink() and (os.path.realpath(entry.path) + "/").startswith(real_root + "/"):
                log.warning("folder %s is a link to a place below the same root: left out", printable(entry.path))
            else:
                pending.append((f"{name}/{entry.name}" if name else entry.name, entry.path))


def list_folder(path: str, name: str) -> Folder:
    """The regular files directly in a folder. Raises OSError."""
    if is_url(path):
        found = next((f for f in _walk_remote(path) if not f.name), Folder("", path, ()))
        return Folder(name, path, tuple(File(f"{name}/{f.name}" if name else f.name, f.path, f.size, f.tag) for f in found.files))
    files = []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP, errno.EACCES):
                    raise
                log.warning("%s leads nowhere: left out", printable(entry.path))
                continue
            if stat.S_ISREG(status.st_mode):
                child = f"{name}/{entry.name}" if name else entry.name
                files.append(File(child, to_text(entry.path), status.st_size, str(status.st_mtime_ns)))
    return Folder(name, path, tuple(files))


def _walk_remote(root: str) -> Iterator[Folder]:
    fs, place = fsspec.core.url_to_fs(root)
    try:
        found = fs.find(place, detail=True)
    except OSError as error:
        raise InfrastructureError(f"listing {root} failed: {error}; mend the network, then run again") from error
    folders: dict[str, list[File]] = {}
    for path, info in sorted(found.items()):
        name = path[len(place.rstrip("/")) + 1 :]
        folders.setdefault(name.rpartition("/")[0], []).append(File(name, f"{root}/{name}", int(info["size"]), _tag(info)))
    for name, files in sorted(folders.items()):
        yield Folder(name, f"{root}/{name}".rstrip("/"), tuple(files))


def _is_folder(path: str) -> bool:
    if is_url(path):
        fs, place = fsspec.core.url_to_fs(path)
        return bool(fs.isdir(place))
    return os.path.isdir(path)


def _exists(path: str) -> bool:
    if is_url(path):
        fs, place = fsspec.core.url_to_fs(path)
        return bool(fs.exists(place))
    return os.path.lexists(path)


def _tag(info: dict[str, object]) -> str:
    return str(
        next((info[k] for k in ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created") if k in info), "")
    )
