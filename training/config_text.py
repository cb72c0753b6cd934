"""A training config's file: YAML to checked values, and errors that name the file, the line and what was probably meant."""

from __future__ import annotations

import types
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from shards.errors import ConfigError
from training.stages import StageConfig, TrainingConfig, close_to

_UNION_TAGS = ("[key]", "constrained-float", "float", "PartConfig")  # what pydantic says of places that the file does not have


def load_training_config(path_or_name: str | Path) -> TrainingConfig:
    """configs/training/<name>.yaml of the package, or a YAML file. Raises ConfigError: file, key, what is wrong with it, what was meant."""
    text, where = _config_text(str(path_or_name))
    try:
        values = yaml.safe_load(text)
        twice = _written_twice(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply, or an alias (*name) lies within what it names; write it out") from None
    if twice is not None:
        raise ConfigError(f"{where}:{twice[1]}: {twice[0]} is written twice; keep one of the two")
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a training config is a mapping with name, model and stages; this is {type(values).__name__}")
    try:
        config = TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_for_people(where, text, e) for e in error.errors(include_url=False))) from None
    if place := _truth_for_number(values, config.model_dump()):
        raise ConfigError(f"{where}:{_line_of(text, place)}: {'.'.join(place)}: a number is wanted, not true or false")
    for number, block in values["stages"].items():
        if block.get("steps") is not None and "epochs" in block:
            line = _line_of(text, ["stages", str(number), "epochs"])
            raise ConfigError(f"{where}:{line}: stages.{number} has both epochs and steps; keep the one that says how long it is to be")
    return config


def _config_text(path_or_name: str) -> tuple[str, str]:
    path = Path(path_or_name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text("utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
        except OSError as error:
            shipped = f"; to use the one that ships with fovea: {path.stem}" if path.stem in _shipped() else ""
            raise ConfigError(f"no training config {path}: {error.strerror or error}{shipped}") from None
    folder = resources.files("configs.training")
    entry = folder / f"{path_or_name}.yaml"
    known = _shipped()
    if path_or_name not in known:
        raise ConfigError(
            f"no training config {path_or_name!r}{close_to(path_or_name, known)}; known: {', '.join(known)}, or a path to a .yaml file"
        )
    return entry.read_text("utf-8"), f"configs/training/{path_or_name}.yaml"


def _shipped() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(e.name[:-5] for e in resources.files("configs.training").iterdir() if e.name.endswith(".yaml"))


def _for_people(where: str, text: str, error: Any) -> str:
    place = [str(p) for p in error["loc"] if str(p) not in _UNION_TAGS]
    line = _line_of(text, place)
    at = f"{where}{f':{line}' if line else ''}: {'.'.join(place) or 'the file'}"
    if error["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        return f"{at}: unknown key{close_to(place[-1], known)}; known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{at}: is required"
    return f"{at}: {error['msg'].removeprefix('Value error, ')}, got {error['input']!r}"


def _keys_at(place: list[str]) -> list[str]:
    model: Any = TrainingConfig
    for key in place:
        if model is TrainingConfig and key == "stages":
            model = StageConfig
        elif key in getattr(model, "model_fields", {}):
            model = model.model_fields[key].annotation
        models = [kind for kind in _kinds(model) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = models[0] if models else model
    return list(getattr(model, "model_fields", {}))


def _kinds(annotation: Any) -> list[Any]:
    """The types of a union, of a mapping's values, or the one that it is."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for inner in get_args(annotation) for kind in _kinds(inner)]
    return _kinds(get_args(annotation)[1]) if get_origin(annotation) is dict else [annotation]


def _truth_for_number(given: Any, taken: Any) -> list[str]:
    """Where the file says true, false, yes or on and a number was `taken`: `train: {llm: true}` would be a learning rate of 1."""
    if not (isinstance(given, dict) and isinstance(taken, dict)):
        return []
    values = {str(key): value for key, value in taken.items()}
    for key, value in given.items():
        there = values.get(str(key))
        if isinstance(key, bool) or (isinstance(value, bool) and isinstance(there, int | float) and not isinstance(there, bool)):
            return [str(key)]
        if inner := _truth_for_number(value, there):
            return [str(key), *inner]
    return []


def _line_of(text: str, place: list[str]) -> int | None:
    """Line (from 1) of the deepest key of `place` that the file has."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for key in place:
        if not isinstance(node, yaml.MappingNode):
            break
        hit = next(((k, v) for k, v in node.value if k.value == key), None)
        if hit is None:
            break
        line, node = hit[0].start_mark.line + 1, hit[1]
    return line


def _written_twice(node: Any) -> tuple[str, int] | None:
    """(key, line from 1) of a key that a mapping has a second time: YAML would silently take the last one."""
    if isinstance(node, yaml.SequenceNode):
        return next((found for inner in node.value if (found := _written_twice(inner))), None)
    if not isinstance(node, yaml.MappingNode):
        return None
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            return str(key.value), key.start_mark.line + 1
        seen.add(str(key.value))
        if found := _written_twice(value):
            return found
    return None
