"""Puts shards into a dataset, tar before index, so that an index says that its tar is whole. Safe to repeat."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from shards.errors import ShardError
from shards.manifest import ShardInfo
from shards.twin import encode_index, twin_entry

if TYPE_CHECKING:
    from shards.store import Store
    from shards.writer import WrittenShard

_CHUNK = 1 << 22


def publish_shard(store: Store, version_dir: str, written: WrittenShard) -> ShardInfo:
    """Puts a shard under `version_dir` ("v-<digest>") and returns its entry in the manifest.

    A file that is there already is accepted if it is the same, byte for byte; otherwise raises ShardError.
    """
    info = replace(written.info, path=f"{version_dir}/{written.info.path}", index=f"{version_dir}/{written.info.index}")
    if not store.put_new_file(info.path, written.local_path):
        _same(store, info.path, info.sha256)
    if not store.put_new(info.index, written.index_data):
        _same(store, info.index, info.index_sha256)
    return info


def publish_index(store: Store, version_dir: str, shard: ShardInfo, table: pa.Table) -> ShardInfo:
    """Puts another index over the tar of `shard` under `version_dir` and returns the new entry. `table` keeps the tar's order of rows.

    For a tightened rule (fewer rows), further scores or measure profiles, or another split: the tar is not touched.
    Raises ShardError if another index is there already.
    """
    tasks = table["task"].to_pylist()
    splits = set(table["split"].to_pylist()) or {shard.split}
    if len(splits) != 1 or set(table["shard"].to_pylist()) - {shard.name}:
        raise ShardError(f"{shard.path}: an index over it must speak of this tar and of one split only, not of {sorted(splits)}")
    folder = shard.path.split("/", 1)[0]
    info = replace(
        shard,
        index=f"{version_dir}/{shard.name.removesuffix('.tar')}.over-{folder.removeprefix('v-')}.parquet",
        split=splits.pop(),
        rows=table.num_rows,
        samples=len(set(table["uid"].to_pylist())),
        items=sum(task != "" for task in tasks),
    )
    info, data = encode_index(table, info)
    if not store.put_new(info.index, data):
        _same(store, info.index, info.index_sha256)
    return info


def published_shard(store: Store, version_dir: str, shard_name: str) -> ShardInfo | None:
    """The manifest's entry of a shard that is already published whole, read from its index alone; None if it is not.

    Raises ShardError if the tar is gone or has another length than its index says.
    """
    path, index = f"{version_dir}/{shard_name}.tar", f"{version_dir}/{shard_name}.parquet"
    if not store.exists(index):
        return None
    info = twin_entry(store.read(index), path, index)
    if not store.exists(path) or store.size(path) != info.bytes:
        raise ShardError(f"{store.url(path)}: the tar of {index} is gone or cut: remove the index to have the shard written again")
    return info


def _same(store: Store, name: str, sha256: str) -> None:
    digest = hashlib.sha256()
    with store.open(name) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise ShardError(
            f"{store.url(name)} is there already with other bytes. The same version must give the same bytes: "
            "was it written with other libraries, or by a step that is not deterministic? Remove the version's folder to write it again"
        )
