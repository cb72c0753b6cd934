"""`where`: what it takes, what it refuses, and that a record's values are that record's affair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import RecipeError
from shards.sample import Sample
from shards.sources import SourceSpec, check_source, list_containers, scan
from shards.sources.where import Where, syntax_error

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


def judge(expression: str, *records: Mapping[str, Any]) -> list[bool | str]:
    where = Where("src", expression)
    try:
        return where.judge(records)
    finally:
        where.close()


def samples(folder: Path, where: str, *lines: Mapping[str, Any] | bytes) -> list[Sample]:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "m.jsonl").write_bytes(b"\n".join(raw))
    spec = SourceSpec("src", "manifest", str(folder / "m.jsonl"), where=where)
    return [sample for container in list_containers(spec) for sample in scan(spec, container)]


@pytest.mark.parametrize(
    ("expression", "record", "expected"),
    [
        ("kind = 'caption'", {"kind": "caption"}, True),
        ("kind = 'caption'", {"kind": ["caption"]}, False),
        ("kind = 'caption'", {}, False),
        ("kind is null", {"kind": {"a": 1}}, True),
        ("width between 1 and 3 and not flag", {"width": 2.5, "flag": False}, True),
        ("lower(name) like '%.jpg'", {"name": "A.JPG"}, True),
        ("lower(name) like '%.jpg' or n + 1 > 2", {"n": 5}, True),
        ('"odd name" = 1 -- a remark', {"odd name": 1}, True),
        ("current_date = 'x'", {"current_date": "x"}, True),
        ("name = '\ufffd'", {"name": "\ud800"}, True),
        ("big > 1e300", {"big": 10**400}, True),
        ("try_cast(n as integer) = 3", {"n": "3"}, True),
        ("json_extract_string(text, '$.a') = 'b'", {"text": '{"a": "b"}'}, True),
        ("regexp_matches(name, '^a+$')", {"name": "aaa"}, True),
    ],
)
def test_conditions(expression: str, record: dict[str, Any], expected: bool) -> None:
    assert judge(expression, record) == [expected]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "kind =",
        "a = 1, b = 2",
        "a = 1; drop table records",
        "a = 1) or (1 = 1",
        "1 = 1 from read_text('/etc/passwd')",
        "1 = 1 union select true",
        "1 = 1 order by a",
        "1 = 1 limit 0",
        "a in (select content from read_text('/etc/passwd'))",
        "random() < 0.5",
        "now() > '2000-01-01'",
        "current_setting('threads') = '1'",
        "repeat(a, 1000000000) = 'x'",
        "count(*) > 1",
        "row_number() over () > 1",
        "source.repo = 'x'",
        "columns(*) = 1",
        "a = ?",
        "nosuchfunction(a)",
        "lower(a, b) = 'x'",
        "Kind = 'a' or kind = 'b'",
        "(" * 2_000 + "1=1" + ")" * 2_000,
        "a = '" + "x" * 20_000 + "'",
    ],
)
def test_what_is_no_condition_is_the_recipes_fault(tmp_path: Path, expression: str) -> None:
    with pytest.raises(RecipeError, match=r"^source 'src': where: .* cannot run: ."):
        Where("src", expression)
    assert syntax_error(expression)
    (tmp_path / "m.jsonl").write_text("{}\n")
    (problem,) = check_source(SourceSpec("src", "manifest", "m.jsonl", where=expression), tmp_path)
    assert problem.startswith("source 'src': where")


def test_the_engine_reaches_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    where = Where("src", "a = 1")
    for statement in (f"select * from read_csv('{tmp_path}/secret.csv')", "set enable_external_access = true", "install httpfs"):
        with pytest.raises(duckdb.Error):
            where.engine.execute(statement)
    where.close()


def test_one_odd_record_is_damage_and_the_others_are_asked(tmp_path: Path) -> None:
    lines = [{"id": f"{n}", "width": n} for n in range(5)] + [{"id": "odd", "width": "wide"}, {"id": "text", "width": "7"}]
    found = samples(tmp_path, "width > 2", *lines)
    assert [(s.key, s.damage is None) for s in found] == [("3", True), ("4", True), ("odd", False), ("text", False)]
    assert "m.jsonl:6: where 'width > 2' cannot be asked: " in (found[2].damage or "")
    cast = samples(tmp_path, "cast(width as integer) > 2", *lines)
    assert [(s.key, s.damage is None) for s in cast] == [("3", True), ("4", True), ("odd", False), ("text", True)]
    assert "wide" in (cast[2].damage or "")
    again = samples(tmp_path, "width > 2", *reversed(lines))
    assert {s.uid for s in again} == {s.uid for s in found}


def test_a_condition_that_fits_no_record_is_the_recipes_fault(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no record has .* named 'knid'; fields are id, kind"):
        samples(tmp_path, "knid = 'a'", {"id": "1", "kind": "a"})
    with pytest.raises(RecipeError, match=r"cannot run: .*first 2 records"):
        samples(tmp_path, "cast(kind as integer) = 1", {"id": "1", "kind": "a"}, {"id": "2", "kind": "b"})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.fixed_dictionaries({}, optional={"a": VALUES, "b": VALUES}), min_size=1, max_size=12))
def test_a_verdict_depends_on_its_record_alone(records: list[dict[str, Any]]) -> None:
    where = Where("src", "a > 2 or b = 'x' or (a is null and b)")
    where.worked = True  # none of a handful may be answerable here
    together = where.judge(records)
    alone = [where.judge([record])[0] for record in records]
    where.close()
    assert [v if isinstance(v, bool) else "fault" for v in together] == [v if isinstance(v, bool) else "fault" for v in alone]
    for record, verdict in zip(records, together, strict=True):
        a, b = record.get("a"), record.get("b")
        if isinstance(a, (int, float)) and not isinstance(a, bool) and (b is None or isinstance(b, (list, dict))):
            assert verdict is (a > 2)
