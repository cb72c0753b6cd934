"""Verifies a dataset: every byte of every file it consists of is covered by a check. docs/shards.md says which."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, BinaryIO

import xxhash

from shards.errors import ShardError
from shards.manifest import MANIFEST, Manifest, ShardInfo, manifest_bytes, parse_manifest
from shards.reader import locate
from shards.store import Store
from shards.tar import BLOCK, TRAILER, padding, parse_header, tar_header, uid_in
from shards.verify_index import Expected, Fault, check_index
from shards.writer import SAMPLE_FORMAT

__all__ = ["Fault", "verify"]

_CHUNK = 4 << 20


def verify(path_or_url: str | os.PathLike[str], progress: Callable[[ShardInfo], None] | None = None) -> list[Fault]:
    """Reads a dataset once, completely, and returns what is wrong with it: nothing, if it is whole. Holds a few MB and one index at a time.

    `path_or_url` as for `Dataset.open`; `progress` is called after each shard. Bad data never raises; a failing disk or network does
    (InfrastructureError).
    """
    store, name = locate(path_or_url)
    try:
        data = store.read(name)
        manifest = parse_manifest(data, name)
    except FileNotFoundError:
        return [Fault(name, None, None, "missing: without its manifest this is no dataset")]
    except ShardError as error:
        return [Fault(name, None, None, str(error))]
    faults = _manifest_files(store, manifest, name, data) + _files(store, manifest)
    owner: dict[bytes, str] = {}
    for shard in manifest.shards:
        found, samples = check_index(store, shard, manifest)
        faults += found
        faults += _check_tar(store, shard, samples)
        for sample in samples or []:
            other = owner.setdefault(bytes.fromhex(sample.uid) if len(sample.uid) == 32 else sample.uid.encode(), shard.index)
            if other != shard.index:
                faults.append(Fault(shard.index, sample.uid, None, f"the same sample is in {other} too"))
        if progress is not None:
            progress(shard)
    return faults


def _manifest_files(store: Store, manifest: Manifest, name: str, data: bytes) -> list[Fault]:
    faults = []
    if data != manifest_bytes(manifest):
        faults.append(Fault(name, None, None, "not byte for byte what fovea writes: it was edited or damaged between the values"))
    copy = f"{manifest.folder}/{MANIFEST}"
    if name != copy:
        try:
            if store.read(copy) != data:
                faults.append(Fault(copy, None, None, f"differs from {name}, of which it is the copy"))
        except FileNotFoundError:
            faults.append(Fault(copy, None, None, "missing: the version's own copy of the manifest"))
    return faults


def _files(store: Store, manifest: Manifest) -> list[Fault]:
    """Files that belong to no version, or to this one's folder without being named. Other versions' folders are not judged here."""
    named = {f"{manifest.folder}/{MANIFEST}", MANIFEST} | {p for s in manifest.shards for p in (s.path, s.index)}
    faults = []
    for name in store.list():
        folder = name.split("/", 1)[0]
        if name not in named and (folder == manifest.folder or not folder.startswith("v-") or "/" not in name):
            faults.append(Fault(name, None, None, "an extra file: the manifest does not name it"))
    return faults


class _Tape:
    """A file read once from its beginning to its end; everything that passes is digested."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self.position = 0
        self._file = file

    def take(self, length: int, sink: Callable[[bytes], Any] | None = None) -> int:
        """Passes `length` bytes to `sink` in pieces; returns how many there were."""
        start = self.position
        while (left := start + length - self.position) > 0 and (piece := self._file.read(min(left, _CHUNK))):
            self.sha256.update(piece)
            self.position += len(piece)
            if sink is not None:
                sink(piece)
        return self.position - start

    def read(self, length: int) -> bytes:
        pieces: list[bytes] = []
        self.take(length, pieces.append)
        return b"".join(pieces)


class _Cut(Exception):
    """The tar ended too early; caught where the walk began."""


