"""Reads a dataset: its index as a table, its samples in sequence or at random, every member checked. docs/shards.md is the contract."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from shards.cache import ShardCache
from shards.errors import ShardError
from shards.items import item_from_json
from shards.manifest import MANIFEST, Manifest, ShardInfo, load_manifest
from shards.members import MEMBER_COLUMNS, Ints, Members, UidTable, joined, members_of, uid_bytes
from shards.ranges import Ranges, Read, Traffic
from shards.store import Store, open_store
from shards.twin import decode_index

_BATCH = 8 << 20  # bytes of samples read at once in sequence
_INDEXES_AT_ONCE = 8


@dataclass(slots=True)
class RawSample:
    """A sample as it lies in the tar: its JSON member, and the bytes of its media in order."""

    uid: str
    json: bytes
    media: list[bytes]


class Dataset:
    """One version of a dataset, read-only. Safe for threads, for fork, and to pickle (the version stays the same)."""

    def __init__(self, store: Store, manifest: Manifest, cache: ShardCache | None = None) -> None:
        self.store, self.manifest, self.cache = store, manifest, cache
        self.ranges = Ranges(store)
        self._lock = threading.Lock()
        self._all: Members | None = None
        self._uids: UidTable | None = None
        self._named: dict[str, list[int]] = {}
        self._first: Ints = np.zeros(1, np.int64)  # first sample of each shard, once `_all` is there

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.store, self.manifest, self.cache)

    def cached(self, cache: ShardCache | None) -> Dataset:
        """The same version, its traffic counted from 0; the indexes of a remote store are kept in `cache` if one is given."""
        return Dataset(self.store, self.manifest, cache)

    @property
    def traffic(self) -> Traffic:
        """What was read from the store through this object, in bytes."""
        return self.ranges.traffic

    @staticmethod
    def open(path_or_url: str | os.PathLike[str]) -> Dataset:
        """From the dataset's folder, the folder of one of its versions (`…/v-<digest>`), or a manifest in either.

        Raises ShardError if there is no manifest, or none that this version reads.
        """
        store, name = locate(path_or_url)
        return Dataset(store, load_manifest(store, name))

    def index(self, columns: Sequence[str] | None = None, split: str | None = None) -> pa.Table:
        """The indexes as one table, in the manifest's order of shards. Raises ShardError for damage and for columns that are not there."""
        shards = self.manifest.of_split(split)
        with ThreadPoolExecutor(_INDEXES_AT_ONCE) as pool:
            tables = list(pool.map(lambda entry: self._index(entry[1], columns), shards))
        if not tables:
            raise ShardError(f"dataset {self.manifest.name} (version {self.manifest.version}) has no shards: no sample was kept")
        for (_, shard), table in zip(shards, tables, strict=True):
            if table.schema != tables[0].schema:
                raise ShardError(f"{shard.index}: its columns are not those of {shards[0][1].index}; publish one index for all shards")
        return pa.concat_tables(tables)

    def index_of(self, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One shard's index, in the order of its tar. Leaf columns ("tiny.media.list.element.t") spare reading the rest of a struct.

        `shard`: the path of its index or tar in the manifest (ShardInfo.index, .path), or the tar's file name, as in the column `shard`.
        A dataset that has grown may hold tars of one file name in several versions' folders: then only the paths tell them apart.
        Raises ShardError for a shard that is not there or not one alone, and as `index`.
        """
        found = self.shards_named(shard)
        if len(found) != 1:
            raise ShardError(
                f"dataset {self.manifest.name} (version {self.manifest.version}) has {len(found) or 'no'} shards {shard}"
                + (f": name one of {', '.join(self.manifest.shards[n].path for n in found)}" if found else "")
            )
        return self._index(self.manifest.shards[found[0]], columns)

    def shards_named(self, shard: str) -> list[int]:
        """Places in the manifest of the shards that `shard` may mean, as `index_of` takes it."""
        if not self._named:
            named: dict[str, list[int]] = {}
            for number, info in enumerate(self.manifest.shards):
                for key in dict.fromkeys((info.index, info.path, info.name)):
                    named.setdefault(key, []).append(number)
            self._named = named
        return self._named.get(shard, [])

    def samples(self, split: str | None = None, check: bool = True) -> Iterator[RawSample]:
        """Every sample of the index once, in order, about 8 MB of them in memory at a time (always at least one sample).

        Raises ShardError with shard, uid and member for bytes that are cut or, unless `check` is False, not what they were.
        """
        for number, shard in self.manifest.of_split(split):
            members = members_of(self._index(shard, MEMBER_COLUMNS), shard.index)
            cuts = _cuts(members)
            batches = [np.arange(a, b) for a, b in itertools.pairwise(cuts)]
            if self.ranges.local:
                for batch in batches:
                    yield from self._load(members, batch, [number] * len(batch), check)
            else:
                yield from self._ahead(members, batches, number, check)

    def read(self, uids: Sequence[str], check: bool = True) -> list[RawSample]:
        """The samples of these uids, in this order. Raises ShardError for a uid that is not in the dataset, and as `samples`."""
        members, table = self._catalogue()
        found = table.find(uid_bytes(uids, "read"))
        if (found < 0).any():
            missing = [uid for uid, sample in zip(uids, found.tolist(), strict=True) if sample < 0]
            raise ShardError(f"dataset {self.manifest.name} (version {self.manifest.version}) has no sample {', '.join(missing[:3])}"
                             + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""))  # fmt: skip
        return self._gather(members, found, check)

    def read_rows(self, rows: Sequence[int] | npt.NDArray[Any], split: str | None = None, check: bool = True) -> list[RawSample]:
        """The sample behind each row number of `index(split=split)`, in this order. Raises IndexError for a number out of range."""
        members, _ = self._catalogue()
        wanted = np.asarray(rows, np.int64)
        if split is not None:
            shards = self.manifest.of_split(split)
            before = np.cumsum([0, *(shard.rows for shard in self.manifest.shards)])
            inside = np.cumsum([0, *(shard.rows for _, shard in shards)])
            _in_range(wanted, int(inside[-1]))
            place = np.searchsorted(inside, wanted, "right") - 1
            wanted = wanted - inside[place] + before[np.array([number for number, _ in shards])[place]]
        _in_range(wanted, members.rows)
        return self._gather(members, np.searchsorted(members.first_row, wanted, "right") - 1, check)

    def record(self, raw: RawSample) -> dict[str, Any]:
        """The JSON member as a dictionary, `items` as `shards.items.Item`. Raises ShardError if it is not what docs/shards.md says."""
        try:
            value: dict[str, Any] = json.loads(raw.json)
            value["items"] = [item_from_json(item) for item in value["items"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"sample {raw.uid}: its JSON member does not say what it should: {error!r}") from error
        return value

    def _index(self, shard: ShardInfo, columns: Sequence[str] | None) -> pa.Table:
        def read() -> bytes:
            data = read_index(self.store, shard)
            self.traffic.add("indexes", len(data))
            return data

        data = read() if self.cache is None or self.ranges.local else self.cache.index(shard, read)
        return decode_index(data, shard.index, columns)

    def members(self, number: int) -> Members:
        """Where the samples of a shard (its place in the manifest) lie. Raises ShardError if its index is not what the manifest says."""
        shard = self.manifest.shards[number]
        part = members_of(self._index(shard, MEMBER_COLUMNS), shard.index)
        if part.rows != shard.rows or len(part) != shard.samples:
            raise ShardError(f"{shard.index}: {part.rows} rows of {len(part)} samples; the manifest says {shard.rows}, {shard.samples}")
        return part

    def _catalogue(self) -> tuple[Members, UidTable]:
        with self._lock:
            if self._all is None or self._uids is None:
                with ThreadPoolExecutor(_INDEXES_AT_ONCE) as pool:
                    parts = list(pool.map(self.members, range(len(self.manifest.shards))))
                self._first = np.cumsum([0, *(len(part) for part in parts)])
                self._all = joined(parts)
                self._uids = UidTable(self._all.uid)
            return self._all, self._uids

    def _gather(self, members: Members, samples: Ints, check: bool) -> list[RawSample]:
        order = np.argsort(samples, kind="stable")  # by shard and place in it: kind to the disk
        chosen = samples[order]
        numbers = (np.searchsorted(self._first, chosen, "right") - 1).tolist()
        found: list[Any] = [None] * len(order)
        for place, raw in zip(order.tolist(), self._load(members, chosen, numbers, check), strict=True):
            found[place] = raw
        return found

    def _ahead(self, members: Members, batches: list[Ints], number: int, check: bool) -> Iterator[RawSample]:
        with ThreadPoolExecutor(2) as pool:
            coming = [pool.submit(self._load, members, batch, [number] * len(batch), check) for batch in batches[:2]]
            for later in [*batches[2:], None, None][: len(batches)]:
                ready = coming.pop(0).result()
                if later is not None:
                    coming.append(pool.submit(self._load, members, later, [number] * len(later), check))
                yield from ready

    def load(self, members: Members, sample: int, number: int, read: Read) -> RawSample:
        """A sample of shard `number` by `read`, which reads its tar; every member checked. Raises ShardError for cut or damaged bytes."""
        return self._load(members, np.array([sample]), [number], True, [read])[0]

    def _load(
        self, members: Members, samples: Ints, numbers: list[int], check: bool, fetched: Sequence[Read] | None = None
    ) -> list[RawSample]:
        """`numbers`: the shard of each sample."""
        counts, flat = members.of(samples)
        at, length, xxh3 = members.at[flat].tolist(), members.length[flat].tolist(), members.xxh3[flat].tolist()
        digest = xxhash.xxh3_64_intdigest
        paths = {number: self.manifest.shards[number].path for number in set(numbers)}
        if fetched is None and not self.ranges.local:
            spans = zip(members.offset[samples].tolist(), members.bytes[samples].tolist(), strict=True)
            fetched = self.ranges.fetch([(paths[number], *span) for number, span in zip(numbers, spans, strict=True)])
        out: list[RawSample] = []
        now, i = -1, 0
        for place, (uid, number, count) in enumerate(zip(members.uids(samples), numbers, counts, strict=True)):
            if fetched is not None:
                read = fetched[place]
            elif number != now:
                read, now = self.ranges.reader(paths[number]), number
            media = []
            for j in range(i, i + count):
                data = read(length[j], at[j])
                if len(data) != length[j]:
                    raise self._damage(number, uid, j - i, f"cut: {len(data)} of {length[j]} bytes are there")
                if check and digest(data) != xxh3[j]:
                    raise self._damage(number, uid, j - i, "damaged: its checksum (xxh3) does not fit")
                media.append(data)
            i += count
            out.append(RawSample(uid, media.pop(), media))
        return out

    def _damage(self, number: int, uid: str, place: int, what: str) -> ShardError:
        shard = self.manifest.shards[number]
        table = self._index(shard, ["uid", "json", "media"])
        row = table.slice(table["uid"].index(uid).as_py(), 1).to_pylist()[0]
        member = [*row["media"], row["json"]][place]["name"]
        return ShardError(
            f"{self.store.url(shard.path)}: sample {uid}, member {member} is {what}; run fovea shards verify, then restore the tar"
        )


def locate(path_or_url: str | os.PathLike[str]) -> tuple[Store, str]:
    """The store of a dataset and the manifest's name in it, from the dataset's folder, a version's folder, or a manifest's path."""
    place = os.fspath(path_or_url).rstrip("/")
    if place.rsplit("/", 1)[-1] == MANIFEST:
        place = place[: -len(MANIFEST)].rstrip("/") or ("/" if place.startswith("/") else ".")
    store = open_store(place)
    parent, slash, last = place.rpartition("/")
    if last.startswith("v-"):
        with contextlib.suppress(ShardError):  # who opens the manifest next says what is wrong with it
            if load_manifest(store).folder == last:
                return open_store(parent or slash or "."), f"{last}/{MANIFEST}"
    return store, MANIFEST


def read_index(store: Store, shard: ShardInfo) -> bytes:
    """The bytes of a shard's index, compared with the manifest. Raises ShardError if they are missing or differ."""
    try:
        data = store.read(shard.index)
    except FileNotFoundError as error:
        raise ShardError(f"{store.url(shard.index)} is missing, though the manifest names it") from error
    if len(data) != shard.index_bytes or hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise ShardError(f"{store.url(shard.index)}: not the index that the manifest names (sha256): it is damaged, or from another run")
    return data


def _cuts(members: Members) -> list[int]:
    """Where a shard's samples are cut into batches of about 8 MB."""
    batch = (np.cumsum(members.bytes) - members.bytes) // _BATCH
    return [*np.flatnonzero(np.diff(batch, prepend=-1)).tolist(), len(members)]


def _in_range(rows: Ints, count: int) -> None:
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise IndexError(f"row {int(rows.max()) if rows.max() >= count else int(rows.min())} of an index of {count} rows")
