from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation import ordering
from curation.functions import locked_duckdb
from curation.ordering import ordered
from shards.errors import RecipeError

N = 500


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Rows with few different values, NULLs, NaN and lists, not in order of uid."""
    rng = np.random.default_rng(1)
    width = pa.array(rng.integers(1, 9, N), mask=rng.random(N) < 0.1)
    score = pa.array(np.where(rng.random(N) < 0.1, np.nan, rng.integers(-3, 3, N) / 2), mask=rng.random(N) < 0.1)
    words = [None if i % 11 == 0 else "äbc"[: rng.integers(0, 4)] * int(rng.integers(1, 4)) for i in range(N)]
    media: list[Any] = [[None, 1][: i % 3] if i % 2 else [int(rng.integers(0, 5)), 9] for i in range(N)]
    media[4] = None
    return pa.table(
        {
            "uid": [f"{i:04d}" for i in rng.permutation(N)],
            "kind": ["image"] * N,
            "width": width,
            "height": pa.array(rng.integers(1, 5, N), pa.uint32()),
            "score": score,
            "word": words,
            "media": pa.array(media, pa.list_(pa.int64())),
        }
    )


def by_duckdb(order: str, table: pa.Table) -> list[int]:
    """The same by DuckDB's own ORDER BY."""
    first = pa.array([value[0] if value else None for value in table["media"].to_pylist()], pa.int64())
    columns = table.drop_columns(["media"]).append_column("media", first).append_column("place", pa.array(range(len(table))))
    connection = locked_duckdb()
    connection.register("population", columns)
    try:
        keys = ", ".join(filter(None, [order, "uid"]))
        return [place for (place,) in connection.execute(f"select place from population order by {keys}").fetchall()]
    finally:
        connection.unregister("population")


@pytest.mark.parametrize(
    "order",
    [
        "",
        "width*height desc",
        "width nulls first",
        "score",
        "score desc",
        "score desc nulls first, height",
        "word, width desc",
        "length(word) desc, word desc",
        "media desc, score",
        "kind",
        "case when width > 4 then score else 0.5 - height end desc -- the best",
        "height::decimal(9,2) desc, width % 3 = 1, uid desc",
    ],
)
@pytest.mark.parametrize("chunk", [1_000_000, 64])
def test_the_order_is_that_of_sql(order: str, chunk: int, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "CHUNK", chunk)
    found = ordered(order, table)
    assert found.dtype == np.int64
    assert found.tolist() == by_duckdb(order.replace(" -- the best", ""), table)


def test_rows_in_order_of_uid_and_slices_of_them_are_ordered_alike(table: pa.Table) -> None:
    table = table.sort_by("uid")
    for part in (table, table.slice(100, 150), pa.concat_tables([table.slice(0, 60), table.slice(60)])):
        for order in ("", "media desc", "word"):
            assert ordered(order, part).tolist() == by_duckdb(order, part)
    assert ordered("width desc", table.slice(0, 0)).tolist() == []
    assert ordered("width desc", table.slice(0, 1)).tolist() == [0]


def test_a_number_stands_for_itself_and_not_for_a_column(table: pa.Table) -> None:
    assert ordered("1 desc", table).tolist() == by_duckdb("", table)


@pytest.mark.parametrize("order", ["kind::int desc", "width + kind", "kind::date"])
def test_an_ordering_that_fails_on_types_or_values_is_told(table: pa.Table, order: str) -> None:
    with pytest.raises(RecipeError, match=r"keep_best .* cannot be computed.*mend it"):
        ordered(order, table)
