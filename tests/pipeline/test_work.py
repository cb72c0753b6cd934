"""The work list is cut into units whatever the batches it comes in, and tasks never cut a unit."""

from __future__ import annotations

import itertools

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.payload import decode, encode
from pipeline.work import _units

PLACES = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["0", "1", "2"]), st.integers(1, 4)), max_size=8)


@given(PLACES, st.integers(1, 7))
def test_units_are_whole_and_in_order(places: list[tuple[str, str, int]], batch: int) -> None:
    rows = [(source, unit) for source, unit, count in places for _ in range(count)]
    table = pa.table({"source": pa.array([s for s, _ in rows], pa.string()), "unit": pa.array([u for _, u in rows], pa.string())})
    table = table.append_column("n", pa.array(range(len(rows)), pa.int64()))
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=batch))
    found = [unit["n"].to_pylist() for unit in _units(reader)]
    assert found == [[n for n, _ in group] for _, group in itertools.groupby(enumerate(rows), key=lambda row: row[1])]


@given(st.lists(st.lists(st.integers(-5, 5)), max_size=4), st.dictionaries(st.text(), st.integers()))
def test_payloads_come_back_as_they_were(columns: list[list[int]], header: dict[str, int]) -> None:
    tables = {f"t{i}": pa.table({"x": pa.array(values, pa.int64())}) for i, values in enumerate(columns)}
    found_header, found = decode(encode(header, tables))
    assert found_header == header
    assert found == tables
