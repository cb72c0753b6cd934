"""Builds every small model: `python -m tests.small_models DIR` makes DIR/<name> for each module here that has a `build`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path

import tests.small_models


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.small_models", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for module in sorted(found.name for found in pkgutil.iter_modules(tests.small_models.__path__)):
        build = getattr(importlib.import_module(f"tests.small_models.{module}"), "build", None) if module != "__main__" else None
        if build is not None:
            print(f"{module}: {build(folder / module)}")


if __name__ == "__main__":
    main()
