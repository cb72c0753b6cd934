"""What each labelled token weighs in a step's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from training.pack_loss import labelled_places

if TYPE_CHECKING:
    from training.collate import PackBatch

# Weight of a token of an item with n labelled ones, before division by the sum of all weights of the step.
_EXPONENT = {"token": 0.0, "sample": -1.0, "sqrt": -0.5}


def token_weights(batch: PackBatch, kind: str) -> torch.Tensor:
    """Weights of the pack's labelled tokens, in the order of `labelled_places`: float32 [labelled], n to the power 0, −1 or −1/2.

    Divided by their sum over all packs of all ranks they make the loss of a step
      token   the mean over labelled tokens;
      sample  the mean over items of each item's token mean (an item without labels counts for nothing);
      sqrt    items weighed by the square root of their labelled tokens (InternVL 2.5, arXiv 2412.05271, §4.2 "square averaging").
    """
    item = item_numbers(batch)[labelled_places(batch)]
    counts = torch.bincount(item, minlength=max(1, len(batch.items))).float()
    return counts[item] ** _EXPONENT[kind]


def item_numbers(batch: PackBatch) -> torch.Tensor:
    """Which of the pack's items each token belongs to, int64 [L]: one begins where positions restart. Zeros for a pack without items."""
    item = (batch.position_ids[0] == 0).cumsum(0) - 1
    if int(item[-1]) + 1 != max(1, len(batch.items)):
        raise AssertionError(f"a pack of {len(batch.items)} items whose positions restart {int(item[-1]) + 1} times")
    return item
