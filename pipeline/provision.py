"""The models of a recipe before it runs: which there are, at which commit, what is here, what would be downloaded and how large it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curation import hub
from curation.models import Model, download_size, fetched_file, local_file, local_folder, missing_files
from curation.tags import resolved
from pipeline.recipe import Recipe, StepOp
from shards.errors import InfrastructureError

log = logging.getLogger("fovea")

State = Literal["here", "download", "served", "library", "missing"]


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model of a recipe.

    steps  that load it.
    state  here · download: it will be, `bytes` of it (None: not known) · served: by a server that the step names · library: the step's
           library finds or downloads it by its own name · missing: not here, and not to be had.
    note   why it is missing, or why its size is not known.
    """

    model: Model
    steps: tuple[str, ...]
    state: State
    bytes: int | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        found = {"id": self.model.id, "kind": self.model.kind, "revision": self.model.revision, "steps": list(self.steps)}
        return {**found, "state": self.state, "bytes": self.bytes, "note": self.note}

    def told(self) -> str:
        """The state as people read it."""
        size = "size unknown" + (f": {self.note}" if self.note else "") if self.bytes is None else f"{self.bytes / 1e6:,.1f} MB"
        match self.state:
            case "here":
                return "here"
            case "download":
                return f"will be downloaded, {size}"
            case "served":
                return "served elsewhere"
            case "library":
                return "its library finds or downloads it"
        return f"missing: {self.note}"


def model_states(recipe: Recipe) -> list[ModelState]:
    """The recipe's models in the order of its steps. Asks the hub about those that are not here; downloads nothing."""
    found: dict[tuple[Model, bool], list[str]] = {}
    for op in _steps(recipe):
        for model in op.models:
            found.setdefault((model if op.served else resolved(model), op.served), []).append(op.name)
    return [_state(model, served, tuple(steps)) for (model, served), steps in found.items()]


def provide(recipe: Recipe, run: str, states: Sequence[ModelState], *, download: bool, fresh: bool) -> None:
    """Have the models that a run will load, before anything starts. `download`: fetch what is not here, for steps that run on this machine.

    Only steps that have something to do count: a finished run needs no model. fresh: the run is new, so that all of them have.
    Raises InfrastructureError for a model that cannot be had.
    """
    absent = [state for state in states if state.state in ("download", "missing")]
    if not absent:
        return
    from pipeline.plan import make_plan  # it imports the engine, which imports this

    idle = set() if fresh else {step.name for step in make_plan(recipe, run).steps if not step.calls}
    for state in absent:
        if idle.issuperset(state.steps):
            continue
        if state.state == "missing" and (download or state.model.kind in ("folder", "file", "package")):
            raise InfrastructureError(f"step {', '.join(state.steps)}: {state.note}")
        if state.state == "missing":
            log.warning("step %s: %s; each node of the cluster looks for itself", ", ".join(state.steps), state.note)
        elif download:
            log.info("downloading %s: %s", state.model.id, state.told())
            _fetch(state.model)


def _state(model: Model, served: bool, steps: tuple[str, ...]) -> ModelState:
    if served:
        return ModelState(model, steps, "served")
    if model.kind == "library":
        return ModelState(model, steps, "library")
    if model.kind == "url":
        if fetched_file(model.id) is not None:
            return ModelState(model, steps, "here")
        size = download_size(model.id)
        return ModelState(model, steps, "download", size, "" if size is not None else "its server does not say, or cannot be reached")
    if model.kind == "hub":
        wants = _wants(model)
        folder = hub.cached_folder(model.id, model.revision, wants)
        if folder is not None and not missing_files(folder, model.needs, model.wants):
            return ModelState(model, steps, "here")
        try:
            return ModelState(model, steps, "download", hub.download_bytes(model.id, model.revision, wants))
        except InfrastructureError as error:
            return ModelState(model, steps, "missing", None, str(error))
    try:
        _fetch(model)
    except InfrastructureError as error:
        return ModelState(model, steps, "missing", None, str(error))
    return ModelState(model, steps, "here")


def _fetch(model: Model) -> Path:
    if model.kind in ("file", "url"):
        return local_file(model.id, model.sha256)
    return local_folder(model.id, model.revision, model.wants, needs=model.needs, remote_code=model.remote_code)


def _wants(model: Model) -> tuple[str, ...]:
    return (*model.wants, "*.py") if model.remote_code else model.wants


def _steps(recipe: Recipe) -> Iterator[StepOp]:
    return (op for op in recipe.ops if isinstance(op, StepOp))
