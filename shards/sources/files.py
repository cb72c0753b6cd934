"""Listing and opening the files of a source, on local disk and through fsspec alike. Nothing here opens a medium."""

from __future__ import annotations

import errno
import glob
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from shards.errors import InfrastructureError, SourceError
from shards.paths import absolute, is_url, printable, to_local, to_text
from shards.remote import driver_failures, file_info, filesystem, open_url, tag_of
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
            return File(with_name, path, *file_info(path))
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
    try:
        if is_url(path):
            return open_url(path)[0]
        stat_file(path)
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
    if is_folder(path):
        return path, [f for folder in walk(path) for f in folder.files if wanted(f.name)]
    if not glob.has_magic(path) or _exists(path):
        file = stat_file(path)
        return path.rpartition("/")[0], [file]
    parts = path.split("/")
    root = "/".join(parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    if is_url(path):
        files = [_remote_file(*found, root) for found in _glob_remote(path, root)]
    else:
        files = [stat_file(p, p[len(root) + 1 :]) for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    if not files:
        raise SourceError(f"no file matches {path}")
    return root, sorted(files, key=lambda f: f.name)


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
        inside = _find_remote(path, maxdepth=1)
        return Folder(name, path, tuple(_remote_file(f"{name}/{n}" if name else n, info, path, n) for n, info in inside))
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
    folders: dict[str, list[File]] = {}
    for name, info in _find_remote(root):
        folders.setdefault(name.rpartition("/")[0], []).append(_remote_file(name, info, root))
    if not folders and not is_folder(root):
        raise SourceError(f"there is no folder {root}")
    for name, files in sorted(folders.items()):
        yield Folder(name, f"{root}/{name}".rstrip("/"), tuple(files))


def _find_remote(root: str, **more: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """(name below the root, what the driver says of it) of every file, by name, as they are now."""
    fs, place = filesystem(root)
    try:
        with driver_failures("listing", root):
            fs.invalidate_cache(place)
            found = fs.find(place, detail=True, **more)
    except OSError as error:
        raise InfrastructureError(f"listing {root} failed: {error}; mend the network, then run again") from error
    return [(path[len(place.rstrip("/")) + 1 :], info) for path, info in sorted(found.items()) if info.get("type") == "file"]


def _glob_remote(pattern: str, root: str) -> list[tuple[str, Mapping[str, Any]]]:
    fs, place = filesystem(pattern)
    below = len(filesystem(root)[1].rstrip("/")) + 1
    try:
        with driver_failures("listing", pattern):
            fs.invalidate_cache()
            found = fs.glob(place, detail=True)
    except OSError as error:
        raise InfrastructureError(f"listing {pattern} failed: {error}; mend the network, then run again") from error
    return [(path[below:], info) for path, info in found.items() if info.get("type") == "file"]


def _remote_file(name: str, info: Mapping[str, Any], root: str, below: str | None = None) -> File:
    """A file that a listing has shown; asked for again where the listing does not tell its size or its age (as over HTTP)."""
    path = f"{root}/{name if below is None else below}"
    size, tag = info.get("size"), tag_of(info)
    return stat_file(path, name) if size is None or not tag else File(name, path, int(size), tag)


def is_folder(path: str) -> bool:
    """Whether there is a folder at a local path or URL. Raises SourceError for no known URL, InfrastructureError."""
    if is_url(path):
        fs, place = filesystem(path)
        return _asked(fs.isdir, place, path)
    return os.path.isdir(path)


def _exists(path: str) -> bool:
    if is_url(path):
        fs, place = filesystem(path)
        return _asked(fs.exists, place, path)
    return os.path.lexists(path)


def _asked(question: Callable[[str], Any], place: str, url: str) -> bool:
    try:
        with driver_failures("looking for", url):
            return bool(question(place))
    except OSError as error:  # a refused connection is one too
        raise InfrastructureError(f"looking for {url} failed: {error}; mend the network or the URL, then run again") from error
