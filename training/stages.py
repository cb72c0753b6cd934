"""A training config: YAML to checked values. A new stage is one block of YAML. Imports neither torch nor DeepSpeed."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from shards.errors import ConfigError
from shards.items import TASKS
from shards.sample import digest_of

PART_NAMES = ("vision_encoder", "projector", "llm")
PartName = Literal["vision_encoder", "projector", "llm"]
NonNegative = Annotated[float, Field(ge=0)]
_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TinyShape(BaseModel):
    """Sizes of the tiny preset. `patch` must be the profile's; heads must divide the hidden sizes."""

    model_config = _STRICT

    hidden: PositiveInt = 64
    llm_layers: PositiveInt = 2
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    vision_hidden: PositiveInt = 64
    vision_layers: PositiveInt = 3
    vision_heads: PositiveInt = 4
    patch: PositiveInt = 14
    init_range: PositiveFloat = 0.06


class ModelConfig(BaseModel):
    """What stage 1 starts from; paths are local directories in Hugging Face layout.

    preset tiny   random numbers, sizes in `tiny`.
    preset parts  a SigLIP encoder at `vision` and a Qwen2.5 at `llm`, joined by a new projector: what the paper starts from.
    preset hf     a whole VideoLLaMA3 at `path`.
    """

    model_config = _STRICT

    preset: Literal["tiny", "parts", "hf"] = "tiny"
    vision: str | None = None
    llm: str | None = None
    path: str | None = None
    tiny: TinyShape = TinyShape()
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _paths_fit_preset(self) -> ModelConfig:
        needed = {"tiny": (), "parts": ("vision", "llm"), "hf": ("path",)}[self.preset]
        for name in ("vision", "llm", "path"):
            given = getattr(self, name) is not None
            if given != (name in needed):
                raise ValueError(f"preset {self.preset} {'has no' if given else 'needs'} `{name}`")
        return self


class MixtureConfig(BaseModel):
    """What a stage is fed, as training.mixture has it. `missing`: what to do with a named task or source that the dataset has no items of.

    tasks, sources  shares on any positive scale; what is not named is left out. Without them: as it comes.
    where           SQL predicate over the index's columns, applied first.
    by              shares of items, or of tokens.
    """

    model_config = _STRICT

    tasks: dict[str, PositiveFloat] | None = None
    sources: dict[str, PositiveFloat] | None = None
    where: str | None = None
    by: Literal["items", "tokens"] = "items"
    missing: Literal["refuse", "leave_out"] = "refuse"

    @model_validator(mode="after")
    def _known_tasks(self) -> MixtureConfig:
        for task in self.tasks or {}:
            if task not in TASKS:
                raise ValueError(f"unknown task {task!r}{_meant(task, TASKS)}; tasks are {', '.join(TASKS)}")
        return self


class StageConfig(BaseModel):
    """One stage.

    profile         measure profile whose token counts the packs are made by; the dataset must carry it.
    compress        drop the visual tokens that DiffFP masks.
    train           peak learning rate of each part that learns; a part that is not named is frozen.
    epochs, steps   passes over the mixture, or exactly so many optimizer steps over as many passes as it takes.
    packs_per_step  packs in one optimizer step, over all ranks; every number of ranks that divides it gives the same steps.
    seq_tokens      tokens of a pack, at most. pack_patches: patches of a pack that pass the encoder, at most.
    warmup_ratio    part of the steps with a rate rising linearly from 0; then `schedule` down to 0 (cosine), or level (constant).
    clip            bound of the gradient's norm; 0 switches clipping off.
    """

    model_config = _STRICT

    profile: str
    compress: bool
    train: dict[PartName, PositiveFloat] = Field(min_length=1)
    mixture: MixtureConfig = MixtureConfig()
    epochs: PositiveInt = 1
    steps: PositiveInt | None = None
    packs_per_step: PositiveInt
    seq_tokens: PositiveInt
    pack_patches: PositiveInt
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: NonNegative = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: NonNegative = 1.0
    betas: tuple[float, float] = (0.9, 0.999)


class TrainingConfig(BaseModel):
    """A whole training: the model, the stages in order, and how it is run. The second half changes no result and is not digested."""

    model_config = _STRICT

    name: str
    model: ModelConfig = ModelConfig()
    seed: int = 42
    stages: dict[PositiveInt, StageConfig] = Field(min_length=1)

    dataset: str | None = None
    tokenizer: str | None = None
    deepspeed: str = "zero1"
    workers: Annotated[int, Field(ge=0)] = 1
    checkpoint_steps: PositiveInt = 200
    keep_checkpoints: PositiveInt = 2
    held_out: str = "val"
    held_out_packs: PositiveInt = 64

    def stage_digest(self, stage: int) -> str:
        """Identity of what a stage computes: its block, the model, the seed, and every stage before it; never how it is run."""
        chain = [self.stages[k].model_dump(mode="json") for k in sorted(self.stages) if k <= stage]
        return digest_of(self.model.model_dump(mode="json"), self.seed, chain)


