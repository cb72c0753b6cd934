"""minhash and deduplicate, `on: texts`, over the development set's conversations and edited copies of them, as a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from curation import text_pairs
from pipeline.plan import make_plan
from pipeline.recipe import load_recipe
from tests.pipeline.small import ask, run

pytestmark = pytest.mark.usefixtures("one_ray")


def edited(text: str, number: int) -> str:
    """In capitals, with another spacing, and without one of its words."""
    words = text.upper().split()
    return "  ".join(words[: number % len(words)] + words[number % len(words) + 1 :]) if len(words) > 12 else " ".join(words)


def write_recipe(path: Path, data: Path, copies: Path, deduplicate: dict[str, Any]) -> Path:
    sources = [
        {"name": "own", "format": "manifest", "path": str(data / "manifest.jsonl"), "where": "kind in ('sft', 'text')"},
        {"name": "copies", "format": "manifest", "path": str(copies)},
    ]
    steps = ["minhash", {"deduplicate": {"on": "texts", "action": "reject", **deduplicate}}]
    path.write_text(yaml.safe_dump({"name": "texts", "sources": sources, "steps": steps}))
    return path


def test_edited_copies_are_rejected_and_nothing_else(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_pairs, "ALONE", 0)  # tasks on Ray, as of a large population
    lines = (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()
    records = [record for line in lines if (record := json.loads(line))["kind"] in ("sft", "text")]
    with (tmp_path / "copies.jsonl").open("w", encoding="utf-8") as file:
        for number, record in enumerate(records):
            turns = [
                {"from": turn["from"], "value": edited(turn["value"].replace("<image>", ""), number)} for turn in record["conversations"]
            ]
            file.write(json.dumps({"id": f"copy of {record['id']}", "conversations": turns}) + "\n")
        file.write(json.dumps({"id": "no text at all", "conversations": [{"from": "human", "value": " "}, {"from": "gpt", "value": " "}]}))
    path = write_recipe(tmp_path / "r.yaml", data_dir, tmp_path / "copies.jsonl", {"jaccard": 0.7, "keep_best": "shingles desc"})
    outcome = run(path, tmp_path / "run")
    assert outcome.counts["inputs"] == outcome.counts["kept"] + outcome.counts["rejected"] == 2 * len(records) + 1
    query = "select s.key, o.key, s.duplicate_rung, s.duplicate_similarity, s.text_hash = o.text_hash from samples s join samples o "
    copies = ask(tmp_path / "run", query + "on o.uid = s.duplicate_of")
    assert len(copies) == outcome.counts["rejected"] >= 0.98 * len(records)
    for one, other, rung, similarity, equal in copies:
        assert {one, other} == {(name := min(one, other, key=len)), f"copy of {name}"}
        assert rung == "text"
        assert similarity == 1 if equal else similarity >= 0.7
    assert 0 < sum(equal for *_, equal in copies) < len(copies)

    stricter = write_recipe(tmp_path / "s.yaml", data_dir, tmp_path / "copies.jsonl", {"jaccard": 0.9, "keep_best": "shingles desc"})
    plan = make_plan(load_recipe(stricter), str(tmp_path / "run"))
    assert {step.name: step.calls for step in plan.steps}["minhash"] == 0  # signatures are paid for once
    fewer = run(stricter, tmp_path / "run").counts["rejected"]
    assert fewer == sum(similarity >= 0.9 for *_, similarity, _ in copies) < len(copies)
