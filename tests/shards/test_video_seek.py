"""What is passed over in a file changes no frame: every container and codec against decoding everything; and it is passed over."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import video_file, video_frames
from shards.media import Limits
from shards.video import frame_times, sample_frames, video_header
from tests.shards.clips import CLOSED, OPEN, OPEN_HEVC, REFRESH, decoded, moving

LIMITS = Limits()
STAMPS = np.cumsum(np.random.default_rng(1).integers(5, 90, 240)).tolist()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Frames that are decoded, jumps in the file. Key frames are never too near to jump to."""
    counts = {"frames": 0, "jumps": 0}
    frame, jumped = video_file.Clock.frame, video_frames._jumped

    def count_frame(self: video_file.Clock, one: object) -> None:
        counts["frames"] += 1
        frame(self, one)

    def count_jump(*arguments: Any) -> Any:
        found = jumped(*arguments)
        counts["jumps"] += found is not None
        return found

    monkeypatch.setattr(video_file.Clock, "frame", count_frame)
    monkeypatch.setattr(video_frames, "_jumped", count_jump)
    monkeypatch.setattr(video_frames, "NEAR_BYTES", 0)
    return counts


def same_as_all(data: bytes) -> None:
    good = video_header(data, LIMITS).good
    for fps, most in ((0.45, 180), (3.0, 180), (7.0, 3)):
        times = frame_times(good, fps, most)
        sampled = sample_frames(data, fps, most, LIMITS)
        assert sampled.times.tolist() == times.astype(np.float32).tolist()
        assert (sampled.tear, sampled.good) == (None, good)
        np.testing.assert_array_equal(sampled.pixels, decoded(data, times.tolist()))


@pytest.mark.parametrize(
    ("format", "codec", "options", "more", "jumps"),
    [
        ("mp4", "libx264", CLOSED, {}, True),
        ("mp4", "libx264", OPEN, {}, True),
        ("mp4", "libx264", CLOSED, {"first": 120}, True),
        ("mp4", "libx264", CLOSED, {"first": -40}, True),
        ("mp4", "libx264", CLOSED, {"stamps": STAMPS}, True),
        ("mp4", "libx264", CLOSED, {"muxer": {"movflags": "frag_keyframe+empty_moov"}}, False),
        ("mp4", "libx265", OPEN_HEVC, {}, True),
        ("mp4", "mpeg4", {"g": "12", "bf": "2"}, {}, True),
        ("matroska", "libx264", OPEN, {}, True),
        ("matroska", "libx264", CLOSED, {"first": 120}, True),
        ("matroska", "libx264", CLOSED, {"stamps": STAMPS}, True),
        ("matroska", "libx264", CLOSED, {"muxer": {"live": "1"}}, False),
        ("webm", "libvpx", {"g": "24", "deadline": "realtime", "cpu-used": "8"}, {"frames": 120}, True),
        ("avi", "mpeg4", {"g": "12", "bf": "2"}, {}, True),
        ("mpegts", "libx264", OPEN, {"first": 120}, False),
        ("mpegts", "mpeg2video", {"g": "12", "bf": "2"}, {}, False),
        ("mpeg", "mpeg2video", {"g": "12", "bf": "2"}, {}, False),
        ("flv", "libx264", CLOSED, {}, False),
    ],
)
def test_passing_over_is_exact(
    format: str, codec: str, options: Mapping[str, str], more: dict[str, Any], jumps: bool, counted: dict[str, int]
) -> None:
    """Open groups, reordering, clips that begin late or before zero (edit lists), variable rates, with an index or without one."""
    data = moving(format, codec, options, **more)
    same_as_all(data)
    assert (counted["jumps"] > 0) == jumps or format == "mp4"
    counted["frames"] = 0
    sample_frames(data, 0.3, 180, LIMITS)
    assert counted["frames"] < 0.65 * more.get("frames", 240)


@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_key_frames_that_are_none_are_seen_through(format: str, counted: dict[str, int]) -> None:
    """Intra refresh: what is marked as a place to begin gives whole pictures only later; then everything is decoded."""
    data = moving(format, "libx264", REFRESH)
    same_as_all(data)
    counted["frames"] = 0
    sample_frames(data, 0.3, 180, LIMITS)
    assert counted["frames"] > 150  # all up to the last one that is wanted


def test_a_table_that_calls_every_frame_a_key_frame_is_seen_through(counted: dict[str, int]) -> None:
    """An MP4 without its list of key frames, as some recorders write it."""
    for codec, options in (("libx264", CLOSED), ("mpeg4", {"g": "24"})):
        data = moving("mp4", codec, options)
        assert data.count(b"stss") == 1
        same_as_all(data.replace(b"stss", b"free"))


def test_a_table_without_key_frames_is_no_matter(counted: dict[str, int]) -> None:
    data = bytearray(moving("mp4", "libx264", CLOSED))
    at = data.index(b"stss")
    data[at + 8 : at + 12] = (1).to_bytes(4, "big")  # only the first of them is left in the list
    same_as_all(bytes(data))
    assert counted["jumps"] == 0


def test_clips_as_if_everything_were_decoded(data_dir: Path, counted: dict[str, int]) -> None:
    """Every second of the real clips; `python -m benchmarks.video_decode` looks at all of them."""
    paths = [p for p in sorted((data_dir / "video").iterdir()) if p.suffix != ".mov"][::2]  # those are turned, and have a test of their own
    assert len(paths) >= 9
    for path in paths:
        data = path.read_bytes()
        times = frame_times(video_header(data, LIMITS).good, 0.7, 180)
        np.testing.assert_array_equal(sample_frames(data, 0.7, 180, LIMITS).pixels, decoded(data, times.tolist()), err_msg=path.name)
    assert counted["jumps"] >= 5


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data


@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_what_is_not_wanted_is_not_read(format: str) -> None:
    data = moving(format, "libx264", {"crf": "1", "preset": "ultrafast", **CLOSED}, frames=960, size=(160, 120))
    file = Counting(data)
    sampled = sample_frames(file, 0.031, 180, LIMITS)
    assert sampled.times.tolist() == pytest.approx([0, 32.25806], abs=1e-3)
    assert file.read_bytes < len(data) * 0.6
    np.testing.assert_array_equal(sampled.pixels, decoded(data, sampled.times.tolist()))


def test_packets_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key frame, then nothing wanted for long: what waits is decoded when it is too much, and the frames are the same."""
    data = moving("mpegts", "libx264", {"x264-params": "keyint=1000:scenecut=0"})
    monkeypatch.setattr(video_frames, "HELD_BYTES", 5_000)
    same_as_all(data)
