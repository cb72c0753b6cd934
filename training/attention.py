"""Attention of items that share a row of tokens and of frames that share a row of patches: each sees itself alone.

On a GPU with flash-attention 2 installed its kernels for sequences of varying length do that (`flash_attn_varlen_func`, through
transformers). Elsewhere PyTorch's scaled_dot_product_attention runs on each item by itself: work grows with the sum of their squared
lengths, where a mask over the whole row would make it grow with the square of the sum.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from shards.errors import ConfigError

FLASH = "flash_attention_2"
# transformers gives functions with "flash" in their name the whole row and its borders, and cuts it in pieces itself for all others.
PIECEWISE = "piecewise_sdpa_called_as_flash"


def chosen_attention(wanted: str, device: torch.device, precision: str) -> str:
    """FLASH or PIECEWISE for `attn: auto | sdpa | flash_attention_2`. auto takes FLASH on a GPU, in bf16, where it is installed.

    Raises ConfigError where flash_attention_2 is asked for and cannot run.
    """
    obstacle = _obstacle(device, precision)
    if wanted == FLASH and obstacle is not None:
        raise ConfigError(f"model.attn is {FLASH}, but {obstacle}; set attn: auto to take it where it can run, or sdpa")
    return FLASH if wanted != "sdpa" and obstacle is None else PIECEWISE


def _obstacle(device: torch.device, precision: str) -> str | None:
    if device.type != "cuda":
        return "there is no GPU"
    if precision != "bf16":
        return f"its kernels compute in bf16 and precision is {precision}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed (`pip install flash-attn`)"
    return None


def use_attention(model: nn.Module, name: str) -> None:
    """Makes every part of `model` attend by `name`: FLASH, PIECEWISE, or another that transformers knows.

    A language model with sliding windows (no released Qwen2.5 has them on) takes transformers' sdpa and its mask instead of PIECEWISE.
    """
    _register()
    whole: Any = model.config
    if name == PIECEWISE and "sliding_attention" in (whole.text_config.layer_types or ()):
        name = "sdpa"
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = name


def item_borders(lengths: Sequence[int], name: str, device: torch.device) -> dict[str, Any]:
    """Arguments of the language model for a row of items of these lengths, in tokens. Reads nothing back from the device."""
    borders = _borders(lengths, name, device)
    longest = max(lengths)
    given = {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}
    # transformers makes no mask where it is told that there is none
    return {**given, "attention_mask": dict.fromkeys(("full_attention", "sliding_attention"))} if name in (FLASH, PIECEWISE) else {}


def frame_borders(lengths: Sequence[int], name: str, device: torch.device) -> dict[str, Any]:
    """Arguments of the vision encoder for frames of so many patches."""
    return {"cu_seqlens": _borders(lengths, name, device), "max_seqlen": max(lengths)}


def _borders(lengths: Sequence[int], name: str, device: torch.device) -> torch.Tensor:
    borders = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return borders.to(device) if name == FLASH else borders  # all others cut on the host


def piecewise(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query, key, value [1, heads, L, size] → ([1, L, heads, size], None), piece by piece.

    cu_seq_lens_q  int32 [pieces + 1], borders of the pieces in 0…L. Neighbours of one length (frames of a clip) are computed at once.
    Without borders, as while answers are generated, it is transformers' own sdpa with the mask that it made.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for name in ("cu_seq_lens_k", "max_length_q", "max_length_k"):
        arguments.pop(name, None)
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    runs = [(length, len(list(equal))) for length, equal in groupby(cu_seq_lens_q.diff().tolist())]
    pieces = [tensor.split([length * count for length, count in runs], dim=2) for tensor in (query, key, value)]
    outputs = []
    for (length, count), q, k, v in zip(runs, *pieces, strict=True):
        folded = (x.unflatten(2, (count, length))[0].transpose(0, 1) for x in (q, k, v))
        output, _ = sdpa_attention_forward(module, *folded, None, **arguments)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)[None], None


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(PIECEWISE, piecewise)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PIECEWISE, sdpa_mask)
