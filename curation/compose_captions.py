"""Where compose takes a caption from: the columns that its What lists for a task, the first that holds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shards.errors import LimitError
from shards.sample import Texts

OWN = ("caption", "transcription", "text")  # the names, among columns, of the sample's own texts
CAPTIONED = ("short_caption", "detailed_caption", "chart", "ocr", "video", "multi_image")
Captions = Mapping[str, Sequence[str]]


def sources(captions: Captions, task: str) -> Sequence[str]:
    """The columns that a task's caption may come from. What is not listed: the sample's own caption; `ocr` and `chart` take what
    `short_caption` takes; `detailed_caption` has none."""
    if task in captions:
        return captions[task]
    if task in ("ocr", "chart"):
        return sources(captions, "short_caption")
    return () if task == "detailed_caption" else ("caption",)


def caption_columns(captions: Captions, tasks: Sequence[str]) -> list[str]:
    """The columns of other steps that these tasks' captions may come from, each once."""
    return list(dict.fromkeys(name for task in CAPTIONED if task in tasks for name in sources(captions, task) if name not in OWN))


def caption_of_picture(captions: Captions, task: str, texts: Texts, columns: Mapping[str, Any], number: int, alone: bool, most: int) -> str:
    """The caption of medium `number`, "" where none is known. A column of one value for each medium gives that medium's; the sample's own
    texts and a column of one value for the sample speak of it only where it is `alone`. Raises LimitError beyond `most` characters."""
    for name in sources(captions, task):
        value = getattr(texts, name) if name in OWN else columns.get(name)
        if isinstance(value, (list, tuple)):
            value = value[number] if number < len(value) else None
        elif not alone:
            value = None
        if text := said(value):
            return _bounded(text, name, most)
    return ""


def caption_of_sample(captions: Captions, task: str, texts: Texts, columns: Mapping[str, Any], most: int) -> str:
    """The caption of all media together, "" where none is known: a medium's own speaks of them only where it is the only one."""
    for name in sources(captions, task):
        value = getattr(texts, name) if name in OWN else columns.get(name)
        if isinstance(value, (list, tuple)):
            value = value[0] if len(value) == 1 else None
        if text := said(value):
            return _bounded(text, name, most)
    return ""


def said(text: str | None) -> str:
    return text.strip() if text else ""


def check_captions(captions: Captions) -> None:
    """Raises ValueError for a task that takes no caption, and for an empty list."""
    for task, columns in captions.items():
        if task not in CAPTIONED:
            raise ValueError(f"captions: {task!r} takes none; captions are for {', '.join(CAPTIONED)}")
        if not columns or not all(columns):
            raise ValueError(f"captions: {task}: list the columns to take it from, 'caption' for the sample's own")


def _bounded(text: str, name: str, most: int) -> str:
    if len(text) > most:
        raise LimitError(f"the caption in {name!r} has {len(text):,} characters, more than max_caption_chars: {most:,}")
    return text
