from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curation.ladder_search as ladder_search
from curation.deduplicate import What, pair_keys, reduce, stored_pairs
from curation.ladder_floors import larger_radii, lower_floors, radius_floor, similarity_floor
from curation.population import PairsInMemory, population_of
from curation.vectors import write_vectors
from shards.errors import InfrastructureError
from tests.curation.ladder_reference import Made, Medium, expected, opened

BASE = 0xF0F0_3C3C_A5A5_9696
EVERYTHING = What(phash_radius=4, embedding="embedding", cosine=0.95)


def _counted(name: str, real: Callable[..., Any], made: list[str]) -> Callable[..., Any]:
    def counted(*args: Any, **more: Any) -> Any:
        made.append(name)
        return real(*args, **more)

    return counted


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the searches made."""
    made: list[str] = []
    for name in ("near_hashes", "near_vectors", "near_signatures"):
        monkeypatch.setattr(ladder_search, name, _counted(name, getattr(ladder_search, name), made))
    return made


def pictures(n: int = 40, seed: int = 0) -> list[Made]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        flipped = sum(1 << int(b) for b in rng.choice(64, int(rng.integers(0, 7)), replace=False))
        at = float(rng.uniform(0, 6))
        medium = Medium(f"{rng.integers(0, n)}", BASE ^ flipped, (np.cos(at), np.sin(at), 0.3))
        made.append(Made(f"u{i:02d}", (medium,), score=float(i % 5)))
    by_sha: dict[str | None, Medium] = {}
    return [replace(m, media=(by_sha.setdefault(m.media[0].sha, m.media[0]),)) for m in made]


def test_a_higher_threshold_searches_nothing(tmp_path: Path, searches: list[str]) -> None:
    pairs, made = PairsInMemory(), pictures()
    reduce(EVERYTHING, opened(made, tmp_path / "0", pairs=pairs))
    assert searches == ["near_hashes", "near_vectors"]
    searches.clear()
    higher = [replace(EVERYTHING, cosine=c, phash_radius=r) for c in (0.95, 0.97, 0.99, 1.0) for r in (4, 3, 1)]
    for i, what in enumerate([*higher, replace(EVERYTHING, cosine=0.99, keep_best="score desc")]):
        found = reduce(what, opened(made, tmp_path / f"a{i}", pairs=pairs))
        assert searches == []
        assert found.equals(reduce(what, opened(made, tmp_path / f"b{i}"))), what  # and gives what a search gives
        searches.clear()
    reduce(replace(EVERYTHING, cosine=0.85), opened(made, tmp_path / "1", pairs=pairs))
    assert searches == ["near_vectors"]


def test_what_was_found_above_another_floor_is_used_where_nothing_was_left_out(tmp_path: Path, searches: list[str]) -> None:
    pairs, made = PairsInMemory(), pictures()
    low = What(phash_radius=8, embedding="embedding", cosine=0.8)
    reduce(low, opened(made, tmp_path / "0", pairs=pairs))
    searches.clear()
    found = reduce(EVERYTHING, opened(made, tmp_path / "1", pairs=pairs))
    assert searches == []
    assert found.equals(reduce(EVERYTHING, opened(made, tmp_path / "2")))


def test_lists_that_are_cut_are_stored_for_their_order(tmp_path: Path, searches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.deduplicate.MOST", 2)
    what = What(phash_radius=4, sha256=False)
    pairs, made = PairsInMemory(), pictures()
    first = reduce(what, opened(made, tmp_path / "0", pairs=pairs))
    before = len(searches)
    assert reduce(what, opened(made, tmp_path / "1", pairs=pairs)).equals(first)
    assert len(searches) < 2 * before  # only among what stays, not all with all
    other = replace(what, keep_best="score desc")
    assert reduce(other, opened(made, tmp_path / "2", pairs=pairs)).equals(reduce(other, opened(made, tmp_path / "3")))


def test_the_pairs_around_the_threshold_can_be_had(tmp_path: Path) -> None:
    made = [Made("a", (Medium("1", BASE),)), Made("b", (Medium("2", BASE ^ 0b11111),)), Made("c", (Medium("3", BASE ^ (0xF << 20)),))]
    population = opened(made, tmp_path)
    assert stored_pairs(What(), population) == {}
    found = reduce(What(), population).to_pylist()
    assert [r["of"] for r in found] == [None, None, "a"]
    [(rung, table)] = stored_pairs(What(), population).items()
    assert (rung, sorted(zip(*table.to_pydict().values(), strict=True))) == ("phash", [(0, 1, 1 - 5 / 64), (0, 2, 1 - 4 / 64)])
    assert population.pairs.load(pair_keys(What(), population)["phash"]) is not None


def test_keys_tell_what_decides_and_nothing_else(tmp_path: Path) -> None:
    made = pictures(10)
    population = opened(made, tmp_path / "0", digests={"phash": "p", "embedding": "e"})
    key = pair_keys(EVERYTHING, population)
    assert pair_keys(replace(EVERYTHING, cosine=0.99, phash_radius=2, keep_best="score", action="mark"), population) == key
    for changed, of_phash, of_embedding in (
        (replace(EVERYTHING, flips=True), True, False),
        (replace(EVERYTHING, seed=1), False, True),
        (replace(EVERYTHING, sha256=False), True, True),
        (replace(EVERYTHING, across="sources"), True, True),
    ):
        other = pair_keys(changed, population)
        assert (other["phash"] != key["phash"], other["embedding"] != key["embedding"]) == (of_phash, of_embedding), changed
    newer = opened(made, tmp_path / "1", digests={"phash": "p", "embedding": "f"})
    assert pair_keys(EVERYTHING, newer)["embedding"] != key["embedding"]


def test_keys_tell_which_references_there_are(tmp_path: Path) -> None:
    made = pictures(10)

    def key(name: str, *held: Made) -> dict[str, str]:
        return pair_keys(EVERYTHING, opened([*made, *held], tmp_path / name))

    one = Made("reference:b/k", (Medium("1", BASE, (1.0, 0.0, 0.0)),), source=None, reference=True)
    of_other_name = replace(one, uid="reference:b/l")
    of_other_vector = replace(one, media=(Medium("1", BASE, (0.0, 1.0, 0.0)),))
    assert len({key(f"{i}", *held)["embedding"] for i, held in enumerate([(), (one,), (of_other_name,), (of_other_vector,)])}) == 4


def test_floors_lie_below_their_thresholds() -> None:
    assert [radius_floor(r) for r in (1, 4, 5, 8, 14, 16)] == [6, 6, 10, 10, 16, 16]
    assert [similarity_floor(t) for t in (1.0, 0.95, 0.93, 0.9, 0.8)] == [0.9, 0.9, 0.9, 0.85, 0.75]
    for threshold in np.linspace(0.5, 1, 501):
        assert similarity_floor(float(threshold)) <= threshold - 0.025 + 1e-6
    assert list(lower_floors(0.85))[:2] == [0.8, 0.75]
    assert list(larger_radii(10)) == [14, 16]


@dataclass(slots=True)
class OutOfOrder:
    """Workers that do the tasks of a call in another order, and some of them twice, as retries do."""

    seed: int
    cpus: int = 4
    calls: list[int] = field(default_factory=list)

    def map(self, function: Callable[..., Any], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[Any]:
        listed = list(tasks)
        self.calls.append(len(listed))
        order = list(range(len(listed)))
        random.Random(self.seed).shuffle(order)
        answers = {i: function(*listed[i]) for i in [*order[: len(order) // 2], *order]}
        return iter([answers[i] for i in range(len(listed))])


def test_workers_and_retries_do_not_show(tmp_path: Path) -> None:
    made = pictures(60, seed=1)
    plain = reduce(EVERYTHING, opened(made, tmp_path / "0"))
    workers = OutOfOrder(3)
    assert reduce(EVERYTHING, opened(made, tmp_path / "1", workers=workers)).equals(plain)
    assert workers.calls
    assert {r["uid"]: r["of"] for r in plain.to_pylist()} == {uid: of for uid, (of, _, _) in expected(EVERYTHING, made).items()}


def test_a_blob_that_lists_divide_has_one_leader(tmp_path: Path) -> None:
    """100 vectors round each of three centres, and one blob that is larger than a list: with as many lists as that, and one probe, k-means
    cuts it in pieces which do not see each other."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 32))
    vectors = np.concatenate([np.repeat(centres, 100, axis=0), np.repeat(rng.normal(size=(1, 32)), 300, axis=0)])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) + rng.normal(size=vectors.shape) * 0.015).astype(np.float32)
    n = len(vectors)
    ids = np.arange(n)
    held = write_vectors(tmp_path / "v", n, np.zeros((0, 2)), [(ids, np.zeros(n, np.int64), vectors)])
    table = opened([Made(f"u{i:03d}", (Medium(f"{i}"),)) for i in range(n)], tmp_path / "t").table
    what = What(phash_radius=0, embedding="embedding", cosine=0.95, lists=12, probes=1)
    population = population_of(table, tmp_path, vectors={"embedding": held})
    found = reduce(what, population).to_pylist()
    exact = reduce(replace(what, lists=1), population).to_pylist()
    assert {r["uid"] for r in found if r["of"] is None} == {r["uid"] for r in exact if r["of"] is None}
    assert len({r["group"] for r in found}) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder_search, "BLOB", 10**9)
        divided = reduce(what, population_of(table, tmp_path / "2", vectors={"embedding": held})).to_pylist()
    assert len({r["group"] for r in divided}) > 4


