"""How far the features of a pruned encoder are from those of a whole one, over all ranks: what `encoder.prune` costs, while training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from training.encode import divergence
from training.tally import sum_over_ranks

if TYPE_CHECKING:
    from training.collate import PackBatch


def pruning_numbers(engine: Any, batches: Sequence[PackBatch]) -> dict[str, float | None]:
    """Of the first pack of each rank, all of which must call it; the weights stay as they are.

    relative_l2  ‖pruned - whole‖ / ‖whole‖ over the features of all kept video tokens, before the projector.   cosine  mean over them.
    tokens       how many. The first two are None without any.
    """
    model = engine.module.model
    training = model.training
    model.eval()  # adapters may have dropout, which is no difference between the two
    try:
        sums = divergence(model, batches[0])
    finally:
        model.train(training)
    difference, whole, cosine, tokens = sum_over_ranks(sums, engine.device).tolist()
    if not (tokens and whole):
        return {"relative_l2": None, "cosine": None, "tokens": tokens}
    return {"relative_l2": math.sqrt(difference / whole), "cosine": cosine / tokens, "tokens": tokens}
