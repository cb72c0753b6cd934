"""The ladder by its definition, all with all, in plain Python: what `curation.deduplicate.reduce` is held against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.deduplicate import What
from curation.ladder_frames import FEWEST_BITS, SEED
from curation.orientations import orientations
from curation.population import Population, population_of
from curation.vectors import Vectors, write_vectors

Near = tuple[int, float]  # rung, similarity
NAMES = ("sha256", "phash", "frames", "embedding", "text")


@dataclass(frozen=True)
class Medium:
    sha: str | None = None
    phash: int | None = None
    vector: tuple[float, ...] | None = None
    frames: tuple[int, ...] | None = None
    step: float = 0.5


@dataclass(frozen=True)
class Made:
    """A row. media: of it. text: stands for its hash; signature: 16 numbers. score: what keep_best may name."""

    uid: str
    media: tuple[Medium, ...] = ()
    text: str | None = None
    signature: tuple[int, ...] | None = None
    source: str | None = "s"
    score: float = 0.0
    reference: bool = False

    @property
    def kind(self) -> str:
        return "image" if self.media else "text"


def opened(rows: list[Made], scratch: Path, **more: Any) -> Population:
    """The rows as a population, references last."""
    rows = sorted((r for r in rows if not r.reference), key=lambda r: r.uid) + [r for r in rows if r.reference]
    table = pa.table(
        {
            "uid": pa.array([r.uid for r in rows], pa.string()),
            "kind": pa.array([r.kind for r in rows], pa.string()),
            "sha256": pa.array([[m.sha for m in r.media] for r in rows], pa.list_(pa.string())),
            "phash": pa.array([[m.phash for m in r.media] for r in rows], pa.list_(pa.uint64())),
            "video_hashes": pa.array([[m.frames for m in r.media] for r in rows], pa.list_(pa.list_(pa.uint64()))),
            "video_hash_step": pa.array([[m.step for m in r.media] for r in rows], pa.list_(pa.float32())),
            "text_hash": pa.array([r.text for r in rows], pa.string()),
            "source": pa.array([r.source for r in rows], pa.string()),
            "score": pa.array([r.score for r in rows], pa.float64()),
        }
    )
    several = [(i, m) for i, r in enumerate(rows) for m in range(1, len(r.media))]
    pictures = [(i, m, medium.vector) for i, r in enumerate(rows) for m, medium in enumerate(r.media) if medium.vector is not None]
    words = [(i, 0, r.signature) for i, r in enumerate(rows) if r.signature is not None]
    vectors = {
        "embedding": _laid(scratch / "embedding", len(rows), several, pictures, "float32"),
        "minhash": _laid(scratch / "minhash", len(rows), [], words, "uint32"),
    }
    return population_of(table, scratch, vectors=vectors, references=sum(r.reference for r in rows), **more)


def _laid(folder: Path, rows: int, more: list[tuple[int, int]], values: list[tuple[int, int, Any]], dtype: str) -> Vectors:
    batch = (np.array([v[0] for v in values]), np.array([v[1] for v in values]), np.array([v[2] for v in values], dtype))
    return write_vectors(folder, rows, np.array(more, np.int64).reshape(-1, 2), [batch] if values else [], dtype=dtype)


def near(what: What, a: Made, b: Made) -> Near | None:
    """How two rows are near, None where they are not."""
    if a.reference and b.reference:
        return None
    if not (a.reference or b.reference) and what.across != "all" and (a.source == b.source) != (what.across == "source"):
        return None
    found = []
    if what.on != "texts":
        if not a.media or len(a.media) != len(b.media):
            return None
        found += [_media(what, x, y) for x, y in zip(a.media, b.media, strict=True)]
    rungs = [f[0] for f in found if f is not None]
    if what.on != "media":
        found.append(_texts(what, a, b))
    if None in found:
        return None
    return max(rungs, default=4), min(f[1] for f in found if f is not None)


def _media(what: What, a: Medium, b: Medium) -> Near | None:
    if what.sha256 and a.sha is not None and a.sha == b.sha:
        return 0, 1.0
    if what.phash_radius and a.phash is not None and b.phash is not None:
        turned = orientations(np.array([a.phash], np.uint64), what.flips, what.rotations)[0].tolist()
        apart = min((t ^ b.phash).bit_count() for t in turned)
        flat = any(not FEWEST_BITS <= h.bit_count() <= 64 - FEWEST_BITS for h in (a.phash, b.phash))
        if apart <= what.phash_radius and not flat:
            return 1, 1 - apart / 64
    if what.frames and a.frames and b.frames:
        share = shared(what.frame_radius, a, b)
        if share >= what.frame_share - 1e-7:
            return 2, share
    if what.embedding and a.vector is not None and b.vector is not None and any(a.vector) and any(b.vector):
        x, y = (np.array(v, np.float32) for v in (a.vector, b.vector))
        x, y = (v / np.sqrt((v.astype(np.float64) ** 2).sum()) for v in (x, y))
        cosine = float((x.astype(np.float32).astype(np.float64) * y.astype(np.float32)).sum())
        if cosine >= what.cosine:
            return 3, cosine
    return None


def shared(radius: int, a: Medium, b: Medium) -> float:
    """How alike two clips are: every offset between two frames that are each other's moment, every frame at each."""
    clips = []
    for clip in (a, b):
        told = [
            (round(1000 * clip.step * k), h) for k, h in enumerate(clip.frames or ()) if FEWEST_BITS <= h.bit_count() <= 64 - FEWEST_BITS
        ]
        runs: list[list[tuple[int, int]]] = []
        for one in told:
            if runs and (one[1] ^ runs[-1][0][1]).bit_count() <= SEED:
                runs[-1].append(one)
            else:
                runs.append([one])
        weights = [1 / len(run) / len(runs) for run in runs for _ in run]
        seeds: list[tuple[int, int]] = []
        for one in told:
            if all((one[1] ^ seed[1]).bit_count() > SEED for seed in seeds):
                seeds.append(one)
        clips.append((told, weights, seeds, round(1000 * clip.step)))
    (x, of_x, seeds_x, step_x), (y, of_y, seeds_y, step_y) = clips
    slack, best = max(step_x, step_y), 0.0
    for d in {t - s for s, g in seeds_x for t, h in seeds_y if (g ^ h).bit_count() <= SEED}:

        def agree(s: int, g: int, t: int, h: int, d: int = d) -> bool:
            return abs(t - s - d) <= slack and (g ^ h).bit_count() <= radius

        first = sum(w for (s, g), w in zip(x, of_x, strict=True) if any(agree(s, g, t, h) for t, h in y))
        second = sum(w for (t, h), w in zip(y, of_y, strict=True) if any(agree(s, g, t, h) for s, g in x))
        best = max(best, min(first, second))
    return min(best, 1.0)


