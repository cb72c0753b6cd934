"""The manifest: the one file that makes shards a dataset. Read strictly; replaced last. docs/shards.md is the contract."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ShardError
from shards.sample import canonical_json

if TYPE_CHECKING:
    from shards.store import Store

DATASET_FORMAT = "fovea-dataset/1"
MANIFEST = "manifest.json"

_VERSION = re.compile(r"[0-9a-f]{4,64}")
_SHARD_NAME = re.compile(r"([a-z0-9_]+)-[0-9]{6,}")
_TAR_PATH = re.compile(r"v-[0-9a-f]{4,64}/[a-z0-9_]+-[0-9]{6,}\.tar")
_INDEX_PATH = re.compile(r"v-[0-9a-f]{4,64}/[a-z0-9_]+-[0-9]{6,}(\.over-[0-9a-f]{4,64})?\.parquet")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar and the index over it; paths relative to the dataset's folder. Sizes in bytes, digests of whole files.

    `rows`, `samples` and `items` are what the index lists (a sample without items has a row too).
    """

    path: str
    index: str
    split: str
    rows: int
    samples: int
    items: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str

    @property
    def name(self) -> str:
        """File name of the tar, as in the index's column `shard`."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_twin(self) -> bool:
        """Whether the index was written with the tar, and so lists every sample of it."""
        return self.index == self.path.removesuffix(".tar") + ".parquet"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version of a dataset. `profiles`: name -> {digest, …fields}; `scores`: (name, Arrow type); `counts`: the ledger's verdicts."""

    name: str
    version: str
    recipe: str
    shards: tuple[ShardInfo, ...]
    previous: str | None = None
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: tuple[tuple[str, str], ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, dict[str, int]]:
        """Sums of shards, rows, samples, items and bytes for each split."""
        sums: dict[str, dict[str, int]] = {}
        for shard in self.shards:
            of = sums.setdefault(shard.split, dict.fromkeys(("shards", "rows", "samples", "items", "bytes"), 0))
            of["shards"] += 1
            for key in ("rows", "samples", "items", "bytes"):
                of[key] += getattr(shard, key)
        return sums

    @property
    def folder(self) -> str:
        return version_folder(self.version)

    def of_split(self, split: str | None) -> list[tuple[int, ShardInfo]]:
        """(number, shard) of a split's shards in order, of all for None. Raises ShardError for a split that is not there."""
        if split is not None and split not in self.splits:
            raise ShardError(
                f"dataset {self.name} (version {self.version}) has no split {split!r}; it has {', '.join(sorted(self.splits))}"
            )
        return [(number, shard) for number, shard in enumerate(self.shards) if split is None or shard.split == split]


def version_folder(version: str) -> str:
    """Raises ShardError for what is no digest."""
    if not _VERSION.fullmatch(version):
        raise ShardError(f"{version!r} is no version: it must be 4 to 64 hexadecimal digits")
    return f"v-{version}"


def split_of(shard_name: str) -> str:
    """The split in a shard's name, `train` of "train-000000". Raises ShardError for another form of name."""
    match = _SHARD_NAME.fullmatch(shard_name)
    if not match:
        raise ShardError(f"{shard_name!r} is no shard's name: it must be <split>-<six digits>, the split of a-z, 0-9 and _")
    return match.group(1)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The file's bytes: a function of the manifest alone."""
    value: dict[str, Any] = {
        "format": DATASET_FORMAT,
        "name": manifest.name,
        "version": manifest.version,
        "previous": manifest.previous,
        "recipe": manifest.recipe,
        "shards": [asdict(shard) for shard in manifest.shards],
        "profiles": {name: dict(profile) for name, profile in manifest.profiles.items()},
        "scores": [{"name": name, "type": type_} for name, type_ in manifest.scores],
        "counts": dict(manifest.counts),
        "splits": manifest.splits,
    }
    value["checksum"] = _checksum(value)
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Inverse of `manifest_bytes`. Raises ShardError, naming `where`, for anything that is not exactly a manifest of this format."""
    try:
        value = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise ShardError(f"{where}: no JSON ({error}); restore it from the copy in the version's folder v-…/{MANIFEST}") from error
    if not isinstance(value, dict):
        raise ShardError(f"{where}: no manifest: a JSON object is expected")
    if value.get("format") != DATASET_FORMAT:
        raise ShardError(
            f"{where}: format {value.get('format')!r}, this version of fovea reads {DATASET_FORMAT!r}; "
            "read it with the version that wrote it, or write the dataset anew"
        )
    keys = {"format", "name", "version", "previous", "recipe", "shards", "profiles", "scores", "counts", "splits", "checksum"}
    if set(value) != keys:
        raise ShardError(f"{where}: missing keys {sorted(keys - set(value))}, unknown keys {sorted(set(value) - keys)}")
    if value["checksum"] != _checksum(value):
        raise ShardError(f"{where}: its checksum does not fit: the file is damaged or was edited; restore the copy in v-…/{MANIFEST}")
    _expect(where, "name", value["name"], str)
    _expect(where, "recipe", value["recipe"], str)
    for key in ("version", "previous"):
        if not (key == "previous" and value[key] is None):
            _match(where, key, value[key], _VERSION)
    _expect(where, "shards", value["shards"], list)
    manifest = Manifest(
        name=value["name"],
        version=value["version"],
        previous=value["previous"],
        recipe=value["recipe"],
        shards=tuple(_shard(f"{where}: shards[{i}]", shard) for i, shard in enumerate(value["shards"])),
        profiles=_profiles(where, value["profiles"]),
        scores=_scores(where, value["scores"]),
        counts=_counts(where, value["counts"]),
    )
    if value["splits"] != manifest.splits:
        raise ShardError(f"{where}: splits are {value['splits']}, but the shards add up to {manifest.splits}")
    indexes = [shard.index for shard in manifest.shards]
    if len(set(indexes)) != len(indexes):
        raise ShardError(f"{where}: the same index is named twice")
    return manifest


def load_manifest(source: Store | str | Path, name: str = MANIFEST) -> Manifest:
    """The manifest in a store, or of a local file or dataset folder. Raises ShardError if it is missing or no manifest."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        path = path / name if path.is_dir() else path
        if not path.is_file():
            raise ShardError(f"{path}: there is no manifest, so this is no dataset (it is written last: was the run finished?)")
        return parse_manifest(path.read_bytes(), str(path))
    if not source.exists(name):
        raise ShardError(f"{source.url(name)}: there is no manifest, so this is no dataset (it is written last: was the run finished?)")
    return parse_manifest(source.read(name), source.url(name))


