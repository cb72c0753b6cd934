"""What was paid for is not paid for again: by whatever process, whatever happened to the last one."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curation.caption import STEP, CaptionHow, What
from curation.caption_cache import SqliteCache, open_cache
from curation.caption_reply import RefusalError, Reply, ReplyError
from curation.models import cache_dir
from shards.errors import InfrastructureError
from tests.curation.chat_server import ChatServer, grey_pictures, say, serving, status
from tests.curation.views import media_view

WHAT = What(model="some-model", prompt="What is it?")
REPLIES = {f"{i:064x}": Reply(text, finish, tokens) for i, (text, finish, tokens) in enumerate(
    [("a dog", "stop", 3), ("", "refused", None), ("half \ud83d", "length", 0), ("قطة 😀\n", "stop", 1 << 30)]
)}  # fmt: skip


def places(folder: Path) -> list[str]:
    return ["", str(folder / "own.sqlite"), str(folder), f"file://{folder}/objects", f"memory://{folder.name}"]


@pytest.mark.parametrize("number", range(5))
def test_replies_come_back_as_they_were(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path / "cache"))
    place = places(tmp_path)[number]
    cache = open_cache(place)
    assert cache.get(list(REPLIES)) == {}
    for key, reply in REPLIES.items():
        cache.put(key, reply)
    first = next(iter(REPLIES))
    cache.put(first, Reply("another", "stop"))
    again = open_cache(place)
    assert again.get([*REPLIES, "f" * 64]) == REPLIES
    assert again.get([]) == {}
    assert (number == 0) == (cache_dir() / "captions.sqlite").is_file()


def test_off_is_off(tmp_path: Path) -> None:
    cache = open_cache("off")
    cache.put("0" * 64, Reply("x", "stop"))
    assert cache.get(["0" * 64]) == {}


def test_a_damaged_file_is_set_aside_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"this was a disk full of holes" * 400)
    with caplog.at_level(logging.WARNING, "fovea"):
        cache = open_cache(str(path))
    assert "set aside" in caplog.text
    [aside] = tmp_path.glob("c.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"this was")
    cache.put("0" * 64, Reply("x", "stop"))
    # and one that breaks while it is open
    pages = bytearray(path.read_bytes())
    assert isinstance(cache, SqliteCache)
    cache._connection.execute("pragma wal_checkpoint(truncate)")
    pages = bytearray(path.read_bytes())
    pages[100:] = b"\xff" * (len(pages) - 100)
    path.write_bytes(pages)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fovea"):
        assert open_cache(str(path)).get(["0" * 64]) == {}
    assert "set aside" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b'{"text": 3, "finish": "stop", "tokens": 1}',
        b'{"text": "x", "finish": "odd", "tokens": 1}',
        b"\xff",
        b'{"text": "x", "finish": "stop", "tokens": true}',
        b'{"text": "x", "finish": "stop", "tokens": 4294967296}',
    ],
)
def test_a_damaged_reply_is_asked_for_again(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, reply = "ab" * 32, Reply("a dog", "stop", 3)
    folder = open_cache(f"file://{tmp_path}/objects")
    (tmp_path / "objects" / "ab").mkdir(parents=True)
    (tmp_path / "objects" / "ab" / f"{key}.json").write_bytes(data)
    table = open_cache(str(tmp_path / "t.sqlite"))
    assert isinstance(table, SqliteCache)
    with table._connection as connection:
        connection.execute("insert into replies values (?, ?)", [key, data])
    for cache in (folder, table):
        with caplog.at_level(logging.WARNING, "fovea"):
            assert cache.get([key]) == {}
        assert "damaged" in caplog.text
        cache.put(key, reply)
        assert cache.get([key]) == {key: reply}


@pytest.mark.parametrize("form", ["{}/c.sqlite", "file://{}"])
def test_a_place_that_cannot_be_written_is_told_before_a_reply_is_paid_for(form: str, tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")  # reading finds nothing there, and no folder can be made: as on a read-only disk
    what = What(model="some-model")
    with serving(lambda _: say("a dog")) as server:
        how = CaptionHow(backend="openai", url=server.url, cache=form.format(tmp_path / "nowhere"))
        assert STEP.open is not None
        with pytest.raises(InfrastructureError, match="nowhere"):
            STEP.open(what, how)([media_view(path) for path in grey_pictures(tmp_path / "pics", [10])])
        assert server.asks == []


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InfrastructureError, match="`cache`"):
        open_cache(str(tmp_path / "file" / "c.sqlite"))


def _write(path: str, number: int) -> None:
    cache = open_cache(path)
    for i in range(100):
        cache.put(f"{i:064x}", Reply(f"of {number}", "stop"))


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    path = str(tmp_path / "c.sqlite")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(open_cache(path).get([f"{i:064x}" for i in range(100)])) == 100


def asked(server: ChatServer, paths: Sequence[Path], cache: Path | str, what: What = WHAT, **more: Any) -> Sequence[Any]:
    assert STEP.open is not None
    how = CaptionHow(backend="openai", url=server.url, backoff=0.01, retries=1, cache=str(cache), **more)
    return STEP.open(what, how)([media_view(path) for path in paths])


def test_a_question_is_paid_for_once(tmp_path: Path) -> None:
    paths, cache = grey_pictures(tmp_path / "pics", [10, 20, 30]), tmp_path / "c.sqlite"
    (tmp_path / "pics" / "copy.png").write_bytes(paths[0].read_bytes())
    with serving(lambda ask: say(f"grey {ask.grey} {ask.prompt}")) as server:
        first = asked(server, [*paths, tmp_path / "pics" / "copy.png"], cache)
        assert first[0] == first[3]
        assert server.count() == {10: 1, 20: 1, 30: 1}
        assert asked(server, paths, cache) == first[:3]
        assert asked(server, paths, cache, concurrency=1, served_as="elsewhere", timeout=9.0) == first[:3]
        assert all(isinstance(row, ReplyError) for row in asked(server, paths, cache, replace(WHAT, max_chars=3)))
        assert len(server.asks) == 3
        assert asked(server, paths[:1], cache, replace(WHAT, prompt="And now?"))[0]["text"] == "grey 10 And now?"
        asked(server, paths[:1], cache, replace(WHAT, model="other-model"))
        assert len(server.asks) == 5


def test_refusals_are_kept_and_failures_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_KEY", "a-key-that-nobody-may-see")
    paths, cache = grey_pictures(tmp_path / "pics", [10, 20, 30]), tmp_path / "c.sqlite"
    actions = {10: say("I'm sorry, but I can't help with that."), 20: status(200, b"garbage"), 30: say("fine"), 127: say("grey")}
    with serving(lambda ask: actions[ask.grey]) as server:
        for _ in range(2):
            refusal, failure, row = asked(server, paths, cache, api_key_env="CAPTION_KEY")
            assert isinstance(refusal, RefusalError)
            assert isinstance(failure, ReplyError)
            assert row["text"] == "fine"
        assert (server.count()[10], server.count()[30]) == (1, 1)
        assert server.count()[20] == 6
    held = b"".join(path.read_bytes() for path in tmp_path.glob("c.sqlite*"))
    assert b"fine" in held
    assert b"nobody-may-see" not in held
    assert b"127.0.0.1" not in held
