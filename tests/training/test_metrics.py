"""Metrics: what the file says TensorBoard shows, through kills and torn lines; wandb on request; the numbers of a real step."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from shards.errors import ConfigError
from tests.training import hand_train, handmade
from training import numbers
from training.devices import DEVICES, Device
from training.engine import Ranks, start_ranks
from training.fit import fitted
from training.loop import run_stage
from training.measured import batch_features, read_packs
from training.metrics import Metrics, read_metrics
from training.numbers import Meter, features_of, over_mean
from training.plan_parts import Cursor
from training.stages import TrainingConfig


def step(stage: int, number: int, loss: float) -> dict[str, object]:
    return {"kind": "step", "stage": stage, "step": number, "loss": loss, "loss_by_task": {"vqa": loss}}


def held_out(stage: int, number: int, loss: float) -> dict[str, object]:
    return {**step(stage, number, loss), "kind": "held_out"}


def shown(folder: Path, stage: int, name: str) -> list[tuple[int, float]]:
    """(step, value) of a curve as TensorBoard reads it back."""
    events = EventAccumulator(str(folder / "tensorboard" / f"stage{stage}"))
    events.Reload()
    return [(e.step, round(e.value, 3)) for e in events.Scalars(name)]


def test_every_number_can_be_read_back_from_both(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, active=True)
    records = [held_out(1, 0, 3.0), step(1, 1, 2.5), step(1, 2, 2.0), held_out(1, 2, 1.75), step(2, 1, 1.5)]
    metrics.write(records[0])
    metrics.forget_after(1, 0)
    for record in records[1:]:
        metrics.write(record)
    metrics.close()
    assert read_metrics(tmp_path) == records
    assert shown(tmp_path, 1, "step/loss") == shown(tmp_path, 1, "step/loss_by_task/vqa") == [(1, 2.5), (2, 2.0)]
    assert shown(tmp_path, 1, "held_out/loss") == [(0, 3.0), (2, 1.75)]
    assert shown(tmp_path, 2, "step/loss") == [(1, 1.5)]


def test_a_record_is_one_event_whatever_it_holds(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, active=True)
    for number in (1, 2):
        metrics.write({**step(1, number, 2.0), "tokens": 7, "rates": {"llm": 1e-3, "projector": 1e-4}, "mfu": None})
    metrics.close()
    (file,) = (tmp_path / "tensorboard" / "stage1").iterdir()
    events = [event for event in EventFileLoader(str(file)).Load() if event.HasField("summary")]
    names = {f"step/{name}" for name in ("loss", "loss_by_task/vqa", "tokens", "rates/llm", "rates/projector")}
    assert [(event.step, {value.tag for value in event.summary.value}) for event in events] == [(1, names), (2, names)]


def test_what_is_made_again_is_there_once(tmp_path: Path) -> None:
    killed = Metrics(tmp_path, active=True)
    for record in (held_out(1, 0, 3.0), step(1, 1, 2.5), step(1, 2, 2.0), step(1, 3, 9.0)):
        killed.write(record)
    killed.close()
    with killed.path.open("a") as file:
        file.write('{"kind": "st')  # a full disk tears a line
    again = Metrics(tmp_path, active=True)
    again.forget_after(1, 2)
    again.write(step(1, 3, 1.0))
    again.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(0, 3.0), (1, 2.5), (2, 2.0), (3, 1.0)]
    assert shown(tmp_path, 1, "step/loss") == [(1, 2.5), (2, 2.0), (3, 1.0)]

    anew = Metrics(tmp_path, active=True)
    anew.forget_after(1, -1)
    anew.write(held_out(1, 0, 4.0))
    anew.close()
    assert read_metrics(tmp_path) == [held_out(1, 0, 4.0)]
    assert shown(tmp_path, 1, "held_out/loss") == [(0, 4.0)]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    quiet = Metrics(tmp_path, active=False)
    quiet.write(step(1, 1, 2.0))
    quiet.forget_after(1, 0)
    quiet.close()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_not_known_is_a_gap(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, active=True)
    metrics.write({**step(1, 1, 2.0), "mfu": None})
    metrics.write({**step(1, 2, 2.0), "mfu": 0.25})
    metrics.close()
    assert [r["mfu"] for r in read_metrics(tmp_path)] == [None, 0.25]
    assert shown(tmp_path, 1, "step/mfu") == [(2, 0.25)]


FAKE = """
import json
from pathlib import Path

