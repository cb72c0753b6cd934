"""Previews: what a plan says it costs is what its packs cost; readable in 80 columns; measured costs take the place of predicted ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.cli_costs import compact, plan_tables
from shards.errors import ConfigError
from tests.training import small_dataset
from tests.training.fixtures import PROFILE, Fact, index_of
from training.budget import memory_of
from training.cost import CostModel, pack_features
from training.devices import device_named
from training.flops import stage_flops
from training.measured import WARM_STEPS, PackLog
from training.mixture import Mixture
from training.plan import make_plan
from training.preview import Machine, preview, preview_stage
from training.shapes import named_shape
from training.stage_plan import plan_config
from training.stages import TrainingConfig, deepspeed_json

ROOT = Path(__file__).resolve().parents[2]


def config(**more: Any) -> TrainingConfig:
    """The 2B model in two passes over an index by hand; no directory of a model is there."""
    model = {
        "preset": "parts",
        "vision": "none",
        "llm": "none",
        "sizes": "videollama3-2b",
        "precision": "bf16",
        "gradient_checkpointing": True,
    }
    block = {"profile": PROFILE, "compress": True, "train": dict.fromkeys(("vision_encoder", "projector", "llm"), 1e-5), "epochs": 2}
    block |= {"step": {"samples": 20, "divisible_by": 4}, "seq_tokens": 2000, "pack_patches": 4096, "window_shards": 2}
    frozen = {**block, "train": {"projector": 1e-3}}
    return TrainingConfig.model_validate({"name": "t", "model": model, "stages": {1: block, 2: frozen}, **more})


@pytest.fixture(scope="module")
def index() -> Any:
    random = np.random.default_rng(0)
    kinds = [
        Fact(f"clip-{i}", "video", "clips", f"{i % 5}.tar", int(random.integers(20, 400)), int(random.integers(1, 9)), 8, 0.5)
        for i in range(200)
    ]
    texts = [Fact(f"text-{i}", "text", "books", f"{i % 5}.tar", int(random.integers(20, 900))) for i in range(200)]
    long = [
        Fact("long", "text", "books", "0.tar", 2001),
        Fact("film", "video", "clips", "1.tar", 10, 80, 8),
        Fact("both", "video", "clips", "1.tar", 9999, 80, 8),
    ]
    return index_of([*kinds, *texts, *long])


def plan_of(index: Any, settings: TrainingConfig, number: int = 1, cost: CostModel | None = None) -> Any:
    return make_plan(
        index, Mixture(), plan_config(settings.stages[number], settings.seed, settings.stages[number].profile), index_digest="v1", cost=cost
    )


def test_a_stage_costs_what_its_packs_cost(index: Any) -> None:
    settings, machine = config(), Machine(device_named("h100"), devices=4, mfu=0.5, price=2.0)
    plan = plan_of(index, settings)
    found = preview_stage(settings, 1, plan, 0, machine)
    flops = stage_flops(named_shape("videollama3-2b"), settings.stages[1], True)
    features = sum(pack_features(plan.sizes_of(pack)) for step in plan.steps() for pack in step.packs)
    passes = found.steps / found.first_pass.steps
    assert found.steps > found.first_pass.steps, "two passes"
    assert sum(found.flops.values()) == pytest.approx(passes * float(features @ flops.model.vector))
    assert found.recomputed == pytest.approx(passes * float(features @ flops.recomputed.vector))
    assert found.flops["encoder"] == pytest.approx(passes * float(features[1:3] @ flops.model.vector[1:3]))
    assert found.hours == pytest.approx(sum(found.flops.values()) / (989.4e12 * 0.5 * 4) / 3600)
    assert found.price == pytest.approx(found.hours * 4 * 2.0)
    assert found.memory == memory_of(named_shape("videollama3-2b"), settings.stages[1], settings.model, deepspeed_json("zero1"), 4)
    assert (found.fits, found.measured_hours) == (True, None)


def test_a_plan_says_how_large_a_step_is_and_what_is_left_out(index: Any) -> None:
    found = preview_stage(config(), 1, plan_of(index, config()), 0, Machine(devices=4))
    first = found.first_pass
    assert first.packs_per_step % 4 == 0
    assert found.samples_per_step == pytest.approx(first.items / first.steps)
    assert found.dropped == {"tokens": 2, "patches": 1}
    assert first.by_source.keys() == {"clips", "books"}
    assert 0 < first.imbalance[4] < 0.5
    assert found.keep == pytest.approx(first.kept / first.visual)
    assert (found.hours, found.fits, found.price) == (None, None, None), "without a device"


def test_what_is_frozen_costs_no_more_than_its_forward_pass(index: Any) -> None:
    settings = config()
    whole, frozen = (preview_stage(settings, k, plan_of(index, settings, k), 0, Machine()) for k in (1, 2))
    assert frozen.flops["encoder"] < 0.34 * whole.flops["encoder"]
    assert frozen.memory.device["optimizer"] < 0.01 * whole.memory.device["optimizer"]


def test_measured_costs_tell_hours_of_their_own(index: Any) -> None:
    costs = CostModel(0.5, 0, 0, 0, 0, 0, 0, "seconds")
    settings = config()
    found = preview_stage(settings, 1, plan_of(index, settings, cost=costs), 0, Machine(devices=2, price=1.0))
    passes = found.steps / found.first_pass.steps
    assert found.measured_hours == pytest.approx(passes * found.first_pass.packs * 0.5 / 2 / 3600)
    assert found.price == pytest.approx(2 * found.measured_hours)
    assert found.flops["llm"] > 1e12, "operations are told beside seconds"


def test_four_stages_can_be_read_in_80_columns(index: Any) -> None:
    settings = config()
    machine = Machine(device_named("a100-80g"), devices=4, price=2.5)
    found = [preview_stage(settings, k, plan_of(index, settings, k), 0, machine) for k in (1, 2, 1, 2)]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in plan_tables(found, machine):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    said = [line.strip("│ ").split("│")[0].strip() for line in text.splitlines()]
    for name in (
        "packs a step",
        "samples a step, mean",
        "token fill",
        "patch fill",
        "imbalance, 4 ranks",
        "encoder, FLOP",
        "time",
        "price",
        "peak",
    ):
        assert name in said, name
    assert "…" not in text, "nothing is cut"


def test_numbers_are_short() -> None:
    told = {0: "0", 99_999: "99,999", 100_000: "100 k", 1.234e9: "1.23 G", 12.34e9: "12.3 G", 9.996e17: "1,000 P", 3e24: "3,000 Z"}
    assert {value: compact(value) for value in told} == told


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    dataset, words = small_dataset.write(tmp_path_factory.mktemp("corpus"))
    return SimpleNamespace(dataset=str(dataset), words=str(words))


def test_the_command_speaks_to_machines(corpus: SimpleNamespace) -> None:
    asked = ["train", "tiny", "--plan", "--dataset", corpus.dataset, "--tokenizer", corpus.words, "--stage", "3", "--json"]
    told = CliRunner().invoke(app, [*asked, "--device", "rtx4090", "--devices", "2"])
    assert told.exit_code == 0, told.output
    (line,) = [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]
    (same,) = preview("tiny", corpus.dataset, tokenizer=corpus.words, stages=[3], machine=Machine(device_named("rtx4090"), 2))
    assert (line["stage"], line["steps"], line["hours"], line["fits"]) == (3, 60, same.hours, True)
    assert line["first_pass"]["packs_per_step"] == 4
    assert line["first_pass"]["imbalance"].keys() == {"2"}
    assert line["memory"]["peak"] == same.memory.peak
    assert line["flops"].keys() == {"encoder", "projector", "llm", "head"}


def test_the_command_speaks_to_people(corpus: SimpleNamespace) -> None:
    asked = ["train", "tiny", "--plan", "--dataset", corpus.dataset, "--tokenizer", corpus.words]
    told = CliRunner().invoke(app, [*asked, "--device", "a100-80g", "--devices", "3"])
    assert told.exit_code == 0, told.output
    assert "assumed are 35% of 3 × a100-80g" in told.stdout
    assert "3 ranks do not divide the packs of a step" in told.stdout
    refused = CliRunner().invoke(app, [*asked, "--device", "a100"])
    assert isinstance(refused.exception, ConfigError)
    assert "a100-80g" in str(refused.exception)


def test_nothing_of_torch_is_needed(corpus: SimpleNamespace) -> None:
    """A plan is made where there is no torch: on a laptop, on the machine that curated."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "deepspeed"), None))
