"""Which pictures of the development data are copies of which, by what transformation, and which are none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif"})
FAMILIES = {
    "natural": "natural",
    "jpeg_q20": "re-encoded",
    "webp_q60": "re-encoded",
    "resize_half": "resized",
    "resize": "resized",
    "shrink-a-little": "resized",
    "shrink-a-lot": "resized",
    "aspect_stretch": "stretched",
    "square-128x128": "stretched",
    "square-256x256": "stretched",
    "square-512x512": "stretched",
    "bright_gray": "brighter and grey",
    "high-contrast": "contrast, saturation",
    "high-saturation": "contrast, saturation",
    "blur-a-little": "blurred",
    "blur-a-lot": "blurred",
    "text_bar": "bar of text",
    "border": "border",
    "crop_90": "cropped to 90 %",
    "crop_60": "cropped to 60 %",
    "hflip": "mirrored",
    "rotation": "turned by an angle",
    "clean": "spoiled: another size",
    "blur": "spoiled: blurred",
    "jpeg_q5": "spoiled: JPEG quality 5",
    "noise": "spoiled: noisy",
    "tiny_upscaled": "spoiled: tiny, upscaled",
    "underexposed": "spoiled: underexposed",
}
# Pages that no record pairs and that look the same, by eye: two PDF renderings each, and one page turned by 90, 180 and 270 degrees.
SAME_BY_EYE = (
    ("ocr/pdf_page/006-pdflatex-outline_pdflatex-outline.p1.png", "ocr/pdf_page/014-outlines_mistitled_outlines_example.p1.png"),
    ("ocr/pdf_page/001-trivial_minimal-document.p1.png", "ocr/pdf_page/025-attachment_with-attachment.p1.png"),
    (
        "ocr/tesseract/phototest.tif",
        "ocr/tesseract/phototest-rotated-L.png",
        "ocr/tesseract/phototest-rotated-R.png",
        "ocr/tesseract/phototest-rotated-180.png",
    ),
)


@dataclass(frozen=True, slots=True)
class Copy:
    """copy, original: places in Truth.files."""

    copy: int
    original: int
    family: str


@dataclass(frozen=True, slots=True)
class Truth:
    """n pictures.

    files   relative to the data's folder. group: int64 (n,), equal for pictures that show the same; unions of overlapping groups.
    part    "dup", "caption", "document" (kind ocr) or "spoiled" (kind quality), of each; the first that names it in this order.
    odd     bool (n,): of pictures that any record names together, the least number of those records (kind dup first) is odd.
    copies  each made copy with its original, and each natural pair. apart: int64 (k, 2), pairs that are labelled as no copies.
    """

    files: list[str]
    group: np.ndarray
    part: np.ndarray
    odd: np.ndarray
    copies: list[Copy]
    apart: np.ndarray


def read_truth(data: Path) -> Truth:
    records = [json.loads(line) for line in (data / "manifest.jsonl").read_text("utf-8").splitlines()]
    by_kind = {kind: [r for r in records if r["kind"] == kind] for kind in ("dup", "caption", "ocr", "quality")}
    place: dict[str, int] = {}
    parts: list[str] = []
    for kind, part in (("dup", "dup"), ("caption", "caption"), ("ocr", "document"), ("quality", "spoiled")):
        for file in (file for record in by_kind[kind] for file in pictures(record)):
            if file not in place:
                place[file] = len(parts)
                parts.append(part)
    copies: list[Copy] = []
    same: list[Sequence[int]] = []
    apart: list[Sequence[int]] = []
    for record in by_kind["dup"]:
        places = [place[file] for file in pictures(record)]
        if record["label"].startswith("not_dup"):
            apart += [(a, b) for i, a in enumerate(places) for b in places[:i]]
            continue
        same.append(places)
        copies += [Copy(p, places[0], family_of(record, k)) for k, p in enumerate(places) if k]
    by_id = {record["id"]: record for record in by_kind["caption"]}
    for record in by_kind["quality"]:
        original = place[by_id[Path(record["files"][0]).name.split("__")[0]]["files"][0]]
        same.append([original, *(place[file] for file in pictures(record))])
        copies += [Copy(place[file], original, FAMILIES[op]) for file, op in zip(record["files"], record["ops"], strict=True)]
    same += [[place[file] for file in files] for files in SAME_BY_EYE]
    digests: dict[str, int] = {}
    for file, p in place.items():
        same.append([p, digests.setdefault(hashlib.sha256((data / file).read_bytes()).hexdigest(), p)])
    together = unions(len(parts), [*same, *apart])
    number: dict[int, int] = {}
    for record in (record for kind in by_kind.values() for record in kind):
        for file in pictures(record):
            number.setdefault(int(together[place[file]]), int(record["id"].rsplit("-", 1)[1]))
    odd = np.array([number[int(t)] % 2 == 1 for t in together])
    group = unions(len(parts), same)
    return Truth(list(place), group, np.array(parts), odd, copies, np.array(apart, np.int64).reshape(-1, 2))


def pictures(record: dict[str, Any]) -> list[str]:
    return [file for file in record["files"] if Path(file).suffix.lower() in PICTURES]


def family_of(record: dict[str, Any], number: int) -> str:
    """How file `number` of a group was made of its first."""
    if record["dup_type"] == "natural":
        return FAMILIES["natural"]
    made = record["ops"][number] if "ops" in record else Path(record["files"][number]).stem.rsplit("_", 1)[1]
    return FAMILIES[made.removesuffix(".jpg")]


def unions(count: int, sets: Iterable[Sequence[int]]) -> np.ndarray:
    """int64 (count,): the least member of the union that each belongs to."""
    parent = list(range(count))

    def top(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for members in sets:
        for other in members[1:]:
            a, b = sorted((top(members[0]), top(other)))
            parent[b] = a
    return np.array([top(i) for i in range(count)], np.int64)
