"""Two ranks under every ZeRO stage, one of them with text alone, beside plain PyTorch on the same items one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training import forked, hand_zero
from training.model import parts
from training.pack_loss import PackLoss

Found = dict[str, Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks left: <rank>/found.json and the weights at the end of each run."""
    out = tmp_path_factory.mktemp("zero")
    codes, said = forked.run(hand_zero.main, [out], ranks=2)
    assert codes == [0, 0], said[-5000:]
    return out


def found(runs: Path, name: str, rank: int = 0) -> Found:
    return json.loads((runs / str(rank) / "found.json").read_text())[name]


def weights(runs: Path, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(runs / str(rank) / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="module")
def reference() -> tuple[list[float], list[float], nn.Module]:
    return hand_zero.plain()


@pytest.mark.parametrize("name", ["fp32-0", "fp32-1", "fp32-2", "fp32-3", "offload-2", "offload-3"])
def test_every_stage_takes_the_steps_of_plain_pytorch(runs: Path, reference: tuple[list[float], list[float], nn.Module], name: str) -> None:
    _same_steps(runs, name, reference)


def test_an_untied_head_learns_under_zero_3_with_activations_made_twice(runs: Path) -> None:
    _same_steps(runs, "untied-3", hand_zero.plain(tied=False))


@pytest.mark.parametrize("kind", ["sample", "sqrt"])
def test_items_weigh_as_the_stage_says_over_all_ranks(runs: Path, kind: str) -> None:
    _same_steps(runs, kind, hand_zero.plain(kind))


def _same_steps(runs: Path, name: str, expected: tuple[list[float], list[float], nn.Module]) -> None:
    losses, norms, model = expected
    for rank in (0, 1):
        steps = found(runs, name, rank)["steps"]
        assert [s["loss"] for s in steps] == pytest.approx(losses, rel=1e-5)
        assert [s["grad_norm"] for s in steps] == pytest.approx(norms, rel=1e-4)
        ended = weights(runs, name, rank)
        assert ended.keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            torch.testing.assert_close(ended[key], value, rtol=0, atol=2e-5, msg=f"{name}, rank {rank}: {key}")


def test_in_bf16_the_stages_agree_as_closely_as_its_eight_bits_let_them(runs: Path) -> None:
    losses = [[s["loss"] for s in found(runs, f"bf16-{zero}")["steps"]] for zero in range(4)]
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], abs=2e-3)
    assert losses[0][-1] < losses[0][0] - 0.05
    for zero in range(4):
        ended = weights(runs, f"bf16-{zero}")
        assert {v.dtype for v in ended.values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["frozen-0", "frozen-1", "frozen-2", "frozen-3", "untied-frozen-3"])
def test_what_is_frozen_is_the_same_to_the_bit(runs: Path, name: str) -> None:
    start = hand_zero.model(tied=not name.startswith("untied"))
    before = {key: value.clone() for key, value in start.state_dict().items()}
    frozen = {key for key, _ in parts(start)["llm"]} | {"lm_head.weight"}
    for rank in (0, 1):
        after = weights(runs, name, rank)
        assert all(torch.equal(after[key], before[key]) for key in frozen)
        assert all(not torch.equal(after[key], before[key]) for key, _ in parts(start)["projector"] if key.endswith("weight"))
        assert any(not torch.equal(after[key], before[key]) for key, _ in parts(start)["vision_encoder"])


@pytest.mark.parametrize("zero", range(4))
def test_an_infinite_gradient_of_one_rank_stops_all_before_anything_moves(
    runs: Path, reference: tuple[list[float], list[float], nn.Module], zero: int
) -> None:
    for rank in (0, 1):
        told = found(runs, f"fp32-{zero}", rank)["stopped"]
        assert "step 2: the gradient is not finite" in told
        for of, pack in enumerate(hand_zero.batches()):  # whose it was is not known: each rank names the items of both
            assert f"on rank {of} {', '.join(f'{i.uid}/{i.task}/{i.n}' for i in pack.items)}" in told
    _same_steps(runs, f"fp32-{zero}", reference)


def test_the_numbers_are_those_of_both_ranks(runs: Path) -> None:
    first, second = (found(runs, "fp32-1", rank)["steps"][0] for rank in (0, 1))
    own = ("rank_seconds", "pack_seconds", "seconds")
    assert {k: v for k, v in first.items() if k not in own} == {k: v for k, v in second.items() if k not in own}
    packs = hand_zero.batches()
    assert (first["packs"], first["samples"]) == (2, 7)
    for count in ("tokens", "labelled", "patches", "visual", "kept"):
        assert first[count] == sum(getattr(pack.counts, count) for pack in packs)
    assert first["visual"] > first["kept"]
    alone = [PackLoss(hand_zero.model())(pack)[1] for pack in packs]
    assert first["loss_by_source"] == pytest.approx({"photos": float(alone[0].mean()), "books": float(alone[1].mean())}, rel=1e-5)
    assert set(first["loss_by_task"]) == {"short_caption", "multi_image", "video", "text"}
    seconds = [first["rank_seconds"], second["rank_seconds"]]
    assert first["imbalance"] == pytest.approx(max(seconds) / (sum(seconds) / 2))
    assert first["rank_seconds"] == pytest.approx(sum(first["pack_seconds"]))
    assert 0 < first["rank_seconds"] < first["seconds"]


def test_packs_weighed_by_items_still_report_plain_means_by_source(runs: Path) -> None:
    by_token, by_item = (found(runs, name)["steps"][0] for name in ("fp32-1", "sample"))
    assert by_item["loss"] != pytest.approx(by_token["loss"], rel=1e-4)
    assert by_item["loss_by_source"] == pytest.approx(by_token["loss_by_source"], rel=1e-6)
