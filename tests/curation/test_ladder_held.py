from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation.deduplicate import STEP, What, reduce
from curation.population import Population
from pipeline.blur import OPERATOR
from shards.errors import InfrastructureError
from shards.index import index_schema
from shards.manifest import Manifest, save_manifest
from shards.publish import publish_shard
from shards.store import open_store
from shards.writer import ShardMedium, ShardSample, write_shard
from tests.curation.ladder_reference import Made, Medium, opened

BASE = 0xF0F0_3C3C_A5A5_9696
NEAR = BASE ^ 0b11
FAR = BASE ^ 0xFFFF


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def dataset(folder: Path, version: str, samples: dict[str, tuple[bytes, int]], made: dict[str, dict[str, Any]] | None = None) -> Path:
    """A dataset of pictures: uid → (bytes, phash). made: uid → how they were made, as a medium says it."""
    folder.mkdir(exist_ok=True)
    schema = index_schema([pa.field("phash", pa.uint64())])
    written = write_shard(
        folder / "scratch.tar",
        "train-000000",
        [
            ShardSample(
                uid,
                "old",
                uid,
                "image",
                "train",
                [ShardMedium("image", "a.jpg", data, **(made or {}).get(uid, {}))],
                scores={"phash": phash},
            )
            for uid, (data, phash) in samples.items()
        ],
        schema,
    )
    store = open_store(str(folder))
    info = publish_shard(store, f"v-{version}", written)
    save_manifest(store, Manifest("old", version, "00" * 8, (info,), scores=(("phash", "uint64"),)))
    return folder


def picture(uid: str, data: bytes, phash: int | None = None, score: float = 0.0, source: str = "s") -> Made:
    return Made(uid, (Medium(sha(data), phash),), source=source, score=score)


def of(what: What, population: Population) -> dict[str, str | None]:
    return {r["uid"]: r["of"] for r in reduce(what, population).to_pylist()}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    uids = [c * 32 for c in "cd"]
    return dataset(tmp_path / "dataset", "abcd1234", {uids[0]: (b"one", BASE), uids[1]: (b"two", FAR)})


C, D = "c" * 32, "d" * 32


def test_keepers_of_a_version_stay_and_newcomers_lose_to_them(tmp_path: Path, kept: Path) -> None:
    """The newcomer a is better by the ordering and by its uid; without `against` it wins."""
    rows = [picture("a", b"new", NEAR, score=9.0), picture(C, b"one", BASE), picture(D, b"two", FAR), picture("e", b"other", FAR ^ 1)]
    what = What(keep_best="score desc")
    population = opened(rows, tmp_path / "p")
    assert of(what, population) == {"a": None, C: "a", D: None, "e": D}
    for against in (str(kept), f"{kept}/", f"{kept}/v-abcd1234"):
        assert of(replace(what, against=against), population) == {"a": C, C: None, D: None, "e": D}


def test_keepers_never_lose_to_each_other(tmp_path: Path) -> None:
    old = dataset(tmp_path / "dataset", "abcd", {C: (b"one", BASE), D: (b"one", BASE)})
    rows = [picture(C, b"one", BASE), picture(D, b"one", BASE), picture("e", b"one", BASE), picture("f", b"x", NEAR)]
    assert of(What(against=str(old)), opened(rows, tmp_path / "p")) == {C: None, D: None, "e": C, "f": C}


