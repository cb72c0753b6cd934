"""The loss of a pack: items in it are worth what they are worth alone, in loss and in gradient, however attention is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import modeling_flash_attention_utils

from shards.errors import ConfigError
from tests.training import handmade
from tests.training.handmade import item, packed, whole_gradients
from training import attention
from training.attention import FLASH, PIECEWISE, chosen_attention, use_attention
from training.pack_loss import PackLoss, item_lengths
from training.weights import item_numbers, token_weights

KINDS = ("image", "text", "images", "video", "video", "image", "text")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def separate() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss of each labelled token, gradient of their sum), each item by itself through transformers' own forward."""
    return handmade.one_by_one(handmade.model(), [item(kind, n) for n, kind in enumerate(KINDS)])


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], int, bool]]:
    """flash-attention's varlen function in plain PyTorch, where transformers looks for it; the list gets (borders, longest, causal)."""
    calls: list[tuple[list[int], int, bool]] = []

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        deterministic: bool = False,
    ) -> torch.Tensor:
        assert cu_seqlens_q.dtype == torch.int32
        assert isinstance(max_seqlen_q, int)
        assert window_size == (-1, -1)
        calls.append((cu_seqlens_q.tolist(), max_seqlen_q, causal))
        out = []
        for start, end in zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:], strict=False):
            query, key, value = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=softmax_scale, enable_gqa=True)
            out.append(attended[0].transpose(0, 1))
        return torch.cat(out)

    process = modeling_flash_attention_utils._lazy_define_process_function(flash_attn_varlen_func)
    functions = ((None, flash_attn_varlen_func, None, None, None), (process, None))
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda _: functions)
    return calls


@pytest.mark.parametrize("name", ["sdpa", PIECEWISE, FLASH])
def test_packed_items_have_the_losses_and_gradients_of_separate_ones(
    separate: tuple[torch.Tensor, dict[str, torch.Tensor]], flash_on_cpu: list[tuple[list[int], int, bool]], name: str
) -> None:
    model = handmade.model()
    use_attention(model, name)
    pack = packed([item(kind, n) for n, kind in enumerate(KINDS)])
    loss, tokens = PackLoss(model, rows=7)(pack)
    loss.backward()
    expected, slopes = separate
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
    for key, slope in whole_gradients(model).items():
        torch.testing.assert_close(slope, slopes[key], rtol=1e-5, atol=1e-5, msg=key)
    if name == FLASH:
        lengths = item_lengths(pack)
        language = ([0, *torch.tensor(lengths).cumsum(0).tolist()], max(lengths), True)
        assert flash_on_cpu.count(language) == 2, "once a layer, with the borders of the items"
        assert sum(causal for _, _, causal in flash_on_cpu) == 2
        (frames,) = {tuple(borders) for borders, _, causal in flash_on_cpu if not causal}
        assert len(frames) - 1 == 1 + 3 + 1 + 2 * 2, "images and frames of clips in one pass of the encoder"
    else:
        assert not flash_on_cpu


def test_answers_are_generated_alike_by_either_attention() -> None:
    answers = []
    for name in ("sdpa", PIECEWISE):
        model: Any = handmade.model().eval()
        use_attention(model, name)
        inputs = packed([item("video", 3)]).model_inputs()
        inputs.pop("position_ids")
        asked = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
        answers.append(model.generate(**asked, max_new_tokens=6, do_sample=False, pad_token_id=0))
    assert torch.equal(*answers)


def test_the_name_of_our_attention_is_not_written_with_the_weights(tmp_path: Any) -> None:
    model: Any = handmade.model()
    use_attention(model, PIECEWISE)
    model.save_pretrained(tmp_path)
    assert PIECEWISE not in (tmp_path / "config.json").read_text()


def test_a_language_model_with_sliding_windows_keeps_its_mask() -> None:
    model: Any = handmade.model()
    model.config.text_config.layer_types = ["full_attention", "sliding_attention"]
    use_attention(model, PIECEWISE)
    assert model.config.text_config._attn_implementation == "sdpa"


def test_attention_is_chosen_by_what_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_attention("auto", CPU, "bf16") == PIECEWISE
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda _: None)
    assert chosen_attention("auto", GPU, "bf16") == PIECEWISE
    with pytest.raises(ConfigError, match="flash-attn is not installed"):
        chosen_attention(FLASH, GPU, "bf16")
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda _: object())
    assert chosen_attention("auto", GPU, "bf16") == chosen_attention(FLASH, GPU, "bf16") == FLASH
    assert chosen_attention("sdpa", GPU, "bf16") == chosen_attention("auto", GPU, "fp32") == PIECEWISE
    for device, precision, why in ((CPU, "bf16", "no GPU"), (GPU, "fp32", "precision is fp32")):
        with pytest.raises(ConfigError, match=why):
            chosen_attention(FLASH, device, precision)


def test_adapters_of_the_head_are_part_of_the_loss() -> None:
    model: Any = handmade.model()
    pack = packed([item("text", 1)])
    before, _ = PackLoss(model)(pack)

    class Adapted(nn.Module):
        def __init__(self, head: nn.Linear) -> None:
            super().__init__()
            self.head, self.beside = head, nn.Linear(head.in_features, head.out_features)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.head(hidden) + self.beside(hidden)

    model.lm_head = Adapted(model.lm_head)
    after, _ = PackLoss(model, rows=3)(pack)
    after.backward()
    assert after != before
    assert model.lm_head.beside.weight.grad.any()


@pytest.mark.parametrize(("kind", "power"), [("token", 0), ("sample", -1), ("sqrt", -0.5)])
def test_weights_follow_the_number_of_labelled_tokens_of_each_item(kind: str, power: float) -> None:
    pack = packed([item("video", 1, 3), item("text", 2, 8)])
    weights = token_weights(pack, kind)
    assert weights.tolist() == pytest.approx([4.0**power] * 4 + [9.0**power] * 9)
    assert float(weights.sum()) == pytest.approx(4 ** (power + 1) + 9 ** (power + 1)), "what a step's loss is divided by"


def test_positions_that_do_not_fit_the_items_are_a_bug() -> None:
    pack = packed([item("text", 1), item("text", 2)])
    pack.position_ids[0, 3] = 0
    with pytest.raises(AssertionError, match="restart 3 times"):
        item_numbers(pack)