@pytest.mark.parametrize("most", [128, 2])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_none_one_and_all_alike(tmp_path: Path, n: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.deduplicate.MOST", most)
    made = [Made(f"u{i:03d}", (Medium(f"{i}", BASE, (1.0, 0.0, 0.0)),), f"t{i}", (1,) * 16) for i in range(n)]
    for i, what in enumerate([EVERYTHING, What(phash_radius=0, embedding="embedding"), What(on="texts"), What(on="both")]):
        found = reduce(what, opened(made, tmp_path / str(i))).to_pylist()
        assert [r["of"] for r in found] == [None, *["u000"] * (n - 1)][:n]


def test_zero_vectors_take_no_part(tmp_path: Path) -> None:
    zero, bad, one = (0.0, 0.0, 0.0), (float("nan"), 0.0, 1.0), (1.0, 0.0, 0.0)
    made = [Made(f"u{i}", (Medium(f"{i}", None, v),)) for i, v in enumerate([zero, zero, bad, bad, one, one])]
    population = opened(made, tmp_path)
    assert population.vectors["embedding"].refused == 4
    what = What(phash_radius=0, embedding="embedding")
    assert [r["of"] for r in reduce(what, population).to_pylist()] == [None] * 5 + ["u4"]


def test_vectors_of_another_step_are_refused(tmp_path: Path) -> None:
    ids = np.arange(2)
    held = write_vectors(tmp_path / "v", 2, np.zeros((0, 2)), [(ids, ids * 0, np.ones((2, 3), np.float32))], digest="old")
    table = opened([Made(f"u{i}", (Medium(f"{i}"),)) for i in range(2)], tmp_path / "t").table
    population = population_of(table, tmp_path, vectors={"embedding": held}, digests={"embedding": "new"})
    with pytest.raises(InfrastructureError, match=r"'embedding' are of the step old, the recipe's is new.*run the recipe again"):
        reduce(What(phash_radius=0, embedding="embedding"), population)
