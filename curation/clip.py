"""CLIP of any open_clip model: a vector for each picture, and how well a text describes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.ahead import run_model
from curation.clip_folder import CONFIG, TOKENIZER_FILES, check_tokenizer, folder_weights, wants_tokenizer_files
from curation.clip_model import ClipModel, load_clip
from curation.embed import PRECISIONS, unit
from curation.encoders import encoder_identity, parse_model, parse_weights
from curation.models import Model, kind_of, local_folder
from curation.step import Column, How, Result, Step
from curation.tags import tag_model
from curation.view import MediaView
from curation.weights import existing_path, file_sha256
from shards.errors import InfrastructureError, SampleError

IMAGE = frozenset({"image"})
OWN_TEXTS = ("caption", "transcription", "text")  # what every sample may bring, as rules name it
HUB_FILES = (CONFIG, "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", *TOKENIZER_FILES)


@dataclass(frozen=True, slots=True)
class What:
    """model      "open_clip:<architecture>", "open_clip:<folder with open_clip_config.json>" or "open_clip:<org/name on the model hub>".
    weights    "pretrained:<tag>", which open_clip downloads · path of a checkpoint · "random:<seed>", for trying the machinery out ·
               "" = a folder's or hub model's own; of an architecture, OpenAI's.
    revision   of a hub model: commit, branch or tag.
    precision  fp32 or bf16: of weights and activations. Vectors and similarity are float32 and float64 always.
    text       what the picture is compared with: "caption", "transcription" or "text", the sample's own, or the column of an earlier step;
               "" = nothing, there are only vectors.
    image      "" = the picture is encoded; or the column a clip step with the same model wrote its vectors to: no picture is opened.
    """

    model: str = "open_clip:ViT-L-14"
    weights: str = ""
    revision: str = ""
    precision: str = "fp32"
    text: str = ""
    image: str = ""

    def __post_init__(self) -> None:
        library, _, architecture = self.model.partition(":")
        if library == "open_clip":
            object.__setattr__(self, "model", f"{library}:{existing_path(architecture)}")
        object.__setattr__(self, "weights", existing_path(self.weights))


@dataclass(frozen=True, slots=True)
class ClipHow(How):
    """device: "auto" (CUDA where there is one), "cpu", "cuda:1"."""

    batch: int = 64
    device: str = "auto"


def _is_hub(what: What) -> bool:
    return kind_of(parse_model(what.model)[1]) == "hub"


def _weights(what: What) -> str:
    """`weights` with what is left out filled in. Raises ValueError for a folder without any."""
    if what.weights:
        return what.weights
    _, architecture = parse_model(what.model)
    return str(folder_weights(Path(architecture))) if Path(architecture).is_dir() else "pretrained:openai"


def local(what: What) -> What:
    """The same with a hub's model as the folder it is in, downloaded if need be. Raises InfrastructureError."""
    if not _is_hub(what):
        return what
    folder = local_folder(parse_model(what.model)[1], what.revision, HUB_FILES, needs=(CONFIG,))
    return replace(what, model=f"open_clip:{folder}")


def _models(what: What) -> list[Model]:
    _, architecture = parse_model(what.model)
    if _is_hub(what):
        return [Model(architecture, "hub", what.revision, wants=HUB_FILES, needs=(CONFIG,))]
    if Path(architecture).is_dir():
        return [Model(architecture, "folder", needs=(CONFIG,))]
    weights = parse_weights(_weights(what))
    if weights.kind == "pretrained":
        return [tag_model(what.model, weights.value)]
    return [Model(weights.value, "file")] if weights.kind == "path" else []


def text_model(what: What, device: str) -> ClipModel:
    """The model without its image tower: for other steps' texts in the same space. Raises InfrastructureError."""
    return _loaded(what, device, pictures=False)


def _open(what: What, how: ClipHow) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    model = _loaded(what, how.device, pictures=not what.image)
    return lambda views: answer(model, what, views)


def _loaded(what: What, device: str, pictures: bool) -> ClipModel:
    try:
        found = local(what)
        weights = _weights(found)
    except ValueError as error:
        raise InfrastructureError(f"{what.model}: {error}") from error
    return load_clip(found.model, weights, what.precision, device, pictures=pictures)


def answer(model: ClipModel, what: What, views: Sequence[MediaView]) -> list[Result]:
    """The rows of a batch. Raises InfrastructureError where a column that is read cannot be what the recipe says it is."""
    vectors: Sequence[np.ndarray | SampleError | None]
    if what.image:
        vectors = [_given(view, what.image) for view in views]
    else:
        vectors = run_model(views, model.prepare, lambda pictures: unit(model.encode(pictures)))
    scores = _similarities(model, what, views, vectors) if what.text else {}
    results: list[Result] = []
    for place, vector in enumerate(vectors):
        if isinstance(vector, SampleError):
            results.append(vector)
            continue
        row: dict[str, Any] = {} if what.image or vector is None else {"embedding": vector.tolist()}
        if what.text:
            row["similarity"], row["truncated"] = scores.get(place, (None, None))
        results.append(row)
    return results


