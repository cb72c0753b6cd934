"""Adapters: only they learn, the rest stays bit for bit, and what is handed on is a plain checkpoint that needs no peft."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from shards.errors import ConfigError, InfrastructureError
from tests.training import forked, hand_adapters, handmade
from tests.training.handmade import item, packed
from training.adapters import adapted, add_adapters, merge_adapters
from training.checkpoint import final_dir, latest_state, stage_dir
from training.config_text import load_training_config
from training.engine import build_engine, start_ranks, train_step
from training.metrics import read_metrics
from training.model import cast_weights, freeze, from_hf, parameter_groups, parts
from training.pack_loss import PackLoss
from training.stages import LoraConfig, StageConfig, TrainingConfig

PACK = packed([item("image", 1), item("video", 2), item("text", 3)])
BOTH = {"vision_encoder": LoraConfig(rank=2, alpha=4, targets=("q_proj", "mlp.fc1")), "llm": LoraConfig(rank=4)}


def adapters_of(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """As after training: B is no longer zero."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in adapters_of(model).items():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    return model


def test_before_the_first_step_the_model_computes_what_it_did() -> None:
    model = handmade.model()
    before = PackLoss(model)(PACK)[1]
    add_adapters(model, BOTH, 0)
    assert torch.equal(PackLoss(model)(PACK)[1], before)


def test_adapters_sit_in_the_linear_layers_of_the_named_parts_and_nowhere_else() -> None:
    model = handmade.model()
    add_adapters(model, BOTH, 0)
    found = adapted(model)
    assert len(found) == 2 * 2 + 2 * 7
    assert {name.split(".")[-1] for name in found if name.startswith("model.vision_model.")} == {"q_proj", "fc1"}
    everywhere = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-1] for name in found if not name.startswith("model.vision_model.")} == everywhere
    assert not any(name.startswith(("model.projector.", "lm_head")) for name in found)
    assert sum(len(members) for members in parts(model).values()) == len(list(model.named_parameters())), "every parameter has its part"


def test_the_seed_alone_decides_and_the_callers_randomness_stays() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models = [handmade.model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_adapters(model, BOTH, seed)
    assert torch.equal(torch.get_rng_state(), before)
    one, again, other = (torch.cat([p.flatten() for p in adapters_of(model).values()]) for model in models)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_of_an_adapted_part_only_adapters_learn_and_every_one_gets_a_gradient() -> None:
    model = stirred(_with(BOTH))
    freeze(model, {"vision_encoder", "projector", "llm"})
    PackLoss(model)(PACK)[0].backward()
    found = parts(model)
    for part in ("vision_encoder", "llm"):
        for name, parameter in found[part]:
            assert (parameter.grad is not None) == (".lora_" in name), name
            assert parameter.grad is None or parameter.grad.any(), name
    assert all(p.grad is not None for _, p in found["projector"])
    freeze(model, {"projector"})
    assert [p.requires_grad for _, p in found["llm"]] == [False] * len(found["llm"])


def test_groups_hold_the_adapters_under_the_rate_of_their_part() -> None:
    model = _with(BOTH)
    groups = parameter_groups(model, {"projector": 1e-5, "llm": 1e-4}, 0.0)
    assert [(g["part"], g["lr"]) for g in groups] == [("projector", 1e-5), ("llm", 1e-4)]
    own = {id(p) for name, p in adapters_of(model).items() if ".llm." in name}
    assert {id(p) for p in groups[1]["params"]} == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_it_is_a_plain_model_that_computes_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    model = _with(BOTH, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    stirred(model)
    trained, base = PackLoss(model)(PACK)[1], PackLoss(handmade.model().to(dtype))(PACK)[1]
    assert not torch.allclose(trained, base, atol=0.05)
    untouched = {name: p.detach().clone() for name, p in model.named_parameters() if "projector" in name or "norm" in name}
    assert merge_adapters(model) == 18
    assert list(model.state_dict()) == list(handmade.model().state_dict())
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in untouched.items())
    torch.testing.assert_close(PackLoss(model)(PACK)[1], trained, rtol=0, atol=2e-5 if dtype == torch.float32 else 0.15)
    model.save_pretrained(tmp_path)
    assert torch.equal(PackLoss(from_hf(tmp_path, dtype))(PACK)[1], PackLoss(model)(PACK)[1])
    assert merge_adapters(model) == 0


def test_saved_adapters_are_read_by_peft_onto_the_model_they_started_from(tmp_path: Path) -> None:
    model = stirred(_with(BOTH))
    trained = PackLoss(model)(PACK)[1]
    merge_adapters(model, tmp_path / "adapters")
    again = PeftModel.from_pretrained(handmade.model(), str(tmp_path / "adapters" / "llm")).merge_and_unload()
    both = PeftModel.from_pretrained(again, str(tmp_path / "adapters" / "vision_encoder")).merge_and_unload()
    torch.testing.assert_close(PackLoss(both)(PACK)[1], trained, rtol=0, atol=2e-5)
    assert not torch.allclose(PackLoss(handmade.model())(PACK)[1], trained, atol=0.05)
    assert json.loads((tmp_path / "adapters" / "llm" / "adapter_config.json").read_text())["r"] == 4


def test_what_cannot_be_adapted_is_told() -> None:
    with pytest.raises(ConfigError, match=r"lora of llm: no linear layer 'q_prj' \(did you mean 'q_proj'\?\)"):
        add_adapters(handmade.model(), {"llm": LoraConfig(targets=("q_prj",))}, 0)
    with pytest.raises(ConfigError, match="lm_head shares its weights"):
        add_adapters(handmade.model(), {"llm": LoraConfig(targets=("q_proj", "lm_head"))}, 0)
    model = _with(BOTH)
    with pytest.raises(ConfigError, match="already has adapters"):
        add_adapters(model, {"projector": LoraConfig()}, 0)


def test_adapters_learn_in_bf16_with_checkpointing_below_a_frozen_encoder() -> None:
    """As configs/training/finetune.yaml has it, on a small model."""
    shipped = load_training_config("finetune")
    changes = {"step": {"packs": 4}, "seq_tokens": 64, "pack_patches": 64, "steps": 1, "schedule": "constant", "warmup_ratio": 0}
    stage = StageConfig.model_validate({**shipped.stages[1].model_dump(exclude={"epochs"}), **changes})
    small = {"preset": "tiny", "precision": shipped.model.precision, "gradient_checkpointing": shipped.model.gradient_checkpointing}
    settings = TrainingConfig.model_validate({"name": "small", "model": small, "stages": {1: stage.model_dump()}})
    ranks, model = start_ranks(), cast_weights(handmade.model(), "bf16")
    add_adapters(model, stage.adapters, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = build_engine(model, stage, settings, ranks)
    train_step(engine, stage, handmade.packs(4), 0, 1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p.cpu(), before[name])}
    assert {name for name in before if ".lora_B." in name} <= moved
    assert {name for name in moved if ".lora_" not in name and not name.startswith("model.projector.")} == set()
    engine.destroy()


def test_a_disk_that_takes_no_adapters_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError, match=r"llm: the adapters could not be written .*make room"):
        merge_adapters(_with({"llm": LoraConfig()}), tmp_path / "file")


