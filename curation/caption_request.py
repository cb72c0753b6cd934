"""What is asked about a picture, or about frames of a video: the prompt with its places filled, and the pixels within their bound. Pure
functions."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from shards.errors import InfrastructureError, LimitError

if TYPE_CHECKING:
    from curation.caption import What

# Words that a tokenizer or a chat template takes for its own. In a caption or in the text of a sign they are data: a blank breaks them.
_MARKS = re.compile(
    r"<(?=\|[^|<>\n]{1,40}\|>|/?(?:image|img|video|audio|s|pad|unk|bos|eos|IMG_CONTEXT|im_start|im_end|think|tool_call)>)", re.I
)
_ROLES = re.compile(r"\[(?=/?INST\])")


@dataclass(frozen=True, slots=True)
class Request:
    """One question about one picture, or about several frames of one video.

    uid     of the sample, for messages. sha256: of the medium's bytes; of frames what `frames_id` says. prompt: final, every place filled.
    pixels  uint8 (height, width, 3), or (T, height, width, 3) of T frames in their order, each at most `max_pixels`: what every backend
            shows its model.
    """

    uid: str
    sha256: str
    prompt: str
    pixels: np.ndarray

    @property
    def pictures(self) -> list[np.ndarray]:
        return [self.pixels] if self.pixels.ndim == 3 else list(self.pixels)


def places(prompt: str) -> list[str]:
    """The columns that a prompt names as {column}, each once, in their order; {{ and }} are braces. Raises ValueError."""
    names: list[str] = []
    try:
        for _, name, form, conversion in Formatter().parse(prompt):
            if name is None:
                continue
            if not name.isidentifier() or form or conversion:
                raise ValueError(f"{{{name}}} is no column; write {{column}}, and {{{{ }}}} for braces that are meant")
            names.append(name)
    except ValueError as error:
        raise ValueError(f"prompt: {error}") from error
    return list(dict.fromkeys(names))


def fill(prompt: str, columns: Mapping[str, Any], most: int) -> str:
    """The prompt with each {column} replaced; NULL is the empty text, a list of texts has a line for each.

    Raises LimitError for a result of more than `most` characters, InfrastructureError for a column that holds no text or number.
    """
    parts: list[str] = []
    for literal, name, _, _ in Formatter().parse(prompt):
        parts.append(literal)
        if name is not None:
            parts.append(_plain(_text(name, columns[name])))
    filled = "".join(parts)
    if len(filled) > most:
        raise LimitError(f"the prompt with its columns has {len(filled):,} characters, allowed are max_prompt_chars: {most:,}")
    return filled


def bounded(pixels: np.ndarray, most: int) -> np.ndarray:
    """uint8 (H, W, 3), shrunk in proportion to at most `most` pixels (Lanczos); as it is where it has no more."""
    height, width = pixels.shape[:2]
    if height * width <= most:
        return pixels
    scale = (most / (height * width)) ** 0.5
    new_width = max(1, min(int(width * scale), most))
    new_height = max(1, min(int(height * scale), most // new_width))
    return np.asarray(Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.LANCZOS))


def data_url(pixels: np.ndarray) -> str:
    """The picture as a data URL of a PNG: without loss, so that a server sees the pixels that a model in this process would, and without
    the metadata (place, camera) that the original may carry."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode('ascii')}"


def png(pixels: np.ndarray) -> bytes:
    """The picture as a PNG, quickly made rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def reply_key(what: What, model: Sequence[str], sha256: str, prompt: str) -> str:
    """64 hex digits that stand for a question: the picture, the final prompt, the model by its identity, and what else of the What decides
    how the model answers. How a reply is judged is no part of it: another `max_chars` asks nobody again."""
    decides = [what.system, what.max_new_tokens, what.temperature, what.precision, what.max_pixels]
    value = ["fovea caption 1", sha256, prompt, list(model), decides]
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()


def frames_id(sha256: str, times: Sequence[float]) -> str:
    """64 hex digits that stand for the frames of a video on screen at these seconds, as sha256 does for a picture."""
    return hashlib.sha256(f"fovea frames 1\n{sha256}\n{json.dumps(list(times))}".encode()).hexdigest()


def seed_of(request: Request) -> int:
    """0 ≤ seed < 2^31 of a question, for temperatures above 0: the same picture and prompt draw alike in every batch."""
    return int.from_bytes(hashlib.sha256(f"{request.sha256}\n{request.prompt}".encode("utf-8", "replace")).digest()[:4]) >> 1


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    raise InfrastructureError(
        f"prompt: the column {name!r} holds {type(value).__name__}; name a column of text, numbers or a list of texts"
    )


def _plain(text: str) -> str:
    """Text of a sample as data: no control characters, no words that steer a model's template."""
    text = "".join(c if c in "\n\t" or c.isprintable() or ord(c) > 0x9F else " " for c in text)
    return _ROLES.sub("[ ", _MARKS.sub("< ", text)).encode("utf-8", "replace").decode()
