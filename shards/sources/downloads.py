"""The Parquet that img2dataset writes beside each tar or folder: a row for every URL it was given, fetched or not.

What it lists and the tar or folder lacks is a damaged sample, under the key that it would have: a crawl's failures are counted, and a later
try that succeeds is the same sample. The URL itself is not repeated: it may hold a signature.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Set
from typing import Any

import pyarrow as pa

from shards.cells import open_parquet
from shards.errors import InfrastructureError, SourceError
from shards.paths import printable
from shards.sample import Sample
from shards.sources.files import File, stat_file
from shards.sources.spec import DAMAGE, SourceSpec, Units, damaged

log = logging.getLogger("fovea")

SUFFIX = ".parquet"
COLUMNS = ("key", "status")
SUCCESS = "success"
DAMAGES = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OSError)
SAID = 300  # characters of an error message


def twin_name(path: str) -> str:
    """Where the record of downloads of a tar or folder lies."""
    return (path[: -len(".tar")] if path.endswith(".tar") else path) + SUFFIX


def wanted(spec: SourceSpec) -> bool:
    """`options.downloads: false` leaves these records unread: for tars and folders that were thinned out since."""
    return bool(spec.options.get("downloads", True))


def twin_of(path: str) -> File | None:
    """The file beside a tar or folder that may be its record of downloads; None where there is none."""
    try:
        return stat_file(twin_name(path))
    except SourceError:
        return None


def is_record(schema: pa.Schema) -> bool:
    """Whether a Parquet file's columns are those of img2dataset."""
    return all(name in schema.names for name in (*COLUMNS, "url"))


def is_record_file(path: str) -> bool:
    """`is_record` of a file; False for one that is no readable Parquet file."""
    try:
        return is_record(open_parquet(path).schema_arrow)
    except DAMAGES as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return False


def missing(record: File, present: Set[str]) -> Iterator[tuple[str, str]]:
    """(key, what became of it) of every row whose key is not `present`, in the order of the file; nothing for a Parquet file of another
    sort. Raises SourceError for one that cannot be read."""
    try:
        parquet = open_parquet(record.path)
        if not is_record(parquet.schema_arrow):
            log.info("%s is no record of downloads: ignored", record.path)
            return
        columns = [n for n in (*COLUMNS, "error_message") if n in parquet.schema_arrow.names]
        seen: set[str] = set()
        for batch in parquet.iter_batches(batch_size=8_192, columns=columns):
            for row in batch.to_pylist():
                key = str(row["key"])
                if row["key"] is not None and key not in present and key not in seen:
                    seen.add(key)
                    yield key, fate(row)
    except DAMAGES as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SourceError(f"{record.path} cannot be read, so what was not downloaded is not known: {error}") from error


def not_there(spec: SourceSpec, units: Units, record: File, present: Set[str], keys: str, ending: str = "") -> Iterator[Sample]:
    """Damaged samples for what the record lists and nobody has, under the keys `<keys>/<key><ending>`. Raises InfrastructureError."""
    try:
        for key, why in missing(record, present):
            unit, ordinal = units.place(0)
            yield damaged(spec.name, f"{keys}/{printable(key)}{ending}", f"{record.path}: {key} {why}", unit, ordinal)
    except SourceError as error:
        unit, ordinal = units.place(0)
        yield damaged(spec.name, f"{keys}/{DAMAGE}/downloads", str(error), unit, ordinal)
    except OSError as error:
        raise InfrastructureError(f"reading {record.path} failed: {error}; mend the disk or network, then run again") from error


def fate(row: dict[str, Any]) -> str:
    """What img2dataset says became of a URL."""
    if row.get("status") == SUCCESS:
        return "was downloaded, but its picture is not there"
    why = str(row.get("error_message") or "")[:SAID]
    return f"was not downloaded ({row.get('status') or 'not tried'})" + (f": {why}" if why else "")
