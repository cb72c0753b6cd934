from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation import balance, clusters
from curation.balance import STEP, What, _caps, reduce
from curation.clusters import train_centroids
from curation.population import OneByOne, Population, Workers, population_of
from curation.step import How
from curation.vectors import write_vectors
from shards.sample import uid_of
from tests.curation.spread import Dying, Killed, Threads

GOLDEN = Path(__file__).parent / "golden" / "balance.json"


def blobs(sizes: list[int], d: int = 8, spread: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around axes of space, so many for each; (vectors, which axis)."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return np.eye(d)[truth] + rng.normal(0, spread, (len(truth), d)), truth


def uids_of(n: int) -> list[str]:
    return [uid_of("balance", str(i)) for i in range(n)]


def population(
    folder: Path,
    vectors: Any,
    order: Any = None,
    workers: Workers | None = None,
    references: int = 0,
    how: How | None = None,
    **columns: Any,
) -> Population:
    """Vectors of media: None, one vector, or a list of vectors and None. Rows are delivered in `order`; the last ones may be references."""
    uids = uids_of(len(vectors))
    uids[len(uids) - references :] = [f"reference:old/{i}" for i in range(references)]
    table = pa.table({"uid": uids, "kind": ["image"] * len(uids), **columns})
    samples = len(uids) - references
    place = np.concatenate([np.argsort(np.argsort(uids[:samples])), np.arange(samples, len(uids))]).astype(np.int64)
    media = []
    for i in range(len(uids)) if order is None else order:
        of = vectors[i] if isinstance(vectors[i], list) and not np.isscalar(vectors[i][0]) else [vectors[i]]
        media += [(int(place[i]), m, np.asarray(v, np.float32)[None]) for m, v in enumerate(of) if v is not None]
    more = np.array(sorted((row, m) for row, m, _ in media if m), np.int64).reshape(-1, 2)
    batches = [(np.array([row]), np.array([m]), values) for row, m, values in media]
    held = write_vectors(folder / "vectors", len(uids), more, batches)
    by_uid = pa.concat_tables([table.slice(0, samples).sort_by("uid"), table.slice(samples)])
    return population_of(by_uid, folder / "scratch", vectors={"embedding": held}, workers=workers, references=references, how=how)


def rows(what: What, of: Population) -> dict[str, dict[str, Any]]:
    return {r.pop("uid"): r for r in reduce(what, of).to_pylist()}


def stays(row: dict[str, Any]) -> bool:
    return row["rank"] is None or row["rank"] < row["cap"]


def test_a_fixed_number_of_each_cluster_stays(tmp_path: Path) -> None:
    vectors, truth = blobs([50, 20, 5])
    found = rows(What(clusters=3, per_cluster=10, seed=1), population(tmp_path, vectors))
    of = [found[uid]["cluster"] for uid in uids_of(75)]
    assert len({(c, int(t)) for c, t in zip(of, truth, strict=True)}) == 3  # the clusters are the blobs
    assert sorted((r["size"], r["cap"]) for r in found.values() if stays(r)) == [(5, 5)] * 5 + [(20, 10)] * 10 + [(50, 10)] * 10
    for c in set(of):
        members = [r for r in found.values() if r["cluster"] == c]
        assert sorted(r["rank"] for r in members) == list(range(len(members)))


def test_each_is_in_the_cluster_of_its_nearest_centroid(tmp_path: Path) -> None:
    values, _ = blobs([60, 50, 40, 30], spread=0.4)
    of = population(tmp_path, values)
    held = of.vectors["embedding"]
    sample, turns = balance.SAMPLE_PER_CENTROID, balance.ITERATIONS
    centroids = train_centroids(
        held, np.arange(180), 9, 42, OneByOne(), tmp_path / "other", iterations=turns, sample_per_centroid=sample, apart=True
    )
    nearest = (held.take(np.arange(180)).astype(np.float64) @ centroids.T.astype(np.float64)).argmax(axis=1)
    assert reduce(What(clusters=9), of)["cluster"].to_pylist() == nearest.tolist()


def test_the_best_of_a_cluster_stay(tmp_path: Path) -> None:
    vectors, _ = blobs([8, 8])
    score = [float((7 * i) % 16) for i in range(16)]
    found = rows(What(clusters=2, per_cluster=2, keep_best="score desc"), population(tmp_path, vectors, score=score))
    for c in (0, 1):
        members = [(s, found[u]) for u, s in zip(uids_of(16), score, strict=True) if found[u]["cluster"] == c]
        members.sort(key=lambda m: m[1]["rank"])
        assert [s for s, _ in members] == sorted((s for s, _ in members), reverse=True)


def test_without_an_ordering_a_draw_by_seed_says_who_stays(tmp_path: Path) -> None:
    """One cluster, so that the seed has no other part: the draws are no order of uid, differ, and last where others come and go."""
    values = [[1.0, 0.001 * i] for i in range(300)]
    of = population(tmp_path / "all", values)
    first, second = (rows(What(clusters=1, per_cluster=100, seed=seed), of) for seed in (1, 2))
    kept = [{uid for uid, r in found.items() if stays(r)} for found in (first, second)]
    assert len(kept[0]) == len(kept[1]) == 100
    assert 10 < len(kept[0] & kept[1]) < 60  # a third of a third is 33
    in_order = np.array([first[uid]["rank"] for uid in sorted(first)])
    assert abs(np.corrcoef(in_order, np.arange(300))[0, 1]) < 0.2
    fewer = rows(What(clusters=1, per_cluster=100, seed=1), population(tmp_path / "fewer", values[:200]))
    by_rank = [sorted(fewer, key=lambda uid, of=found: of[uid]["rank"]) for found in (first, fewer)]  # type: ignore[misc]
    assert by_rank[0] == by_rank[1]


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


@given(st.permutations(list(range(30))), st.integers(1, 4))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_neither_the_order_of_rows_nor_workers_matter(tmp_path_factory: pytest.TempPathFactory, order: list[int], cpus: int) -> None:
    vectors, _ = blobs([12, 10, 8], spread=0.4)
    what = What(clusters=5, per_cluster=3)
    shuffled = population(tmp_path_factory.mktemp("shuffled"), vectors, order=order, workers=Threads(cpus))
    assert reduce(what, shuffled).equals(reduce(what, population(tmp_path_factory.mktemp("one"), vectors)))


def test_a_killed_run_goes_on_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "TRAIN_BLOCK", 32)
    monkeypatch.setattr(clusters, "ASSIGN_BLOCK", 32)
    vectors, _ = blobs([120, 100, 80], spread=0.4)
    what = What(clusters=5, alpha=0.3, total=100)
    whole = reduce(what, population(tmp_path / "whole", vectors))
    assert sum(stays(r) for r in whole.to_pylist()) == 100
    cut, tries = None, 0
    while cut is None and tries < 40:
        try:
            cut = reduce(what, population(tmp_path / "cut", vectors, workers=Dying(45)))
        except Killed:
            tries += 1
    assert cut is not None
    assert tries > 1
    assert cut.equals(whole)


