"""What sort of picture it is: photograph, book figure, receipt, page, chart, scene text; by its pixels and its text, with CLIP if given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa

import curation.clip as clip
from curation.embed import unit
from curation.forest import Forest, forest_from_json
from curation.kind_features import picture_features, text_features
from curation.models import Model
from curation.step import Column, How, Result, Row, Step
from curation.view import MediaView, each
from shards.errors import InfrastructureError
from shards.sample import digest_of

IMAGE = frozenset({"image"})
SCENE_TEXT_AREA = 0.35  # share of a photograph under words from which the text is what it shows
CLIP_SHARE = 0.5  # of CLIP's word in the answer, where there is one
LOGIT_SCALE = 100.0  # CLIP's own, at which its training was held (Radford et al. 2021, §2.5)

# Prompts in the manner of CLIP's own: several for each label, their vectors averaged (§3.1.4 there).
PROMPTS: Mapping[str, tuple[str, ...]] = {
    "photograph": ("a photo of a scene.", "a photo of people.", "a photo of an object.", "a photo of an animal."),
    "figure": ("a drawing.", "a painting.", "an old black and white photo.", "an engraving from a book.", "a cartoon."),
    "receipt": ("a scan of a receipt.", "a photo of a shop receipt."),
    "page": ("a scanned page of text.", "a page of a document.", "a page of a book."),
    "chart": ("a bar chart.", "a line graph.", "a map.", "a diagram.", "a flow chart.", "a table."),
    "scene_text": ("a photo of a sign with words.", "a photo of a shop sign.", "a close-up photo of a word."),
    "screenshot": ("a screenshot of an app.", "a screenshot of a web page.", "a screenshot of a computer program."),
}


@dataclass(frozen=True, slots=True)
class What:
    """ocr       name of the OCR step whose lines are read (its columns begin with it); "" = none: another forest, which sees pixels alone.
    clip      column of a clip step's vectors, to ask that model too, and to know screenshots; "" = no model.
    model, weights, revision, precision   of that clip step, for the texts. Of no account without `clip`.
    """

    ocr: str = "ocr"
    clip: str = ""
    model: str = "open_clip:ViT-L-14"
    weights: str = ""
    revision: str = ""
    precision: str = "fp32"

    def __post_init__(self) -> None:
        given = clip.What(self.model, self.weights, self.revision, self.precision)
        object.__setattr__(self, "model", given.model)
        object.__setattr__(self, "weights", given.weights)


@dataclass(frozen=True, slots=True)
class KindHow(How):
    """device: of the text encoder, used once when the step is opened."""

    device: str = "auto"


def _open(what: What, how: KindHow) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    forest = forests()["with_ocr" if what.ocr else "without_ocr"]
    prompts = _prompt_vectors(what, how) if what.clip else None
    return lambda views: each(views, lambda view: _row(forest, prompts, what, view))


@cache
def forests() -> Mapping[str, Forest]:
    """`with_ocr` and `without_ocr`, as benchmarks/kind_fit.py made them."""
    return {name: forest_from_json(value) for name, value in json.loads(_model_text()).items()}


def _model_text() -> str:
    return (resources.files("configs") / "kind" / "forests.json").read_text("utf-8")


def _row(forest: Forest, prompts: np.ndarray | None, what: What, view: MediaView) -> Row:
    pixels = view.image()
    values = picture_features(pixels)
    if what.ocr:
        values |= text_features(view.columns[f"{what.ocr}_lines"] or (), pixels)
    shares = kind_shares(forest, values)
    vector = view.columns[what.clip] if what.clip else None
    if prompts is not None and vector is not None:
        asked = zero_shot(np.asarray(vector, np.float32), prompts, what.clip)
        shares = {label: (1 - CLIP_SHARE) * shares.get(label, 0.0) + CLIP_SHARE * asked[label] for label in PROMPTS}
    label = max(shares, key=lambda name: (shares[name], name))
    told = {name: values[name] for name in ("white", "flat", "tint", "colours")}
    return {"label": label, "confidence": shares[label], **told, "text_area": values.get("text_area")}


def kind_shares(forest: Forest, values: Mapping[str, float]) -> dict[str, float]:
    """Label -> probability. Where text covers much of what looks like a photograph, that part of the answer is scene_text's."""
    shares = {**forest.probabilities(values), "scene_text": 0.0}
    if values.get("word_area", 0.0) >= SCENE_TEXT_AREA:
        for label in ("photograph", "figure"):
            shares["scene_text"] += shares[label]
            shares[label] = 0.0
    return shares


