"""What a recipe calls a model, and where its files are: an id of the model hub, a directory, an installed package, a file, a URL.

docs/models.md tells people the same: how models are found, what pins them, what is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from curation import fetch, hub
from curation.hub import MODEL_FILES
from curation.weights import digest_of_files, file_sha256
from shards.errors import InfrastructureError

__all__ = [
    "MODEL_FILES",
    "Kind",
    "Model",
    "cache_dir",
    "check_folder",
    "download_size",
    "fetched_file",
    "folder_identity",
    "kind_of",
    "local_file",
    "local_folder",
    "missing_files",
    "model_identity",
    "refuse_remote_code",
]

Kind = Literal["hub", "folder", "package", "file", "url", "library"]

_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")  # an index names the parts that are looked for by name
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True, slots=True)
class Model:
    """One model that a step loads, as `Step.models` lists it.

    id        as a recipe writes it: "org/name", a directory, "package:<name>", a file, a URL, or a library's own name of a model.
    kind      what that is: hub · folder · package · file · url · library (the library downloads it by its own name).
    revision  of kind hub: commit, branch or tag; "" = not pinned yet.
    field     of kind hub: the What's field that takes the pinned commit; "" if the What has none.
    wants     of kind hub: patterns of the files that are downloaded.
    needs     names of files that must be in the folder.
    sha256    of kinds file and url: 64 hex digits the file must have; "" = any.
    remote_code  whether the model may bring Python of its own.
    """

    id: str
    kind: Kind
    revision: str = ""
    field: str = "revision"
    wants: tuple[str, ...] = MODEL_FILES
    needs: tuple[str, ...] = ("config.json",)
    sha256: str = ""
    remote_code: bool = False


def kind_of(model: str) -> Kind:
    """What a recipe's word for a model is. A path is what exists, is absolute, or begins with "." or "~"; "org/name" is a hub's id then."""
    if model.startswith("package:"):
        return "package"
    if re.match(r"https?://", model):
        return "url"
    path = Path(model).expanduser()
    if path.is_dir():
        return "folder"
    if path.is_file():
        return "file"
    if path.is_absolute() or model.startswith("."):
        return "file" if path.suffix else "folder"
    return "hub" if _HUB_ID.fullmatch(model) else "library"


def local_folder(
    model: str,
    revision: str = "",
    wants: Sequence[str] = MODEL_FILES,
    *,
    needs: Sequence[str] = ("config.json",),
    remote_code: bool = False,
) -> Path:
    """A folder with the model's files, ready to load: a directory as it is, a hub id from the local cache or else downloaded.

    wants   patterns of what is downloaded; with `remote_code` also *.py.
    needs   names of files that must be there.
    Raises InfrastructureError, with the mend: no such directory, files missing (named), no network, or code of its own that is not allowed.
    """
    kind = kind_of(model)
    if kind == "folder":
        folder = Path(model).expanduser().absolute()
    elif kind == "package":
        folder = _package_folder(model.removeprefix("package:"))
    elif kind == "hub":
        patterns = (*wants, "*.py") if remote_code else tuple(wants)
        found = hub.cached_folder(model, revision, patterns)
        if found is None or missing_files(found, needs, wants):
            if not remote_code:  # before gigabytes are downloaded for nothing
                refuse_remote_code(hub.download(model, revision, ("config.json",)))
            found = hub.download(model, revision, patterns)
        folder = found
    else:
        raise InfrastructureError(f"model {model!r} is neither a directory nor an id of the hub (org/name)")
    check_folder(folder, needs, wants)
    if not remote_code:
        refuse_remote_code(folder)
    return folder


def local_file(model: str, sha256: str = "") -> Path:
    """A single file: a path as it is, a URL downloaded once into `cache_dir`, under a bound. sha256: what it must have, "" = any.

    Raises InfrastructureError: not there, no network, other content.
    """
    kind = kind_of(model)
    if kind == "url":
        return fetch.fetched(model, sha256, cache_dir() / "files")
    path = Path(model).expanduser().absolute()
    if not path.is_file():
        raise InfrastructureError(f"model file {path} is not there; give the path of one that every node can read")
    if sha256 and (found := file_sha256(path)) != sha256.lower():
        raise InfrastructureError(f"model file {path} is another than the recipe says: its sha256 is {found}, expected is {sha256}")
    return path


def fetched_file(url: str) -> Path | None:
    """Where a URL's file lies, if it was downloaded already."""
    place = fetch.place_of(url, cache_dir() / "files")
    return place if place.is_file() else None