def save_manifest(store: Store, manifest: Manifest) -> None:
    """Publishes a version: its own copy first, then `manifest.json`. Safe to repeat. Raises ShardError if that version says otherwise."""
    data = manifest_bytes(manifest)
    parse_manifest(data, store.url(MANIFEST))
    copy = f"{manifest.folder}/{MANIFEST}"
    if not store.put_new(copy, data) and store.read(copy) != data:
        raise ShardError(
            f"{store.url(copy)}: version {manifest.version} was published with another content; its digest must change with it"
        )
    store.put_replace(MANIFEST, data)


def _checksum(value: Mapping[str, Any]) -> str:
    text = canonical_json({key: entry for key, entry in value.items() if key != "checksum"})
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _shard(where: str, value: Any) -> ShardInfo:
    _expect(where, "the shard", value, dict)
    names = [f.name for f in fields(ShardInfo)]
    if set(value) != set(names):
        raise ShardError(f"{where}: missing keys {sorted(set(names) - set(value))}, unknown keys {sorted(set(value) - set(names))}")
    for key in ("rows", "samples", "items", "bytes", "index_bytes"):
        _count(where, key, value[key])
    _match(where, "path", value["path"], _TAR_PATH)
    _match(where, "index", value["index"], _INDEX_PATH)
    _match(where, "sha256", value["sha256"], _SHA256)
    _match(where, "index_sha256", value["index_sha256"], _SHA256)
    _expect(where, "split", value["split"], str)
    return ShardInfo(**value)


def _profiles(where: str, value: Any) -> dict[str, dict[str, Any]]:
    _expect(where, "profiles", value, dict)
    for name, profile in value.items():
        _expect(where, f"profiles.{name}", profile, dict)
        _expect(where, f"profiles.{name}.digest", profile.get("digest"), str)
    return dict(value)


def _scores(where: str, value: Any) -> tuple[tuple[str, str], ...]:
    _expect(where, "scores", value, list)
    for score in value:
        if not isinstance(score, dict) or set(score) != {"name", "type"} or not all(isinstance(v, str) for v in score.values()):
            raise ShardError(f"{where}: a score must be {{name, type}}, not {score!r}")
    return tuple((score["name"], score["type"]) for score in value)


def _counts(where: str, value: Any) -> dict[str, int]:
    _expect(where, "counts", value, dict)
    for name, number in value.items():
        _count(where, f"counts.{name}", number)
    return dict(value)


def _expect(where: str, key: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise ShardError(f"{where}: {key} must be {kind.__name__}, not {value!r}")


def _match(where: str, key: str, value: Any, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ShardError(f"{where}: {key} is {value!r}, which has not the form {pattern.pattern}")


def _count(where: str, key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ShardError(f"{where}: {key} must be a number from 0, not {value!r}")


def profile_entries(profiles: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The manifest's `profiles` for a list of `shards.profile.Profile`: name -> {digest, …fields}."""
    return {p.name: {"digest": p.digest, **json.loads(canonical_json(asdict(p)))} for p in profiles}
