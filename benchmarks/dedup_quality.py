"""What each rung of `deduplicate` finds of the development data's copies, by transformation, beside imagededup's hashes, in one run.

    pip install --no-deps --target DIR imagededup==0.3.3.post2
    python -m benchmarks.dedup_quality [--data ../shared/data] [--imagededup DIR]

A threshold is the loosest that takes no pair of different pictures for copies among the 273 photographs and textbook figures of even number
(kinds dup and caption, every pair across groups); what is reported is found on those of odd number with it. Then the same at the step's own
defaults, and through the step itself: all pictures in one population. Documents (kind ocr) take no part in tuning: what each method makes
of them is a line of its own. benchmarks/dedup_truth.py says what is true.

imagededup is taken where it can be imported (it needs numpy, scipy, scikit-learn, PyWavelets, Pillow and tqdm, which are here, and torch
for a part that is not used). Its `methods.cnn` downloads weights when imported and is put aside; its hashes are the four that need none.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.dedup_truth import FAMILIES, Copy, Truth, read_truth
from curation.deduplicate import STEP
from curation.embed import What as EmbedWhat
from curation.embed import unit
from curation.encoders import load_encoder
from curation.orientations import orientations
from curation.population import population_of
from curation.probe import phash
from curation.vectors import write_vectors
from shards.image import decode_image
from shards.media import Limits

WIDTH = 1_280  # of the encoder's vectors
THEIRS = 10  # imagededup's default threshold
HASHES = ("PHash", "DHash", "WHash", "AHash")
RADII = (0, 2, 4, 6, 8, 10, 12)
COSINES = (0.98, 0.95, 0.92, 0.90, 0.85, 0.80, 0.75)
CAREFUL = {"phash_radius": 8, "flips": True, "cosine": 0.92}  # nothing false among photographs and figures of either parity
PARTS = ("dup", "caption", "document", "spoiled")
Near = np.ndarray  # bool (n, n): a method takes the two for copies of one another


@dataclass(frozen=True, slots=True)
class Seen:
    """Of n pictures: sha256; hashes uint64 (n,); mirrored uint64 (n,), hashes of the pixels mirrored; vectors float32 (n, d); size (n, 2),
    width and height; theirs: name of a method of imagededup → uint64 (n,)."""

    sha256: list[str]
    hashes: np.ndarray
    mirrored: np.ndarray
    vectors: np.ndarray
    size: np.ndarray
    theirs: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Measure:
    """A distance (n, n) between pictures, its default threshold, what it is tuned in steps of, and how a threshold is told."""

    name: str
    distance: np.ndarray
    default: float
    grain: float
    told: Callable[[float], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--imagededup", type=Path, help="folder it is installed in")
    args = parser.parse_args()
    truth = read_truth(args.data)
    seen = look(args.data, truth, rivals(args.imagededup))
    measures = [*ours(seen), *others(seen)]
    tuned = {m.name: loosest(truth, m) for m in measures}
    for title, thresholds in (("chosen on even numbers", tuned), ("as they come", {m.name: m.default for m in measures})):
        methods = with_ladder(measures, thresholds)
        for odd in (True, False):
            print(f"\n## Thresholds {title}: {('even', 'odd')[odd]} numbers\n")
            print(table(truth, methods, odd))
    print("\n## Thresholds between\n")
    print(curve(truth, measures))
    print(f"\nmirrored copies, bits apart: {mirrored(truth, seen)}")
    print("\n## Loosest thresholds without a false pair\n")
    for m in measures:
        least = [m.told(loosest(truth, m, parity)) for parity in (False, True)]
        documents = min(loosest(truth, m, parity, PARTS) for parity in (False, True))
        print(f"{m.name}: even {least[0]}, odd {least[1]}, with documents {m.told(documents)}")
    settings: dict[str, Any]
    for title, settings in (("as it comes", {}), ("careful", CAREFUL), ("chosen on even numbers", chosen(tuned))):
        print(f"\n## The step itself, {title}: {settings or STEP.what()}\n")
        print(through_the_step(truth, seen, settings))


def look(data: Path, truth: Truth, theirs: dict[str, Any]) -> Seen:
    what = EmbedWhat()
    encoder = load_encoder(what.model, what.weights, what.revision, what.precision, "cpu")
    n = len(truth.files)
    seen = Seen([], np.zeros(n, np.uint64), np.zeros(n, np.uint64), np.zeros((n, WIDTH), np.float32), np.zeros((n, 2), np.int64), {})
    found: dict[str, list[int]] = {name: [] for name in theirs}
    for i, file in enumerate(truth.files):
        body = (data / file).read_bytes()
        pixels = decode_image(body, Limits())
        seen.sha256.append(hashlib.sha256(body).hexdigest())
        seen.hashes[i] = phash(pixels)
        seen.mirrored[i] = phash(np.ascontiguousarray(pixels[:, ::-1]))
        seen.vectors[i] = unit(encoder.encode(encoder.prepare(pixels)[None]))[0]
        seen.size[i] = pixels.shape[1], pixels.shape[0]
        for name, method in theirs.items():
            found[name].append(int(method.encode_image(image_file=str(data / file)), 16))
    seen.theirs.update({name: np.array(values, np.uint64) for name, values in found.items()})
    return seen


def rivals(folder: Path | None) -> dict[str, Any]:
    """imagededup's methods by hashing; none where it is not installed."""
    if folder is not None:
        sys.path.append(str(folder))
    aside = types.ModuleType("imagededup.methods.cnn")
    aside.CNN = None  # type: ignore[attr-defined]
    sys.modules[aside.__name__] = aside
    try:
        methods = importlib.import_module("imagededup.methods")
    except ModuleNotFoundError as error:
        print(f"without imagededup ({error}): see --help")
        return {}
    return {name: getattr(methods, name)() for name in HASHES}


