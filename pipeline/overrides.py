"""A recipe with override files laid over it: other sources, limits, thresholds or parameters of its steps, without a second recipe.

Every value keeps the file and line it came from, so that a problem in the merged recipe says where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.fields import Problems, check_secrets, did_you_mean, mapping, shown
from pipeline.yamlpos import Document, Place, plain
from shards.errors import RecipeError

KEYS = ("name", "sources", "limits", "steps", "rules", "write", "split")
_CONDITIONS = ("if", "all", "any")


def merged(base: Document, overrides: Sequence[Document]) -> Document:
    """The recipe with each override laid over it, later ones last. Raises RecipeError with file and line of what is wrong in one."""
    for override in overrides:
        base = _merge(base, override)
    return base


def to_text(value: Any, files: Sequence[str]) -> bytes:
    """A merged recipe as YAML that `parse_yaml` reads back to the same value. files: what it was made of, told in its first line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return f"# {' with '.join(Path(file).name for file in files)}\n{text}".encode()


def names_of(steps: Sequence[Any]) -> list[str | None]:
    """The name of each entry of `steps`: its `as` or `name`, a step's operator, keep, keep_2 … for rules without one; None for no entry."""
    given = [_given_name(entry) for entry in steps]
    taken = {name for name in given if name is not None}
    found: list[str | None] = []
    unnamed = 0
    for entry, name in zip(steps, given, strict=True):
        while name is None and _operator(entry) == "keep":
            unnamed += 1
            name = "keep" if unnamed == 1 else f"keep_{unnamed}"
            if name in taken:
                name = None
        found.append(name)
    return found


def _merge(base: Document, override: Document) -> Document:
    problems = Problems(override)
    if not isinstance(override.value, dict):
        raise RecipeError(f"{override.where(())[0]}:1: an override is a mapping of what it changes: {', '.join(KEYS)}")
    check_secrets(problems)
    problems.raise_any()  # before any other message could repeat a secret
    given = mapping(problems, (), override.value, KEYS, "an override") or {}
    if not isinstance(base.value, dict):
        return base  # its own problem is told when it is checked
    work = _Merge(dict(base.value), dict(base.lines), override, problems)
    for key, value in given.items():
        if key == "steps":
            work.steps(value)
        elif key == "rules":
            work.rules(value)
        elif key in ("limits", "write", "split") and isinstance(value, dict) and isinstance(work.value.get(key), dict):
            work.value[key] = work.inside((key,), (key,), work.value[key], value, deep=True)
        else:
            work.put(work.value, (key,), (key,), value)
    problems.raise_any()
    return Document(work.value, work.lines)


class _Merge:
    """One override being laid over one recipe. `value` and `lines` grow into the result."""

    def __init__(self, value: dict[str, Any], lines: dict[Place, tuple[str, int]], override: Document, problems: Problems):
        self.value, self.lines, self.override, self.problems = value, lines, override, problems

    def put(self, holder: dict[str, Any], place: Place, source: Place, value: Any) -> None:
        """holder[last of place] = value, null removes it; the lines follow."""
        key = str(place[-1])
        for inner in [p for p in self.lines if p[: len(place)] == place]:
            del self.lines[inner]
        if value is None:
            holder.pop(key, None)
            return
        holder[key] = value
        for inner, line in self.override.lines.items():
            if inner[: len(source)] == source:
                self.lines[(*place, *inner[len(source) :])] = line

    def inside(self, place: Place, source: Place, old: dict[str, Any], new: dict[str, Any], deep: bool) -> dict[str, Any]:
        """`old` with the keys of `new`; `deep`: mappings in it are merged too, else replaced."""
        result = dict(old)
        for key, value in new.items():
            if deep and isinstance(value, dict) and isinstance(old.get(key), dict):
                result[key] = self.inside((*place, key), (*source, key), old[key], value, deep)
            else:
                self.put(result, (*place, key), (*source, key), value)
        return result

    def entries(self, section: str, value: Any) -> tuple[list[Any], dict[str, Any]] | None:
        """The recipe's steps, and what the section of the override says by name; None where either is not to be worked with."""
        if value is None:
            return None
        if not isinstance(value, dict):
            self.problems.add((section,), f"'{section}' of an override is a mapping of names, not {shown(value)}")
            return None
        steps = self.value.get("steps")
        return (list(steps), value) if isinstance(steps, list) else None

    def steps(self, value: Any) -> None:
        found = self.entries("steps", value)
        if found is None:
            return
        steps, changes = found
        names = names_of(steps)
        known = [name for name, entry in zip(names, steps, strict=True) if name is not None and _operator(entry) != "keep"]
        for name, parameters in changes.items():
            source: Place = ("steps", name)
            if name not in known:
                told = "; it is a rule: change it under `rules`" if name in names else did_you_mean(name, known)
                self.problems.add(source, f"the recipe has no step {name!r}{told}")
                continue
            if not isinstance(parameters, dict):
                self.problems.add(source, f"the parameters of {name!r} are a mapping (null removes one), not {shown(parameters)}")
                continue
            index = next(i for i, n in enumerate(names) if n == name and _operator(steps[i]) != "keep")
            operator = _operator(steps[index])
            assert operator is not None
            place: Place = ("steps", index, operator)
            old = steps[index][operator] if isinstance(steps[index], dict) else None
            if old is None or isinstance(old, dict):
                self.lines.setdefault(place, self.lines[("steps", index)])
                steps[index] = {operator: self.inside(place, source, old or {}, parameters, deep=False)}
        self.value["steps"] = steps

    def rules(self, value: Any) -> None:
        found = self.entries("rules", value)
        if found is None:
            return
        steps, changes = found
        names = names_of(steps)
        known = [name for name, entry in zip(names, steps, strict=True) if name is not None and _operator(entry) == "keep"]
        for name, expression in changes.items():
            source: Place = ("rules", name)
            if name not in known:
                told = "; it is a step: change its parameters under `steps`" if name in names else did_you_mean(name, known)
                self.problems.add(source, f"the recipe has no rule {name!r}{told}")
                continue
            if not isinstance(expression, str):
                self.problems.add(source, f"the rule {name!r} takes an expression, not {shown(expression)}")
                continue
            index = names.index(name)
            entry = dict(steps[index])
            conditions = [key for key in _CONDITIONS if key in entry["keep"]] if isinstance(entry["keep"], dict) else []
            if len(conditions) == 1:
                entry["keep"] = dict(entry["keep"])
                self.put(entry["keep"], ("steps", index, "keep", conditions[0]), source, expression)
            elif isinstance(entry["keep"], str):
                self.put(entry, ("steps", index, "keep"), source, expression)
            steps[index] = entry
        self.value["steps"] = steps


def _operator(entry: Any) -> str | None:
    if isinstance(entry, str):
        return entry
    return str(next(iter(entry))) if isinstance(entry, dict) and len(entry) == 1 else None


def _given_name(entry: Any) -> str | None:
    """The name an entry gives itself; None for a rule without one, and for what is no entry."""
    operator = _operator(entry)
    parameters = entry[operator] if isinstance(entry, dict) and operator is not None else None
    named = parameters.get("name" if operator == "keep" else "as") if isinstance(parameters, dict) else None
    return str(named) if named is not None else None if operator == "keep" else operator


class _Dumper(yaml.SafeDumper):
    """Quotes every text that our reader of YAML 1.2 would take for something else; PyYAML knows the rules of 1.1 only."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    lines = value.split("\n")
    simple = isinstance(plain(value), str) and all(line.isprintable() for line in lines)
    style = '"' if not simple else "|" if len(lines) > 1 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
