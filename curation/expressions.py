"""SQL predicates taken apart: parsed by DuckDB, held to columns, literals and pure functions, split at their top-level ANDs."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from curation.functions import MAX_DEPTH, callable_functions, locked_duckdb
from shards.errors import RecipeError

MAX_LENGTH = 10_000  # characters of an expression
MAX_BRACKETS = 100  # nested brackets; DuckDB takes 13 s to refuse 4,000 open ones

_PREFIX = "SELECT 1 FROM t WHERE "
_TOKEN = re.compile(
    r"""(?P<string>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*")|(?P<comment>--|/\*)|(?P<open>[(\[{])|(?P<close>[)\]}])"""
    r"""|(?P<word>[^\W\d]\w*)|(?P<quote>['"])|(?P<semicolon>;)|(?P<dollar>\$)""",
    re.DOTALL,
)
_SIMPLE = frozenset({"CONSTANT", "COMPARISON", "CONJUNCTION", "BETWEEN", "CASE", "CAST", "TYPE"})
_OPERATORS = frozenset(
    "OPERATOR_NOT OPERATOR_IS_NULL OPERATOR_IS_NOT_NULL COMPARE_IN COMPARE_NOT_IN OPERATOR_COALESCE ARRAY_EXTRACT ARRAY_SLICE "
    "STRUCT_EXTRACT ARRAY_CONSTRUCTOR OPERATOR_TRY".split()
)
_WHY_NOT = {
    "SUBQUERY": "a subquery (for lists, write list_contains(list, value) or value IN list)",
    "WINDOW": "a window function: a rule sees one sample at a time",
    "PARAMETER": "a parameter: write the value itself",
    "STAR": "*: name the columns",
    "DEFAULT": "DEFAULT",
    "POSITIONAL_REFERENCE": "a column by number: name it",
    "COLLATE": "COLLATE: compare lower(...) instead",
}


class RuleError(RecipeError):
    """An expression that is no rule. position: character in it, counted from 0, or None for all of it. column: the unknown one."""

    def __init__(self, message: str, position: int | None = None, column: str | None = None):
        super().__init__(message)
        self.position = position
        self.column = column


@dataclass(frozen=True, slots=True)
class Piece:
    """One top-level conjunct: the text as the user wrote it, SQL that parses to the same tree, and the columns it reads (known names)."""

    text: str
    sql: str
    columns: frozenset[str]


def take_apart(expression: str, known: Iterable[str]) -> tuple[Piece, ...]:
    """The top-level conjuncts of a predicate, in order. Only columns of `known`, literals, pure functions; else RuleError."""
    _check_text(expression)
    tree = _parse(expression)
    names = {name.lower(): name for name in known}
    conjuncts = list(_conjuncts(tree))
    columns = [frozenset(_check(c, names, frozenset(), expression)) for c in conjuncts]
    texts = _texts(expression, conjuncts)
    return tuple(Piece(text, _sql(text, node), used) for text, node, used in zip(texts, conjuncts, columns, strict=True))


def close_matches(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x' or 'y'?" or nothing."""
    found = difflib.get_close_matches(name.lower(), sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(f) for f in found)}?" if found else ""


def _check_text(expression: str) -> None:
    if not expression.strip():
        raise RuleError("the expression is empty")
    if len(expression) > MAX_LENGTH:
        raise RuleError(f"the expression has {len(expression):,} characters, the most is {MAX_LENGTH:,}; write several keep rules")
    for position, character in enumerate(expression):
        if (character < " " and character not in "\t\n\r") or 0xD800 <= ord(character) <= 0xDFFF:
            raise RuleError(f"control character U+{ord(character):04X} in the expression", position)
    depth = 0
    for token in _TOKEN.finditer(expression):
        if token.lastgroup == "comment":
            raise RuleError("no comments in an expression; write them in the YAML, after #", token.start())
        if token.lastgroup == "semicolon":
            raise RuleError("one expression, not statements: remove the semicolon", token.start())
        if token.lastgroup == "dollar":
            raise RuleError("no parameters and no $-quoted strings; write the value itself, strings in '…'", token.start())
        if token.lastgroup == "quote":
            raise RuleError(f"a string or name is opened by {token[0]} and never closed", token.start())
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        if depth > MAX_BRACKETS:
            raise RuleError(f"more than {MAX_BRACKETS} nested brackets", token.start())


