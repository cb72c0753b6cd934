"""The engine on real DeepSpeed: it learns, freezes bit for bit, accumulates exactly, and refuses what is not finite."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import ConfigError
from tests.training import handmade
from training.engine import (
    Ranks,
    StepResult,
    TrainingStopped,
    build_engine,
    rank_device,
    rate_factor,
    start_ranks,
    train_step,
)
from training.model import parts
from training.pack_loss import PackLoss, labelled_places
from training.stages import StageConfig, TrainingConfig
from training.tally import task_numbers


def stage(**changes: Any) -> StageConfig:
    values = {"profile": "tiny", "compress": False, "train": {"vision_encoder": 2e-3, "projector": 2e-3, "llm": 2e-3}, "step": {"packs": 4}}
    return StageConfig.model_validate({**values, "seq_tokens": 64, "pack_patches": 64, **changes})


def config(one: StageConfig, **model: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"name": "test", "stages": {1: one.model_dump()}, "model": model})


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return start_ranks()


def run(ranks: Ranks, one: StageConfig, steps: int, packs: int = 4, **model: Any) -> tuple[Any, list[StepResult]]:
    engine = build_engine(handmade.model(), one, config(one, **model), ranks)
    batches = handmade.packs(packs)
    return engine, [train_step(engine, one, batches, step, steps) for step in range(steps)]


def test_thirty_steps_on_a_handful_of_packs_are_learnt(ranks: Ranks) -> None:
    quick = {"vision_encoder": 5e-3, "projector": 5e-3, "llm": 5e-3}
    _, results = run(ranks, stage(train=quick), 30)
    assert results[0].loss == pytest.approx(math.log(handmade.VOCABULARY), abs=1.0)
    assert results[-1].loss < 0.5 * results[0].loss
    assert set(results[0].loss_by_task) == {"short_caption", "video", "text"}
    assert (results[0].packs, results[0].samples) == (4, 15)
    assert results[0].tokens == sum(b.input_ids.shape[1] for b in handmade.packs(4))
    assert results[0].keep == pytest.approx((6 * 4 + 3 * 5) / (6 * 4 + 3 * 8))
    assert (results[0].samples, results[0].visual, results[0].kept) == (15, 6 * 4 + 3 * 8, 6 * 4 + 3 * 5)
    assert results[0].patches == 6 * 4 + 3 * 32
    assert len(results[0].pack_seconds) == 4
    assert results[0].imbalance == 1.0, "one rank is as slow as the slowest"


def test_frozen_parts_are_the_same_to_the_bit(ranks: Ranks) -> None:
    before = copy.deepcopy(handmade.model().state_dict())
    engine, results = run(ranks, stage(train={"vision_encoder": 1e-2, "projector": 1e-2}), 5)
    after = {part: dict(members) for part, members in parts(engine.module.model).items()}
    assert all(torch.equal(p, before[name]) for name, p in after["llm"].items())
    assert not any(p.requires_grad for p in after["llm"].values()), "and no gradient of theirs is paid for"
    for part in ("vision_encoder", "projector"):
        assert any(not torch.equal(p, before[name]) for name, p in after[part].items()), part
    assert results[-1].loss < results[0].loss


def test_a_step_is_that_of_plain_pytorch_over_all_its_packs(ranks: Ranks) -> None:
    one = stage(clip=0.5, weight_decay=0.0)
    engine, results = run(ranks, one, 3)
    model = handmade.model()
    loss_of = PackLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    batches = handmade.packs(4)
    labelled = sum(len(labelled_places(b)) for b in batches)
    for step, result in enumerate(results):
        optimizer.zero_grad()
        losses = [loss_of(b)[0] for b in batches]
        (sum(losses) / labelled).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rate_factor(step, 3, 0.03, "cosine")
        optimizer.step()
        assert result.loss == pytest.approx(float(sum(losses)) / labelled, rel=2e-6)
        assert result.grad_norm == pytest.approx(float(norm), rel=1e-4)
    for ours, plain in zip(engine.module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.data, plain.data, rtol=0, atol=2e-5)


def test_a_loss_that_is_not_finite_stops_with_its_items_and_without_an_update(ranks: Ranks) -> None:
    one = stage()
    engine = build_engine(handmade.model(), one, config(one), ranks)
    batches = handmade.packs(3)
    assert batches[1].pixel_values is not None
    batches[1].pixel_values[0, 0] = float("nan")
    before = [p.detach().clone() for p in engine.module.parameters()]
    with pytest.raises(TrainingStopped) as stopped:
        train_step(engine, one, batches, 7, 10)
    assert "step 7" in str(stopped.value)
    assert "image-10/short_caption/0" in str(stopped.value)
    assert "image-0/" not in str(stopped.value), "only the pack at fault is named"
    assert all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))


def test_checkpointed_activations_change_no_number(ranks: Ranks) -> None:
    _, plain = run(ranks, stage(), 2)
    _, checkpointed = run(ranks, stage(), 2, gradient_checkpointing=True)
    assert [r.loss for r in plain] == pytest.approx([r.loss for r in checkpointed], rel=1e-6)
    assert [r.grad_norm for r in plain] == pytest.approx([r.grad_norm for r in checkpointed], rel=1e-4)


def test_bf16_trains(ranks: Ranks) -> None:
    engine, results = run(ranks, stage(), 15, precision="bf16")
    assert next(engine.module.parameters()).dtype == torch.bfloat16
    assert results[-1].loss < 0.8 * results[0].loss


def test_the_device_is_this_ranks_gpu_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert rank_device() == torch.device("cuda", 1)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert rank_device() == torch.device("cpu"), "DeepSpeed would be on another device than the model"


def test_zero_0_clips_and_tells_the_norm_as_the_others_do(ranks: Ranks) -> None:
    one = stage(clip=0.5)
    found = []
    for zero in ("zero0", "zero1"):
        engine = build_engine(handmade.model(), one, config(one).model_copy(update={"deepspeed": zero}), ranks)
        found.append([train_step(engine, one, handmade.packs(2), step, 2) for step in range(2)])
    assert [r.loss for r in found[0]] == pytest.approx([r.loss for r in found[1]], rel=1e-6)
    assert [r.grad_norm for r in found[0]] == pytest.approx([r.grad_norm for r in found[1]], rel=1e-5)
    assert found[0][0].grad_norm > 0.5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"gradient_clipping": 2.0}, "`gradient_clipping` is the stage's to say"),
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, "no update without a finite gradient"),
        ({"bf16": {"check_grad_overflow": False}}, "no update without a finite gradient"),
    ],
)
def test_settings_against_the_stage_or_the_check_are_refused(ranks: Ranks, tmp_path: Path, given: dict[str, Any], told: str) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": {"stage": 1}, **given}))
    with pytest.raises(ConfigError, match=told):
        build_engine(handmade.model(), stage(), config(stage()).model_copy(update={"deepspeed": str(tmp_path / "own.json")}), ranks)


def test_gradients_of_bf16_can_be_summed_in_fp32(ranks: Ranks, tmp_path: Path) -> None:
    values = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}}
    (tmp_path / "own.json").write_text(json.dumps(values))
    one = stage()
    engine = build_engine(
        handmade.model(), one, config(one, precision="bf16").model_copy(update={"deepspeed": str(tmp_path / "own.json")}), ranks
    )
    results = [train_step(engine, one, handmade.packs(4), step, 5) for step in range(5)]
    assert {gradient.dtype for gradient in engine.optimizer.fp32_groups_gradients_flat} == {torch.float32}
    assert results[-1].loss < results[0].loss - 0.2


def test_rotary_frequencies_stay_exact_in_bf16(ranks: Ranks) -> None:
    exact = {name: buffer.clone() for name, buffer in handmade.model().named_buffers() if buffer.is_floating_point()}
    engine = build_engine(handmade.model(), stage(), config(stage(), precision="bf16"), ranks)
    kept = dict(engine.module.model.named_buffers())
    assert exact
    assert all(torch.equal(kept[name], value) and kept[name].dtype == torch.float32 for name, value in exact.items())


def test_the_schedule_rises_over_the_warm_up_and_ends_near_zero() -> None:
    factors = [rate_factor(step, 100, 0.03, "cosine") for step in range(100)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert max(factors) == 1.0
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert 0 < factors[-1] < 1e-3
    assert rate_factor(50, 100, 0.0, "constant") == 1.0


def test_tokens_are_counted_for_the_task_of_their_item() -> None:
    pack = handmade.packed([handmade.item("video", 1), handmade.item("text", 2, length=2)])
    numbers = task_numbers(pack)[labelled_places(pack)].tolist()
    from shards.items import TASKS

    assert [TASKS[n] for n in numbers] == ["video"] * 7 + ["text"] * 3
    with pytest.raises(AssertionError, match="restart 2 times"):
        task_numbers(replace(pack, items=pack.items[:1]))


def test_adapters_of_the_head_are_refused_under_zero_3(ranks: Ranks) -> None:
    model: Any = handmade.model()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ConfigError, match="leave lm_head out of `targets`"):
        build_engine(model, stage(), config(stage()).model_copy(update={"deepspeed": "zero3"}), ranks)
