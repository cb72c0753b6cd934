"""How likely a picture bears a watermark, by a classifier whose weights the recipe gives: none come with a package."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from curation.classifiers import (
    IMAGE,
    ClassifierHow,
    ClassifierWhat,
    answers,
    check_classifier,
    classifier_identity,
    classifier_models,
    open_classifier,
)
from curation.step import Column, Step

# LAION's detector: an EfficientNet-B3 with three layers for a head, pictures squashed to 256 × 256, class 0 = watermark.
_LAION = (
    "model: timm:efficientnet_b3, weights: https://github.com/LAION-AI/LAION-5B-WatermarkDetection/raw/main/models/watermark_model_v1.pt, "
    "label: '0', size: 256, resize: squash, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]"
)


@dataclass(frozen=True, slots=True)
class What(ClassifierWhat):
    """The fields of ClassifierWhat; `label` is the class with a watermark."""

    label: str = "watermark"


def _check(what: What) -> None:
    if not what.model:
        raise ValueError(f"model: is missing: no weights for watermarks come with fovea; LAION's detector is used so: {_LAION}")
    check_classifier(what)


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="watermark_",
    what=What,
    how=ClassifierHow,
    columns=lambda what: [Column("probability", pa.float64(), IMAGE, doc="probability that the picture bears a watermark, 0..1")],
    reads=lambda what: ("media",),
    open=lambda what, how: answers(open_classifier(what, how), "probability"),
    identity=classifier_identity,
    check=_check,
    models=classifier_models,
)
