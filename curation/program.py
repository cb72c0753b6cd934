"""What a fused group does, in order: steps and rules as plain values that travel to the child process as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from curation.rows import stored_columns
from curation.step import Column, How, Step, applying, find_step
from shards.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepCall:
    """One annotator of a group, or the splitter that is a group of its own.

    name    alias or operator: for messages and costs.
    op      operator, for `curation.step.find_step`.
    what    asdict of the step's What. how: of its How.
    digest  identity of the results (`curation.step.step_digest`).
    prefix  final column = prefix + stored column.
    roots   subset of ("media", "texts"): what the step reads, transitively. Decides its fingerprint.
    reads   final names of the columns it reads; it is shown no others.
    """

    name: str
    op: str
    what: dict[str, Any]
    how: dict[str, Any]
    digest: str
    prefix: str
    roots: tuple[str, ...]
    reads: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"type": "step", **asdict(self)}


@dataclass(frozen=True, slots=True)
class RuleCall:
    """One rule of a group: `rule` is what `Rule.to_json` gives."""

    name: str
    rule: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"type": "rule", "name": self.name, "rule": self.rule}


Program = tuple[StepCall | RuleCall, ...]


def call_from_json(value: Mapping[str, Any]) -> StepCall | RuleCall:
    """Inverse of `StepCall.to_json` and `RuleCall.to_json`."""
    fields = {name: item for name, item in value.items() if name != "type"}
    if value["type"] == "rule":
        return RuleCall(**fields)
    return StepCall(**{**fields, "roots": tuple(fields["roots"]), "reads": tuple(fields["reads"])})


@dataclass(frozen=True, slots=True)
class BoundStep:
    """A StepCall with its step found and its parameters built."""

    call: StepCall
    step: Step
    what: Any
    how: How
    columns: tuple[Column, ...]

    @property
    def applies(self) -> frozenset[str]:
        return applying(self.step, self.columns)

    @property
    def has_wide(self) -> bool:
        return any(column.wide for column in self.columns)


def bind(call: StepCall) -> BoundStep:
    """Raises RecipeError for an unknown operator, parameters its dataclasses refuse, or a step that nothing opens."""
    step = find_step(call.op)
    if step.shape == "global" or step.open is None:
        raise RecipeError(f"step {call.name!r}: {call.op} is a {step.shape} and does not open")
    what: Any = _build(step.what, call.what, call.name)
    if step.shape == "splitter" and (step.level != "sample" or step.columns(what)):
        raise RecipeError(f"step {call.name!r}: {call.op} is a splitter, which is of level 'sample' and has no columns")
    return BoundStep(call, step, what, _build(step.how, call.how, call.name), tuple(stored_columns(step, what)))


def _build(kind: type[T], values: Mapping[str, Any], name: str) -> T:
    """The dataclass of JSON values: lists become the tuples and sets that its fields declare."""
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise RecipeError(f"step {name!r}: {error}") from error


@dataclass(slots=True)
class StepCost:
    """What a step did and took.

    calls       samples or media given to the step function, in all tries that ended.
    rows        rows made, errored ones among them. errors: those.
    seconds     wall time inside the step function.
    bytes_read  encoded bytes read for the step, identification included.
    """

    name: str
    calls: int = 0
    rows: int = 0
    errors: int = 0
    seconds: float = 0.0
    bytes_read: int = 0

    def add(self, other: StepCost) -> None:
        self.calls += other.calls
        self.rows += other.rows
        self.errors += other.errors
        self.seconds += other.seconds
        self.bytes_read += other.bytes_read
