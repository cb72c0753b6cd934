"""The optimizer's engine: DeepSpeed with ZeRO around the model, and one step of it. DeepSpeed is imported when it is first used."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shards.errors import ConfigError, FoveaError
from training.attention import chosen_attention, use_attention
from training.model import freeze, parameter_groups
from training.pack_loss import PackLoss, adapted_head
from training.stages import StageConfig, TrainingConfig
from training.tally import Tally
from training.weights import token_weights
from training.zero import (
    GradientNotFinite,
    adamw,
    engine_settings,
    norm_before_step,
    trial_step_forgotten,
    zero_stage,
)

if TYPE_CHECKING:
    from training.collate import PackBatch

log = logging.getLogger("fovea")

NAMED_ITEMS = 64  # in the message of a step whose gradient is not finite


class TrainingStopped(FoveaError):
    """A step that must not be taken: its loss or its gradient is not finite. The message names the step and its items."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all: 0 ≤ rank < world."""

    rank: int
    world: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step over all ranks.

    loss             as the stage weighs it. loss_by_task, loss_by_source: plain means over labelled tokens; all in nats.
    grad_norm        before clipping. rates: of each part that learns, in this step.
    samples          items. patches: through the encoder, of all_patches that their media have.
    visual, kept     their tokens before and after compression; keep: kept/visual.
    seconds          of the step, without waiting for data. rank_seconds: of them this rank's forward and backward passes, with what it
                     waits inside them for other ranks (ZeRO-3 gathers weights there).
    imbalance        the slowest rank's over the mean of rank_seconds. pack_seconds: forward and backward of each of this rank's packs.
    """

    loss: float
    loss_by_task: dict[str, float]
    loss_by_source: dict[str, float]
    rates: dict[str, float]
    grad_norm: float
    tokens: int
    labelled: int
    samples: int
    packs: int
    patches: int
    all_patches: int
    visual: int
    kept: int
    keep: float
    seconds: float
    rank_seconds: float
    imbalance: float
    pack_seconds: list[float]


def rank_device() -> torch.device:
    """This rank's GPU; the CPU where there is none, or where DS_ACCELERATOR=cpu asks for it."""
    if os.environ.get("DS_ACCELERATOR", "cuda") == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def start_ranks() -> Ranks:
    """Joins the process group. Under torchrun its variables are used; alone, a group of one is made, which needs no port."""
    device = rank_device()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)  # barriers before the engine is built would all run on the first
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
    backend = "nccl" if gpu else "gloo"
    if "RANK" not in os.environ:
        # a free port that is looked for may be taken by another before it is bound; the variables are for DeepSpeed, which asks for them
        os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"})
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not gpu:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA is no news
    with contextlib.redirect_stdout(io.StringIO()) as told:  # standard output is for what was asked for
        import deepspeed

        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    log.debug("%s", told.getvalue())
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


def build_engine(model: nn.Module, stage: StageConfig, config: TrainingConfig, ranks: Ranks, universal: bool = False) -> Any:
    """A DeepSpeedEngine around PackLoss(model): parts frozen as the stage says, a new AdamW, the stage's clipping and precision.

    `universal` prepares it for a checkpoint that another number of ranks has written. A rank holds the whole model once while it is built,
    also under ZeRO-3; `training.whole.make_whole` ends it. Raises ConfigError for settings that contradict the stage or cannot run here.
    """
    import deepspeed

    device = rank_device()
    settings = engine_settings(stage, config, device, universal)
    freeze(model, stage.train)
    use_attention(model, chosen_attention(config.model.attn, device, config.model.precision))
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    model.train()
    module = PackLoss(model)
    module.universal_checkpoint_info = {"universal_checkpoint_version": 0.2}  # type: ignore[assignment]  # lets other numbers of ranks resume
    optimizer = adamw(parameter_groups(model, stage.rates, stage.weight_decay), stage, settings, device)
    zero = zero_stage(settings)
    if zero == 0 and config.model.precision == "fp32":
        norm_before_step(optimizer, stage.clip)
    if zero == 3:
        head: Any = module.labelled_loss.head
        if adapted_head(head):
            raise ConfigError("adapters of lm_head are not for ZeRO-3 (ranks would wait for each other); leave lm_head out of `targets`")
        deepspeed.zero.register_external_parameter(module.labelled_loss, head.weight)
    with trial_step_forgotten(optimizer):
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    engine.ranks, engine.known_sources = ranks, []
    return engine


