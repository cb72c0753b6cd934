"""How likely a picture is not safe for work, by a classifier: Yahoo's open_nsfw by default."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from curation.classifier_models import OPENNSFW
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


@dataclass(frozen=True, slots=True)
class What(ClassifierWhat):
    """The fields of ClassifierWhat; `label` is the class that is not safe."""

    model: str = f"package:{OPENNSFW}"
    label: str = "nsfw"


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="safety_",
    what=What,
    how=ClassifierHow,
    columns=lambda what: [Column("nsfw", pa.float64(), IMAGE, doc="probability that the picture is not safe for work, 0..1")],
    reads=lambda what: ("media",),
    open=lambda what, how: answers(open_classifier(what, how), "nsfw"),
    identity=classifier_identity,
    check=check_classifier,
    models=classifier_models,
)
