"""The optimizer's engine: DeepSpeed with ZeRO around the model, and one step of it. DeepSpeed is imported when it is first used."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shards.errors import ConfigError, FoveaError
from shards.items import TASKS
from training.model import PackLoss, freeze, labelled_places, parameter_groups
from training.stages import StageConfig, TrainingConfig, deepspeed_json

if TYPE_CHECKING:
    from training.collate import PackBatch

log = logging.getLogger("fovea")


class TrainingStopped(FoveaError):
    """A step that must not be taken: its loss or its gradient is not finite. The message names the step and its items."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all: 0 ≤ rank < world."""

    rank: int
    world: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step over all ranks. Losses are means over labelled tokens, nats; `keep`: kept / all visual tokens (1 without)."""

    loss: float
    loss_by_task: dict[str, float]
    rates: dict[str, float]
    grad_norm: float
    tokens: int
    labelled: int
    samples: int
    packs: int
    keep: float
    seconds: float


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

    `universal` prepares it for a checkpoint that another number of ranks has written.
    """
    import deepspeed

    if stage.step.packs is not None and stage.step.packs % ranks.world:
        raise ConfigError(f"a step of {stage.step.packs} packs cannot be shared by {ranks.world} ranks")
    freeze(model, stage.train)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    model.train()
    module = PackLoss(model)
    module.universal_checkpoint_info = {"universal_checkpoint_version": 0.2}  # type: ignore[assignment]  # lets other numbers of ranks resume
    rates: Mapping[str, float] = stage.rates
    optimizer = torch.optim.AdamW(parameter_groups(model, rates, stage.weight_decay), betas=stage.betas)
    settings = deepspeed_json(config.deepspeed)
    settings["gradient_clipping"] = stage.clip
    if config.model.precision == "bf16":
        settings["bf16"] = {"enabled": True}
    if universal:
        settings["checkpoint"] = {"load_universal": True}
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
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

    The loss is the mean over the labelled tokens of all packs of all ranks, so that neither packing nor dealing weighs an item differently.
    Raises TrainingStopped before the update if the loss is not finite anywhere, and after it if the gradient was not.
    """
    started = time.perf_counter()
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    labelled = int(_over_ranks(torch.tensor([sum(b.counts.labelled for b in batches)]), engine.device))
    tally = Tally()
    for batch in batches:
        loss, tokens = engine(batch)
        # The engine averages gradients over ranks; the step's loss is a sum over them.
        engine.backward(loss * (ranks.world / max(1, labelled)))
        tally.add(batch, tokens)
    totals = tally.over_ranks(engine.device)
    _refuse_unless_finite(totals.loss, batches, tally, step, ranks)
    factor = rate_factor(step, steps, stage.warmup_ratio, stage.schedule)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    engine.step()
    norm = float(engine.get_global_grad_norm())
    if not math.isfinite(norm):
        raise TrainingStopped(f"step {step}: the gradient is not finite ({norm}) over {_names(batches)}; resume from the last checkpoint")
    return StepResult(
        loss=totals.loss,
        loss_by_task=totals.by_task,
        rates={part: rate * factor for part, rate in stage.rates.items()},
        grad_norm=norm,
        tokens=totals.tokens,
        labelled=totals.labelled,
        samples=totals.samples,
        packs=totals.packs,
        keep=totals.keep,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True)
class Totals:
    """What a Tally comes to, over all ranks."""

    loss: float
    by_task: dict[str, float]
    labelled: int
    tokens: int
    samples: int
    packs: int
    keep: float


class Tally:
    """Sums of packs: cross entropy and labelled tokens of each task, tokens, items, packs, visual tokens kept and in all."""

    def __init__(self) -> None:
        self.loss = torch.zeros(len(TASKS), dtype=torch.float64)
        self.labelled = torch.zeros(len(TASKS), dtype=torch.float64)
        self.rest = torch.zeros(5, dtype=torch.float64)
        self.finite: list[bool] = []

    def add(self, batch: PackBatch, tokens: torch.Tensor) -> None:
        """`tokens`: cross entropy of each labelled token in the pack's order, float32 [labelled]."""
        values = tokens.double().cpu()
        tasks = task_numbers(batch)[labelled_places(batch)]
        self.loss.index_add_(0, tasks, values)
        self.labelled.index_add_(0, tasks, torch.ones_like(values))
        self.rest += torch.tensor([batch.counts.tokens, len(batch.items), 1, batch.counts.kept, batch.counts.visual], dtype=torch.float64)
        self.finite.append(bool(values.isfinite().all()))

    def over_ranks(self, device: torch.device) -> Totals:
        """The sums of all ranks: every rank must call it."""
        loss, labelled, rest = _over_ranks(torch.cat([self.loss, self.labelled, self.rest]), device).split([len(TASKS), len(TASKS), 5])
        tokens, samples, packs, kept, visual = (int(v) for v in rest.tolist())
        return Totals(
            loss=float(loss.sum() / labelled.sum().clamp(min=1)),
            by_task={task: float(loss[i] / labelled[i]) for i, task in enumerate(TASKS) if labelled[i] > 0},
            labelled=int(labelled.sum()),
            tokens=tokens,
            samples=samples,
            packs=packs,
            keep=kept / visual if visual else 1.0,
        )


def task_numbers(batch: PackBatch) -> torch.Tensor:
    """The number (in TASKS) of each token's task, int64 [L]: an item begins where positions restart. A pack without items gives zeros."""
    if not batch.items:
        return torch.zeros(batch.input_ids.shape[1], dtype=torch.int64)
    item = (batch.position_ids[0] == 0).cumsum(0) - 1
    if int(item[-1]) + 1 != len(batch.items):
        raise AssertionError(f"a pack of {len(batch.items)} items whose positions restart {int(item[-1]) + 1} times")
    return torch.tensor([TASKS.index(i.task) for i in batch.items])[item]


def _over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    moved = values.to(device)
    torch.distributed.all_reduce(moved)
    return moved.cpu()


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


def _names(batches: Sequence[PackBatch]) -> str:
    return ", ".join(f"{i.uid}/{i.task}/{i.n}" for b in batches for i in b.items)
