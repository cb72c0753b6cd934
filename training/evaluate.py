"""Held-out loss: items that training never sees, through the same loader, in an order that never changes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from training.engine import Tally
from training.model import PackLoss

if TYPE_CHECKING:
    from training.collate import PackBatch

log = logging.getLogger("fovea")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean cross entropy over labelled tokens, nats: of all and of each task; NaN where nothing is labelled."""

    loss: float
    loss_by_task: dict[str, float]
    labelled: int
    items: int


def held_out_loss(model: nn.Module, batches: Iterable[PackBatch]) -> HeldOut:
    """The loss of `model` on this rank's packs, summed over all ranks (every rank must call it). Weights stay as they are."""
    loss_of = PackLoss(model)
    training = model.training
    device = next(model.parameters()).device
    tally = Tally()
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                tally.add(batch, loss_of(batch)[1])
    finally:
        model.train(training)
    totals = tally.over_ranks(device)
    if totals.labelled and not math.isfinite(totals.loss):
        log.warning("the held-out loss is not finite (%s)", totals.loss)
    return HeldOut(totals.loss if totals.labelled else math.nan, totals.by_task, totals.labelled, totals.samples)
