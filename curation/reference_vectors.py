"""Files of vectors: Parquet with `key` and `embedding`, and in its metadata the digest of the step that made them.

Vectors of two encoders, or of two settings of one, say nothing about each other, so a file is known by that digest and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.weights import file_sha256
from shards.errors import InfrastructureError, SourceError
from shards.sources.files import open_file, stat_file

DIGEST = b"fovea.embed"  # metadata: digest of the step that made the vectors
KEY, EMBEDDING = "key", "embedding"
AT_ONCE = 8_192  # vectors


@dataclass(frozen=True, slots=True)
class Header:
    """rows: vectors. width: numbers in the first of them; 0 where it is null. digest: of the step that made them."""

    rows: int
    width: int
    digest: str


def schema(digest: str) -> pa.Schema:
    """Of a file of vectors that the step of this digest made."""
    fields = [pa.field(KEY, pa.string(), nullable=False), pa.field(EMBEDDING, pa.list_(pa.float32()))]
    return pa.schema(fields, metadata={DIGEST: digest.encode()})


def read_header(path: str) -> Header:
    """Raises InfrastructureError, with the mend, for what is not there, is damaged, holds nothing, or is no file of vectors."""
    with _opened(path) as file:
        found = file.schema_arrow
        digest = (found.metadata or {}).get(DIGEST, b"").decode("utf-8", "replace")
        types = {field.name: field.type for field in found}
        if types.get(KEY) not in (pa.string(), pa.large_string()) or not _is_vector(types.get(EMBEDDING)) or not digest:
            raise InfrastructureError(
                f"{path} is no file of vectors: it wants columns `key` string and `embedding` list<float>, and the step's digest under "
                f"{DIGEST.decode()!r} in its metadata; `fovea embeddings RUN --out FILE` writes one"
            )
        if not file.metadata.num_rows:
            raise InfrastructureError(f"{path} holds no vectors; write it again, or take the reference out")
        first = next(file.iter_batches(1, columns=[EMBEDDING])).column(EMBEDDING)[0].as_py()
        return Header(file.metadata.num_rows, len(first or ()), digest)


def read_keys(path: str) -> pa.Array:
    """The keys, in order of the file. Raises InfrastructureError."""
    with _opened(path) as file:
        return file.read(columns=[KEY]).column(KEY).cast(pa.string()).combine_chunks()


def read_vectors(path: str, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places in the file int64 (k,), float32 (k, width)) of those that are not null, few at a time; width: what they must have.

    Raises InfrastructureError for others, and for a file that is damaged."""
    at = 0
    with _opened(path) as file:
        for batch in _batches(file):
            values = batch.column(EMBEDDING)
            there = np.flatnonzero(np.asarray(pc.is_valid(values)))
            values = values.take(pa.array(there)).cast(pa.list_(pa.float32()))
            widths = set(pc.unique(pc.list_value_length(values)).to_pylist()) - {width}
            if widths:
                raise InfrastructureError(
                    f"{path}: vectors of {', '.join(map(str, sorted(widths)))} numbers, the step's have {width}: "
                    "they cannot be compared; write the file again with `fovea embeddings`"
                )
            flat = pc.fill_null(values.flatten(), np.nan).to_numpy(zero_copy_only=False)
            yield at + there, flat.reshape(len(there), width)
            at += batch.num_rows


def identity(path: str) -> str:
    """64 hex digits over the bytes of a local file; of a URL, over size and etag. Raises InfrastructureError."""
    return stat_file(path).stamp if "://" in path else file_sha256(Path(path))


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Of the vectors. Asked for all row groups at once, Arrow holds on to those it has read."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(AT_ONCE, row_groups=[group], columns=[EMBEDDING])


def _is_vector(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_floating(kind.value_type)


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    try:
        with open_file(path) as file, pq.ParquetFile(file) as opened:
            yield opened
    except SourceError as error:
        raise InfrastructureError(f"{error}; mend the path") from error
    except (pa.ArrowException, OSError) as error:
        raise InfrastructureError(f"{path} is damaged or no Parquet file: {error}; write it again with `fovea embeddings`") from error
