"""The sections of a recipe that are no steps: sources, limits, write, split."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.fields import Problems, checked, expanded, mapping
from pipeline.yamlpos import Place
from shards.media import Limits
from shards.sources import SourceSpec, check_source

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_LIMITS = {
    "image": {"pixels": "image_pixels", "bytes": "image_bytes"},
    "video": {"pixels": "video_pixels", "bytes": "video_bytes", "decoded_frames": "decoded_frames", "cpu_seconds": "cpu_seconds"},
    "text": {"chars": "text_chars"},
    "pdf": {"bytes": "pdf_bytes", "pages": "pdf_pages"},
}


@dataclass(frozen=True, slots=True)
class WriteSpec:
    """Where the dataset goes (absolute, a URL, or below the run) and where a shard ends: bytes of its tar, samples in it.

    blur   name of the step whose boxes are wiped out in the pictures that are written; "" = none.
    """

    path: str = "dataset"
    max_bytes: int = 1_000_000_000
    max_samples: int = 10_000
    blur: str = ""


def sources(problems: Problems, value: Any, look: bool, variable: Callable[[str], str | None]) -> tuple[SourceSpec, ...]:
    """The recipe's sources; paths absolute (relative ones start at the current directory). `look`: check them where they lie, too.

    variable: values of environment variables (`pipeline.fields.expanded`).
    """
    if not isinstance(value, list) or not value:
        problems.add(("sources",), "`sources` must be a list with at least one source: - {name: …, format: …, path: …}")
        return ()
    known = [f.name for f in fields(SourceSpec)]
    specs: list[SourceSpec] = []
    for index, entry in enumerate(value):
        place: Place = ("sources", index)
        named = entry.get("name") if isinstance(entry, dict) else None
        what = f"source {named!r}" if isinstance(named, str) else f"source {index + 1}"
        before = len(problems.found)
        given = mapping(problems, place, entry, known, what)
        if given is None:
            continue
        for wanted in ("name", "format", "path"):
            if wanted not in given:
                problems.add(place, f"{what} lacks {wanted!r}")
        if "path" in given:
            given["path"] = expanded(problems, (*place, "path"), given["path"], variable)
        if len(problems.found) > before:
            continue
        spec: SourceSpec | None = checked(problems, place, {k: v for k, v in given.items() if v is not None}, SourceSpec, what)
        if spec is None:
            continue
        if not NAME.fullmatch(spec.name):
            problems.add((*place, "name"), f"{what}: a name is letters, digits, '_', '-' and '.', at most 64")
        if spec.name in {s.name for s in specs}:
            problems.add((*place, "name"), f"two sources are named {spec.name!r}; a sample's identity is made of it")
        specs.append(_absolute(spec))
        if look and len(problems.found) == before:
            for fault in check_source(specs[-1], Path.cwd()):
                problems.add(place, fault if spec.name in fault else f"{what}: {fault}")
    return tuple(specs)


def _absolute(spec: SourceSpec) -> SourceSpec:
    path = spec.path if "://" in spec.path else os.path.abspath(os.path.expanduser(spec.path))
    return SourceSpec(spec.name, spec.format, path, spec.where, spec.fields, spec.explode, spec.options)


def limits(problems: Problems, value: Any) -> Limits:
    """The nested form of a recipe as Limits; what is not named keeps its safe default."""
    given: dict[str, Any] = {}
    types = {f.name: {"int": int, "float": float}[str(f.type)] for f in fields(Limits)}
    for kind, inner in (mapping(problems, ("limits",), value, _LIMITS, "limits") or {}).items() if value is not None else ():
        names = _LIMITS[kind]
        for key, bound in (mapping(problems, ("limits", kind), inner, names, f"limits of {kind}") or {}).items():
            place: Place = ("limits", kind, key)
            number = checked(problems, place, bound, types[names[key]], f"{key!r} of {kind}")
            if number is not None and number <= 0:
                problems.add(place, f"{key!r} of {kind}: a limit is above 0")
            if number is not None:
                given[names[key]] = number
    return Limits(**given)


def write(problems: Problems, value: Any, variable: Callable[[str], str | None]) -> WriteSpec:
    if value is None:
        return WriteSpec()
    given = mapping(problems, ("write",), value, [f.name for f in fields(WriteSpec)], "write")
    if given is None:
        return WriteSpec()
    spec: WriteSpec | None = checked(problems, ("write",), expanded(problems, ("write",), given, variable), WriteSpec, "write")
    if spec is None:
        return WriteSpec()
    for name in ("max_bytes", "max_samples"):
        if getattr(spec, name) < 1:
            problems.add(("write", name), f"{name!r} of write is at least 1")
    if not spec.path or ".." in Path(spec.path).parts:
        problems.add(("write", "path"), "'path' of write is a name below the run, an absolute path or a URL, without '..'")
    return spec


def split(problems: Problems, value: Any) -> Mapping[str, float]:
    """Shares of the splits beside train, by name."""
    if value is None:
        return {}
    shares: dict[str, float] | None = checked(problems, ("split",), value, dict[str, float], "split")
    for name, share in (shares or {}).items():
        if not NAME.fullmatch(name) or name == "train":
            problems.add(("split", name), f"{name!r} is no name of a split beside train, which is the rest")
        if not 0 < share < 1:
            problems.add(("split", name), f"{name!r} of split is a share between 0 and 1, not {share:g}")
    if shares and sum(shares.values()) >= 1:
        problems.add(("split",), f"the shares of split make {sum(shares.values()):g}; nothing is left for train")
    return shares or {}
