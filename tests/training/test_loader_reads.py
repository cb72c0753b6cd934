"""How the loader reads: the same packs from every kind of store, no more of it than is needed, and an end where too much is unreadable."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.cache import ShardCache
from shards.chat import load_tokenizer
from shards.errors import ShardError
from shards.manifest import load_manifest
from shards.places import PlacesReader
from shards.profile import Profile, load_profile
from shards.reader import Dataset
from shards.tokenizer import tokenizer_digest
from tests.shards.counted_store import CountedStore, remote_copy
from tests.training import small_dataset
from training.collate import PackBatch
from training.index_source import DatasetIndex
from training.loader import LoadedStep, Loader
from training.mixture import Mixture
from training.node import Node, whole_shards
from training.plan import Plan, make_plan
from training.plan_parts import PlanConfig
from training.skips import SkipCount, TooManySkipped
from training.stages import SkipLimit

CONFIG = PlanConfig(profile="tiny", compress=True, packs=4, seq_tokens=256, pack_patches=1024, window_shards=1)


@dataclass(frozen=True)
class Made:
    path: Path
    tokenizer: Any
    profile: Profile
    dataset: Dataset
    plan: Plan

    def loader(self, dataset: Dataset | None = None, **settings: Any) -> Loader:
        return Loader(dataset or self.dataset, self.plan, self.tokenizer, self.profile, **({"workers": 0} | settings))

    def remote(self, name: str) -> tuple[Dataset, CountedStore]:
        """The same dataset in a store that is not this machine's disk."""
        store = remote_copy(self.path, f"memory://{name}")
        return Dataset(store, load_manifest(self.path)), store


def make(folder: Path) -> Made:
    path, words = small_dataset.write(folder)
    dataset = Dataset.open(path)
    plan = make_plan(DatasetIndex(dataset, "train"), Mixture(), CONFIG)
    return Made(path, load_tokenizer(words), load_profile("tiny", tokenizer_digest(words)), dataset, plan)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("reads"))


@pytest.fixture(scope="module")
def local(small: Made) -> list[LoadedStep]:
    return list(small.loader().steps())