def _texts(what: What, a: Made, b: Made) -> Near | None:
    if a.text == b.text and (a.text is not None or what.on == "both"):
        return 4, 1.0
    if what.texts and a.signature is not None and b.signature is not None:
        share = float(np.mean(np.array(a.signature) == np.array(b.signature)))
        if share >= what.jaccard:
            return 4, share
    return None


def same(what: What, a: Made, b: Made) -> bool:
    """Whether two rows share one verdict."""
    if what.across == "sources" or (what.on != "texts" and not what.sha256):
        return False
    if what.across == "source" and (a.source != b.source or a.reference != b.reference):
        return False
    texts = a.text == b.text and (a.text is not None or what.on == "both")
    bytes_ = bool(a.media) and [m.sha for m in a.media] == [m.sha for m in b.media] and None not in [m.sha for m in a.media]
    return {"media": bytes_, "texts": texts, "both": bytes_ and texts}[what.on]


def expected(what: What, rows: list[Made]) -> dict[str, tuple[str | None, str | None, float | None]]:
    """uid → (of, rung, similarity) of each sample."""
    order = sorted(rows, key=lambda r: (not r.reference, -r.score if what.keep_best else 0, r.uid))
    stays: list[Made] = []
    first: list[Made] = []
    verdict: dict[str, tuple[str | None, str | None, float | None]] = {}
    for row in order:
        twin = next((f for f in first if same(what, f, row)), None)
        if row.reference:
            verdict[row.uid] = (None, None, None)
            stays.append(row)
        elif twin is not None:
            of, rung, alike = verdict[twin.uid]
            verdict[row.uid] = (of, rung, alike) if of is not None else (twin.uid, "text" if what.on == "texts" else "sha256", 1.0)
        else:
            found = [(n[0], -n[1], at) for at, other in enumerate(stays) if (n := near(what, other, row)) is not None]
            if found:
                rung_, alike_, at = min(found)
                verdict[row.uid] = (stays[at].uid, NAMES[rung_], -alike_)
            else:
                verdict[row.uid] = (None, None, None)
                stays.append(row)
        if twin is None:
            first.append(row)
    return {r.uid: verdict[r.uid] for r in rows if not r.reference}
