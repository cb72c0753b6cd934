"""Both towers of an open_clip model: pictures and texts to vectors of one space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curation.encoders import device_and_type, open_clip_model, parse_model, parse_weights, seeded
from shards.errors import InfrastructureError

if TYPE_CHECKING:
    import torch

# No tokenizer makes more of a character than this of a token, blanks aside: a text of 100,000 characters is cut before it is tokenized,
# because byte pairs take time with the square of a word's length.
CHARACTERS_OF_A_TOKEN = 16


@dataclass(frozen=True, slots=True)
class ClipModel:
    """prepare      uint8 H×W×3 -> float32 (3, h, w), as the model was trained.
    encode       float32 (n, 3, h, w) on the CPU -> float32 (n, d).
    encode_texts n strings -> float32 (n, d), and bool (n,): whether the text goes on after the model's context.
    """

    prepare: Callable[[np.ndarray], torch.Tensor]
    encode: Callable[[torch.Tensor], np.ndarray]
    encode_texts: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


def load_clip(model: str, weights: str, precision: str, device: str, pictures: bool = True) -> ClipModel:
    """A model ready to run; without `pictures` its image tower is dropped, and prepare and encode cannot be called.

    Raises InfrastructureError for weights or a tokenizer that are missing, do not fit or cannot be downloaded.
    """
    import torch

    _, architecture = parse_model(model)
    source = parse_weights(weights)
    place, kind = device_and_type(device, precision)
    with seeded(source):
        module, prepare = open_clip_model(architecture, source)
    if not pictures:
        module.visual = torch.nn.Identity()
    module = module.eval().requires_grad_(False).to(place, kind)
    tokenize = load_tokenizer(architecture)

    @torch.inference_mode()
    def encode(batch: torch.Tensor) -> np.ndarray:
        vectors: np.ndarray = module.encode_image(batch.to(place, kind)).float().cpu().numpy()
        return vectors

    @torch.inference_mode()
    def encode_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens, cut = tokenize(texts)
        try:
            return module.encode_text(tokens.to(place)).float().cpu().numpy(), cut
        except torch.OutOfMemoryError as error:
            raise InfrastructureError(f"{len(texts)} texts at once do not fit the device: lower `how: batch`") from error

    return ClipModel(prepare, encode, encode_texts)


def load_tokenizer(architecture: str) -> Callable[[Sequence[str]], tuple[torch.Tensor, np.ndarray]]:
    """n texts -> int64 (n, context) as the model's own tokenizer cuts and pads them, and bool (n,): whether something was cut off."""
    import open_clip

    name = f"local-dir:{architecture}" if Path(architecture).is_dir() else architecture
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InfrastructureError(f"the tokenizer of {architecture} cannot be had: {error}; check the network, or give a folder") from error
    context: int = tokenizer.context_length
    pad = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", 0) or 0
    last = -2 if getattr(tokenizer, "tokenizer_mode", "") == "clips" else -1  # that one ends each text with a class token

    def tokenize(texts: Sequence[str]) -> tuple[torch.Tensor, np.ndarray]:
        short = [bounded(text, context) for text in texts]
        tokens = tokenizer(short)
        cut = np.array([len(bound) < len(" ".join(text.split())) for bound, text in zip(short, texts, strict=True)])
        full = np.flatnonzero(~cut & (tokens[:, last] != pad).numpy())
        if len(full):  # exactly full, or more than full: one token more tells
            cut[full] = (tokenizer([short[i] for i in full], context_length=context + 1)[:, last] != pad).numpy()
        return tokens, cut

    return tokenize


def bounded(text: str, context: int) -> str:
    """The text with its blanks joined, cut where no token of the model's context can reach. A lone surrogate becomes "?"."""
    words = " ".join(text[: 64 * CHARACTERS_OF_A_TOKEN * context].split())
    return words[: CHARACTERS_OF_A_TOKEN * context].encode("utf-8", "replace").decode()
