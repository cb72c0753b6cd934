"""Which visual tokens of a video are kept: DiffFP as published, the same against the last kept block, or as many as a budget allows.

A block is what one visual token is made of, merge × merge patches at one place of a frame; blocks come frame by frame, row by row, as after
merging. All methods keep the first frame whole and at least one block of every other frame (its first, where none differs enough), as
VideoLLaMA3 does (report §2.2), so that every frame has a token to stand behind its time. Differences are in whole grey levels of 255,
summed as integers: exact on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from shards.tokens import merged_tokens

Method = Literal["difffp", "anchored", "budget"]


def compress(
    pixels: np.ndarray, t: int, h: int, w: int, merge: int, method: Method, threshold_grey: float, token_budget: int | None = None
) -> np.ndarray:
    """bool (t·h/merge·w/merge): which merged tokens are kept.

    difffp    a block that differs from the same block of the previous *sampled* frame by more than `threshold_grey` in the mean. 0.05 is
              the paper's threshold, 0.1 on pixels normalised with std 0.5. Slow drift is lost: a dropped block may be arbitrarily far
              from the last kept one.
    anchored  a block that differs by more from the last *kept* one at its place, the one that stands for it where it is dropped: no dropped
              block is farther than the threshold from its stand-in.
    budget    difffp at the least threshold, not below `threshold_grey`, that keeps at most `token_budget` tokens. Where the first frame
              and one block of each other are more than that, those.

    pixels: patches (t·h·w, 3·patch²) in `preprocess.patchify` order, uint8 or normalised float (x/127.5 - 1; taken back to whole grey
    levels, so both give the same result).
    """
    return compressed(pixels, t, h, w, merge, method, threshold_grey, token_budget)[0]


def compressed(
    pixels: np.ndarray,
    t: int,
    h: int,
    w: int,
    merge: int,
    method: Method,
    threshold_grey: float,
    token_budget: int | None = None,
    report_thresholds: Sequence[float] = (),
) -> tuple[np.ndarray, list[float]]:
    """(the mask of `compress`, the share of tokens that the method keeps at each of `report_thresholds`; for `budget` that of difffp,
    whatever the budget)."""
    if method == "anchored":
        masks = {at: anchored_mask(pixels, t, h, w, merge, at) for at in dict.fromkeys((threshold_grey, *report_thresholds))}
        return masks[threshold_grey], [float(masks[at].mean()) for at in report_thresholds]
    differences = block_differences(pixels, t, h, w, merge)
    if method == "budget":
        threshold_grey = budget_threshold(differences, token_budget or 0, threshold_grey)
    return mask_at(differences, threshold_grey), [float(mask_at(differences, at).mean()) for at in report_thresholds]


def block_differences(pixels: np.ndarray, t: int, h: int, w: int, merge: int) -> np.ndarray:
    """float64 (t-1, h/merge·w/merge): mean absolute difference of each block to the same one of the previous frame, in grey levels."""
    frames = pixels.reshape(t, merged_tokens(1, h, w, merge), -1)
    differences = np.empty((t - 1, frames.shape[1]), dtype=np.float64)
    for index in range(1, t):
        differences[index - 1] = _apart(_grey(frames[index]), _grey(frames[index - 1]))
    return differences


def mask_at(differences: np.ndarray, threshold_grey: float) -> np.ndarray:
    """The mask of difffp from `block_differences`."""
    kept = differences > threshold_grey
    kept[~kept.any(axis=1), 0] = True
    return np.concatenate([np.ones((1, differences.shape[1]), dtype=bool), kept]).reshape(-1)


def budget_threshold(differences: np.ndarray, token_budget: int, least_grey: float) -> float:
    """The least threshold from `least_grey` on at which `mask_at` keeps at most `token_budget` tokens; at worst the one at which every
    later frame keeps one."""
    steps = np.unique(differences[differences > least_grey])  # the mask changes at these alone
    if not len(steps) or mask_at(differences, least_grey).sum() <= token_budget:
        return least_grey
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if mask_at(differences, steps[middle]).sum() <= token_budget:
            high = middle
        else:
            low = middle + 1
    return float(steps[low])


def anchored_mask(pixels: np.ndarray, t: int, h: int, w: int, merge: int, threshold_grey: float) -> np.ndarray:
    """The mask of `anchored` (see `compress`)."""
    frames = pixels.reshape(t, merged_tokens(1, h, w, merge), -1)
    kept = np.ones((t, frames.shape[1]), dtype=bool)
    anchor = _grey(frames[0])
    for index in range(1, t):
        frame = _grey(frames[index])
        kept[index] = _apart(frame, anchor) > threshold_grey
        if not kept[index].any():
            kept[index, 0] = True
        anchor[kept[index]] = frame[kept[index]]
    return kept.reshape(-1)


def stand_in_errors(pixels: np.ndarray, t: int, h: int, w: int, merge: int, mask: np.ndarray) -> np.ndarray:
    """float64 (t, h/merge·w/merge): how far each block is from the last kept one at its place, in grey levels; 0 for kept ones."""
    frames = pixels.reshape(t, merged_tokens(1, h, w, merge), -1)
    kept = mask.reshape(t, -1)
    errors = np.zeros(kept.shape, dtype=np.float64)
    anchor = _grey(frames[0])
    for index in range(1, t):
        frame = _grey(frames[index])
        anchor[kept[index]] = frame[kept[index]]
        errors[index] = _apart(frame, anchor)
    return errors


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    step = np.abs(first - second)
    apart: np.ndarray = step.sum(axis=-1, dtype=np.int64) / step.shape[-1]
    return apart


def _grey(values: np.ndarray) -> np.ndarray:
    if np.issubdtype(values.dtype, np.floating):
        values = np.rint((values + 1.0) * 127.5)
    return values.astype(np.int16)
