from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from curation import clusters, seeds
from curation.clusters import assign, evenly, flat_index, one_thread, train_centroids
from curation.population import OneByOne
from curation.vectors import Vectors, unit
from tests.curation.spread import Dying, Killed, Threads, vectors_of

D = 12


def blobs(n: int, centres: int, spread: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centres, D))
    return unit(middle[rng.integers(0, centres, n)] + rng.normal(0, spread, (n, D)))[0]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return vectors_of(tmp_path_factory.mktemp("space"), blobs(3000, 25))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "TRAIN_BLOCK", 256)
    monkeypatch.setattr(clusters, "ASSIGN_BLOCK", 256)


def all_ids(space: Vectors) -> np.ndarray:
    return np.flatnonzero(space.valid)


def files(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def cost(values: np.ndarray, centroids: np.ndarray) -> float:
    return float(1 - (values.astype(np.float64) @ centroids.T.astype(np.float64)).max(axis=1).mean())


# k-means


def by_numpy(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """One of Lloyd's turns by brute force."""
    nearest = (values.astype(np.float64) @ centroids.T.astype(np.float64)).argmax(axis=1)
    sums = np.stack([values[nearest == c].astype(np.float64).sum(axis=0) for c in range(len(centroids))])
    return sums / np.linalg.norm(sums, axis=1)[:, None]


def test_centroids_are_where_another_turn_of_lloyd_leaves_them(space: Vectors, tmp_path: Path) -> None:
    ids = all_ids(space)
    found = train_centroids(space, ids, 20, 7, OneByOne(), tmp_path, iterations=80, sample_per_centroid=1000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(by_numpy(space.take(ids), found), found, atol=1e-5)


def test_they_are_as_good_as_those_of_faiss(space: Vectors, tmp_path: Path) -> None:
    values = space.take(all_ids(space))
    ours, theirs = [], []
    for seed in range(3):
        found = train_centroids(space, all_ids(space), 30, seed, OneByOne(), tmp_path, iterations=20)
        ours.append(cost(values, found))
        with one_thread():
            means = faiss.Kmeans(D, 30, niter=20, seed=seed, spherical=True, max_points_per_centroid=64)
            means.train(values[: 30 * 64])
        theirs.append(cost(values, means.centroids))
    assert np.mean(ours) <= np.mean(theirs) * 1.1


def test_neither_workers_nor_blocks_show_in_a_digit(space: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads()
    one = train_centroids(space, all_ids(space), 30, 1, OneByOne(), tmp_path / "one")
    many = train_centroids(space, all_ids(space), 30, 1, threads, tmp_path / "many")
    assert one.tobytes() == many.tobytes()
    assert len(threads.ran) > 8  # several blocks
    other = train_centroids(space, all_ids(space), 30, 2, OneByOne(), tmp_path / "one")
    assert other.tobytes() != one.tobytes()  # the seed counts


def test_a_training_that_is_killed_goes_on(space: Vectors, tmp_path: Path) -> None:
    whole = train_centroids(space, all_ids(space), 30, 1, OneByOne(), tmp_path / "whole")
    with pytest.raises(Killed):
        train_centroids(space, all_ids(space), 30, 1, Dying(8 * 3 + 1), tmp_path / "cut")
    turns = files(tmp_path / "cut", "centroids-*-*.npy")
    assert len(turns) == 4  # the first, and three that were done
    again = Threads()
    assert train_centroids(space, all_ids(space), 30, 1, again, tmp_path / "cut").tobytes() == whole.tobytes()
    assert len(again.ran) < 8 * 10  # not from the beginning
    assert len(files(tmp_path / "cut", "*")) == 1  # nothing is left over but the answer
    last = Threads()
    assert train_centroids(space, all_ids(space), 30, 1, last, tmp_path / "cut").tobytes() == whole.tobytes()
    assert not last.ran


def test_all_alike_are_one_cluster_and_few_different_ones_as_many(tmp_path: Path) -> None:
    alike = vectors_of(tmp_path / "alike", np.tile(blobs(1, 1), (700, 1)))
    found = train_centroids(alike, all_ids(alike), 50, 1, OneByOne(), tmp_path)
    np.testing.assert_allclose(found, alike.take(np.array([0])), atol=1e-6)
    three = vectors_of(tmp_path / "three", np.repeat(np.eye(D)[:3], [500, 3, 1], axis=0))
    found = train_centroids(three, all_ids(three), 50, 1, OneByOne(), tmp_path)
    assert sorted(map(tuple, found.round(6).tolist())) == sorted(map(tuple, np.eye(D)[:3].tolist()))
    one = train_centroids(three, np.array([501]), 50, 1, OneByOne(), tmp_path)
    assert one.tolist() == [np.eye(D)[1].tolist()]
    assert train_centroids(three, np.array([], np.int64), 50, 1, OneByOne(), tmp_path).shape == (0, D)


def test_opposite_vectors_have_centroids_of_unit_length(tmp_path: Path) -> None:
    both = vectors_of(tmp_path / "both", np.repeat([[1.0, 0], [-1, 0]], 10, axis=0))
    for k in (1, 2, 3):
        found = train_centroids(both, all_ids(both), k, 1, OneByOne(), tmp_path)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_nine_tenths_alike_leave_the_centroids_to_the_rest(tmp_path: Path) -> None:
    """A blob of equal vectors needs one centroid however large it is; it may not starve the others."""
    values = blobs(2000, 40)
    values[:1800] = values[0]
    space = vectors_of(tmp_path / "blob", values[np.random.default_rng(0).permutation(2000)])
    found = train_centroids(space, all_ids(space), 40, 1, OneByOne(), tmp_path, sample_per_centroid=100)
    near = assign(space, all_ids(space), found, 1, OneByOne(), tmp_path)[0][:, 0]
    sizes = np.bincount(near, minlength=len(found))
    assert sizes.max() >= 1800
    assert (sizes > 0).sum() >= 38


def test_a_centroid_without_members_halves_the_dearest_cluster() -> None:
    values = blobs(300, 30, spread=0.5)
    nearest = np.where(np.arange(300) < 260, 0, 1).astype(np.int32)
    before = values[:4].copy()
    cosine = (values * before[nearest]).sum(axis=1)
    means = clusters._means(values, nearest, cosine, before)
    sums = values[:260].sum(axis=0)
    whole = sums / np.linalg.norm(sums)
    halves = [c for c in range(4) if means[c] @ whole > 0.999]
    assert len(halves) == 3  # twice: cluster 0 is dearest, and half of it still dearer than cluster 1
    assert len({means[c].tobytes() for c in halves}) == 3
    assert np.abs(means[1] @ means[halves].T).max() < 0.99


# where it begins


def test_seeds_far_apart_find_small_places_beside_a_crowd() -> None:
    """30 places of 4 beside a crowd of 1,880: a draw among all hits few of the places, a draw by distance most."""
    rng = np.random.default_rng(2)
    middle = unit(rng.standard_normal((31, 64)))[0]
    truth = rng.permutation(np.repeat(np.arange(31), [1880, *[4] * 30]))
    values = unit(middle[truth] + rng.normal(0, 0.01, (2000, 64)))[0]
    asked = []

    def cosines(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return (values @ rows.T).max(axis=1)

    far = seeds.far_apart(values, 40, 1, cosines)
    assert asked == [1, 1, 2, 4, 8, 16, 8]
    assert len(set(far.tolist())) == 40
    assert len(set(truth[far].tolist())) >= 29
    assert len(set(truth[seeds.at_random(values, 40, 1)].tolist())) <= 10


def test_no_two_seeds_are_alike(space: Vectors) -> None:
    few = np.repeat(space.take(np.arange(5)), [100, 1, 50, 2, 3], axis=0)
    for found in (seeds.far_apart(few, 8, 1, lambda rows: (few @ rows.T).max(axis=1)), seeds.at_random(few, 8, 1)):
        assert found.tolist() == [0, 100, 101, 151, 153]
    assert len(seeds.at_random(few, 3, 1)) == len(seeds.far_apart(few, 3, 1, lambda rows: (few @ rows.T).max(axis=1))) == 3


@pytest.mark.parametrize("apart", [False, True])
def test_both_beginnings_are_the_same_for_any_workers(apart: bool, space: Vectors, tmp_path: Path) -> None:
    one = train_centroids(space, all_ids(space), 30, 1, OneByOne(), tmp_path / "one", iterations=2, apart=apart)
    assert one.tobytes() == train_centroids(space, all_ids(space), 30, 1, Threads(), tmp_path / "many", iterations=2, apart=apart).tobytes()
    assert (
        one.tobytes()
        != train_centroids(space, all_ids(space), 30, 1, OneByOne(), tmp_path / "one", iterations=2, apart=not apart).tobytes()
    )


# the sample


@pytest.mark.parametrize("wanted", [0, 1, 7, 99, 100, 101])
def test_places_are_evenly_spaced_and_never_more_than_wanted(wanted: int) -> None:
    found = evenly(100, wanted)
    assert len(found) == min(wanted, 100)
    assert (np.diff(found) > 0).all()
    if wanted:
        assert np.diff(np.concatenate([[-1], found])).max() <= 100 // min(wanted, 100) + 1


def test_large_samples_are_taken_in_runs() -> None:
    found = evenly(3_000_000, 1_100_000)
    assert 1_099_000 < len(found) <= 1_100_000
    assert (np.diff(found) > 0).all()
    assert found[-1] < 3_000_000
    assert (np.diff(found) == 1).mean() > 0.9
    assert evenly(1_100_001, 1_100_000)[-1] <= 1_100_000


def test_the_sample_depends_on_the_set_alone(tmp_path: Path) -> None:
    """Vectors that come in other batches and another order are the same files, so the same centroids."""
    from curation.vectors import write_vectors

    values, rng = blobs(900, 9), np.random.default_rng(3)
    answers = set()
    for turn in range(3):
        order = rng.permutation(900)
        batches = [(part, np.zeros(len(part), np.int64), values[part]) for part in np.array_split(order, turn + 1)]
        shuffled = write_vectors(tmp_path / str(turn), 900, np.zeros((0, 2)), batches)
        answers.add(train_centroids(shuffled, all_ids(shuffled), 5, 1, OneByOne(), tmp_path / f"s{turn}").tobytes())
    assert len(answers) == 1


# nearest centroids


@pytest.mark.parametrize("probes", [1, 5])
def test_the_nearest_are_those_of_brute_force(probes: int, space: Vectors, tmp_path: Path) -> None:
    ids = all_ids(space)[::3]
    centroids = space.take(np.arange(40))
    near, like = assign(space, ids, centroids, probes, Threads(), tmp_path)
    assert (near.dtype, like.dtype) == (np.int32, np.float32)
    exact = space.take(ids).astype(np.float64) @ centroids.astype(np.float64).T
    best = -np.sort(-exact, axis=1)[:, :probes]
    np.testing.assert_allclose(like, best, atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, np.asarray(near, np.int64), axis=1), best, atol=2e-6)


def test_no_more_probes_than_centroids_and_nothing_for_nobody(space: Vectors, tmp_path: Path) -> None:
    near, like = assign(space, np.arange(10), space.take(np.arange(3)), 16, OneByOne(), tmp_path)
    assert near.shape == like.shape == (10, 3)
    assert assign(space, np.zeros(0, np.int64), space.take(np.arange(3)), 2, OneByOne(), tmp_path)[0].shape == (0, 2)


def test_workers_and_a_kill_do_not_show(space: Vectors, tmp_path: Path) -> None:
    ids, centroids = all_ids(space), space.take(np.arange(40))
    whole = [a.tobytes() for a in assign(space, ids, centroids, 4, OneByOne(), tmp_path / "whole")]
    with pytest.raises(Killed):
        assign(space, ids, centroids, 4, Dying(5), tmp_path / "cut")
    done = files(tmp_path / "cut", "assigned-*-0*.npy")
    assert len(done) == 5
    (tmp_path / "cut" / done[2]).unlink()
    (tmp_path / "cut" / f"{done[2]}.torn.tmp").write_bytes(b"\x93NUMPY")
    again = Threads()
    assert [a.tobytes() for a in assign(space, ids, centroids, 4, again, tmp_path / "cut")] == whole
    assert len(again.ran) == -(-len(ids) // 256) - 4
    assert len(files(tmp_path / "cut", "*.npy")) == 2
    last = Threads()
    assert [a.tobytes() for a in assign(space, ids, centroids, 4, last, tmp_path / "cut")] == whole
    assert not last.ran


def test_answers_of_other_questions_are_not_taken(space: Vectors, tmp_path: Path) -> None:
    """Other centroids, ids, probes or vectors in the same scratch folder."""
    ids, centroids = all_ids(space), space.take(np.arange(40))
    other = vectors_of(tmp_path / "other", blobs(3000, 25, seed=5))
    questions: list[tuple[Any, ...]] = [
        (space, ids, centroids, 2),
        (space, ids, centroids[::-1].copy(), 2),
        (space, ids[1:], centroids, 2),
        (space, ids, centroids, 3),
        (other, ids, centroids, 2),
    ]
    for question in questions:
        near, like = assign(*question, OneByOne(), tmp_path / "scratch")
        fresh = assign(*question, OneByOne(), tmp_path / f"fresh-{len(files(tmp_path, 'fresh-*'))}")
        assert near.tobytes() == fresh[0].tobytes()
        assert like.tobytes() == fresh[1].tobytes()


def test_tasks_are_small_however_many_vectors_there_are(tmp_path: Path) -> None:
    """What is held for each vector of the population does not travel with a task."""
    many = vectors_of(tmp_path / "many", np.tile(blobs(1000, 5), (60, 1)))
    assert many.valid.nbytes == 60_000
    assign(many, np.arange(0, 60_000, 100), many.take(np.arange(3)), 1, Threads(most=8_000), tmp_path)


# the machine


def test_threads_are_given_back() -> None:
    before = faiss.omp_get_max_threads()
    with pytest.raises(Killed):
        _threads_at_the_end()
    assert faiss.omp_get_max_threads() == before


def _threads_at_the_end() -> None:
    with one_thread():
        assert faiss.omp_get_max_threads() == 1
        raise Killed


def test_a_gpu_is_asked_for_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here is none: that the index would be moved is all that can be seen."""
    moved: list[Any] = []

    class Resources:
        pass

    def to_gpu(resources: Any, device: int, index: Any) -> Any:
        moved.append((type(resources), device))
        return index

    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    values = blobs(10, 2)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert flat_index(values, 1.0).search(values, 1)[1][:, 0].tolist() == list(range(10))
    assert not moved
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    assert flat_index(values, 0.0).ntotal == 10
    assert not moved
    assert flat_index(values, 0.5).ntotal == 10
    assert moved == [(Resources, 0)]
