"""What a population is held against: the samples of an earlier version of a dataset, which stay, and references, which come behind them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.ladder import codes_of
from curation.population import Population
from curation.vectors import Vectors
from shards.errors import InfrastructureError, ShardError
from shards.reader import Dataset
from shards.sample import digest_of

log = logging.getLogger("fovea")

AT_ONCE = 8_192  # rows or vectors read for a digest
BLUR = "blur"  # operator of the transforms made as a picture is written, when all steps have seen it (pipeline/blur.py)
_VERSION = re.compile(r"v-[0-9a-f]{4,64}")


@dataclass(frozen=True, slots=True)
class Held:
    """table: the population's rows, behind them those of keepers that are not among its samples. fixed, reference: bool for each row.
    digest: of what is fixed, "" for nothing."""

    table: pa.Table
    fixed: np.ndarray
    reference: np.ndarray
    digest: str

    def told(self, vectors: Vectors | None, samples: int) -> Held:
        """With the vectors of the references, which are rows from `samples` on, in its digest."""
        if vectors is None or vectors.rows <= samples:
            return self
        content = hashlib.sha256(self.digest.encode())
        ids = np.concatenate([np.arange(samples, vectors.rows), vectors.rows + np.flatnonzero(vectors.owner >= samples)])
        for start in range(0, len(ids), AT_ONCE):
            content.update(np.ascontiguousarray(vectors.take(ids[start : start + AT_ONCE])).data)
        return replace(self, digest=content.hexdigest())


def version_of(against: str) -> str:
    """The digest of a version; of "v-<digest>" alone without a look at it. Raises ShardError."""
    return against.removeprefix("v-") if _VERSION.fullmatch(against) else Dataset.open(against).manifest.version


def check_version(against: str) -> None:
    """Raises ValueError for a version that is not there. One of the run's own dataset is only known when it runs."""
    try:
        version_of(against)
    except (ShardError, OSError, ValueError) as error:
        raise ValueError(
            f"against: {error}; give the path or URL of a dataset or of a version in it (dataset/v-…), or v-<digest> of this run's own"
        ) from error


def no_keepers(population: Population) -> Held:
    """Held against its references alone."""
    reference = np.arange(population.table.num_rows) >= population.samples
    return Held(population.table, reference, reference, _digest(population, ""))


def read_keepers(population: Population, against: str) -> Held:
    """With the samples of a version fixed. Those that the population has no more take part with what its index says of them: the sha256
    of their media, and their phash where it is a score there; they have no vectors and no signatures, and a warning tells how many.

    Raises InfrastructureError where the version is not there.
    """
    dataset = _opened(population, against)
    index = _index(dataset)
    uids, wanted = population.table["uid"], index["uid"]
    samples = np.arange(population.table.num_rows) < population.samples
    known = pc.is_in(uids, value_set=wanted).to_numpy() & samples
    gone = index.filter(pc.invert(pc.is_in(wanted, value_set=uids.filter(pa.array(samples)))))
    table = population.table
    if gone.num_rows:
        log.warning(
            "deduplicate: %d of the %d samples of version %s are not in the population; newcomers are held against their bytes%s",
            gone.num_rows, index.num_rows, dataset.manifest.version, " and hashes" if "phash" in gone.column_names else " only",
        )  # fmt: skip
        table = pa.concat_tables([table, _rows(gone, table.schema)])
    extra = table.num_rows - population.table.num_rows
    reference = np.concatenate([~samples, np.zeros(extra, bool)])
    fixed = np.concatenate([known | ~samples, np.ones(extra, bool)])
    return Held(table, fixed, reference, _digest(population, dataset.manifest.version))


