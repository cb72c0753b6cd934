"""Where every member of every sample lies, as flat arrays: a batch of a thousand samples is a few array operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.errors import ShardError

Ints = npt.NDArray[np.int64]

# What `members_of` needs of an index; leaf columns, so that Parquet reads nothing else.
MEMBER_COLUMNS = (
    "uid",
    "offset",
    "bytes",
    *(f"json.{leaf}" for leaf in ("offset", "length", "xxh3")),
    *(f"media.list.element.{leaf}" for leaf in ("offset", "length", "xxh3")),
)


@dataclass(frozen=True, slots=True)
class Members:
    """S samples with M members together, in the order of the index.

    rows       number of index rows.
    first_row  int64 S: the first index row of each sample.
    uid        uint8 S×16.
    offset     int64 S: first byte of the sample in its tar; `bytes` int64 S: of all its members with headers and padding.
    start      int64 S+1: sample s owns the members start[s]:start[s+1], its JSON last.
    at, length int64 M: where a member's content begins in the tar, and its bytes; `xxh3` uint64 M.
    """

    rows: int
    first_row: Ints
    uid: npt.NDArray[np.uint8]
    offset: Ints
    bytes: Ints
    start: Ints
    at: Ints
    length: Ints
    xxh3: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.first_row)

    def uids(self, samples: Ints | slice) -> list[str]:
        text = self.uid[samples].tobytes().hex()
        return [text[i : i + 32] for i in range(0, len(text), 32)]

    def of(self, samples: Ints) -> tuple[list[int], Ints]:
        """(number of members of each sample, their positions in `at`, `length` and `xxh3` one after another)."""
        first = self.start[samples]
        counts = self.start[samples + 1] - first
        before = np.cumsum(counts) - counts
        return counts.tolist(), np.repeat(first - before, counts) + np.arange(counts.sum())


def members_of(index: pa.Table, where: str) -> Members:
    """From a table with MEMBER_COLUMNS. Raises ShardError, naming `where`, for uids or places that cannot be."""
    table = index.combine_chunks()
    offset = _ints(table, "offset")
    first = np.flatnonzero(np.diff(offset, prepend=-1))  # the rows of a sample lie together, and each sample has an offset of its own
    json, media = _chunk(table, "json"), _chunk(table, "media").take(pa.array(first))
    content, counts = media.flatten(), np.diff(media.offsets.to_numpy())
    start = np.concatenate(([0], np.cumsum(counts + 1)))
    last = np.zeros(int(start[-1]), bool)
    last[start[1:] - 1] = True
    flat: dict[str, npt.NDArray[Any]] = {}
    for leaf in ("offset", "length", "xxh3"):
        values = np.empty(len(last), np.uint64 if leaf == "xxh3" else np.int64)
        values[last] = json.field(leaf).to_numpy()[first]
        values[~last] = content.field(leaf).to_numpy()
        flat[leaf] = values
    if (offset < 0).any() or (flat["offset"] < 0).any() or (flat["length"] < 0).any():
        raise ShardError(f"{where}: the index has places below 0")
    return Members(
        rows=table.num_rows,
        first_row=first,
        uid=uid_bytes(_chunk(table, "uid").take(pa.array(first)).to_pylist(), where),
        offset=offset[first],
        bytes=_ints(table, "bytes")[first],
        start=start,
        at=flat["offset"],
        length=flat["length"],
        xxh3=flat["xxh3"],
    )


def joined(parts: Sequence[Members]) -> Members:
    """The members of several indexes as one, rows and samples counted through."""
    rows = np.cumsum([0, *(p.rows for p in parts)])
    members = np.cumsum([0, *(len(p.at) for p in parts)])
    empty = np.empty(0, np.int64)

    def all_of(name: str, kind: Any = np.int64) -> Any:
        return np.concatenate([np.empty(0, kind), *(getattr(p, name) for p in parts)])

    return Members(
        rows=int(rows[-1]),
        first_row=np.concatenate([empty, *(p.first_row + r for p, r in zip(parts, rows, strict=False))]),
        uid=np.concatenate([np.empty((0, 16), np.uint8), *(p.uid for p in parts)]),
        offset=all_of("offset"),
        bytes=all_of("bytes"),
        start=np.concatenate([*(p.start[:-1] + m for p, m in zip(parts, members, strict=False)), members[-1:]]),
        at=all_of("at"),
        length=all_of("length"),
        xxh3=all_of("xxh3", np.uint64),
    )


def uid_bytes(uids: Sequence[str], where: str) -> npt.NDArray[np.uint8]:
    """uint8 N×16 of uids in hexadecimal. Raises ShardError for what is none."""
    text = "".join(uids)
    try:
        data = bytes.fromhex(text) if len(text) == 32 * len(uids) and not any(len(u) != 32 for u in uids) else b""
    except ValueError:
        data = b""
    if len(data) != 16 * len(uids):
        raise ShardError(f"{where}: a uid is not 32 hexadecimal digits")
    return np.frombuffer(data, np.uint8).reshape(-1, 16)


class UidTable:
    """uid -> sample number, by binary search over the sorted uids. Raises ShardError if a uid occurs twice."""

    def __init__(self, uid: npt.NDArray[np.uint8]) -> None:
        high, low = _halves(uid)
        self._order = np.lexsort((low, high))
        self._high, self._low = high[self._order], low[self._order]
        twice = np.flatnonzero((np.diff(self._high) == 0) & (np.diff(self._low) == 0))
        if len(twice):
            raise ShardError(f"uid {uid[self._order[twice[0]]].tobytes().hex()} is twice in the dataset; run fovea shards verify")

    def find(self, uid: npt.NDArray[np.uint8]) -> Ints:
        """int64 N: the sample of each uid, -1 where there is none."""
        high, low = _halves(uid)
        place = np.searchsorted(self._high, high)
        found = np.full(len(high), -1, np.int64)
        open_ = np.arange(len(high))
        while len(open_):  # a second round only where two uids share their first 64 bits
            open_ = open_[place[open_] < len(self._high)]
            open_ = open_[self._high[place[open_]] == high[open_]]
            hit = self._low[place[open_]] == low[open_]
            found[open_[hit]] = self._order[place[open_[hit]]]
            open_ = open_[~hit]
            place[open_] += 1
        return found


def _halves(uid: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    pairs = np.ascontiguousarray(uid).view(">u8").astype(np.uint64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _chunk(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()


def _ints(table: pa.Table, name: str) -> Ints:
    return np.asarray(_chunk(table, name).to_numpy(zero_copy_only=False), np.int64)
