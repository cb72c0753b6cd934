"""Dirt that the experiments plant is as much as they say, is found by agreement alone, and their table says what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.digits_data import talk
from benchmarks.digits_line import Keeper, lines_of, quiet_seconds
from benchmarks.experiments import ARMS
from benchmarks.experiments_dirt import COPIES, SOURCES, WRONG, hear, plant
from benchmarks.experiments_table import ORDER, spread, table
from benchmarks.motion_run import HERE, config_of
from pipeline.recipe import load_recipe
from training.stages import TrainingConfig

RECORDS = 150


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder with clips of `order`, each file of bytes of its own, made dirty."""
    (tmp_path / "order").mkdir()
    lines = []
    for n in range(RECORDS):
        name = f"order/{n:06}.mkv"
        (tmp_path / name).write_bytes(f"clip {n}".encode())
        lines.append(json.dumps({"id": f"order-{n:06}", "files": name, "conversations": talk([("<video>\norder", f"{n:03}")])}))
    (tmp_path / "order.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    plant(tmp_path, "order", 1)
    return tmp_path


def gold(record: dict[str, Any], folder: Path) -> str:
    """What is right to say of the record's file."""
    return f"{int((folder / record['files']).read_bytes().split()[1]):03}"


def test_a_third_of_the_captions_is_wrong_and_copies_are_planted(planted: Path) -> None:
    records = list(lines_of(planted / "dirty_order.jsonl"))
    assert len(records) == len({r["id"] for r in records}) == RECORDS
    wrong = {r["id"] for r in records if r["conversations"][1]["value"] != gold(r, planted)}
    assert WRONG * RECORDS - 8 <= len(wrong) <= WRONG * RECORDS  # a clip may get the words of its own copy
    assert wrong == {t["id"] for t in lines_of(planted / "truth_order.jsonl") if t["wrong"]}
    contents = [(planted / r["files"]).read_bytes() for r in records]
    assert len(contents) - len(set(contents)) >= COPIES * RECORDS - 3
    assert len({r["files"] for r in records}) == RECORDS  # a copy is a file of its own
    assert not any("wrong" in r for r in records)  # nothing in what is curated tells


def test_planting_again_changes_nothing_and_another_seed_does(planted: Path) -> None:
    before = (planted / "dirty_order.jsonl").read_bytes()
    plant(planted, "order", 2)  # what is there stays
    assert (planted / "dirty_order.jsonl").read_bytes() == before
    (planted / "dirty_order.jsonl").unlink()
    plant(planted, "order", 2)
    assert (planted / "dirty_order.jsonl").read_bytes() != before


def test_agreement_drops_what_the_model_says_otherwise(planted: Path) -> None:
    records = list(lines_of(planted / "dirty_order.jsonl"))
    keys = {f"uid-{r['id']}": r["id"] for r in records}
    perfect = [
        {"uid": f"uid-{r['id']}", "source": "order", "gold": [r["conversations"][1]["value"]], "answer": gold(r, planted)} for r in records
    ]
    found = hear(planted, "order", perfect, keys)
    assert (found.precision, found.recall, found.records) == (1.0, 1.0, RECORDS)
    left = [r for r in lines_of(planted / "heard_order.jsonl") if r["agreement"] == 1]
    assert len(left) == RECORDS - found.dropped == RECORDS - found.wrong
    assert all(r["conversations"][1]["value"] == gold(r, planted) for r in left)
    deaf = hear(planted, "order", [{**one, "answer": "000"} for one in perfect], keys)
    assert deaf.dropped > 0.95 * RECORDS
    assert deaf.precision < 0.4  # whoever drops all finds a third wrong


def test_a_command_that_ended_is_not_run_again(tmp_path: Path) -> None:
    line = Keeper(tmp_path, 1)
    with pytest.raises(SystemExit, match="ended with"):
        line.once("wrong", "no-such-command")
    assert line.costs() == {}
    (tmp_path / "costs.jsonl").write_text(json.dumps({"name": "wrong", "seconds": 2.0, "cpu_seconds": 1.0}) + "\n", "utf-8")
    assert line.once("wrong", "no-such-command").cpu_seconds == 1.0


def test_a_quiet_machine_is_guessed_from_the_quickest_steps(tmp_path: Path) -> None:
    seconds = [0.1] * 20 + [5.0] * 80
    lines = [json.dumps({"kind": "step", "stage": 1, "seconds": s}) for s in seconds] + [json.dumps({"kind": "evaluation"})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), "utf-8")
    assert quiet_seconds(tmp_path) == pytest.approx(10.0)


def test_configs_and_recipes_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.motion_data import write_spelling
    from shards.tokenizer import train_tokenizer

    monkeypatch.setenv("FOVEA_DIGITS", str(tmp_path))
    write_spelling(tmp_path)
    train_tokenizer([(tmp_path / "spelling.jsonl").read_text("utf-8")], tmp_path / "tokenizer", 512)
    for name in ("train", "held_out", "clean", "asked", "dirty", "curated"):
        for source in yaml.safe_load((HERE / f"{name}.yaml").read_text("utf-8"))["sources"]:
            listed = Path(source["path"].replace("${FOVEA_DIGITS}", str(tmp_path)))
            listed.parent.mkdir(exist_ok=True)
            listed.touch()
        load_recipe(HERE / f"{name}.yaml")
    TrainingConfig.model_validate(config_of("pictures", 1, times=0.01))
    for name in ("clips", "clips_alone"):
        given = TrainingConfig.model_validate(config_of(name, 2, Path("weights"), 0.1, compress=False))
        assert (given.seed, given.model.path) == (2, "weights")
        assert not any(stage.compress for stage in given.stages.values())
        assert given.stages[1].steps == {"clips": 72, "clips_alone": 70}[name]
    assert set(given.stages[1].mixture.sources or {}) == set(SOURCES)


def test_the_table_has_mean_and_spread_of_each_arm() -> None:
    assert tuple(ORDER) == ARMS
    scores = [{"clip_name": 0.5, "order": 0.1}, {"clip_name": 0.7, "order": 0.1}]
    results = [{"arm": "scratch", "seed": n, "steps": 600, "cpu_seconds": 90.0, "scores": s} for n, s in enumerate(scores, 1)]
    found = {"order": {"precision": 0.9, "recall": 0.8, "records": 100, "wrong": 33, "dropped": 30}, "records": 60}
    results.append({**results[0], "arm": "curated", "found": found})
    lines = table(results).splitlines()
    assert "| scratch | 1, 2 | 600 | 90 | 0.60 (0.50 to 0.70) | 0.10 |" in lines
    assert "| order | 0.80 | 0.90 | 60 of 100 in all |" in lines
    assert spread([1.0, 1.0]) == "1.00"
