"""What the tests of plans share: plans over hand-made facts, and the uids of their steps."""

from __future__ import annotations

from collections.abc import Iterable

from tests.training.fixtures import PROFILE, Fact, index_of
from training.mixture import Mixture
from training.plan import Plan, make_plan
from training.plan_parts import Pack, PlanConfig, PlannedStep

CONFIG = PlanConfig(profile=PROFILE, compress=True, packs=4, seq_tokens=200, pack_patches=600, window_shards=2)


def plan_of(facts: list[Fact], config: PlanConfig = CONFIG, mixture: Mixture | None = None) -> Plan:
    return make_plan(index_of(facts), mixture or Mixture(), config, index_digest="v1")


def names_of(plan: Plan, pack: Pack) -> list[tuple[str, str, int, int]]:
    """(uid, task, n, repeat) of a pack's items."""
    table = plan.items_of(pack)
    return list(zip(*(table[name].to_pylist() for name in ("uid", "task", "n", "repeat")), strict=True))


def uids(plan: Plan, steps: Iterable[PlannedStep]) -> list[list[list[str]]]:
    return [[[name[0] for name in names_of(plan, pack)] for pack in step.packs] for step in steps]
