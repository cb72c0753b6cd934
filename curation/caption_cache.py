"""Replies that were paid for, kept by what was asked: a file of SQLite on one machine, or a folder of objects for a cluster.

Replies are stored as they came, before they are judged; nothing about servers, keys or samples is in them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, get_args

from curation.caption_reply import Finish, Reply
from curation.models import cache_dir
from shards.errors import InfrastructureError
from shards.paths import is_url, to_local
from shards.store import Store, open_store

log = logging.getLogger("fovea")

NAME = "captions.sqlite"
OFF = "off"
BUSY_SECONDS = 60.0
READERS = 16
_AT_ONCE = 500  # keys of one query: SQLite's own bound on parameters was 999 for long


class Cache(Protocol):
    """Raises InfrastructureError for a place that cannot be read or written. Safe between processes."""

    def get(self, keys: Sequence[str]) -> Mapping[str, Reply]:
        """The replies that are there, by key."""

    def put(self, key: str, reply: Reply) -> None:
        """Stored when this returns; the first reply for a key stays."""


def open_cache(place: str) -> Cache:
    """ "" = below `cache_dir()` · "off" · a path: SQLite (in a folder: `captions.sqlite`) · a URL, also file://: a folder of objects."""
    if place == OFF:
        return NoCache()
    if place.startswith("file://"):
        return StoreCache(open_store(to_local(place)))
    if is_url(place):
        return StoreCache(open_store(place))
    path = Path(place).expanduser().absolute() if place else cache_dir() / NAME
    return SqliteCache(path / NAME if path.is_dir() else path)


class NoCache:
    def get(self, keys: Sequence[str]) -> Mapping[str, Reply]:
        return {}

    def put(self, key: str, reply: Reply) -> None:
        return


class StoreCache:
    """One object `<two digits>/<key>.json` for each reply, and one that shows that the place takes any before a reply is paid for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.put_replace("writable", b"replies of caption models")

    def get(self, keys: Sequence[str]) -> Mapping[str, Reply]:
        with ThreadPoolExecutor(READERS, "fovea-cache") as threads:
            found = zip(keys, threads.map(self._read, keys), strict=True)
            return {key: reply for key, reply in found if reply is not None}

    def put(self, key: str, reply: Reply) -> None:
        self._store.put_new(_name(key), _to_json(reply))

    def _read(self, key: str) -> Reply | None:
        try:
            data = self._store.read(_name(key))
        except FileNotFoundError:
            return None
        if (reply := _from_json(data)) is None:
            log.warning("the cached reply %s is damaged; it is deleted, and asked for again", self._store.url(_name(key)))
            self._store.delete(_name(key))
        return reply


class SqliteCache:
    """A table (key, reply) in write-ahead mode. A file that SQLite cannot read is set aside under another name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection = self._opened()

    def get(self, keys: Sequence[str]) -> Mapping[str, Reply]:
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = list(keys[start : start + _AT_ONCE])
            marks = ",".join("?" * len(some))
            for key, data in self._do(f"select key, reply from replies where key in ({marks})", some):  # noqa: S608 question marks only
                if (reply := _from_json(data)) is None:
                    log.warning("a cached reply in %s is damaged; it is deleted, and asked for again", self._path)
                    self._do("delete from replies where key = ?", [key])
                else:
                    found[key] = reply
        return found

    def put(self, key: str, reply: Reply) -> None:
        self._do("insert or ignore into replies values (?, ?)", [key, _to_json(reply)])

    def _do(self, sql: str, values: Sequence[object]) -> list[tuple[str, bytes]]:
        with self._lock:
            for last in (False, True):
                try:
                    with self._connection:
                        return self._connection.execute(sql, values).fetchall()
                except sqlite3.OperationalError as error:
                    raise self._unusable(error) from error
                except sqlite3.DatabaseError as error:
                    if last:
                        raise self._unusable(error) from error
                    self._connection.close()
                    self._connection = self._opened()
        raise AssertionError("either answered or raised")

    def _opened(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._path):
                try:
                    return self._connect(check=True)
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError as error:
                    self._set_aside(error)
                    return self._connect(check=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _connect(self, check: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = normal")  # outlives the process always, a power cut but for the last moments
            connection.execute("create table if not exists replies (key text primary key, reply blob not null) without rowid")
            if check and (found := connection.execute("pragma quick_check(1)").fetchone()) != ("ok",):
                raise sqlite3.DatabaseError(f"quick_check: {found}")
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
        for end in ("", "-wal", "-shm"):
            part = Path(f"{self._path}{end}")
            if part.exists():
                os.replace(part, f"{aside}{end}")
        log.warning("the cache of replies %s is damaged (%s); it is set aside as %s and begun anew", self._path, error, aside.name)

    def _unusable(self, error: Exception) -> InfrastructureError:
        return InfrastructureError(
            f"the cache of replies {self._path} cannot be used: {error}; mend the disk or the permissions, or give another place by `cache`"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time opens the file, so that no two set it aside."""
    with open(f"{path}.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _name(key: str) -> str:
    return f"{key[:2]}/{key}.json"


def _to_json(reply: Reply) -> bytes:
    return json.dumps(asdict(reply), ensure_ascii=True).encode()  # ASCII: half a character of a broken reply survives


def _from_json(data: bytes) -> Reply | None:
    """None for what is no reply."""
    try:
        value = json.loads(data)
        reply = Reply(value["text"], value["finish"], value["tokens"])
    except (ValueError, KeyError, TypeError):
        return None
    counted = reply.tokens is None or (type(reply.tokens) is int and 0 <= reply.tokens < 1 << 31)
    sound = isinstance(reply.text, str) and reply.finish in get_args(Finish) and counted
    return reply if sound else None