def _check_tar(store: Store, shard: ShardInfo, samples: list[Expected] | None) -> list[Fault]:
    """`samples` None: the index is not to be trusted, so the tar is checked by its own headers and its sha256 only."""
    try:
        file = store.open(shard.path)
    except FileNotFoundError:
        return [Fault(shard.path, None, None, "missing, though the manifest names it")]
    faults: list[Fault] = []
    with file:
        tape = _Tape(file)
        try:
            for number, sample in enumerate(samples or []):
                _check_sample(tape, shard, sample, len(samples or []) - number - 1, faults)
            _unlisted(tape, shard, shard.bytes - len(TRAILER), samples is not None, faults)
            if tape.read(len(TRAILER)) != TRAILER:
                faults.append(Fault(shard.path, None, None, "its end (two blocks of zeros) is cut or damaged"))
        except _Cut:
            pass  # the fault that says so was noted where the walk stopped
        tape.take(1 << 62)
    if tape.position > shard.bytes:
        faults.append(Fault(shard.path, None, None, f"{tape.position - shard.bytes} bytes too long"))
    if tape.position < shard.bytes and not faults:
        faults.append(Fault(shard.path, None, None, f"cut: {tape.position} of {shard.bytes} bytes are there"))
    if tape.sha256.hexdigest() != shard.sha256 and not faults:
        faults.append(
            Fault(
                shard.path,
                None,
                None,
                "its sha256 is not the manifest's" + ("" if samples is None else ", though every listed sample is whole"),
            )
        )
    return faults


def _check_sample(tape: _Tape, shard: ShardInfo, sample: Expected, after: int, faults: list[Fault]) -> None:
    if sample.offset < tape.position:
        return  # the index overlaps itself, which check_index has reported
    _unlisted(tape, shard, sample.offset, True, faults)
    for name, offset, length, xxh3 in sample.members:
        if offset - BLOCK != tape.position or length < 0:
            return  # likewise

        def fault(what: str, name: str = name) -> None:
            faults.append(Fault(shard.path, sample.uid, name, what))

        def cut(name: str = name) -> _Cut:
            fault(f"the tar is cut at byte {tape.position} of {shard.bytes}: this sample and {after} after it are lost", name)
            return _Cut()

        header = tape.read(BLOCK)
        if len(header) < BLOCK:
            raise cut()
        if header != _header(name, length):
            fault("its tar header is damaged, or not the one that the index describes")
        digest = xxhash.xxh3_64()
        pieces: list[bytes] = []
        is_json = name == sample.members[-1][0]

        def content(piece: bytes, digest: Any = digest, keep: Any = pieces.append if is_json else None) -> None:
            digest.update(piece)
            if keep is not None:
                keep(piece)

        if tape.take(length, content) < length:
            raise cut()
        if digest.intdigest() != xxh3:
            fault("its content is damaged: the checksum (xxh3) does not fit")
        elif is_json:
            what = _disagreement(b"".join(pieces), sample, shard)
            if what:
                fault(what)
        zeros = tape.read(padding(length))
        if len(zeros) < padding(length):
            raise cut()
        if any(zeros):
            fault("the padding after it is not zero")


def _header(name: str, length: int) -> bytes | None:
    try:
        return tar_header(name, length)
    except ValueError:
        return None


def _unlisted(tape: _Tape, shard: ShardInfo, end: int, indexed: bool, faults: list[Fault]) -> None:
    """The members up to byte `end` that the index does not list: their headers and padding; sha256 covers their content."""
    if tape.position < end and indexed and shard.is_twin:
        faults.append(Fault(shard.path, None, None, f"bytes {tape.position} to {end} belong to no sample of its index"))
    while tape.position < end:
        start = tape.position
        block = tape.read(BLOCK)
        member = parse_header(block)
        if len(block) < BLOCK:
            faults.append(Fault(shard.path, None, None, f"the tar is cut at byte {tape.position} of {shard.bytes}"))
            raise _Cut
        if member is None or tape.position + member[1] + padding(member[1]) > end:
            faults.append(Fault(shard.path, None, None, f"there is no sound tar header at byte {start}"))
            tape.take(end - tape.position)
            return
        name, length = member
        if tape.take(length) < length or len(zeros := tape.read(padding(length))) < padding(length):
            faults.append(Fault(shard.path, uid_in(name), name, f"the tar is cut at byte {tape.position} of {shard.bytes}"))
            raise _Cut
        if any(zeros):
            faults.append(Fault(shard.path, uid_in(name), name, "the padding after it is not zero"))


def _disagreement(data: bytes, sample: Expected, shard: ShardInfo) -> str | None:
    """What the JSON member says otherwise than the index."""
    try:
        said = json.loads(data)
        items = [(item["task"], item["n"]) for item in said["items"]]
        members = [medium["member"] for medium in said["media"]]
        uid, format_ = said["uid"], said["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"it does not say what a sample's JSON must: {error!r}"
    if format_ != SAMPLE_FORMAT:
        return f"its format is {format_!r}, not {SAMPLE_FORMAT!r}"
    if uid != sample.uid:
        return f"it is the JSON of sample {uid}"
    if members != [name for name, *_ in sample.members[:-1]]:
        return f"it names the media {members}, the index others"
    if items != sample.items if shard.is_twin else not set(sample.items) <= set(items):
        return f"it has the items {items}, the index {sample.items}"
    return None
