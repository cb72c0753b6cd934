"""The manifest: strict, canonical, replaced last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.manifest import (
    Manifest,
    ShardInfo,
    load_manifest,
    manifest_bytes,
    parse_manifest,
    profile_entries,
    save_manifest,
    split_of,
    version_folder,
)
from shards.profile import Profile
from shards.sample import canonical_json
from shards.store import open_store
from tests.shards.corpus import manifest

SHARD = ShardInfo("v-0123/train-000000.tar", "v-0123/train-000000.parquet", "train", 5, 3, 4, 9000, "a" * 64, 700, "b" * 64)
VAL = replace(SHARD, path="v-0123/val-000000.tar", index="v-abcd1234/val-000000.over-0123.parquet", split="val")

counts = st.integers(0, 2**60)
infos = st.builds(
    ShardInfo,
    path=st.from_regex(r"v-[0-9a-f]{4}/train-[0-9]{6}\.tar", fullmatch=True),
    index=st.from_regex(r"v-[0-9a-f]{8}/train-[0-9]{6,8}\.parquet", fullmatch=True),
    split=st.sampled_from(["train", "val"]),
    rows=counts,
    samples=counts,
    items=counts,
    bytes=counts,
    sha256=st.just("a" * 64),
    index_bytes=counts,
    index_sha256=st.just("b" * 64),
)
manifests = st.builds(
    Manifest,
    name=st.text(st.characters(codec="utf-8")),
    version=st.from_regex(r"[0-9a-f]{4,16}", fullmatch=True),
    recipe=st.text(st.characters(codec="utf-8")),
    shards=st.lists(infos, max_size=4, unique_by=lambda s: s.index).map(tuple),
    previous=st.none() | st.just("00ff"),
    profiles=st.dictionaries(st.text("abc"), st.just({"digest": "d", "fps": 1.5}), max_size=2),
    scores=st.lists(st.tuples(st.text("xyz"), st.just("double")), max_size=2).map(tuple),
    counts=st.dictionaries(st.text("abc"), counts, max_size=2),
)


@given(manifests)
def test_it_comes_back_as_it_was_and_in_the_same_bytes(made: Manifest) -> None:
    data = manifest_bytes(made)
    assert parse_manifest(data, "here") == made
    assert manifest_bytes(parse_manifest(data, "here")) == data


def test_every_changed_byte_is_refused_or_only_white_space() -> None:
    made = manifest([SHARD, VAL])
    data = manifest_bytes(made)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x04
        try:
            read = parse_manifest(bytes(changed), "here")
        except ShardError:
            continue
        assert read == made  # only between values, where verify compares the bytes
        assert data[place : place + 1].isspace()


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | st.sampled_from([b"[]", b"null", b"{}", b"[" * 50]))
def test_whatever_it_is_given_it_raises_nothing_but_its_own_error(data: bytes) -> None:
    with pytest.raises(ShardError, match="here"):
        parse_manifest(data, "here")


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "format": (_set("format", to="fovea-dataset/2"), "fovea-dataset/2.*reads 'fovea-dataset/1'"),
    "unknown key": (_set("colour", to=1), r"unknown keys \['colour'\]"),
    "missing key": (lambda value: value.pop("recipe"), r"missing keys \['recipe'\]"),
    "shard's key": (lambda value: value["shards"][0].pop("rows"), r"shards\[0\].*missing keys \['rows'\]"),
    "path upward": (_set("shards", 0, "path", to="../../etc/passwd"), "path is"),
    "path inside": (_set("shards", 0, "path", to="v-0123/../v-0123/train-000000.tar"), "path is"),
    "absolute": (_set("shards", 0, "index", to="/etc/x.parquet"), "index is"),
    "negative": (_set("shards", 0, "bytes", to=-1), "bytes must be"),
    "text for a number": (_set("shards", 0, "rows", to="5"), "rows must be"),
    "truth for a number": (_set("counts", "kept", to=True), "counts.kept must be"),
    "sums": (_set("splits", "train", "items", to=5), "add up to"),
    "version": (_set("version", to="../x"), "version is"),
    "profile": (_set("profiles", to={"tiny": {}}), "profiles.tiny.digest"),
    "scores": (_set("scores", to=[["a", "b"]]), "a score must be"),
    "twice": (lambda value: value["shards"].append(value["shards"][0]), "add up|named twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_a_manifest_is_refused_and_says_where(case: str) -> None:
    change, message = WRONG[case]
    value = json.loads(manifest_bytes(manifest([SHARD, VAL])))
    change(value)
    value["checksum"] = _checksum(value)
    with pytest.raises(ShardError, match=f"(?s)here.*({message})"):
        parse_manifest(json.dumps(value).encode(), "here")


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json({k: v for k, v in value.items() if k != "checksum"}).encode()).hexdigest()


def test_the_checksum_of_this_test_is_that_of_the_contract() -> None:
    value = json.loads(manifest_bytes(manifest([SHARD])))
    assert value["checksum"] == _checksum(value)


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_saving_is_safe_to_repeat_and_keeps_each_version(tmp_path: Path, kind: str) -> None:
    url = str(tmp_path / "ds") if kind == "local" else f"memory://manifest-{tmp_path.name}"
    store = open_store(url)
    first, second = manifest([SHARD], "aaaa"), manifest([SHARD, VAL], "bbbb", previous="aaaa")
    for version in (first, first, second):
        save_manifest(store, version)
        assert load_manifest(store) == version
    assert load_manifest(store, "v-aaaa/manifest.json") == first
    with pytest.raises(ShardError, match="another content"):
        save_manifest(store, replace(first, name="other"))
    assert load_manifest(store) == second
    if kind == "local":
        assert load_manifest(tmp_path / "ds") == load_manifest(str(tmp_path / "ds" / "manifest.json")) == second


def test_a_manifest_that_could_not_be_read_again_is_never_saved(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ds"))
    with pytest.raises(ShardError, match="path is"):
        save_manifest(store, manifest([replace(SHARD, path="train-000000.tar")]))
    assert store.list() == []


def test_without_a_manifest_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no manifest.*finished"):
        load_manifest(tmp_path)
    with pytest.raises(ShardError, match=r"no manifest.*finished"):
        load_manifest(open_store(str(tmp_path)))


def test_names() -> None:
    assert split_of("val-000012") == "val"
    assert version_folder("0aff") == "v-0aff"
    with pytest.raises(ShardError):
        version_folder("../0aff")
    assert (SHARD.name, SHARD.is_twin, VAL.is_twin) == ("train-000000.tar", True, False)
    assert manifest([SHARD, VAL]).of_split("val") == [(1, VAL)]
    with pytest.raises(ShardError, match="no split 'test'; it has train, val"):
        manifest([SHARD, VAL]).of_split("test")


def test_profiles_are_written_with_their_digest() -> None:
    profile = Profile("tiny", "tok")
    entries = profile_entries([profile])
    assert entries["tiny"]["digest"] == profile.digest
    made = replace(manifest([SHARD]), profiles=entries)
    assert parse_manifest(manifest_bytes(made), "here").profiles == entries
