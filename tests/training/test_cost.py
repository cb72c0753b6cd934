"""Costs: operations against what torch counts while a real model trains, features of packs, files that are no cost models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shards.errors import ConfigError
from tests.training import handmade
from training.cost import FEATURES, CostModel, ItemSizes, add, pack_features
from training.flops import model_flops, stage_flops
from training.measured import batch_features
from training.model import freeze
from training.pack_loss import PackLoss
from training.stages import LoraConfig, StageConfig, TinyShape

SHAPE = TinyShape(hidden=64, llm_layers=3, heads=4, kv_heads=2, vision_hidden=48, vision_layers=2, vision_heads=2)
ALL = ("vision_encoder", "projector", "llm")


def counted(trained: tuple[str, ...], checkpointing: bool = False) -> tuple[Any, float]:
    """(the model, operations of matrix products that torch counts in forward and backward of one pack); attention is counted apart."""
    model: Any = handmade.model(shape=SHAPE)
    freeze(model, trained)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        loss, *_ = PackLoss(model)(PACK)
        loss.backward()
    counts = counter.get_flop_counts()["Global"]
    return model, float(sum(n for op, n in counts.items() if "attention" not in str(op)))


PACK = handmade.packed([handmade.item("image", 1, 9), handmade.item("video", 2, 30), handmade.item("text", 3, 12)])


def without_attention(costs: CostModel) -> float:
    features = batch_features(PACK)
    features[[FEATURES.index("frame_square"), FEATURES.index("token_square")]] = 0
    return float(features @ costs.vector)


@pytest.mark.parametrize("trained", [ALL, ("vision_encoder", "projector"), ("projector",), ("llm",), ("projector", "llm")])
def test_predicted_operations_are_those_that_torch_counts(trained: tuple[str, ...]) -> None:
    model, found = counted(trained)
    switches = {"train_vision": ALL[0] in trained, "train_projector": ALL[1] in trained, "train_llm": ALL[2] in trained}
    flops = model_flops(model.config, **switches, checkpointing=False)
    assert without_attention(flops.model) == pytest.approx(found, rel=0.01)
    assert flops.hardware == flops.model, "without checkpointing nothing is computed twice"


def test_checkpointing_repeats_the_layers() -> None:
    model, found = counted(ALL, checkpointing=True)
    flops = model_flops(model.config, checkpointing=True)
    assert without_attention(flops.hardware) == pytest.approx(found, rel=0.01)
    assert without_attention(flops.model) < 0.9 * found


def test_attention_is_counted_in_pairs() -> None:
    """Two products of two operations a channel: each patch with every one of its frame, each token with those before it."""
    flops = model_flops(handmade.model(shape=SHAPE).config)
    assert flops.forward.frame_square == 2 * 4 * 48
    assert flops.forward.token_square == 3 * 4 * 64 / 2
    assert flops.backward.token_square == 2 * flops.forward.token_square


def test_adapters_save_the_gradient_of_the_weights_and_no_more() -> None:
    config = handmade.model(shape=SHAPE).config
    whole, frozen = model_flops(config), model_flops(config, train_llm=False)
    lora = model_flops(config, adapters={"llm": LoraConfig(rank=2)})
    assert frozen.model.token < lora.model.token < whole.model.token
    low_rank = 3 * 2 * 2 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 256))
    assert lora.forward.token - frozen.forward.token == low_rank
    assert lora.model.token - frozen.model.token == 3 * low_rank
    assert model_flops(config, adapters={"llm": LoraConfig(rank=2, targets=("q_proj",))}).forward.token < lora.forward.token


def test_a_stage_says_what_is_trained() -> None:
    config = handmade.model(shape=SHAPE).config
    block = {"profile": "tiny", "compress": False, "step": {"packs": 1}, "seq_tokens": 64, "pack_patches": 64}
    stage = StageConfig.model_validate({**block, "train": {"vision_encoder": 1e-3, "projector": 1e-3}})
    assert stage_flops(config, stage, checkpointing=False) == model_flops(config, train_llm=False, checkpointing=False)


def test_features_of_a_plan_are_those_of_the_batch() -> None:
    """A plan counts index rows, a trainer tensors: the same pack has the same features."""
    planned = ItemSizes(
        *(np.array(v) for v in ([16, 38, 15], [4, 32, 0], [4, 8, 0], [4, 5, 0], [10, 31, 13], [16, 2 * 16**2, 0], [4, 5, 0]))
    )
    assert pack_features(planned).tolist() == batch_features(PACK).tolist()
    alone = handmade.packed([handmade.item("text", 3, 12)])
    assert batch_features(alone).tolist() == [1, 0, 0, 0, 15, 225, 13], "the dummy of a pack without pictures is nobody's patch"
    assert not batch_features(handmade.packed([])).any()
    assert not pack_features(planned.take(np.array([], dtype=np.int64))).any()


def test_parts_add_up() -> None:
    costs, features = CostModel(pack=5.0), batch_features(PACK)
    assert sum(costs.by_part(features).values()) == pytest.approx(float(features @ costs.vector))
    assert costs.by_part(features)["pack"] == 5.0
    with pytest.raises(ValueError, match="do not add up"):
        add(costs, CostModel(unit="seconds"))


def test_a_file_of_costs(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    overall, second = CostModel(pack=0.25, unit="seconds"), CostModel(pack=0.5, unit="seconds")
    file.write_text(json.dumps({"model": overall.to_json(), "stages": {"2": second.to_json()}}))
    assert CostModel.load(file) == CostModel.load(file, stage=1) == overall
    assert CostModel.load(file, stage=2) == second


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "no cost model"),
        ('{"model": {"pack": 1}}', "unit, pack"),
        (json.dumps({"model": {**CostModel().to_json(), "token": -1.0}}), "token: a coefficient"),
        (json.dumps({"model": {**CostModel().to_json(), "label": float("nan")}}), "label: a coefficient"),
        (json.dumps({"model": {**CostModel().to_json(), "unit": "joules"}}), "joules"),
    ],
)
def test_what_is_no_file_of_costs_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        CostModel.load(tmp_path / "costs.json")


def test_a_missing_file_of_costs_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fovea costs OUT"):
        CostModel.load(tmp_path / "none.json")


def test_labels_are_counted_as_they_are_scored() -> None:
    assert batch_features(PACK)[6] == PACK.counts.labelled == int((PACK.labels != -100).sum())
    assert torch.equal(PACK.position_ids[0] == 0, torch.tensor([i in (0, 16, 54) for i in range(69)]))
