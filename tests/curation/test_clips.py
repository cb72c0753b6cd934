"""Clips of videos: the frames of the parent at those times and no others, the same bytes each time, nothing that vanishes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation.clips import STEP, What, clips_of, parts_of
from curation.clips_cut import encoded
from curation.step import Child
from shards.errors import DecodeError, SampleError
from shards.media import Limits
from shards.sample import Texts
from shards.video import sample_frames, video_header
from shards.video_scan import scan
from tests.curation.views import file_ref, sample_view
from tests.shards.clips import CLOSED, OPEN, OPEN_HEVC, decoded, moving, with_matrix

LIMITS = Limits()


def split(path: Path, what: What, shots: Any = None, texts: Texts | None = None) -> list[Child]:
    return list(clips_of(what, sample_view([file_ref(path)], texts, {what.at: shots} if what.at else {})))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("format", "codec", "options", "more"),
    [
        ("mp4", "libx264", CLOSED, {}),
        ("mp4", "libx264", OPEN, {"first": 120}),
        ("mp4", "libx265", OPEN_HEVC, {}),
        ("matroska", "libx264", CLOSED, {"stamps": np.cumsum(np.random.default_rng(1).integers(20, 60, 240)).tolist()}),
        ("matroska", "mpeg4", {"g": "12"}, {"muxer": {"live": "1"}}),
        ("mpegts", "libx264", OPEN, {}),
        ("mpegts", "mpeg2video", {"g": "12", "bf": "2"}, {}),
        ("mp4", "libsvtav1", {"preset": "12", "svtav1-params": "keyint=24"}, {}),
    ],
)
def test_a_copied_clip_shows_the_frames_of_its_part(tmp_path: Path, format: str, codec: str, options: Any, more: Any) -> None:
    """From a start within a group to an end within one: nothing before, nothing behind, at the same times from the start on."""
    data = moving(format, codec, options, **more)
    path = written(tmp_path / f"film.{'ts' if format == 'mpegts' else 'mp4'}", data)
    frames = decoded(data)
    shots = [{"start": 0.0, "end": 1.27}, {"start": 3.02, "end": 6.04}, {"start": 8.01, "end": 9.4}]
    for child, shot in zip(split(path, What(at="shots"), shots), shots, strict=True):
        assert child.damage is None
        (medium,) = child.media
        assert json.loads(medium.transform)["parameters"] == {**shot, "method": "copy"}
        clip = decoded(medium.data)
        (start,) = [i for i, frame in enumerate(frames) if np.array_equal(frame, clip[0])]
        np.testing.assert_array_equal(clip, frames[start : start + len(clip)])
        told = video_header(medium.data, LIMITS)
        assert told.good == told.duration == pytest.approx(shot["end"] - shot["start"], abs=0.1)
        for fps in (1.0, 5.0):
            sampled = sample_frames(medium.data, fps, 180, LIMITS)
            assert sampled.tear is None
            begin = child.texts.meta["start"]
            assert len(sampled.times) == pytest.approx(told.good * fps, abs=1)
            if "stamps" not in more:
                wanted = np.floor((np.floor(begin * 24 + 1e-6) / 24 + sampled.times.astype(float)) * 24 + 1e-3).astype(int)
                np.testing.assert_array_equal(sampled.pixels, frames[wanted])
        assert child.media == split(path, What(at="shots"), [shot])[0].media  # the same bytes


def test_a_turned_clip_stays_turned(data_dir: Path) -> None:
    path = data_dir / "video" / "decord__video_90.mov"
    (child,) = split(path, What(every=10))
    np.testing.assert_array_equal(
        sample_frames(child.media[0].data, 5.0, 9, LIMITS).pixels[0], sample_frames(path.read_bytes(), 5.0, 9, LIMITS).pixels[0]
    )


def test_an_encoded_clip_is_nearly_its_part(tmp_path: Path, data_dir: Path) -> None:
    data = moving("webm", "libvpx", {"g": "24", "deadline": "realtime", "cpu-used": "8"}, frames=96)
    frames = decoded(data)
    path = written(tmp_path / "a.webm", data)
    (copied_not,) = split(path, What(every=2, max_clips=1))  # MP4 does not take VP8
    assert json.loads(copied_not.media[0].transform)["parameters"]["method"] == "encode"
    clips = split(path, What(every=1.5, min_seconds=0.5, method="encode", crf=10, preset="veryfast"))
    assert [child.place for child in clips] == [(0, 1500), (1500, 3000), (3000, 4000)]
    clip = decoded(clips[1].media[0].data)
    assert len(clip) == 36
    assert np.abs(clip.astype(int) - frames[36:72]).mean() < 4
    assert np.abs(clip[:-1].astype(int) - frames[37:72]).mean() > 8  # and no neighbour's
    again = split(path, What(every=1.5, min_seconds=0.5, method="encode", crf=10, preset="veryfast"))
    assert [c.media for c in again] == [c.media for c in clips]  # the same bytes
    assert json.loads(clips[1].media[0].transform) == {
        "operator": "clips", "version": STEP.version,
        "parameters": {"start": 1.5, "end": 3.0, "method": "encode", "crf": 10, "preset": "veryfast"},
    }  # fmt: skip
    turned = data_dir / "video" / "decord__video_90.mov"
    upright, _ = encoded(turned.read_bytes(), 0.0, 1.0, LIMITS, 10, "veryfast")
    one, other = sample_frames(upright, 1.0, 1, LIMITS).pixels[0], sample_frames(turned.read_bytes(), 1.0, 1, LIMITS).pixels[0]
    assert np.abs(one.astype(int) - other).mean() < 4


def test_times_that_say_little_are_encoded_all_the_same(tmp_path: Path) -> None:
    """AVI does not say when pictures are shown that wait for others; QuickTime's animation has key frames that are none; and a Matroska
    whose packets all have one time."""
    for name, data in (
        ("a.avi", moving("avi", "libx264", CLOSED, frames=96)),
        ("a.mov", moving("mov", "qtrle", frames=96, pixels="rgb24")),
    ):
        frames = decoded(data)
        for child, first in zip(split(written(tmp_path / name, data), What(every=1, preset="veryfast")), range(0, 96, 24), strict=True):
            assert child.damage is None
            clip = sample_frames(child.media[0].data, 24.0, 24, LIMITS).pixels.astype(int)
            assert len(clip) == 24
            assert np.abs(clip - frames[first : first + 24]).mean() < 7 < np.abs(clip[1:] - frames[first : first + 23]).mean()
    with av.open(str(tmp_path / "same.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height = 64, 48
        for _ in range(48):
            for packet in stream.encode(av.VideoFrame(64, 48, "yuv420p")):
                packet.pts = packet.dts = packet.duration = 0
                container.mux(packet)
    (child,) = split(tmp_path / "same.mkv", What(every=1, method="encode"))
    assert len(decoded(child.media[0].data)) == 1


@pytest.mark.parametrize("method", ["copy", "encode"])
@pytest.mark.parametrize(("format", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_slides_stand_as_long_as_they_did(tmp_path: Path, format: str, codec: str, method: str) -> None:
    """Where the last picture of a clip stands for long, no packet says so but the one behind it."""
    data = moving(format, codec, frames=7, stamps=[0, 10_000, 20_000, 20_033, 20_066, 30_000, 40_000])
    frames = decoded(data)
    path = written(tmp_path / f"a.{format}", data)
    shots = [{"start": a, "end": b} for a, b in ((0.0, 10.0), (10.0, 20.033), (20.066, 40.0))]
    shown = [[0] * 5, [1] * 5 + [2], [4] * 5 + [5] * 5]
    for child, shot, places in zip(split(path, What(at="shots", method=method, crf=1), shots), shots, shown, strict=True):
        clip = child.media[0].data
        length = shot["end"] - shot["start"]
        assert child.texts is not None
        assert child.texts.meta["seconds"] == pytest.approx(length, abs=2e-3)
        header = video_header(clip, LIMITS)
        assert (header.duration, header.good) == (pytest.approx(length, abs=2e-3), pytest.approx(length, abs=2e-3))
        sampled = sample_frames(clip, 0.5, 99, LIMITS)
        assert sampled.times.tolist() == [2.0 * k for k in range(len(places))]
        assert sampled.tear is None
        assert np.abs(sampled.pixels.astype(int) - frames[places]).mean() < (3 if method == "encode" else 1e-9)
        assert scan(clip, LIMITS, 64, lambda *seen: None).end == pytest.approx(length, abs=2e-3)


@pytest.mark.parametrize(("matrix", "levels"), [(1, 1), (5, 1), (1, 2), (6, 2)])
def test_colours_stay_what_they_were(tmp_path: Path, matrix: int, levels: int) -> None:
    """ITU 709 and 601, in video's levels and in a computer's."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, levels
        for _ in range(24):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane, level in zip(frame.planes, (100, 90, 180), strict=True):
                plane.update(bytes([level]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (child,) = split(tmp_path / "a.mkv", What(every=2))
    data = (tmp_path / "a.mkv").read_bytes()
    one, other = (sample_frames(film, 1.0, 1, LIMITS).pixels[0].astype(int) for film in (data, child.media[0].data))
    assert np.abs(one - other).max() <= 2


@pytest.mark.parametrize("method", ["copy", "encode"])
def test_mirrored_films_give_mirrored_clips(tmp_path: Path, method: str) -> None:
    plain = moving("mp4", "libx264", CLOSED, frames=48)
    (child,) = split(written(tmp_path / "a.mp4", with_matrix(plain, -1, 0, 0, 1)), What(every=2, method=method))
    clip = decoded_as_shown(child.media[0].data)
    assert np.abs(clip.astype(int) - decoded(plain)[0][:, ::-1]).mean() < 7


def decoded_as_shown(data: bytes) -> np.ndarray:
    return sample_frames(data, 1.0, 1, LIMITS).pixels[0]


def test_a_clip_encoded_twice_is_the_same_bytes(data_dir: Path) -> None:
    data = (data_dir / "video" / "mmaction2__demo.mp4").read_bytes()
    assert len({encoded(data, 2.0, 5.0, LIMITS, 18, "faster")[0] for _ in range(3)}) == 1


def test_texts_travel_only_when_told(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", moving(frames=72))
    texts = Texts(caption="a whole film", transcription="what is said", meta={"licence": "CC0"})
    first, second = split(path, What(every=1.5), texts=texts)
    assert (second.texts.caption, second.texts.transcription) == (None, None)
    assert second.texts.meta == {
        "licence": "CC0", "parent_key": "k", "start": 1.5, "end": 3.0, "seconds": 1.5, "clip": 1, "clips": 2, "parent_torn": False,
    }  # fmt: skip
    assert second.place == (1500, 3000)
    assert second.media[0].name == "a.mp4#clip=1500-3000.mp4"
    assert split(path, What(every=1.5, texts=("caption",)), texts=texts)[0].texts.caption == "a whole film"
    assert first.texts.caption is None
    timed = Texts(conversations=({"from": "human", "value": "go", "time": 0.0}, {"from": "gpt", "value": "a goal", "time": 2.0}))
    assert len(split(path, What(every=1.5), texts=timed)) == 2
    with pytest.raises(SampleError, match="has times of the whole video"):
        split(path, What(every=1.5, texts=("conversations",)), texts=timed)


def test_a_torn_film_gives_the_clips_before_the_tear(tmp_path: Path) -> None:
    data = moving("mp4", "libx264", {"crf": "5", **CLOSED}, muxer={"movflags": "faststart"})
    path = written(tmp_path / "a.mp4", data[: int(len(data) * 0.55)])
    good = video_header(path.read_bytes(), LIMITS).good
    clips = split(path, What(every=2))
    assert 4 < good < 6
    assert [child.damage for child in clips] == [None] * len(clips)
    assert clips[-1].place[1] == round(good * 1000)
    assert all(child.texts.meta["parent_torn"] for child in clips)
    np.testing.assert_array_equal(decoded(clips[1].media[0].data), decoded(data)[48:96])


def test_what_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(DecodeError):
        split(written(tmp_path / "a.mp4", b"<html>404</html>"), What(every=2))
    path = written(tmp_path / "b.mp4", moving(frames=48))
    with pytest.raises(SampleError, match="names no shots"):
        split(path, What(at="shots"), [])
    assert split(path, What(every=10, short="drop", min_seconds=5)) == []  # which the engine makes an error of
    (whole,) = split(path, What(every=10, min_seconds=5))
    assert whole.place == (0, 2000)
    by_medium = split(path, What(at="shots"), [[{"start": 0.0, "end": 2.0}]])
    assert [child.place for child in by_medium] == [(0, 2000)]


def test_many_media(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "a.mp4", moving(frames=48)), written(tmp_path / "b.mp4", b"nothing")
    found = list(clips_of(What(every=1), sample_view([file_ref(good), file_ref(bad)])))
    assert [child.place for child in found] == [(0, 0, 1000), (0, 1000, 2000), (1, 0, 0)]
    assert isinstance(found[2].damage, DecodeError)


@pytest.mark.parametrize(
    ("shots", "what", "found"),
    [
        ([(0, 3), (3, 3.4), (3.4, 8)], What(at="s"), [(0, 3.4), (3.4, 8)]),
        ([(0, 0.2), (0.2, 4), (4, 8)], What(at="s"), [(0, 4), (4, 8)]),
        ([(0, 3), (3, 3.4), (3.4, 8)], What(at="s", short="drop"), [(0, 3), (3.4, 8)]),
        ([(0, 0.5), (2, 2.5), (4, 8)], What(at="s"), [(4, 8)]),
        ([(0, 9)], What(at="s", max_seconds=4), [(0, 3), (3, 6), (6, 9)]),
        ([(0, 4), (4, 8), (8, 12)], What(at="s", max_clips=2), [(0, 4), (4, 8)]),
        (None, What(every=4), [(0, 4), (4, 8), (8, 10)]),
        (None, What(every=3, min_seconds=1.5), [(0, 3), (3, 6), (6, 10)]),
        (None, What(every=3), [(0, 3), (3, 6), (6, 9), (9, 10)]),
        (None, What(every=3, short="drop", min_seconds=3), [(0, 3), (3, 6), (6, 9)]),
    ],
)
def test_parts(shots: Sequence[tuple[float, float]] | None, what: What, found: list[tuple[float, float]]) -> None:
    assert parts_of(shots, 10.0 if shots is None or len(shots) < 3 else 12.0, what) == found


@settings(derandomize=True, deadline=None)
@example(shots=[(0.0, 51.0)], good=50.126619457240466, short="merge")
@given(
    shots=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=12),
    good=st.floats(0.1, 100),
    short=st.sampled_from(["merge", "drop"]),
)
def test_parts_keep_their_bounds(shots: list[tuple[float, float]], good: float, short: str) -> None:
    what = What(at="s", min_seconds=2, max_seconds=10, short=short)
    parts = parts_of(shots, good, what)
    assert all(0 <= begin < end <= good for begin, end in parts)
    assert all(end - begin <= 10 + 1e-6 for begin, end in parts)
    assert len(parts) <= 1 or all(end - begin >= 2 - 1e-6 for begin, end in parts)


@pytest.mark.parametrize(
    "what",
    [
        What(),
        What(at="s", every=2),
        What(every=2, method="cut"),
        What(every=2, texts=("title",)),
        What(every=2, max_seconds=1.5),
        What(every=2, crf=60),
    ],
)
def test_values_that_cannot_work_are_refused(what: What) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError, match=r"^(at|method|texts|max_seconds|crf)"):
        STEP.check(what)
