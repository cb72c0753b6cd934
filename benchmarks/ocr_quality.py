"""The step `ocr` beside PaddleOCR called alone, on the same pictures with the same models, in one run.

    python benchmarks/ocr_quality.py [--data ../shared/data] [--subset sroie_receipt] [--odd] [--turned] [--most 12]

For each subset of the kind `ocr`: word recall (words of the truth that were read, each as often as it stands there, upper case), character
error rate on the text in its order and on the same words sorted, and CPU seconds of one thread for each picture (elapsed time would tell
what else the machine did). PaddleOCR runs with its own defaults for detection and recognition, ONNX Runtime, no models for orientation.
Ours runs as the recipe's defaults have it, and once more with tiles and rotation off. --odd: only records of odd number, those that nothing
was tuned on. --turned: the same on pages turned by 90, 180 and 270 degrees, and on four pages on one large sheet.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")

from curation.ocr import OcrHow, What, engine_of, settings_of
from curation.ocr_models import PACKAGE, prepare_model
from curation.ocr_read import read_picture
from shards.image import decode_image
from shards.media import Limits

Reader = Callable[[np.ndarray], str]
GOAL = 1.15  # of PaddleOCR's time, tiles and rotation off


@dataclass(frozen=True, slots=True)
class Case:
    subset: str
    pixels: np.ndarray
    truth: str


@dataclass(slots=True)
class Score:
    found: int = 0
    words: int = 0
    errors: int = 0
    unordered: int = 0
    characters: int = 0
    seconds: float = 0.0
    pictures: int = 0

    def told(self) -> str:
        share = max(self.characters, 1)
        return (
            f"recall {self.found / max(self.words, 1):.3f}  error in order {self.errors / share:.3f}  "
            f"sorted {self.unordered / share:.3f}  {self.seconds / max(self.pictures, 1):.2f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--subset", default="", help="only this one")
    parser.add_argument("--odd", action="store_true")
    parser.add_argument("--turned", action="store_true")
    parser.add_argument("--most", type=int, default=0, help="pictures of a subset; 0 = all")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in (arguments.data / "manifest.jsonl").read_text("utf-8").splitlines()]
    records = [r for r in records if r["kind"] == "ocr" and r.get("text") and (not arguments.odd or int(r["id"][-4:]) % 2)]
    records = [r for r in records if arguments.subset in ("", r["subset"])]
    cases = list(_read(arguments.data, records, arguments.most))
    if arguments.turned:
        cases = list(_turned([case for case in cases if case.subset == "pdf_page"]))
    engine, settings = engine_of(What(), OcrHow()), settings_of(What())
    readers: dict[str, Reader] = {
        "PaddleOCR": _paddle(),
        "ours, tiles and rotation off": lambda pixels: _text(engine, replace(settings, tiles="off", rotate=False), pixels),
        "ours": lambda pixels: _text(engine, settings, pixels),
    }
    scores = {(case.subset, name): Score() for case in cases for name in readers}
    for read in readers.values():
        read(cases[0].pixels)  # the first call of a session is slower
    for case in cases:
        for name, read in readers.items():
            _measure(scores[case.subset, name], case, read)
    for subset in dict.fromkeys(case.subset for case in cases):
        print(f"{subset}: {sum(case.subset == subset for case in cases)} pictures")
        for name in readers:
            print(f"    {name:30} {scores[subset, name].told()}")
    total = {name: sum(score.seconds for (_, n), score in scores.items() if n == name) for name in readers}
    for name in list(readers)[1:]:
        print(f"{name}: {total[name] / total['PaddleOCR']:.2f} of PaddleOCR's time")
    print(f"goal with tiles and rotation off: {GOAL}")


def word_recall(truth: str, found: str) -> tuple[int, int]:
    """Words of the truth that were read, and how many there are."""
    wanted = Counter(re.findall(r"\w+", truth.upper()))
    return sum((wanted & Counter(re.findall(r"\w+", found.upper()))).values()), sum(wanted.values())


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's, a row of the table at a time."""
    left, right = (np.frombuffer(text.encode("utf-32-le"), np.uint32) for text in (a, b))
    place = np.arange(len(right) + 1)
    row = place
    for i, letter in enumerate(left):
        row = np.concatenate(([i + 1], np.minimum(row[1:] + 1, row[:-1] + (right != letter))))
        row = np.minimum.accumulate(row - place) + place
    return int(row[-1])


def _measure(score: Score, case: Case, read: Reader) -> None:
    began = time.process_time()
    text = read(case.pixels)
    score.seconds += time.process_time() - began
    found, words = word_recall(case.truth, text)
    truth, words_read = case.truth.upper().split(), text.upper().split()
    score.pictures += 1
    score.found += found
    score.words += words
    score.errors += edit_distance(" ".join(truth), " ".join(words_read))
    score.unordered += edit_distance(" ".join(sorted(truth)), " ".join(sorted(words_read)))
    score.characters += len(" ".join(truth))


def _paddle() -> Reader:
    from paddleocr import PaddleOCR

    logging.getLogger("paddlex").setLevel(logging.ERROR)
    det, rec = prepare_model("det", PACKAGE), prepare_model("rec", PACKAGE)
    reader = PaddleOCR(
        text_detection_model_name=det.name,
        text_detection_model_dir=str(det.folder),
        text_recognition_model_name=rec.name,
        text_recognition_model_dir=str(rec.folder),
        use_doc_orientation_classify=False,
        use_doc_unwarping=False,
        use_textline_orientation=False,
        engine="onnxruntime",
        engine_config={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
        device="cpu",
    )
    return lambda pixels: "\n".join(reader.predict(np.ascontiguousarray(pixels[:, :, ::-1]))[0]["rec_texts"])


def _text(engine, settings, pixels: np.ndarray) -> str:
    return "\n".join(line.text for line in read_picture(engine, settings, pixels).lines)


def _read(data: Path, records: list[dict], most: int) -> Iterable[Case]:
    taken: Counter[str] = Counter()
    for record in records:
        taken[record["subset"]] += 1
        if not most or taken[record["subset"]] <= most:
            yield Case(record["subset"], decode_image((data / record["files"][0]).read_bytes(), Limits()), record["text"])


def _turned(pages: list[Case]) -> Iterable[Case]:
    for page in pages:
        for turns in range(1, 4):
            yield Case(f"page turned by {90 * turns}", np.ascontiguousarray(np.rot90(page.pixels, turns)), page.truth)
    for first in range(0, len(pages) - 3, 4):
        four = pages[first : first + 4]
        height, width = (max(page.pixels.shape[axis] for page in four) for axis in (0, 1))
        sheet = np.full((2 * height, 2 * width, 3), 255, np.uint8)
        for i, page in enumerate(four):
            top, left = i // 2 * height, i % 2 * width
            sheet[top : top + page.pixels.shape[0], left : left + page.pixels.shape[1]] = page.pixels
        yield Case("four pages on a sheet", sheet, "\n".join(page.truth for page in four))


if __name__ == "__main__":
    main()