from pipeline.cli import app
app({["train", "tiny", "--dataset", corpus.dataset, "--tokenizer", corpus.words, "--plan", "--json"]!r}, standalone_mode=False)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[0])["stage"] == 1


@pytest.mark.parametrize(("devices", "mfu", "price"), [(0, 0.3, None), (1, 0.0, None), (1, 1.1, None), (1, 0.3, -1.0)])
def test_a_machine_that_cannot_be_is_refused(devices: int, mfu: float, price: float | None) -> None:
    with pytest.raises(ConfigError, match="wanted are"):
        Machine(None, devices, mfu, price)


def test_measured_packs_become_the_costs_of_a_config(index: Any, tmp_path: Path) -> None:
    """From the files of a run to a file of costs, and from there into a plan."""
    out, random = tmp_path / "out", np.random.default_rng(0)
    true = np.array([0.05, 2e-5, 0, 0, 1e-5, 0, 0])
    for stage in (1, 2):
        notes = PackLog(out, 0, stage, "d", CostModel(), "NVIDIA H100 80GB HBM3", 1)
        for _ in range(WARM_STEPS + 40):
            values = np.array(
                [
                    1.0,
                    100 + 900 * random.random(),
                    1e6 * random.random(),
                    200 * random.random(),
                    1000 + 5000 * random.random(),
                    1e7 * random.random(),
                    500,
                ]
            )
            notes.note([values], [float(values @ true) * stage])
    asked = ["costs", str(out), "--out", str(tmp_path / "costs.json")]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    for word in ("NVIDIA H100 80GB HBM3", "error by FLOP", "stage 2", "patch", "frame²"):
        assert word in told.stdout, word
    machine = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert machine["stages"].keys() == {"1", "2"}
    assert machine["stages"]["1"]["error"] < 0.02 < machine["stages"]["1"]["error_by_flops"]
    assert machine["all"]["packs"] == 80
    costs = CostModel.load(tmp_path / "costs.json", 2)
    assert costs.unit == "seconds"
    pack = np.array([1, 500, 5e5, 100, 4000, 5e6, 500.0])
    assert pack @ costs.vector == pytest.approx(2 * pack @ true, rel=0.02)
    settings = config(costs=str(tmp_path / "costs.json"))
    plan = plan_of(index, settings, cost=CostModel.load(settings.costs or "", 1))
    assert preview_stage(settings, 1, plan, 0, Machine()).measured_hours is not None
