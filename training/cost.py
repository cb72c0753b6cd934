"""What an item costs, by arithmetic on its index row: tokens, patches, and predicted floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ProfileError


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


@dataclass(frozen=True, slots=True)
class CostModel:
    """Predicted floating-point operations of training on one item; the defaults are VideoLLaMA3-2B with everything trained.

    patch        for each patch through the encoder.        frame_square  for each patch² within a frame.
    visual       for each visual token through the projector.
    token        for each token in the language model.      token_square  for each token² within an item.
    label        for each labelled token (the head runs on those only).
    """

    patch: float = 4 * 823_495_680.0
    frame_square: float = 4 * 124_416.0
    visual: float = 3 * 8_257_536.0
    token: float = 4 * 2_620_391_424.0
    token_square: float = 4 * 86_016.0
    label: float = 3 * 466_747_392.0

    def of(self, sizes: ItemSizes) -> np.ndarray:
        """float64 operations of each item."""
        return (
            self.patch * sizes.patches
            + self.frame_square * sizes.frame_squares
            + self.visual * sizes.visual
            + self.token * sizes.tokens
            + self.token_square * sizes.tokens.astype(np.float64) ** 2
            + self.label * sizes.labelled
        )


def cost_model(config: Any, *, train_vision: bool = True, train_llm: bool = True, checkpointing: bool = True) -> CostModel:
    """Coefficients from a model's shape: `config` is transformers' VideoLlama3Config (any object with those fields).

    Two operations for each weight and row, four for each pair of positions and channel in attention, half of the pairs where it is causal
    (Kaplan et al. 2020, Megatron-LM's appendix). Backward costs as much again for the gradient of the inputs, and once more for that of
    trained weights; activation checkpointing repeats the layers' forward. Under a frozen language model gradients still pass through it.
    """
    vision, text = config.vision_config, config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    patch_dim = vision.num_channels * vision.patch_size**2
    per_patch = vision.num_hidden_layers * 2 * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    per_token = text.num_hidden_layers * 2 * text.hidden_size * (2 * queries + 2 * keys + 3 * text.intermediate_size)
    layers = 1.0 if checkpointing else 0.0
    encoder = (3.0 + layers) if train_vision else 1.0
    llm = (3.0 if train_llm else 2.0) + layers
    return CostModel(
        patch=encoder * (per_patch + 2 * patch_dim * vision.hidden_size),
        frame_square=encoder * vision.num_hidden_layers * 4 * vision.hidden_size,
        visual=3.0 * 2 * text.hidden_size * (vision.hidden_size + text.hidden_size),
        token=llm * per_token,
        token_square=llm * text.num_hidden_layers * 2 * queries,
        label=(3.0 if train_llm else 2.0) * 2 * text.hidden_size * text.vocab_size,
    )
