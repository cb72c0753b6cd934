"""What items and packs cost, by arithmetic on index rows: tokens, patches, operations from a model's shape, seconds once measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ConfigError, ProfileError

if TYPE_CHECKING:
    from training.stages import LoraConfig, StageConfig

Unit = Literal["flops", "seconds"]


@dataclass(frozen=True, slots=True)
class ItemSizes:
    """One int64 value for each item.

    tokens         in the language model: text and the visual tokens that are kept.
    patches        that pass the encoder.
    visual         visual tokens after merging, before compression (the projector's rows).
    kept           visual tokens in the language model.
    labelled       tokens with a label.
    frame_squares  Σ over images and frames of patches²: attention in the encoder is within a frame.
    """

    tokens: np.ndarray
    patches: np.ndarray
    visual: np.ndarray
    kept: np.ndarray
    labelled: np.ndarray
    frame_squares: np.ndarray

    def take(self, rows: np.ndarray) -> ItemSizes:
        """The sizes of these rows (int64 positions), in this order."""
        return ItemSizes(*(getattr(self, name)[rows] for name in ItemSizes.__slots__))

    @staticmethod
    def joined(parts: Sequence[ItemSizes]) -> ItemSizes:
        """One after another."""
        empty = np.zeros(0, dtype=np.int64)
        return ItemSizes(*(np.concatenate([empty, *(getattr(part, name) for part in parts)]) for name in ItemSizes.__slots__))


def item_sizes(items: pa.Table, profile: str, compress: bool) -> ItemSizes:
    """Sizes of index rows under a measure profile. Raises ProfileError when the dataset was not measured under it."""
    if profile not in items.column_names:
        measured = [f.name for f in items.schema if pa.types.is_struct(f.type) and f.type.get_field_index("text_tokens") >= 0]
        raise ProfileError(
            f"the dataset has no counts under profile {profile!r} (it has {', '.join(measured) or 'none'}); "
            f"add `- measure: {{profile: {profile}}}` to its recipe and run it again"
        )
    column = items[profile].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], items.schema.field(profile).type)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise ProfileError(
            f"{column.null_count} of {len(column)} items are not measured under {profile!r}, "
            f"first {items['uid'][row].as_py()} ({items['task'][row].as_py()}); run the recipe again, then publish the dataset"
        )

    def numbers(name: str) -> np.ndarray:
        return column.field(name).to_numpy(zero_copy_only=False).astype(np.int64)

    visual, kept = numbers("visual_tokens"), numbers("kept_tokens")
    used = kept if compress else visual
    return ItemSizes(
        numbers("text_tokens") + used, numbers("patches"), visual, used, numbers("labelled_tokens"), _frame_squares(column.field("media"))
    )


def _frame_squares(media: pa.ListArray) -> np.ndarray:
    flat = media.flatten()
    t, h, w = (flat.field(name).to_numpy(zero_copy_only=False).astype(np.int64) for name in ("t", "h", "w"))
    parents = pc.list_parent_indices(media).to_numpy(zero_copy_only=False)
    squares = np.zeros(len(media), dtype=np.int64)
    np.add.at(squares, parents, t * (h * w) ** 2)
    return squares


FEATURES = ("pack", "patch", "frame_square", "visual", "token", "token_square", "label")


def pack_features(sizes: ItemSizes) -> np.ndarray:
    """A pack's features in the order of FEATURES, float64 [7]: 1, patches, Σ patches² by frame, visual tokens, tokens, Σ tokens² by item,
    labelled tokens. `sizes` are those of its items; without items all are 0: such a pack costs nothing."""
    sums = (sizes.patches.sum(), sizes.frame_squares.sum(), sizes.visual.sum(), sizes.tokens.sum())
    squares = (sizes.tokens.astype(np.float64) ** 2).sum()
    return np.array([len(sizes.tokens) > 0, *sums, squares, sizes.labelled.sum()], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class CostModel:
    """What training costs, linear in a pack's features: floating-point operations predicted from the model's shape, or seconds fitted from
    measured packs (training.fit). The defaults are the operations of VideoLLaMA3-2B, everything trained, with checkpointing.

    pack         for each pack that has items.
    patch        for each patch through the encoder.        frame_square  for each patch² within a frame.
    visual       for each visual token through the projector.
    token        for each token in the language model.      token_square  for each token² within an item.
    label        for each labelled token (the head runs on those only).
    """

    pack: float = 0.0
    patch: float = 4 * 822_140_928.0 - 267_743_232.0 + 2 * 1_354_752.0
    frame_square: float = 4 * 124_416.0
    visual: float = 3 * 8_257_536.0
    token: float = 4 * 2_620_391_424.0 - 770_703_360.0
    token_square: float = 4 * 86_016.0
    label: float = 3 * 466_747_392.0
    unit: Unit = "flops"

    def of(self, sizes: ItemSizes) -> np.ndarray:
        """Cost of each item, float64, without the constant of its pack."""
        return (
            self.patch * sizes.patches
            + self.frame_square * sizes.frame_squares
            + self.visual * sizes.visual
            + self.token * sizes.tokens
            + self.token_square * sizes.tokens.astype(np.float64) ** 2
            + self.label * sizes.labelled
        )

    @property
    def vector(self) -> np.ndarray:
        """The coefficients in the order of FEATURES, float64 [7]: the cost of packs is their features @ vector."""
        return np.array([getattr(self, name) for name in FEATURES], dtype=np.float64)

    @staticmethod
    def from_vector(values: Sequence[float] | np.ndarray, unit: Unit) -> CostModel:
        return CostModel(**dict(zip(FEATURES, map(float, values), strict=True)), unit=unit)

    def by_part(self, features: np.ndarray) -> dict[str, float]:
        """Cost of `features` (float64 [7]; sums over packs will do) in the encoder, the projector, the language model, its head, and for
        the packs themselves."""
        pack, patch, frame_square, visual, token, token_square, label = (self.vector * features).tolist()
        return {"encoder": patch + frame_square, "projector": visual, "llm": token + token_square, "head": label, "pack": pack}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Any) -> CostModel:
        """Raises ConfigError for what is not a cost model: a name too many or too few, a coefficient that is negative or not finite."""
        if not isinstance(values, dict) or values.keys() != {*FEATURES, "unit"}:
            raise ConfigError(f"a cost model is an object with unit, {', '.join(FEATURES)}; `fovea costs` writes one")
        bad = [name for name in FEATURES if not _is_coefficient(values[name])]
        if bad:
            raise ConfigError(f"{', '.join(bad)}: a coefficient is a number from 0 on; measure again with `fovea costs`")
        if values["unit"] not in get_args(Unit):
            raise ConfigError(f"unit is {values['unit']!r}; a cost is in {' or '.join(get_args(Unit))}")
        return CostModel(**values)

    @staticmethod
    def load(path: str | Path, stage: int | None = None) -> CostModel:
        """From a file that `fovea costs` wrote: the coefficients measured in `stage`, else those over all measured stages.

        Raises ConfigError: no such file, not JSON, not a cost model.
        """
        where = Path(path)
        try:
            values = json.loads(where.read_text("utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"costs: no file {where}; write it with `fovea costs OUT --out {where}`, or leave `costs` out") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"costs: {where} cannot be read: {error}; write it again with `fovea costs`") from error
        if not isinstance(values, dict) or "model" not in values:
            raise ConfigError(f"costs: {where} has no cost model; write it again with `fovea costs`")
        stages = values.get("stages")
        chosen = stages.get(str(stage), values["model"]) if isinstance(stages, dict) else values["model"]
        try:
            return CostModel.from_json(chosen)
        except ConfigError as error:
            raise ConfigError(f"costs: {where}: {error}") from None


def _is_coefficient(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def add(first: CostModel, second: CostModel) -> CostModel:
    """Both costs, which are of one unit."""
    if first.unit != second.unit:
        raise ValueError(f"{first.unit} and {second.unit} do not add up")
    return CostModel.from_vector(first.vector + second.vector, first.unit)


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


def cost_model(
    config: Any, *, train_vision: bool = True, train_projector: bool = True, train_llm: bool = True, checkpointing: bool = True
) -> CostModel:
    """All operations that the hardware runs, recomputing included: what packs are weighed by until seconds are measured."""
    return model_flops(
        config, train_vision=train_vision, train_projector=train_projector, train_llm=train_llm, checkpointing=checkpointing
    ).hardware


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