class Error(Exception):
    pass

class Settings(dict):
    def __init__(self, **values):
        super().__init__(values)

class Run:
    def __init__(self, file):
        self.file = file
    def note(self, *what):
        with self.file.open("a") as file:
            file.write(json.dumps(what) + chr(10))
    def define_metric(self, name, step_metric=None):
        self.note("define", name, step_metric)
    def log(self, numbers):
        self.note("log", numbers)
    def finish(self):
        self.note("finish")

def init(dir, **how):
    if how["project"] == "refused":
        raise Error("the server says no to " + __import__("os").environ["WANDB_API_KEY"])
    run = Run(Path(dir) / "told.jsonl")
    run.note("init", how)
    return run
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name whose calls are written down; offline."""
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.mark.usefixtures("wandb")
def test_wandb_shows_what_the_file_says_in_one_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        metrics = Metrics(out, active=True, wandb={"project": "p", "name": "n"})
        metrics.write({**step(1, number, 2.0 + number), "mfu": None})
        metrics.close()
    told = [json.loads(line) for line in (out / "told.jsonl").read_text().splitlines()]
    starts = [how for what, *rest in told if what == "init" for how in rest]
    assert starts[0]["id"] == starts[1]["id"] == json.loads((out / "wandb.json").read_text())["id"]
    assert (starts[0]["project"], starts[0]["name"], starts[0]["resume"]) == ("p", "n", "allow")
    assert starts[0]["settings"] == {"console": "off", "silent": True, "save_code": False}
    assert ["define", "stage1/*", "stage1/step"] in told
    assert [what[1] for what in told if what[0] == "log"] == [
        {"stage1/step": n, "stage1/step/loss": 2.0 + n, "stage1/step/loss_by_task/vqa": 2.0 + n} for n in (1, 2)
    ]
    assert told[-1] == ["finish"]
    Metrics(tmp_path / "other", active=False, wandb={"project": "p"}).close()
    assert not (tmp_path / "other").exists(), "one rank speaks for all"


@pytest.mark.usefixtures("wandb")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"project": "p", "api_key": "s3cret"}, "never part of a config; set the environment variable WANDB_API_KEY"),
        ({"project": "p", "nmae": "n"}, "did you mean 'name'"),
        ({"name": "n"}, "needs a project"),
        ({"project": "p", "mode": "of"}, "online, offline, disabled"),
        ({"project": "p", "mode": "online"}, "WANDB_API_KEY is not set"),
    ],
)
def test_wandb_that_could_not_run_is_refused_on_every_rank(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    for active in (True, False):
        with pytest.raises(ConfigError, match=said) as told:
            Metrics(tmp_path / "out", active=active, wandb=settings)
        assert "s3cret" not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("wandb")
def test_a_key_is_in_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    with pytest.raises(ConfigError, match=r"says no to \*\*\*"):
        Metrics(tmp_path / "out", active=True, wandb={"project": "refused"})


def test_a_missing_package_is_told_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install fovea-vlm\[wandb\]"):
        Metrics(tmp_path, active=False, wandb={"project": "p", "mode": "offline"})


class Fed(hand_train.HandFeed):
    """Its steps as a loader would tell of them."""

    def run(self, epoch: int, cursor: Cursor) -> Any:
        for loaded in super().run(epoch, cursor):
            yield replace(loaded, bytes_read=1300, bytes_used=1000, skipped=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingConfig, Any]:
    """(output, config, shape) of twelve steps on a device that is said to do 1 GFLOP/s."""
    out, config = tmp_path_factory.mktemp("trained"), hand_train.config(12, every=50, model={"gradient_checkpointing": True})
    ranks, model = start_ranks(), handmade.model()
    slow = Device("slow", 1e9, 2**30, "slow", "made up for this test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "this_device", lambda: ("slow", slow))
        metrics = Metrics(out, active=True)
        run_stage(model, 1, config, Fed(ranks, out / "ids.jsonl"), out, ranks, metrics)
        metrics.close()
    return out, config, model.config


def test_a_step_tells_how_well_the_device_was_used(trained: tuple[Path, TrainingConfig, Any]) -> None:
    out, config, shape = trained
    records = read_metrics(out)
    assert [r["step"] for r in records] == list(range(1, 13))
    one = config.stages[1]
    for record in records:
        took = record["seconds"] + record["wait"]
        batches = handmade.packs(hand_train.PACKS, seed=1000 * (record["step"] - 1))
        flops, features = Meter.of(shape, 1, config, Ranks(0, 1)).flops, features_of(batches).sum(axis=0)
        assert record["mfu"] == pytest.approx(features @ flops.model.vector / took / 1e9)
        assert record["hfu"] == pytest.approx(features @ flops.hardware.vector / took / 1e9)
        assert record["hfu"] > 1.1 * record["mfu"], "the layers are computed twice"
        assert record["tokens_per_s"] == pytest.approx(record["tokens"] / took)
        assert record["samples_per_s"] == pytest.approx(record["samples"] / took)
        counts = [b.counts for b in batches]
        fuller = [max(c.tokens / one.seq_tokens, c.patches / one.pack_patches) for c in counts]
        assert record["fill"] == pytest.approx(np.mean(fuller))
        assert record["fill_tokens"] == pytest.approx(sum(c.tokens for c in counts) / 4 / one.seq_tokens)
        assert (record["bytes_read"], record["bytes_used"], record["skipped"]) == (1300, 1000, 1)
        assert (record["imbalance"], record["imbalance_predicted"]) == (0.0, 0.0), "one rank is its own mean"
        assert record["rates"].keys() == one.rates.keys()
        assert set(record["loss_by_source"]) == {""}
    assert shown(out, 1, "step/mfu")[0] == (1, round(float(np.float32(records[0]["mfu"])), 3))


def test_the_packs_of_a_run_are_noted_and_fitted(trained: tuple[Path, TrainingConfig, Any]) -> None:
    out, config, shape = trained
    packs, device = read_packs(out)
    assert device == "slow"
    assert len(packs) == (12 - 3) * hand_train.PACKS, "three steps warm up"
    assert packs[0].features.tolist() == batch_features(handmade.packs(4, seed=3000)[0]).tolist()
    assert packs[0].flops == Meter.of(shape, 1, config, Ranks(0, 1)).flops.hardware
    found = fitted(packs)
    assert found.model.unit == "seconds"
    assert 0 < packs[0].features @ found.model.vector < 60


def test_balance_is_the_largest_over_the_mean() -> None:
    assert over_mean(np.array([3.0, 1.0])) == pytest.approx(0.5)
    assert over_mean(np.array([2.0, 2.0, 2.0])) == 0.0
    assert over_mean(np.zeros(4)) == 0.0


def test_a_cpu_has_no_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    meter = Meter.of(handmade.model().config, 1, hand_train.config(1), Ranks(0, 1))
    assert (meter.told, meter.peak) == ("cpu", None)
    assert numbers._share(1e9, 1.0, meter) is None


@pytest.mark.parametrize("device", [None, DEVICES["cpu"], DEVICES["h100"]])
def test_a_peak_in_the_config_is_what_utilisation_is_a_share_of(monkeypatch: pytest.MonkeyPatch, device: Device | None) -> None:
    monkeypatch.setattr(numbers, "this_device", lambda: ("some card", device))
    meter = Meter.of(handmade.model().config, 1, hand_train.config(1, device_flops=4e9), Ranks(0, 2))
    assert numbers._share(1e9, 0.5, meter) == 1e9 / (0.5 * 4e9 * 2)
    without = Meter.of(handmade.model().config, 1, hand_train.config(1), Ranks(0, 2))
    assert without.peak == (None if device is None else device.flops)