def missing_files(folder: Path, needs: Sequence[str], wants: Sequence[str] = ()) -> list[str]:
    """Names of files that a model's folder lacks: of `needs`, of the parts that an index of its weights (*.index.json) lists, and
    "*.safetensors" where `wants` asks for weights and there are none.
    """
    missing = [name for name in needs if not (folder / name).is_file()]
    if "*.safetensors" in wants and not any(any(folder.rglob(pattern)) for pattern in _WEIGHTS):
        missing.append("*.safetensors")
    for index in sorted(folder.glob("*.index.json")):
        try:
            parts = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InfrastructureError(f"model directory {folder}: {index.name} is no index of weights: {error}; copy it again") from error
        if index.name.startswith("pytorch_model") and any(folder.glob("*.safetensors")):
            continue  # the same weights as pickles, which nobody loads
        missing += sorted(part for part in parts if not (folder / str(part)).is_file())
    return missing


def check_folder(folder: Path, needs: Sequence[str], wants: Sequence[str] = ()) -> None:
    """Raises InfrastructureError for a folder that is not there, or that names the files which are missing (`missing_files`)."""
    if not folder.is_dir():
        raise InfrastructureError(f"model directory {folder} is not there; give one that every node can read")
    if missing := missing_files(folder, needs, wants):
        told = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InfrastructureError(f"model directory {folder} lacks {told}; copy or download the model again, whole")


def refuse_remote_code(folder: Path) -> None:
    """Raises InfrastructureError if the folder's config.json names Python of the model's own (`auto_map`): that is code of strangers."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InfrastructureError(f"model directory {folder}: config.json is not readable: {error}; copy the model again") from error
    if isinstance(config, dict) and config.get("auto_map"):
        raise InfrastructureError(
            f"model directory {folder}: config.json has `auto_map`, so loading it would run Python that came with the model. "
            "Read that code, then write `remote_code: true`, or take a model that the library knows itself"
        )


def folder_identity(path: str | Path) -> str:
    """sha256 over the names and contents of a folder's files (hidden ones left out), 64 hex digits: the same files elsewhere are the same.

    Raises InfrastructureError for a folder that cannot be read.
    """
    return digest_of_files(Path(path).expanduser().absolute())


def model_identity(model: str, revision: str = "", sha256: str = "") -> list[str]:
    """What stands for a model in a step's digest: content for what lies on disk (and for a URL whose sha256 is given), id and revision
    for the hub's, the name else. Raises InfrastructureError for what is not there.
    """
    kind = kind_of(model)
    if kind == "folder":
        return ["folder", folder_identity(model)]
    if kind == "package":
        return ["folder", folder_identity(_package_folder(model.removeprefix("package:")))]
    if kind == "file":
        return ["file", file_sha256(Path(model).expanduser())]
    if kind == "url" and sha256:
        return ["file", sha256.lower()]
    return [kind, model, revision]


def download_size(model: str, revision: str = "", wants: Sequence[str] = MODEL_FILES) -> int | None:
    """Bytes that a hub's model has in files of these patterns, or a URL's file; None where the hub or server does not say."""
    kind = kind_of(model)
    if kind == "url":
        return fetch.file_size(model)
    if kind != "hub":
        return None
    try:
        return hub.download_bytes(model, revision, wants)
    except InfrastructureError:
        return None


def cache_dir() -> Path:
    """Where files made or downloaded here are kept: $FOVEA_CACHE, else `fovea` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("FOVEA_CACHE") or Path(home) / "fovea")


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        return Path(folder)
    raise InfrastructureError(f"package:{name} is not installed; pip install {name}")
