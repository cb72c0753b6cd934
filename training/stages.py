"""What a training config says. A new stage is one block of YAML. Imports neither torch nor DeepSpeed."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from shards.errors import ConfigError
from shards.items import TASKS
from shards.sample import digest_of
from training.savings import Savings

PART_NAMES = ("vision_encoder", "projector", "llm")
PartName = Literal["vision_encoder", "projector", "llm"]
NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Budget = Annotated[int, Field(gt=0, lt=2**31)]  # of a pack
Packs = Annotated[int, Field(gt=0, le=1_000_000)]  # of a step: it is made of them even where a dataset has fewer
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # torch's, with room for what is added for a step and a rank
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

    @model_validator(mode="after")
    def _heads_divide(self) -> TinyShape:
        for whole, heads in (("hidden", "heads"), ("vision_hidden", "vision_heads"), ("heads", "kv_heads")):
            if getattr(self, whole) % getattr(self, heads):
                raise ValueError(f"{whole} {getattr(self, whole)} is no multiple of {heads} {getattr(self, heads)}")
        return self


class ModelConfig(BaseModel):
    """What stage 1 starts from; paths are local directories.

    preset tiny      random numbers, sizes in `tiny`.
    preset parts     a SigLIP encoder at `vision` and a Qwen2.5 at `llm` (Hugging Face layout), joined by a new projector: what the paper
                     starts from. `vision` may be a whole VideoLLaMA3 too: its encoder is taken (the paper's 7B begins so).
    preset hf        a whole VideoLLaMA3 at `path`, in Hugging Face layout.
    preset original  a whole VideoLLaMA3 at `path`, in the layout of its authors.
    sizes            a name of configs/shapes, by which costs are predicted where the directories are not (a plan on a laptop).
    attn             auto: flash-attention 2 on a GPU where it is installed, else sdpa.
    """

    model_config = _STRICT

    preset: Literal["tiny", "parts", "hf", "original"] = "tiny"
    vision: str | None = None
    llm: str | None = None
    path: str | None = None
    tiny: TinyShape = TinyShape()
    sizes: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    attn: Literal["auto", "sdpa", "flash_attention_2"] = "auto"

    @model_validator(mode="after")
    def _paths_fit_preset(self) -> ModelConfig:
        needed = {"tiny": (), "parts": ("vision", "llm"), "hf": ("path",), "original": ("path",)}[self.preset]
        for name in ("vision", "llm", "path"):
            given = getattr(self, name) is not None
            if given != (name in needed):
                raise ValueError(f"preset {self.preset} {'has no' if given else 'needs'} `{name}`")
        if "tiny" in self.model_fields_set and self.preset != "tiny":
            raise ValueError(f"preset {self.preset} has no `tiny`: its sizes are those of the weights it starts from")
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
                raise ValueError(f"unknown task {task!r}{close_to(task, TASKS)}; tasks are {', '.join(TASKS)}")
        return self


class LoraConfig(BaseModel):
    """Low-rank adapters (peft) in a part's linear layers, instead of its own weights. targets: layers by name, or all linear ones."""

    model_config = _STRICT

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] | None = None


class PartConfig(BaseModel):
    """How a part learns: its peak rate, and whether by adapters."""

    model_config = _STRICT

    lr: PositiveFloat
    lora: LoraConfig | None = None


class StepSize(BaseModel):
    """Packs of an optimizer step over all ranks: `packs` of them, or as many as hold about `samples` items in the mean of the plan.

    divisible_by  with `samples`: the number of packs is a multiple of it, so that so many ranks (or a divisor) can share a step.
    """

    model_config = _STRICT

    packs: Packs | None = None
    samples: Annotated[int, Field(gt=0, le=100_000_000)] | None = None
    divisible_by: Packs = 1

    @model_validator(mode="after")
    def _one_of_both(self) -> StepSize:
        if (self.packs is None) == (self.samples is None):
            raise ValueError("a step is {packs: N} or {samples: M, divisible_by: K}")
        if self.packs is not None and self.divisible_by != 1:
            raise ValueError("divisible_by belongs to {samples: M}; with {packs: N} the number is N")
        return self


class SkipLimit(BaseModel):
    """When a run with unreadable items stops: more than `items` of them have been skipped and more than `share` of all items so far."""

    model_config = _STRICT

    share: Annotated[float, Field(ge=0, le=1)] = 0.01
    items: Annotated[int, Field(ge=0)] = 100


class CacheConfig(BaseModel):
    """Where a node keeps shards of a remote dataset while they are read: a folder, and how many bytes it may hold. None: ranges only."""

    model_config = _STRICT

    path: str
    bytes: PositiveInt = 64_000_000_000


class EncoderConfig(BaseModel):
    """Work that the encoder and the projector are spared (docs/compression.md). The first two change no result.

    reuse          pictures and frames of a pack that are equal to the last bit are encoded once.
    mask_first     visual tokens that compression drops do not pass the projector.
    prune          blocks that compression drops do not pass the encoder either; approximate, for training and inference alike.
    compare_steps  with `prune`: after so many steps again and again, packs are encoded whole too, and it is told how far the kept tokens'
                   features are from those.
    """

    model_config = _STRICT

    reuse: bool = True
    mask_first: bool = True
    prune: bool = False
    compare_steps: PositiveInt = 100


