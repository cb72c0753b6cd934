"""The step `video` on the development data's clips: cuts that are told, by detector and threshold, and copies of clips that are found.

    python -m benchmarks.video_clips [--data ../shared/data] [--films 8]

Cuts: real clips of one shot are cut into pieces of 1.2 to 3 s, which are joined in films of ten, neighbours of different scenes, and
encoded. Of each detector the threshold with the best F1 on films of clips of even uid; told are recall and precision (within 0.1 s) on
those of odd.
Copies: every clip encoded anew in five ways, and held against all others. About four minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from curation.ladder_frames import alike, frames_of
from curation.video_shots import DEFAULTS, Cuts, shots_of
from curation.video_watch import Watch
from shards.media import Limits
from shards.sample import uid_of
from shards.video_scan import scan
from tests.curation.films import film, recoded

RATE, SIZE = 25, (320, 180)
NEAR = 0.1  # seconds that a cut may be told beside where it is
THRESHOLDS = {
    "adaptive": (2.0, 2.5, 3.0, 3.5, 4.0),
    "content": (18.0, 22.0, 27.0, 32.0, 40.0),
    "hash": (0.25, 0.3, 0.35, 0.4),
    "histogram": (0.1, 0.2, 0.3, 0.5),
}
NOT_ONE_SHOT = ("bikes", "audioless", "mmaction2__demo", "LLaMA-Factory__2", "decord__video")  # cuts, damage, three frames
COPIES = {
    "half the size, crf 35": {"size": (240, 136), "crf": "35"},
    "every second frame": {"size": (240, 136), "every": 2},
    "0.25 s off the start": {"start": 0.25},
    "0.6 s off the start": {"start": 0.6},
    "1.1 s off the start": {"start": 1.1},
}
SCENES = {"flower": "flower", "stream-of-water": "water", "rabbit": "rabbit", "carphone": "car"}


def scene_of(path: Path) -> str:
    return next((scene for part, scene in SCENES.items() if part in path.name), path.stem)


def odd(path: Path) -> bool:
    return int(uid_of("dev", path.name)[-1], 16) % 2 == 1


def frames_in(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [f.reformat(width=SIZE[0], height=SIZE[1], format="rgb24").to_ndarray() for f in container.decode(video=0)]


def films(paths: Sequence[Path], count: int) -> list[tuple[bytes, list[float]]]:
    """(a film of ten pieces, where its cuts are)."""
    draw = np.random.default_rng(0)
    clips = {path: frames_in(path) for path in paths}
    made = []
    for _ in range(count):
        frames: list[np.ndarray] = []
        cuts: list[float] = []
        last = ""
        for _ in range(10):
            path = draw.choice([p for p in paths if scene_of(p) != last])
            length = int(draw.integers(1.2 * RATE, 3 * RATE))
            start = int(draw.integers(0, max(1, len(clips[path]) - length)))
            cuts.append(len(frames) / RATE)
            frames += clips[path][start : start + length]
            last = scene_of(path)
        made.append((film(frames, RATE, "mp4", "libx264", preset="ultrafast", crf="26"), cuts[1:]))
    return made


def told(data: bytes) -> tuple[dict[tuple[str, float], list[float]], float]:
    detectors = {(name, t): Cuts(name, t, False) for name, several in THRESHOLDS.items() for t in several}

    def see(at: float, pixels: np.ndarray, first: bool) -> None:
        for one in detectors.values():
            one.see(at, pixels)

    end = scan(data, Limits(), 160, see).end
    return {key: [start for start, _ in shots_of(one.times(), end, 0.6)[1:]] for key, one in detectors.items()}, end


def cuts(paths: Sequence[Path], count: int) -> None:
    scores: dict[bool, dict[tuple[str, float], np.ndarray]] = {}
    for half in (False, True):
        sums: dict[tuple[str, float], np.ndarray] = {}
        for data, truth in films([path for path in paths if odd(path) == half], count):
            for key, found in told(data)[0].items():
                hit = sum(any(abs(t - f) <= NEAR for f in found) for t in truth)
                right = sum(any(abs(t - f) <= NEAR for t in truth) for f in found)
                sums[key] = sums.get(key, np.zeros(4)) + np.array([hit, len(truth), right, len(found)])
        scores[half] = sums
    print("| detector | best threshold on even | recall, odd | precision, odd | at the library's own |\n|---|---|---|---|---|")
    for name, several in THRESHOLDS.items():
        best = max(several, key=lambda t: (f1(scores[False][name, t]), -abs(t - DEFAULTS[name])))
        (hit, of, right, found), own = scores[True][name, best], scores[True].get((name, DEFAULTS[name]))
        tail = f"{own[0]:.0f} of {own[1]:.0f}, {own[2]:.0f} of {own[3]:.0f}" if own is not None else "–"
        print(f"| {name} | {best:g} | {hit:.0f} of {of:.0f} | {right:.0f} of {found:.0f} | {tail} |")


def f1(score: np.ndarray) -> float:
    hit, of, right, found = score
    return 2 * hit * right / max(hit * found + right * of, 1e-9)


def hashes(data: bytes) -> np.ndarray:
    watch = Watch(False, 2, 240)
    watch.end(scan(data, Limits(), 160, watch.see).end)
    return np.array(watch.hashes, np.uint64)


def copies(paths: Sequence[Path]) -> None:
    names = ["", *COPIES]
    found = [hashes(path.read_bytes()) for path in paths]
    for options in COPIES.values():
        found += [hashes(recoded(path, preset="ultrafast", **options)) for path in paths]  # type: ignore[arg-type]
    clips = frames_of(np.concatenate(found), np.array([len(h) for h in found]), np.full(len(found), 0.5))
    n = len(paths)
    scenes = np.array([scene_of(path) for path in paths] * len(names))
    halves = np.array([odd(path) for path in paths])
    x, y = np.triu_indices(len(found), 1)
    for radius in (6, 12, 14):
        other = scenes[x] != scenes[y]
        false = alike(clips, x[other], y[other], radius)
        print(f"\nframe_radius {radius}: of {other.sum():,} pairs of different scenes the most alike share {false.max():.2f}\n")
        print("| copy | least | found at 0.4, 0.5, 0.6 on even | on odd |\n|---|---|---|---|")
        for k, name in enumerate(names[1:], 1):
            shares = alike(clips, np.arange(n), k * n + np.arange(n), radius)
            told = [", ".join(f"{(shares[h] >= t).sum()}" for t in (0.4, 0.5, 0.6)) + f" of {h.sum()}" for h in (~halves, halves)]
            print(f"| {name} | {shares.min():.2f} | {told[0]} | {told[1]} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--films", type=int, default=8)
    told = parser.parse_args()
    paths = sorted((told.data / "video").iterdir())
    cuts([p for p in paths if not any(part in p.name for part in NOT_ONE_SHOT)], told.films)
    copies([p for p in paths if "decord__video" not in p.name])


if __name__ == "__main__":
    main()
