"""LoRA: a part of the model that learns by low-rank adapters in its linear layers (peft), its own weights frozen."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shards.errors import ConfigError, InfrastructureError
from training.durable import publish
from training.stages import PART_NAMES, LoraConfig, close_to

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear

log = logging.getLogger("fovea")

PART_PREFIXES = {
    "model.vision_model.": "vision_encoder",
    "model.projector.": "projector",
    "model.language_model.": "llm",
    "lm_head.": "llm",  # tied to the embeddings or not, it belongs to the language model
}
_MARKS = (".lora_A.", ".lora_B.")
_HEAD = "lm_head"


def part_of(name: str) -> str | None:
    """The part that a parameter or module of VideoLlama3ForConditionalGeneration belongs to, adapters included; None for no known one."""
    return next((part for prefix, part in PART_PREFIXES.items() if f"{name}.".startswith(prefix)), None)


def learning(members: Iterable[tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
    """Those parameters of a part that learn when the part is trained: its adapters if it has any, else all."""
    every = list(members)
    adapters = [(name, parameter) for name, parameter in every if any(mark in name for mark in _MARKS)]
    return adapters or every


def add_adapters(model: nn.Module, adapters: Mapping[str, LoraConfig], seed: int) -> None:
    """Puts LoRA adapters (Hu et al. 2021: W + alpha/rank · B·A, A normal-like, B zero) beside linear layers of the named parts, in place.

    The model computes what it did before until the first step. Adapters have the dtype and device of their layer, and random numbers that
    depend on `seed` alone: every rank draws the same. `targets` of a part name layers by the end of their name (q_proj, mlp.fc1); without,
    all linear layers of the part take part, but not lm_head, whose weights the embeddings may share.
    Raises ConfigError for targets that no layer of the part has, for a tied lm_head, and for a model that already has adapters.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    if adapters and adapted(model):
        raise ConfigError("the model already has adapters; merge them first")
    for number, part in enumerate(PART_NAMES):
        if part not in adapters:
            continue
        how = adapters[part]
        layers = _layers(model, part, how.targets)
        config = PeftConfig(
            r=how.rank,
            lora_alpha=how.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=how.dropout,
            target_modules=layers,
            bias="none",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            inject_adapter_in_model(config, model, adapter_name=part)
        del model.peft_config  # peft would take the next part's adapters for a second set of the same
        found = [name for name, layer in adapted(model).items() if part in layer.lora_A]
        if sorted(found) != sorted(layers):
            raise ConfigError(f"{part}: adapters were put into {len(found)} layers instead of {len(layers)}; {', '.join(found[:8])}")
    for layer in adapted(model).values():
        layer.set_adapter(list(layer.lora_A))  # every injection has made its own part's the active ones everywhere
        weight: Any = layer.get_base_layer().weight
        for half in (layer.lora_A, layer.lora_B):
            half.to(device=weight.device, dtype=weight.dtype)
    if adapters:
        count = sum(p.numel() for name, p in model.named_parameters() if any(mark in name for mark in _MARKS))
        log.info("adapters in %d layers of %s: %s weights", len(adapted(model)), ", ".join(sorted(adapters)), f"{count:,}")


def adapted(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers that have adapters, by name."""
    from peft.tuners.lora import Linear

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def merge_adapters(model: nn.Module, folder: Path | None = None) -> int:
    """Adds every adapter to its layer's weight and takes it out: plain transformers modules are left, which need no peft. In place.

    The sum is made in float32 and rounded once to the weight's dtype. Parameters must be whole (training.whole.make_whole under ZeRO-3).
    folder: where the adapters are written first, as save_adapters does; give it on one rank only. Returns the number of layers.
    """
    layers = adapted(model)
    if folder is not None and layers:
        save_adapters(model, folder)
    with torch.no_grad():
        for name, layer in layers.items():
            base: Any = layer.get_base_layer()
            for part in layer.lora_A:
                base.weight.copy_(base.weight.float() + layer.get_delta_weight(part).to(base.weight.device).float())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, base)
    return len(layers)


def save_adapters(model: nn.Module, folder: Path) -> list[Path]:
    """Writes `folder`/<part>/adapter_model.safetensors and adapter_config.json, the form that peft.PeftModel.from_pretrained reads onto the
    model that the stage started from. An older folder is replaced, a part at a time. Returns the parts' folders.
    Raises InfrastructureError where the disk does not take them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    layers = adapted(model)
    written = []
    for part in sorted({part for layer in layers.values() for part in layer.lora_A}):
        own = {name: layer for name, layer in layers.items() if part in layer.lora_A}
        tensors = {
            f"base_model.model.{name}.{half}.weight": getattr(layer, half)[part].weight.detach().cpu().contiguous()
            for name, layer in own.items()
            for half in ("lora_A", "lora_B")
        }
        target = folder / part
        scratch = folder / f".{part}.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True)
            save_file(tensors, scratch / "adapter_model.safetensors", metadata={"format": "pt"})
            (scratch / "adapter_config.json").write_text(json.dumps(_peft_json(own, part), indent=1), "utf-8")
            publish(scratch, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise InfrastructureError(
                f"{target}: the adapters could not be written ({error}); make room and start again, the stage continues from its checkpoint"
            ) from error
        written.append(target)
    return written


def _peft_json(layers: Mapping[str, Any], part: str) -> dict[str, Any]:
    first = next(iter(layers.values()))
    dropout = first.lora_dropout[part]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": first.r[part],
        "lora_alpha": first.lora_alpha[part],
        "lora_dropout": float(getattr(dropout, "p", 0.0)),
        "bias": "none",
        "target_modules": sorted(layers),
        "inference_mode": True,
    }


def _layers(model: nn.Module, part: str, targets: tuple[str, ...] | None) -> list[str]:
    """Names of the linear layers that `targets` mean in a part; all but lm_head without."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and part_of(name) == part]
    if targets is None:
        return [name for name in linear if name != _HEAD]
    chosen: list[str] = []
    for target in targets:
        found = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not found:
            short = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(f"lora of {part}: no linear layer {target!r}{close_to(target, short)}; its layers are {', '.join(short)}")
        chosen += found
    head: Any = getattr(model, _HEAD)
    if _HEAD in chosen and any(head.weight is p for name, p in model.named_parameters() if not name.startswith(_HEAD)):
        raise ConfigError("lora of llm: lm_head shares its weights with the embeddings here, which would change with it; leave it out")
    return sorted(set(chosen))
