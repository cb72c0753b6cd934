"""A recipe: the YAML of a curation run, checked from end to end before anything starts. docs/recipe.md is its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pipeline.sections as sections
from curation.rules import rule_digest
from pipeline.blur import Blur, blur_of
from pipeline.fields import Problems, check_secrets, checked, did_you_mean, mapping
from pipeline.operations import RuleOp, StepOp, operations
from pipeline.overrides import merged, to_text
from pipeline.pins import Pins, read_pins, write_pins
from pipeline.resolution import Resolution, read_resolution, write_resolution
from pipeline.sections import WriteSpec
from pipeline.yamlpos import Document, parse_yaml, read_bytes
from shards.errors import RecipeError
from shards.media import Limits
from shards.sample import digest_of
from shards.sources import SourceSpec
from shards.store import Store, open_store

__all__ = ["Phase", "Recipe", "RuleOp", "StepOp", "WriteSpec", "keep_in_run", "load_recipe", "load_run_recipe", "phases", "recipe_summary"]

KEYS = ("name", "sources", "limits", "steps", "write", "split")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe that can run.

    path   the file it was read from; overrides: those laid over it.
    text   its YAML as it was read, or as the overrides made it.
    until  the last operator, where it was cut.
    pins   the commits of its hub models (pipeline/pins.py); variables: the environment variables that it names and that were set.
    """

    name: str
    path: str
    sources: tuple[SourceSpec, ...]
    limits: Limits
    ops: tuple[StepOp | RuleOp, ...]
    write: WriteSpec
    split: Mapping[str, float]
    text: bytes = b""
    until: str | None = None
    overrides: tuple[str, ...] = ()
    pins: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Identity of all that decides what a run over the same files gives: not where sources lie, not How, not `max_errors`."""
        sources = [[s.name, s.format, s.where, dict(s.fields), s.explode, dict(s.options)] for s in self.sources]
        ops = [["step", op.name, op.prefix, op.digest] if isinstance(op, StepOp) else ["rule", rule_digest(op.rule)] for op in self.ops]
        ends: list[Any] = [self.write.max_bytes, self.write.max_samples]
        if self.blur is not None:
            ends.append(self.blur.key)
        return digest_of("recipe", sources, asdict(self.limits), ops, ends, dict(self.split))

    @property
    def blur(self) -> Blur | None:
        return blur_of(self.ops, self.write.blur) if self.write.blur else None


@dataclass(frozen=True, slots=True)
class Phase:
    """Annotators and rules, and the global step or splitter that ends them (None in the last phase). Its implied rule opens the next."""

    ops: tuple[StepOp | RuleOp, ...]
    border: StepOp | None


def load_recipe(
    path: str | Path, until: str | None = None, *, overrides: Sequence[str | Path] = (), run: str | Path | None = None
) -> Recipe:
    """The recipe in a file, or the one of that name that comes with the package. Raises RecipeError with each problem's line.

    until      name of the last step or rule to take; those after it are not even checked (a tokenizer may not be there yet).
    overrides  files laid over it, later ones last (docs/recipe.md).
    run        directory of the run it is meant for, which need not exist: hub models without a commit are pinned, as the run pinned them
               before, else as the local cache or the hub says now. Without it nothing is pinned and nothing is asked.
    """
    file = str(find_recipe(path))
    data = read_bytes(file)
    document, texts = parse_yaml(data, file), [str(p) for p in overrides]
    if texts:
        document = merged(document, [parse_yaml(read_bytes(p), p) for p in texts])
        data = to_text(document.value, [file, *texts])
    pins = Pins(read_pins(open_store(str(run))), look=True) if run is not None else Pins()
    return _recipe(document, file, look=True, text=data, until=until, resolution=Resolution(pins), overrides=tuple(texts))


def load_run_recipe(store: Store) -> Recipe:
    """The recipe that a run was last curated with, as its run directory keeps it. Nothing that it names is looked at: sources, models,
    environment variables. Only a run that does not keep what they stood for (pipeline/resolution.py) has all but its sources looked at.

    Raises RecipeError, LedgerError.
    """
    if not store.exists("recipe.yaml"):
        raise RecipeError(f"{store.url()}: there is no recipe.yaml; no run was started here")
    path = store.url("recipe.yaml")
    data = store.read("recipe.yaml")
    until = store.read("until").decode() if store.exists("until") else None
    resolution = read_resolution(store, data, until)
    return _recipe(parse_yaml(data, path), path, look=False, text=data, until=until, resolution=resolution)


def keep_in_run(store: Store, recipe: Recipe) -> None:
    """Put the recipe, its pins and what else it was resolved to into its run directory, for `load_run_recipe`."""
    write_pins(store, recipe.pins)
    store.put_replace("recipe.yaml", recipe.text)
    if recipe.until is not None:
        store.put_replace("until", recipe.until.encode())
    else:
        store.delete("until")
    steps = {op.name: (op.op, op.step, op.digest) for op in recipe.ops if isinstance(op, StepOp)}
    write_resolution(store, recipe.text, recipe.until, recipe.variables, steps)


def find_recipe(path: str | Path) -> Path:
    """The file that `path` names: itself, or configs/curation/<path>.yaml. Raises RecipeError."""
    file = Path(path)
    if file.is_file():
        return file
    folder = Path(str(resources.files("configs"))) / "curation"
    named = folder / f"{path}.yaml"
    if named.parent == folder and named.is_file():
        return named
    known = [f.stem for f in folder.glob("*.yaml")]
    raise RecipeError(f"there is no recipe {str(path)!r}: neither a file nor one that comes with fovea{did_you_mean(str(path), known)}")


def phases(recipe: Recipe) -> tuple[Phase, ...]:
    """The recipe cut at its global steps and splitters."""
    found: list[Phase] = []
    ops: list[StepOp | RuleOp] = []
    for op in recipe.ops:
        if isinstance(op, StepOp) and op.step.shape != "annotator":
            found.append(Phase(tuple(ops), op))
            ops = []
        else:
            ops.append(op)
    return (*found, Phase(tuple(ops), None))


def recipe_summary(recipe: Recipe) -> list[str]:
    """What a recipe does, a line for each source and operator, for people."""
    laid_over = f" with {', '.join(recipe.overrides)}" if recipe.overrides else ""
    lines = [f"{recipe.name}: {recipe.path}{laid_over}, digest {recipe.digest}"]
    lines += [f"source {s.name}: {s.format} {s.path}" + (f" where {s.where}" if s.where else "") for s in recipe.sources]
    for number, phase in enumerate(phases(recipe), 1):
        for op in (*phase.ops, *((phase.border,) if phase.border else ())):
            if isinstance(op, RuleOp):
                more = f" (implied by {op.implied_by})" if op.implied_by else ""
                lines.append(f"phase {number}: rule {op.name}: {op.rule.expression}{more}")
            else:
                lines.append(f"phase {number}: {op.step.shape} {op.name} [{op.digest}] writes {', '.join(c.name for c in op.columns)}")
    shares = "".join(f", {name} {share:g}" for name, share in recipe.split.items())
    lines.append(f"write {recipe.write.path}: shards of ≤ {recipe.write.max_bytes:,} bytes, ≤ {recipe.write.max_samples:,} samples{shares}")
    return lines


def _recipe(
    document: Document, path: str, look: bool, text: bytes, until: str | None, resolution: Resolution, overrides: tuple[str, ...] = ()
) -> Recipe:
    problems = Problems(document)
    if not isinstance(document.value, dict):
        raise RecipeError(f"{path}:1: a recipe is a mapping with name, sources and steps")
    check_secrets(problems)
    problems.raise_any()  # before any other message could repeat a secret
    given = mapping(problems, (), document.value, KEYS, "a recipe") or {}
    for key in ("name", "sources", "steps"):
        if key not in given:
            problems.add((), f"the recipe lacks {key!r}")
    if until is not None and isinstance(given.get("steps"), list):
        given = {**given, "steps": _cut(problems, given["steps"], until)}
    name: str | None = checked(problems, ("name",), given["name"], str, "'name'") if "name" in given else None
    if name is not None and not sections.NAME.fullmatch(name):
        problems.add(("name",), "'name' is letters, digits, '_', '-' and '.', at most 64")
    recipe = Recipe(
        name=name or "",
        path=path,
        sources=sections.sources(problems, given["sources"], look, resolution.variable) if "sources" in given else (),
        limits=sections.limits(problems, given.get("limits")),
        ops=operations(problems, given["steps"], resolution) if "steps" in given else (),
        write=sections.write(problems, given.get("write"), resolution.variable),
        split=sections.split(problems, given.get("split")),
        text=text,
        until=until,
        overrides=overrides,
        pins=resolution.pins.known,
        variables=resolution.variables,
    )
    if recipe.write.blur and recipe.blur is None and until is None and not problems.found:  # a run that is cut writes nothing
        problems.add(("write", "blur"), f"'blur' of write: {recipe.write.blur!r} is no step that finds boxes; name a faces step")
    problems.raise_any()
    return recipe


def _cut(problems: Problems, steps: list[Any], until: str) -> list[Any]:
    names = [_entry_name(entry) for entry in steps]
    if until in names:
        return steps[: len(names) - names[::-1].index(until)]
    problems.add(("steps",), f"there is no step or rule {until!r} to stop after{did_you_mean(until, [n for n in names if n])}")
    return steps


def _entry_name(entry: Any) -> str | None:
    """The name an entry of `steps` gives itself; None for a rule without one, and for what is no entry."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, dict) or len(entry) != 1:
        return None
    ((op, params),) = entry.items()
    named = params.get("name" if op == "keep" else "as") if isinstance(params, dict) else None
    return str(named) if named is not None else None if op == "keep" else op