def zero_shot(vector: np.ndarray, prompts: np.ndarray, column: str) -> dict[str, float]:
    """Label -> probability: softmax of 100 times the cosines to the labels' vectors (Radford et al. 2021, §3.1.2)."""
    if vector.shape != prompts.shape[1:]:
        told = f"{column}: its vectors have {len(vector)} numbers, the texts' have {prompts.shape[1]}"
        raise InfrastructureError(f"{told}; `model` and `weights` must be those of the clip step that writes {column}")
    logits = LOGIT_SCALE * (prompts.astype(np.float64) @ unit(vector[None])[0].astype(np.float64))
    weights = np.exp(logits - logits.max())
    return dict(zip(PROMPTS, (weights / weights.sum()).tolist(), strict=True))


def _prompt_vectors(what: What, how: KindHow) -> np.ndarray:
    """float32 (labels, d), of unit length. Raises InfrastructureError."""
    model = clip.text_model(_clip(what), how.device)
    vectors = [unit(unit(model.encode_texts(list(texts))[0]).mean(axis=0, keepdims=True))[0] for texts in PROMPTS.values()]
    return np.stack(vectors)


def _clip(what: What) -> clip.What:
    return clip.What(what.model, what.weights, what.revision, what.precision, text="caption", image=what.clip)


def _reads(what: What) -> tuple[str, ...]:
    lines = (f"{what.ocr}_lines",) if what.ocr else ()
    return ("media", *lines, *((what.clip,) if what.clip else ()))


def _identity(what: What) -> dict[str, Any]:
    """The forests are digested with it: other numbers are another step."""
    assert clip.STEP.identity is not None
    asked = clip.STEP.identity(_clip(what)) if what.clip else None
    return {"forests": digest_of(_model_text()), "ocr": bool(what.ocr), "clip": asked, "prompts": dict(PROMPTS) if what.clip else None}


def _models(what: What) -> Sequence[Model]:
    assert clip.STEP.models is not None
    return clip.STEP.models(_clip(what)) if what.clip else ()


def _columns(what: What) -> list[Column]:
    names = ", ".join(name for name in PROMPTS if what.clip or name != "screenshot")
    return [
        Column("label", pa.string(), IMAGE, doc=names if what.ocr or what.clip else names.replace(", scene_text", "")),
        Column("confidence", pa.float64(), IMAGE, doc="of the label, 0..1"),
        Column("white", pa.float64(), IMAGE, doc="share of white pixels"),
        Column("flat", pa.float64(), IMAGE, doc="share of neighbouring pixels that are alike"),
        Column("tint", pa.float64(), IMAGE, doc="spread of colour at equal grey; 0 for grey and sepia"),
        Column("colours", pa.float64(), IMAGE, doc="ln(distinct colours) / ln(pixels)"),
        Column("text_area", pa.float64(), IMAGE, doc="share of the picture under text; NULL without OCR"),
    ]


def _check(what: What) -> None:
    forests()
    if not what.clip:
        given = asdict(what)
        odd = [name for name in ("weights", "revision") if given[name]]
        if odd:
            raise ValueError(f"{odd[0]}: says nothing without `clip`; name the column of vectors too, or leave it out")
        return
    assert clip.STEP.check is not None
    clip.STEP.check(_clip(what))


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="kind_",
    what=What,
    how=KindHow,
    columns=_columns,
    reads=_reads,
    open=_open,
    identity=_identity,
    check=_check,
    models=_models,
)
