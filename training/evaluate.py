"""Held-out loss: items that training never sees, through the same loader, in an order that never changes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shards.errors import InfrastructureError
from training.engine import Tally
from training.model import PackLoss

if TYPE_CHECKING:
    from shards.profile import Profile
    from shards.reader import Dataset
    from training.collate import PackBatch
    from training.engine import Ranks
    from training.stages import StageConfig

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


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    tokenizer: Any,
    profile: Profile,
    stage: StageConfig,
    split: str,
    packs: int,
    ranks: Ranks,
    workers: int = 1,
) -> HeldOut:
    """Held-out loss over (about) the first `packs` packs of a fixed plan of `split`: all its items as they come, under the stage's budgets
    and compression. The plan's seed is 0 and its pass 0, whatever training uses. Raises ShardError where the dataset has no such split.
    """
    from training.feed import DatasetFeed, plan_config
    from training.mixture import Mixture

    feed = DatasetFeed(dataset, split, Mixture(), plan_config(stage, 0), profile, tokenizer, ranks, workers)
    steps = islice(feed.run(0, feed.start(0)), math.ceil(packs / (stage.step.packs or 16)))
    return held_out_loss(model, (batch for step in steps for batch in step.batches))


def evaluate_checkpoint(checkpoint: str | Path, dataset: str, split: str = "val", packs: int = 64) -> HeldOut:
    """Held-out loss of a finished stage's weights (`…/checkpoints/stage<k>/final`) on a dataset, under the profile, compression and budgets
    it was trained with; under torchrun on all ranks. Raises InfrastructureError where `checkpoint` is no finished stage, ShardError and
    ProfileError where the dataset has no such split or was measured otherwise.
    """
    from transformers.utils.logging import disable_progress_bar

    from shards.profile import Profile
    from shards.reader import Dataset
    from shards.tokenizer import load_tokenizer
    from training.engine import rank_device, start_ranks
    from training.model import from_hf
    from training.stages import StageConfig

    folder = Path(checkpoint)
    if not (folder / "fovea.json").is_file():
        raise InfrastructureError(f"{folder}: no finished stage (there is no fovea.json); give …/checkpoints/stage<k>/final")
    disable_progress_bar()
    facts = json.loads((folder / "fovea.json").read_text("utf-8"))
    profile = Profile(**{**facts["profile"], "report_thresholds": tuple(facts["profile"]["report_thresholds"])})
    stage = StageConfig.model_validate(facts["block"])
    opened, ranks = Dataset.open(dataset), start_ranks()
    model = from_hf(folder).to(rank_device())
    return evaluate(model, opened, load_tokenizer(folder), profile, stage, split, packs, ranks)