def _opened(population: Population, against: str) -> Dataset:
    if not _VERSION.fullmatch(against):
        if population.dataset and os.path.realpath(against) == os.path.realpath(population.dataset):
            raise InfrastructureError(
                f"deduplicate: against {against} is this run's own dataset, and each run makes a newer version of it, so that nothing "
                "would ever be settled; name the version, v-<digest> (dataset/manifest.json has the newest)"
            )
        try:
            return Dataset.open(against)
        except ShardError as error:
            raise InfrastructureError(f"deduplicate: against {against}: {error}") from error
    if not population.dataset:
        raise InfrastructureError(f"deduplicate: against {against}: this run has no dataset; give the path of the dataset that has it")
    path = f"{population.dataset.rstrip('/')}/{against}"
    try:
        dataset = Dataset.open(path)
        if dataset.manifest.folder == against:
            return dataset
    except ShardError:
        pass
    raise InfrastructureError(
        f"deduplicate: there is no version {against} at {population.dataset}; its folder {against}/ holds its manifest: was it removed by "
        "`fovea gc`? Give the path of a dataset that has it, or take `against` out"
    )


def _index(dataset: Dataset) -> pa.Table:
    """A row for each sample of a version."""
    scores = {name for name, _ in dataset.manifest.scores}
    if not dataset.manifest.shards:
        return pa.table({"uid": pa.array([], pa.string())})
    table = dataset.index(["uid", "source", "kind", "media", *(["phash"] if "phash" in scores else [])])
    _, first = np.unique(codes_of(table["uid"].cast(pa.large_string()).combine_chunks()), return_index=True)
    return table.take(pa.array(np.sort(first)))


def _rows(gone: pa.Table, schema: pa.Schema) -> pa.Table:
    """Samples out of an index as rows of a population."""
    gone = gone.sort_by("uid")
    media = gone["media"].combine_chunks()
    sha256 = pa.ListArray.from_arrays(media.offsets, _as_compared(media.values))
    found = {"uid": gone["uid"], "kind": gone["kind"], "source": gone["source"], "sha256": sha256}
    if "phash" in gone.column_names:
        one = np.asarray(pc.equal(pc.list_value_length(media), 1)) & np.asarray(pc.is_valid(gone["phash"]))
        offsets = np.concatenate([[0], np.cumsum(one)]).astype(np.int32)
        found["phash"] = pa.ListArray.from_arrays(pa.array(offsets), gone["phash"].combine_chunks().filter(pa.array(one)))
    columns = [found[f.name].cast(f.type) if f.name in found else pa.nulls(gone.num_rows, f.type) for f in schema]
    return pa.table(columns, schema=schema)


def _as_compared(media: pa.StructArray) -> pa.Array:
    """Of each medium of an index the sha256 that the run which wrote it had compared; NULL where the index does not tell it.

    What a splitter made is its own bytes (all pages of a document have one original); what was blurred as it was written was the original.
    """
    written, original, transforms = (pc.struct_field(media, name) for name in ("sha256", "original_sha256", "transform"))
    found = pc.if_else(pc.is_valid(transforms), written, original)
    maybe = np.flatnonzero(np.asarray(pc.fill_null(pc.match_substring(transforms, f'"{BLUR}"'), False)))
    if not len(maybe):
        return found
    last = [json.loads(transform) for transform in transforms.take(pa.array(maybe)).to_pylist()]
    blurred = np.zeros(len(media), bool)
    chained = np.zeros(len(media), bool)
    blurred[maybe] = [transform["operator"] == BLUR for transform in last]
    chained[maybe] = [transform["operator"] == BLUR and "after" in transform["parameters"] for transform in last]
    return pc.if_else(pa.array(chained), pa.scalar(None, pa.string()), pc.if_else(pa.array(blurred), original, found))


def _digest(population: Population, version: str) -> str:
    """Of what is fixed: the version, and the references' rows."""
    if not version and not population.references:
        return ""
    rows = population.table.slice(population.samples)
    rows = rows.select([name for name in ("uid", "sha256", "phash") if name in rows.column_names])
    content = hashlib.sha256()
    for start in range(0, rows.num_rows, AT_ONCE):
        content.update(digest_of(rows.slice(start, AT_ONCE).to_pylist()).encode())
    return digest_of(version, content.hexdigest())
