"""What a population may be held against: benchmarks and held-out sets, whose copies have no place in training data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from curation import reference_vectors
from shards.errors import FoveaError
from shards.sample import digest_of
from shards.sources import SourceSpec, check_source, list_containers

Format = Literal["folder", "dataset", "webdataset", "embeddings"]
FORMATS: tuple[Format, ...] = get_args(Format)
PREFIX = "reference:"  # what the uids of its samples begin with: no source of a recipe can be called so
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """One named reference.

    format  "folder": pictures and clips under a folder · "dataset": shards of ours · "webdataset": any tars ·
            "embeddings": a file of vectors that the recipe's own embed step made (docs/decontaminate.md).
    path    folder, manifest's folder, or file; absolute or a URL.
    """

    name: str
    format: Format
    path: str

    @property
    def source(self) -> SourceSpec:
        """As a source of samples: with keys as any source of its format gives them. Not for embeddings."""
        return SourceSpec(f"{PREFIX}{self.name}", self.format, self.path)


def parse_references(value: Iterable[Mapping[str, str]]) -> tuple[Reference, ...]:
    """The references of a recipe, in order of name, from mappings with `name` and one of FORMATS. Opens nothing.

    Relative paths start at the current directory, as those of sources do. Raises ValueError with the mend.
    """
    found: dict[str, Reference] = {}
    for number, entry in enumerate(value, 1):
        forms = [form for form in FORMATS if form in entry]
        name = str(entry.get("name", ""))
        what = f"reference: {name!r}" if name else f"reference: number {number}"
        if not _NAME.fullmatch(name):
            raise ValueError(f"{what} needs a `name` of letters, digits, '_' and '-', at most 64: its copies are told by it")
        if unknown := sorted(set(entry) - {"name", *FORMATS}):
            raise ValueError(f"{what} has unknown keys {', '.join(unknown)}; it takes name and one of {', '.join(FORMATS)}")
        if len(forms) != 1:
            raise ValueError(f"{what} names {' and '.join(forms) or 'nothing'}; give exactly one of {', '.join(FORMATS)}: a path")
        path = entry[forms[0]]
        if not isinstance(path, str) or not path:
            raise ValueError(f"{what}: {forms[0]} is a path or URL, not {path!r}")
        if name in found:
            raise ValueError(f"{what} is there twice; give each its own name")
        found[name] = Reference(name, forms[0], path if "://" in path else os.path.abspath(os.path.expanduser(path)))
    return tuple(found[name] for name in sorted(found))


def check_references(references: Iterable[Reference]) -> None:
    """Raises ValueError, with the mend, for one that is not there, that holds nothing, or that is no file of vectors. Opens no medium."""
    for reference in references:
        try:
            if reference.format == "embeddings":
                reference_vectors.read_header(reference.path)
                continue
            source = reference.source
            for fault in check_source(source, Path.cwd()):
                raise ValueError(fault.removeprefix(f"source {source.name!r}: "))
            if next(list_containers(source), None) is None:
                raise ValueError(f"there is nothing of format {reference.format} at {source.path}; mend the path or take the reference out")
        except (ValueError, FoveaError) as error:
            raise ValueError(f"reference: {reference.name!r}: {error}") from error


def reference_identity(reference: Reference) -> dict[str, str]:
    """What stands for a reference in its step's digest: name, format, and a digest of what lies there, whatever the place is called.

    Of a folder, over names, sizes and dates of its files; of tars, over theirs; of a dataset, over the checksums in its manifest; of a
    file of vectors, over its bytes (a URL's: size and etag). Opens no medium. Raises FoveaError where it cannot be read.
    """
    if reference.format == "embeddings":
        content = reference_vectors.identity(reference.path)
    else:
        content = digest_of([[container.name, container.stamp] for container in list_containers(reference.source)])
    return {"name": reference.name, "format": reference.format, "content": content}


def label(name: str, key: str) -> str:
    """What a copy of it says it is a copy of: "reference:<name>/<key>"."""
    return f"{PREFIX}{name}/{key}"


def parse_label(text: str) -> tuple[str, str] | None:
    """(name, key) of a label; None for the uid of a sample."""
    name, slash, key = text.removeprefix(PREFIX).partition("/")
    return (name, key) if text.startswith(PREFIX) and slash else None
