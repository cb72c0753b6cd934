"""The loss of a pack: the model's parts run once each, whatever the pack holds, and the head on labelled rows only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from training.attention import item_borders
from training.encode import visual_features

if TYPE_CHECKING:
    from training.collate import PackBatch

LOSS_ROWS = 1024  # labelled rows whose logits exist at once: at 151,665 tokens of vocabulary 0.6 GB in fp32


class PackLoss(nn.Module):
    """The model with the loss of a pack on top: what the optimizer's engine runs. `rows` bounds how many rows of logits exist at once.

    Encoder, projector, language model and head are each called once for a pack, with pictures, clips, both or none. ZeRO-3 gathers weights
    where a module is called: ranks whose packs called them a different number of times would wait for each other for ever.
    """

    def __init__(self, model: nn.Module, rows: int = LOSS_ROWS) -> None:
        super().__init__()
        self.model = model
        self.labelled_loss = LabelledLoss(model, rows)

    def forward(self, batch: PackBatch, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of weight · cross entropy, float32 scalar with gradient; each labelled token's cross entropy, float32 [labelled], detached).

        weights  float32 [labelled], in the order of `labelled_places`; without, each is 1.
        """
        hidden = self.hidden(batch)
        places = labelled_places(batch)
        targets = batch.labels[0, places].to(hidden.device, non_blocking=True)
        rows = hidden.index_select(0, (places - 1).to(hidden.device, non_blocking=True))
        given = None if weights is None else weights.to(hidden.device, non_blocking=True)
        return self.labelled_loss(rows, targets, given)

    def hidden(self, batch: PackBatch) -> torch.Tensor:
        """The language model's last hidden state for each token of the pack: [L, hidden size], in the model's precision."""
        model: Any = self.model
        first = next(model.parameters())
        name = model.config.text_config._attn_implementation
        lengths = item_lengths(batch)
        # An attention mask of ones or a cache would let the items of a pack see each other.
        output = model.model(
            input_ids=batch.input_ids.to(first.device, non_blocking=True),
            position_ids=batch.position_ids.to(first.device, non_blocking=True),
            mm_encoder_outputs=visual_features(model, batch),
            use_cache=False,
            **item_borders(lengths, name, first.device),
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


class LabelledLoss(nn.Module):
    """The head and cross entropy over labelled rows, `rows` of them at once. The head stays the model's."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        super().__init__()
        self._model: tuple[Any] = (model,)  # in a tuple, so that its parameters are not listed twice
        self.rows: int = rows

    @property
    def head(self) -> nn.Module:
        """[…, hidden size] → [vocabulary]. Through the model, for its layers may be replaced (by adapters)."""
        head: nn.Module = self._model[0].lm_head
        return head

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [labelled, hidden size], targets int64 [labelled] → as PackLoss.forward."""
        # Its weight, where that is all of it, and not a call for each piece: ZeRO-3 counts calls, and ranks have other numbers of pieces.
        own: Any = self.head
        head = own if adapted_head(own) else partial(functional.linear, weight=own.weight)
        if len(targets) <= self.rows:
            tokens = _nll(hidden, targets, head)
        else:
            pieces = zip(hidden.split(self.rows), targets.split(self.rows), strict=True)
            tokens = torch.cat([checkpoint(_nll, h, t, head, use_reentrant=False) for h, t in pieces])
        loss = tokens.sum() if weights is None else tokens @ weights
        return loss, tokens.detach()


def adapted_head(head: nn.Module) -> bool:
    """Whether the head is more than its weight: adapters lie beside it."""
    return type(head) is not nn.Linear


def labelled_places(batch: PackBatch) -> torch.Tensor:
    """Places in the pack of the tokens that PackLoss scores, in its order: int64 [labelled]."""
    return (batch.labels[0, 1:] != -100).nonzero()[:, 0] + 1


def item_lengths(batch: PackBatch) -> list[int]:
    """Tokens of each item of the pack, in order; [1] for a pack without items. Positions restart where an item begins."""
    starts = (batch.position_ids[0] == 0).nonzero()[:, 0].tolist()
    return [after - start for start, after in zip(starts, [*starts[1:], batch.position_ids.shape[1]], strict=True)]


def _nll(hidden: torch.Tensor, targets: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="none")
