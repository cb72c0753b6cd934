"""The store: create-if-absent under races, whole files under kills, failures that name place and mend."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from shards.errors import InfrastructureError, RecipeError
from shards.store import LocalStore, Store, open_store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path / "root" if request.param == "local" else f"memory://{uuid.uuid4().hex}/root")


def test_put_new_creates_once_and_keeps_the_first(store: Store) -> None:
    assert store.put_new("log/00001.json", b"first")
    assert not store.put_new("log/00001.json", b"second")
    assert store.read("log/00001.json") == b"first"
    assert store.size("log/00001.json") == 5
    assert store.exists("log/00001.json")
    assert not store.exists("log")
    assert not store.exists("log/00002.json")


def test_put_replace_and_delete(store: Store) -> None:
    store.put_replace("manifest.json", b"one")
    store.put_replace("manifest.json", b"two!")
    assert store.read("manifest.json") == b"two!"
    store.delete("manifest.json")
    store.delete("manifest.json")
    assert store.list() == []
    with pytest.raises(FileNotFoundError):
        store.read("manifest.json")
    with pytest.raises(FileNotFoundError):
        store.open("manifest.json")
    assert store.put_new("manifest.json", b"three")


def test_read_range_and_open(store: Store) -> None:
    data = bytes(range(256)) * 100
    store.put_new("a", data)
    assert store.read_range("a", 1000, 300) == data[1000:1300]
    assert store.read_range("a", len(data) - 5, 300) == data[-5:]
    assert store.read_range("a", 3, 0) == b""
    with store.open("a") as file:
        file.seek(77)
        assert file.read(5) == data[77:82]


def test_list_is_sorted_and_takes_any_prefix(store: Store) -> None:
    assert store.list() == []
    for name in ("b/2", "b/10", "a", "bc", "b/x/1", "ünï cödé/ä b.txt"):
        assert store.put_new(name, b".")
    assert store.list() == ["a", "b/10", "b/2", "b/x/1", "bc", "ünï cödé/ä b.txt"]
    assert store.list("b/") == ["b/10", "b/2", "b/x/1"]
    assert store.list("b/1") == ["b/10"]
    assert store.list("b") == ["b/10", "b/2", "b/x/1", "bc"]
    assert store.list("none/such") == []


def test_put_new_file(store: Store, tmp_path: Path) -> None:
    source = store.tmp_path()
    source.write_bytes(b"shard" * 1000)
    assert store.put_new_file("v/00000.tar", source)
    assert not store.put_new_file("v/00000.tar", source)
    source.unlink()
    assert store.read("v/00000.tar") == b"shard" * 1000
    assert store.list() == ["v/00000.tar"]


def test_put_new_file_copies_where_it_cannot_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, store = os.link, open_store(tmp_path / "root")
    source = tmp_path / "finished"
    source.write_bytes(b"x" * 100_000)

    def other_disk(a: str | Path, b: str | Path) -> None:
        if Path(a) == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(a, b)

    monkeypatch.setattr(os, "link", other_disk)
    assert store.put_new_file("a/b", source)
    assert store.read("a/b") == b"x" * 100_000
    assert os.stat(tmp_path / "root" / "a" / "b").st_ino != source.stat().st_ino
    assert os.listdir(tmp_path / "root" / "a") == ["b"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a/./b", "a/", ".tmp-x", "a/.tmp-x/b", "a\0b"])
def test_names_stay_inside_the_root(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="no name in a store"):
        store.put_new(name, b"")


def _race(arguments: tuple[str, int, float]) -> list[int]:
    root, me, start = arguments
    store = open_store(root)
    time.sleep(max(0.0, start - time.time()))
    return [n for n in range(60) if store.put_new(f"log/{n:05d}", f"{me}".encode() * 5000)]


def test_racing_processes_have_one_winner_for_each_name(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        wins = pool.map(_race, [(root, me, time.time() + 2.0) for me in range(3)], chunksize=1)
    assert sorted(n for won in wins for n in won) == list(range(60))
    store = open_store(root)
    assert len(store.list()) == 60
    for me, won in enumerate(wins):
        for n in won:
            assert store.read(f"log/{n:05d}") == f"{me}".encode() * 5000
    assert not [f for f in os.listdir(tmp_path / "root" / "log") if f.startswith(".tmp-")]


WRITER = """
import sys
from shards.store import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
n = 0
while True:
    store.put_new(f"a/{n:06d}", b"%06d" % n * 500_000)
    store.put_replace("manifest", b"%06d" % n * 300_000)
    n += 1
"""


def test_a_kill_leaves_whole_files_and_tmp_files_only(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for wait in (0.05, 0.2, 0.35):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    for name in store.list("a/"):
        assert store.read(name) == b"%06d" % int(name[2:]) * 500_000
    if store.exists("manifest"):
        data = store.read("manifest")
        assert data == data[:6] * 300_000


def test_unfinished_files_are_invisible_and_swept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put_new("a/b", b"1")
    old, new = tmp_path / "a" / ".tmp-old", tmp_path / ".tmp-new"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (time.time() - 1000,) * 2)
    assert store.list() == ["a/b"]
    assert store.sweep(older_than_seconds=500) == 1
    assert new.exists()
    assert not old.exists()
    assert store.sweep(older_than_seconds=-10) == 1
    assert store.list() == ["a/b"]


def test_a_full_disk_is_infrastructure_with_path_and_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match=r"cannot write .*/commit: No space left on device; the disk is full: free some space"):
        store.put_new("commit", b"x" * 1000)
    with pytest.raises(InfrastructureError, match="free some space"):
        store.put_replace("commit", b"x" * 1000)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def _write_beyond_the_limit(root: str) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        open_store(root).put_new("big", b"x" * 200_000)
    except InfrastructureError as error:
        return str(error)
    return "no error"


def test_a_write_that_the_kernel_stops_halfway_leaves_nothing(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        message = pool.apply(_write_beyond_the_limit, (str(tmp_path),))
    assert "/big" in message
    assert "raise the limit" in message
    assert os.listdir(tmp_path) == []


def test_a_disk_without_hard_links_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(a: str | Path, b: str | Path) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InfrastructureError, match="no hard links"):
        open_store(tmp_path).put_new("a", b"")
    assert os.listdir(tmp_path) == []


def test_a_link_whose_answer_was_lost_is_a_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(a: str | Path, b: str | Path) -> None:
        link(a, b)
        link(a, b)

    monkeypatch.setattr(os, "link", twice)
    assert open_store(tmp_path).put_new("a", b"mine")


def test_urls(tmp_path: Path) -> None:
    local = open_store(f"file://{tmp_path}/with%20space")
    assert isinstance(local, LocalStore)
    assert local.local_path("a/b") == tmp_path / "with space" / "a" / "b"
    remote = open_store("memory://bucket/prefix/")
    assert remote.url("a") == "memory://bucket/prefix/a"
    assert remote.local_path("a") is None
    with pytest.raises(RecipeError, match="credentials"):
        open_store("s3://key:secret@host/bucket")
    with pytest.raises(InfrastructureError, match="nosuchprotocol"):
        open_store("nosuchprotocol://x")
