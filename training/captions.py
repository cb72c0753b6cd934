"""Captions beside several references: BLEU-4 and ROUGE-L by torchmetrics, CIDEr-D by pycocoevalcap where it is installed.

docs/decisions has why these. None of it downloads anything or needs Java; METEOR and SPICE do, so they are not here.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

log = logging.getLogger("fovea")

_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Of a corpus, and of each caption: name → value, name → [captions].

    bleu4   0..1, of the corpus alone: counts of all captions together (Papineni et al. 2002).
    rouge_l 0..1, F1 of the longest common subsequence with the best reference (Lin 2004); the mean over captions.
    cider_d 0..10, cosine of tf-idf weighted n-grams with clipping and length penalty, σ = 6 (Vedantam et al. 2015; what is called CIDEr on
            COCO), idf from these references; the mean over captions. Absent for a single caption, whose idf is 0, and where
            pycocoevalcap is not installed.
    """

    corpus: dict[str, float]
    each: dict[str, list[float]]


def has_cider() -> bool:
    return importlib.util.find_spec("pycocoevalcap") is not None


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """`references`: at least one for each caption. Texts are cut into words by the rules of the Penn Treebank, as COCO's evaluation does
    (its tokenizer is a Java program; here it is nltk's); lower case, without what is punctuation alone."""
    from torchmetrics.functional.text.bleu import bleu_score
    from torchmetrics.functional.text.rouge import rouge_score

    said = [words(caption) for caption in captions]
    meant = [[words(reference) for reference in several] for several in references]
    each: dict[str, list[float]] = {
        "rouge_l": [
            float(rouge_score(a, [b], "best", normalizer=str, tokenizer=str.split, rouge_keys="rougeL")["rougeL_fmeasure"])
            for a, b in zip(said, meant, strict=True)
        ],
    }
    corpus = {"bleu4": float(bleu_score(said, meant)), "rouge_l": sum(each["rouge_l"]) / len(said)}
    if len(said) < 2:
        return CaptionScores(corpus, each)
    if has_cider():
        from pycocoevalcap.cider.cider import Cider

        mean, values = Cider().compute_score(dict(enumerate(meant)), {i: [caption] for i, caption in enumerate(said)})
        corpus["cider_d"], each["cider_d"] = float(mean), [float(value) for value in values]
    else:
        log.warning("no CIDEr-D: pycocoevalcap is not installed (pip install 'fovea-vlm[captions]')")
    return CaptionScores(corpus, each)


def words(text: str) -> str:
    """The words of a caption, lower case, a space between them: `A man's dog, running!` → `a man 's dog running`."""
    from nltk.tokenize import NLTKWordTokenizer

    tokens = (token for token in NLTKWordTokenizer().tokenize(text.lower()) if _WORD.search(token))
    return " ".join(token if "." in token[:-1] else token.rstrip(".") for token in tokens)  # it cuts off the last sentence's period only
