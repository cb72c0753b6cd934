"""A plan on disk: what was found when its windows were packed once, so that ranks and restarts need not look again. JSON, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.errors import InfrastructureError
from training.candidates import Dropped
from training.cost import CostModel
from training.index_source import IndexSource
from training.mixture import Choice, Mixture
from training.plan import Plan, plan_digest
from training.plan_parts import Laid, PlanConfig
from training.window import Counts

PLAN_FORMAT = "fovea-plan/4"


def plan_bytes(plan: Plan) -> str:
    """The plan as text; its digest, and that of everything but the costs, name what it belongs to."""
    return json.dumps(
        {
            "format": PLAN_FORMAT,
            "digest": plan.digest,
            "asked": plan_digest(plan.source, plan.mixture, plan.config, None),
            "cost": asdict(plan.cost),
            "laid": asdict(plan.laid),
        }
    )


def load_plan(path: Path, source: IndexSource, mixture: Mixture, config: PlanConfig) -> Plan | None:
    """The plan at `path` with the costs that it was made with; None where there is none, or one of another dataset, mixture or config.

    Raises InfrastructureError for a damaged file.
    """
    if not path.is_file():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if value["format"] != PLAN_FORMAT or value["asked"] != plan_digest(source, mixture, config, None):
            return None
        plan = Plan(source, mixture, config, CostModel(**value["cost"]), _laid(value["laid"]), value["digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise InfrastructureError(f"{path}: damaged ({error}); delete it, and it is made again from the dataset's index") from error
    return plan if plan.digest == plan_digest(source, mixture, config, plan.cost) else None


def _laid(value: dict[str, Any]) -> Laid:
    return Laid(
        choices=tuple(Choice(**c) for c in value["choices"]),
        sources=tuple(value["sources"]),
        windows=tuple(tuple(names) for names in value["windows"]),
        counts=tuple(Counts(**{**c, "by_source": tuple(c["by_source"])}) for c in value["counts"]),
        dropped=value["dropped"],
        over_tokens=value["over_tokens"],
        listed=tuple(Dropped(**d) for d in value["listed"]),
        packs_per_step=value["packs_per_step"],
    )
