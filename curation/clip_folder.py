"""The files of an open_clip model: what a folder of one must hold, without importing open_clip, which takes seconds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

CONFIG = "open_clip_config.json"
FOLDER_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth",
    "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
# What a tokenizer of a model folder may consist of; one of the first five has to be there.
TOKENIZER_FILES = (
    "tokenizer.json", "spiece.model", "vocab.json", "vocab.txt", "sentencepiece.bpe.model", "tokenizer_config.json", "merges.txt",
    "special_tokens_map.json",
)  # fmt: skip


def open_clip_config(folder: Path) -> dict[str, Any]:
    """`model_cfg` of an open_clip model folder. Raises ValueError if the folder is not one."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"model: {folder} has no {CONFIG}: it is no open_clip model folder, or a file is missing")
    try:
        found = json.loads(path.read_text("utf-8"))["model_cfg"]
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(found)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"model: {path} cannot be read as an open_clip configuration: {type(error).__name__}: {error}") from error
    if missing:
        raise ValueError(f"model: {path} lacks model_cfg.{', model_cfg.'.join(sorted(missing))}")
    return dict(found)


def folder_weights(folder: Path) -> Path:
    """The checkpoint inside an open_clip model folder. Raises ValueError where there is none under a name that open_clip uses."""
    for name in FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"model: {folder} has no weights; one of {', '.join(FOLDER_WEIGHTS)} belongs there")


def known_architecture(architecture: str) -> bool:
    """Whether open_clip has an architecture of this name."""
    spec = importlib.util.find_spec("open_clip")
    places = (spec.submodule_search_locations or []) if spec else []
    return any((Path(place) / "model_configs" / f"{architecture}.json").is_file() for place in places)


def check_tokenizer(folder: Path) -> None:
    """Raises ValueError where an open_clip model folder names a tokenizer that does not lie in it."""
    if wants_tokenizer_files(folder) and not any((folder / name).is_file() for name in TOKENIZER_FILES[:5]):
        raise ValueError(f"model: {folder} has no tokenizer; one of {', '.join(TOKENIZER_FILES[:5])} belongs there")


def wants_tokenizer_files(folder: Path) -> bool:
    """Whether it has a tokenizer of its own; otherwise it is CLIP's, which comes with open_clip."""
    text: Any = open_clip_config(folder)["text_cfg"]
    return bool(isinstance(text, dict) and text.get("hf_tokenizer_name"))
