"""WebDataset tars: the members of one key follow one another (`00012.jpg`, `00012.txt`, `00012.json`); several media are `key.00.jpg …`.

The key is the member's name up to the first dot of its last part, as the webdataset library has it. A tar that is cut or damaged gives the
samples before that place that are surely whole, and one damaged sample `<tar>/@damage`. What follows a damaged header is not searched for
further headers: a tar inside a member could be taken for samples.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from shards.errors import InfrastructureError, SourceError
from shards.paths import absolute, printable
from shards.sample import MediaRef, Sample, digest_of, media_kind, stamp_of, uid_of
from shards.sources import downloads
from shards.sources.files import File, find_files, is_folder, open_file, stat_file
from shards.sources.spec import DAMAGE, RECORD_BYTES, Container, Format, SourceSpec, Units, damaged, media_bytes
from shards.sources.tarscan import Member, TarDamage, tar_members
from shards.sources.texts import beside_medium, decode_text, parse_json, role_fields, texts_of

log = logging.getLogger("fovea")

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # compressed ones are listed, so that they are refused aloud


@dataclass(slots=True)
class _Group:
    key: str
    members: dict[str, Member] = field(default_factory=dict)  # by suffix, in the order of the tar


def list_tars(spec: SourceSpec) -> Iterator[Container]:
    """A container for each tar, with the Parquet file beside it."""
    suffixes = (*SUFFIXES, downloads.SUFFIX) if downloads.wanted(spec) else SUFFIXES
    _, files = find_files(spec.path, lambda name: name.endswith(suffixes))
    beside = {file.path: file for file in files if file.name.endswith(downloads.SUFFIX)}
    listed = not downloads.wanted(spec) or is_folder(absolute(spec.path))  # then there is none that was not found
    for file in files:
        if file.name.endswith(SUFFIXES):
            record = beside.get(downloads.twin_name(file.path)) if listed else downloads.twin_of(file.path)
            stamp = file.stamp if record is None else digest_of(file.stamp, record.stamp)
            yield Container(printable(file.name), file.path, file.size, stamp, external=False)


def scan_tar(spec: SourceSpec, container: Container) -> Iterator[Sample]:
    """The samples of one tar, in its order, then what a record of downloads beside it lists and the tar lacks."""
    units = Units(container.name)
    present: set[str] = set()
    damage_key = f"{container.name}/{DAMAGE}"
    try:
        file = stat_file(container.path)
        with open_file(container.path) as tar:
            groups, damage, left_out = _groups(tar, file)
            repeated = {key for key, count in Counter(g.key for g in groups).items() if count > 1}
            if repeated:
                log.warning("%s: %d keys occur more than once; each such sample's key ends in its content's hash", file.path, len(repeated))
            done: set[str] = set()
            present = {g.key.rpartition("/")[2] for g in groups}
            for group in groups:
                key = f"{container.name}/{printable(group.key)}"
                if group.key in repeated:
                    key = f"{key}~{_content(tar, group)}"
                    if key in done:
                        log.warning("%s: sample %s is there twice with the same content: taken once", file.path, key)
                        continue
                    done.add(key)
                sample = _sample(spec, tar, file, key, group)
                unit, ordinal = units.place(media_bytes(sample))
                yield Sample(sample.uid, spec.name, key, unit, ordinal, sample.media, sample.texts, sample.damage)
    except SourceError as error:
        damage, left_out = str(error), 0
    except OSError as error:
        raise InfrastructureError(f"reading {container.path} failed: {error}; mend the disk or network, then run again") from error
    if left_out:
        log.warning("%s: %d members belong to no sample (no key before a dot): left out", container.path, left_out)
    if damage is not None:
        unit, ordinal = units.place(0)
        yield damaged(spec.name, damage_key, damage, unit, ordinal)
    if downloads.wanted(spec) and (record := downloads.twin_of(container.path)) is not None:
        yield from downloads.not_there(spec, units, record, present, container.name)


def split_name(name: str) -> tuple[str, str] | None:
    """(key, suffix) of a member's name; None for one without a key or without a suffix."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return (folder + slash + stem, suffix.lower()) if stem and dot and suffix else None


def _groups(tar: BinaryIO, file: File) -> tuple[list[_Group], str | None, int]:
    groups: list[_Group] = []
    left_out = 0
    try:
        for member in tar_members(tar, file.size):
            parts = split_name(member.name)
            if parts is None or member.what == "a folder":
                left_out += member.what != "a folder"
                continue
            key, suffix = parts
            if not groups or groups[-1].key != key or suffix in groups[-1].members:
                groups.append(_Group(key))
            groups[-1].members[suffix] = member
    except TarDamage as error:
        message = f"{file.path}: {error}"
        if not error.after_last and groups:
            doubtful = groups.pop()
            message += f"; sample {printable(doubtful.key)!r} may be cut and is left out"
        return groups, f"{message}; {len(groups)} samples before it are whole", left_out
    return groups, None, left_out


def _sample(spec: SourceSpec, tar: BinaryIO, file: File, key: str, group: _Group) -> Sample:
    where = f"{file.path}: sample {printable(group.key)!r}"
    media: list[MediaRef] = []
    annotations: list[str] = []
    record: dict[str, Any] = {}
    try:
        for suffix, member in group.members.items():
            name = printable(member.name)
            if member.what is not None:
                raise SourceError(f"{where}: member {name!r} is {member.what}, not a plain file")
            kind = media_kind(name)
            if suffix == "txt":
                record["txt"] = decode_text(_body(tar, member, where), f"{where}: {name}")
            elif suffix == "json":
                value = parse_json(_body(tar, member, where), f"{where}: {name}")
                record = {**value, **record} if isinstance(value, dict) else {"json": value, **record}
            elif kind is not None:
                stamp = stamp_of(file.size, file.tag, member.offset)
                media.append(MediaRef(kind, name, file.path, member.offset, member.size, stamp))
            else:
                annotations.append(name)
        if annotations:
            record["annotations"] = annotations
        texts = texts_of(record, role_fields(spec, beside_medium(record)), where)
    except TarDamage:
        raise
    except SourceError as error:
        return damaged(spec.name, key, str(error))
    return Sample(uid_of(spec.name, key), spec.name, key, "", 0, tuple(media), texts)


def _body(tar: BinaryIO, member: Member, where: str) -> bytes:
    if member.size > RECORD_BYTES:
        raise SourceError(f"{where}: member {printable(member.name)!r} has {member.size:,} bytes, more than {RECORD_BYTES:,}")
    tar.seek(member.offset)
    data = tar.read(member.size)
    if len(data) < member.size:
        raise TarDamage(f"the file became shorter while it was read, at byte {member.offset + len(data)}")
    return data


def _content(tar: BinaryIO, group: _Group) -> str:
    digest = hashlib.sha256()
    for suffix, member in sorted(group.members.items()):
        digest.update(f"{suffix}\0{member.size}\0".encode("utf-8", "surrogatepass"))
        tar.seek(member.offset)
        left = member.size
        while left > 0 and (data := tar.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()[:12]


FORMAT = Format(list_tars, scan_tar, SUFFIXES, options=("downloads",))
