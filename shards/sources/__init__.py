"""Sources: from a recipe's entry to samples by reference. One file for each format; `FORMATS` is the list of them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from shards.errors import InfrastructureError, RecipeError, SourceError
from shards.paths import absolute, has_credentials, is_url, to_local
from shards.sample import Sample
from shards.sources import dataset, folder, llava, manifest, parquet, webdataset
from shards.sources.files import find_files, is_folder
from shards.sources.spec import Container, Format, SourceSpec
from shards.sources.where import syntax_error

FORMATS: dict[str, Format] = {
    "folder": folder.FORMAT,
    "webdataset": webdataset.FORMAT,
    "parquet": parquet.FORMAT,
    "llava": llava.FORMAT,
    "manifest": manifest.FORMAT,
    "dataset": dataset.FORMAT,
}


def list_containers(spec: SourceSpec) -> Iterator[Container]:
    """The containers of a source, in order of name, without opening a medium. Raises RecipeError for a source that is not there,
    InfrastructureError where the disk or network fails."""
    try:
        yield from _format(spec).list(spec)
    except SourceError as error:
        raise RecipeError(f"source {spec.name!r}: {error}; mend its path") from error


def scan(spec: SourceSpec, container: Container) -> Iterator[Sample]:
    """The samples of one container, in units (`Sample.unit`, `.ordinal`). What cannot be read is a sample with `damage`.

    Raises RecipeError for a `where` or `fields` that cannot work and for a source that went away, InfrastructureError where the disk or
    network fails.
    """
    try:
        yield from _format(spec).scan(spec, container)
    except SourceError as error:  # of the source as a whole: damage inside a container is a sample
        raise RecipeError(f"source {spec.name!r}: {error}; mend its path") from error


def resolve(spec: SourceSpec, base_dir: str | os.PathLike[str]) -> SourceSpec:
    """The spec with its path and media root absolute: relative ones are relative to `base_dir`."""
    options = dict(spec.options)
    if options.get("media_root"):
        options["media_root"] = _against(str(options["media_root"]), base_dir)
    return replace(spec, path=_against(spec.path, base_dir), options=options)


def check_source(spec: SourceSpec, base_dir: str | os.PathLike[str]) -> list[str]:
    """What is wrong with a source, each with its mend; empty where it can run. Opens no medium and reads no record."""
    if spec.format not in FORMATS:
        return [f"source {spec.name!r}: unknown format {spec.format!r}; {_instead([spec.format], FORMATS, 'formats are')}"]
    form = FORMATS[spec.format]
    problems: list[str] = []
    if has_credentials(spec.path) or has_credentials(str(spec.options.get("media_root", ""))):
        return [f"source {spec.name!r}: its URL holds credentials; take them out and pass them through the environment"]
    if unknown := sorted(set(spec.options) - set(form.options)):
        problems.append(f"unknown options {', '.join(unknown)}; {_instead(unknown, form.options, f'{spec.format} has')}")
    if unknown := sorted(set(spec.fields) - set(form.roles)):
        problems.append(f"unknown fields {', '.join(unknown)}; {_instead(unknown, form.roles, f'{spec.format} has')}")
    if wrong := sorted(k for k, v in spec.fields.items() if v is not None and not isinstance(v, str)):
        problems.append(f"fields {', '.join(wrong)} must name a field of the record (text), or be null")
    if spec.explode is not None and spec.explode not in form.explodes:
        problems.append(f"explode: {spec.explode!r} is not possible; {spec.format} has {', '.join(form.explodes) or 'none'}")
    if spec.where is not None and not form.records:
        problems.append(f"where is for sources of records, not for {spec.format}; use a rule (keep) on the steps' columns")
    elif spec.where is not None and (error := syntax_error(spec.where)):
        problems.append(f"where: {spec.where!r} is no SQL predicate: {error}")
    problems += _missing(resolve(spec, base_dir), form)
    return [f"source {spec.name!r}: {problem}" for problem in problems]


def _missing(spec: SourceSpec, form: Format) -> list[str]:
    problems: list[str] = []
    if not spec.path:
        return ["path is empty; name a file, a folder or a pattern"]
    try:
        if form.suffixes:
            _, files = find_files(spec.path, lambda name: name.endswith(form.suffixes))
            if not files:
                problems.append(f"no {' or '.join(form.suffixes)} file below {spec.path}; mend the path")
        elif not is_folder(absolute(spec.path)):
            problems.append(f"there is no folder {spec.path}; mend the path")
    except SourceError as error:
        problems.append(f"{error}; mend the path")
    except InfrastructureError as error:
        problems.append(str(error))
    root = spec.options.get("media_root")
    if root and not is_url(str(root)) and not Path(to_local(str(root))).is_dir():
        problems.append(f"there is no folder {root}; mend options.media_root")
    return problems


def _instead(unknown: Iterable[str], known: Iterable[str], introduction: str) -> str:
    names = list(known)
    close = [f"{name!r}" for wrong in unknown for name in difflib.get_close_matches(wrong, names, 1)]
    listed = f"{introduction} {', '.join(names) or 'none'}"
    return f"{listed} (did you mean {', '.join(close)}?)" if close else listed


def _against(path: str, base_dir: str | os.PathLike[str]) -> str:
    return path if "://" in path or not path else os.path.normpath(os.path.join(os.fspath(base_dir), path))


def _format(spec: SourceSpec) -> Format:
    if spec.format not in FORMATS:
        raise RecipeError(f"source {spec.name!r}: unknown format {spec.format!r}; formats are {', '.join(FORMATS)}")
    return FORMATS[spec.format]


__all__ = ["FORMATS", "Container", "Format", "SourceSpec", "check_source", "list_containers", "resolve", "scan"]
