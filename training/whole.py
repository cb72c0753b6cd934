"""The weights of a model that ZeRO-3 has spread over the ranks: which of them are frozen, and how it becomes a plain module again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shards.sample import digest_of


def make_whole(engine: Any) -> None:
    """Ends the engine and leaves its module with whole, plain parameters on every rank; tied ones stay tied. Every rank must call it.

    Under ZeRO-0 to 2 they are whole already. Under ZeRO-3 each rank gathers one parameter after the other: it then needs room for the whole
    model in the precision of training beside its share of the optimizer's state, as it did when it built the model.
    """
    module: nn.Module = engine.module
    if engine.zero_optimization_stage() < 3:
        engine.destroy()
        return
    import deepspeed
    from deepspeed.runtime.zero import parameter_offload

    plain: dict[int, nn.Parameter] = {}
    for parameter in module.parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            plain[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    engine.destroy()
    for part in module.modules():
        # dict.items, for DeepSpeed's own dictionary gathers a parameter when it is looked up
        part._parameters = {name: None if held is None else plain[id(held)] for name, held in part._parameters.items()}
    parameter_offload.FWD_MODULE_STACK.clear()  # would hold the model of this stage for as long as the process lives


def frozen_digest(engine: Any) -> str:
    """Identity of the weights that are not trained, whatever ranks and ZeRO stage hold them; empty without any. Every rank must call it.

    For each parameter the sum, modulo 2^64, of its elements' bit patterns: exact in any order, and no byte leaves its device.
    """
    names, sums = [], []
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            continue
        names.append(name)
        sums.append(_own(parameter).view(_BITS[parameter.element_size()]).sum(dtype=torch.int64).reshape(1).to(engine.device))
    if not names:
        return ""
    totals = torch.cat(sums)
    torch.distributed.all_reduce(totals)
    return digest_of(dict(zip(names, totals.tolist(), strict=True)))


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _own(parameter: Any) -> torch.Tensor:
    """This rank's share: the slice that ZeRO-3 gave it, without padding; else all of it on rank 0 and nothing on the others."""
    rank = torch.distributed.get_rank()
    if hasattr(parameter, "ds_tensor"):
        held = parameter.ds_tensor.detach()
        return held[: max(0, min(held.numel(), parameter.ds_numel - rank * held.numel()))]
    flat = parameter.detach().reshape(-1)
    return flat if rank == 0 else flat[:0]
