"""Tensors of a checkpoint in safetensors files, and the strict account by which they become the parameters of a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.errors import ConfigError, InfrastructureError

DROPPED = ""  # what a source calls a key that it leaves out on purpose
_FLOATS = {"F64", "F32", "F16", "BF16"}  # anything else (int8, fp8) holds numbers that mean nothing without their scales
_SHOWN = 8  # keys named in a message; their number is told


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint directory, and what its keys are called in the model: a parameter's name, or DROPPED.

    A key that `names` returns for, but that is no parameter of the model, is left over: an error, never skipped.
    """

    folder: Path
    names: Callable[[str], str]


def fill(model: nn.Module, sources: Sequence[Source], new: Sequence[str] = ()) -> None:
    """Copies every tensor of `sources` into the parameter it is named after, in the parameter's dtype.

    new: prefixes of the parameters that no checkpoint has by design; they are left as they are. Every other parameter must be found once.
    A tied parameter may lie in a checkpoint under both of its names, if both are equal. All keys and shapes are compared before the first
    tensor is read; tensors are then read one by one, so that memory holds the model and one tensor.
    Raises ConfigError naming the keys that are missing, left over, of another shape, twice there, or not floating point, and
    InfrastructureError for files that are not there or torn.
    """
    from safetensors import safe_open

    homes = dict(model.named_parameters())
    twins = _tied(model, homes)
    files = {source.folder: tensor_files(source.folder) for source in sources}
    takers: dict[str, str] = {}
    plan: list[tuple[Path, str, str]] = []
    leftover, misshapen, doubled, encoded = [], [], [], []
    for source in sources:
        for path in files[source.folder]:
            with _opened(safe_open, path) as file:
                for key in file.keys():  # noqa: SIM118 - no mapping, only a file with this method
                    name = source.names(key)
                    if name == DROPPED:
                        continue
                    where = f"{path}: {key}"
                    if twins.get(name, name) not in homes or twins.get(name, name).startswith(tuple(new)):
                        leftover.append(where)
                        continue
                    if name in takers:
                        doubled.append(f"{where} and {takers[name]}")
                        continue
                    takers[name] = where
                    piece, wanted = file.get_slice(key), tuple(homes[twins.get(name, name)].shape)
                    if tuple(piece.get_shape()) != wanted:
                        misshapen.append(f"{where} is {tuple(piece.get_shape())}, wanted {wanted}")
                    elif piece.get_dtype() not in _FLOATS:
                        encoded.append(f"{where} is {piece.get_dtype()}")
                    plan.append((path, key, name))
    missing = [name for name in homes if name not in takers and not name.startswith(tuple(new))]
    _refuse({"missing": missing, "left over": leftover, "shapes": misshapen, "twice": doubled, "not floating point": encoded}, sources)
    with torch.no_grad():
        for path in dict.fromkeys(path for path, _, _ in plan):
            with _opened(safe_open, path) as file:
                for _, key, name in (entry for entry in plan if entry[0] == path):
                    if name in homes:
                        homes[name].copy_(file.get_tensor(key))
        for path, key, name in plan:
            if name in twins:
                with _opened(safe_open, path) as file:
                    if not torch.equal(file.get_tensor(key).to(homes[twins[name]].dtype), homes[twins[name]].cpu()):
                        raise ConfigError(
                            f"{path}: {key} differs from {twins[name]}, but config.json says that they are tied; mend it there"
                        )


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those its index names, else the only one. No pickle is ever opened.

    Raises InfrastructureError where there is none or one of the index is gone; ConfigError for weights in pickle form.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        found = sorted({folder / Path(name).name for name in read_json(index).get("weight_map", {}).values()})
        gone = [path.name for path in found if not path.is_file()]
        if gone or not found:
            raise InfrastructureError(f"{index} names {', '.join(gone) or 'no files'}, not there; download the checkpoint again")
        return found
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        raise ConfigError(
            f"{folder}: weights only as pickle ({', '.join(pickled[:3])}), which can run code and is not opened; get the safetensors of "
            "this checkpoint, or convert it where you trust it: load it with transformers and call save_pretrained"
        )
    raise InfrastructureError(f"{folder}: no model.safetensors and no model.safetensors.index.json; download the checkpoint")


def whole_files(folder: Path) -> list[Path]:
    """`tensor_files`, each of them as long as its header says. Raises as it does, and InfrastructureError for one that is torn."""
    from safetensors import safe_open

    found = tensor_files(folder)
    for path in found:
        with _opened(safe_open, path):
            pass
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InfrastructureError naming the file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InfrastructureError(f"{path}: {error}; download the checkpoint again") from error
    if not isinstance(value, dict):
        raise InfrastructureError(f"{path}: not a JSON object; download the checkpoint again")
    return value


def _opened(safe_open: Any, path: Path) -> Any:
    from safetensors import SafetensorError

    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise InfrastructureError(
            f"{path}: cannot be read ({error}); download the checkpoint again or, if a stage of yours wrote it, delete the folder of "
            "that stage and of later ones and train them again"
        ) from error


def _tied(model: nn.Module, homes: dict[str, nn.Parameter]) -> dict[str, str]:
    """Second names of shared parameters, and their first."""
    first = {id(parameter): name for name, parameter in homes.items()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def _refuse(findings: dict[str, list[str]], sources: Sequence[Source]) -> None:
    told = []
    for what, keys in findings.items():
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            told.append(f"{what} ({len(keys)}): {', '.join(keys[:_SHOWN])}{more}")
    if told:
        folders = ", ".join(str(source.folder) for source in sources)
        raise ConfigError(
            f"{folders}: these checkpoints do not make this model; nothing is filled with random numbers. {'; '.join(told)}. "
            "Is it the right checkpoint, complete, and does its config.json belong to it?"
        )