def _serialise(condition: str) -> Any:
    ((text,),) = locked_duckdb().execute("SELECT json_serialize_sql(?)", [_PREFIX + condition]).fetchall()
    return json.loads(text)


def _parse(expression: str) -> dict[str, Any]:
    result = _serialise(expression)
    if result["error"]:
        if "Max expression depth" in result["error_message"]:
            raise RuleError(f"nested more than {MAX_DEPTH} deep; write several keep rules")
        position = int(result["position"]) - len(_PREFIX) if "position" in result else None
        if position is not None:
            position = len(expression.encode()[: max(position, 0)].decode(errors="ignore"))
        raise RuleError(f"not an SQL expression: {result['error_message']}", position)
    if len(result["statements"]) != 1:
        raise RuleError("one expression, not several statements")
    frame = result["statements"][0]["node"]
    tree = frame.get("where_clause")
    if tree is None or _bare({**frame, "where_clause": None}) != _frame():
        raise RuleError("a condition alone: no GROUP BY, ORDER BY, LIMIT, UNION or anything else after it")
    return dict(tree)


@cache
def _frame_text() -> str:
    return json.dumps({**_serialise("true")["statements"][0]["node"], "where_clause": None})


def _frame() -> Any:
    return _bare(json.loads(_frame_text()))


def _bare(tree: Any) -> Any:
    """The tree without its places in the text."""
    if isinstance(tree, dict):
        return {k: _bare(v) for k, v in tree.items() if k not in ("query_location", "query_location_length")}
    return [_bare(v) for v in tree] if isinstance(tree, list) else tree


