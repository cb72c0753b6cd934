"""Where index rows come from: a shard at a time, so that a plan of a billion items holds a window of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from shards.reader import Dataset


class IndexSource(Protocol):
    """The index of a split, shard by shard (schema: shards.index.index_schema).

    digest  identity of all its rows.   shards  names (of a dataset: paths of its tars), in an order that does not change.
    columns  of every shard's index.
    """

    @property
    def digest(self) -> str: ...

    @property
    def shards(self) -> Sequence[str]: ...

    @property
    def columns(self) -> Sequence[str]: ...

    def read(self, shard: str, columns: Sequence[str]) -> pa.Table:
        """Rows of one shard; `columns` may be leaves ("tiny.patches"). Raises ShardError for damage. Safe for threads."""


@dataclass(frozen=True)
class DatasetIndex:
    """A split of a dataset."""

    dataset: Dataset
    split: str

    @property
    def digest(self) -> str:
        return f"{self.dataset.manifest.version}/{self.split}"

    @property
    def shards(self) -> Sequence[str]:
        return [shard.path for _, shard in self.dataset.manifest.of_split(self.split)]

    @property
    def columns(self) -> Sequence[str]:
        from shards.index import ITEM_FIELDS

        manifest = self.dataset.manifest
        return [*(field.name for field in ITEM_FIELDS), *(name for name, _ in manifest.scores), *manifest.profiles]

    def read(self, shard: str, columns: Sequence[str]) -> pa.Table:
        return self.dataset.index_of(shard, columns)


@dataclass(frozen=True)
class TableIndex:
    """An index that is in memory as one table."""

    table: pa.Table
    digest: str

    @property
    def shards(self) -> Sequence[str]:
        return sorted(set(self.table["shard"].to_pylist()))

    @property
    def columns(self) -> Sequence[str]:
        return list(self.table.column_names)

    def read(self, shard: str, columns: Sequence[str]) -> pa.Table:
        whole = list(dict.fromkeys(name.split(".")[0] for name in columns))
        mine = np.flatnonzero(np.asarray(self.table["shard"].to_numpy(zero_copy_only=False) == shard))
        return self.table.select(whole).take(pa.array(mine))
