"""Held-out loss: items that training never sees, through the same loader, in an order that never changes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from training.pack_loss import PackLoss, labelled_places

if TYPE_CHECKING:
    from shards.profile import Profile
    from shards.reader import Dataset
    from training.collate import PackBatch
    from training.engine import Ranks
    from training.stages import StageConfig

log = logging.getLogger("fovea")

_AT_ONCE = 16  # packs that are dealt together: the same ones for every number of ranks that divides it


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean cross entropy over labelled tokens, nats: of all, of each task and of each source; NaN where nothing is labelled. `skipped`:
    items that could not be read or decoded, which the loss is without."""

    loss: float
    loss_by_task: dict[str, float]
    labelled: int
    items: int
    loss_by_source: dict[str, float] = field(default_factory=dict)
    skipped: int = 0


def held_out_loss(model: nn.Module, batches: Iterable[PackBatch]) -> HeldOut:
    """The loss of `model` on this rank's packs, summed over all ranks (every rank must call it). Weights stay as they are."""
    loss_of = PackLoss(model)
    training = model.training
    sums = _Sums()
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                sums.add(batch, loss_of(batch)[1])
    finally:
        model.train(training)
    found = sums.over_ranks()
    if found.labelled and not math.isfinite(found.loss):
        log.warning("the held-out loss is not finite (%s)", found.loss)
    return found


class _Sums:
    """Cross entropy and labelled tokens of this rank's packs by task and source, float64."""

    def __init__(self) -> None:
        self.by: dict[tuple[str, str], list[float]] = {}
        self.items = self.skipped = 0

    def add(self, batch: PackBatch, tokens: torch.Tensor) -> None:
        """`tokens`: cross entropy of each labelled token in the pack's order, float32 [labelled]."""
        numbers = ((batch.position_ids[0] == 0).cumsum(0) - 1)[labelled_places(batch)]
        losses = torch.zeros(max(1, len(batch.items)), dtype=torch.float64).index_add_(0, numbers, tokens.double().cpu())
        counts = numbers.bincount(minlength=len(batch.items))
        for item, loss, count in zip(batch.items, losses.tolist(), counts.tolist(), strict=False):
            entry = self.by.setdefault((item.task, item.source), [0.0, 0.0])
            entry[0] += loss
            entry[1] += count
        self.items += len(batch.items)
        self.skipped += len(batch.skipped)

    def over_ranks(self) -> HeldOut:
        everywhere: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, (self.by, self.items, self.skipped))
        entries = [entry for by, _, _ in everywhere for entry in sorted(by.items())]

        def mean(of: int | None, name: str = "") -> float:
            mine = [sums for key, sums in entries if of is None or key[of] == name]
            count = math.fsum(sums[1] for sums in mine)
            return math.fsum(sums[0] for sums in mine) / count if count else math.nan

        def means(of: int) -> dict[str, float]:
            named = sorted({key[of] for key, sums in entries if sums[1]})
            return {name: mean(of, name) for name in named}

        return HeldOut(
            loss=mean(None),
            loss_by_task=means(0),
            labelled=int(sum(sums[1] for _, sums in entries)),
            items=sum(items for _, items, _ in everywhere),
            loss_by_source=means(1),
            skipped=sum(skipped for _, _, skipped in everywhere),
        )


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
    from training.feed import DatasetFeed
    from training.mixture import Mixture
    from training.stage_plan import plan_config
    from training.stages import SkipLimit

    at_once = math.lcm(_AT_ONCE, ranks.world)
    config = replace(plan_config(stage, 0, profile.name), packs=at_once, samples=None, divisible_by=1, too_long="leave_out")
    never = SkipLimit(share=1.0)  # what cannot be read is counted beside the loss, and ends nothing
    feed = DatasetFeed(dataset, split, Mixture(), config, profile, tokenizer, ranks, workers, limit=never)
    steps = islice(feed.run(0, feed.start(0)), math.ceil(packs / at_once))
    return held_out_loss(model, (batch for step in steps for batch in step.batches))