def ours(seen: Seen) -> list[Measure]:
    what = STEP.what()
    sha256 = np.array(seen.sha256)
    apart = (sha256[:, None] != sha256[None]).astype(np.float64)
    found = [Measure("sha256", apart, 0.0, 1.0, lambda t: "equal bytes")]
    for name, flips, rotations in (("phash", False, False), ("phash, flips", True, False), ("phash, flips, rotations", True, True)):
        distance = hamming(seen.hashes, orientations(seen.hashes, flips, rotations))
        found.append(Measure(name, distance, what.phash_radius, 1.0, _radius))
    vectors = seen.vectors.astype(np.float64)
    return [*found, Measure("embedding", 1 - vectors @ vectors.T, 1 - what.cosine, 0.01, lambda t: f"cosine {1 - t:.2f}")]


def others(seen: Seen) -> list[Measure]:
    return [Measure(name, hamming(hashes, hashes[:, None]), THEIRS, 1.0, _radius) for name, hashes in seen.theirs.items()]


def hamming(hashes: np.ndarray, views: np.ndarray) -> np.ndarray:
    """float64 (n, n): bits in which a picture's hash differs from the nearest of another's views, uint64 (n, k)."""
    return np.minimum.reduce([np.bitwise_count(hashes[:, None] ^ view[None]) for view in views.T]).astype(np.float64)


def with_ladder(measures: list[Measure], thresholds: dict[str, float]) -> list[tuple[str, str, Near]]:
    """(name, threshold as told, pairs) of each, and of the ladder: sha256, phash with flips, embedding."""
    found = [(m.name, m.told(thresholds[m.name]), m.distance <= thresholds[m.name] + 1e-9) for m in measures]
    rungs = [near for name, _, near in found if name in ("sha256", "phash, flips", "embedding")]
    return [*found[:5], ("ladder", "all of them", np.logical_or.reduce(rungs)), *found[5:]]


def curve(truth: Truth, measures: list[Measure]) -> str:
    """Markdown: hash radius and cosine from tight to loose, over copies of kind dup."""
    lines = ["| | even: found | odd: found | even: false | odd: false | documents: false |", "|---" * 6 + "|"]
    pictures = np.isin(truth.part, PARTS[:2])
    falsely = [different(truth, pictures & (truth.odd == odd)) for odd in (False, True)] + [different(truth, truth.part == "document")]
    for name, thresholds in (("phash, flips", RADII), ("embedding", tuple(1 - c for c in COSINES))):
        measure = next(m for m in measures if m.name == name)
        for threshold in thresholds:
            near = measure.distance <= threshold + 1e-9
            found = []
            for odd in (False, True):
                mine = [c for c in truth.copies if truth.odd[c.copy] == odd and truth.part[c.copy] == "dup"]
                found.append(f"{sum(bool(near[c.copy, c.original]) for c in mine)} of {len(mine)}")
            counts = [f"{int((near & pairs).sum())}" for pairs in falsely]
            lines.append(f"| {name}, {measure.told(threshold)} | " + " | ".join([*found, *counts]) + " |")
    return "\n".join(lines)


def mirrored(truth: Truth, seen: Seen) -> str:
    """What it costs that the hash of the mirror image is had from the picture's own hash, not from pixels."""
    flipped = orientations(seen.hashes, True, False)[:, 1]
    pairs = [(c.copy, c.original) for c in truth.copies if c.family == "mirrored"]
    found = {
        name: [int(np.bitwise_count(seen.hashes[a] ^ h[b])) for a, b in pairs] for name, h in (("hash", flipped), ("pixels", seen.mirrored))
    }
    return "; ".join(f"{name} mirrored {sorted(bits)}" for name, bits in found.items())


def loosest(truth: Truth, measure: Measure, odd: bool = False, parts: tuple[str, ...] = ("dup", "caption")) -> float:
    """The loosest threshold that takes no two different pictures of one parity for copies; below 0 where there is none."""
    least = float(measure.distance[different(truth, np.isin(truth.part, parts) & (truth.odd == odd))].min())
    return (np.ceil(least / measure.grain - 1e-9) - 1) * measure.grain


def different(truth: Truth, among: np.ndarray) -> Near:
    """Pairs of different pictures that both are `among`, each once."""
    return np.triu(among[:, None] & among[None] & (truth.group[:, None] != truth.group[None]), 1)


