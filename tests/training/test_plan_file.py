"""A plan on disk gives the same steps, with the costs it was made with, and belongs to one dataset, mixture and config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pytest

from shards.errors import InfrastructureError, ShardError
from tests.training.fixtures import Fact, index_of
from tests.training.plan_helpers import CONFIG
from training.cost import CostModel
from training.index_source import TableIndex
from training.mixture import Mixture
from training.plan import make_plan
from training.plan_file import load_plan, plan_bytes
from training.plan_parts import Cursor
from training.stage_plan import keep_plan, kept_plan, later_pass

FACTS = [Fact(f"i{i}", text=10 + i * 37 % 90, t=i % 4, side=4, shard=f"{i % 9}.tar", source=f"s{i % 2}") for i in range(300)]


@dataclass
class Watched:
    """An index that remembers which of its shards were read."""

    table: pa.Table
    digest: str = "v1"
    read_shards: list[str] = field(default_factory=list)

    @property
    def shards(self) -> Sequence[str]:
        return TableIndex(self.table, "").shards

    @property
    def columns(self) -> Sequence[str]:
        return self.table.column_names

    def read(self, shard: str, columns: Sequence[str]) -> pa.Table:
        self.read_shards.append(shard)
        return TableIndex(self.table, "").read(shard, columns)


def test_a_kept_plan_is_the_plan(tmp_path: Path) -> None:
    source, cost = Watched(index_of(FACTS)), CostModel(patch=5.0)
    path = tmp_path / "plans" / "stage1-pass0.json"
    made = kept_plan(path, source, Mixture(sources={"s0": 3, "s1": 1}), CONFIG, lambda: cost)
    assert not path.exists()
    keep_plan(path, made)
    source.read_shards.clear()
    other = kept_plan(path, source, Mixture(sources={"s0": 3, "s1": 1}), CONFIG, lambda: CostModel(patch=7.0))
    assert source.read_shards == []  # nothing is looked at again
    assert (other.digest, other.cost) == (made.digest, cost)  # the costs are those the plan was made with
    assert list(other.steps()) == list(made.steps())
    assert other.report((1, 2, 4)) == made.report((1, 2, 4))


def test_a_window_in_the_middle_is_read_alone() -> None:
    source = Watched(index_of(FACTS))
    plan = make_plan(source, Mixture(), CONFIG)
    kept = kept_plan(None, source, Mixture(), CONFIG, CostModel)
    source.read_shards.clear()
    steps = kept.window(2).steps
    assert set(source.read_shards) <= set(plan.windows[2] + plan.windows[3])
    assert steps == plan.window(2).steps
    source.read_shards.clear()
    assert kept.position(Cursor(kept.digest, 4, 1)) == plan.position(Cursor(plan.digest, 4, 1))
    assert source.read_shards == []


@pytest.mark.parametrize(
    ("digest", "mixture", "config"),
    [("v2", Mixture(), CONFIG), ("v1", Mixture(where="true"), CONFIG), ("v1", Mixture(), replace(CONFIG, seed=7))],
)
def test_a_plan_of_something_else_is_not_taken(tmp_path: Path, digest: str, mixture: Mixture, config: object) -> None:
    table, path = index_of(FACTS), tmp_path / "plan.json"
    path.write_text(plan_bytes(make_plan(TableIndex(table, "v1"), Mixture(), CONFIG)))
    assert load_plan(path, TableIndex(table, "v1"), Mixture(), CONFIG) is not None
    assert load_plan(path, TableIndex(table, digest), mixture, config) is None  # type: ignore[arg-type]
    assert load_plan(tmp_path / "none.json", TableIndex(table, "v1"), Mixture(), CONFIG) is None


@pytest.mark.parametrize("change", ["cut", "nothing", "without"])
def test_a_damaged_plan_is_named(tmp_path: Path, change: str) -> None:
    source, path = TableIndex(index_of(FACTS), "v1"), tmp_path / "plan.json"
    text = plan_bytes(make_plan(source, Mixture(), CONFIG))
    value = json.loads(text)
    del value["laid"]["windows"]
    path.write_text({"cut": text[: len(text) // 2], "nothing": "", "without": json.dumps(value)}[change])
    with pytest.raises(InfrastructureError, match=r"plan\.json: damaged"):
        load_plan(path, source, Mixture(), CONFIG)


def test_an_index_that_is_not_the_plans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_bytes(make_plan(TableIndex(index_of(FACTS), "v1"), Mixture(), CONFIG)))
    changed = load_plan(path, TableIndex(index_of(FACTS[:-20]), "v1"), Mixture(), CONFIG)
    assert changed is not None
    with pytest.raises(ShardError, match="its indexes are not those of the plan"):
        list(changed.steps())


def test_a_later_pass_has_steps_of_the_first_ones_size() -> None:
    first = make_plan(TableIndex(index_of(FACTS), "v1"), Mixture(), replace(CONFIG, packs=None, samples=20, divisible_by=2))
    assert first.packs_per_step == 6  # 300 items in about 95 packs: 3.16 a pack
    assert first.report().samples_per_step == pytest.approx(20, rel=0.15)
    later = later_pass(first, 3)
    assert (later.packs, later.samples, later.epoch) == (6, None, 3)
