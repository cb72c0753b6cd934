"""How well signatures tell an edited text from another text: the development set's texts, edited, among all of them.

    python -m benchmarks.text_edits ../shared/data [--half even|odd]

Each text of a subset (its captions, and the turns of its conversations) is edited in six ways, seeded; an edit is found at a Jaccard floor
when its signature agrees with the original's in that share of numbers. False pairs: pairs of records of the subset that agree so and whose
words are not the same. "rephrased" are COCO's captions of one picture by different people: other texts, so what is found of them is
false as well. Settings are chosen on even uids and reported on odd ones.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from curation.minhash import What, empty_signature, shingles_of, signature_of, words_of
from shards.sample import uid_of

NGRAMS = (1, 2, 3, 5)
FLOORS = (0.5, 0.6, 0.7, 0.8, 0.9)
TAILS = ("Photo by the author.", "Click here to see more pictures.", "(stock photograph)", "All rights reserved.", "Like and subscribe!")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--half", choices=["even", "odd"], default="odd")
    args = parser.parse_args()
    subsets, rephrased = texts_of(args.data, args.half)
    print(f"{'subset':10}{'texts':>6}{'words':>6}{'ngram':>6}  {'edit':18}", *[f"{floor:>6}" for floor in FLOORS], " found at the floor")
    for subset, texts in subsets.items():
        words = int(np.median([len(words_of(text)) for text in texts]))
        for ngram in NGRAMS:
            for edit, shares in score(texts, ngram, rephrased if subset == "coco" else []).items():
                cells = [f"{share:6.0f}" if edit == "false pairs" else f"{share:6.2f}" for share in shares]
                print(f"{subset:10}{len(texts):6}{words:6}{ngram:6}  {edit:18}", *cells)
    every = [text for texts in subsets.values() for text in texts]
    what, empty, at = What(), empty_signature(What()), time.process_time()
    for text in every:
        signature_of(shingles_of(words_of(text), what.ngram), empty)
    mean = np.mean([len(words_of(text)) for text in every])
    print(f"{(time.process_time() - at) / len(every) * 1e3:.3f} ms of processor time a text of {mean:.0f} words on average")


def texts_of(data: Path, half: str) -> tuple[dict[str, list[str]], list[list[str]]]:
    """(texts by subset, the captions of each COCO picture) of the records with even or odd uids."""
    subsets: dict[str, list[str]] = defaultdict(list)
    rephrased = []
    for line in (data / "manifest.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        if int(uid_of("dev", record["id"]), 16) % 2 != (half == "odd"):
            continue
        if record["kind"] == "caption":
            coco = record["subset"].startswith("coco")
            subsets["coco" if coco else "openstax"].append(record["text"])
            if coco:
                rephrased.append(record["captions"])
        elif record["kind"] in ("sft", "text"):
            subsets[record["kind"]].append("\n".join(turn["value"].replace("<image>", "") for turn in record["conversations"]))
    return dict(subsets), rephrased


def edits_of(text: str, other: str, chance: random.Random) -> dict[str, str]:
    words = text.split()
    i, j, k = chance.randrange(len(words)), chance.randrange(len(words)), chance.randrange(max(1, len(words) - 1))
    return {
        "case, punctuation": text.upper().replace(", ", " – ").replace(". ", "! ").rstrip("."),
        "word dropped": " ".join(words[:i] + words[i + 1 :]),
        "word changed": " ".join([*words[:j], chance.choice(other.split()), *words[j + 1 :]]),
        "words swapped": " ".join([*words[:k], *words[k + 1 : k + 2], words[k], *words[k + 2 :]]),
        "sentence appended": f"{text} {chance.choice(TAILS)}",
        "sentence prefixed": f"{chance.choice(TAILS)} {text}",
    }


def score(texts: list[str], ngram: int, rephrased: list[list[str]]) -> dict[str, list[float]]:
    """Share of each edit that is found at each floor; numbers of false pairs."""
    empty, chance = empty_signature(What()), random.Random(0)

    def signed(text: str) -> np.ndarray:
        return signature_of(shingles_of(words_of(text), ngram), empty)

    originals = np.stack([signed(text) for text in texts])
    found: dict[str, list[float]] = defaultdict(list)
    for i, text in enumerate(texts):
        for edit, changed in edits_of(text, texts[(i + 7) % len(texts)], chance).items():
            found[edit].append((signed(changed) == originals[i]).mean() if changed.strip() else 0.0)
    for captions in rephrased:
        signatures = np.stack([signed(caption) for caption in captions])
        found["rephrased"] += [(a == b).mean() for i, a in enumerate(signatures) for b in signatures[i + 1 :]]
    shares = {edit: [float(np.mean([s >= floor for s in values])) for floor in FLOORS] for edit, values in found.items()}
    words = [words_of(text) for text in texts]
    agreement = np.array([(a == b).mean() for i, a in enumerate(originals) for j, b in enumerate(originals[:i]) if words[i] != words[j]])
    return {**shares, "false pairs": [int((agreement >= floor).sum()) for floor in FLOORS]}


if __name__ == "__main__":
    main()
