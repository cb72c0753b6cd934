"""The node's cache of whole tars: fetched once, bounded, never taken from under a reader; whatever goes wrong with it, the samples come."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from shards.cache import ShardCache
from shards.errors import InfrastructureError, ShardError
from shards.manifest import ShardInfo
from shards.places import Place, PlacesReader
from shards.ranges import Traffic
from shards.reader import Dataset
from shards.writer import ShardMedium, ShardSample
from tests.shards.corpus import publish, sample
from tests.shards.counted_store import CountedStore

COUNT = 4


@dataclass
class Made:
    dataset: Dataset
    store: CountedStore
    cache: ShardCache
    shards: tuple[ShardInfo, ...]

    def reader(self, cache: ShardCache | None = None) -> PlacesReader:
        return PlacesReader(self.dataset.cached(cache or self.cache), indexes=COUNT)

    def files(self) -> set[str]:
        return {path.name for path in self.cache.folder.iterdir() if path.suffix in (".tar", ".part")}

    def tars(self, *numbers: int) -> set[str]:
        return {f"{self.shards[number].sha256}.tar" for number in numbers}


def one(number: int) -> ShardSample:
    """All of one size."""
    return sample(number, media=[ShardMedium("image", "x.jpg", random.Random(number).randbytes(3_000))], items=1)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Four shards of two samples each in a remote store, and a cache for all of them."""
    url = f"memory://cache-{tmp_path.name}"
    publish(url, tmp_path, {f"train-{i:06d}": [one(2 * i), one(2 * i + 1)] for i in range(COUNT)})
    opened = Dataset.open(url)
    store = CountedStore(opened.store)
    dataset = Dataset(store, opened.manifest)
    return Made(dataset, store, ShardCache(tmp_path / "cache", 1 << 30), opened.manifest.shards)


def uids(reader: PlacesReader, *numbers: int) -> list[str]:
    places = [Place(number, i) for number in numbers for i in (0, 1)]
    fetched = reader.fetch(places)
    return [fetched.read(place).uid for place in places]


def expected(*numbers: int) -> list[str]:
    return [sample(2 * number + i).uid for number in numbers for i in (0, 1)]


def test_a_wanted_tar_is_fetched_once_whole_and_read_from_there(made: Made) -> None:
    reader = made.reader()
    reader.want_whole([2, 0], wait=True)
    for _ in range(2):
        assert uids(reader, 0, 1, 2) == expected(0, 1, 2)
    for number in (0, 2):
        assert made.store.bytes[made.shards[number].path] == made.shards[number].bytes
    assert reader.dataset.traffic.counts()["tars"] == sum(made.shards[n].bytes for n in (0, 2))
    assert reader.dataset.traffic.total == sum(made.store.bytes.values())
    assert made.files() == made.tars(0, 2)
    again = pickle.loads(pickle.dumps(made.cache))
    other = made.reader(again)
    before = sum(made.store.bytes.values())
    other.want_whole([2, 0], wait=True)
    assert uids(other, 0, 2) == expected(0, 2)
    assert sum(made.store.bytes.values()) == before  # neither tars nor indexes
    for one in (reader, other):
        one.close()


def test_meanwhile_samples_come_by_ranges(made: Made) -> None:
    others = threading.enumerate()
    reader = made.reader()
    go_on = threading.Event()
    read_range = made.store.read_range

    def slow(name: str, offset: int, length: int) -> bytes:
        if length == made.shards[1].bytes:
            assert go_on.wait(20)
        return read_range(name, offset, length)

    made.store.read_range = slow  # type: ignore[method-assign]
    reader.want_whole([1], wait=False)
    assert uids(reader, 1) == expected(1)
    assert reader.dataset.traffic.counts()["tars"] == 0
    go_on.set()
    while not made.tars(1) <= made.files():
        threading.Event().wait(0.01)
    reader.want_whole([1], wait=True)
    before = reader.dataset.traffic.total
    assert uids(reader, 1) == expected(1)
    assert reader.dataset.traffic.total == before
    reader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("fovea-") and t not in others]