def test_a_cap_above_all_numbers_keeps_all(tmp_path: Path) -> None:
    found = rows(What(clusters=1, per_cluster=10**20), population(tmp_path, [[1.0, 0], [0.0, 1]]))
    assert [row["cap"] for row in found.values()] == [2, 2]


def test_vectors_that_say_nothing_are_in_no_cluster_and_stay(tmp_path: Path) -> None:
    of = population(tmp_path / "bad", [[1.0, 0], [0.0, 0], [float("nan"), 1], None, [float("inf"), 0], [0.0, 1]])
    found = rows(What(clusters=2, per_cluster=1), of)
    assert [found[u]["cluster"] is None for u in uids_of(6)] == [False, True, True, True, True, False]
    assert [stays(found[u]) for u in uids_of(6)] == [True] * 6
    assert STEP.implied is not None
    assert "rank is null" in (STEP.implied(What()) or "")


@pytest.mark.parametrize("what", [What(), What(per_cluster=1), What(clusters=1, total=1, keep_best="uid desc")])
def test_none_at_all_none_with_a_vector_and_one(tmp_path: Path, what: What) -> None:
    assert reduce(what, population(tmp_path / "none", [])).num_rows == 0
    blind = reduce(what, population(tmp_path / "blind", [None, [0.0, 0]])).to_pylist()
    assert [(r["cluster"], r["size"], r["rank"], r["cap"]) for r in blind] == [(None,) * 4] * 2
    one = rows(what, population(tmp_path / "one", [[3.0, 4]]))
    assert one.popitem()[1] == {"cluster": 0, "size": 1, "rank": 0, "cap": 1}


