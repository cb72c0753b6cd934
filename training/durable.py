"""Files and directories that are on disk whole, or not there at all; and what a disk that does not take them is told by."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from shards.errors import InfrastructureError

log = logging.getLogger("fovea")

_PIECE = 1 << 24


def publish(scratch: Path, target: Path) -> None:
    """The directory `scratch` appears under its name `target` when all of it is on disk."""
    for path in (*scratch.rglob("*"), scratch):
        if path.is_file() or path.is_dir():  # a file whose directory is not on disk has no name after a loss of power
            sync(path)
    shutil.rmtree(target, ignore_errors=True)  # only ever the leftover of an equal step
    scratch.rename(target)
    sync(target.parent)


def replace_text(path: Path, text: str) -> None:
    """The file, whose directory is made, has its old content or the new one, whole and on disk. Errors as in `writing`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        sync(path.parent)


def refuse_unwritable(path: Path) -> None:
    """Makes the file's directory and a scratch file in it, which goes again: what is written after hours is refused before them. Errors as
    in `writing`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a directory")
        scratch.touch()
        scratch.unlink()


def append_line(path: Path, text: str) -> None:
    """Adds `text` and the end of its line to the file, which is made with its directory. Errors as in `writing`.

    Where a kill or a full disk has left half a line it begins a new one. It is not synced: a loss of power may cost the last lines. One
    process at a time may write to a file, for network file systems do not append atomically.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            torn = False
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            file.write(f"{chr(10) * torn}{text}\n".encode())


def whole_lines(path: Path, needs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, in order; none where there is no file.

    Lines that are torn, garbled, or objects without the keys that it `needs` are left out, and counted in one line of the log.
    """
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    lost: list[int] = []
    lines = path.read_bytes().split(b"\n")  # not splitlines: JSON may hold other ends of lines as they are
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line:
            break
        try:
            record = json.loads(line)
            if number == len(lines) or not isinstance(record, dict) or any(name not in record for name in needs):
                raise ValueError("not a whole record")
        except ValueError:
            lost.append(number)
            continue
        records.append(record)
    if lost:
        log.warning("%s: %d of its lines are torn or garbled and left out (the first is line %d)", path, len(lost), lost[0])
    return records


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError from within is raised as InfrastructureError, with `path`, the reason, the room that is left and the mend.

    It is not retryable: a full disk is as full a little later.
    """
    try:
        yield
    except OSError as error:
        raise InfrastructureError(
            f"{path} could not be written: {error.strerror or error} ({room(path.parent)}). Make room, or see to the disk and its rights; "
            "then give the same command again: what is finished is kept, and a stage continues from its last checkpoint"
        ) from error


def room(folder: Path) -> str:
    """The room that is left where `folder` is, or would be, for people."""
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    return "the folder is gone" if there is None else f"{shutil.disk_usage(there).free / 1e9:,.3f} GB free at {there}"


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a directory's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def content_of(path: Path) -> tuple[int, str]:
    """(bytes, xxh3_64 as 16 hex digits) of a file: enough to tell damage, not malice."""
    hasher, size = xxhash.xxh3_64(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
            size += len(piece)
    return size, hasher.hexdigest()
