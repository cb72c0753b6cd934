"""A pack's items as the tensors that transformers' VideoLlama3 takes: one row of tokens, no padding, nothing shared between items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from training.encoder_rows import EncoderRows, encoder_rows
from training.savings import EXACT, Savings

IGNORED = -100  # label of what is not learned

# A pack without visual input would leave encoder and projector out of one rank's graph: it gets one 2×2 block of a video, all of it masked.
_DUMMY_SIDE = 2


@dataclass(frozen=True, slots=True)
class ItemName:
    """Which item stands in a pack; `repeat` counts its appearances in the stage, from 0; `source` is the recipe's name of its source."""

    uid: str
    task: str
    n: int
    repeat: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class LoadedMedium:
    """One medium part of an item, ready for the encoder.

    pixels  float32 [t·h·w, 3·patch²], in the patch order of shards.preprocess.   t, h, w  frames and patches.
    keep    bool [t·(h/merge)·(w/merge)]: visual tokens of a video that stay; None keeps all (always for an image).
    """

    video: bool
    t: int
    h: int
    w: int
    merge: int
    pixels: np.ndarray
    keep: np.ndarray | None = None

    @property
    def visual(self) -> int:
        """Visual tokens after merging, before compression."""
        return self.t * (self.h // self.merge) * (self.w // self.merge)

    @property
    def kept(self) -> int:
        return self.visual if self.keep is None else int(self.keep.sum())


@dataclass(frozen=True, slots=True)
class LoadedItem:
    """An item with its tokens and media. input_ids, labels: int64 [length], a placeholder for each kept visual token, in media's order."""

    name: ItemName
    input_ids: np.ndarray
    labels: np.ndarray
    media: tuple[LoadedMedium, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """An item that left its pack because it could not be read or decoded. kind: "damaged", or the kind of its shards.errors.SampleError."""

    name: ItemName
    reason: str
    kind: str = "damaged"


@dataclass(frozen=True, slots=True)
class PackCounts:
    """What a pack holds, without the dummy: tokens and labelled ones; patches that pass the encoder, of all that its media have; visual
    tokens after merging, and those kept."""

    tokens: int
    labelled: int
    patches: int
    all_patches: int
    visual: int
    kept: int


@dataclass(frozen=True, slots=True)
class PackBatch:
    """Arguments of `VideoLlama3ForConditionalGeneration.forward`, and on the host what they are made of.

    input_ids, position_ids, labels  int64 [1, L]; positions restart at 0 with each item, labels are the tokens themselves (the model shifts
        them) and −100 elsewhere, also at each item's first token, which no earlier token of its own predicts.
    pixel_values         float32 [patches, 3·patch²], image_grid_thw int64 [N, 3], image_merge_sizes int64 [N]; None without images.
    pixel_values_videos  and video_grid_thw, video_merge_sizes likewise; video_compression_mask bool [visual tokens of all videos].

    Features are scattered over the placeholders in the order of the media, images and videos apart; the mask is applied to the videos'
    features before. There is no attention mask: with one, or with a cache, items of a pack would see each other.
    rows: what of the media passes our encoder (training.encode), which transformers' own forward knows nothing of.
    A pack without items (planned so, or all skipped) is one token without a label.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None
    image_merge_sizes: torch.Tensor | None
    pixel_values_videos: torch.Tensor | None
    video_grid_thw: torch.Tensor | None
    video_merge_sizes: torch.Tensor | None
    video_compression_mask: torch.Tensor | None
    rows: EncoderRows
    items: tuple[ItemName, ...]
    counts: PackCounts
    skipped: tuple[Skipped, ...] = ()

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """The tensors by their names in `forward`, without labels and without what is absent."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("labels", "rows", "items", "counts", "skipped")}
        return {name: value for name, value in values.items() if value is not None}


def collate(items: Sequence[LoadedItem], patch: int, skipped: Sequence[Skipped] = (), savings: Savings = EXACT) -> PackBatch:
    """The batch of a pack, in the order of `items`; `patch` is the profile's patch side in pixels (for the dummy).

    Raises ValueError for a medium whose pixels or mask do not fit its grid: then index and preprocessing disagree, which is a bug.
    """
    for item in items:
        for medium in item.media:
            _check(item, medium)
    media = [medium for item in items for medium in item.media]
    images, videos = [m for m in media if not m.video], [m for m in media if m.video]
    seen = [*images, *videos] or [_dummy(3 * patch**2)]
    rows = encoder_rows([m.pixels for m in seen], [(m.t, m.h, m.w, m.merge) for m in seen], [m.keep for m in seen], len(images), savings)
    ids = [torch.from_numpy(np.asarray(item.input_ids, dtype=np.int64)) for item in items] or [torch.zeros(1, dtype=torch.int64)]
    labels = [_without_first(torch.from_numpy(np.array(item.labels, dtype=np.int64))) for item in items] or [torch.tensor([IGNORED])]
    pixels, grids, merges, _ = _visual(images)
    frames, video_grids, video_merges, mask = _visual(videos if media else seen)
    all_labels = torch.cat(labels)[None]
    return PackBatch(
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat([torch.arange(len(row)) for row in ids])[None],
        labels=all_labels,
        pixel_values=pixels,
        image_grid_thw=grids,
        image_merge_sizes=merges,
        pixel_values_videos=frames,
        video_grid_thw=video_grids,
        video_merge_sizes=video_merges,
        video_compression_mask=mask,
        rows=rows,
        items=tuple(item.name for item in items),
        counts=PackCounts(
            tokens=sum(len(item.input_ids) for item in items),
            labelled=int((all_labels != IGNORED).sum()),
            patches=sum(rows.lengths) if media else 0,
            all_patches=sum(m.t * m.h * m.w for m in media),
            visual=sum(m.visual for m in media),
            kept=sum(m.kept for m in media),
        ),
        skipped=tuple(skipped),
    )


def _dummy(patch_dim: int) -> LoadedMedium:
    """A video of one 2×2 block of grey whose only token is masked: encoder and projector run, the model never sees it.

    Their gradients are then zero, not missing, which is what ranks have to agree on. `patch_dim` is 3·patch².
    """
    grey = np.zeros((_DUMMY_SIDE**2, patch_dim), dtype=np.float32)
    return LoadedMedium(True, 1, _DUMMY_SIDE, _DUMMY_SIDE, _DUMMY_SIDE, grey, np.zeros(1, dtype=bool))


def _without_first(labels: torch.Tensor) -> torch.Tensor:
    labels[:1] = IGNORED
    return labels


def _check(item: LoadedItem, medium: LoadedMedium) -> None:
    fits = medium.keep is None or (medium.video and len(medium.keep) == medium.visual)
    if len(medium.pixels) != medium.t * medium.h * medium.w or not fits:
        raise ValueError(
            f"{item.name}: {len(medium.pixels)} patches and a mask of {0 if medium.keep is None else len(medium.keep)} for a "
            f"{'video' if medium.video else 'image'} of {medium.t}×{medium.h}×{medium.w} merged by {medium.merge}"
        )


def _visual(
    media: Sequence[LoadedMedium],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(pixels, grids, merge sizes, mask) of media of one kind."""
    if not media:
        return None, None, None, None
    masks = [np.ones(m.visual, dtype=bool) if m.keep is None else m.keep for m in media]
    return (
        torch.from_numpy(np.concatenate([m.pixels for m in media])),
        torch.tensor([[m.t, m.h, m.w] for m in media]),
        torch.tensor([m.merge for m in media]),
        torch.from_numpy(np.concatenate(masks)),
    )
