"""A dataset of ours as a source: its manifest says which shards there are, their indexes which samples; no tar is scanned.

A sample's record is what its JSON member says: its texts, metadata and `scores`, so that `fields: {caption: scores.short_text}` takes the
caption that an earlier run had written. Its key is `<source>/<key>` of that run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import xxhash

from shards.errors import ShardError, SourceError
from shards.manifest import load_manifest
from shards.reader import locate, read_index
from shards.sample import MediaRef, Sample, digest_of, uid_of
from shards.sources.spec import DAMAGE, Container, Format, SourceSpec, Units, damaged, media_bytes
from shards.sources.texts import DEFAULTS, parse_json, role_fields, texts_of
from shards.store import Store
from shards.twin import decode_index

COLUMNS = ("uid", "json", "media")


def list_shards(spec: SourceSpec) -> Iterator[Container]:
    """A container for each shard that the manifest names. Raises SourceError where there is no manifest that can be read."""
    store, name = locate(spec.path)
    try:
        manifest = load_manifest(store, name)
    except ShardError as error:
        raise SourceError(str(error)) from error
    for shard in manifest.shards:
        # a new index over an old tar is other content: the stamp is of what decides, not of the file's date
        yield Container(shard.path, store.url(shard.path), shard.bytes, digest_of(shard.sha256, shard.index_sha256), external=False)


def scan_shard(spec: SourceSpec, container: Container) -> Iterator[Sample]:
    """The samples that a shard's index lists, in the tar's order. What cannot be read is one damaged sample `<shard>/@damage`."""
    store, name = locate(spec.path)
    units = Units(container.name)
    try:
        shard = next((s for s in load_manifest(store, name).shards if s.path == container.name), None)
        if shard is None:
            raise SourceError(f"{store.url(container.name)}: the manifest names it no more: a newer version was written, run again")
        rows = decode_index(read_index(store, shard), shard.index).select(COLUMNS).to_pylist()
        if not store.exists(shard.path) or store.size(shard.path) != shard.bytes:
            raise ShardError(f"{store.url(shard.path)} is gone or cut, though the manifest names it")
    except ShardError as error:
        unit, ordinal = units.place(0)
        yield damaged(spec.name, f"{container.name}/{DAMAGE}", str(error), unit, ordinal)
        return
    last = ""
    for row in rows:
        if row["uid"] == last:  # a row for each item, those of a sample together
            continue
        last = row["uid"]
        sample = _sample(spec, store, shard.path, shard.sha256, row)
        unit, ordinal = units.place(media_bytes(sample))
        yield Sample(sample.uid, spec.name, sample.key, unit, ordinal, sample.media, sample.texts, sample.damage)


def _sample(spec: SourceSpec, store: Store, tar: str, digest: str, row: dict[str, Any]) -> Sample:
    place, where = row["json"], f"{store.url(tar)}: sample {row['uid']}"
    try:
        data = store.read_range(tar, place["offset"], place["length"])
        if xxhash.xxh3_64_intdigest(data) != place["xxh3"]:
            raise SourceError(f"{where}: its JSON is damaged (checksum); `fovea shards verify` tells more")
        value = parse_json(data, where)
        texts = value["texts"]
        record = {**texts.get("meta", {}), **{k: v for k, v in texts.items() if k != "meta"}, "scores": value["scores"]}
        key = f"{value['source']}/{value['key']}"
        found = texts_of(record, role_fields(spec, DEFAULTS), where, drop=("scores",))
        names = [medium["name"] for medium in value["media"]]
    except (SourceError, KeyError, TypeError, AttributeError) as error:
        what = str(error) if isinstance(error, SourceError) else f"{where}: its JSON is none of fovea's: {error!r}"
        return damaged(spec.name, f"{tar}/{row['uid']}/{DAMAGE}", what)
    media = tuple(_medium(store.url(tar), digest, name, medium) for name, medium in zip(names, row["media"] or (), strict=True))
    return Sample(uid_of(spec.name, key), spec.name, key, "", 0, media, found)


def _medium(tar: str, digest: str, name: str, medium: dict[str, Any]) -> MediaRef:
    original = medium["original_sha256"] if medium["transform"] else None
    return MediaRef(
        kind=medium["kind"],
        name=name,
        path=tar,
        offset=medium["offset"],
        length=medium["length"],
        stamp=digest_of(digest, medium["offset"]),
        transform=medium["transform"],
        original=original,
    )


FORMAT = Format(list_shards, scan_shard, ())
