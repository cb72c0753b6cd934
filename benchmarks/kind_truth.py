"""What each picture of the development data is: by its subset, and for the textbook figures by eye. And their features, OCR cached."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.kind_features import picture_features, text_features
from shards.image import decode_image
from shards.media import Limits
from shards.sample import uid_of

FIVE = ("photograph", "figure", "receipt", "page", "chart")
SOURCE = "dev"  # name of the source under which the uids are made

SUBSETS = {
    "coco2017": "photograph",
    "sroie_receipt": "receipt",
    "pdf_page": "page",
    "tesseract": "page",
    "scene_word": "scene_text",
    "scene_sign": "scene_text",
}  # rapidocr_test: single rendered lines, none of these

# The 373 textbook figures, numbers of their ids, looked at one by one. `figure_type` of the records goes by words of the caption and is
# wrong for 14 of 50 charts and maps (photographs of people with a map) and for 13 diagrams among the pictures.
CHARTS = """73 74 85-90 93 113 117 133-135 149 156 158 161 181 183 191 208 215 216 222 229 234 239 261 268 273 296 312 318 321 329 333
344 349 351 355 374 376 389 396 405 411 418 439"""
# Colour photographs of one view. All others are figures: black and white or sepia, paintings, drawings, posters, several in one.
PHOTOGRAPHS = """94-98 100-104 106-109 111 112 114 115 119 121 123 125 126 129 130 132 137-140 142-148 150-153 155 160 162-171 174 175 178
180 182 187 190 193-196 198-200 202 204-206 209 211-214 219 220 225 226 228 231 232 235 238 240-245 251-256 258 259 262 263 266 289 292
304 307 315 319 347 359 362 368 381 384 385 388 390 404 417 419 425 437"""
SIGNS = "332 348"  # photographs of little but words
# Documents, printed or written, and a screenshot, shown as figures: both at once, so neither right nor wrong. 431: map and photograph.
LEFT_OUT = "201 223 260 271 324 412 413 430 431 435"


@dataclass(frozen=True, slots=True)
class Labelled:
    """label: by sight. subset_label: where every textbook picture that is no chart counts as a figure, colour photographs too."""

    id: str
    file: Path
    label: str
    subset_label: str
    odd: bool


def labelled(data: Path) -> list[Labelled]:
    records = [json.loads(line) for line in (data / "manifest.jsonl").read_text("utf-8").splitlines()]
    charts, photographs, signs, left_out = (_numbers(text) for text in (CHARTS, PHOTOGRAPHS, SIGNS, LEFT_OUT))
    found = []
    for record in records:
        subset, number = record.get("subset"), int(record["id"].rsplit("-", 1)[1])
        if record["kind"] == "caption" and subset == "openstax" and number not in left_out:
            by_subset = "chart" if number in charts else "figure"
            label = "photograph" if number in photographs else "scene_text" if number in signs else by_subset
        elif record["kind"] in ("caption", "ocr") and subset in SUBSETS:
            label = by_subset = SUBSETS[subset]
        else:
            continue
        odd = int(uid_of(SOURCE, record["id"])[-1], 16) % 2 == 1
        found.append(Labelled(record["id"], data / record["files"][0], label, by_subset, odd))
    return found


def features(pictures: Sequence[Labelled], cache: Path) -> dict[str, dict[str, float]]:
    """id -> all features. Lines are read once and kept in `cache`, a JSON line for each picture."""
    lines = _lines(pictures, cache)
    found = {}
    for picture in pictures:
        pixels = decode_image(picture.file.read_bytes(), Limits())
        found[picture.id] = {**picture_features(pixels), **text_features(lines[picture.id], pixels)}
    return found


def default_cache() -> Path:
    return Path(os.environ.get("FOVEA_CACHE") or Path.home() / ".cache" / "fovea") / "kind-ocr.jsonl"


def _numbers(text: str) -> set[int]:
    numbers: set[int] = set()
    for word in text.split():
        first, _, last = word.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _lines(pictures: Sequence[Labelled], cache: Path) -> dict[str, list[Mapping[str, Any]]]:
    known = {r["id"]: r["lines"] for r in map(json.loads, cache.read_text("utf-8").splitlines())} if cache.exists() else {}
    missing = [picture for picture in pictures if picture.id not in known]
    if missing:
        from curation.ocr import STEP
        from tests.curation.views import media_view

        assert STEP.open is not None
        read = STEP.open(STEP.what(), STEP.how())
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("a", encoding="utf-8") as file:
            for picture in missing:
                [row] = read([media_view(picture.file)])
                assert isinstance(row, dict), row
                known[picture.id] = [{name: line[name] for name in ("text", "confidence", "polygon")} for line in row["lines"]]
                file.write(json.dumps({"id": picture.id, "lines": known[picture.id]}) + "\n")
    return known