def table(truth: Truth, methods: list[tuple[str, str, Near]], odd: bool) -> str:
    """Markdown: a row for each transformation, a column for each method; then what it took for copies wrongly."""
    heads = [f"{name}<br>{told}" for name, told, _ in methods]
    lines = ["| transformation | copies |" + "|".join(heads) + "|", "|---" * (len(methods) + 2) + "|"]

    def line(name: str, copies: list[Copy]) -> str:
        cells = [str(sum(bool(near[c.copy, c.original]) for c in copies)) for _, _, near in methods]
        return f"| {name} | {len(copies)} | " + " | ".join(cells) + " |"

    mine = [c for c in truth.copies if truth.odd[c.copy] == odd]
    for family in dict.fromkeys(FAMILIES.values()):
        if some := [c for c in mine if c.family == family]:
            lines.append(line(family, some))
    lines.append(line("**all of kind dup**", [c for c in mine if not c.family.startswith("spoiled")]))
    here = truth.odd == odd
    dup, pictures, documents = truth.part == "dup", np.isin(truth.part, ("dup", "caption")), truth.part == "document"
    labelled = np.zeros((len(here), len(here)), bool)
    labelled[truth.apart[:, 0], truth.apart[:, 1]] = True
    labelled &= here[:, None] & here[None]
    for name, pairs in (
        ("false: labelled as no copies", labelled),
        ("false: pairs across groups of kind dup", different(truth, dup & here)),
        ("false: photographs and figures", different(truth, pictures & here)),
        ("false: documents", different(truth, documents & here)),
    ):
        lines.append(f"| {name} | of {int(pairs.sum()):,} | " + " | ".join(str(int((near & pairs).sum())) for _, _, near in methods) + " |")
    return "\n".join(lines)


def chosen(tuned: dict[str, float]) -> dict[str, Any]:
    """The step's parameters at tuned thresholds."""
    return {"phash_radius": int(tuned["phash, flips"]), "flips": True, "cosine": float(round(1 - tuned["embedding"], 2))}


def through_the_step(truth: Truth, seen: Seen, settings: dict[str, Any]) -> str:
    """What `deduplicate` says of photographs and figures, and with documents and spoiled pictures among them, in one population each."""
    lines = []
    for name, parts in (("photographs and figures", PARTS[:2]), ("with documents and spoiled pictures", PARTS)):
        chosen = np.flatnonzero(np.isin(truth.part, parts))
        rows = step_rows(seen, chosen, STEP.what(embedding="embedding", keep_best="width * height desc", **settings))
        groups = {int(i): row["group"] for i, row in zip(chosen, rows, strict=True)}
        copies = [(int(i), int(row["of"]), row) for i, row in zip(chosen, rows, strict=True) if row["of"] is not None]
        wrong = [(i, of, row) for i, of, row in copies if truth.group[i] != truth.group[of]]
        lines += [
            f"{name}: {len(rows)} in, {len(rows) - len(copies)} kept, {len(copies)} copies, {len(wrong)} of them of a different picture"
        ]
        for i, of, row in wrong[:20]:
            lines.append(f"  {truth.files[i]} of {truth.files[of]}: {row['rung']} {row['similarity']:.3f}")
        for odd in (False, True):
            told = []
            for family in dict.fromkeys(FAMILIES.values()):
                mine = [c for c in truth.copies if c.family == family and truth.odd[c.copy] == odd and c.copy in groups]
                if mine:
                    told.append(f"{family} {sum(groups[c.copy] == groups[c.original] for c in mine)} of {len(mine)}")
            lines.append(f"  {('even', 'odd')[odd]}: " + ", ".join(told))
    return "\n".join(lines)


def step_rows(seen: Seen, chosen: np.ndarray, what: Any) -> list[dict[str, Any]]:
    """The step's answers for the pictures `chosen`, ascending; uids are their places."""
    columns = {
        "uid": pa.array([f"{i:06d}" for i in chosen]),
        "kind": pa.array(["image"] * len(chosen)),
        "sha256": pa.array([[seen.sha256[i]] for i in chosen]),
        "phash": pa.array([[int(h)] for h in seen.hashes[chosen]], pa.list_(pa.uint64())),
        "width": pa.array([[int(w)] for w in seen.size[chosen, 0]]),
        "height": pa.array([[int(h)] for h in seen.size[chosen, 1]]),
    }
    with tempfile.TemporaryDirectory() as folder:
        batch = (np.arange(len(chosen)), np.zeros(len(chosen), np.int64), seen.vectors[chosen])
        vectors = write_vectors(Path(folder) / "vectors", len(chosen), np.zeros((0, 2), np.int64), [batch], digest="embed")
        population = population_of(pa.table(columns), Path(folder), vectors={"embedding": vectors}, digests={"embedding": "embed"})
        assert STEP.reduce is not None
        rows: list[dict[str, Any]] = STEP.reduce(what, population).to_pylist()
    return rows


def _radius(threshold: float) -> str:
    return f"radius {threshold:.0f}" if threshold >= 0 else "no radius"


if __name__ == "__main__":
    main()