def load_training_config(path_or_name: str | Path) -> TrainingConfig:
    """configs/training/<name>.yaml of the package, or a YAML file. Raises ConfigError: file, key, what is wrong with it, what was meant."""
    text, where = _config_text(str(path_or_name))
    try:
        values = yaml.safe_load(text)
        twice = _written_twice(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error
    if twice is not None:
        raise ConfigError(f"{where}:{twice[1]}: {twice[0]} is written twice; keep one of the two")
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a training config is a mapping with name, model and stages; this is {type(values).__name__}")
    try:
        config = TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_for_people(where, text, e) for e in error.errors(include_url=False))) from None
    for number, block in values["stages"].items():
        if block.get("steps") is not None and "epochs" in block:
            line = _line_of(text, ["stages", str(number), "epochs"])
            raise ConfigError(f"{where}:{line}: stages.{number} has both epochs and steps; keep the one that says how long it is to be")
    return config


def deepspeed_json(path_or_name: str) -> dict[str, Any]:
    """configs/deepspeed/<name>.json, or a JSON file. Raises ConfigError."""
    path = Path(path_or_name)
    entry: Path | Traversable = path if path.suffix == ".json" else resources.files("configs.deepspeed") / f"{path_or_name}.json"
    if not entry.is_file():
        raise ConfigError(f"deepspeed: no settings {path_or_name!r}; name a file of configs/deepspeed or a path to a .json file")
    try:
        values = json.loads(entry.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{entry}: not JSON: {error}") from error
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2):
        # ZeRO-0 differs in bf16 and gives no gradient norm in fp32; ZeRO-3 checkpoints load silently wrong on another number of ranks.
        raise ConfigError(f"{entry}: zero_optimization.stage is {stage}; 1 and 2 are supported")
    return values


def _config_text(path_or_name: str) -> tuple[str, str]:
    path = Path(path_or_name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"no training config {path}")
        try:
            return path.read_text("utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    folder = resources.files("configs.training")
    entry = folder / f"{path_or_name}.yaml"
    if not entry.is_file():
        known = sorted(e.name[:-5] for e in folder.iterdir() if e.name.endswith(".yaml"))
        raise ConfigError(
            f"no training config {path_or_name!r}{_meant(path_or_name, known)}; known: {', '.join(known)}, or a path to a .yaml file"
        )
    return entry.read_text("utf-8"), f"configs/training/{path_or_name}.yaml"


def _for_people(where: str, text: str, error: Any) -> str:
    place = [str(p) for p in error["loc"] if p != "[key]"]
    line = _line_of(text, place)
    at = f"{where}{f':{line}' if line else ''}: {'.'.join(place) or 'the file'}"
    if error["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        return f"{at}: unknown key{_meant(place[-1], known)}; known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{at}: is required"
    return f"{at}: {error['msg'].removeprefix('Value error, ')}, got {error['input']!r}"


def _keys_at(place: list[str]) -> list[str]:
    model: Any = TrainingConfig
    for key in place:
        if model is TrainingConfig and key == "stages":
            model = StageConfig
        elif key in getattr(model, "model_fields", {}):
            model = model.model_fields[key].annotation
    return list(model.model_fields)


def _line_of(text: str, place: list[str]) -> int | None:
    """Line (from 1) of the deepest key of `place` that the file has."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for key in place:
        if not isinstance(node, yaml.MappingNode):
            break
        hit = next(((k, v) for k, v in node.value if k.value == key), None)
        if hit is None:
            break
        line, node = hit[0].start_mark.line + 1, hit[1]
    return line


def _written_twice(node: Any) -> tuple[str, int] | None:
    """(key, line from 1) of a key that a mapping has a second time: YAML would silently take the last one."""
    if isinstance(node, yaml.SequenceNode):
        return next((found for inner in node.value if (found := _written_twice(inner))), None)
    if not isinstance(node, yaml.MappingNode):
        return None
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            return str(key.value), key.start_mark.line + 1
        seen.add(str(key.value))
        if found := _written_twice(value):
            return found
    return None


def _meant(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
