"""YAML read safely, with the line of every key and value, so that an error can say where.

Scalars are those of YAML 1.2's core schema (`on`, `yes` and `1:30` are strings; `1e-3` is a number), with underscores allowed in numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from shards.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_NODES = 100_000  # scalars, lists and mappings after aliases are followed
MAX_DEPTH = 50

Place = tuple[str | int, ...]  # keys and indices from the root

_INT = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9](?:_?[0-9])*)?(?:\.[0-9]+|[0-9]\.)?(?:[eE][-+]?[0-9]+)?")
_WORDS = {"null": None, "Null": None, "NULL": None, "~": None, "": None} | {
    w: v for v, words in ((True, ("true", "True", "TRUE")), (False, ("false", "False", "FALSE"))) for w in words
}


@dataclass(frozen=True, slots=True)
class Document:
    """value: mappings, lists, str, int, float, bool, None. lines: place -> (file, line from 1); a key's line for what a mapping holds."""

    value: Any
    lines: dict[Place, tuple[str, int]]

    def where(self, place: Place) -> tuple[str, int]:
        """File and line of a place, or of the nearest thing around it."""
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]


def read_bytes(path: str | Path) -> bytes:
    """The file, or its first MAX_BYTES + 1 bytes, which `parse_yaml` refuses. Raises RecipeError for a file that cannot be read."""
    try:
        with Path(path).open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error


def parse_yaml(data: bytes, file: str) -> Document:
    """One YAML document with string keys. Raises RecipeError for tags, duplicate keys, merge keys, recursion, bombs and wrong syntax."""
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{file}: larger than {MAX_BYTES:,} bytes; that is no recipe")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}:{data[: error.start].count(10) + 1}: not UTF-8") from error
    try:
        return _Composer(file, yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{file}{line}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}: not YAML: {error}".splitlines()[0]) from error


class _Composer:
    """Builds values from the parser's events, each at most as often as MAX_NODES allows."""

    def __init__(self, file: str, events: Iterator[yaml.Event]):
        self.file = file
        self.events = events
        self.anchors: dict[str, tuple[Any, list[tuple[Place, int]], Place]] = {}
        self.open: set[str] = set()
        self.places: list[tuple[Place, int]] = []

    def document(self) -> Document:
        next(self.events)  # the stream's start
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return Document(None, {(): (self.file, 1)})
        value = self.node(next(self.events), ())
        next(self.events)  # the document's end
        last = next(self.events)
        if not isinstance(last, yaml.StreamEndEvent):
            self.refuse(last, "a second document (---): one file, one recipe")
        return Document(value, {place: (self.file, line) for place, line in reversed(self.places)})

    def refuse(self, event: yaml.Event, text: str) -> NoReturn:
        raise RecipeError(f"{self.file}:{_line(event)}: {text}")

    def note(self, place: Place, event: yaml.Event, line: int | None = None) -> None:
        if len(self.places) >= MAX_NODES:
            self.refuse(event, f"more than {MAX_NODES:,} values, aliases followed")
        self.places.append((place, _line(event) if line is None else line))

    def node(self, event: yaml.Event, place: Place) -> Any:
        if len(place) > MAX_DEPTH:
            self.refuse(event, f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, place)
        anchor, first = getattr(event, "anchor", None), len(self.places)
        if anchor:
            if anchor in self.anchors or anchor in self.open:
                self.refuse(event, f"anchor &{anchor} is defined twice")
            self.open.add(anchor)
        self.note(place, event)
        value = self.content(event, place)
        if anchor:
            self.open.discard(anchor)
            self.anchors[anchor] = (value, self.places[first:], place)
        return value

    def content(self, event: yaml.Event, place: Place) -> Any:
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            self.refuse(event, f"tag {tag}: tags are not allowed")
        if isinstance(event, yaml.ScalarEvent):
            return plain(event.value) if event.implicit[0] else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(inner, (*place, len(items))))
            return items
        found: dict[str, Any] = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent) or key.tag not in (None, "!"):
                self.refuse(key, "a key that is no plain text")
            if key.value == "<<":
                self.refuse(key, "merge keys (<<) are not allowed; write the fields out")
            if key.value in found:
                self.refuse(key, f"the key {key.value!r} is there twice")
            inside = (*place, key.value)
            self.note(inside, key)
            found[key.value] = self.node(next(self.events), inside)
        return found

    def alias(self, event: yaml.AliasEvent, place: Place) -> Any:
        assert event.anchor is not None
        if event.anchor in self.open:
            self.refuse(event, f"*{event.anchor} contains itself")
        if event.anchor not in self.anchors:
            self.refuse(event, f"there is no anchor &{event.anchor} before this")
        value, places, origin = self.anchors[event.anchor]
        for inner, line in places:
            if len(place) + len(inner) - len(origin) > MAX_DEPTH:
                self.refuse(event, f"nested more than {MAX_DEPTH} deep")
            self.note((*place, *inner[len(origin) :]), event, line)
        return value


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1


def plain(text: str) -> Any:
    """The value of a scalar without quotes: YAML 1.2's core schema, underscores allowed in numbers."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) and len(text) <= 40:
        return int(text.replace("_", ""), 0)
    if _FLOAT.fullmatch(text) and re.search(r"[0-9].*[.eE]|[.][0-9]", text) and len(text) <= 40:
        return float(text.replace("_", ""))
    return text
