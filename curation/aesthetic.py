"""How pleasing a picture is: a small head on CLIP's vectors, as LAION filtered its aesthetic subsets. Opens no picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation.embed import unit
from curation.heads import Head, load_head
from curation.models import Model, kind_of, local_file, model_identity
from curation.step import Column, How, Result, Step
from curation.view import MediaView
from curation.weights import existing_path
from shards.errors import InfrastructureError

IMAGE = frozenset({"image"})
# The heads of the repositories LAION-AI/aesthetic-predictor, each at the commit that brought it, and christophschuhmann/
# improved-aesthetic-predictor; all for the vectors of OpenAI's CLIP. URL, and sha256 where it is known.
_LINEAR = "https://github.com/LAION-AI/aesthetic-predictor/raw"
_IMPROVED = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw"
LAION = {
    "vit_l_14": (f"{_LINEAR}/7e37768a02b0863eac390a702903aaa90ecf938e/sa_0_4_vit_l_14_linear.pth", ""),
    "vit_b_16": (f"{_LINEAR}/7e37768a02b0863eac390a702903aaa90ecf938e/sa_0_4_vit_b_16_linear.pth", ""),
    "vit_b_32": (f"{_LINEAR}/814214009feff106add4bb983807704ccdd5a0db/sa_0_4_vit_b_32_linear.pth", ""),
    "improved_vit_l_14": (
        f"{_IMPROVED}/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
}


@dataclass(frozen=True, slots=True)
class What:
    """embedding   column with the vectors a clip step wrote, of the model the head was made for.
    head        "laion:vit_l_14", "laion:vit_b_32", "laion:vit_b_16", "laion:improved_vit_l_14" (downloaded) · path or URL of a state_dict
                of linear layers.
    sha256      64 hex digits that the head's file must have; "" = any.
    activation  "none" or "relu": between the layers of a head that has several.
    """

    embedding: str = "clip_embedding"
    head: str = "laion:vit_l_14"
    sha256: str = ""
    activation: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", existing_path(self.head))


def _place(what: What) -> tuple[str, str]:
    """A path or URL, and the sha256 of what is there. Raises ValueError for a head of LAION's that there is none of."""
    library, colon, name = what.head.partition(":")
    if not colon or library != "laion":
        return what.head, what.sha256
    if name not in LAION:
        raise ValueError(f"head: {what.head!r}; there are {', '.join(f'laion:{known}' for known in LAION)}")
    url, sha256 = LAION[name]
    return url, what.sha256 or sha256


def _open(what: What, how: How) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    head = load_head(local_file(*_place(what)), what.activation == "relu")
    if len(head.layers[-1][1]) != 1:
        raise InfrastructureError(f"head {what.head} gives {len(head.layers[-1][1])} numbers for a picture, a score is one")
    return lambda views: [{"score": score(view.columns[what.embedding], head, what)} for view in views]


def score(vector: Any, head: Head, what: What) -> float | None:
    """None without a vector. Raises InfrastructureError for a column of other vectors than the head takes."""
    if vector is None:
        return None
    if not isinstance(vector, list) or not all(isinstance(number, float) for number in vector):
        raise InfrastructureError(f"embedding: the column {what.embedding!r} holds no vectors; name the embedding column of a clip step")
    if len(vector) != head.dimension:
        raise InfrastructureError(
            f"head {what.head} takes vectors of {head.dimension} numbers, those of {what.embedding!r} have {len(vector)}; "
            "give the head that was made for this CLIP model (768: ViT-L-14, 512: ViT-B-32 and ViT-B-16, OpenAI's weights)"
        )
    return float(head(unit(np.array([vector], dtype=np.float32)))[0, 0])


def _columns(what: What) -> list[Column]:
    return [Column("score", pa.float64(), IMAGE, doc="about 1 (poor) to 10 (pleasing) with LAION's heads; NULL without a vector")]


def _identity(what: What) -> dict[str, Any]:
    place, sha256 = _place(what)
    head = model_identity(place, sha256=sha256)
    return {"embedding": what.embedding, "head": head, "activation": what.activation}


def _check(what: What) -> None:
    place, sha256 = _place(what)
    if not what.embedding:
        raise ValueError("embedding: name the column with the vectors, `clip_embedding`")
    if what.activation not in ("none", "relu"):
        raise ValueError(f"activation: {what.activation!r}; known are none, relu")
    if kind_of(place) != "url":
        local_file(place, sha256)


def _models(what: What) -> list[Model]:
    place, sha256 = _place(what)
    return [Model(place, "url" if kind_of(place) == "url" else "file", sha256=sha256)]


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="aesthetic_",
    what=What,
    columns=_columns,
    reads=lambda what: (what.embedding,),
    open=_open,
    identity=_identity,
    check=_check,
    models=_models,
)
