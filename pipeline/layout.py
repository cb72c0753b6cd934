"""What a dataset holds besides the samples: the operators that give items, measures and scores."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipeline.recipe import Recipe, StepOp
from shards.errors import ShardError
from shards.index import index_schema
from shards.profile import Profile
from shards.writer import score_name


@dataclass(frozen=True, slots=True)
class Layout:
    """What a dataset holds besides the samples: the operators that give items, measures and scores."""

    compose: StepOp | None
    measures: tuple[tuple[StepOp, Profile], ...]
    scores: tuple[tuple[str, pa.DataType, str], ...]  # index column, type, column of the recipe

    @property
    def schema(self) -> pa.Schema:
        return index_schema([pa.field(n, t) for n, t, _ in self.scores], [p.name for _, p in self.measures])


def layout_of(recipe: Recipe) -> Layout:
    """Raises ShardError if two measure steps use the same profile name."""
    steps = [op for op in recipe.ops if isinstance(op, StepOp)]
    compose = next((op for op in reversed(steps) if op.op == "compose"), None)
    measures = tuple((op, op.what.loaded_profile()) for op in steps if op.op == "measure")
    names = [p.name for _, p in measures]
    if len(set(names)) != len(names):
        raise ShardError(f"{recipe.path}: two measure steps have the profile {names}; a profile is measured once")
    aside = {"compose", "measure"}
    scores = tuple((score_name(c.name), c.type, c.name) for op in steps if op.op not in aside for c in op.columns if not c.wide)
    return Layout(compose, measures, scores)
