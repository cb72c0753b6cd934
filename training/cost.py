"""What items and packs cost, by arithmetic on index rows: tokens, patches, and a price for each, in operations or in seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ConfigError, ProfileError
from training.savings import EXACT, Savings, encoded

Unit = Literal["flops", "seconds"]


@dataclass(frozen=True, slots=True)
class ItemSizes:
    """One int64 value for each item.

    tokens         in the language model: text and the visual tokens that are kept.
    patches        that pass the encoder.
    visual         visual tokens after merging, before compression.
    kept           visual tokens in the language model.
    labelled       tokens with a label.
    frame_squares  Σ over images and frames that pass the encoder of patches²: attention in it is within a frame.
    projected      visual tokens that pass the projector.
    """

    tokens: np.ndarray
    patches: np.ndarray
    visual: np.ndarray
    kept: np.ndarray
    labelled: np.ndarray
    frame_squares: np.ndarray
    projected: np.ndarray

    def take(self, rows: np.ndarray) -> ItemSizes:
        """The sizes of these rows (int64 positions), in this order."""
        return ItemSizes(*(getattr(self, name)[rows] for name in ItemSizes.__slots__))

    @staticmethod
    def joined(parts: Sequence[ItemSizes]) -> ItemSizes:
        """One after another."""
        empty = np.zeros(0, dtype=np.int64)
        return ItemSizes(*(np.concatenate([empty, *(getattr(part, name) for part in parts)]) for name in ItemSizes.__slots__))


def item_sizes(items: pa.Table, profile: str, compress: bool, savings: Savings = EXACT) -> ItemSizes:
    """Sizes of index rows under a measure profile, of what is really encoded. Raises ProfileError when the dataset was not measured under
    it."""
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
    seen = encoded(column.field("media"), kept, compress, savings)
    return ItemSizes(
        numbers("text_tokens") + used, seen.patches, visual, used, numbers("labelled_tokens"), seen.frame_squares, seen.projected
    )


FEATURES = ("pack", "patch", "frame_square", "visual", "token", "token_square", "label")


def pack_features(sizes: ItemSizes) -> np.ndarray:
    """A pack's features in the order of FEATURES, float64 [7]: 1, patches, Σ patches² by frame, projected tokens, tokens, Σ tokens² by
    item, labelled tokens. `sizes` are those of its items; without items all are 0: such a pack costs nothing."""
    sums = (sizes.patches.sum(), sizes.frame_squares.sum(), sizes.projected.sum(), sizes.tokens.sum())
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
            + self.visual * sizes.projected
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
