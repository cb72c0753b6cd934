"""The encoder and the projector over a pack: once each, over what training.encoder_rows has chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from training.attention import frame_borders
from training.encoder_rows import EncoderRows, encoder_rows
from training.savings import EXACT

if TYPE_CHECKING:
    from training.collate import PackBatch


def visual_features(model: nn.Module, batch: PackBatch) -> dict[str, Any]:
    """Features of the visual tokens that a pack's language model sees, images' and videos', as VideoLlama3Model takes them
    (`mm_encoder_outputs`): already without what compression drops."""
    whole: Any = model
    rows = batch.rows
    projected = whole.model.projector(_encoded(whole, batch, rows))
    placed = projected if rows.placed is None else projected.index_select(0, rows.placed.to(projected.device, non_blocking=True))
    outputs = {}
    if batch.pixel_values is not None:
        outputs["image"] = SimpleNamespace(pooler_output=[placed[: rows.images]])
    if batch.pixel_values_videos is not None:
        outputs["video"] = SimpleNamespace(pooler_output=[placed[rows.images :]])
    return outputs


@torch.no_grad()
def divergence(model: nn.Module, batch: PackBatch) -> torch.Tensor:
    """How far the features of a pack's kept video tokens, before the projector, are from those of the encoder over whole frames.

    float64 [4] on the model's device: Σ‖difference‖², Σ‖whole‖², Σ cosine, tokens; zeros without any. Two passes of the encoder, no
    gradients."""
    whole: Any = model
    rows, unpruned = batch.rows, encoder_rows(*media_of(batch), EXACT)
    near, far = (_kept_tokens(_encoded(whole, batch, some), some)[rows.images :].double() for some in (rows, unpruned))
    cosines = nn.functional.cosine_similarity(near, far, dim=1)
    values = [(near - far).square().sum(), far.square().sum(), cosines.sum(), cosines.new_tensor(len(cosines))]
    return torch.stack(values)


def media_of(batch: PackBatch) -> tuple[list[Any], list[tuple[int, int, int, int]], list[Any], int]:
    """What `encoder_rows` takes, of a batch: (pixels, sizes, kept, number of images)."""
    kinds = (
        (batch.pixel_values, batch.image_grid_thw, batch.image_merge_sizes),
        (batch.pixel_values_videos, batch.video_grid_thw, batch.video_merge_sizes),
    )
    pixels: list[Any] = []
    sizes: list[tuple[int, int, int, int]] = []
    for values, grids, merges in kinds:
        if values is None or grids is None or merges is None:
            continue
        sizes += [(t, h, w, m) for (t, h, w), m in zip(grids.tolist(), merges.tolist(), strict=True)]
        pixels += [piece.numpy() for piece in values.split(grids.prod(dim=1).tolist())]
    images = 0 if batch.image_grid_thw is None else len(batch.image_grid_thw)
    kept: list[Any] = [None] * images
    if batch.video_compression_mask is not None:
        tokens = [t * h * w // m**2 for t, h, w, m in sizes[images:]]
        kept += [piece.numpy() for piece in batch.video_compression_mask.split(tokens)]
    return pixels, sizes, kept, images


def _encoded(model: Any, batch: PackBatch, rows: EncoderRows) -> torch.Tensor:
    """The encoder's tokens that pass the projector: [rows, size of the encoder]."""
    first = next(model.parameters())
    encoder = model.model.vision_model
    present = [p for p in (batch.pixel_values, batch.pixel_values_videos) if p is not None]
    if rows.patches is not None:
        present = [_chosen(present, rows.patches)]
    # Grids and merge sizes stay on the host: the model reads them one number at a time.
    moved = [p.to(first.device, non_blocking=True) for p in present]
    tokens = encoder(
        (moved[0] if len(moved) == 1 else torch.cat(moved)).to(first.dtype),
        rows.grids,
        rows.merges,
        return_dict=True,
        position_ids=rows.positions.to(first.device, non_blocking=True),
        **frame_borders(rows.lengths, encoder.config._attn_implementation, first.device),
    ).last_hidden_state
    return tokens if rows.projected is None else tokens.index_select(0, rows.projected.to(first.device, non_blocking=True))


def _chosen(pixels: list[torch.Tensor], patches: torch.Tensor) -> torch.Tensor:
    """These rows of the pixels of both kinds, one kind after the other; on the host, so that what is not encoded is not moved."""
    return (pixels[0] if len(pixels) == 1 else torch.cat(pixels)).index_select(0, patches)


def _kept_tokens(tokens: torch.Tensor, rows: EncoderRows) -> torch.Tensor:
    return tokens if rows.placed is None else tokens.index_select(0, rows.placed.to(tokens.device))
