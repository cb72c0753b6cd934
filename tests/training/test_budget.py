"""Budgets against what is really there: parameters of real models, DeepSpeed's own tensors, and what the profiler sees a pack allocate."""

from __future__ import annotations

import gc
import json
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from shards.errors import ConfigError
from tests.training import hand_train, handmade
from training import pack_loss
from training.adapters import add_adapters
from training.attention import PIECEWISE, use_attention
from training.budget import LOSS_ROWS, Memory, fits, hours_of, memory_of, weights_of
from training.devices import DEVICES, GIB, device_named, device_told, this_device
from training.engine import build_engine, start_ranks, train_step
from training.model import freeze, parts
from training.pack_loss import PackLoss
from training.shapes import named_shape
from training.stages import ModelConfig, StageConfig, TinyShape, TrainingConfig
from training.whole import make_whole

ALL = ("vision_encoder", "projector", "llm")
PASSING = ("encoder", "projector", "llm", "layer", "logits")


def stage(train: Any = ALL, **changes: Any) -> StageConfig:
    rates = train if isinstance(train, dict) else dict.fromkeys(train, 1e-3)
    block = {"profile": "tiny", "compress": False, "train": rates, "step": {"packs": 2}, "seq_tokens": 64, "pack_patches": 64}
    return StageConfig.model_validate({**block, **changes})


def zero(level: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": level, **more}}


def test_every_parameter_is_counted() -> None:
    model = handmade.model(shape=TinyShape(hidden=48, llm_layers=3, heads=4, kv_heads=1, vision_hidden=40, vision_layers=2, vision_heads=2))
    found = weights_of(model.config, stage(("projector", "llm")))
    there = {part: sum(p.numel() for _, p in members) for part, members in parts(model).items()}
    assert found.total == there
    assert found.learning == {"projector": there["projector"], "llm": there["llm"]}


def test_adapters_are_counted() -> None:
    model = handmade.model()
    some = {"rank": 4, "targets": ("q_proj", "mlp.down_proj")}
    one = stage({"projector": 1e-3, "vision_encoder": {"lr": 1e-3, "lora": {"rank": 3}}, "llm": {"lr": 1e-3, "lora": some}})
    found = weights_of(model.config, one)
    add_adapters(model, one.adapters, 0)
    for part, members in parts(model).items():
        adapters = sum(p.numel() for name, p in members if "lora_" in name)
        assert found.learning[part] == (adapters or sum(p.numel() for _, p in members)), part
    assert found.total == {part: sum(p.numel() for _, p in members) for part, members in parts(model).items()}


def test_the_released_sizes_are_those_of_their_names() -> None:
    """The report calls the language models 1.5B and 7B; SigLIP-so400m's encoder has 0.41 billion weights without its head."""
    small, large = (weights_of(named_shape(f"videollama3-{name}"), stage()).total for name in ("2b", "7b"))
    assert [round(small[p] / 1e9, 2) for p in ALL] == [0.41, 0.0, 1.54]
    assert round(large["llm"] / 1e9, 2) == 7.62


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deepspeed_holds_what_is_predicted(precision: str) -> None:
    one = stage(("vision_encoder", "projector"))
    config = TrainingConfig.model_validate({"name": "t", "stages": {1: one.model_dump()}, "model": {"precision": precision}})
    model = handmade.model().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    predicted = memory_of(model.config, one, config.model, zero(1), 1)
    engine = build_engine(model, one, config, start_ranks())
    train_step(engine, one, handmade.packs(2), 0, 5)
    states = [v for state in engine.optimizer.state.values() for v in state.values() if torch.is_tensor(v) and v.numel() > 1]
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in engine.module.parameters()}
    padding = 4 * 8  # bytes: DeepSpeed rounds each of the two groups up to pairs of elements
    assert predicted.device["weights"] == sum(weights.values())
    assert sum(v.numel() * v.element_size() for v in engine.optimizer.single_partition_of_fp32_groups) == pytest.approx(
        predicted.device["master"], abs=padding
    )
    assert sum(v.numel() * v.element_size() for v in states) == pytest.approx(predicted.device["optimizer"], abs=2 * padding)
    engine.destroy()