def test_processes_of_a_node_share_one_fetch(made: Made) -> None:
    children = []
    begin_read, begin_write = os.pipe()
    for _ in range(3):
        back_read, back_write = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.read(begin_read, 1)
                reader = made.reader()
                reader.want_whole(range(COUNT), wait=True)
                right = uids(reader, *range(COUNT)) == expected(*range(COUNT))
                counts = reader.dataset.traffic.counts()
                os.write(back_write, f"{counts['tars']} {counts['ranges']} {counts['indexes']}".encode())
                code = 0 if right else 1
            finally:
                os._exit(code)
        children.append((child, back_read))
    os.write(begin_write, b"123")
    told = []
    for child, back in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        told.append([int(n) for n in os.read(back, 100).split()])
    assert [sum(column) for column in zip(*told, strict=True)] == [
        sum(shard.bytes for shard in made.shards),
        0,
        sum(shard.index_bytes for shard in made.shards),
    ]
    assert made.files() == made.tars(*range(COUNT))


def test_threads_share_one_fetch_too(made: Made) -> None:
    traffic = Traffic()
    with ThreadPoolExecutor(8) as pool:
        states = set(pool.map(lambda _: made.cache.fill(made.store, made.shards[0], traffic), range(40)))
    assert states <= {"there", "busy"}
    assert traffic.counts()["tars"] == made.shards[0].bytes


