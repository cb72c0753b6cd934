"""Samples by the places that a plan names, (shard, row): from a local disk, by joined ranges, or out of whole tars in the node's cache."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from shards.errors import FoveaError, ShardError
from shards.members import Ints, Members, uid_bytes
from shards.ranges import REQUESTS, OpenFile, Read, join
from shards.reader import Dataset, RawSample

log = logging.getLogger("fovea")

_POLL = 0.05  # seconds until a tar that another process fetches is looked for again, at first
_POLL_MOST = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """The `sample`-th sample of the manifest's `shard`-th shard."""

    shard: int
    sample: int


@dataclass(frozen=True)
class Fetched:
    """Samples on their way. `read` waits for one. `copies`: those that are read from a copy in the cache."""

    reader: PlacesReader
    members: dict[int, Members]
    sources: dict[Place, Callable[[], Read]]
    copies: dict[Place, OpenFile]

    def read(self, place: Place) -> RawSample:
        """Raises ShardError for a tar that is missing, and for bytes that are cut or damaged; InfrastructureError of the store."""
        dataset, members = self.reader.dataset, self.members[place.shard]
        if place in self.copies:
            try:
                return dataset.load(members, place.sample, place.shard, self.copies[place].read)
            except ShardError:
                self.reader.forget(place.shard, self.copies[place])
            return dataset.load(members, place.sample, place.shard, dataset.ranges.span(self.reader.span(members, place)))
        return dataset.load(members, place.sample, place.shard, self.sources[place]())


