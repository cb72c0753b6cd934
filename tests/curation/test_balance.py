from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.balance import STEP, What, _caps, reduce
from shards.errors import InfrastructureError
from shards.sample import uid_of

GOLDEN = Path(__file__).parent / "golden" / "balance.json"


def blobs(sizes: list[int], d: int = 8, spread: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around axes of space, so many for each; (vectors, which axis)."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return np.eye(d)[truth] + rng.normal(0, spread, (len(truth), d)), truth


def population(vectors: Any, medium: bool = True, **columns: Any) -> pa.Table:
    values = [None if v is None else [[float(x) for x in v]] if medium else [float(x) for x in v] for v in vectors]
    kind = pa.list_(pa.list_(pa.float32())) if medium else pa.list_(pa.float32())
    uids = [uid_of("balance", str(i)) for i in range(len(values))]
    return pa.table({"uid": uids, "kind": ["image"] * len(uids), "embedding": pa.array(values, kind), **columns})


def rows(what: What, table: pa.Table) -> dict[str, dict[str, Any]]:
    return {r.pop("uid"): r for r in reduce(what, table).to_pylist()}


def test_a_fixed_number_of_each_cluster_stays() -> None:
    vectors, truth = blobs([50, 20, 5])
    table = population(vectors)
    found = rows(What(clusters=3, per_cluster=10), table)
    of = [found[uid]["cluster"] for uid in table["uid"].to_pylist()]
    assert len({(c, int(t)) for c, t in zip(of, truth, strict=True)}) == 3  # the clusters are the blobs
    stay = [r for r in found.values() if r["rank"] < r["cap"]]
    assert sorted((r["size"], r["cap"]) for r in stay) == [(5, 5)] * 5 + [(20, 10)] * 10 + [(50, 10)] * 10
    for c in set(of):
        members = [r for r in found.values() if r["cluster"] == c]
        assert sorted(r["rank"] for r in members) == list(range(len(members)))


def test_the_best_of_a_cluster_stay() -> None:
    vectors, _ = blobs([8, 8])
    score = [float((7 * i) % 16) for i in range(16)]
    table = population(vectors, score=score)
    found = rows(What(clusters=2, per_cluster=2, keep_best="score desc"), table)
    for c in (0, 1):
        members = [(s, found[u]) for u, s in zip(table["uid"].to_pylist(), score, strict=True) if found[u]["cluster"] == c]
        members.sort(key=lambda m: m[1]["rank"])
        assert [s for s, _ in members] == sorted((s for s, _ in members), reverse=True)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=20), st.floats(0, 1), st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_temperature_meets_its_total_and_no_cluster_gives_more_than_it_has(sizes: list[int], alpha: float, total: float) -> None:
    n = np.array(sizes)
    caps = _caps(What(alpha=alpha, total=total), n)
    assert (caps <= n).all()
    assert caps.sum() == math.ceil(total * n.sum() - 1e-9)
    larger = np.argsort(n, kind="stable")
    assert (np.diff(caps[larger]) >= -1).all()  # a larger cluster gives as many, but for the rounding


def test_alpha_nought_gives_every_cluster_alike_and_one_leaves_the_shares() -> None:
    sizes = np.array([1000, 100, 10])
    assert _caps(What(alpha=0.0, total=30), sizes).tolist() == [10, 10, 10]
    assert _caps(What(alpha=1.0, total=0.5), sizes).tolist() == [500, 50, 5]


@given(st.permutations(list(range(30))))
@settings(max_examples=20, deadline=None)
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    vectors, _ = blobs([12, 10, 8], spread=0.4)
    table = population(vectors)
    what = What(clusters=5, per_cluster=3)
    assert reduce(what, table.take(order)).equals(reduce(what, table))


def test_vectors_that_say_nothing_are_in_no_cluster_and_stay() -> None:
    table = population([[1, 0], [0, 0], [float("nan"), 1], None, [float("inf"), 0], [0, 1]])
    found = rows(What(clusters=2, per_cluster=1), table)
    assert [found[u]["cluster"] is None for u in table["uid"].to_pylist()] == [False, True, True, True, True, False]
    assert reduce(What(), population([None, None])).num_rows == 2
    assert reduce(What(), population([])).num_rows == 0
    assert rows(What(), population([[3, 4]])).popitem()[1] == {"cluster": 0, "size": 1, "rank": 0, "cap": 1}
    assert STEP.implied is not None
    assert "rank is null" in (STEP.implied(What()) or "")


def test_vectors_of_two_models_are_refused() -> None:
    with pytest.raises(InfrastructureError, match="vectors of 2 and 3"):
        reduce(What(), population([[1, 0], [1, 0, 0]]))


def test_the_first_medium_with_a_vector_counts() -> None:
    values = pa.array([[[1.0, 0.0], [0.0, 1.0]], [None, [0.0, 1.0]], [[1.0, 0.1]]], pa.list_(pa.list_(pa.float32())))
    table = pa.table({"uid": ["a", "b", "c"], "kind": ["image"] * 3, "embedding": values})
    found = rows(What(clusters=2, per_cluster=1), table)
    assert found["a"]["cluster"] == found["c"]["cluster"] != found["b"]["cluster"]


@pytest.mark.parametrize("bad", [{"clusters": 0}, {"per_cluster": -1}, {"alpha": 2.0}, {"total": 0.0}, {"keep_best": "random()"}])
def test_values_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError, match=next(iter(bad))):
        STEP.check(What(**bad))


def test_golden_rows() -> None:
    """Other output under the same version of the step is an error: bump STEP.version and write the rows anew."""
    vectors, _ = blobs([9, 6, 3], spread=0.3, seed=3)
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["version"] == STEP.version
    assert reduce(What(clusters=4, alpha=0.5, total=0.5), population(vectors)).to_pylist() == golden["rows"]
