"""How good the steps `quality` and `kind` are on the development data.

    python -m benchmarks.kind_quality [--data ../shared/data] [--ocr-cache FILE]

quality   the 10 made groups; then photographs, textbook figures, pages and receipts spoiled here in the same five ways, strongly as in
          the groups, and mildly: the share of pictures whose clean version has the best score of the six.
kind      the committed forests on pictures with odd uids, which took no part in making them (benchmarks/kind_truth.py says what is true).
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.kind_truth import FIVE, default_cache, features, labelled
from curation.kind import forests, kind_shares
from curation.quality import quality
from shards.image import decode_image
from shards.media import Limits
from shards.sample import uid_of

Spoil = Callable[[Image.Image], Image.Image]
WAYS = ("blurred", "jpeg", "noisy", "tiny_upscaled", "underexposed")
STRENGTHS = {"strong": (3.0, 5, 30.0, 6, 0.12), "mild": (1.5, 15, 12.0, 3, 0.3)}  # radius, quality, σ, factor, gain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--ocr-cache", type=Path, default=default_cache())
    args = parser.parse_args()
    records = [json.loads(line) for line in (args.data / "manifest.jsonl").read_text("utf-8").splitlines()]
    groups = [record for record in records if record["kind"] == "quality"]
    best = [np.argmax([score(load(args.data / file)) for file in group["files"]]) == group["ops"].index("clean") for group in groups]
    print(f"quality: clean is best in {sum(best)} of {len(best)} groups")
    sets = {
        "photographs": [r for r in records if r.get("subset") == "coco2017"][:40],
        "textbook figures": [r for r in records if r.get("subset") == "openstax"][::9],
        "pages, receipts": [r for r in records if r.get("subset") in ("pdf_page", "sroie_receipt")][::2],
    }
    for name, chosen in sets.items():
        for parity in (0, 1):
            files = [args.data / r["files"][0] for r in chosen if int(uid_of("dev", r["id"])[-1], 16) % 2 == parity]
            for strength in STRENGTHS:
                print(f"  {name}, {('even', 'odd')[parity]} uids, {strength}: {spoiled(files, strength)}")
    seconds = time.perf_counter()
    clean = [score(load(args.data / r["files"][0])) for r in sets["photographs"]]
    print(f"  {(time.perf_counter() - seconds) / len(clean) * 1000:.0f} ms a photograph of 640×480, decoding included")
    for name, chosen in {**sets, "charts": [r for r in records if r.get("figure_type") in ("map", "chart_or_diagram")]}.items():
        found = np.percentile([score(load(args.data / r["files"][0])) for r in chosen], [10, 50, 90])
        print(f"  clean {name}: score at 10, 50, 90 %: {', '.join(f'{value:.2f}' for value in found)}")
    kinds(args.data, args.ocr_cache)


def kinds(data: Path, cache: Path) -> None:
    pictures = labelled(data)
    found = features(pictures, cache)
    for name, forest in forests().items():
        for odd in (False, True):
            some = [picture for picture in pictures if picture.odd == odd]
            answers = [answer(kind_shares(forest, values(found[picture.id], name))) for picture in some]
            print(f"kind, {name}, {'odd' if odd else 'even (made of these)'} uids")
            table("by sight", [p.label for p in some], answers, full=odd)
            table("every textbook picture that is no chart a figure", [p.subset_label for p in some], answers, full=False)


def values(found: dict[str, float], forest: str) -> dict[str, float]:
    return found if forest == "with_ocr" else {name: value for name, value in found.items() if name != "word_area"}


def answer(shares: dict[str, float]) -> str:
    return max(shares, key=lambda label: (shares[label], label))


def table(title: str, truth: list[str], answers: list[str], full: bool) -> None:
    """Macro means over the five; an answer of scene_text is wrong there."""
    recalls, scores = [], []
    lines = []
    for label in FIVE:
        right = sum(t == a == label for t, a in zip(truth, answers, strict=True))
        given = sum(a == label for t, a in zip(truth, answers, strict=True) if t in FIVE)
        there = truth.count(label)
        recalls.append(right / there)
        scores.append(2 * right / (there + given))
        wrong = {other: n for other in sorted(set(answers)) if other != label and (n := _pairs(truth, answers, label, other))}
        lines.append(f"    {label}: {right} of {there}, else {wrong}")
    print(f"  {title}: macro recall {np.mean(recalls):.3f}, macro F1 {np.mean(scores):.3f}")
    if full:
        print("\n".join(lines))
        texts = [a for t, a in zip(truth, answers, strict=True) if t == "scene_text"]
        print(f"    (no part of the five) scene_text: {texts.count('scene_text')} of {len(texts)}")


def _pairs(truth: list[str], answers: list[str], label: str, other: str) -> int:
    return sum(t == label and a == other for t, a in zip(truth, answers, strict=True))


def spoiled(files: list[Path], strength: str) -> str:
    wins: dict[str, list[bool]] = {way: [] for way in WAYS}
    for file in files:
        picture = Image.fromarray(load(file))
        clean = score(np.asarray(picture))
        for way, spoil in zip(WAYS, ways(*STRENGTHS[strength]), strict=True):
            worse = spoil(picture) if way == "jpeg" else jpeg(spoil(picture), 90)
            wins[way].append(clean > score(np.asarray(worse)))
    every = np.mean([all(won) for won in zip(*wins.values(), strict=True)])
    return f"clean best {every:.2f} of {len(files)} ({', '.join(f'{way} {np.mean(won):.2f}' for way, won in wins.items())})"


def ways(radius: float, encoding: int, sigma: float, factor: int, gain: float) -> tuple[Spoil, ...]:
    return (
        lambda im: im.filter(ImageFilter.GaussianBlur(radius)),
        lambda im: jpeg(im, encoding),
        lambda im: noisy(im, sigma),
        lambda im: im.resize((max(im.width // factor, 1), max(im.height // factor, 1)), Image.Resampling.LANCZOS).resize(im.size),
        lambda im: im.point(lambda value: int(value * gain)),
    )


def jpeg(picture: Image.Image, encoding: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=encoding)
    return Image.open(buffer).convert("RGB")


def noisy(picture: Image.Image, sigma: float) -> Image.Image:
    pixels = np.asarray(picture).astype(np.float64)
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def load(file: Path) -> np.ndarray:
    return decode_image(file.read_bytes(), Limits())


def score(pixels: np.ndarray) -> float:
    return float(quality(pixels)["score"])


if __name__ == "__main__":
    main()
