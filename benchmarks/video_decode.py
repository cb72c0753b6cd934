"""180 frames of a 20-minute clip, beside decoding all of it and beside torchcodec and decord; memory for an hour of 1080p; exactness.

    python -m benchmarks.video_decode [--folder runs/video_decode] [--rounds 3] [--data DIR]

The clips are made here, once: a camera that moves over a textured scene, x264 with B-frames, a key frame every 250 frames, 30 fps. Two
minutes are encoded, and their packets are written ten times over with later times; likewise 50 seconds of 1080p, 72 times. Each way runs in
a process of its own with one decoding thread, and hands over the frames on screen at the same 180 times at native size, RGB; the best
round of each counts. "all" decodes every frame with PyAV and converts those that are wanted. torchcodec and decord are optional: put
them in PYTHONPATH.
With --data (the development data), the frames of every clip there at 0.7 and 3 fps are held against those of decoding all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from shards.media import Limits
from shards.video import frame_times, sample_frames, video_header

FRAMES, RATE, GOP = 180, 30, 250
LIMITS = Limits(cpu_seconds=3600, decoded_frames=10**9)
GOALS = {"all": 2.0, "memory": 300e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path("runs/video_decode"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--way")
    parser.add_argument("--clip")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(one(arguments.way, arguments.clip)))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    clip, hour = arguments.folder / "20min.mp4", arguments.folder / "1h-1080p.mp4"
    made(clip, (640, 360), 14 * GOP + 100, 10)
    made(hour, (1920, 1080), 6 * GOP, 72)
    report(clip, hour, arguments.rounds)
    if (arguments.data / "video").is_dir():
        exact(arguments.data / "video")


def made(path: Path, size: tuple[int, int], frames: int, times: int) -> None:
    """Writes the clip, unless it is there."""
    if path.exists():
        return
    start, width, height = time.time(), *size
    noise = np.random.default_rng(0).integers(0, 256, (height // 6, width // 3, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(noise).resize((width * 2, height + 64), Image.Resampling.BICUBIC))
    piece, whole = path.with_suffix(".piece.mp4"), path.with_suffix(".tmp")
    with av.open(str(piece), "w") as container:
        preset = "ultrafast" if height > 720 else "veryfast"
        options = {"preset": preset, "crf": "28", "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=3"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            x, y = index * 3 % width, int(32 + 31 * np.sin(index / 40))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[y : y + height, x : x + width]), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(whole), "w", format="mp4") as out:
        for turn in range(times):
            with av.open(str(piece)) as source:
                origin = source.streams.video[0]
                target = out.add_stream_from_template(origin) if turn == 0 else out.streams.video[0]
                shift = int(Fraction(frames * turn, RATE) / origin.time_base)
                for packet in source.demux(origin):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = target
                        out.mux(packet)
    piece.unlink()
    whole.rename(path)
    print(f"made {path.name}: {path.stat().st_size / 1e6:.0f} MB in {time.time() - start:.0f} s")


def wanted(clip: str) -> np.ndarray:
    with open(clip, "rb") as file:
        return frame_times(video_header(file, LIMITS).good, 1.0, FRAMES)


def ours(clip: str, times: np.ndarray) -> np.ndarray:
    with open(clip, "rb") as file:
        return sample_frames(file, 1.0, FRAMES, LIMITS).pixels


def everything(clip: str, times: np.ndarray) -> np.ndarray:
    found: list[np.ndarray] = []
    with av.open(clip) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        last, start = None, 0.0
        for frame in container.decode(stream):
            start = frame.time if last is None else start
            while len(found) < len(times) and last is not None and frame.time - start > times[len(found)] + 1e-6:
                found.append(turned(last))
            last = frame
        found += [turned(last)] * (len(times) - len(found))
    return np.stack(found)


def turned(frame: Any) -> np.ndarray:
    return np.rot90(np.asarray(frame.to_image(threads=1)), round(frame.rotation / 90) % 4)


def torchcodec(clip: str, times: np.ndarray) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found, unused-ignore]

    decoder = VideoDecoder(clip, num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode="exact")
    return np.asarray(decoder.get_frames_played_at([float(t) + 1e-6 for t in times]).data)


def decord(clip: str, times: np.ndarray) -> np.ndarray:
    import decord  # type: ignore[import-not-found, unused-ignore]

    reader = decord.VideoReader(clip, num_threads=1)
    return np.asarray(reader.get_batch([int(t * RATE + 1e-6) for t in times]).asnumpy())


WAYS: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
    "ours": ours,
    "all": everything,
    "torchcodec": torchcodec,
    "decord": decord,
}


def one(way: str, clip: str) -> dict[str, Any]:
    """Seconds (clock and processor) and a digest of the frames; for "memory" the peak above what was held before, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on, and not from the process that started this one
    before = peak()
    clock, processor = time.perf_counter(), time.process_time()
    if way == "memory":
        with open(clip, "rb") as file:
            frames = sample_frames(file, 1.0, FRAMES, LIMITS, lambda height, width, t: (280, 504)).pixels
    else:
        try:
            times = wanted(clip)
            clock, processor = time.perf_counter(), time.process_time()
            frames = WAYS[way](clip, times)
        except ImportError as error:
            return {"absent": str(error).splitlines()[0]}
        except (RuntimeError, OSError) as error:
            return {"absent": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {
        "seconds": time.perf_counter() - clock,
        "processor": time.process_time() - processor,
        "frames": len(frames),
        "digest": hashlib.sha256(np.ascontiguousarray(frames)).hexdigest()[:12],
        "peak": peak() - before,
    }


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def asked(way: str, clip: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.video_decode", "--way", way, "--clip", str(clip)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        return {"absent": f"ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(clip: Path, hour: Path, rounds: int) -> None:
    best: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for way in WAYS:
            if "absent" in best.get(way, {}):
                continue
            found = asked(way, clip)
            if way not in best or "absent" in found or found["processor"] < best[way]["processor"]:
                best[way] = found
    for way, found in best.items():
        if "absent" in found:
            print(f"{way:12s} not measured: {found['absent']}")
            continue
        times = found["processor"] / best["ours"]["processor"]
        goal = f"  (goal ≥ {GOALS['all']:g})" if way == "all" else ""
        same = "the same frames" if found["digest"] == best["ours"]["digest"] else "other pixels"
        print(f"{way:12s} {found['seconds']:7.2f} s, processor {found['processor']:7.2f} s, {times:5.2f} times ours{goal}; {same}")
    found = asked("memory", hour)
    print(
        f"an hour of 1080p ({hour.stat().st_size / 1e6:.0f} MB): peak {found['peak'] / 1e6:.0f} MB above the importing process "
        f"(goal ≤ {GOALS['memory'] / 1e6:.0f}), {found['frames']} frames of 504×280 in {found['seconds']:.1f} s"
    )


def exact(folder: Path) -> None:
    """Frames of every clip against those of decoding all of it."""
    equal = clips = 0
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        good = video_header(data, LIMITS).good
        same = True
        for fps in (0.7, 3.0):
            times, found = frame_times(good, fps, FRAMES), sample_frames(data, fps, FRAMES, LIMITS).pixels
            same &= np.array_equal(found, everything(str(path), times))
        clips, equal = clips + 1, equal + same
        if not same:
            print(f"{path.name}: other frames than decoding all")
    print(f"frames equal to those of decoding all: {equal} of {clips} clips")


if __name__ == "__main__":
    main()