class PlacesReader:
    """Reads samples of a dataset without the catalogue of all: only the indexes of shards that are read are held, at most `indexes` of
    them, the longest unused going first. Safe for threads. `close` it at the end."""

    def __init__(self, dataset: Dataset, indexes: int) -> None:
        self.dataset, self._indexes = dataset, indexes
        self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="fovea-range")
        self._lock = threading.Lock()
        self._members: OrderedDict[int, Future[Members]] = OrderedDict()
        self._whole: list[int] = []
        self._held: dict[int, OpenFile] = {}
        self._given_up: set[int] = set()
        self._closed, self._wake = False, threading.Event()
        self._filler: threading.Thread | None = None

    @property
    def caches(self) -> bool:
        """Whether whole tars can be had."""
        return self.dataset.cache is not None and not self.dataset.ranges.local

    def find(self, shards: Sequence[str], rows: Ints, uids: Sequence[str] | None = None) -> tuple[Ints, Ints]:
        """(shard, sample) of each place, int64. `shards` as Dataset.index_of takes them, `rows` int64 of each one's index.

        `uids` tell shards of one name apart, and an index that is not the plan's: then raises ShardError, as for a damaged index.
        """
        names, of = np.unique(np.asarray(shards, dtype=object), return_inverse=True)
        numbers = [self.dataset.shards_named(name) for name in names]
        members = self.members({number for found in numbers for number in found})
        wanted = None if uids is None else uid_bytes(uids, "the plan")
        shard, sample = np.full(len(of), -1), np.full(len(of), -1)
        for k, found in enumerate(numbers):
            for number in found if wanted is not None or len(found) == 1 else []:
                mine = np.flatnonzero((of == k) & (shard < 0))
                held = members[number]
                mine = mine[(rows[mine] >= 0) & (rows[mine] < held.rows)]
                at = np.searchsorted(held.first_row, rows[mine], "right") - 1
                fits = np.ones(len(mine), bool) if wanted is None else (held.uid[at] == wanted[mine]).all(axis=1)
                shard[mine[fits]], sample[mine[fits]] = number, at[fits]
        if len(lost := np.flatnonzero(shard < 0)):
            manifest, i = self.dataset.manifest, int(lost[0])
            raise ShardError(
                f"dataset {manifest.name} (version {manifest.version}) has no sample {uids[i] if uids is not None else ''} in row "
                f"{int(rows[i])} of shard {shards[i]}: the plan was made over another version's index; plan again"
            )
        return shard, sample

    def fetch(self, places: Sequence[Place]) -> Fetched:
        """Begins to read samples; those of a remote store are asked for at once, joined, what `places` has first at first."""
        distinct = list(dict.fromkeys(places))
        members, ranges = self.members({place.shard for place in distinct}), self.dataset.ranges
        if ranges.local:
            paths = {number: self.dataset.manifest.shards[number].path for number in members}
            return Fetched(self, members, {place: partial(ranges.reader, paths[place.shard]) for place in distinct}, {})
        with self._lock:
            copies = {place: self._held[place.shard] for place in distinct if place.shard in self._held}
        apart = [place for place in distinct if place not in copies]
        spans, of = join([self.span(members[place.shard], place) for place in apart])
        asked = {number: self._pool.submit(ranges.span, spans[number]) for number in dict.fromkeys(of)}
        return Fetched(self, members, {place: asked[number].result for place, number in zip(apart, of, strict=True)}, copies)

    def want_whole(self, shards: Sequence[int], wait: bool) -> None:
        """From now on these shards (places in the manifest) are read from whole tars, as soon as the cache has them; others are let go of.

        They are fetched in this order, meanwhile or (`wait`) before this returns; what the cache has no room for is read by ranges.
        """
        with self._lock:
            self._whole = list(dict.fromkeys(shards))
            self._given_up.clear()
            for number in set(self._held) - set(self._whole):
                del self._held[number]
        if wait:
            while self._fill_all() == "busy":
                time.sleep(_POLL)
        elif self._filler is None and self._whole:
            self._filler = threading.Thread(target=self._fill, name="fovea-cache", daemon=True)
            self._filler.start()
        self._wake.set()

    def members(self, numbers: set[int]) -> dict[int, Members]:
        """Of shards, read at the same time where they are not held."""
        with self._lock:
            for number in sorted(numbers):
                if number not in self._members:
                    self._members[number] = self._pool.submit(self.dataset.members, number)
                self._members.move_to_end(number)
            futures = {number: self._members[number] for number in numbers}
            while len(self._members) > max(self._indexes, len(numbers)):
                self._members.popitem(last=False)
        try:
            return {number: future.result() for number, future in futures.items()}
        except FoveaError:
            with self._lock:  # what failed is tried again by whoever asks next
                for number, future in futures.items():
                    if future.done() and not future.cancelled() and future.exception() is not None:
                        self._members.pop(number, None)
            raise

    def span(self, members: Members, place: Place) -> tuple[str, int, int]:
        """(file, offset, length) of a sample."""
        path = self.dataset.manifest.shards[place.shard].path
        return path, int(members.offset[place.sample]), int(members.bytes[place.sample])

    def forget(self, shard: int, copy: OpenFile) -> None:
        """Removes a copy that turned out to be damaged; the shard is read by ranges until others are wanted."""
        with self._lock:
            if self._held.get(shard) is not copy:
                return
            del self._held[shard]
            self._given_up.add(shard)
        log.warning("the copy of %s in the cache is damaged; it is removed", self.dataset.manifest.shards[shard].path)
        if self.dataset.cache is not None:
            self.dataset.cache.drop(self.dataset.manifest.shards[shard])

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        if self._filler is not None:
            self._filler.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._held.clear()

    def _fill(self) -> None:
        pause = _POLL
        while not self._closed:
            found = self._fill_all()
            pause = min(2 * pause, _POLL_MOST) if found == "busy" else _POLL
            self._wake.wait(pause if found == "busy" else None)
            self._wake.clear()

    def _fill_all(self) -> str:
        """ "busy" if it is worth another look in a while; "" if nothing is left to do."""
        found = ""
        cache = self.dataset.cache
        if cache is None:
            return found
        for number in list(self._whole):
            shard = self.dataset.manifest.shards[number]
            if self._closed or number in self._held or number in self._given_up or number not in self._whole:
                continue
            try:
                state = cache.fill(self.dataset.store, shard, self.dataset.traffic, lambda: not self._closed)
                file = cache.open(shard) if state == "there" else None
            except FoveaError as error:
                log.warning("%s is read by ranges: %s", shard.path, error)
                state, file = "differs", None
            with self._lock:
                if file is not None and number in self._whole:
                    self._held[number] = file
                elif state in ("differs", "no room"):
                    self._given_up.add(number)  # until other shards are wanted
            if state == "busy" or (state == "there" and file is None):  # another process fetches it, or has just removed it
                found = "busy"
        return found