def test_it_stays_within_its_bound_and_what_was_used_last_stays(made: Made) -> None:
    size = made.shards[0].bytes
    assert {shard.bytes for shard in made.shards} == {size}
    cache = replace(made.cache, limit=2 * size + size // 2)
    fill = [lambda n=n: cache.fill(made.store, made.shards[n], Traffic()) for n in range(COUNT)]
    assert [fill[0](), fill[1]()] == ["there", "there"]
    os.utime(cache.folder / made.tars(1).pop(), ns=(1, 1))
    os.utime(cache.folder / made.tars(0).pop(), ns=(2, 2))
    assert cache.open(made.shards[1]) is not None  # used, so that the other one is the older now
    assert fill[2]() == "there"
    assert made.files() == made.tars(1, 2)
    held = [cache.open(made.shards[n]) for n in (1, 2)]
    assert fill[3]() == "no room"
    assert made.files() == made.tars(1, 2)
    assert held[0] is not None
    assert len(held[0].read(10, 0)) == 10
    del held
    assert fill[3]() == "there"
    assert replace(cache, limit=size // 2).fill(made.store, made.shards[0], Traffic()) == "no room"


def test_without_room_samples_come_by_ranges(made: Made) -> None:
    limit = 2 * made.shards[0].bytes
    reader = made.reader(replace(made.cache, limit=limit))
    reader.want_whole(range(COUNT), wait=True)
    assert uids(reader, *range(COUNT)) == expected(*range(COUNT))
    assert 0 < len(made.files()) < COUNT
    assert sum(path.stat().st_size for path in made.cache.folder.iterdir()) <= limit
    reader.want_whole([3], wait=True)  # the others are let go of, so that there is room
    assert made.tars(3) <= made.files()
    reader.close()


def test_a_disk_that_is_full_costs_the_cache_and_nothing_else(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    reader = made.reader()
    reader.want_whole([0, 1], wait=True)
    assert uids(reader, 0, 1) == expected(0, 1)
    assert not made.files()
    reader.close()


def test_a_file_that_is_renamed_while_the_folder_is_listed_costs_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    other = made.cache.folder / "other.tar.part"
    other.write_bytes(b"x")
    scandir, listed = os.scandir, []

    def renamed_meanwhile(path: Path) -> list[os.DirEntry[str]]:
        listed.append(list(scandir(path)))
        if len(listed) == 1:
            other.rename(other.with_suffix(""))
        return listed[-1]

    monkeypatch.setattr("shards.cache.os.scandir", renamed_meanwhile)
    assert made.cache.fill(made.store, made.shards[0], Traffic()) == "there"
    assert len(listed) == 2


def test_a_link_to_nothing_and_a_folder_that_goes_hold_nobody_up(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    (made.cache.folder / "link").symlink_to("nothing")
    assert made.cache.fill(made.store, made.shards[0], Traffic()) == "there"

    def gone(path: Path) -> list[os.DirEntry[str]]:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr("shards.cache.os.scandir", gone)
    assert made.cache.fill(made.store, made.shards[1], Traffic()) == "no room"


def test_what_a_killed_process_left_is_taken_over_or_removed(made: Made) -> None:
    (left,) = made.tars(0)
    (made.cache.folder / f"{left}.part").write_bytes(b"x" * 5000)
    (made.cache.folder / "00.tar.part").write_bytes(b"x" * 5000)
    cache = replace(made.cache, limit=made.shards[0].bytes + 100)
    assert cache.fill(made.store, made.shards[0], Traffic()) == "there"
    assert made.files() == made.tars(0)
    with open(made.cache.folder / "other.part", "wb") as busy:  # one that is being written stays
        busy.write(b"x")
        busy.flush()
        fcntl.flock(busy, fcntl.LOCK_EX)
        made.cache.drop(made.shards[0])
        assert cache.fill(made.store, made.shards[1], Traffic()) in ("there", "no room")
        assert "other.part" in made.files()


def test_a_damaged_copy_is_dropped_and_the_store_asked(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    reader = made.reader()
    reader.want_whole([1], wait=True)
    (name,) = made.tars(1)
    path = made.cache.folder / name
    path.write_bytes(bytes(path.stat().st_size))
    with caplog.at_level(logging.WARNING, "fovea"):
        assert uids(reader, 1) == expected(1)
    assert "the copy of v-abcd1234/train-000001.tar in the cache is damaged" in caplog.text
    assert not made.files()
    reader.close()


def test_a_tar_that_is_not_the_manifests_is_not_kept_and_only_its_damage_counts(made: Made) -> None:
    path = made.shards[1].path
    data = bytearray(made.store.read(path))
    members = made.dataset.members(1)
    data[int(members.at[0])] ^= 1
    made.store.put_replace(path, bytes(data))
    reader = made.reader()
    reader.want_whole([0, 1], wait=True)
    assert made.files() == made.tars(0)
    fetched = reader.fetch([Place(1, 0), Place(1, 1)])
    assert fetched.read(Place(1, 1)).uid == sample(3).uid
    with pytest.raises(ShardError, match=f"sample {sample(2).uid}, member .* is damaged"):
        fetched.read(Place(1, 0))
    for left in (bytes(data[:700]), None):
        made.store.put_replace(path, left) if left is not None else made.store.delete(path)
        reader.want_whole([1], wait=True)
        assert not made.files() & made.tars(1)
        with pytest.raises(ShardError, match=r"is cut: |is missing, though the manifest names it"):
            reader.fetch([Place(1, 1)]).read(Place(1, 1))
    reader.close()


def test_an_index_is_kept_and_one_that_was_spoilt_is_read_again(made: Made) -> None:
    index = made.cache.folder / f"{made.shards[0].index_sha256}.parquet"
    made.dataset.cached(made.cache).members(0)
    assert index.stat().st_size == made.shards[0].index_bytes
    index.write_bytes(b"PAR1" + bytes(made.shards[0].index_bytes - 4))
    before = made.store.of(".parquet")
    assert np.array_equal(made.dataset.cached(made.cache).members(0).at, made.dataset.members(0).at)
    assert made.store.of(".parquet") - before == 2 * made.shards[0].index_bytes
    assert index.read_bytes() == made.store.read(made.shards[0].index)


def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InfrastructureError, match="cannot make the cache folder"):
        ShardCache(tmp_path / "file" / "cache", 1)
