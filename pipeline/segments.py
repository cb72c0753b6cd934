"""A recipe cut at its phase borders, and the words of SQL that say where the rows of its operators lie and whom they concern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.ledger import name, quote
from pipeline.recipe import Recipe, RuleOp, StepOp

CHILDREN_TABLES = "children-"  # what the names of their tables begin with


@dataclass(frozen=True, slots=True)
class Segment:
    """Operators that are judged together: (index in recipe.ops, op). A global step is the first of its segment, a splitter the only one."""

    number: int
    ops: tuple[tuple[int, StepOp | RuleOp], ...]

    @property
    def global_step(self) -> tuple[int, StepOp] | None:
        return self._first("global")

    @property
    def splitter(self) -> tuple[int, StepOp] | None:
        return self._first("splitter")

    def _first(self, shape: str) -> tuple[int, StepOp] | None:
        index, op = self.ops[0] if self.ops else (0, None)
        return (index, op) if isinstance(op, StepOp) and op.step.shape == shape else None


def segments(recipe: Recipe) -> list[Segment]:
    """The recipe's operators, cut before each global step and around each splitter."""
    groups: list[list[tuple[int, StepOp | RuleOp]]] = [[]]
    open_ = True
    for index, op in enumerate(recipe.ops):
        shape = op.step.shape if isinstance(op, StepOp) else ""
        if shape in ("global", "splitter") or not open_:
            groups.append([])
        groups[-1].append((index, op))
        open_ = shape != "splitter"
    if not open_:
        groups.append([])  # where the children of the last splitter arrive
    return [Segment(i, tuple(ops)) for i, ops in enumerate(groups)]


def splitters(recipe: Recipe) -> list[tuple[int, StepOp]]:
    """The recipe's splitters with their places, in order."""
    return [(i, op) for i, op in enumerate(recipe.ops) if isinstance(op, StepOp) and op.step.shape == "splitter"]


def step_table(op: StepOp) -> str:
    return f"step-{op.digest}"


def wide_table(op: StepOp) -> str:
    return f"wide-{op.digest}"


def children_table(op: StepOp) -> str:
    return f"{CHILDREN_TABLES}{op.digest}"


def global_table(op: StepOp, population: str) -> str:
    return f"global-{op.digest}-{population}"


def global_schema(op: StepOp) -> pa.Schema:
    """Columns of a global step's table: uid, then its own, unprefixed."""
    return pa.schema([pa.field("uid", pa.string()), *(pa.field(c.name, c.type) for c in op.step.columns(op.what))])


def applies_sql(kinds: frozenset[str], relation: str = "") -> str:
    """Whether a step of these kinds applies to a row of a relation with kind and media_kinds: a mixed sample has several kinds of media."""
    at, listed = (f"{relation}." if relation else ""), ", ".join(map(quote, sorted(kinds)))
    return f"({at}kind in ({listed}) or ({at}kind = 'mixed' and list_has_any({at}media_kinds, [{listed}])))"


def fingerprint_sql(roots: Sequence[str]) -> str:
    """fp of a step's row from what it reads, transitively (docs/ledger.md), for a relation `b`."""
    if set(roots) == {"media", "texts"}:
        return "b.content || '+' || b.text_fp"
    return {"media": "b.content", "texts": "b.text_fp"}[roots[0]] if roots else "'-'"


def work_value(op: StepOp, side: str, stored: str) -> str:
    """A stored column in work form: one value for each medium as a list at level "medium"."""
    value = f"{side}.{name(stored)}"
    if op.step.level != "medium":
        return value
    more = f"list_transform(coalesce({side}._more, []), lambda x: x.{name(stored)})"
    return f"case when {side}.uid is not null then list_concat([{value}], {more}) end"
