"""What is evaluated: a model, and how it looks at media. From the end of a stage, an export, or any VideoLLaMA3 in transformers' layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from shards.errors import ConfigError, InfrastructureError
from shards.profile import Profile, load_profile
from training.stages import StageConfig

if TYPE_CHECKING:
    from torch import nn

# Of a model whose training is not known: the budgets of the VideoLLaMA3 report's stages (a row of 16,384 tokens, a full video).
_SEQ_TOKENS, _PACK_PATCHES = 16_384, 40_960

Precision = Literal["stored", "fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model on this rank's device with its tokenizer, and the profile, compression and budgets (of `stage`) it was trained under."""

    model: nn.Module
    tokenizer: Any
    profile: Profile
    stage: StageConfig


def load_subject(
    folder: str | Path,
    *,
    profile: str | None = None,
    compress: bool | None = None,
    tokenizer: str | Path | None = None,
    precision: Precision = "stored",
) -> Subject:
    """`folder`: `…/checkpoints/stage<k>/final`, what `fovea export` wrote, or a VideoLLaMA3 in transformers' layout.

    The first two say how they were trained (fovea.json) and take none of `profile` (a name of configs/profiles, or a .yaml file),
    `compress` and `tokenizer` (a directory; default: the folder); the last needs a profile, and says itself whether it compresses.
    precision  stored: that of the weights' files.
    Raises InfrastructureError where `folder` is none of these, ConfigError for arguments that are missing or in the way or a tokenizer or
    patch size that does not fit.
    """
    path = Path(folder)
    if (path / "fovea.json").is_file():
        given = [name for name, value in (("profile", profile), ("compress", compress), ("tokenizer", tokenizer)) if value is not None]
        if given:
            raise ConfigError(f"{path} says itself what it was trained with; leave out {', '.join(given)}")
        measured, stage = _as_trained(path)
        return _loaded(path, path, measured, stage, precision)
    if not (path / "config.json").is_file() or _json(path / "config.json").get("model_type") != "video_llama_3":
        raise InfrastructureError(
            f"{path}: no finished stage (there is no fovea.json) and no VideoLLaMA3 in transformers' layout; give "
            "…/checkpoints/stage<k>/final, or what fovea export wrote"
        )
    if profile is None:
        raise ConfigError(f"{path} does not say what it was trained with (no fovea.json); name the measure profile (--profile)")
    from shards.tokenizer import tokenizer_digest

    words = Path(tokenizer or path)
    measured = load_profile(profile, tokenizer_digest(words))
    stage = StageConfig.model_validate(
        {
            "profile": measured.name,
            "compress": _compresses(path) if compress is None else compress,
            "train": {"llm": 1.0},  # a block needs a part that learns; none does here
            "step": {"packs": 1},
            "seq_tokens": _SEQ_TOKENS,
            "pack_patches": _PACK_PATCHES,
        }
    )
    return _loaded(path, words, measured, stage, precision)


def _as_trained(path: Path) -> tuple[Profile, StageConfig]:
    facts = _json(path / "fovea.json")
    try:
        measured = Profile(**{**facts["profile"], "report_thresholds": tuple(facts["profile"]["report_thresholds"])})
        return measured, StageConfig.model_validate(facts["block"])
    except (KeyError, TypeError, ValidationError) as error:
        raise InfrastructureError(
            f"{path / 'fovea.json'} is not what this version writes ({error}); take its model as a plain directory: delete the file from a "
            "copy of it, and give --profile"
        ) from error


def _loaded(path: Path, words: Path, profile: Profile, stage: StageConfig, precision: Precision) -> Subject:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from shards.tokenizer import load_tokenizer
    from training.engine import rank_device
    from training.model import from_hf, special_ids
    from training.preflight import refuse_other_patch

    disable_progress_bar()
    tokenizer = load_tokenizer(words)
    config = _json(path / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype")
    bf16 = precision == "bf16" or (precision == "stored" and stored == "bfloat16")
    model: Any = from_hf(path, torch.bfloat16 if bf16 else torch.float32)
    for name, token in special_ids(tokenizer).items():
        if name != "eos_token_id" and getattr(model.config, name) != token:
            raise ConfigError(
                f"{path}: its {name} is {getattr(model.config, name)}, the tokenizer's {token}; give the model's own tokenizer"
            )
    refuse_other_patch(model.config.vision_config.patch_size, profile)
    return Subject(model.to(rank_device()), tokenizer, profile, stage)


def _compresses(path: Path) -> bool:
    """What the directory's own video processor does."""
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        if (path / name).is_file():
            settings = _json(path / name)
            settings = settings.get("video_processor", settings)
            if "use_token_compression" in settings:
                return bool(settings["use_token_compression"])
    raise ConfigError(f"{path}: no processor says whether video tokens are compressed; say --compress or --no-compress")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InfrastructureError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InfrastructureError(f"{path} holds no JSON object")
    return value