class StageConfig(BaseModel):
    """One stage.

    profile         measure profile whose token counts the packs are made by; the dataset must carry it.
    compress        drop the visual tokens that the profile masks (docs/compression.md).
    encoder         what the encoder need not compute.
    train           peak learning rate of each part that learns, or {lr, lora}; a part that is not named is frozen.
    epochs, steps   passes over the mixture, or exactly so many optimizer steps over as many passes as it takes.
    step            packs in one optimizer step, over all ranks; every number of ranks that divides it gives the same steps.
    loss            what weighs alike in a step: each labelled token (token, ours), each item (sample), or each item by the square root of
                    its labelled tokens (sqrt, InternVL 2.5 §4.2).
    seq_tokens      tokens of a pack, at most. pack_patches: patches of a pack that pass the encoder, at most.
    too_long        an item above one of these bounds is left out (and counted), or the plan is refused.
    window_shards   shards that are shuffled and packed together: what lies further apart never shares a pack, and memory is bounded by it.
    warmup_ratio    part of the steps with a rate rising linearly from 0; then `schedule` down to 0 (cosine), or level (constant).
    betas           AdamW's decay of its two moments.
    clip            bound of the gradient's norm; 0 switches clipping off.
    """

    model_config = _STRICT

    profile: str
    compress: bool
    encoder: EncoderConfig = EncoderConfig()
    train: dict[PartName, PositiveFloat | PartConfig] = Field(min_length=1)
    mixture: MixtureConfig = MixtureConfig()
    epochs: PositiveInt = 1
    steps: PositiveInt | None = None
    step: StepSize
    loss: Literal["token", "sample", "sqrt"] = "token"
    seq_tokens: Budget
    pack_patches: Budget
    too_long: Literal["leave_out", "refuse"] = "leave_out"
    window_shards: PositiveInt = 64
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: NonNegative = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: NonNegative = 1.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)

    @model_validator(mode="after")
    def _prunes_what_is_dropped(self) -> StageConfig:
        if self.encoder.prune and not self.compress:
            raise ValueError("encoder.prune leaves out what compression drops: it needs `compress: true`")
        return self

    @property
    def savings(self) -> Savings:
        return Savings(self.encoder.reuse, self.encoder.mask_first, self.encoder.prune)

    @property
    def rates(self) -> dict[str, float]:
        """Peak learning rate of each part that learns."""
        return {part: how.lr if isinstance(how, PartConfig) else how for part, how in self.train.items()}

    @property
    def adapters(self) -> dict[str, LoraConfig]:
        """The parts that learn by adapters."""
        return {part: how.lora for part, how in self.train.items() if isinstance(how, PartConfig) and how.lora is not None}


class TrainingConfig(BaseModel):
    """A whole training: the model, the stages in order, and how it is run. The second half changes no result and is not digested.

    costs  coefficients fitted from measured steps (`fovea costs`), by which packs are weighed; without, predicted operations. They are
           frozen in the plan of a stage when it begins.
    device_flops  operations a second that one device can do at most in the precision of training: mfu and hfu are shares of it, instead of
           the peak that training.devices knows, or where it knows none (a CPU, another GPU).
    rank_timeout  seconds after which a rank that does not answer (it hangs, or its machine is away) ends the run.
    """

    model_config = _STRICT

    name: str
    model: ModelConfig = ModelConfig()
    seed: Seed = 42
    stages: dict[PositiveInt, StageConfig] = Field(min_length=1)

    dataset: str | None = None
    tokenizer: str | None = None
    deepspeed: str = "zero1"
    costs: str | None = None
    workers: Annotated[int, Field(ge=0)] = 1
    cache: CacheConfig | None = None
    skipped: SkipLimit = SkipLimit()
    checkpoint_steps: PositiveInt = 200
    keep_checkpoints: PositiveInt = 2
    rank_timeout: PositiveFloat = 600.0
    device_flops: PositiveFloat | None = None
    held_out: str = "val"
    held_out_packs: PositiveInt = 64
    wandb: dict[str, str] | None = None

    def stage_digest(self, stage: int) -> str:
        """Identity of what a stage computes: its block, the model, the seed, and every stage before it; never how it is run."""
        told = {"encoder": {"compare_steps"}}
        chain = [self.stages[k].model_dump(mode="json", exclude=told) for k in sorted(self.stages) if k <= stage]
        model = self.model.model_dump(mode="json", exclude={"sizes", "attn", "gradient_checkpointing"})  # how it is run and predicted
        return digest_of(model, self.seed, chain)


def deepspeed_json(path_or_name: str) -> dict[str, Any]:
    """configs/deepspeed/<name>.json, or a JSON file. Raises ConfigError."""
    path = Path(path_or_name)
    entry: Path | Traversable = path if path.suffix == ".json" else resources.files("configs.deepspeed") / f"{path_or_name}.json"
    if not entry.is_file():
        raise ConfigError(f"deepspeed: no settings {path_or_name!r}; name a file of configs/deepspeed or a path to a .json file")
    try:
        values = json.loads(entry.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{entry}: not JSON: {error}") from error
    zero = values.get("zero_optimization", {}) if isinstance(values, dict) else None
    if not isinstance(zero, dict):
        raise ConfigError(f"{entry}: DeepSpeed's settings are a JSON object, and so is `zero_optimization` in it")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"{entry}: zero_optimization.stage is {stage}; 0, 1, 2 and 3 are supported")
    return values


def close_to(word: str, known: Any) -> str:
    """ " (did you mean …?)" for the known word nearest to `word`; empty where none is near."""
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
