"""The steps of a recipe compiled: parameters checked, columns named, reads resolved, digests made, rules parsed. Nothing starts here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curation.models import Model
from curation.rules import BASE_COLUMNS, FLAT_KEYS, Rule, RuleColumn, RuleError, parse_rule
from curation.step import Column, Step, applying, step_digest
from pipeline.entries import RuleEntry, StepEntry, read_entry
from pipeline.fields import Problems, did_you_mean
from pipeline.resolution import FILE, Resolution
from pipeline.yamlpos import Place
from shards.errors import FoveaError
from shards.index import ITEM_FIELDS

ROOTS = ("media", "texts")
_RESERVED = frozenset(FLAT_KEYS) | set(
    "verdict step reason error op status outcome fp split unit ordinal parent damage content text_fp media_stamp media_kinds".split()
)
ITEM_COLUMNS = frozenset(f.name for f in ITEM_FIELDS)
_BASE_ROOTS = {"source": (), "key": (), "kind": ("media",), "n_media": ("media",), "media_bytes": ("media",)}  # the others are of texts


@dataclass(frozen=True, slots=True)
class StepOp:
    """A step of the recipe.

    name     alias or operator.
    columns  with final names, `kinds` narrowed to what the step applies to. stored: their names without the prefix.
    digest   identity of its results. roots: of "media" and "texts" what it reads, transitively. reads: final names of columns it reads.
    models   that it loads, and `what` with their commits: not where the digest is the one its run keeps. `served`: by a server, not here.
    """

    name: str
    op: str
    step: Step
    what: Any
    how: Any
    digest: str
    roots: tuple[str, ...]
    reads: tuple[str, ...]
    columns: tuple[Column, ...]
    stored: tuple[str, ...]
    prefix: str
    kinds: frozenset[str]
    max_errors: int | float | None
    line: int
    models: tuple[Model, ...] = ()
    served: bool = False


@dataclass(frozen=True, slots=True)
class RuleOp:
    """A rule of the recipe, or one that a global step brings with it (`implied_by`: that step's name)."""

    name: str
    rule: Rule
    implied_by: str | None
    line: int


def operations(problems: Problems, value: Any, resolution: Resolution) -> tuple[StepOp | RuleOp, ...]:
    """The `steps` of a recipe. Problems are reported; what is returned is whole only if there are none.

    resolution: takes what is pinned and which variables are found here; with digests in it no step is checked and no file is opened.
    """
    if not isinstance(value, list) or not value:
        problems.add(("steps",), "`steps` must be a list with at least one step: - probe")
        return ()
    before = len(problems.found)
    entries = [e for index, entry in enumerate(value) if (e := read_entry(problems, ("steps", index), entry, resolution)) is not None]
    steps = [e for e in entries if isinstance(e, StepEntry)]
    _check_names(problems, steps, [e for e in entries if isinstance(e, RuleEntry)])
    return tuple(_Compiler(problems, steps, resolution.digests, partial=len(problems.found) > before).run(entries))


def _check_names(problems: Problems, steps: Sequence[StepEntry], keeps: Sequence[RuleEntry]) -> None:
    names: dict[str, int] = {}
    prefixes: dict[str, StepEntry] = {}
    columns: dict[str, StepEntry] = {}
    for step in steps:
        if step.name in names:
            problems.add(step.place, f"two steps are named {step.name!r} (the other in line {names[step.name]}); name this one with `as`")
            continue
        names[step.name] = step.line
        if step.prefix and step.prefix in prefixes:
            other = prefixes[step.prefix]
            problems.add(
                step.place, f"{step.name} and {other.name} (line {other.line}) both write columns {step.prefix}…; name one with `as`"
            )
            continue
        prefixes[step.prefix] = step
        for column in step.columns:
            low = column.name.lower()
            if low in BASE_COLUMNS or low in _RESERVED or low.startswith("_"):
                problems.add(
                    step.place, f"{step.name} would write the column {column.name!r}, which every sample has already; name it with `as`"
                )
            elif low in columns:
                other = columns[low]
                told = f"{step.name} would write {column.name!r}, which {other.name} (line {other.line}) writes; name one with `as`"
                problems.add(step.place, told)
            columns.setdefault(low, step)
    for keep in keeps:
        if keep.name is not None and keep.name in names:
            problems.add(
                keep.place, f"the name {keep.name!r} is taken (line {names[keep.name]}); verdicts name the step or rule, so give another"
            )
        elif keep.name is not None:
            names[keep.name] = keep.line


class _Compiler:
    """Walks the steps in order; knows what has been written so far, and what will be."""

    def __init__(self, problems: Problems, steps: Sequence[StepEntry], digests: Mapping[str, str] | None, partial: bool):
        self.problems = problems
        self.digests = digests  # that the run keeps; None: they are computed
        self.partial = partial  # some entry could not be read, so what it would write is unknown
        self.written: dict[str, tuple[StepOp, str]] = {}  # final name -> step, stored name
        self.known: dict[str, RuleColumn] = dict(BASE_COLUMNS)
        self.writers = {column.name: step for step in steps for column in step.columns}
        self.taken = {step.name for step in steps}
        self.unnamed = 0
        self.failed: set[str] = set()
        self.profiles: dict[str, StepEntry] = {}

    def run(self, parsed: Sequence[StepEntry | RuleEntry]) -> list[StepOp | RuleOp]:
        self.taken |= {p.name for p in parsed if isinstance(p, RuleEntry) and p.name is not None}
        ops: list[StepOp | RuleOp] = []
        for entry in parsed:
            if isinstance(entry, RuleEntry):
                rule = self.rule(self.rule_name(entry), entry.expression, entry.place, entry.kinds, entry.quantifier)
                if rule is not None:
                    ops.append(RuleOp(rule.name, rule, None, entry.line))
                continue
            op = self.step(entry)
            if op is None:
                self.failed |= {column.name for column in entry.columns}
                continue
            ops.append(op)
            implied = entry.step.implied(entry.what) if entry.step.implied is not None and entry.rule else None
            if implied is not None:
                rule = self.rule(entry.name, implied.replace("{prefix}", entry.prefix), entry.place, None, "all")
                if rule is not None:
                    ops.append(RuleOp(rule.name, rule, entry.name, entry.line))
        return ops

    def rule_name(self, keep: RuleEntry) -> str:
        if keep.name is not None:
            return keep.name
        while True:
            self.unnamed += 1
            name = "keep" if self.unnamed == 1 else f"keep_{self.unnamed}"
            if name not in self.taken:
                return name

    def rule(self, name: str, expression: str, place: Place, kinds: frozenset[str] | None, quantifier: Any) -> Rule | None:
        try:
            return parse_rule(name, expression, self.known, kinds, quantifier)
        except RuleError as error:
            if error.column is not None and self.excused(error.column):
                return None
            at = "" if error.position is None else f" (at character {error.position + 1} of the rule)"
            told = str(error) if error.column is None else self.unknown(error.column)
            self.problems.add(place, f"rule {name!r}: {told}{at}")
            return None

    def excused(self, column: str) -> bool:
        """Whether the column may be missing only because of a problem that is reported already."""
        return column in self.failed or (self.partial and column not in self.writers)

    def unknown(self, column: str) -> str:
        """What to say of a column that nothing before this writes."""
        later = self.writers.get(column)
        if later is not None:
            return f"the column {column!r} is written by {later.name} in line {later.line}, which does not come before this"
        hint = did_you_mean(column, {*self.known, *self.writers})
        close = re.findall(r"'([^']+)'", hint) if "did you mean" in hint else []
        by = [f"{c} is written by {self.writers[c].name}, line {self.writers[c].line}" for c in close if c in self.writers]
        return f"no step writes the column {column!r}{hint}" + (f" ({'; '.join(by)})" if by else "")

    def step(self, entry: StepEntry) -> StepOp | None:
        read = tuple(dict.fromkeys(entry.step.reads(entry.what)))
        missing = [name for name in read if name not in ROOTS and name not in self.known]
        for name in missing:
            if self.excused(name):
                continue
            self.problems.add(entry.place, f"step {entry.name!r} reads a column: {self.unknown(name)}")
        if missing:
            return None
        columns = tuple(name for name in read if name not in ROOTS)
        if entry.step.vectors is not None and not self.holds_vectors(entry, columns, entry.step.vectors(entry.what)):
            return None
        roots = {name for name in read if name in ROOTS}
        for name in columns:
            roots |= set(self.written[name][0].roots if name in self.written else _BASE_ROOTS.get(name, ("texts",)))
        digest = self.digest(entry, columns)
        if digest is None:
            return None
        if entry.op == "measure" and self.digests is None:
            self.profile(entry)
        op = StepOp(
            name=entry.name,
            op=entry.op,
            step=entry.step,
            what=entry.what,
            how=entry.how,
            digest=digest,
            roots=tuple(root for root in ROOTS if root in roots),
            reads=columns,
            columns=entry.columns,
            stored=entry.stored,
            prefix=entry.prefix,
            kinds=_kinds(entry),
            max_errors=entry.max_errors,
            line=entry.line,
            models=entry.models,
            served=entry.served,
        )
        level = entry.step.level if entry.step.shape == "annotator" else "sample"
        for column, stored in zip(op.columns, op.stored, strict=True):
            self.written[column.name] = (op, stored)
            self.known[column.name] = RuleColumn(column.type, column.kinds, level, column.wide)
        return op

    def holds_vectors(self, entry: StepEntry, columns: Sequence[str], wanted: Mapping[str, str]) -> bool:
        """Whether a global step reads lists of numbers where it asks for them, and nowhere else."""
        right = True
        for column in dict.fromkeys([*columns, *wanted]):
            known = self.known.get(column, RuleColumn(pa.string()))  # a step's `reads` leaves uid and kind out: every population has them
            if known.wide != (column in wanted):
                told = "holds no vectors" if column in wanted else "holds lists, which cannot be ordered by"
            elif column in wanted and _numbers(known.type) != wanted[column]:
                told = f"holds lists of {_numbers(known.type)}, not of {wanted[column]}"
            else:
                continue
            right = False
            by = f" (written by {self.writers[column].name}, line {self.writers[column].line})" if column in self.writers else ""
            others = [c for c, k in self.known.items() if k.wide and column in wanted and _numbers(k.type) == wanted[column]]
            mend = f"name one that does: {', '.join(sorted(others))}" if others else "name another column"
            self.problems.add(entry.place, f"step {entry.name!r}: the column {column!r}{by} {told}; {mend}")
        return right

    def profile(self, entry: StepEntry) -> None:
        """A measure profile's name is a column of the shards' index, so it must be there once."""
        name = entry.what.loaded_profile().name
        other = self.profiles.setdefault(name, entry)
        if other is not entry:
            told = (
                f"step {entry.name!r}: {other.name} (line {other.line}) measures under the profile {name!r} already; remove one of the two"
            )
            self.problems.add(entry.place, told)
        elif name in self.known or name in ITEM_COLUMNS:
            told = f"step {entry.name!r}: the profile is named {name!r}, which is another column of the index; give it another `name`"
            self.problems.add(entry.place, told)

    def digest(self, entry: StepEntry, columns: Sequence[str]) -> str | None:
        if self.digests is not None:
            if entry.name not in self.digests:
                self.problems.add(entry.place, f"step {entry.name!r}: {FILE} beside this recipe lacks its digest; delete that file")
            return self.digests.get(entry.name)
        try:
            return step_digest(entry.op, entry.step, entry.what, self.read_digests(columns))
        except (ValueError, OSError, FoveaError) as error:
            self.problems.add(entry.place, f"step {entry.name!r}: {error}")
            return None

    def read_digests(self, columns: Sequence[str]) -> list[str]:
        """Digests of what is read, each with the name it is read by: two steps that change places are not the same input."""
        found = {name: self.written[name] for name in columns if name in self.written}
        return [f"{name}={op.digest}.{stored}" for name, (op, stored) in found.items()]


def _numbers(kind: pa.DataType) -> str:
    """What a column's lists hold, in the words of `Step.vectors`."""
    value = kind.value_type if pa.types.is_list(kind) else kind
    return "float" if pa.types.is_floating(value) else str(value)


def _kinds(entry: StepEntry) -> frozenset[str]:
    """What a step applies to; its What may decide it: deduplicate sees samples without media where it compares texts."""
    return applying(entry.step, entry.columns)
