"""Weights on disk: found in an installed package or at a path, and told apart by their content."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from shards.errors import InfrastructureError


def file_sha256(path: Path) -> str:
    """64 hex digits over a file's bytes. Raises InfrastructureError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InfrastructureError(
            f"weights {path} cannot be read: {error.strerror}; give the path of a file that every node can read"
        ) from error


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
