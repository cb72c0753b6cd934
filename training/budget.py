"""Memory of a rank while it trains, by kind, and hours: arithmetic on the model's shape and a stage's bounds, before a GPU is rented."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.devices import Device
from training.flops import adapter_weights, projector_layers, text_layers, vision_layers

if TYPE_CHECKING:
    from training.stages import ModelConfig, StageConfig

MFU = 0.35  # of the peak, forward and backward: what dense models of some billion parameters reach in bf16 (torchtitan tells of 0.33-0.39)
SPARE = 0.1  # of a device's memory: the driver's context, communication, what the allocator cannot put together
LOSS_ROWS = 1_024  # labelled rows whose logits exist at once (training.pack_loss.LOSS_ROWS, which imports torch)
_BUCKET = 500_000_000  # DeepSpeed's defaults, in elements: reduce_bucket_size,
_LIVE = 1_000_000_000  # and stage3_max_live_parameters


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters by part: all of them, and those that learn. Adapters count in both."""

    total: dict[str, int]
    learning: dict[str, int]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank by kind, on its device and on its host (what is offloaded). peak: what the device holds at once, at most.

    weights, gradients, master (fp32 copies of what learns), optimizer (two moments), buckets (gradients on their way to other ranks),
    gathered (weights that ZeRO-3 holds together for a while), update (gradients in fp32 and what AdamW lays down while it steps); encoder,
    projector, llm (what waits for the backward pass), layer (the one at work), logits (the head's piece at work); whole (the model in one
    piece, which ZeRO-3 cuts up when the engine is built, and which is put together again, beside the optimizer's state, when it ends).
    A layer and the logits are never at work at the same time, nor are activations there while the optimizer steps, nor either beside
    the whole model.
    """

    device: dict[str, int]
    host: dict[str, int]

    @property
    def peak(self) -> int:
        now = self.device
        passing = now["encoder"] + now["projector"] + now["llm"] + max(now["layer"], now["logits"])
        held = sum(now[kind] for kind in ("weights", "gradients", "master", "optimizer", "buckets"))
        return held + max(now["gathered"] + max(passing, now["update"]), now["whole"])


def weights_of(shape: Any, stage: StageConfig) -> Weights:
    """Parameters of VideoLlama3ForConditionalGeneration of this shape (vision_config, text_config), with the stage's adapters."""
    vision, text = shape.vision_config, shape.text_config
    own = {"vision_encoder": _vision_weights(vision), "projector": _projector_weights(shape), "llm": _text_weights(text)}
    layers = {
        "vision_encoder": (vision.num_hidden_layers, vision_layers(vision)),
        "projector": (1, projector_layers(shape)),
        "llm": (text.num_hidden_layers, text_layers(text)),
    }
    adapters = {part: layers[part][0] * adapter_weights(layers[part][1], how) for part, how in stage.adapters.items()}
    total = {part: size + adapters.get(part, 0) for part, size in own.items()}
    return Weights(total, {part: adapters.get(part, total[part]) for part in own if part in stage.train})


def memory_of(shape: Any, stage: StageConfig, model: ModelConfig, deepspeed: Mapping[str, Any], ranks: int) -> Memory:
    """What one of `ranks` ranks needs for the fullest pack that the stage allows (both of its bounds reached).

    deepspeed: its settings (stages.deepspeed_json). ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054 §5): stage 1 cuts master copies and
    moments over the ranks, 2 gradients too, 3 the weights too. Offloaded parts lie on the host. Activations are those of transformers'
    layers, counted tensor by tensor: on a CPU 1.0 to 1.2 times what is measured.
    """
    zero = deepspeed.get("zero_optimization", {})
    level, size = int(zero.get("stage", 0)), 2 if model.precision == "bf16" else 4
    found = weights_of(shape, stage)
    total, learning = sum(found.total.values()), sum(found.learning.values())
    shared = math.ceil(learning / ranks) if level else learning
    states_off, weights_off = _off(zero, "offload_optimizer"), _off(zero, "offload_param")
    weights = math.ceil(total / ranks) * size if level == 3 else total * size
    # ZeRO keeps fp32 copies of its own in fp32 too; without it AdamW steps on the weights themselves.
    master = 4 * shared if level or size == 2 else 0
    bucket = int(zero.get("reduce_bucket_size", _BUCKET)) * size * (2 if zero.get("overlap_comm") else 1)
    device = {
        "weights": 0 if weights_off else weights,
        "gradients": size * learning if level < 2 else 0 if states_off else size * shared,
        "master": 0 if states_off else master,
        "optimizer": 0 if states_off else 8 * shared,
        "buckets": bucket if level and zero.get("contiguous_gradients", True) else 0,
        "gathered": min(total, int(zero.get("stage3_max_live_parameters", _LIVE))) * size if level == 3 else 0,
        "update": 0 if states_off else 8 * shared,
        "whole": total * size if level == 3 else 0,  # training.launch puts it there also where the shares are offloaded, training.whole too
        **_activations(shape, stage, size, model.gradient_checkpointing),
    }
    host = {"master": master, "optimizer": 8 * shared, "update": 4 * shared} if states_off else {}
    return Memory(device, {**host, **({"weights": weights} if weights_off else {})})


def fits(memory: Memory, device: Device) -> bool | None:
    """Whether a rank's peak leaves SPARE of the device's memory; None where that is not known."""
    return None if device.memory is None else memory.peak <= (1 - SPARE) * device.memory


def hours_of(model_flops: float, device: Device, devices: int, mfu: float = MFU) -> float | None:
    """Hours of forward and backward passes at an assumed share of the peak; None for a device without a stated peak."""
    return None if device.flops is None else model_flops / (device.flops * mfu * devices) / 3600


def _off(zero: Mapping[str, Any], name: str) -> bool:
    return str((zero.get(name) or {}).get("device", "none")) != "none"


def _vision_weights(vision: Any) -> int:
    hidden = vision.hidden_size
    layer = sum(i * o + o for i, o in vision_layers(vision).values()) + 2 * 2 * hidden
    patches = vision.num_channels * vision.patch_size**2 * hidden + hidden
    return patches + vision.num_hidden_layers * layer + 2 * hidden


def _projector_weights(shape: Any) -> int:
    return sum(i * o + o for i, o in projector_layers(shape).values())


def _text_weights(text: Any) -> int:
    layers = text_layers(text)
    biases = sum(layers[name][1] for name in ("q_proj", "k_proj", "v_proj"))
    layer = sum(i * o for i, o in layers.values()) + biases + 2 * text.hidden_size
    tables = 1 if getattr(text, "tie_word_embeddings", False) else 2
    return tables * text.vocab_size * text.hidden_size + text.num_hidden_layers * layer + text.hidden_size


def _activations(shape: Any, stage: StageConfig, size: int, checkpointing: bool) -> dict[str, int]:
    """Bytes for the fullest pack; `size`: of an element. A norm in bf16 keeps its input in fp32 as well."""
    vision, text = shape.vision_config, shape.text_config
    patches, tokens = stage.pack_patches, stage.seq_tokens
    visual = min(patches, max(tokens, patches // 4))  # unmerged pictures all become tokens, frames are merged at least 2×2
    v, v_inner, h, h_inner = vision.hidden_size, vision.intermediate_size, text.hidden_size, text.intermediate_size
    queries = text_layers(text)["q_proj"][1]
    # inputs of two norms, of q/k/v, of the output and of fc1; q, k, v and what attention gives; both sides of the activation
    vision_layer = size * (9 * v + 2 * v_inner)
    if "llm" in stage.train:
        # two norms (fp32 input, normed, scaled); q, k, v, what attention gives and the output's input; four of the gated layer
        text_layer = 2 * h * (4 + 2 * size) + size * (5 * queries + 4 * h_inner)
    else:  # weights that do not learn need not know what they were multiplied by
        text_layer = 2 * h * 4 + size * (4 * queries + 3 * h_inner)
    pixels = vision.num_channels * vision.patch_size**2 * (4 + size)
    learns = "vision_encoder" in stage.train
    encoder = vision.num_hidden_layers * (size * v if checkpointing else vision_layer) if learns else size * v
    llm = text.num_hidden_layers * (size * h if checkpointing else text_layer) + size * h + h * (4 + 2 * size)
    at_work = (
        patches * (size * (2 * v_inner + v) + (vision_layer if checkpointing or not learns else 0)),
        tokens * (size * (2 * h_inner + h) + (text_layer if checkpointing else 0)),
    )
    return {
        "encoder": patches * (encoder + pixels),
        "projector": visual * size * (v + 3 * h),
        "llm": tokens * llm,
        "layer": max(at_work),
        "logits": min(LOSS_ROWS, tokens) * text.vocab_size * (8 + size),
    }