def rate_factor(step: int, steps: int, warmup_ratio: float, schedule: str) -> float:
    """Part of the peak rate in step `step` (from 0) of `steps`: linear from 0 over ceil(warmup_ratio·steps), then half a cosine to 0.

    VideoLLaMA3's schedule (report §3.3: cosine, warm-up ratio 0.03), except that the first step is not wasted on rate 0.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train_step(engine: Any, stage: StageConfig, batches: Sequence[PackBatch], step: int, steps: int) -> StepResult:
    """One optimizer step: this rank's packs forward and backward, then the update. `step` counts from 0.

    The loss is a mean over all packs of all ranks, weighed as stage.loss says: neither packing nor dealing weighs an item differently.
    Raises TrainingStopped on all ranks, and without an update on any, where a loss or the gradient is not finite.
    """
    started = time.perf_counter()
    ranks: Ranks = engine.ranks
    tally = Tally(engine.known_sources)
    weights = [None if stage.loss == "token" else token_weights(batch, stage.loss) for batch in batches]
    scale = _scale(batches, weights, engine.device, ranks)
    marks = [_mark(engine.device)]
    for batch, weight in zip(batches, weights, strict=True):
        loss, tokens = engine(batch, weight)
        engine.backward(loss * scale)
        tally.add(batch, tokens, weight)
        marks.append(_mark(engine.device))
    pack_seconds = _between(marks)
    totals = tally.over_ranks(engine.device, sum(pack_seconds))
    _refuse_unless_finite(totals.loss, batches, tally, step, ranks)
    factor = rate_factor(step, steps, stage.warmup_ratio, stage.schedule)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    norm = _update(engine)
    if not math.isfinite(norm):
        raise TrainingStopped(
            f"step {step}: the gradient is not finite, while every loss is: that of one of the step's items at least, which their sum does "
            f"not tell. They are {_names_of_all(batches, step, ranks)}. No update was made: the last checkpoint is good. "
            "Look at these samples (`fovea explain`), or lower the learning rate"
        )
    return StepResult(
        loss=totals.loss,
        loss_by_task=totals.by_task,
        loss_by_source=totals.by_source,
        rates={part: rate * factor for part, rate in stage.rates.items()},
        grad_norm=norm,
        tokens=totals.tokens,
        labelled=totals.labelled,
        samples=totals.samples,
        packs=totals.packs,
        patches=totals.patches,
        all_patches=totals.all_patches,
        visual=totals.visual,
        kept=totals.kept,
        keep=totals.keep,
        seconds=time.perf_counter() - started,
        rank_seconds=totals.rank_seconds[ranks.rank],
        imbalance=imbalance(totals.rank_seconds),
        pack_seconds=pack_seconds,
    )


def imbalance(rank_seconds: Sequence[float]) -> float:
    """The slowest rank's seconds over the mean, at least 1."""
    total = sum(rank_seconds)
    return max(rank_seconds) * len(rank_seconds) / total if total > 0 else 1.0


def _scale(batches: Sequence[PackBatch], weights: Sequence[torch.Tensor | None], device: torch.device, ranks: Ranks) -> torch.Tensor:
    """What a pack's summed loss is multiplied by: float32 scalar on `device`, where it stays, so that the host need not wait for it.

    The engine averages gradients over ranks; the step's loss is a sum over them.
    """
    mine = sum(b.counts.labelled if w is None else float(w.double().sum()) for b, w in zip(batches, weights, strict=True))
    total = torch.tensor(float(mine), dtype=torch.float64).to(device)
    torch.distributed.all_reduce(total)
    return torch.where(total > 0, ranks.world / total, 0.0).float()


def _update(engine: Any) -> float:
    """Clips and moves; the norm of the gradient before clipping. Not finite: nothing was moved."""
    try:
        engine.step()
    except GradientNotFinite:
        return math.nan
    return float(engine.get_global_grad_norm())


def _mark(device: torch.device) -> Any:
    """A point in time: on a GPU an event in its queue, for the host runs ahead of it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(marks: Sequence[Any]) -> list[float]:
    """Seconds between neighbouring marks; on a GPU it waits for the last."""
    if isinstance(marks[-1], float):
        return [after - before for before, after in pairwise(marks)]
    marks[-1].synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def _refuse_unless_finite(loss: float, batches: Sequence[PackBatch], tally: Tally, step: int, ranks: Ranks) -> None:
    if math.isfinite(loss):
        return
    mine = _names([b for b, fine in zip(batches, tally.finite, strict=True) if not fine])
    everywhere: list[str] = [""] * ranks.world
    torch.distributed.all_gather_object(everywhere, mine)
    bad = "; ".join(name for name in everywhere if name)
    raise TrainingStopped(
        f"step {step}: the loss is not finite ({loss}) in the pack of {bad}. No update was made: the last checkpoint is good. "
        "Look at these samples (`fovea explain`), or lower the learning rate"
    )


def _names_of_all(batches: Sequence[PackBatch], step: int, ranks: Ranks) -> str:
    """The step's items by rank, NAMED_ITEMS of them at most, as many of each rank; all of its own are in each rank's log. Every rank must
    call it."""
    items = _named(batches)
    log.error("step %d: the gradient is not finite; the items of rank %d are %s", step, ranks.rank, ", ".join(items))
    share = max(1, NAMED_ITEMS // ranks.world)
    everywhere: list[tuple[list[str], int]] = [([], 0)] * ranks.world
    torch.distributed.all_gather_object(everywhere, (items[:share], len(items)))
    told = [f"on rank {rank} {', '.join(some)}" for rank, (some, _) in enumerate(everywhere)][:NAMED_ITEMS]
    more = sum(count for _, count in everywhere) - sum(len(some) for some, _ in everywhere[:NAMED_ITEMS])
    return "; ".join(told) + (f"; and {more:,} more, which the log of each rank names" if more else "")


def _names(batches: Sequence[PackBatch]) -> str:
    return ", ".join(_named(batches))


def _named(batches: Sequence[PackBatch]) -> list[str]:
    return [f"{i.uid}/{i.task}/{i.n}" for b in batches for i in b.items]
