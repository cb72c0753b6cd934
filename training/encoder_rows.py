"""Which patches of a pack pass the encoder, and where what it makes of them goes: settled on the host, before anything is on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch

from shards.repeats import first_equal
from training.savings import Savings

Size = tuple[int, int, int, int]  # of a medium: frames, rows and columns of patches, merge


@dataclass(frozen=True, slots=True)
class EncoderRows:
    """Of a pack's media, images before videos; all int64, on the host.

    patches    rows of the pack's patches that pass the encoder, in its order; None: all of them.
    positions  [patches, 2]: row and column of each in its frame, also where others of that frame are left out.
    lengths    patches of each frame that passes: they see each other alone.
    grids      [N, 3], merges [N]: by which the encoder merges patches to tokens. Those of pruned frames lie in one row of blocks: a token
               is made of its own block whatever lies beside it.
    projected  rows of the encoder's tokens that pass the projector; None: all.
    placed     for each visual token of the language model, its row of what was projected; None: they are those, in order.
    images     how many of these tokens are images'.
    """

    patches: torch.Tensor | None
    positions: torch.Tensor
    lengths: tuple[int, ...]
    grids: torch.Tensor
    merges: torch.Tensor
    projected: torch.Tensor | None
    placed: torch.Tensor | None
    images: int

    @property
    def projector_rows(self) -> int:
        tokens = int((self.grids.prod(dim=1) // self.merges**2).sum())
        return tokens if self.projected is None else len(self.projected)


def encoder_rows(
    pixels: Sequence[np.ndarray], sizes: Sequence[Size], kept: Sequence[np.ndarray | None], images: int, savings: Savings
) -> EncoderRows:
    """pixels: of each medium, [t·h·w, 3·patch²]. kept: bool [t·(h/merge)·(w/merge)], None keeps all. images: how many of the media are.

    Where nothing is kept of all media, one frame passes whole and one token is projected, for nobody: a rank whose encoder did not run
    would stop the others. Equal frames are one only if, under `prune`, they keep the same blocks.
    """
    frames = _frames(sizes, kept)
    whole = [np.ones(len(f.kept), dtype=bool) for f in frames]
    seen = [f.kept for f in frames] if savings.prune else whole
    if not any(blocks.any() for blocks in seen):
        seen = [whole[0], *seen[1:]]
    first = _first(pixels, frames, seen, savings)
    chosen = [n for n in np.unique(first).tolist() if seen[n].any()]
    pruned = any(not seen[n].all() for n in chosen)
    if pruned:  # like to like: pieces of one length are attended to at once
        chosen.sort(key=lambda n: (frames[n].merge, int(seen[n].sum())))
    tokens = np.array([int(seen[n].sum()) for n in chosen])
    start = dict(zip(chosen, (np.cumsum(tokens) - tokens).tolist(), strict=True))
    wanted = [
        start[first[n]] + (np.cumsum(seen[n]) - 1)[f.kept] if f.kept.any() else np.zeros(0, dtype=np.int64) for n, f in enumerate(frames)
    ]
    projected, placed = _projected(np.concatenate(wanted), int(tokens.sum()), savings)
    grids, merges = (_blocks_in_a_row if pruned else _grids)(frames, chosen, tokens.tolist())
    return EncoderRows(
        patches=None if len(chosen) == len(frames) and not pruned else _patches(frames, chosen, seen),
        positions=torch.from_numpy(np.concatenate([_positions(*frames[n].grid)[_rows(frames[n], seen[n])] for n in chosen])),
        lengths=tuple(int(count) * frames[n].merge ** 2 for n, count in zip(chosen, tokens, strict=True)),
        grids=torch.tensor(grids),
        merges=torch.tensor(merges),
        projected=projected,
        placed=placed,
        images=sum(len(rows) for rows, f in zip(wanted, frames, strict=True) if f.medium < images),
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """One frame: its medium, its number in it, its first patch in the pack, its size in patches, and which of its blocks are kept."""

    medium: int
    number: int
    start: int
    h: int
    w: int
    merge: int
    kept: np.ndarray

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.h, self.w, self.merge


def _frames(sizes: Sequence[Size], kept: Sequence[np.ndarray | None]) -> list[_Frame]:
    found, start = [], 0
    for medium, ((t, h, w, merge), mask) in enumerate(zip(sizes, kept, strict=True)):
        blocks = h * w // merge**2
        rows = np.ones((t, blocks), dtype=bool) if mask is None else mask.reshape(t, blocks)
        found += [_Frame(medium, n, start + n * h * w, h, w, merge, rows[n]) for n in range(t)]
        start += t * h * w
    return found


def _first(pixels: Sequence[np.ndarray], frames: Sequence[_Frame], seen: Sequence[np.ndarray], savings: Savings) -> np.ndarray:
    if not savings.reuse:
        return np.arange(len(frames))
    patches = [pixels[f.medium][f.number * f.h * f.w : (f.number + 1) * f.h * f.w] for f in frames]
    return first_equal(patches, [(*f.grid, seen[n].tobytes()) for n, f in enumerate(frames)])


def _projected(wanted: np.ndarray, tokens: int, savings: Savings) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(rows of `tokens` to project, row of them for each of `wanted`)."""
    projected: torch.Tensor | None = None
    if savings.mask_first:
        rows, wanted = np.unique(wanted, return_inverse=True)
        if len(rows) < tokens:
            tokens, projected = max(1, len(rows)), torch.from_numpy(rows if len(rows) else np.zeros(1, dtype=np.int64))
    straight = len(wanted) == tokens and bool((wanted == np.arange(tokens)).all())
    return projected, None if straight else torch.from_numpy(wanted)


def _grids(frames: Sequence[_Frame], chosen: Sequence[int], tokens: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    runs = [(grid, len(list(run))) for grid, run in groupby(frames[n].grid for n in chosen)]
    return [[count, h, w] for (h, w, _), count in runs], [merge for (_, _, merge), _ in runs]


def _blocks_in_a_row(frames: Sequence[_Frame], chosen: Sequence[int], tokens: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    pairs = [(frames[n].merge, count) for n, count in zip(chosen, tokens, strict=True)]
    runs = [(merge, sum(count for _, count in run)) for merge, run in groupby(pairs, key=lambda pair: pair[0])]
    return [[1, merge, merge * count] for merge, count in runs], [merge for merge, _ in runs]


def _rows(frame: _Frame, seen: np.ndarray) -> np.ndarray:
    """Numbers in the frame of the patches of these blocks."""
    each = frame.merge**2
    rows: np.ndarray = (np.flatnonzero(seen)[:, None] * each + np.arange(each)).reshape(-1)
    return rows


def _patches(frames: Sequence[_Frame], chosen: Sequence[int], seen: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([frames[n].start + _rows(frames[n], seen[n]) for n in chosen]))


@lru_cache(maxsize=256)
def _positions(h: int, w: int, merge: int) -> np.ndarray:
    """int64 [h·w, 2], patches in the order of shards.preprocess.patchify: those of a block together."""
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
    blocks = grid.reshape(h // merge, merge, w // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(blocks).reshape(-1, 2)
