"""Weights on disk: found in an installed package or at a path, and told apart by their content."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from shards.errors import InfrastructureError

_known: dict[tuple[str, int, int], str] = {}  # (path, bytes, mtime in ns) -> sha256, of this process


def file_sha256(path: Path) -> str:
    """64 hex digits over a file's bytes; a file of the same size and date is not read twice. Raises InfrastructureError."""
    try:
        stat = path.stat()
        key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
        if key not in _known:
            with path.open("rb") as file:
                _known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _known[key]
    except OSError as error:
        raise InfrastructureError(
            f"weights {path} cannot be read: {error.strerror}; give the path of a file that every node can read"
        ) from error


def digest_of_files(folder: Path) -> str:
    """64 hex digits over names and contents of a folder's files; hidden files and folders are left out. Raises InfrastructureError."""
    files = [path for path in folder.rglob("*") if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)]
    if not files:
        raise InfrastructureError(f"model directory {folder} holds no files; give one that every node can read")
    listed = sorted((path.relative_to(folder).as_posix(), file_sha256(path)) for path in files)
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in listed).encode()).hexdigest()


def package_file(module: str, relative: str, mend: str) -> Path:
    """A file inside an installed package, without importing the package. Raises InfrastructureError, `mend` saying what to install."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / relative
        if path.is_file():
            return path
    raise InfrastructureError(f"{relative} of the package {module} is not installed: {mend}")


def existing_path(text: str) -> str:
    """The absolute path of what a recipe names relative to where the command was started; other words ("", a model's name) as they are.

    A step runs in processes with another working directory.
    """
    return str(Path(text).absolute()) if text and Path(text).exists() else text