def _similarities(
    model: ClipModel, what: What, views: Sequence[MediaView], vectors: Sequence[np.ndarray | SampleError | None]
) -> dict[int, tuple[float, bool]]:
    """By place: cosine in -1..1 and whether the text was cut. Places without a text or a vector are absent."""
    texts = {
        place: text for place, vector in enumerate(vectors) if isinstance(vector, np.ndarray) and (text := _text(views[place], what.text))
    }
    if not texts:
        return {}
    encoded, cut = model.encode_texts(list(texts.values()))
    found: dict[int, tuple[float, bool]] = {}
    for place, text_vector, was_cut in zip(texts, unit(encoded), cut, strict=True):
        vector = vectors[place]
        assert isinstance(vector, np.ndarray)
        if vector.shape != text_vector.shape:
            raise InfrastructureError(
                f"{what.image}: its vectors have {len(vector)} numbers, those of {what.model} have {len(text_vector)}; "
                "`image` must name the embedding of a clip step with the same model and weights"
            )
        found[place] = float(np.clip(vector.astype(np.float64) @ text_vector.astype(np.float64), -1, 1)), bool(was_cut)
    return found


def _text(view: MediaView, column: str) -> str:
    """The text, without the blanks around it; "" where there is none."""
    value = getattr(view.sample.texts, column) if column in OWN_TEXTS else view.columns[column]
    if value is not None and not isinstance(value, str):
        raise InfrastructureError(f"text: the column {column!r} holds {type(value).__name__}, no text; name a column of text")
    return (value or "").strip()


def _given(view: MediaView, column: str) -> np.ndarray | None:
    """The vector an earlier step wrote, to unit length."""
    value = view.columns[column]
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(number, float) for number in value):
        raise InfrastructureError(f"image: the column {column!r} holds no vectors; name the embedding column of a clip step")
    return unit(np.array([value], dtype=np.float32))[0]


def _identity(what: What) -> dict[str, Any]:
    """What is read from disk stands for its path: the same weights elsewhere give the same rows."""
    same = {"precision": what.precision, "text": what.text, "image": what.image}
    _, architecture = parse_model(what.model)
    if _is_hub(what):
        return {"model": ["open_clip", "hub", architecture, what.revision], **same}
    folder = Path(architecture)
    weights = parse_weights(_weights(what))
    own = folder.is_dir() and bool(what.text) and wants_tokenizer_files(folder)
    return {
        "model": encoder_identity(what.model, weights),
        "weights": weights.identity(),
        "tokenizer": [[name, file_sha256(folder / name)] for name in sorted(TOKENIZER_FILES) if own and (folder / name).is_file()],
        **same,
    }


def _reads(what: What) -> list[str]:
    text = "texts" if what.text in OWN_TEXTS else what.text
    return [what.image or "media", *([text] if text else [])]


def _columns(what: What) -> list[Column]:
    columns: list[Column] = []
    if not what.image:
        columns.append(Column("embedding", pa.list_(pa.float32()), IMAGE, wide=True, doc="the picture's vector, of unit length"))
    if what.text:
        columns += [
            Column("similarity", pa.float64(), IMAGE, doc="cosine of picture and text, -1..1; NULL without a text"),
            Column("truncated", pa.bool_(), IMAGE, doc="the text goes on after what the model reads of it; NULL without a text"),
        ]
    return columns


def _check(what: What) -> None:
    library, architecture = parse_model(what.model)
    if library != "open_clip":
        raise ValueError(
            f"model: {what.model!r}; clip takes open_clip:<architecture> or open_clip:<folder>, other encoders are for `embed`"
        )
    if what.precision not in PRECISIONS:
        raise ValueError(f"precision: {what.precision!r}; known are {', '.join(PRECISIONS)}")
    if what.image and not what.text:
        raise ValueError("image: the vectors are there already; name the text to compare them with: `text: caption`")
    if _is_hub(what):
        if what.weights:
            raise ValueError("weights: a model of the hub brings its own; leave `weights` out")
        return
    if what.revision:
        raise ValueError(f"revision: {what.model} is not on the model hub; other weights are told apart by their content or tag")
    parse_weights(what.weights or "random:0").check(library, architecture)
    if Path(architecture).is_dir():
        _weights(what)
        if what.text:
            check_tokenizer(Path(architecture))


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="clip_",
    what=What,
    how=ClipHow,
    columns=_columns,
    reads=_reads,
    open=_open,
    identity=_identity,
    check=_check,
    models=_models,
)
