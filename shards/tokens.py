"""Visual tokens: how many, and which of a video's are kept (DiffFP: VideoLLaMA3 report §2.2, as transformers' processor computes it).

Order of tokens everywhere: frame by frame, row by row, as after merging; so a mask lines up with the encoder's merged output.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.errors import ShardError


def merged_tokens(t: int, h: int, w: int, merge: int) -> int:
    """Visual tokens of t frames of h × w patches, merge × merge patches to one."""
    return t * (h // merge) * (w // merge)


def block_differences(pixels: np.ndarray, t: int, h: int, w: int, merge: int) -> np.ndarray:
    """float64 (t-1, h/merge·w/merge): mean absolute difference of each block to the same one of the previous frame, in grey levels of 255.

    pixels: patches (t·h·w, 3·patch²) in `preprocess.patchify` order, uint8 or normalised float (x/127.5 - 1; taken back to whole grey
    levels, so both give the same result). The sums are integers: exact on every machine.
    """
    frames = pixels.reshape(t, merged_tokens(1, h, w, merge), -1)
    differences = np.empty((t - 1, frames.shape[1]), dtype=np.float64)
    for index in range(1, t):
        step = np.abs(_grey(frames[index]) - _grey(frames[index - 1]))
        differences[index - 1] = step.sum(axis=-1, dtype=np.int64) / step.shape[-1]
    return differences


def diffp_mask(pixels: np.ndarray, t: int, h: int, w: int, merge: int, threshold_grey: float) -> np.ndarray:
    """bool (t·h/merge·w/merge): which merged tokens are kept.

    The first frame is kept whole; a later block where it differs from the same block of the previous sampled frame by more than
    `threshold_grey` grey levels in the mean; a frame that keeps none keeps its first block. 0.05 is the paper's threshold, 0.1 on pixels
    normalised with std 0.5. `pixels` as in `block_differences`.
    """
    return mask_at(block_differences(pixels, t, h, w, merge), threshold_grey)


def mask_at(differences: np.ndarray, threshold_grey: float) -> np.ndarray:
    """The mask of `diffp_mask` from `block_differences`."""
    kept = differences > threshold_grey
    kept[~kept.any(axis=1), 0] = True
    return np.concatenate([np.ones((1, differences.shape[1]), dtype=bool), kept]).reshape(-1)


def keep_ratios(pixels: np.ndarray, t: int, h: int, w: int, merge: int, thresholds_grey: Sequence[float]) -> list[float]:
    """Share of kept tokens at each threshold."""
    return ratios_at(block_differences(pixels, t, h, w, merge), thresholds_grey)


def ratios_at(differences: np.ndarray, thresholds_grey: Sequence[float]) -> list[float]:
    """The shares of `keep_ratios` from `block_differences`."""
    return [float(mask_at(differences, threshold).mean()) for threshold in thresholds_grey]


def pack_mask(mask: np.ndarray) -> bytes:
    """bool (n) to ceil(n/8) bytes: token i is bit i % 8 (from the least) of byte i // 8."""
    return np.packbits(mask.astype(bool), bitorder="little").tobytes()


def unpack_mask(packed: bytes, tokens: int) -> np.ndarray:
    """Inverse of `pack_mask`: bool (tokens). Raises ShardError for a wrong length or bits set beyond the end."""
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little").astype(bool)
    if len(packed) != (tokens + 7) // 8 or bits[tokens:].any():
        raise ShardError(f"a compression mask of {len(packed)} bytes does not fit {tokens} visual tokens")
    return bits[:tokens]


def kept_by_frame(mask: np.ndarray | None, t: int, h: int, w: int, merge: int) -> list[int]:
    """Kept tokens of each frame; a mask of None keeps all."""
    each = merged_tokens(1, h, w, merge)
    return [each] * t if mask is None else [int(n) for n in mask.reshape(t, each).sum(axis=1)]


def _grey(values: np.ndarray) -> np.ndarray:
    if np.issubdtype(values.dtype, np.floating):
        values = np.rint((values + 1.0) * 127.5)
    return values.astype(np.int16)