def test_all_alike_are_one_cluster(tmp_path: Path) -> None:
    found = rows(What(clusters=50, per_cluster=7), population(tmp_path, [[0.3, 0.4, 0.5]] * 200))
    assert Counter((r["cluster"], r["size"], r["cap"]) for r in found.values()) == {(0, 200, 7): 200}
    assert sum(stays(r) for r in found.values()) == 7


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_nine_tenths_in_one_place_do_not_drown_the_rest(tmp_path: Path, spread: float) -> None:
    sizes = [900, 25, 25, 25, 25]
    vectors, truth = blobs(sizes, spread=0.02)
    vectors[:900] = np.eye(8)[0] + np.random.default_rng(5).normal(0, spread, (900, 8))
    found = rows(What(clusters=5, alpha=0.0, total=100), population(tmp_path, vectors))
    kept = Counter(int(t) for uid, t in zip(uids_of(1000), truth, strict=True) if stays(found[uid]))
    assert sum(kept.values()) == 100
    assert all(kept[blob] >= 15 for blob in range(1, 5))


def test_the_first_medium_with_a_vector_counts(tmp_path: Path) -> None:
    media = [[[1.0, 0.0], [0.0, 1.0]], [None, [0.0, 0.0], [0.0, 1.0]], [[1.0, 0.1]], [None, None]]
    of = population(tmp_path, media)
    found = rows(What(clusters=2, per_cluster=1), of)
    a, b, c, d = uids_of(4)
    assert found[a]["cluster"] == found[c]["cluster"] != found[b]["cluster"]
    assert found[d]["cluster"] is None
    assert [found[u]["size"] for u in (a, b, c)] == [2, 1, 2]


def test_what_a_population_is_held_against_takes_no_part(tmp_path: Path) -> None:
    vectors, _ = blobs([12, 8], spread=0.2)
    strangers = [[-1.0] * 8, [[-0.5] * 8, [2.0] * 8]]
    what = What(clusters=4, total=0.5)
    alone = reduce(what, population(tmp_path / "alone", vectors.tolist()))
    beside = population(tmp_path / "beside", [*vectors.tolist()[:20], *strangers], references=2)
    assert beside.samples == 20
    assert reduce(what, beside).equals(alone)


def test_gpus_of_the_how_are_asked_for(tmp_path: Path) -> None:
    asked = set()

    class Asking(OneByOne):
        def map(self, function: Any, tasks: Any, *, gpus: float = 0.0) -> Any:
            asked.add((function.__name__, gpus))
            return super().map(function, tasks, gpus=gpus)

    vectors, _ = blobs([12, 8])
    reduce(What(clusters=2), population(tmp_path, vectors, workers=Asking(), how=How(gpus=0.5)))
    assert asked == {("_nearest_block", 0.5), ("_assign_block", 0.5)}


@pytest.mark.parametrize(
    "bad",
    [
        {"clusters": 0},
        {"per_cluster": -1},
        {"alpha": 2.0},
        {"total": 0.0},
        {"total": 1.0},
        {"total": math.inf},
        {"seed": -1},
        {"keep_best": "random()"},
    ],
)
def test_values_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError, match=next(iter(bad))):
        STEP.check(What(**bad))


def test_golden_rows(tmp_path: Path) -> None:
    """Other output under the same version of the step is an error: bump STEP.version and write the rows anew."""
    vectors, _ = blobs([9, 6, 3], spread=0.3, seed=3)
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["version"] == STEP.version
    assert reduce(What(clusters=4, alpha=0.5, total=0.5), population(tmp_path, vectors)).to_pylist() == golden["rows"]
