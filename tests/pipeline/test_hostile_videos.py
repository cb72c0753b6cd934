"""Videos that want to do harm, in a real run: each gets a verdict with a reason, and no process dies of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from shards.tokenizer import train_tokenizer
from tests.pipeline.small import ask, recipe, run, verdicts
from tests.shards.clips import CLOSED, moving

pytestmark = pytest.mark.usefixtures("one_ray")

LIMITS = {"video": {"cpu_seconds": 20, "decoded_frames": 1500, "pixels": 10_000_000}}
ENDLESS = {"preset": "ultrafast", "x264-params": "keyint=infinite:scenecut=0:bframes=0"}
WHOLE = {"name": "whole", "if": "good_seconds >= 0.9 * duration", "for": ["video"]}


def same_time(path: Path) -> None:
    """200 packets, all at time zero."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(200):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), index % 256, np.uint8), format="rgb24")
            frame.pts = index
            for packet in stream.encode(frame):
                packet.pts = packet.dts = 0
                packet.duration = 0
                container.mux(packet)


def nothing(path: Path) -> None:
    """A stream without a packet."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.encode(av.VideoFrame(32, 32, "yuv420p"))
        container.start_encoding()


def lying(factor: float) -> bytes:
    data = moving("matroska", "mpeg4", {"g": "12"}, frames=96)
    at = data.index(b"\x44\x89\x88") + 3
    return (data[:at] + struct.pack(">d", 4000.0 * factor) + data[at + 8 :]).replace(b"DURATION", b"SOMEWHAT")


@pytest.fixture(scope="module")
def made(data_dir: Path, one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("hostile")
    films = folder / "films"
    films.mkdir()
    for path in [*(data_dir / "hostile" / "video").iterdir(), *(data_dir / "hostile" / "made").glob("*.mp4")]:
        (films / path.name).write_bytes(path.read_bytes())
    nothing(films / "no_frame.mkv")
    same_time(films / "same_time.mkv")
    clip = moving("mp4", "libx264", {"crf": "5", **CLOSED}, muxer={"movflags": "faststart"})
    written = {
        "sound.mp4": clip,
        "one_frame.mp4": moving(frames=1),
        "short.mp4": moving(frames=2, rate=30),
        "4k_120.mp4": moving("mp4", "libx264", {"preset": "ultrafast"}, frames=6, rate=120, size=(3840, 2160)),
        "says_100_times.mkv": lying(100),
        "says_a_tenth.mkv": lying(0.1),
        "thousands.mkv": moving("matroska", "libx264", ENDLESS, frames=1800, rate=100, size=(16, 16)),
        "microseconds.mp4": moving("mp4", "mpeg4", frames=300, stamps=list(range(300)), size=(32, 32)),
        "two_sizes.ts": moving("mpegts", "mpeg2video", frames=48) + moving("mpegts", "mpeg2video", frames=48, first=48, size=(96, 64)),
    }
    for name, data in written.items():
        (films / name).write_bytes(data)
    Image.new("RGB", (64, 48), "red").save(films / "picture.gif")
    (films / "gif_named.mp4").write_bytes((films / "picture.gif").read_bytes())
    for n, share in enumerate(np.linspace(0.03, 0.97, 6)):
        (films / f"cut{n:02d}.mp4").write_bytes(clip[: int(len(clip) * share)])
        damaged = bytearray(clip)
        place = int(len(clip) * share)
        damaged[place : place + 40] = np.random.default_rng(n).bytes(40)
        (films / f"damaged{n:02d}.mp4").write_bytes(damaged[: len(clip)])
    for path in list(films.iterdir()):
        path.with_suffix(".txt").write_text(f"a film called {path.stem}")
    train_tokenizer(["a film called this", "What happens?"], folder / "tokenizer", 300)
    steps = ["probe", {"keep": WHOLE}, {"compose": {"tasks": ["video", "short_caption"]}}]
    steps.append({"measure": {"profile": "tiny", "tokenizer": str(folder / "tokenizer")}})
    path = recipe(folder / "r.yaml", {"films": films}, steps, limits=LIMITS)
    return folder / "run", run(path, folder / "run")


def test_each_has_a_verdict_and_no_process_died(made: tuple[Path, Any]) -> None:
    folder, outcome = made
    assert outcome.crashes == 0
    assert outcome.counts["pending"] == 0
    found = verdicts(folder)
    assert len(found) == outcome.counts["inputs"] == 9 + 2 + 9 + 2 + 12
    assert all(why and step for verdict, step, why in found.values() if verdict != "kept")
    assert {v for v, _, _ in found.values()} == {"kept", "rejected", "errored"}


def test_what_can_be_used_is_and_what_cannot_says_why(made: tuple[Path, Any]) -> None:
    found = verdicts(made[0])
    kept = ("sound.mp4", "one_frame.mp4", "short.mp4", "4k_120.mp4", "says_a_tenth.mkv", "microseconds.mp4", "same_time.mkv")
    for name in (*kept, "picture.gif", "two_sizes.ts", "unordered.mov"):
        assert found[name][0] == "kept", (name, found[name])
    for name in ("truncated_half.mp4", "says_100_times.mkv", "cut02.mp4"):
        assert found[name] == ("rejected", "whole", "whole: good_seconds >= 0.9 * duration"), (name, found[name])
    for name, words in (
        ("gif_named.mp4", "looks like a GIF image"),
        ("html.mp4", "looks like HTML"),
        ("empty.mp4", "an empty file"),
        ("no_frame.mkv", "decode: "),
        ("thousands.mkv", "limit: more than video.decoded_frames = 1,500 frames would have to be decoded; raise that limit"),
    ):
        assert found[name][0] == "errored"
        assert words in (found[name][2] or ""), (name, found[name])


def test_measure_has_the_frames_that_are_there(made: tuple[Path, Any]) -> None:
    folder, _ = made
    seconds = dict(ask(folder, "select key, good_seconds from samples"))
    assert seconds["says_100_times.mkv"] == pytest.approx(4.0, abs=0.1)
    assert seconds["says_a_tenth.mkv"] == pytest.approx(4.0, abs=0.1)
    patches = dict(ask(folder, "select key, measure_patches from samples where verdict = 'kept'"))
    assert patches["says_a_tenth.mkv"] == patches["sound.mp4"]
    cuts = [seconds[f"cut{n:02d}.mp4"] for n in range(6) if seconds[f"cut{n:02d}.mp4"] is not None]
    assert cuts == sorted(cuts)
    assert len(cuts) >= 5