def _with(adapters: dict[str, LoraConfig], dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = handmade.model()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    add_adapters(model, adapters, 0)
    return model


# A stage as the launcher runs it: trained, killed, resumed, merged, handed on.


def train(out: Path, zero: int, *options: str, ranks: int = 1, dies: bool = False) -> None:
    settings = out.parent / f"zero{zero}.json"
    settings.write_text(
        json.dumps({"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True, "zero_optimization": {"stage": zero}})
    )
    if ranks == 1 and not dies:
        hand_adapters.main([str(out), str(settings), *options])
        return
    codes, said = forked.run(hand_adapters.main, [out, settings, *options], ranks)
    assert codes == [-signal.SIGKILL if dies else 0] * ranks, said[-3000:]


def losses(out: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_metrics(out) if r["kind"] == "step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "whole"
    train(out, 1)
    return out


def test_a_finished_stage_is_a_plain_checkpoint_with_its_adapters_beside_it(whole: Path) -> None:
    base, final = dict(handmade.model().named_parameters()), dict(from_hf(final_dir(whole, 1)).named_parameters())
    assert base.keys() == final.keys()
    moved = {name for name in base if not torch.equal(base[name], final[name])}
    assert {name for name in moved if not name.startswith("model.projector.")} == {
        f"model.language_model.layers.{layer}.{place}.weight"
        for layer in range(2)
        for place in (*(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down")))
    }
    assert not [path for path in final_dir(whole, 1).iterdir() if "adapter" in path.name], "from_pretrained would look for peft"
    beside = load_file(stage_dir(whole, 1) / "adapters" / "llm" / "adapter_model.safetensors")
    assert len(beside) == 2 * 14
    with_adapters = PeftModel.from_pretrained(handmade.model(), str(stage_dir(whole, 1) / "adapters" / "llm")).merge_and_unload()
    for name, parameter in with_adapters.named_parameters():
        if name in moved and not name.startswith("model.projector."):
            torch.testing.assert_close(parameter, final[name], rtol=0, atol=1e-6)


def test_killed_and_resumed_it_ends_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "out", 1, "--die-before", "3", dies=True)
    found = latest_state(stage_dir(tmp_path / "out", 1))
    assert found is not None
    assert found[1].step == 2
    train(tmp_path / "out", 1)
    assert losses(tmp_path / "out") == losses(whole)
    one, other = (load_file(final_dir(out, 1) / "model.safetensors") for out in (whole, tmp_path / "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_zero_3_on_two_ranks_learns_and_hands_on_the_same(tmp_path: Path) -> None:
    train(tmp_path / "one", 1, "--dropout", "0")
    train(tmp_path / "two", 3, "--dropout", "0", ranks=2)
    for (_, one), (_, two) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    one, two = (from_hf(final_dir(tmp_path / name, 1)).state_dict() for name in ("one", "two"))
    base = handmade.model().state_dict()
    for name, value in one.items():
        assert torch.equal(value, base[name]) == torch.equal(two[name], base[name]), name
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4)
