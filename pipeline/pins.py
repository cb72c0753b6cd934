"""The commit that each hub model of a run stands for: pinned when the run is made, kept in its `models.json`, part of the steps' digests.

A branch moves, a commit does not: what a run has pinned stays pinned, whatever the hub says later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from curation import hub
from curation.models import Model
from curation.step import Step
from curation.tags import resolved
from shards.errors import InfrastructureError, LedgerError
from shards.store import Store

FILE = "models.json"
FORMAT = "fovea-models/1"


@dataclass(slots=True)
class Pins:
    """known   model and revision as the recipe gives it ("org/name@", "timm:resnet18 pretrained:@") → commit; "" = served, not pinned.
    look    whether a model that is not known yet is looked up in the local cache and then on the hub.
    """

    known: dict[str, str] = field(default_factory=dict)
    look: bool = False

    def commit(self, model: Model) -> str | None:
        """The commit of a hub's model, or of a tag that stands for one; None where it is not known and is not to be looked up,
        and for what is not on the hub. Raises InfrastructureError with the mend.
        """
        if hub.is_commit(model.revision):
            return model.revision
        key = f"{model.id}@{model.revision}"
        if key not in self.known and self.look and (there := resolved(model)).kind == "hub":
            self.known[key] = hub.cached_commit(there.id, there.revision) or hub.asked_commit(there.id, there.revision)
        return self.known.get(key)

    def served(self, model: Model) -> str | None:
        """As `commit` for a model that a server has: what this run knows already is kept, else it stays without a pin in this run."""
        if self.look and not hub.is_commit(model.revision):
            self.known.setdefault(f"{model.id}@{model.revision}", "")
        return self.known.get(f"{model.id}@{model.revision}")


def pinned(step: Step, what: Any, how: Any, pins: Pins) -> Any:
    """The What with the commits of its hub models in it. Raises InfrastructureError for a model that cannot be pinned, with the mend."""
    if step.models is None:
        return what
    find = pins.served if step.served is not None and step.served(how) else pins.commit
    own = {f.name for f in fields(what)}
    changes: dict[str, str] = {}
    for model in step.models(what):
        if model.kind not in ("hub", "library") or model.field not in own:
            continue
        try:
            commit = find(model)
        except InfrastructureError as error:
            told = f"{model.field}: {model.id} cannot be pinned to a commit: {error}; or write `{model.field}: <commit>`"
            raise InfrastructureError(told) from error
        if commit:
            changes[model.field] = commit
    return replace(what, **changes) if changes else what


def read_pins(store: Store) -> dict[str, str]:
    """What a run has pinned; nothing where it is new. Raises LedgerError for a file that is damaged."""
    if not store.exists(FILE):
        return {}
    try:
        found = json.loads(store.read(FILE))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}, known is {FORMAT}")
        return {str(key): str(commit) for key, commit in found["models"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(f"{store.url(FILE)} is damaged: {error}; restore it, or delete it to pin the models anew") from error


def write_pins(store: Store, pins: Mapping[str, str]) -> None:
    """Add pins to those of the run; one that is there stays."""
    kept = {**pins, **read_pins(store)}
    if kept and kept != (read_pins(store) if store.exists(FILE) else {}):
        text = json.dumps({"format": FORMAT, "models": dict(sorted(kept.items()))}, indent=1)
        store.put_replace(FILE, f"{text}\n".encode())
