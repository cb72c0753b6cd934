"""What the words of a recipe stand for: commits of hub models, environment variables, digests of steps. A run keeps it in `resolved.json`.

So a run is read as it was curated: where its models are away, its variables unset, and whatever the hub says by then.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from curation.step import Step, find_step
from pipeline.pins import Pins, read_pins
from shards.errors import LedgerError, RecipeError
from shards.store import Store

FILE = "resolved.json"
FORMAT = "fovea-resolved/1"


@dataclass(slots=True)
class Resolution:
    """pins   commits of the hub models (pipeline/pins.py).
    variables  environment variables that the recipe names → their value; one that was not set is not among them.
    look       whether a variable that is not known yet is taken from the environment of this process.
    digests    of the steps by name, as the run keeps them: then no step is checked and nothing is looked at. None: they are computed.
    """

    pins: Pins = field(default_factory=Pins)
    variables: dict[str, str] = field(default_factory=dict)
    look: bool = True
    digests: Mapping[str, str] | None = None

    def variable(self, name: str) -> str | None:
        if self.look and name not in self.variables and (value := os.environ.get(name)):
            self.variables[name] = value
        return self.variables.get(name)


def read_resolution(store: Store, text: bytes, until: str | None) -> Resolution:
    """What a run keeps of the recipe `text`, cut at `until`. Variables are those of now, and digests are computed, where it keeps none of
    exactly that recipe (an older run, a recipe.yaml that was edited); digests too where a step has another version by now.

    Raises LedgerError for a file that is damaged.
    """
    pins = Pins(read_pins(store))
    if not store.exists(FILE):
        return Resolution(pins)
    try:
        found = json.loads(store.read(FILE))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}, known is {FORMAT}")
        if found["recipe"] != _checksum(text, until):
            return Resolution(pins)
        variables = {str(name): str(value) for name, value in found["variables"].items()}
        steps = {str(name): (str(step["op"]), int(step["version"]), str(step["digest"])) for name, step in found["steps"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(f"{store.url(FILE)} is damaged: {error!r}; restore it, or delete it to resolve the recipe anew") from error
    digests = {name: digest for name, (_, _, digest) in steps.items()}
    same = all(_has_version(op, version) for op, version, _ in steps.values())
    return Resolution(pins, variables, look=False, digests=digests if same else None)


def write_resolution(
    store: Store, text: bytes, until: str | None, variables: Mapping[str, str], steps: Mapping[str, tuple[str, Step, str]]
) -> None:
    """Keep it beside the recipe `text`, to which alone it belongs. steps: name → operator, step, digest."""
    found = {
        "format": FORMAT,
        "recipe": _checksum(text, until),
        "variables": dict(sorted(variables.items())),
        "steps": {name: {"op": op, "version": step.version, "digest": digest} for name, (op, step, digest) in steps.items()},
    }
    store.put_replace(FILE, f"{json.dumps(found, indent=1)}\n".encode())


def _has_version(op: str, version: int) -> bool:
    try:
        return find_step(op).version == version
    except RecipeError:
        return True  # told with its line when the recipe is compiled


def _checksum(text: bytes, until: str | None) -> str:
    return hashlib.sha256(json.dumps([hashlib.sha256(text).hexdigest(), until]).encode()).hexdigest()
