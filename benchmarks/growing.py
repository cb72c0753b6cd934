"""A corpus that grows in three deliveries, twice: duplicates weighed anew at each delivery, and each delivery held against the version
of the dataset that the delivery before it made.

    python -m benchmarks.growing [--data ../shared/data]

Photographs of the development data and the made copies of kind `dup`, dealt to the deliveries by their number, so that larger and smaller
copies of one picture come in any order; the largest is the best. At each delivery: what the plan says (new pictures have no scores yet, so
what they replace it cannot say), what became of it, every sample whose verdict is another than before and why, and how often a model was
called. Held against the version before, the plan also tells what would flip if it were weighed anew; at the end that is done.

The command ends with an error if a model was not called once for each new picture and never for an old one, if something that was kept is
rejected later although it was held against the version before, or if other samples flip than the plan said.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pipeline.curate import Outcome, curate
from pipeline.ledger import open_ledger
from pipeline.plan import make_plan
from pipeline.query import connect
from pipeline.recipe import load_recipe, load_run_recipe
from shards.manifest import version_folder

DELIVERIES = 3
MODELS = ("probe", "embed")


@dataclass(frozen=True, slots=True)
class Fate:
    """of: key of the sample it is a copy of."""

    verdict: str
    of: str | None
    rung: str | None
    similarity: float | None

    def told(self) -> str:
        return self.verdict if self.of is None else f"{self.verdict}, a copy of {self.of} by {self.rung} ({self.similarity:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    files = deal(args.data)
    folder = Path(tempfile.mkdtemp(prefix="growing-"))
    try:
        print("\n## Weighed anew at each delivery")
        anew = grow(folder / "anew", files, against=False)
        print("\n## Each delivery against the version before")
        if grow(folder / "against", files, against=True) != anew:
            raise SystemExit("weighed anew at the end, it is not what it is when weighed anew each time")
        print("\nthe same as when it was weighed anew each time")
    finally:
        shutil.rmtree(folder)


def deal(data: Path) -> list[list[tuple[Path, str]]]:
    """(file, caption) of each delivery."""
    records = [json.loads(line) for line in (data / "manifest.jsonl").read_text("utf-8").splitlines()]
    captions = {r["files"][0]: r["text"] for r in records if r["kind"] == "caption" and r["subset"] == "coco2017"}
    made = {file: captions[r["files"][0]] for r in records if r.get("dup_type") == "made_transform" for file in r["files"]}
    chosen = sorted({**captions, **made}.items())
    return [[(data / file, text) for file, text in chosen[i::DELIVERIES]] for i in range(DELIVERIES)]


def grow(folder: Path, deliveries: list[list[tuple[Path, str]]], against: bool) -> dict[str, Fate]:
    """What became of everything, weighed anew in the end."""
    version = ""
    before: dict[str, Fate] = {}
    for number, files in enumerate(deliveries, 1):
        for file, text in files:
            deliver(file, text, folder / "pictures")
        held = f", held against {version_folder(version)}" if against and version else ""
        print(f"\ndelivery {number}: {len(files)} pictures more{held}")
        outcome, lost = once(folder, before, version if against else "")
        if against and lost:
            raise SystemExit(f"kept by {version_folder(version)} and rejected now: {lost}")
        if [outcome.calls.get(name, 0) for name in MODELS] != [len(files)] * len(MODELS):
            raise SystemExit(f"{outcome.calls}: not once for each of {len(files)} new pictures")
        before = fates(folder / "run")
        assert outcome.dataset is not None
        version = outcome.dataset.version
        if against:
            said = make_plan(load_recipe(write_recipe(folder, "")), str(folder / "run")).flips
            print(f"  weighed anew, says the plan: {told(said)}")
    if not against:
        return before
    print("\nnow weighed anew")
    once(folder, before, "")
    after = fates(folder / "run")
    flipped = Counter((was.verdict, now.verdict) for was, now in flips(before, after).values())
    if flipped != said:
        raise SystemExit(f"the plan said {told(said)}, and it was {told(flipped)}")
    return after


def once(folder: Path, before: Mapping[str, Fate], version: str) -> tuple[Outcome, list[str]]:
    """Plan and run, told. Keys of what was kept before and is not now."""
    path, run = write_recipe(folder, version), folder / "run"
    plan = make_plan(load_recipe(path), str(run))
    print(f"  the plan: calls { ({step.name: step.calls for step in plan.steps}) }; {told_counts(plan.counts)}; flips: {told(plan.flips)}")
    outcome = curate(load_recipe(path), str(run))
    seconds = f"{outcome.seconds['total']:.1f} s, of them Ray's start {outcome.seconds['ray']:.1f} s"
    print(f"  the run: calls {outcome.calls}; {told_counts(outcome.counts)}; {seconds}")
    found = flips(before, fates(run))
    for key, (was, now) in sorted(found.items()):
        print(f"    {key}: {was.told()} → {now.told()}")
    if before and not found:
        print("    nothing flips")
    return outcome, [key for key, (was, _) in found.items() if was.verdict == "kept"]


def flips(before: Mapping[str, Fate], after: Mapping[str, Fate]) -> dict[str, tuple[Fate, Fate]]:
    return {key: (was, after[key]) for key, was in before.items() if was.verdict != after[key].verdict}


def deliver(file: Path, text: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / file.name)
    (folder / file.name).with_suffix(".txt").write_text(text, "utf-8")


def write_recipe(folder: Path, version: str) -> Path:
    duplicates: dict[str, Any] = {"embedding": "embedding", "flips": True, "keep_best": "width * height desc"}
    if version:
        duplicates["against"] = version_folder(version)
    source = {"name": "pictures", "format": "folder", "path": str(folder / "pictures")}
    steps = ["probe", "embed", {"compose": {"tasks": ["short_caption"]}}, {"deduplicate": duplicates}]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "growing", "sources": [source], "steps": steps}, sort_keys=False), "utf-8")
    return path


def fates(run: Path) -> dict[str, Fate]:
    """key → what became of it."""
    ledger = open_ledger(str(run))
    connection = connect(ledger, load_run_recipe(ledger.store))
    try:
        query = (
            "select s.key, s.verdict, o.key, s.duplicate_rung, s.duplicate_similarity from samples s "
            "left join samples o on o.uid = s.duplicate_of"
        )
        return {key: Fate(*rest) for key, *rest in connection.execute(query).fetchall()}
    finally:
        connection.close()


def told(flipped: Mapping[tuple[str, str], int]) -> str:
    return ", ".join(f"{n} {a} → {b}" for (a, b), n in flipped.items()) or "none"


def told_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)


if __name__ == "__main__":
    main()
