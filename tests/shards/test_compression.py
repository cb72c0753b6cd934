"""Kept tokens: DiffFP against transformers' own on every real clip; what each method promises where blocks drift and stand still."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

from shards.compression import Method, compress, compressed, stand_in_errors
from shards.media import Limits
from shards.preprocess import frame_grid, normalise, patchify
from shards.profile import Profile
from shards.tokens import kept_by_frame, merged_tokens
from shards.video import sample_frames

THRESHOLDS = (0.05, 0.5, 2.0, 4.0)

PROFILE = Profile("test", "-", max_visual_tokens=600)


def reference(pixels: np.ndarray, grid: tuple[int, int, int], merge: int, threshold: float) -> np.ndarray:
    mask = VideoLlama3VideoProcessor()._get_compression_mask(
        torch.from_numpy(pixels), torch.tensor([grid]), torch.tensor([merge]), threshold=threshold
    )
    return mask.numpy()


@pytest.fixture(scope="module")
def clips(data_dir: Path) -> dict[str, tuple[np.ndarray, tuple[int, int, int]]]:
    """Patches (uint8) and grid of every real clip, at most 24 frames of it at four a second."""

    def target(height: int, width: int, frames: int) -> tuple[int, int]:
        h, w = frame_grid(height, width, frames, PROFILE, frames)
        return h * 14, w * 14

    found = {}
    for path in sorted((data_dir / "video").iterdir()):
        frames = sample_frames(path.read_bytes(), 4.0, 24, Limits(), target).pixels
        found[path.name] = patchify(frames, 14, 2), (len(frames), frames.shape[1] // 14, frames.shape[2] // 14)
    return found


def test_masks_equal_transformers_on_every_real_clip(clips: dict[str, tuple[np.ndarray, tuple[int, int, int]]]) -> None:
    assert len(clips) > 20
    for name, (grey, grid) in clips.items():
        for threshold in THRESHOLDS:
            mask = compress(grey, *grid, 2, "difffp", threshold)
            np.testing.assert_array_equal(mask, compress(normalise(grey), *grid, 2, "difffp", threshold), name)
            np.testing.assert_array_equal(mask, reference(normalise(grey), grid, 2, threshold * 2), name)


def test_no_stand_in_of_a_real_clip_is_farther_than_the_anchored_threshold(
    clips: dict[str, tuple[np.ndarray, tuple[int, int, int]]],
) -> None:
    farther = 0
    for name, (grey, grid) in clips.items():
        for threshold in THRESHOLDS:
            mask, (share,) = compressed(grey, *grid, 2, "anchored", threshold, report_thresholds=(threshold,))
            assert stand_in_errors(grey, *grid, 2, mask).max() <= threshold, name
            assert share == mask.mean()
            farther += stand_in_errors(grey, *grid, 2, compress(grey, *grid, 2, "difffp", threshold)).max() > threshold
    assert farther > 5, "what the published method loses to drift"


@settings(deadline=None, derandomize=True)
@given(
    t=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    merge=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_masks_equal_transformers_where_blocks_stand_still(t: int, rows: int, columns: int, merge: int, seed: int) -> None:
    """Blocks stand still, change by one grey level in a few places (about the paper's threshold), or jump."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 256, (1, rows * columns, merge**2 * 588), dtype=np.uint8), t, axis=0)
    for index in range(1, t):
        frames[index] = frames[index - 1]
        for block in range(rows * columns):
            places = rng.choice([0, 1, 20, 29, 30, 31, 400]) * merge**2
            frames[index, block, :places] ^= 1
    grid = (t, rows * merge, columns * merge)
    pixels = frames.reshape(-1, 588)
    mask = compress(pixels, *grid, merge, "difffp", 0.05)
    assert mask.shape == (merged_tokens(*grid, merge),)
    np.testing.assert_array_equal(mask, reference(normalise(pixels), grid, merge, 0.1))
    by_frame = kept_by_frame(mask, *grid, merge)
    assert by_frame[0] == rows * columns
    assert min(by_frame) >= 1
    assert sum(by_frame) == mask.sum()


@pytest.mark.parametrize("method", ["difffp", "anchored"])
def test_a_still_clip_keeps_its_first_frame_and_one_block_of_each_other(method: Method) -> None:
    pixels = np.full((4 * 6 * 4, 588), 77, dtype=np.uint8)
    mask = compress(pixels, 4, 6, 4, 2, method, 0.05).reshape(4, 6)
    assert mask[0].all()
    assert mask[1:, 0].all()
    assert not mask[1:, 1:].any()


@st.composite
def moving(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """(pixels, frames, blocks) of blocks that drift by a few grey levels a frame, jump, or stand still; merge 1, a row of blocks."""
    t, blocks = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = np.empty((t, blocks, 588), dtype=np.uint8)
    frames[0] = rng.integers(0, 256, (blocks, 588))
    for index in range(1, t):
        step = rng.choice([0, 0, 1, 2, 40], (blocks, 1)) * (rng.random((blocks, 588)) < rng.choice([0.1, 0.6, 1.0], (blocks, 1)))
        frames[index] = np.clip(frames[index - 1].astype(int) + step, 0, 255)
    return frames.reshape(-1, 588), t, blocks


@settings(deadline=None, derandomize=True)
@given(clip=moving(), threshold=st.sampled_from([0.05, 0.5, 1.0, 3.0]))
def test_drift_is_bounded_where_anchored(clip: tuple[np.ndarray, int, int], threshold: float) -> None:
    pixels, t, blocks = clip
    mask = compress(pixels, t, 1, blocks, 1, "anchored", threshold)
    assert stand_in_errors(pixels, t, 1, blocks, 1, mask).max() <= threshold
    kept = mask.reshape(t, blocks)
    assert kept[0].all()
    assert kept.any(axis=1).all()
    for index, block in zip(*np.nonzero(kept[1:, 1:]), strict=True):  # nothing is kept that need not be; a first block may be
        before = np.flatnonzero(kept[: index + 1, block + 1])[-1]
        frames = pixels.reshape(t, blocks, -1).astype(int)
        assert np.abs(frames[index + 1, block + 1] - frames[before, block + 1]).mean() > threshold


@settings(deadline=None, derandomize=True)
@given(clip=moving(), budget=st.integers(1, 50), least=st.sampled_from([0.05, 1.0]))
def test_a_budget_is_met_by_the_least_threshold_that_does(clip: tuple[np.ndarray, int, int], budget: int, least: float) -> None:
    pixels, t, blocks = clip
    found = compress(pixels, t, 1, blocks, 1, "budget", least, budget)
    assert found.sum() <= max(budget, blocks + t - 1)
    free = compress(pixels, t, 1, blocks, 1, "difffp", least)
    assert found.sum() <= free.sum()
    if free.sum() <= budget:
        assert (found == free).all()
        return
    # the thresholds at which anything changes, and what each keeps
    frames = pixels.reshape(t, blocks, -1).astype(int)
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=-1)
    lower = sorted({least, *steps[steps > least].tolist()})
    kept = [int(compress(pixels, t, 1, blocks, 1, "difffp", at).sum()) for at in lower]
    assert found.sum() == max([n for n in kept if n <= budget], default=kept[-1])
