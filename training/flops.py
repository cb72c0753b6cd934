"""Operations of training from a model's shape: forward, backward, and what checkpointing repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.cost import FEATURES, CostModel, add

if TYPE_CHECKING:
    from training.stages import LoraConfig, StageConfig


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """Floating-point operations of training, each a CostModel. recomputed: what checkpointing runs a second time.

    Model FLOPs utilisation (MFU; PaLM, arXiv 2204.02311, appendix B) counts forward and backward, hardware utilisation (HFU) also what is
    recomputed. The encoder counts in both. Recomputing within attention kernels and of the head's pieces is in neither.
    """

    forward: CostModel
    backward: CostModel
    recomputed: CostModel

    @property
    def model(self) -> CostModel:
        return add(self.forward, self.backward)

    @property
    def hardware(self) -> CostModel:
        return add(self.model, self.recomputed)


def vision_layers(vision: Any) -> dict[str, tuple[int, int]]:
    """The linear layers of an encoder layer by transformers' names: (inputs, outputs)."""
    hidden, inner = vision.hidden_size, vision.intermediate_size
    square = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (hidden, hidden))
    return {**square, "fc1": (hidden, inner), "fc2": (inner, hidden)}


def text_layers(text: Any) -> dict[str, tuple[int, int]]:
    """The linear layers of a layer of the language model by transformers' names: (inputs, outputs)."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    hidden, inner = text.hidden_size, text.intermediate_size
    attention = {"q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys), "o_proj": (queries, hidden)}
    return {**attention, "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}


def projector_layers(config: Any) -> dict[str, tuple[int, int]]:
    """The two linear layers of the projector."""
    vision, text = config.vision_config.hidden_size, config.text_config.hidden_size
    return {"readout.0": (vision, text), "readout.2": (text, text)}


def model_flops(
    config: Any,
    *,
    train_vision: bool = True,
    train_projector: bool = True,
    train_llm: bool = True,
    checkpointing: bool = True,
    adapters: Mapping[str, LoraConfig] | None = None,
) -> ModelFlops:
    """Operations from a model's shape: `config` is transformers' VideoLlama3Config, or any object with those fields.

    Two operations for each weight and row, four for each pair of positions and channel in attention, half of the pairs where it is causal
    (Kaplan et al. 2020, arXiv 2001.08361 §2.1; Narayanan et al. 2021, arXiv 2104.04473, appendix). The gradient of a linear layer's inputs
    costs as much again, that of its weights once more where they are trained; attention has no weights and costs twice its forward pass.
    Under a frozen language model gradients still pass through it; a frozen encoder has no backward pass. `adapters` (by part) freeze a
    part's own weights and add their low-rank products. Checkpointing repeats the forward pass of layers that gradients pass.
    """
    lora = adapters or {}
    vision, text = config.vision_config, config.text_config
    patch_rows = 2 * vision.num_channels * vision.patch_size**2 * vision.hidden_size
    first, second = projector_layers(config).values()
    head = 2 * text.hidden_size * text.vocab_size
    own_vision, own_projector, own_llm = (
        trained and part not in lora
        for trained, part in ((train_vision, "vision_encoder"), (train_projector, "projector"), (train_llm, "llm"))
    )
    per_patch, lora_patch = _rows(vision_layers(vision), vision.num_hidden_layers, lora.get("vision_encoder") if train_vision else None)
    per_visual, lora_visual = _rows(projector_layers(config), 1, lora.get("projector") if train_projector else None)
    per_token, lora_token = _rows(text_layers(text), text.num_hidden_layers, lora.get("llm") if train_llm else None)
    channels = text_layers(text)["q_proj"][1]
    squares = vision.num_hidden_layers * 4 * vision.hidden_size, text.num_hidden_layers * 2 * channels
    forward = {
        "patch": patch_rows + per_patch + lora_patch,
        "frame_square": squares[0],
        "visual": per_visual + lora_visual,
        "token": per_token + lora_token,
        "token_square": squares[1],
        "label": head,
    }
    through_projector = (2 * math.prod(first) if train_vision else 0) + (2 * math.prod(second) if train_vision or train_projector else 0)
    backward = {
        "patch": train_vision * (per_patch + 2 * lora_patch) + own_vision * (per_patch + patch_rows),
        "frame_square": train_vision * 2 * squares[0],
        "visual": through_projector + own_projector * per_visual + 2 * lora_visual,
        "token": per_token + own_llm * per_token + 2 * lora_token,
        "token_square": 2 * squares[1],
        "label": head + own_llm * head,
    }
    # What the last layer of a block gives is nobody's input in its backward pass: torch stops repeating before it.
    last_vision = 2 * math.prod(vision_layers(vision)["fc2"]) * vision.num_hidden_layers
    last_text = 2 * math.prod(text_layers(text)["down_proj"]) * text.num_hidden_layers
    again = {
        "patch": train_vision * (per_patch + lora_patch - last_vision * ("vision_encoder" not in lora)),
        "frame_square": train_vision * squares[0],
        "token": forward["token"] - last_text * ("llm" not in lora),
        "token_square": squares[1],
    }
    return ModelFlops(_flops(forward), _flops(backward), _flops(again if checkpointing else {}))


def stage_flops(config: Any, stage: StageConfig, checkpointing: bool) -> ModelFlops:
    """`model_flops` of what a stage trains."""
    return model_flops(
        config,
        train_vision="vision_encoder" in stage.train,
        train_projector="projector" in stage.train,
        train_llm="llm" in stage.train,
        checkpointing=checkpointing,
        adapters=stage.adapters,
    )


def _rows(layers: Mapping[str, tuple[int, int]], count: int, adapter: LoraConfig | None) -> tuple[int, int]:
    """(operations for a row through all linear layers of a part, those of its adapters), forward."""
    own = count * sum(2 * inputs * outputs for inputs, outputs in layers.values())
    if adapter is None:
        return own, 0
    return own, 2 * count * adapter_weights(layers, adapter)


def adapter_weights(layers: Mapping[str, tuple[int, int]], adapter: LoraConfig) -> int:
    """Weights of the adapters of these layers. Targets name layers by the end of their name, as training.adapters takes them."""
    wanted = adapter.targets
    adapted = [
        size
        for name, size in layers.items()
        if wanted is None or any(f".{name}".endswith(f".{t}") or t.endswith(f".{name}") for t in wanted)
    ]
    return sum(adapter.rank * (inputs + outputs) for inputs, outputs in adapted)


def _flops(coefficients: Mapping[str, float]) -> CostModel:
    return CostModel.from_vector([coefficients.get(name, 0.0) for name in FEATURES], "flops")
