"""One entry of a recipe's `steps` read: parameters checked against the step's What and How, a rule's form. Columns are resolved later."""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import curation
from curation.models import Model
from curation.step import ALL_KINDS, Column, Step, column_prefix, find_step
from pipeline.fields import Problems, checked, did_you_mean, expanded, mapping, shown
from pipeline.pins import pinned
from pipeline.resolution import Resolution
from pipeline.yamlpos import Place
from shards.errors import FoveaError, RecipeError

COMMON = ("as", "max_errors")  # parameters of every step; global steps with an implied rule have `rule` too
_ALIAS = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class StepEntry:
    """A step whose parameters are in order; its reads are not resolved yet."""

    name: str
    op: str
    step: Step
    what: Any
    how: Any
    prefix: str
    columns: tuple[Column, ...]
    stored: tuple[str, ...]
    max_errors: int | float | None
    rule: bool
    place: Place
    line: int
    models: tuple[Model, ...] = ()
    served: bool = False


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """A `keep`; its expression is not parsed yet. `name`: None if the recipe gives none."""

    name: str | None
    expression: str
    kinds: frozenset[str] | None
    quantifier: Literal["all", "any"]
    place: Place
    line: int


def read_entry(problems: Problems, place: Place, entry: Any, resolution: Resolution) -> StepEntry | RuleEntry | None:
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        problems.add(
            place, f"a step is a name or one `name: {{parameters}}`, not {shown(entry) if not isinstance(entry, dict) else 'this mapping'}"
        )
        return None
    ((op, params),) = entry.items()
    if op == "keep":
        return _keep(problems, (*place, op), params)
    return _step(problems, place, (*place, op), op, {} if params is None else params, resolution)


def _keep(problems: Problems, place: Place, params: Any) -> RuleEntry | None:
    line = problems.document.where(place)[1]
    if isinstance(params, str):
        return RuleEntry(None, params, None, "all", place, line)
    given = mapping(problems, place, params, ("name", "if", "all", "any", "for"), "keep")
    if given is None:
        return None
    conditions = [key for key in ("if", "all", "any") if key in given]
    if len(conditions) != 1:
        problems.add(place, "keep takes one condition: `if` (or `all`) holds for every medium of a sample, `any` for one at least")
        return None
    expression: str | None = checked(problems, (*place, conditions[0]), given[conditions[0]], str, f"{conditions[0]!r} of keep")
    name: str | None = checked(problems, (*place, "name"), given["name"], str, "'name' of keep") if "name" in given else None
    if name is not None and not (0 < len(name) <= 64 and name.isprintable()):
        problems.add((*place, "name"), "'name' of keep is a line of 1 to 64 characters")
    kinds = None
    if "for" in given:
        listed = [given["for"]] if isinstance(given["for"], str) else given["for"]
        found: list[str] | None = checked(problems, (*place, "for"), listed, list[str], "'for' of keep")
        kinds = frozenset(found or ())
        if found is not None and (not kinds or kinds - ALL_KINDS):
            problems.add((*place, "for"), "'for' of keep is one or more of text, image, video, pdf")
    if expression is None:
        return None
    return RuleEntry(name, expression, kinds, "any" if conditions[0] == "any" else "all", (*place, conditions[0]), line)


def _step(problems: Problems, place: Place, inside: Place, op: str, params: Any, resolution: Resolution) -> StepEntry | None:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", op):
        problems.add(place, f"{op!r} is no name of a step")
        return None
    try:
        step = find_step(op)
    except RecipeError as error:
        known = [m.name for m in pkgutil.iter_modules(curation.__path__)]
        hint = did_you_mean(op, [*known, "keep"]) if "." not in op else ""
        problems.add(place, f"{error}{hint if 'did you mean' in hint else ''}")
        return None
    what_fields, how_fields = {f.name for f in fields(step.what)}, {f.name for f in fields(step.how)}
    common = (*COMMON, "rule") if step.shape == "global" and step.implied is not None else COMMON
    before = len(problems.found)
    given = mapping(problems, inside, params, what_fields | how_fields | set(common), f"step {op!r}")
    if given is None:
        return None
    alias: str | None = checked(problems, (*inside, "as"), given["as"], str, f"'as' of {op}") if "as" in given else None
    if alias is not None and not _ALIAS.fullmatch(alias):
        problems.add((*inside, "as"), f"'as' of {op} is made of a-z, 0-9 and '_', begins with a letter, at most 63")
    rule = checked(problems, (*inside, "rule"), given.get("rule", True), bool, f"'rule' of {op}")
    max_errors = _max_errors(problems, (*inside, "max_errors"), given.get("max_errors"), op)
    own = expanded(problems, inside, {k: v for k, v in given.items() if k not in common}, resolution.variable)
    what = checked(problems, inside, {k: v for k, v in own.items() if k in what_fields}, step.what, f"step {op!r}")
    how = checked(problems, inside, {k: v for k, v in own.items() if k in how_fields and k not in what_fields}, step.how, f"step {op!r}")
    _check_how(problems, inside, how, op)
    if len(problems.found) > before:
        return None
    try:
        models: tuple[Model, ...] = ()
        if resolution.digests is None:
            if step.check is not None:
                step.check(what)
            what = pinned(step, what, how, resolution.pins)
            models = tuple(step.models(what)) if step.models is not None else ()
        columns = tuple(step.columns(what))
    except (ValueError, FoveaError) as error:
        problems.add(_named(inside, str(error), what_fields), f"step {op!r}: {error}")
        return None
    prefix = column_prefix(step, alias)
    final = tuple(replace(c, name=prefix + c.name, kinds=c.kinds & step.applies) for c in columns)
    line = problems.document.where(inside)[1]
    served = step.served is not None and step.served(how)
    stored = tuple(c.name for c in columns)
    return StepEntry(alias or op, op, step, what, how, prefix, final, stored, max_errors, bool(rule), inside, line, models, served)


def _named(place: Place, text: str, names: set[str]) -> Place:
    """The place of the field that a message begins with, as `phash_radius: 99 is …` does; else the step's."""
    word = re.match(r"\w+", text)
    return (*place, word[0]) if word and word[0] in names else place


def _max_errors(problems: Problems, place: Place, value: Any, op: str) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (isinstance(value, float) and value >= 1):
        problems.add(place, f"'max_errors' of {op} is a number of samples (100) or a share below 1 (0.05), not {shown(value)}")
        return None
    return value


def _check_how(problems: Problems, place: Place, how: Any, op: str) -> None:
    for name, least in (("batch", 1), ("gpus", 0), ("memory", 0), ("actors", 0)):
        value = getattr(how, name, None)
        if isinstance(value, int | float) and value < least:
            problems.add((*place, name), f"{name!r} of {op} is at least {least}, not {value}")