def same(one: LoadedStep, other: LoadedStep) -> bool:
    def alike(a: PackBatch, b: PackBatch) -> bool:
        x, y = a.model_inputs() | {"labels": a.labels}, b.model_inputs() | {"labels": b.labels}
        return a.items == b.items and set(x) == set(y) and all(torch.equal(x[name], y[name]) for name in x)

    return all(alike(a, b) for a, b in zip(one.batches, other.batches, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_every_store_gives_the_same_packs_and_tells_what_was_read(
    small: Made, local: list[LoadedStep], tmp_path: Path, workers: int, cached: bool
) -> None:
    dataset, store = small.remote(f"same-{tmp_path.name}")
    cache = ShardCache(tmp_path / "cache", 1 << 30) if cached else None
    steps = list(small.loader(dataset, workers=workers, cache=cache).steps())
    assert len(steps) == len(local) > 3
    assert all(same(a, b) for a, b in zip(steps, local, strict=True))
    assert [(s.bytes_used, s.predicted, s.skipped) for s in steps] == [(s.bytes_used, s.predicted, 0) for s in local]
    shard = next(info for info in dataset.manifest.shards if info.split == "train")
    assert sum(step.bytes_read for step in steps) == sum(store.bytes.values())
    assert store.of(".parquet") == shard.index_bytes
    if cached and not workers:
        assert store.of(".tar") == shard.bytes  # alone, the rank wants all of it
    if not cached:
        assert sum(step.bytes_used for step in steps) < store.of(".tar")


def test_bytes_used_are_those_of_the_members(small: Made, local: list[LoadedStep]) -> None:
    rows = {row["uid"]: row for row in small.dataset.index(split="train").to_pylist()}
    size = {uid: row["json"]["length"] + sum(m["length"] for m in row["media"]) for uid, row in rows.items()}
    for step in local:
        assert step.bytes_used == sum(size[uid] for batch in step.batches for uid in {name.uid for name in batch.items})
        assert step.bytes_read >= step.bytes_used
    costs = [sum(pack.cost for pack in step.packs) for step in small.plan.steps()]
    assert [step.predicted for step in local] == pytest.approx(costs)


def test_a_node_fetches_whole_what_it_wants_half_of_and_reads_ranges_of_the_rest(small: Made, tmp_path: Path) -> None:
    once = Mixture(where="task not in ('document', 'short_caption')")  # one item a sample
    small = replace(small, plan=make_plan(DatasetIndex(small.dataset, "train"), once, CONFIG))
    shard = next(info for info in small.dataset.manifest.shards if info.split == "train")
    for nodes, whole in (([(0,), (1,), (2,), (3,)], False), ([(0, 1, 2), (3,)], True)):
        dataset, store = small.remote(f"nodes-{tmp_path.name}-{len(nodes)}")
        for number, ranks in enumerate(nodes):
            cache = ShardCache(tmp_path / f"{len(nodes)}-{number}", 1 << 30)
            for rank in ranks:
                list(small.loader(dataset, rank=rank, world=4, node=Node(ranks), cache=cache).steps())
            assert bool(list(cache.folder.glob("*.tar"))) == (whole and number == 0), (ranks, number)
        used = (shard.bytes if whole else 0, 2 * shard.bytes)
        assert used[0] < store.bytes[shard.path] < used[1]
        assert store.bytes[shard.index] == len(nodes) * shard.index_bytes  # once a node
    reader = PlacesReader(small.dataset, 2)
    assert whole_shards(small.plan, 0, Node((0, 1, 2, 3)), 4, reader) == [small.dataset.manifest.shards.index(shard)]
    assert whole_shards(small.plan, 0, Node((2,)), 4, reader) == []
    reader.close()


def test_a_node_is_what_the_launcher_says() -> None:
    assert Node.here(5, 8, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}) == Node((4, 5, 6, 7))
    assert Node.here(5, 8, {"LOCAL_RANK": "1", "LOCAL_SIZE": "2"}) == Node((4, 5))
    for alone in ({}, {"LOCAL_RANK": "1"}, {"LOCAL_RANK": "7", "LOCAL_WORLD_SIZE": "8"}, {"LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "2"}):
        assert Node.here(5, 8, alone) == Node((5,)), alone


def test_the_catalogue_of_all_samples_is_never_made(small: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(dataset: Dataset) -> None:
        raise AssertionError("the whole dataset's catalogue was made")

    monkeypatch.setattr(Dataset, "_catalogue", never)
    assert len(list(small.loader(workers=1).steps())) == small.plan.steps_total


def test_leaving_early_ends_all_threads(small: Made, tmp_path: Path) -> None:
    others = threading.enumerate()
    dataset, _ = small.remote(f"early-{tmp_path.name}")
    steps = small.loader(dataset, workers=2, cache=ShardCache(tmp_path / "cache", 1 << 30)).steps()
    next(steps)
    assert isinstance(steps, Iterator)
    steps.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("fovea-") and t not in others]


@pytest.mark.parametrize("cached", [False, True])
def test_a_remote_tar_that_is_gone_or_cut_ends_the_run(small: Made, tmp_path: Path, cached: bool) -> None:
    dataset, store = small.remote(f"gone-{tmp_path.name}")
    path = next(info.path for info in dataset.manifest.shards if info.split == "train")
    whole = store.store.read(path)
    cache = ShardCache(tmp_path / "cache", 1 << 30) if cached else None
    for damage in (whole[: len(whole) // 3], None):
        store.store.delete(path)
        if damage is not None:
            store.store.put_replace(path, damage)
        with pytest.raises(ShardError, match=r"train-000000\.tar is gone or cut; restore the tar, then resume"):
            list(small.loader(dataset, cache=cache, workers=1).steps())
    store.store.put_replace(path, whole)
    assert len(list(small.loader(dataset, cache=cache, workers=1).steps())) == small.plan.steps_total


def test_an_index_of_another_version_is_refused(small: Made, tmp_path: Path) -> None:
    other = tmp_path / "ds"
    (other / f"v-{small_dataset.VERSION}").mkdir(parents=True)
    for name in small.dataset.store.list():
        (other / name).write_bytes((small.path / name).read_bytes())
    index = next(info.index for info in small.dataset.manifest.shards if info.split == "train")
    data = bytearray((other / index).read_bytes())
    data[len(data) // 2] ^= 1
    (other / index).write_bytes(data)
    with pytest.raises(ShardError, match=r"train-000000\.parquet: not the index that the manifest names"):
        list(small.loader(Dataset.open(other)).steps())
    train, val = sorted(small.dataset.manifest.shards, key=lambda info: info.path)
    named = replace(val, path=train.path)  # the tar of the plan under an index that the plan does not know
    with pytest.raises(ShardError, match="another version's index; plan again"):
        list(small.loader(Dataset(small.dataset.store, replace(small.dataset.manifest, shards=(named,)))).steps())


def spoilt(small: Made, name: str, share: float) -> Dataset:
    """The dataset with a byte of the first `share` of its training samples changed: as long as before, and other content."""
    dataset, store = small.remote(name)
    number = next(n for n, info in enumerate(dataset.manifest.shards) if info.split == "train")
    path, members = dataset.manifest.shards[number].path, small.dataset.members(number)
    data = bytearray(store.store.read(path))
    for sample in range(round(share * len(members))):
        data[int(members.at[members.start[sample]])] ^= 1
    store.store.put_replace(path, bytes(data))
    return dataset


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_changed_since_the_plan_ends_the_run(small: Made, tmp_path: Path, workers: int) -> None:
    dataset = spoilt(small, f"changed-{tmp_path.name}-{workers}", 1.0)
    told: list[tuple[Any, ...]] = []
    loader = small.loader(dataset, workers=workers, count=SkipCount(SkipLimit()), skipped=lambda *lost: told.append(lost))
    with pytest.raises(
        ShardError,
        match=r"train-000000\.tar is not the shard that the dataset's manifest describes: of \d+ items that were read of it \d+ are lost",
    ):
        list(loader.steps())
    assert len({uid for uid, *_ in told}) >= 3


def test_both_limits_must_be_passed(small: Made, tmp_path: Path) -> None:
    dataset = spoilt(small, f"some-{tmp_path.name}", 0.2)
    free = list(small.loader(dataset).steps())
    lost, items = sum(step.skipped for step in free), sum(pack.items for step in small.plan.steps() for pack in step.packs)
    assert 0 < lost < items / 2
    assert [step.skipped for step in free] == [sum(len(batch.skipped) for batch in step.batches) for step in free]
    for allowed in (SkipLimit(items=lost, share=0.0), SkipLimit(items=0, share=1.0)):
        assert len(list(small.loader(dataset, count=SkipCount(allowed)).steps())) == len(free)
    worst = r"\(damaged \d+\).*allows 0 and.*source 'made' \(\d+\) and in shard v-.*train-000000\.tar \(\d+\)"
    with pytest.raises(TooManySkipped, match=worst) as ended:
        list(small.loader(dataset, count=SkipCount(SkipLimit(items=0, share=0.0))).steps())
    assert ended.value.counts.keys() == {"damaged"}
    sums = np.cumsum([step.skipped for step in free])
    seen: list[int] = []
    with pytest.raises(TooManySkipped):
        seen.extend(step.number for step in small.loader(dataset, count=SkipCount(SkipLimit(items=int(sums[0]), share=0.0))).steps())
    assert seen == [step.number for step, total in zip(free, sums, strict=True) if total == sums[0]]
