"""A folder of media, walked to its leaves. `a.b.jpg` may have `a.b.txt` (its caption) and `a.b.json` (its fields) beside it, or
`a.b.jpg.txt` and `a.b.jpg.json`, which come first. A file whose extension says that it is something else (ANNOTATIONS) or whose name is
hidden is an annotation: those that belong to no medium are counted and logged. Any other file is taken for a picture, and the decoder
has the last word: a crawl's `image.bin` or a name without extension gets a verdict instead of vanishing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from shards.errors import InfrastructureError, SourceError
from shards.paths import absolute, printable, to_local, to_text
from shards.sample import MediaRef, Sample, digest_of, media_kind, uid_of
from shards.sources import downloads
from shards.sources.files import BELONGS_TO_SOURCE, File, Folder, is_folder, list_folder, open_file, stat_file, walk
from shards.sources.spec import DAMAGE, RECORD_BYTES, Container, Format, SourceSpec, Units, damaged, media_bytes
from shards.sources.texts import beside_medium, decode_text, parse_json, role_fields, texts_of

log = logging.getLogger("fovea")

ANNOTATIONS = frozenset(
    "txt json jsonl ndjson csv tsv md rst xml yaml yml toml ini cfg log html htm css js py sh srt vtt ass lrc doc docx xls xlsx "
    "parquet arrow feather npy npz pkl pt pth safetensors onnx h5 hdf5 db sqlite tar tgz zip gz bz2 xz zst 7z rar "
    "md5 sha1 sha256 lock tmp part crdownload wav mp3 flac ogg m4a".split()
)


def list_folders(spec: SourceSpec) -> Iterator[Container]:
    """A container for each folder that holds media, or that cannot be listed; its stamp is over names, sizes and times of all its files."""
    records: dict[str, File] = {}  # Parquet files met so far, by the name of the folder that they may be about
    for folder in walk(absolute(spec.path)):
        record = records.pop(folder.name, None)
        if folder.fault is not None:
            yield Container(printable(folder.name) or ".", to_text(folder.path), 0, digest_of(folder.fault), external=False)
            continue
        media, _, ignored = _sorted_out(folder)
        if ignored:
            log.info("%s: %d files are neither media nor beside a medium: ignored", printable(folder.path), len(ignored))
        if media or record is not None:
            stamp = digest_of([[printable(f.name), f.size, f.tag] for f in folder.files], *([record.stamp] if record else []))
            yield Container(printable(folder.name) or ".", to_text(folder.path), sum(f.size for f in folder.files), stamp, external=False)
        if downloads.wanted(spec):
            records |= {f.name[: -len(downloads.SUFFIX)]: f for f in folder.files if f.name.endswith(downloads.SUFFIX)}
    for name, record in records.items():  # nothing of it was fetched, so its folder is not there
        if downloads.is_record_file(record.path):
            path = record.path[: -len(downloads.SUFFIX)]
            yield Container(printable(name), path, 0, digest_of(record.stamp), external=False)


def scan_folder(spec: SourceSpec, container: Container) -> Iterator[Sample]:
    """A sample for each medium in one folder, by name, then what a record of downloads beside it lists and the folder lacks."""
    root, path = absolute(spec.path), to_local(container.path)
    units = Units(container.name)
    name = path[len(root) :].strip("/")
    record = downloads.twin_of(container.path) if name and downloads.wanted(spec) else None
    try:
        folder = Folder(name, path, ()) if record is not None and not is_folder(path) else list_folder(path, name)
    except BELONGS_TO_SOURCE as error:
        unit, ordinal = units.place(0)
        yield damaged(
            spec.name, f"{container.name}/{DAMAGE}", f"folder {printable(path)} cannot be listed: {error.strerror}", unit, ordinal
        )
        return
    except OSError as error:
        raise InfrastructureError(f"listing {printable(path)} failed: {error}; mend the disk, then run again") from error
    media, sidecars, _ = _sorted_out(folder)
    for file in media:
        sample = _sample(spec, file, sidecars)
        unit, ordinal = units.place(media_bytes(sample))
        yield Sample(sample.uid, spec.name, sample.key, unit, ordinal, sample.media, sample.texts, sample.damage)
    if record is not None:
        endings = Counter(file.name.rpartition(".")[2] for file in media)
        ending = min(endings, key=lambda e: (-endings[e], e), default="jpg")
        present = {_stem(file.name).rpartition("/")[2] for file in media}
        yield from downloads.not_there(spec, units, record, present, container.name, f".{ending}")


def _sorted_out(folder: Folder) -> tuple[list[File], Mapping[tuple[str, str], File], list[File]]:
    media = [f for f in folder.files if _is_medium(printable(f.name))]
    stems = {stem for f in media for stem in (f.name, _stem(f.name))}
    sidecars: dict[tuple[str, str], File] = {}
    ignored: list[File] = []
    for file in folder.files:
        extension = file.name.rpartition(".")[2].lower()
        if extension in ("txt", "json") and _stem(file.name) in stems:
            sidecars.setdefault((_stem(file.name), extension), file)
        elif not _is_medium(printable(file.name)):
            ignored.append(file)
    return media, sidecars, ignored


def _is_medium(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    if media_kind(name) is not None:
        return True
    extension = last.rpartition(".")[2].lower() if "." in last else ""
    return not last.startswith(".") and extension not in ANNOTATIONS


def _sample(spec: SourceSpec, file: File, sidecars: Mapping[tuple[str, str], File]) -> Sample:
    key = printable(file.name)
    kind = media_kind(key)
    record: dict[str, Any] = {}
    try:
        for extension in ("json", "txt"):
            sidecar = sidecars.get((file.name, extension)) or sidecars.get((_stem(file.name), extension))
            if sidecar is None:
                continue
            data = _content(sidecar)
            if extension == "txt":
                record["txt"] = decode_text(data, sidecar.path)
            else:
                value = parse_json(data, sidecar.path)
                record = value if isinstance(value, dict) else {"json": value}
        texts = texts_of(record, role_fields(spec, beside_medium(record)), file.path)
    except SourceError as error:
        return damaged(spec.name, key, str(error))
    ref = MediaRef(kind or "image", key, file.path, -1, file.size, file.stamp)
    return Sample(uid_of(spec.name, key), spec.name, key, "", 0, (ref,), texts)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _content(sidecar: File) -> bytes:
    size = stat_file(sidecar.path).size
    if size > RECORD_BYTES:
        raise SourceError(f"{sidecar.path} has {size:,} bytes, more than {RECORD_BYTES:,}")
    try:
        with open_file(sidecar.path) as file:
            return file.read(RECORD_BYTES)
    except OSError as error:
        raise InfrastructureError(f"reading {sidecar.path} failed: {error}; mend the disk or network, then run again") from error


FORMAT = Format(list_folders, scan_folder, (), options=("downloads",))
