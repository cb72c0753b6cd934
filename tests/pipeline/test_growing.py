"""A corpus that grows: what flips when its duplicates are weighed anew, that nothing does when it is held against the version before, and
that neither workers, nor the order of records, nor a kill in the middle shows in what is kept."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image

from curation.deduplicate import What, reduce
from curation.population import population_of
from curation.vectors import write_vectors
from pipeline.curate import Outcome
from pipeline.plan import make_plan
from pipeline.recipe import load_recipe
from shards.manifest import version_folder
from shards.reader import Dataset
from tests.pipeline.small import ask, files_of, recipe, run
from tests.pipeline.test_kill import kill_at, start, to_the_end, when
from tests.steps.thumbnail import GREY

NEAR = 0.95
DEDUPLICATE: dict[str, Any] = {"phash_radius": 0, "embedding": "thumbnail", "cosine": NEAR, "keep_best": "width desc"}
PATTERNS = np.linalg.qr(np.random.default_rng(0).normal(size=(144, 144)))[
    0
]  # rows: 144 pictures of 8 by 6, each at a right angle to the others
ANGLE = np.arccos(0.97)  # between A and the two beside it; those are at a cosine of 0.88 to each other


def pattern(path: Path, turn: Mapping[int, float], width: int) -> None:
    """A PNG of a sum of PATTERNS; `width` is a multiple of 8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = sum(weight * PATTERNS[number] for number, weight in turn.items())
    cells = np.clip(np.round(GREY + 400 * np.reshape(values, (6, 8, 3))), 0, 255).astype(np.uint8)
    Image.fromarray(cells.repeat(width // 8, axis=0).repeat(width // 8, axis=1)).save(path)
    path.with_suffix(".txt").write_text(f"picture {path.stem}")


def beside(number: int, other: int, sign: int = 1) -> dict[int, float]:
    return {number: float(np.cos(ANGLE)), other: sign * float(np.sin(ANGLE))}


DELIVERIES: list[dict[str, tuple[dict[int, float], int]]] = [
    {"a": ({0: 1.0}, 80), "c": (beside(0, 1), 72), "b": ({2: 1.0}, 80), "small-b": ({2: 1.0}, 64), "alone": ({3: 1.0}, 80)},
    {"n": (beside(0, 1, -1), 88), "small-alone": ({3: 1.0}, 64), "new": ({4: 1.0}, 80)},
    {"large-b": ({2: 1.0}, 96), "large-new": ({4: 1.0}, 96), "last": ({5: 1.0}, 80)},
]
Fates = dict[str, tuple[str, str | None]]


def fates(folder: Path) -> Fates:
    """Name → verdict, and the name of what it is a copy of."""
    query = "select s.key, s.verdict, o.key from samples s left join samples o on o.uid = s.duplicate_of"
    return {Path(key).stem: (verdict, of and Path(of).stem) for key, verdict, of in ask(folder, query)}


def grown(folder: Path, number: int, version: str = "") -> Path:
    """The recipe after so many deliveries, held against a version of the dataset or against nothing."""
    for name, (turn, width) in DELIVERIES[number].items():
        pattern(folder / f"pics/{name}.png", turn, width)
    return write(folder, version)


def write(folder: Path, version: str = "") -> Path:
    held = {"against": version_folder(version)} if version else {}
    steps = ["probe", "tests.steps.thumbnail", {"compose": {"tasks": ["short_caption"]}}, {"deduplicate": DEDUPLICATE | held}]
    return recipe(folder / "r.yaml", {"pics": folder / "pics"}, steps)


def flips(before: Fates, after: Fates) -> dict[tuple[str, str], int]:
    return dict(Counter((was[0], after[name][0]) for name, was in before.items() if was[0] != after[name][0]))


def called(outcome: Outcome) -> dict[str, int]:
    return {name: outcome.calls.get(name, 0) for name in ("probe", "tests.steps.thumbnail")}


@pytest.mark.usefixtures("one_ray")
def test_weighed_anew_at_each_delivery_the_best_copy_stays(tmp_path: Path) -> None:
    found: list[Fates] = []
    for number, delivery in enumerate(DELIVERIES):
        outcome = run(grown(tmp_path, number), tmp_path / "run")
        assert called(outcome) == {"probe": len(delivery), "tests.steps.thumbnail": len(delivery)}
        found.append(fates(tmp_path / "run"))
    first, second, third = found
    assert first["c"] == ("rejected", "a")
    # a newcomer takes a's place, and is too far from c to stand for it
    assert second["a"] == ("rejected", "n")
    assert second["c"] == ("kept", None)
    assert flips(first, second) == {("kept", "rejected"): 1, ("rejected", "kept"): 1}
    assert flips(second, third) == {("kept", "rejected"): 2}
    assert {name: of for name, (verdict, of) in third.items() if verdict == "rejected"} == {
        "a": "n", "b": "large-b", "small-b": "large-b", "small-alone": "alone", "new": "large-new",
    }  # fmt: skip


@pytest.mark.usefixtures("one_ray")
def test_held_against_the_version_before_nothing_flips_until_it_is_weighed_anew(tmp_path: Path) -> None:
    version, before = "", Fates()
    for number, delivery in enumerate(DELIVERIES):
        outcome = run(grown(tmp_path, number, version), tmp_path / "run")
        assert outcome.dataset is not None
        assert called(outcome) == {"probe": len(delivery), "tests.steps.thumbnail": len(delivery)}
        after = fates(tmp_path / "run")
        assert flips(before, after) == {}
        before, version = after, outcome.dataset.version
    assert {name: of for name, (verdict, of) in before.items() if verdict == "rejected"} == {
        "c": "a", "n": "a", "small-b": "b", "small-alone": "alone", "large-b": "b", "large-new": "new",
    }  # fmt: skip
    opened = Dataset.open(str(tmp_path / "run/dataset"))
    kept = {Path(opened.record(raw)["key"]).stem for raw in opened.samples()}
    assert kept == {name for name, (verdict, _) in before.items() if verdict == "kept"}
    anew = write(tmp_path)
    plan = make_plan(load_recipe(anew), str(tmp_path / "run"))
    assert all(step.calls == 0 for step in plan.steps if step.name in ("probe", "tests.steps.thumbnail"))
    outcome = run(anew, tmp_path / "run")
    assert called(outcome) == {"probe": 0, "tests.steps.thumbnail": 0}
    assert flips(before, fates(tmp_path / "run")) == plan.flips == {("kept", "rejected"): 3, ("rejected", "kept"): 4}


def families(folder: Path, count: int = 24) -> list[dict[str, Any]]:
    """Records of pictures: each family has one or several that are near the first and not near each other, and some equal ones."""
    rng = random.Random(5)
    records = []
    for family in range(count):
        members = [{family: 1.0}] + [beside(family, 48 + family, sign) for sign in (1, -1)] + [beside(family, 96 + family)]
        for n, turn in enumerate(members[: rng.randrange(1, 5)]):
            name = f"{family}-{n}"
            pattern(folder / f"{name}.png", turn, 8 * rng.randrange(8, 12))
            records.append({"id": name, "files": [f"{name}.png"], "caption": f"picture {name}"})
    return records


def listed(folder: Path, name: str, records: list[dict[str, Any]], **how: Any) -> Path:
    """A recipe over a manifest of these records. Four lists with two probes each: more than one task, and borders between lists."""
    manifest = folder / "records.jsonl"
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    duplicates = {"deduplicate": {**DEDUPLICATE, "phash_radius": 4, "lists": 4, "probes": 2, **how}}
    steps = ["probe", "tests.steps.thumbnail", {"compose": {"tasks": ["short_caption"]}}, duplicates]
    return recipe(folder / name, {"records": manifest}, steps, write={"max_samples": 10})


@pytest.fixture(scope="module")
def peace(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with the run `one`: by one worker, never disturbed."""
    folder = tmp_path_factory.mktemp("families")
    records = families(folder)
    run(listed(folder, "one.yaml", records, actors=1), folder / "one")
    tally = Counter(verdict for verdict, _ in fates(folder / "one").values())
    assert tally["rejected"] >= 10
    assert tally["kept"] >= 24
    return folder, records


def test_four_workers_and_records_in_any_order_keep_the_same(peace: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, records = peace
    shuffled = random.Random(1).sample(records, len(records))
    assert shuffled != records
    run(listed(folder, "four.yaml", shuffled, actors=4), folder / "four")
    assert told(folder / "four") == told(folder / "one")
    assert files_of(folder / "four/dataset") == files_of(folder / "one/dataset")
    listed(folder, "one.yaml", records, actors=1)


def test_whoever_has_which_uid_the_same_pictures_stay(tmp_path: Path) -> None:
    """Names decide between equals only: with an ordering that knows no equals the rows may come under any uid, and so in any order."""
    rng = np.random.default_rng(3)
    n = 240
    vectors = PATTERNS[rng.integers(0, 60, n)] + rng.normal(size=(n, 144)) * 0.02
    best = rng.permutation(n)
    found = set()
    for turn in range(3):
        order = rng.permutation(n) if turn else np.arange(n)  # row i is picture order[i]
        uids = [f"{i:032x}" for i in range(n)]
        scores = {"uid": pa.array(uids), "kind": pa.array(["image"] * n), "sha256": pa.array([[f"{p:064x}"] for p in order])}
        table = pa.table({**scores, "width": pa.array([[int(best[p])] for p in order])})
        batch = (np.arange(n), np.zeros(n, np.int64), vectors[order])
        written = write_vectors(tmp_path / f"vectors{turn}", n, np.zeros((0, 2), np.int64), [batch])
        population = population_of(table, tmp_path / f"scratch{turn}", vectors={"thumbnail": written})
        what = What(**DEDUPLICATE, lists=4, probes=2)
        picture = dict(zip(uids, order.tolist(), strict=True))
        rows = reduce(what, population).to_pylist()
        found.add(frozenset((picture[r["uid"]], picture.get(r["of"]), r["rung"]) for r in rows))
        assert 60 <= sum(r["of"] is None for r in rows) < n - 60
    assert len(found) == 1


@pytest.mark.slow
def test_a_run_killed_while_it_looks_for_copies_ends_with_the_same_bytes(peace: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = peace
    address = ray.get_runtime_context().gcs_address
    moments = [when("work/global-*/near-*.npz", 1), when("tables/pairs-*/*.parquet", 1)]  # in the search; when it is stored
    for i, moment in enumerate(moments):
        again = folder / f"killed{i}"
        assert kill_at(start(folder / "one.yaml", again, address), again, moment)
        assert not (again / "dataset/manifest.json").exists()
        to_the_end(folder / "one.yaml", again, address)
        assert files_of(again / "dataset") == files_of(folder / "one/dataset"), i
        assert told(again) == told(folder / "one")
        assert not list(again.glob("work/global-*"))


def told(folder: Path) -> list[tuple[Any, ...]]:
    """Everything that the step and the rules said of each sample."""
    query = (
        "select key, verdict, step, reason, duplicate_of, duplicate_rung, duplicate_similarity, duplicate_group from samples order by key"
    )
    return ask(folder, query)
