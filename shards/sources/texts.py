"""From a record's fields to a sample's texts: which field is the caption, the transcription, the conversation."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shards.errors import SourceError
from shards.paths import is_unicode
from shards.sample import Texts
from shards.sources.spec import ROLES, SourceSpec

MEND = "name another field in the source's `fields`, or switch the role off with null"
DEFAULTS = {role: role for role in ROLES}
_LATEST = 1e9  # seconds
NESTING = 64  # levels of a record; writers of JSON further down recurse
SPEAKERS = {"user": "human", "assistant": "gpt", "human": "human", "gpt": "gpt", "system": "system"}
SURROGATES = re.compile("[\ud800-\udfff]")


def parse_json(data: bytes, where: str) -> Any:
    """JSON as RFC 8259 has it (no NaN). Raises SourceError that names `where`, also for UTF-8 and nesting that cannot be read."""
    try:
        value = JSON.decode(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise SourceError(f"{where}: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{where}: no UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise SourceError(f"{where}: no JSON: {error}") from error
    if data.count(b"[") + data.count(b"{") > NESTING and _depth(value, NESTING) > NESTING:
        raise SourceError(f"{where}: nested too deeply")
    return value


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 text without a byte order mark and without white space at its ends. Raises SourceError."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise SourceError(f"{where}: no UTF-8 at byte {error.start}") from error


def look_up(record: Mapping[str, Any], path: str) -> Any:
    """The field at `path`: a key of the record itself, else "a.b" into objects; None where it is absent."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def beside_medium(record: Mapping[str, Any]) -> dict[str, str]:
    """The roles, by default, of a record made of the .txt (field "txt") and the .json beside a medium: the .txt is the caption."""
    return {**DEFAULTS, "caption": "txt"} if "txt" in record else DEFAULTS


def role_fields(spec: SourceSpec, defaults: Mapping[str, str]) -> dict[str, str]:
    """role -> field: the spec's own, then the defaults, except a default whose field the spec gave to another role. A field "text" means
    many things: it is running text by default only where the spec names no role of a text at all."""
    taken = {f for f in spec.fields.values() if f is not None}
    chosen = {role: f for role, f in spec.fields.items() if f is not None}
    named = any(role in spec.fields for role in ROLES)
    for role, name in defaults.items():
        if role not in spec.fields and name not in taken and not (role == "text" and named):
            chosen[role] = name
    return chosen


def texts_of(record: Mapping[str, Any], fields: Mapping[str, str], where: str, drop: Sequence[str] = ()) -> Texts:
    """The texts of a record; `meta` is every field that no role and no entry of `drop` took. Raises SourceError for a role whose value
    is no text (a number, an object) or holds lone surrogates."""
    values = {role: look_up(record, fields[role]) for role in ROLES if role in fields}
    used = {fields[role] for role in values} | set(drop)
    return Texts(
        caption=_text(values.get("caption"), fields.get("caption", ""), where),
        transcription=_text(values.get("transcription"), fields.get("transcription", ""), where),
        conversations=_conversations(values.get("conversations"), fields.get("conversations", ""), where),
        text=_text(values.get("text"), fields.get("text", ""), where),
        meta={clean(k): clean(v) for k, v in record.items() if k not in used},
    )


def clean(value: Any) -> Any:
    """A value as JSON can hold it: lone surrogates become U+FFFD, NaN null, infinities and dates text, bytes their count."""
    if isinstance(value, str):
        return value if value.isascii() else SURROGATES.sub("\ufffd", value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {clean(str(k)): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)


def _text(value: Any, name: str, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise SourceError(f"{where}: field {name!r} is {_kind(value)}, not text; {MEND}")
    if not is_unicode(value):
        raise SourceError(f"{where}: field {name!r} holds a lone surrogate, which is no Unicode text")
    return value


def _conversations(value: Any, name: str, where: str) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = parse_json(value.encode("utf-8", "surrogatepass"), f"{where}: field {name!r}")
    if isinstance(value, Mapping):
        value = _rows(value)  # a list of objects as Hugging Face's Sequence stores it: an object of lists
    if not isinstance(value, (list, tuple)):
        raise SourceError(f"{where}: field {name!r} is {_kind(value)}, not a list of messages; {MEND}")
    messages: list[Mapping[str, Any]] = []
    for n, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise SourceError(f"{where}: message {n} of {name!r} is {_kind(message)}, not an object")
        pair = [("human", message.get("user")), ("gpt", message.get("assistant"))]
        if all(isinstance(said, str) for _, said in pair):
            messages += [{"from": speaker, "value": _text(said, f"{name}[{n}]", where) or ""} for speaker, said in pair]
            continue
        speaker = message.get("from", message.get("role"))
        said = _text(_joined(message.get("value", message.get("content"))), f"{name}[{n}].value", where)
        if not isinstance(speaker, str) or speaker not in SPEAKERS or said is None:
            raise SourceError(f"{where}: message {n} of {name!r} needs 'from' (human, gpt, system) and 'value'")
        messages.append({"from": SPEAKERS[speaker], "value": said} | _timed(message.get("time")))
    return tuple(messages)


def _timed(seconds: Any) -> dict[str, float]:
    """When a message is said in its video; what is no number says nothing."""
    told = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and abs(seconds) <= _LATEST
    return {"time": float(seconds)} if told else {}


def _rows(columns: Mapping[str, Any]) -> Any:
    """An object of equally long lists as a list of objects; anything else as it is."""
    lists = [v for v in columns.values() if isinstance(v, (list, tuple))]
    if not columns or len(lists) < len(columns) or len({len(v) for v in lists}) > 1:
        return columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _joined(content: Any) -> Any:
    """What a message says where it is a list of parts {type: text, text} and {type: image}: a text with tags; anything else as it is."""
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        return content
    said = []
    for part in content:
        kind = part.get("type")
        if kind not in ("text", "image", "video"):
            return content
        said.append(f"<{kind}>" if kind != "text" else part.get("text"))
    return "".join(said) if all(isinstance(text, str) for text in said) else content


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", dict: "an object", list: "a list"}
    return names.get(type(value), type(value).__name__)


def _depth(value: Any, most: int) -> int:
    """Levels of a value; stops counting beyond `most`."""
    level, inside = 0, [value]
    while inside and level <= most:
        level += 1
        inside = [v for c in inside if isinstance(c, (dict, list)) for v in (c.values() if isinstance(c, dict) else c)]
    return level


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


JSON = json.JSONDecoder(parse_constant=_refuse)
