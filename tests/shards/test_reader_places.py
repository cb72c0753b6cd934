"""Samples by shard and row: the same bytes by every way, from few indexes; joined ranges read little that nobody asked for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.manifest import load_manifest, save_manifest
from shards.places import Place, PlacesReader
from shards.ranges import HOLE, SPAN, WASTE, join
from shards.reader import Dataset
from tests.shards.corpus import VERSION, manifest, publish, sample, two_splits
from tests.shards.counted_store import CountedStore

RANGES = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 40).map(lambda n: n * (HOLE // 4)), st.integers(0, 2 * HOLE)), max_size=30
)


@given(RANGES)
def test_joined_ranges_lie_in_their_spans_with_few_holes(wanted: list[tuple[str, int, int]]) -> None:
    spans, of = join(wanted)
    inside: dict[int, list[tuple[int, int]]] = {}
    for (name, offset, length), number in zip(wanted, of, strict=True):
        file, start, size = spans[number]
        assert file == name
        assert start <= offset
        assert offset + length <= start + size
        inside.setdefault(number, []).append((offset, offset + length))
    assert spans == sorted(spans)
    for (name, start, size), (after, next_start, _) in pairwise(spans):
        assert name != after or start + size <= next_start  # nothing is read twice
    for number, (_, _, size) in enumerate(spans):
        useful, end = 0, -1
        for first, last in sorted(inside[number]):
            useful += max(0, last - max(first, end))
            end = max(end, last)
        assert size - useful <= WASTE * useful


def test_neighbours_are_joined_and_far_ones_are_not() -> None:
    near = [("a", 8 * HOLE, 100), ("a", 0, 8 * HOLE - 50)]
    assert join(near) == ([("a", 0, 8 * HOLE - 50), ("a", 8 * HOLE, 100)], [1, 0])  # together longer than a span
    assert join([("a", 1_010, 90), ("a", 0, 1_000), ("b", 0, 5)]) == ([("a", 0, 1_100), ("b", 0, 5)], [0, 0, 1])
    assert join([("a", 0, 100), ("a", 200, 100)])[1] == [0, 1]  # half of it would be for nobody
    assert join([("a", 0, 2 * SPAN), ("a", SPAN, 10)])[1] == [0, 0]


@pytest.fixture(params=["local", "remote"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = str(tmp_path / "ds") if request.param == "local" else f"memory://places-{tmp_path.name}"
    publish(place, tmp_path, two_splits())
    return place


def test_every_row_gives_its_sample(url: str) -> None:
    dataset = Dataset.open(url)
    reader = PlacesReader(dataset, indexes=2)
    for named in ("path", "name", "index"):
        for info in reversed(dataset.manifest.shards):
            uids = dataset.index_of(info.path, ["uid"])["uid"].to_pylist()
            rows = np.arange(len(uids))[::-1]
            shard, at = reader.find([getattr(info, named)] * len(rows), rows, uids[::-1])
            places = list(map(Place, shard.tolist(), at.tolist()))
            fetched = reader.fetch(places)
            raws = [fetched.read(place) for place in places]
            assert [raw.uid for raw in raws] == uids[::-1]
            assert raws == dataset.read(uids[::-1])
    reader.close()


def test_only_the_indexes_of_wanted_shards_are_read_and_few_are_held(tmp_path: Path) -> None:
    url = f"memory://few-{tmp_path.name}"
    publish(url, tmp_path, {f"train-{i:06d}": [sample(2 * i), sample(2 * i + 1)] for i in range(5)})
    opened = Dataset.open(url)
    store = CountedStore(opened.store)
    dataset = Dataset(store, opened.manifest)
    shards = [info.path for info in opened.manifest.shards]
    reader = PlacesReader(dataset, indexes=2)
    sizes = [info.index_bytes for info in opened.manifest.shards]
    for wanted, expected in (([0, 1], [0, 1]), ([0], []), ([2], [2]), ([0], []), ([1], [1])):
        before = store.of(".parquet")
        reader.find([shards[i] for i in wanted], np.zeros(len(wanted), np.int64))
        assert store.of(".parquet") - before == sum(sizes[i] for i in expected), wanted
    assert dataset.traffic.counts() == {"ranges": 0, "tars": 0, "indexes": store.of(".parquet")}
    reader.close()


def test_neighbours_cost_one_request_and_what_is_counted_was_read(tmp_path: Path) -> None:
    url = f"memory://joined-{tmp_path.name}"
    publish(url, tmp_path, {"train-000000": [sample(i) for i in range(12)]})
    opened = Dataset.open(url)
    store = CountedStore(opened.store)
    dataset = Dataset(store, opened.manifest)
    reader = PlacesReader(dataset, indexes=1)
    members = reader.members({0})[0]
    before = store.requests
    fetched = reader.fetch([Place(0, i) for i in (5, 3, 4, 3)])
    assert [fetched.read(Place(0, i)).uid for i in (3, 4, 5)] == [sample(i).uid for i in (3, 4, 5)]
    assert store.requests == before + 1
    assert store.of(".tar") == dataset.traffic.counts()["ranges"] == int(members.bytes[3:6].sum())
    reader.close()


def test_rows_of_another_index_are_refused(url: str) -> None:
    dataset = Dataset.open(url)
    reader = PlacesReader(dataset, indexes=4)
    shard = dataset.manifest.shards[0]
    for row, uid in ((0, sample(1).uid), (shard.rows, sample(0).uid), (-1, sample(0).uid)):
        with pytest.raises(ShardError, match=rf"no sample {uid} in row {row} of shard .*another version's index; plan again"):
            reader.find([shard.name], np.array([row]), [uid])
    with pytest.raises(ShardError, match=r"shard train-000077\.tar"):
        reader.find(["train-000077.tar"], np.array([0]))
    reader.close()


def test_tars_of_one_name_in_a_grown_dataset_are_told_apart_by_uid(tmp_path: Path) -> None:
    url = str(tmp_path / "ds")
    publish(url, tmp_path, {"train-000000": [sample(0), sample(3)]})
    old = load_manifest(tmp_path / "ds").shards[0]
    publish(url, tmp_path, {"train-000000": [sample(4), sample(8)]}, "bbbb")
    new = load_manifest(tmp_path / "ds").shards[0]
    save_manifest(Dataset.open(url).store, manifest([old, new], "cccc", VERSION))
    reader = PlacesReader(Dataset.open(url), indexes=4)
    assert old.name == new.name
    shard, at = reader.find([old.name] * 3, np.array([0, 0, 1]), [sample(4).uid, sample(0).uid, sample(8).uid])
    assert (shard.tolist(), at.tolist()) == ([1, 0, 1], [0, 0, 1])
    with pytest.raises(ShardError, match="plan again"):
        reader.find([old.name], np.array([0]))
    reader.close()
