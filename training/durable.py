"""Files and directories that are on disk whole, or not there at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import xxhash

_PIECE = 1 << 24


def publish(scratch: Path, target: Path) -> None:
    """The directory `scratch` appears under its name `target` when all of it is on disk."""
    for path in scratch.rglob("*"):
        if path.is_file():
            sync(path)
    shutil.rmtree(target, ignore_errors=True)  # only ever the leftover of an equal step
    scratch.rename(target)
    sync(target.parent)


def replace_text(path: Path, text: str) -> None:
    """The file has its old content or the new one, whole and on disk."""
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync(path.parent)


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