def _conjuncts(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if tree["type"] == "CONJUNCTION_AND":
        for child in tree["children"]:
            yield from _conjuncts(child)
    else:
        yield tree


def _place(node: Mapping[str, Any], expression: str) -> int | None:
    offset = int(node.get("query_location", -1)) - len(_PREFIX)
    data = expression.encode()
    return len(data[:offset].decode(errors="ignore")) if 0 <= offset < len(data) else None


def _check(tree: Any, names: Mapping[str, str], bound: frozenset[str], expression: str) -> Iterator[str]:
    """Columns that a tree reads; `bound` are the parameters of the lambdas around it. Raises RuleError for what is not allowed."""
    if isinstance(tree, list):
        for value in tree:
            yield from _check(value, names, bound, expression)
        return
    if not isinstance(tree, dict):
        return
    kind = tree.get("class")
    if kind == "LAMBDA":
        if tree["syntax_type"] != "LAMBDA_KEYWORD":
            raise RuleError("write a lambda as `lambda x: …`, and JSON as json_extract(…), not with ->", _place(tree, expression))
        yield from _check(tree["expr"], names, bound | set(_parameters(tree["lhs"])), expression)
        return
    if kind == "COLUMN_REF":
        yield from _column(tree, names, bound, expression)
    elif kind == "FUNCTION":
        _function(tree, expression)
    elif kind == "OPERATOR":
        if tree["type"] not in _OPERATORS:
            raise RuleError(f"{tree['type']} is not allowed in a rule", _place(tree, expression))
    elif kind is not None and kind not in _SIMPLE:
        raise RuleError(f"a rule cannot have {_WHY_NOT.get(kind, kind)}", _place(tree, expression))
    for value in tree.values():
        if isinstance(value, dict | list):
            yield from _check(value, names, bound, expression)


def _parameters(left: Mapping[str, Any]) -> Iterator[str]:
    if left["class"] == "COLUMN_REF":
        yield left["column_names"][0].lower()
    else:
        for argument in left["arguments"]:
            yield from _parameters(argument["expression"])


def _column(node: Mapping[str, Any], names: Mapping[str, str], bound: frozenset[str], expression: str) -> Iterator[str]:
    first = node["column_names"][0]
    if first.lower() in bound:
        return
    if first.lower() not in names:
        shown = ".".join(node["column_names"])
        raise RuleError(f"there is no column {shown!r} here{close_matches(first, names.values())}", _place(node, expression), first)
    yield names[first.lower()]


def _function(node: Mapping[str, Any], expression: str) -> None:
    name = node["function_name"].lower()
    path = [p for p in node["qualified_name"]["path"] if p]
    if len(path) != 1 or node["schema"] or node["catalog"]:
        raise RuleError(f"call {name}(…) by its bare name, the column inside", _place(node, expression))
    if node["filter"] or node["distinct"] or node["order_bys"]["orders"] or node["export_state"]:
        raise RuleError(f"{name}(…) with DISTINCT, FILTER or ORDER BY: a rule sees one sample at a time", _place(node, expression))
    if name not in callable_functions():
        raise RuleError(
            f"{name}() is not among the pure functions a rule may call{close_matches(name, callable_functions())} (docs/recipe.md)",
            _place(node, expression),
        )


def _texts(expression: str, conjuncts: list[dict[str, Any]]) -> list[str]:
    """The text of each conjunct as written: cut at the AND between two neighbours, brackets that close elsewhere taken off."""
    data = expression.encode()
    spans = [_span(c) for c in conjuncts]
    ands = []
    for (_, before), (after, _) in pairwise(spans):
        found = [t for t in _TOKEN.finditer(data[before:after].decode(errors="replace")) if t.lastgroup == "word"]
        if before > after or len(found) != 1 or found[0][0].lower() != "and":
            return [canonical(c) for c in conjuncts]
        gap = data[before:after].decode()
        ands.append((before + len(gap[: found[0].start()].encode()), before + len(gap[: found[0].end()].encode())))
    starts, ends = [0, *(e for _, e in ands)], [*(s for s, _ in ands), len(data)]
    return [_balanced(data[s:e].decode()) for s, e in zip(starts, ends, strict=True)]


def _span(tree: Any) -> tuple[int, int]:
    """First byte and end of all that a tree was read from."""
    start, end = MAX_LENGTH * 8, 0
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            at = node.get("query_location")
            if isinstance(at, int) and at < MAX_LENGTH * 8:
                start, end = min(start, at - len(_PREFIX)), max(end, at - len(_PREFIX) + node["query_location_length"])
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    return max(start, 0), end


def _balanced(text: str) -> str:
    text = text.strip()
    while True:
        opened: list[int] = []
        stray: list[int] = []
        for token in _TOKEN.finditer(text):
            if token.lastgroup == "open":
                opened.append(token.start())
            elif token.lastgroup == "close":
                if opened:
                    opened.pop()
                else:
                    stray.append(token.start())
        if opened and opened[0] == 0:
            text = text[1:].strip()
        elif stray and stray[-1] == len(text) - 1:
            text = text[:-1].strip()
        else:
            return text


def canonical(node: dict[str, Any]) -> str:
    """SQL that DuckDB writes for a tree."""
    frame = json.loads(_frame_text())
    frame["where_clause"] = node
    statement = json.dumps({"error": False, "statements": [{"node": frame, "named_param_map": []}]})
    ((text,),) = locked_duckdb().execute("SELECT json_deserialize_sql(?::JSON)", [statement]).fetchall()
    return str(text)[len(_PREFIX) :]


def _sql(text: str, node: dict[str, Any]) -> str:
    """The user's own text where it provably parses to `node`, else DuckDB's."""
    for candidate in (text, canonical(node)):
        again = _serialise(f"({candidate})")
        if again["error"] or len(again["statements"]) != 1:
            continue
        if _bare(again["statements"][0]["node"].get("where_clause")) == _bare(node):
            return candidate
    raise RuleError(f"cannot be split safely at {text!r}; write each condition as a keep rule of its own")
