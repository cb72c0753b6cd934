"""The sample's own texts among the columns that a step may be told to read: they lie in the sample, not in a column of the work table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from curation.view import MediaView

OWN_TEXTS = ("caption", "transcription", "text")  # as rules name them


def read_names(names: Iterable[str]) -> list[str]:
    """What a step declares to read for these columns, each once: "texts" stands for the sample's own."""
    return list(dict.fromkeys("texts" if name in OWN_TEXTS else name for name in names))


def value_of(view: MediaView, name: str) -> Any:
    """The sample's own text of that name, else what an earlier step wrote; None where there is none."""
    return getattr(view.sample.texts, name) if name in OWN_TEXTS else view.columns[name]
