"""What a record says of a chart: its content as text, or questions and answers about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards.errors import SampleError


@dataclass(frozen=True, slots=True)
class Chart:
    """text: its content, "" where it is not given. questions: (question, answer) pairs."""

    text: str = ""
    questions: tuple[tuple[str, str], ...] = ()


def record_chart(value: Any, field: str) -> Chart | None:
    """A record's chart annotation: `true`, a text, or a list of {question, answer}; None where it says nothing or `false`.

    Raises SampleError for anything else.
    """
    if value is None or value is False or value == "" or value == []:
        return None
    if value is True:
        return Chart()
    if isinstance(value, str):
        return Chart(text=value.strip())
    if not isinstance(value, (list, tuple)):
        raise SampleError(f"{field}: a chart is true, a text or a list of {{question, answer}}; found {type(value).__name__}")
    pairs: list[tuple[str, str]] = []
    for place, entry in enumerate(value):
        pair = (entry.get("question"), entry.get("answer")) if isinstance(entry, Mapping) else (None, None)
        if not all(isinstance(said, str) and said.strip() for said in pair):
            raise SampleError(f"{field}[{place}]: `question` and `answer` must be texts, this is {entry!r}"[:400])
        pairs.append((str(pair[0]).strip(), str(pair[1]).strip()))
    return Chart(questions=tuple(pairs))
