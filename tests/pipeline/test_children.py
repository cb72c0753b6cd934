"""The units in which children are worked on: bounded, in order, those of one parent together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import duckdb
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.listing import CHILDREN, LISTING
from pipeline.children import children_sql
from shards.sources.spec import UNIT_BYTES, UNIT_SAMPLES

SIZES = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.sampled_from([1, 10_000, 30_000_000, 70_000_000]), min_size=1, max_size=6)), max_size=12
)


@given(SIZES, st.integers(0, 1500))
@settings(max_examples=25, deadline=None)
def test_units_of_children_keep_their_bounds(parents: list[tuple[int, list[int]]], many: int) -> None:
    parents = [*parents, (0, [100] * many)] if many else parents
    listed: list[dict[str, Any]] = []
    made: list[dict[str, Any]] = []
    for p, (home, sizes) in enumerate(parents):
        listed.append({"uid": f"p{p}", "source": "s", "unit": f"u#{home}", "ordinal": p, "content": "c", "text_fp": "t", "family": f"p{p}"})
        for i, size in enumerate(sizes):
            child = dict.fromkeys(CHILDREN.names)
            made.append(
                {
                    **child,
                    "uid": f"c{p}-{i}",
                    "source": "s",
                    "parent": f"p{p}",
                    "ordinal": i,
                    "kind": "image",
                    "n_media": 0,
                    "media_bytes": size,
                    "fp": "c",
                }
            )
    with duckdb.connect() as connection:
        connection.register(
            "parents",
            pa.Table.from_pylist(
                listed,
                pa.schema(
                    [
                        (k, pa.int32() if k == "ordinal" else pa.string())
                        for k in ("uid", "source", "unit", "ordinal", "content", "text_fp", "family")
                    ]
                ),
            ),
        )
        connection.register("made", pa.Table.from_pylist(made, CHILDREN))
        connection.execute("create table contents (uid varchar, stamp varchar, content varchar)")
        judge = SimpleNamespace(scan=lambda table, schema=None: "contents" if table == "contents" else "made")
        op = SimpleNamespace(digest="d", op="pages", roots=("media",))
        query = children_sql(cast(Any, judge), cast(Any, op), "parents", [*LISTING.names, "origin", "family"])
        found = connection.sql(query).to_arrow_table().to_pylist()
    assert sorted(c["uid"] for c in found) == sorted(c["uid"] for c in made)
    units: dict[str, list[dict[str, Any]]] = {}
    for child in found:
        units.setdefault(child["unit"], []).append(child)
    for name, inside in units.items():
        inside.sort(key=lambda c: c["ordinal"])
        assert [c["ordinal"] for c in inside] == list(range(len(inside)))
        assert len(inside) <= UNIT_SAMPLES
        assert sum(c["media_bytes"] for c in inside) <= UNIT_BYTES or len(inside) == 1
        homes = {listed[int(c["parent"][1:])]["unit"] for c in inside}
        assert len(homes) == 1
        assert name.startswith(f"{homes.pop()}/")
        assert [c["parent"] for c in inside] == sorted((c["parent"] for c in inside), key=lambda p: int(p[1:]))  # together, in order
    for p, (_, sizes) in enumerate(parents):
        spread = {c["unit"] for c in found if c["parent"] == f"p{p}"}
        assert len(spread) == 1 or len(sizes) > UNIT_SAMPLES // 2 or sum(sizes) > UNIT_BYTES // 2
