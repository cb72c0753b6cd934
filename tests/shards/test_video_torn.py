"""Torn and lying videos: the frames up to the tear, the same ones in every reading, and the length that is really there."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DecodeError
from shards.measure import Medium, load_medium
from shards.media import Limits
from shards.profile import Profile
from shards.video import frame_times, sample_frames, video_header
from tests.shards.clips import CLOSED, decoded, moving

LIMITS = Limits()
FASTSTART = {"movflags": "faststart"}


@pytest.fixture(scope="module")
def whole() -> bytes:
    """10 s, its tables in front: cut anywhere behind them it still opens."""
    return moving("mp4", "libx264", CLOSED, muxer=FASTSTART)


@pytest.mark.parametrize("format", ["mp4", "matroska", "mpegts", "avi"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_a_cut_clip_gives_its_frames_up_to_the_cut(format: str, share: float) -> None:
    share = max(share, 0.5) if format == "avi" else share  # its table of streams is long
    codec = ("mpeg4", {"g": "12"}) if format == "avi" else ("libx264", {"crf": "5", **CLOSED})
    data = moving(format, *codec, muxer=FASTSTART if format == "mp4" else {})
    torn = data[: int(len(data) * share)]
    header, sampled = video_header(torn, LIMITS), sample_frames(torn, 2.0, 180, LIMITS)
    assert 10 * share - 4 < header.good < 10 * share + 2
    assert 0 < sampled.good <= header.good
    assert 1 <= len(sampled.times) <= len(frame_times(header.good, 2.0, 180))
    assert len(sampled.times) >= 2 * header.good - 2
    np.testing.assert_array_equal(sampled.pixels, decoded(data, sampled.times.tolist()))
    again = sample_frames(io.BytesIO(torn), 2.0, 180, LIMITS)
    np.testing.assert_array_equal(again.pixels, sampled.pixels)
    assert (again.good, again.tear, again.times.tolist()) == (sampled.good, sampled.tear, sampled.times.tolist())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(share=st.floats(0.05, 0.99), flips=st.integers(0, 3))
def test_every_tear_gives_good_frames_or_a_reason(whole: bytes, share: float, flips: int) -> None:
    """Cut anywhere and overwritten in places: what comes is the same each time, and begins with the clip's own first frame."""
    data = bytearray(whole[: int(len(whole) * share)])
    body = data.find(b"mdat") + 2_000  # behind the first frame
    for n in range(flips):
        if len(data) > body + 100:
            at = body + (n + 1) * 7919 % (len(data) - body - 64)
            data[at : at + 64] = bytes(64)
    try:
        first, again = (sample_frames(bytes(data), 2.0, 8, LIMITS) for _ in range(2))
    except DecodeError:
        return
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert (first.good, first.tear) == (again.good, again.tear)
    assert 1 <= len(first.times) <= 8
    np.testing.assert_array_equal(first.pixels[0], decoded(whole, [0.0])[0])


def test_damage_inside_ends_the_clip_there(whole: bytes) -> None:
    with av.open(io.BytesIO(whole)) as container:
        packets = [(p.pts * p.time_base, p.pos, p.size) for p in container.demux(video=0) if p.size]
    at, place, size = packets[len(packets) // 2]
    data = bytearray(whole)
    data[place : place + size] = b"\xff" * size  # no unit of this length can be there
    sampled = sample_frames(bytes(data), 4.0, 180, LIMITS)
    assert float(at) - 0.5 < sampled.good < float(at) + 0.1
    assert sampled.tear is not None
    assert video_header(bytes(data), LIMITS).good == pytest.approx(10.0)  # no frame is decoded for it
    assert len(sampled.times) == pytest.approx(4 * sampled.good, abs=1)
    np.testing.assert_array_equal(sampled.pixels, decoded(whole, sampled.times.tolist()))


@pytest.mark.parametrize("factor", [100.0, 0.05])
def test_a_container_that_lies_about_its_length(factor: float) -> None:
    """Both ways: frames are chosen over what is there."""
    data = moving("matroska", "ffv1", {"g": "12"}, frames=120)
    at = data.index(b"\x44\x89\x88") + 3  # Matroska's Duration, in milliseconds
    lying = (data[:at] + struct.pack(">d", 5000.0 * factor) + data[at + 8 :]).replace(b"DURATION", b"SOMEWHAT")
    header = video_header(lying, LIMITS)
    assert header.duration == pytest.approx(5.0 * factor, rel=0.01)
    assert header.good == pytest.approx(5.0, abs=0.1)
    sampled = sample_frames(lying, 1.0, 180, LIMITS)
    assert sampled.times.tolist() == [0, 1, 2, 3, 4]
    assert sampled.tear is None
    np.testing.assert_array_equal(sampled.pixels, decoded(data, sampled.times.tolist()))


def test_sound_that_goes_on_is_no_tear() -> None:
    """A container that tells one length for all its streams."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        video, sound = container.add_stream("libx264", rate=24), container.add_stream("mp2", rate=48_000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for index in range(72):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 24)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for index in range(300):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152 * 2), np.int16), format="s16", layout="stereo")
            silence.sample_rate, silence.pts = 48_000, index * 1152
            container.mux(sound.encode(silence))
    data = buffer.getvalue().replace(b"DURATION", b"SOMEWHAT")
    header = video_header(data, LIMITS)
    assert header.duration > 6
    assert header.good == pytest.approx(3.0, abs=0.1)
    assert len(sample_frames(data, 1.0, 180, LIMITS).times) == 3


def test_a_recording_that_begins_amid_a_group() -> None:
    """What cannot be decoded before the first key frame is not the clip's; time begins with the first frame."""
    data = moving("mpegts", "libx264", CLOSED)
    with av.open(io.BytesIO(data)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    cut = data[places[20] // 188 * 188 :]
    sampled = sample_frames(cut, 1.0, 180, LIMITS)
    assert len(sampled.times) in (8, 9)
    np.testing.assert_array_equal(sampled.pixels[0], decoded(data)[48])


def test_nothing_but_a_header_is_an_error(data_dir: Path, whole: bytes) -> None:
    with pytest.raises(DecodeError):
        sample_frames(whole[: whole.find(b"mdat") + 40], 1.0, 180, LIMITS)
    half = (data_dir / "hostile" / "made" / "truncated_half.mp4").read_bytes()
    header, sampled = video_header(half, LIMITS), sample_frames(half, 1.0, 180, LIMITS)
    assert header.good < header.duration - 1
    assert sampled.times.tolist() == [0, 1, 2]


def test_measure_and_loader_agree_on_the_frames_of_a_torn_clip(whole: bytes) -> None:
    """A cut (known before decoding) and damage inside (found while decoding): as many frames as are there, all of them loaded."""
    with av.open(io.BytesIO(whole)) as container:
        place, size = [(p.pos, p.size) for p in container.demux(video=0) if p.size][150]
    damaged = bytearray(whole)
    damaged[place : place + size] = b"\xff" * size
    profile = Profile("small", "t" * 16, max_visual_tokens=256, min_visual_tokens=4, fps=2.0, max_frames=32)
    for data in (whole[: len(whole) // 2], bytes(damaged)):
        medium = Medium("video", data, LIMITS)
        measured = medium.measured(profile, medium.frames(profile))
        sampled = sample_frames(data, 2.0, 32, LIMITS)
        assert measured["times"] == sampled.times.tolist()
        assert 5 < measured["t"] == len(measured["times"]) < 20
        loaded = load_medium(data, measured, "video", profile, LIMITS)
        assert loaded.grid[0] == measured["t"]
        assert len(loaded.patches) == measured["t"] * measured["h"] * measured["w"]
