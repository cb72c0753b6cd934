"""What a step is told by: speed, utilisation, fill, balance, bytes. One gathering of a dozen numbers over the ranks each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training.cost import FEATURES
from training.devices import this_device
from training.flops import ModelFlops, stage_flops
from training.measured import batch_features

if TYPE_CHECKING:
    from training.collate import PackBatch
    from training.engine import Ranks, StepResult
    from training.loader import LoadedStep
    from training.stages import StageConfig, TrainingConfig

_OWN = ("predicted", "wait", "bytes_read", "bytes_used", "skipped", "fuller")  # what a rank adds to the features of its packs


@dataclass(frozen=True, slots=True)
class Meter:
    """By what a stage's steps are measured. told: what the driver calls a device; peak: its operations a second, None where not known."""

    stage: StageConfig
    flops: ModelFlops
    told: str
    peak: float | None
    ranks: Ranks

    @staticmethod
    def of(shape: Any, number: int, config: TrainingConfig, ranks: Ranks) -> Meter:
        """`shape`: the model's config."""
        stage = config.stages[number]
        told, device = this_device()
        known = None if device is None else device.flops
        peak = known if config.device_flops is None else config.device_flops
        return Meter(stage, stage_flops(shape, stage, config.model.gradient_checkpointing), told, peak, ranks)


def step_numbers(
    meter: Meter, loaded: LoadedStep, features: np.ndarray, result: StepResult, wait: float, where: torch.device
) -> dict[str, Any]:
    """The record of a step, over all ranks; every rank must call it.

    features  float64 [packs, 7] of this rank's packs as they were trained.   wait  seconds this rank waited for them.

    loss                    as the stage weighs items; loss_by_task, loss_by_source: means over labelled tokens. In nats.
    rates, grad_norm        of each part that learns; before clipping.
    tokens, labelled, samples, packs, patches, visual, kept   of all ranks.   keep  kept/visual, 1 without visual tokens.
    encoded                 part of the patches of all media that passed the encoder (training.savings), 1 without media.
    fill                    mean over packs of the fuller of their two bounds; fill_tokens, fill_patches: of each.
    seconds, wait           of the step without waiting for data; the longest wait of a rank.
    tokens_per_s, samples_per_s   by this rank's clock, waiting included.
    mfu, hfu                operations of these packs over what all devices could do in that time, the encoder counted; without and with
                            what checkpointing repeats. None where the device's peak is neither known nor in the config.
    imbalance               the slowest rank's forward and backward seconds over the mean rank's, less 1; imbalance_predicted: by plan.
    bytes_read, bytes_used  taken from the store, and wanted of it.   skipped  items that could not be read.
    """
    fuller = np.maximum(
        features[:, FEATURES.index("token")] / meter.stage.seq_tokens, features[:, FEATURES.index("patch")] / meter.stage.pack_patches
    )
    own = [loaded.predicted, wait, loaded.bytes_read, loaded.bytes_used, loaded.skipped, float(fuller.sum())]
    every = gathered([*own, *features.sum(axis=0)], meter.ranks, where)
    total = dict(zip(_OWN, every.sum(axis=0)[: len(_OWN)].tolist(), strict=True))
    trained = every[:, len(_OWN) :].sum(axis=0)
    took = result.seconds + wait
    return {
        "loss": result.loss,
        "loss_by_task": result.loss_by_task,
        "loss_by_source": result.loss_by_source,
        "rates": result.rates,
        "grad_norm": result.grad_norm,
        "tokens": result.tokens,
        "labelled": result.labelled,
        "samples": result.samples,
        "packs": result.packs,
        "patches": result.patches,
        "visual": result.visual,
        "kept": result.kept,
        "keep": result.keep,
        "encoded": result.patches / result.all_patches if result.all_patches else 1.0,
        "fill": total["fuller"] / result.packs,
        "fill_tokens": result.tokens / (result.packs * meter.stage.seq_tokens),
        "fill_patches": result.patches / (result.packs * meter.stage.pack_patches),
        "seconds": result.seconds,
        "wait": float(every[:, _OWN.index("wait")].max()),
        "tokens_per_s": result.tokens / took,
        "samples_per_s": result.samples / took,
        "mfu": _share(trained @ meter.flops.model.vector, took, meter),
        "hfu": _share(trained @ meter.flops.hardware.vector, took, meter),
        "imbalance": result.imbalance - 1,
        "imbalance_predicted": over_mean(every[:, 0]),
        "bytes_read": int(total["bytes_read"]),
        "bytes_used": int(total["bytes_used"]),
        "skipped": int(total["skipped"]),
    }


def features_of(batches: Sequence[PackBatch]) -> np.ndarray:
    """float64 [packs, 7], also of none."""
    return np.array([batch_features(batch) for batch in batches]).reshape(-1, len(FEATURES))


def gathered(values: Sequence[float], ranks: Ranks, where: torch.device) -> np.ndarray:
    """float64 [ranks, values] of every rank; `where`: a device that ranks can speak from. Every rank must call it."""
    mine = torch.tensor(values, dtype=torch.float64, device=where)
    every = [torch.empty_like(mine) for _ in range(ranks.world)]
    torch.distributed.all_gather(every, mine)
    found: np.ndarray = torch.stack(every).cpu().numpy()
    return found


def over_mean(loads: np.ndarray) -> float:
    """The largest load over the mean one, less 1."""
    total = float(loads.sum())
    return float(loads.max()) * len(loads) / total - 1 if total > 0 else 0.0


def _share(operations: float, seconds: float, meter: Meter) -> float | None:
    return None if meter.peak is None else float(operations) / (seconds * meter.peak * meter.ranks.world)