def test_keepers_that_are_gone_take_part_by_what_the_index_says(tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [picture("a", b"new", NEAR), picture("b", b"two"), picture("e", b"other")]
    with caplog.at_level(logging.WARNING, "fovea"):
        assert of(What(against=str(kept)), opened(rows, tmp_path / "p")) == {"a": C, "b": D, "e": None}
    assert "2 of the 2 samples of version abcd1234 are not in the population" in caplog.text


def test_what_was_made_of_something_is_gone_by_the_bytes_that_were_compared(tmp_path: Path) -> None:
    """Pages of one document are no copies of each other; a blurred picture is held against as it was before."""
    made: dict[str, dict[str, Any]] = {
        C: {"original_sha256": sha(b"pdf"), "transform": {"operator": "pages", "version": 1, "parameters": {"page": 1}}},
        D: {"original_sha256": sha(b"pdf"), "transform": {"operator": "pages", "version": 1, "parameters": {"page": 2}}},
        "e" * 32: {"original_sha256": sha(b"face"), "transform": {"operator": OPERATOR, "version": 1, "parameters": {}}},
        "f" * 32: {"original_sha256": sha(b"pdf"), "transform": {"operator": OPERATOR, "version": 1, "parameters": {"after": made_of()}}},
    }
    written = {
        C: (b"one", BASE),
        D: (b"two", FAR),
        "e" * 32: (b"no face", BASE ^ 0xFF),
        "f" * 32: (b"page with no face", BASE ^ 0xFF00FF00),
    }
    old = dataset(tmp_path / "dataset", "abcd", written, made)
    rows = [
        picture("1", b"one", BASE),
        picture("2", b"two", FAR),
        *(picture(uid, data) for uid, data in (("3", b"face"), ("4", b"pdf"), ("5", b"no face"))),
        *(picture(uid, b"new" + uid.encode(), phash) for uid, phash in (("6", BASE ^ 1), ("7", FAR ^ 1), ("8", BASE ^ 0xFF00FF01))),
    ]
    found = of(What(against=str(old)), opened(rows, tmp_path / "p"))
    assert found == {"1": C, "2": D, "3": "e" * 32, "4": None, "5": None, "6": C, "7": D, "8": "f" * 32}


def made_of() -> dict[str, Any]:
    return {"operator": "pages", "version": 1, "parameters": {"page": 3}}


def test_a_version_of_the_runs_own_dataset_is_named_by_its_digest_alone(tmp_path: Path, kept: Path) -> None:
    dataset(kept, "ffff", {C: (b"one", BASE)})  # the newest now
    rows = [picture("a", b"two"), picture(C, b"one", BASE)]
    population = opened(rows, tmp_path / "p", dataset=str(kept))
    assert of(What(against="v-abcd1234"), population)["a"] == D
    assert of(What(against="v-ffff"), population)["a"] is None
    for missing in (population, opened(rows, tmp_path / "q", dataset=str(tmp_path / "none")), opened(rows, tmp_path / "r")):
        with pytest.raises(InfrastructureError, match="v-0000"):
            reduce(What(against="v-0000"), missing)
    with pytest.raises(InfrastructureError, match="own dataset"):
        reduce(What(against=f"{kept}/"), population)


def test_a_version_that_is_not_there_is_told_before_the_run(tmp_path: Path, kept: Path) -> None:
    assert STEP.check is not None
    STEP.check(What(against=str(kept)))
    STEP.check(What(against="v-0000"))
    for against in (str(tmp_path / "nothing"), f"{kept}/v-0000"):
        with pytest.raises(ValueError, match=r"against: .*give the path"):
            STEP.check(What(against=against))


def test_the_identity_is_the_version_not_the_path(tmp_path: Path, kept: Path) -> None:
    assert STEP.identity is not None
    one = STEP.identity(What(against=str(kept)))
    assert one == STEP.identity(What(against=f"{kept}/v-abcd1234")) == STEP.identity(What(against="v-abcd1234"))
    dataset(kept, "ffff", {C: (b"one", BASE)})
    assert STEP.identity(What(against=str(kept))) != one
    assert STEP.identity(What(phash_floor=9, cosine_floor=0.6)) == STEP.identity(What())


def references(*rows: tuple[str, bytes, int | None]) -> list[Made]:
    return [Made(f"reference:bench/{key}", (Medium(sha(data), phash),), source=None, reference=True) for key, data, phash in rows]


def test_copies_of_a_reference_name_it_and_references_are_not_answered(tmp_path: Path) -> None:
    held = references(("x.jpg", b"one", BASE), ("y.jpg", b"one", BASE), ("z.jpg", b"far", FAR))
    rows = [picture("a", b"one", BASE), picture("b", b"b", NEAR, score=9.0), picture("c", b"other"), *held]
    found = reduce(What(keep_best="score desc"), opened(rows, tmp_path)).to_pylist()
    assert found == [
        {"uid": "a", "of": "reference:bench/x.jpg", "rung": "sha256", "similarity": 1.0, "group": "reference:bench/x.jpg"},
        {"uid": "b", "of": "reference:bench/x.jpg", "rung": "phash", "similarity": 1 - 2 / 64, "group": "reference:bench/x.jpg"},
        {"uid": "c", "of": None, "rung": None, "similarity": None, "group": "c"},
    ]


@pytest.mark.parametrize("across", ["source", "sources"])
def test_references_are_compared_with_every_source(tmp_path: Path, across: Any) -> None:
    rows = [picture("a", b"one", BASE, source="p"), picture("b", b"one", BASE, source="q"), picture("c", b"x", NEAR, source="q")]
    held = references(("k", b"one", BASE))
    assert set(of(What(across=across), opened([*rows, *held], tmp_path)).values()) == {"reference:bench/k"}


def test_across_a_source_and_across_sources(tmp_path: Path) -> None:
    rows = [picture("a", b"1", source="p"), picture("b", b"1", source="p"), picture("c", b"1", source="q"), picture("d", b"1", source="q")]
    population = opened(rows, tmp_path)
    assert of(What(across="source"), population) == {"a": None, "b": "a", "c": None, "d": "c"}
    assert of(What(across="sources"), population) == {"a": None, "b": None, "c": "a", "d": "a"}
    assert STEP.reads(What(across="source")) == ["sha256", "phash", "source"]


def test_what_is_rejected(tmp_path: Path) -> None:
    assert STEP.implied is not None
    reference = ({"name": "bench", "folder": str(tmp_path)},)
    rules = [STEP.implied(w) for w in (What(), What(action="reject"), What(action="mark"), What(reference=reference))]
    assert rules == [
        "{prefix}of is null or turns > 0",
        "{prefix}of is null",
        None,
        "{prefix}of is null or (turns > 0 and not starts_with({prefix}of, 'reference:'))",
    ]


def test_a_reference_is_known_by_its_content(tmp_path: Path) -> None:
    assert STEP.identity is not None
    assert STEP.references is not None
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"1")
    what = What(reference=({"name": "bench", "folder": str(folder)},))
    assert [(r.name, r.format, r.path) for r in STEP.references(what)] == [("bench", "folder", str(folder))]
    before = STEP.identity(what)
    (folder / "b.jpg").write_bytes(b"2")
    assert STEP.identity(what) != before
    assert STEP.check is not None
    with pytest.raises(ValueError, match="reference"):
        STEP.check(What(reference=({"name": "bench", "folder": str(tmp_path / "nothing")},)))
