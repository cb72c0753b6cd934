"""The fields of a recipe checked one by one: unknown keys, types, secrets, environment variables. Problems gather with their lines."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import TypeAdapter, ValidationError

from pipeline.yamlpos import Document, Place
from shards.errors import RecipeError

T = TypeVar("T")

_SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:api_?key|secret|password|passwd|credentials?|access_?key(?:_id)?|private_?key|(?:auth|access|bearer|api|hf)_?token)$|^token$"
)
_SECRET_VALUE = re.compile(
    r"sk-[\w-]{16,}|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|[Bb]earer\s+[\w.~+/-]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_SECRET_QUERY = re.compile(
    r"awsaccesskeyid|signature|sig|token|key|auth|password|secret|(?:.*[_-])?(?:api|access|subscription|secret)[_-]?(?:key|token)"
    r"|x-(?:amz|goog)-(?:signature|credential|security-token)",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class Problems:
    """What is wrong with a recipe, all of it, each with file and line."""

    def __init__(self, document: Document):
        self.document = document
        self.found: list[tuple[str, int, str]] = []

    def add(self, place: Place, text: str) -> None:
        self.found.append((*self.document.where(place), text))

    def raise_any(self) -> None:
        """Raises RecipeError, a line for each problem in the order of the file."""
        if self.found:
            raise RecipeError("\n".join(f"{file}:{line}: {text}" for file, line, text in sorted(set(self.found), key=lambda p: p[:2])))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or, where nothing is like it, "; there are x, y"."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(c) for c in close)}?"
    return f"; there are {', '.join(names)}" if names else ""


def mapping(problems: Problems, place: Place, value: Any, known: Iterable[str], what: str) -> dict[str, Any] | None:
    """`value` without its unknown keys, which are reported; None (and a problem) if it is no mapping."""
    if not isinstance(value, dict):
        problems.add(place, f"{what} must be a mapping (key: value), not {shown(value)}")
        return None
    allowed = set(known)
    for key in value:
        if key not in allowed:
            problems.add((*place, key), f"unknown key {key!r} in {what}{did_you_mean(key, allowed)}")
    return {key: inner for key, inner in value.items() if key in allowed}


def checked(problems: Problems, place: Place, value: Any, type_: type[T] | Any, what: str) -> T | None:
    """`value` as `type_` (strict: "3" is no number, a list may become a tuple); None and a problem for each fault if it is not."""
    try:
        result: T = TypeAdapter(type_).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        for fault in error.errors():
            inner = tuple(p for p in fault["loc"] if isinstance(p, str | int))
            field = ".".join(map(str, inner))
            if fault["type"] in ("missing", "missing_argument"):
                problems.add(place, f"{what} lacks {field!r}")
            else:
                told = fault["msg"].removeprefix("Value error, ")
                told = told[:1].lower() + told[1:]
                about = f"{field!r} of {what}" if field else what
                input_ = "" if fault["type"] == "value_error" and not inner else f", not {shown(fault['input'])}"
                problems.add((*place, *inner), f"{about}: {told}{input_}")
        return None
    return result


def shown(value: Any) -> str:
    """A value as a message may show it: short, on one line."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def check_secrets(problems: Problems) -> None:
    """Secrets go by name only: inline keys, tokens and URLs with credentials are refused, and never repeated in a message."""
    for place, value in _scalars((), problems.document.value):
        if not isinstance(value, str):
            continue
        key = next((p for p in reversed(place) if isinstance(p, str)), "")
        if key.lower().endswith("_env"):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or _SECRET_VALUE.search(value):
                problems.add(place, f"{key!r} takes the name of an environment variable, not the secret itself")
        elif value and _SECRET_NAME.search(key.lower()):
            problems.add(place, f"{key!r} holds a secret; secrets go by name only: write {key}_env: NAME_OF_A_VARIABLE")
        elif _SECRET_VALUE.search(value):
            problems.add(place, f"{key!r} looks like it holds a secret; secrets go by name only, in a field that ends in _env")
        elif has_credentials(value):
            problems.add(place, f"{key!r} is a URL with credentials in it; take them from the environment of the file system's client")


def has_credentials(text: str) -> bool:
    """Whether a text is a URL with user:password@ or a token in its query."""
    for url in re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s]+", text):
        try:
            parts = urlsplit(url)
        except ValueError:
            continue
        if parts.password or (parts.username and parts.scheme in ("http", "https", "ftp")):
            return True
        if any(_SECRET_QUERY.fullmatch(name) for name, _ in parse_qsl(parts.query)):
            return True
    return False


def _scalars(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _scalars((*place, key), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _scalars((*place, index), inner)
    else:
        yield place, value


def expanded(problems: Problems, place: Place, value: Any, variable: Callable[[str], str | None]) -> Any:
    """`value` with ${NAME} and ${NAME:-default} in its strings replaced; a variable that is not set is a problem, as is one with a secret.

    variable: the value of the variable of a name, None or "" if it is not set. It is not asked for what a secret would be called.
    """
    if isinstance(value, dict):
        return {key: expanded(problems, (*place, key), inner, variable) for key, inner in value.items()}
    if isinstance(value, list):
        return [expanded(problems, (*place, index), inner, variable) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if _SECRET_NAME.search(name.lower()):
            problems.add(
                place, f"the environment variable {name} is called like a secret; secrets go by name only, in a field that ends in _env"
            )
            return ""
        if found := variable(name):
            return found
        if default is None:
            problems.add(place, f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}")
        return default or ""

    result = _VARIABLE.sub(replaced, value)
    if result != value and has_credentials(result):
        problems.add(place, "an environment variable puts credentials into a URL here; take them from the file system's client instead")
    elif result != value and _SECRET_VALUE.search(result):
        problems.add(place, "an environment variable puts a secret here; secrets go by name only, in a field that ends in _env")
    return result