def measured(shape: TinyShape, pack: Any, trained: tuple[str, ...], model: ModelConfig) -> tuple[Any, int]:
    """(shape, bytes that forward and backward of one pack hold at most, beyond weights and gradients)."""
    made: Any = handmade.model(shape=shape).to(torch.bfloat16 if model.precision == "bf16" else torch.float32)
    made.train()
    freeze(made, trained)
    use_attention(made, PIECEWISE)
    if model.gradient_checkpointing:
        made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss = PackLoss(made)
    loss(pack)[0].backward()  # gradients exist from here on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss(pack)[0].backward()
    events = sorted((e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    now = most = 0
    for _, size in events:
        now += size
        most = max(most, now)
    return made.config, most


WIDE = TinyShape(hidden=128, llm_layers=3, heads=4, kv_heads=2, vision_hidden=128, vision_layers=3, vision_heads=4)


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("trained", [ALL, ALL[:2]])
@pytest.mark.parametrize(("precision", "checkpointing"), [("fp32", False), ("bf16", True)])
def test_activations_are_within_a_third(kind: str, trained: tuple[str, ...], precision: str, checkpointing: bool) -> None:
    lengths = (8, 40) if kind == "text" else (60, 2)
    pack = handmade.packed([handmade.item(kind, i, lengths[1]) for i in range(lengths[0])])
    model = ModelConfig.model_validate({"precision": precision, "gradient_checkpointing": checkpointing})
    shape, found = measured(WIDE, pack, trained, model)
    one = stage(trained, seq_tokens=pack.counts.tokens, pack_patches=max(1, pack.counts.patches))
    kinds = memory_of(shape, one, model, zero(1), 1).device
    predicted = sum(kinds[k] for k in PASSING) - min(kinds["layer"], kinds["logits"])
    assert 0.95 <= predicted / found <= 4 / 3


def test_zero_cuts_over_ranks_and_offload_moves() -> None:
    shape, model = named_shape("videollama3-2b"), ModelConfig.model_validate({"precision": "bf16", "gradient_checkpointing": True})
    one = stage(seq_tokens=16_384, pack_patches=65_536)
    weights = sum(weights_of(shape, one).total.values())
    by_level = [memory_of(shape, one, model, zero(level), 8) for level in range(4)]
    assert [m.device["weights"] for m in by_level] == [2 * weights] * 3 + [2 * weights // 8]
    assert [m.device["gradients"] // weights for m in by_level[:2]] == [2, 2]
    assert by_level[2].device["gradients"] == pytest.approx(2 * weights / 8, rel=1e-6)
    assert [round(m.device["optimizer"] / weights) for m in by_level] == [8, 1, 1, 1]
    assert all(a.peak >= b.peak for a, b in pairwise(by_level))
    moved = memory_of(shape, one, model, zero(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"}), 8)
    assert moved.host.keys() == {"weights", "master", "optimizer", "update"}
    assert moved.device["weights"] == moved.device["optimizer"] == moved.device["master"] == 0
    assert moved.host["optimizer"] == by_level[3].device["optimizer"]
    assert memory_of(shape, one, model, zero(0), 8).device["buckets"] == 0


def test_checkpointing_is_what_makes_a_full_pack_fit() -> None:
    shape, one = named_shape("videollama3-2b"), stage(seq_tokens=16_384, pack_patches=65_536)
    card = device_named("a100-80g")
    kept, repeated = (
        memory_of(shape, one, ModelConfig.model_validate({"precision": "bf16", "gradient_checkpointing": on}), zero(1), 8)
        for on in (False, True)
    )
    assert fits(kept, card) is False
    assert fits(repeated, card) is True
    assert fits(kept, DEVICES["cpu"]) is None


def test_the_update_and_the_activations_share_their_room() -> None:
    kinds = {**dict.fromkeys(("weights", "gradients", "master", "optimizer", "buckets", "gathered"), 1), "whole": 0}
    memory = Memory({**kinds, "update": 50, "encoder": 10, "projector": 5, "llm": 20, "layer": 7, "logits": 3}, {})
    assert memory.peak == 6 + 50
    assert Memory({**memory.device, "update": 5}, {}).peak == 6 + 10 + 5 + 20 + 7
    assert Memory({**memory.device, "whole": 60}, {}).peak == 5 + 60, "nothing is gathered, at work or updated beside the whole model"


def test_a_model_that_is_cut_up_must_fit_in_one_piece_first() -> None:
    shape, model = named_shape("videollama3-7b"), ModelConfig.model_validate({"precision": "bf16", "gradient_checkpointing": True})
    one = stage(seq_tokens=1_024, pack_patches=1_024)
    weights = sum(weights_of(shape, one).total.values())
    offload = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    for more in ({}, offload):
        found = memory_of(shape, one, model, zero(3, **more), 512)
        assert found.device["whole"] == 2 * weights
        assert found.peak >= 2 * weights
    assert fits(found, replace(DEVICES["rtx4090"], memory=2 * weights)) is False
    assert memory_of(shape, one, model, zero(2), 512).device["whole"] == 0, "it is there already"


def test_zero_3_holds_the_whole_model_beside_its_states_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = stage()
    settings = hand_train.zero_settings(tmp_path, 3, reduce_bucket_size=20_000)
    config = TrainingConfig.model_validate({"name": "t", "stages": {1: one.model_dump()}, "deepspeed": str(settings)})
    model = handmade.model()
    predicted = memory_of(model.config, one, config.model, json.loads(settings.read_text()), 1)
    there = {id(p): p for p in model.parameters()}
    before = held() - sum(p.numel() * p.element_size() for p in there.values())
    del there
    engine = build_engine(model, one, config, start_ranks())
    train_step(engine, one, handmade.packs(2), 0, 5)
    most, destroy = [0], engine.destroy

    def noted() -> None:
        most[0] = held() - before
        destroy()

    monkeypatch.setattr(engine, "destroy", noted)
    make_whole(engine)
    kinds = {kind: predicted.device[kind] for kind in ("weights", "gradients", "master", "optimizer", "buckets", "whole")}
    assert most[0] == pytest.approx(sum(kinds.values()), rel=0.02)
    assert predicted.peak >= sum(kinds.values())


def held() -> int:
    """Bytes of all tensors that live, each storage once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = [value for value in gc.get_objects() if isinstance(value, torch.Tensor) and value.device.type == "cpu"]
    return sum({s.data_ptr(): s.nbytes() for s in (value.untyped_storage() for value in live)}.values())


def test_rows_of_logits_are_those_of_the_loss() -> None:
    assert LOSS_ROWS == pack_loss.LOSS_ROWS


def test_hours_are_operations_over_speed() -> None:
    card = device_named("h100")
    assert hours_of(989.4e12 * 3600, card, 1, mfu=1.0) == pytest.approx(1.0)
    assert hours_of(989.4e12 * 3600, card, 8, mfu=0.5) == pytest.approx(0.25)
    assert hours_of(1e20, DEVICES["cpu"], 1) is None


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g"),
        ("NVIDIA A100-PCIE-40GB", "a100-40g"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", None),
    ],
)
def test_devices_are_known_by_what_their_driver_calls_them(told: str, name: str | None) -> None:
    found = device_told(told)
    assert (None if found is None else found.name) == name


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'h100'.*mi300x"):
        device_named("h10")
    assert all(device.source and (device.memory is None or device.memory >= 24 * GIB) for device in DEVICES.values())


def test_on_a_cpu_no_peak_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    name, device = this_device()
    assert (name, device) == ("cpu", DEVICES["cpu"])
    assert DEVICES["cpu"].flops is None
