"""The answers of a step: checked against what it declared, then turned into stored rows and columns of the work table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from curation.program import BoundStep
from curation.rows import MORE, fingerprint, row_schema
from curation.step import Column, Result, Row
from curation.view import MediaView, Member, SampleView
from shards.errors import DecodeError, SampleError, StepBug

Answers = Mapping[int, Sequence[Result | None]]  # by row of the chunk: one for each medium (None: the step does not apply to it), or one


def checked(bound: BoundStep, inputs: Sequence[MediaView | SampleView], results: Sequence[Result]) -> list[Result]:
    """Exactly one answer for each input, with exactly the declared columns and types: anything else is a bug of the step.

    Text that Arrow cannot hold (a lone surrogate handed through from the source) is the sample's fault.
    """
    if len(results) != len(inputs):
        raise bug(bound, inputs, f"gave {len(results)} answers to {len(inputs)} inputs")
    names = {column.name for column in bound.columns}
    for result in results:
        if not isinstance(result, SampleError) and set(result) != names:
            raise bug(bound, inputs, f"wrote columns {sorted(result)}, declared are {sorted(names)}")
    for column in bound.columns:
        try:
            pa.array([result[column.name] for result in results if not isinstance(result, SampleError)], type=column.type)
        except UnicodeEncodeError:
            results = [_unicode_or_error(result, column) for result in results]
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise bug(bound, inputs, f"column {column.name!r} is declared {column.type}: {error}") from error
    return list(results)


def _unicode_or_error(result: Result, column: Column) -> Result:
    if isinstance(result, SampleError):
        return result
    try:
        pa.array([result[column.name]], type=column.type)
    except UnicodeEncodeError as error:
        return DecodeError(f"column {column.name!r} holds text that is no valid Unicode ({error.reason})")
    return result


def bug(bound: BoundStep, inputs: Sequence[MediaView | SampleView], what: str) -> StepBug:
    return StepBug(bound.call.name, list(dict.fromkeys(view.sample.uid for view in inputs)), what)


def error_of(answers: Sequence[Result | None]) -> str | None:
    for number, answer in enumerate(answers):
        if isinstance(answer, SampleError):
            return message(answer, number, len(answers))
    return None


def message(error: SampleError, number: int, count: int) -> str:
    """`<kind>: <message>` as error rows hold it, valid Unicode; which medium it was when there are several."""
    place = f" [medium {number}]" if count > 1 else ""
    return f"{error.kind}: {error}{place}".encode("utf-8", "replace").decode()


def stored_rows(bound: BoundStep, wide: bool, members: Sequence[Member], answers: Answers, errors: dict[int, str]) -> pa.Table:
    schema = row_schema(bound.step, bound.what, wide)
    names = [column.name for column in bound.columns if column.wide == wide]
    lines: list[dict[str, Any]] = []
    for member in members:
        line: dict[str, Any] = {"uid": member.view.sample.uid, "fp": fingerprint(bound.call.roots, member.content, member.text_fp)}
        if member.row in errors:
            line["error"] = errors[member.row]
        else:
            first, *rest = answers[member.row]
            line |= _only(first, names) or {}
            line[MORE] = [_only(answer, names) for answer in rest] or None
        lines.append(line)
    return pa.Table.from_arrays([pa.array([line.get(f.name) for line in lines], f.type) for f in schema], schema=schema)


def _only(answer: Result | None, names: Sequence[str]) -> Row | None:
    return None if answer is None or isinstance(answer, SampleError) else {name: answer[name] for name in names}


def work_values(bound: BoundStep, name: str, kind: pa.DataType, members: Sequence[Member], answers: Answers) -> pa.Array:
    values = [[(_only(answer, [name]) or {name: None})[name] for answer in answers[member.row]] for member in members]
    return pa.array(values if bound.step.level == "medium" else [value[0] for value in values], kind)
