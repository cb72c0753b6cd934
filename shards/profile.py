"""A measure profile: everything that token counts depend on. Counts are only ever used under the profile that made them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import get_args

import yaml

from shards.compression import Method
from shards.errors import ProfileError
from shards.sample import digest_of

PREPROCESS_VERSION = 2  # of the one preprocessing function in shards.media; bump when a pixel or a grid changes


@dataclass(frozen=True, slots=True)
class Profile:
    """Sources: VideoLLaMA3 report §3.3 (budgets, merge sizes), its processor (pixel budget, prompt), DiffFP (compression).

    tokenizer          digest of the tokenizer's files (`shards.chat.tokenizer_digest`); the path itself is no part of the identity.
    patch              side of a patch, pixels.
    image_merge        patches merged into one visual token: merge × merge, for images; `video_merge` likewise for frames.
    max_visual_tokens  budget of a sample after merging; pixels ≤ max_visual_tokens·(patch·merge)², split evenly over its images or frames.
    min_visual_tokens  at least so many tokens for each image or frame.
    fps, max_frames    frames sampled from a video.
    method             which tokens of a video are kept, as `shards.compression.compress` has it: difffp, anchored or budget.
    threshold          of the method, in grey levels of 255 (0.05 is the paper's 0.1 on pixels normalised with std 0.5).
    token_budget       of `budget`: kept tokens of a video, at most.
    report_thresholds  thresholds for which the keep ratio by the method is stored.
    max_text_tokens    an item with more tokens outside its media is refused (LimitError) when measured.

    Raises ProfileError for values that no measure could be taken with.
    """

    name: str
    tokenizer: str
    patch: int = 14
    image_merge: int = 1
    video_merge: int = 2
    max_visual_tokens: int = 10_240
    min_visual_tokens: int = 16
    fps: float = 1.0
    max_frames: int = 180
    method: Method = "difffp"
    threshold: float = 0.05
    token_budget: int | None = None
    report_thresholds: tuple[float, ...] = (0.05, 0.5, 1.0, 2.0, 4.0, 8.0)
    max_text_tokens: int = 16_384
    preprocess: int = field(default=PREPROCESS_VERSION)

    def __post_init__(self) -> None:
        for name in ("patch", "image_merge", "video_merge", "max_visual_tokens", "min_visual_tokens", "max_frames", "max_text_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ProfileError(f"profile {self.name!r}: {name} must be a whole number of at least 1, not {value!r}")
        for name in ("fps", "threshold"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < float("inf") or (name == "fps" and value == 0):
                raise ProfileError(f"profile {self.name!r}: {name} must be a positive number, not {value!r}")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one profile, so they must digest alike
        if self.method not in get_args(Method):
            raise ProfileError(f"profile {self.name!r}: method is one of {', '.join(get_args(Method))}, not {self.method!r}")
        if (self.method == "budget") != (self.token_budget is not None):
            raise ProfileError(f"profile {self.name!r}: token_budget belongs to method: budget, and the other way round")
        if self.token_budget is not None and (type(self.token_budget) is not int or self.token_budget < 1):
            raise ProfileError(f"profile {self.name!r}: token_budget must be a whole number of at least 1, not {self.token_budget!r}")
        try:
            object.__setattr__(self, "report_thresholds", tuple(float(value) for value in self.report_thresholds))
        except (TypeError, ValueError) as error:
            raise ProfileError(f"profile {self.name!r}: report_thresholds must be numbers, not {self.report_thresholds!r}") from error

    @property
    def digest(self) -> str:
        """Identity of the profile without its name: two profiles of equal digest give equal counts."""
        return digest_of({k: v for k, v in asdict(self).items() if k != "name"})


def load_profile(name_or_path: str, tokenizer_digest: str) -> Profile:
    """A profile of configs/profiles/<name>.yaml or of a YAML file. Raises ProfileError for unknown names and keys."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ProfileError(f"no profile file {path}")
        text, where = path.read_bytes(), str(path)
    else:
        entry = resources.files("configs.profiles") / f"{name_or_path}.yaml"
        if not entry.is_file():
            known = sorted(e.name[:-5] for e in resources.files("configs.profiles").iterdir() if e.name.endswith(".yaml"))
            raise ProfileError(f"no profile {name_or_path!r}; known: {', '.join(known)}, or a path to a .yaml file")
        text, where = entry.read_bytes(), f"configs/profiles/{name_or_path}.yaml"
    try:
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"{where}: not YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ProfileError(f"{where}: a profile is a mapping of {', '.join(Profile.__slots__)}")
    unknown = set(values) - set(Profile.__slots__)
    if unknown:
        raise ProfileError(f"{where}: unknown keys {sorted(unknown)}; a profile has {sorted(set(Profile.__slots__))}")
    values.setdefault("name", path.stem)
    return replace(Profile(name="", tokenizer=tokenizer_digest), **{k: v for k, v in values.items() if k != "tokenizer"})
