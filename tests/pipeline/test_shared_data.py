"""The shipped recipe over all the development data: the funnel adds up, nothing is lost that should stay, shards are read, stages train."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import webdataset

from pipeline.curate import Outcome, curate
from pipeline.ledger import open_ledger
from pipeline.query import connect
from pipeline.recipe import load_recipe, load_run_recipe
from shards.reader import Dataset
from shards.verify import verify


@pytest.fixture(scope="module")
def records(data_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(data_dir: Path, qwen_tokenizer_dir: Path, one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("shared-data") / "run"
    os.environ["FOVEA_TEST_DATA"], os.environ["FOVEA_TOKENIZER"] = str(data_dir), str(qwen_tokenizer_dir)
    return folder, curate(load_recipe("shared-data"), str(folder))


def query(run: Path, sql: str) -> list[tuple[Any, ...]]:
    ledger = open_ledger(str(run))
    with connect(ledger, load_run_recipe(ledger.store)) as connection:
        return connection.execute(sql).fetchall()


def test_the_funnel_adds_up(run: tuple[Path, Outcome], records: list[dict[str, Any]]) -> None:
    folder, outcome = run
    kinds = Counter(r["kind"] for r in records)
    counts = outcome.counts
    assert counts["inputs"] == counts["kept"] + counts["rejected"] + counts["errored"] + counts["split"] + counts["pending"]
    assert counts["pending"] == 0
    listed = dict(query(folder, "select source, count(*) from samples group by 1"))
    assert all(listed[kind] == kinds[kind] for kind in ("caption", "ocr", "video", "sft", "text"))
    dup_files = sum(len([f for f in r["files"] if not f.endswith((".json", ".txt"))]) for r in records if r["kind"] == "dup")
    assert listed["dup"] == dup_files
    assert query(folder, "select count(*) from samples where verdict is null or (verdict <> 'kept') <> (step is not null)") == [(0,)]


def test_every_hostile_file_has_a_verdict(run: tuple[Path, Outcome], records: list[dict[str, Any]]) -> None:
    folder, outcome = run
    files = [f for r in records if r["kind"] == "hostile" for f in r["files"] if not f.endswith(".jsonl")]
    verdicts = {
        key.partition("/")[2]: (v, r) for key, v, r in query(folder, "select key, verdict, reason from samples where source = 'hostile'")
    }
    assert set(files) <= set(verdicts)
    assert outcome.crashes == 0
    assert verdicts["hostile/made/bomb_rgb.png"][0] == "errored"
    assert verdicts["hostile/made/bomb_rgb.png"][1].startswith("limit")


def test_no_conversation_is_lost_to_a_picture_and_no_text_to_a_rule(run: tuple[Path, Outcome]) -> None:
    folder, _ = run
    assert query(folder, "select count(*) from samples where turns > 0 and step = 'deduplicate'") == [(0,)]
    assert query(folder, "select count(*) from samples where source = 'text' and verdict <> 'kept'") == [(0,)]
    marked = query(folder, "select count(*) from samples where source = 'sft' and duplicate_of is not null and verdict = 'kept'")
    assert marked[0][0] > 100  # the conversations are over the captioned pictures


def test_a_second_run_opens_nothing(run: tuple[Path, Outcome]) -> None:
    folder, outcome = run
    again = curate(load_recipe("shared-data"), str(folder))
    assert again.calls == {}
    assert again.media_opened == 0
    assert again.counts == outcome.counts
    assert again.dataset is not None
    assert outcome.dataset is not None
    assert again.dataset.version == outcome.dataset.version


def test_plain_webdataset_reads_the_shards(run: tuple[Path, Outcome]) -> None:
    folder, _ = run
    assert verify(folder / "dataset") == []
    dataset = Dataset.open(folder / "dataset")
    seen = set()
    for shard in dataset.manifest.shards:
        for sample in webdataset.WebDataset(str(folder / "dataset" / shard.path), shardshuffle=False):
            record = json.loads(sample["json"])
            assert record["uid"] == sample["__key__"]
            seen.add(record["uid"])
    kept = {uid for (uid,) in query(folder, "select uid from samples where verdict = 'kept'")}
    assert seen == kept


def test_no_near_copy_crosses_the_split(run: tuple[Path, Outcome]) -> None:
    folder, _ = run
    crossing = query(
        folder,
        "select count(*) from (select s.duplicate_group from samples s join (select distinct uid, split from items) i using (uid) "
        "where s.duplicate_group is not null group by 1 having count(distinct i.split) > 1)",
    )
    assert crossing == [(0,)]


@pytest.mark.slow
def test_four_stages_train_on_it(run: tuple[Path, Outcome], qwen_tokenizer_dir: Path, tmp_path: Path) -> None:
    folder, _ = run
    config = tmp_path / "short.yaml"
    shipped = (resources.files("configs.training") / "tiny.yaml").read_text("utf-8")
    short = shipped.replace("held_out_packs: 16", "held_out_packs: 1").replace("step: {packs: 4}", "step: {packs: 1}")
    config.write_text(re.sub(r"\bsteps: \d+", "steps: 2", short))
    command = [sys.executable, "-P", "-m", "pipeline.cli", "train", str(config), "--dataset", str(folder / "dataset")]
    command += ["--tokenizer", str(qwen_tokenizer_dir), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    stages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [s["stage"] for s in stages] == [1, 2, 3, 4]
    assert all(s["steps"] == 2 and s["after"] < s["before"] for s in stages)
    assert (tmp_path / "out" / "checkpoints" / "stage4" / "final" / "model.safetensors").is_file()
