"""The one preprocessing, held against transformers' VideoLlama3 processors on real pictures, and its grids on every shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil, smart_resize
from transformers.models.video_llama_3.image_processing_video_llama_3 import VideoLlama3ImageProcessor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

from shards.image import decode_image, image_header
from shards.media import Limits
from shards.preprocess import MediumSize, frame_grid, image_grid, medium_size, preprocess_frames, preprocess_image
from shards.profile import Profile
from shards.video import sample_frames

LIMITS = Limits()


def profile(merge: int = 2, most: int = 600, least: int = 16) -> Profile:
    return Profile("test", "-", image_merge=merge, video_merge=merge, max_visual_tokens=most, min_visual_tokens=least)


def size_of(p: Profile, merge: int) -> dict[str, int]:
    side = (p.patch * merge) ** 2
    return {"shortest_edge": p.min_visual_tokens * side, "longest_edge": p.max_visual_tokens * side}


def photographs(data_dir: Path) -> list[np.ndarray]:
    paths = sorted((data_dir / "caption").rglob("*.jpg"))[:6]
    assert len(paths) == 6
    return [decode_image(path.read_bytes(), LIMITS) for path in paths]


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("most", [60, 2000])
def test_images_equal_transformers(data_dir: Path, merge: int, most: int) -> None:
    p = profile(merge, most)
    slow = VideoLlama3ImageProcessorPil(size=size_of(p, merge), merge_size=merge)
    fast = VideoLlama3ImageProcessor(size=size_of(p, merge), merge_size=merge)
    for rgb in photographs(data_dir):
        grid = image_grid(*rgb.shape[:2], p)
        ours = preprocess_image(rgb, grid, p)
        assert ours.dtype == np.float32
        theirs = slow(images=[rgb], return_tensors="np")
        assert theirs["image_grid_thw"].tolist() == [[1, *grid]]
        np.testing.assert_allclose(ours, theirs["pixel_values"], atol=1e-6)
        # Torch's bicubic kernel rounds and clips otherwise than Pillow's: equal in the mean, not in every pixel.
        torchs = fast(images=[rgb.copy()], return_tensors="np")
        assert torchs["image_grid_thw"].tolist() == [[1, *grid]]
        assert np.abs(ours - torchs["pixel_values"]).mean() * 127.5 < 0.5


def test_videos_equal_transformers(data_dir: Path) -> None:
    data = (data_dir / "video" / "mmaction2__demo.mp4").read_bytes()
    p = profile(2, 400)
    processor = VideoLlama3VideoProcessor(size=size_of(p, 2), merge_size=2)
    full = sample_frames(data, 1.0, 180, LIMITS).pixels
    grid = frame_grid(*full.shape[1:3], len(full), p, len(full))
    theirs = processor(videos=[torch.from_numpy(full.copy()).permute(0, 3, 1, 2)], return_tensors="pt")
    assert theirs["video_grid_thw"].tolist() == [[len(full), *grid]]
    ours = preprocess_frames(full, grid, p)
    assert np.abs(ours - theirs["pixel_values_videos"].numpy()).mean() * 127.5 < 0.5
    # Resized beforehand, only patch order and normalisation are left, and those are equal.
    small = sample_frames(data, 1.0, 180, LIMITS, lambda h, w, t: (grid[0] * 14, grid[1] * 14)).pixels
    theirs = processor(videos=[torch.from_numpy(small.copy()).permute(0, 3, 1, 2)], do_resize=False, return_tensors="pt")
    np.testing.assert_allclose(preprocess_frames(small, grid, p), theirs["pixel_values_videos"].numpy(), atol=1e-6)
    np.testing.assert_array_equal(preprocess_frames(small, grid, p), ours)


@settings(deadline=None, derandomize=True)
@given(
    height=st.integers(1, 20_000),
    width=st.integers(1, 20_000),
    merge=st.integers(1, 3),
    least=st.integers(1, 40),
    room=st.integers(1, 400),
    count=st.integers(1, 200),
)
def test_every_shape_has_a_grid_within_budget(height: int, width: int, merge: int, least: int, room: int, count: int) -> None:
    p = profile(merge, least * room, least)
    h, w = image_grid(height, width, p, count)
    assert h % merge == w % merge == 0
    tokens = h * w // merge**2
    share = max(p.max_visual_tokens // count, least)
    assert least <= tokens <= share
    side = 14 * merge
    if max(height, width) / min(height, width) <= 200:
        wanted = smart_resize(height, width, side, least * side**2, share * side**2)
        if least <= wanted[0] * wanted[1] // side**2 <= share:
            assert (h * 14, w * 14) == wanted


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=12))
def test_all_media_of_an_item_stay_within_its_budget(shapes: list[tuple[int, int]]) -> None:
    p = profile(1, 10_240, 16)
    assert sum(h * w for h, w in (image_grid(*shape, p, len(shapes)) for shape in shapes)) <= p.max_visual_tokens


@pytest.mark.parametrize("name", ["strip_1x8000.png", "aspect_4000x20.jpg", "one_pixel.png"])
@pytest.mark.parametrize("p", [profile(1, 10_240), profile(2, 64, 4), profile(2, 4, 4)])
def test_extreme_pictures_are_preprocessed(data_dir: Path, name: str, p: Profile) -> None:
    data = (data_dir / "hostile" / "made" / name).read_bytes()
    header = image_header(data, LIMITS)
    size = medium_size(header.width, header.height, 1, p, "image", 1)
    patches = preprocess_image(decode_image(data, LIMITS), (size.h, size.w), p)
    assert patches.shape == (size.patches, 588)
    assert p.min_visual_tokens <= size.tokens <= p.max_visual_tokens
    assert -1 <= patches.min() <= patches.max() <= 1


def test_sizes_follow_from_header_numbers() -> None:
    p = Profile("test", "-", image_merge=1, video_merge=2)  # VideoLLaMA3's own numbers
    video = medium_size(1280, 720, 180, p, "video", 180)
    assert video == MediumSize(180, *frame_grid(720, 1280, 180, p, 180), 2)
    assert 180 * 40 < video.tokens <= 10_240  # about 56 a frame
    assert video.patches == 4 * video.tokens
    assert medium_size(640, 480, 1, p, "image", 1) == MediumSize(1, 34, 46, 1)
    with pytest.raises(ValueError, match="media_count"):
        frame_grid(720, 1280, 10, p, 9)
