"""Sums over packs, then over ranks: what a step or an evaluation comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from shards.items import TASKS
from training.pack_loss import labelled_places
from training.weights import item_numbers

if TYPE_CHECKING:
    from training.collate import PackBatch

_COUNTS = ("tokens", "labelled", "samples", "packs", "kept", "visual", "patches", "all_patches")


@dataclass(frozen=True, slots=True)
class Totals:
    """What a Tally comes to, over all ranks.

    loss         weighted as the packs were added (0 where nothing is labelled); by_task, by_source: plain means over labelled tokens, nats.
    samples      items. kept, visual: tokens of media after and before compression. patches: through the encoder, of all_patches.
    rank_seconds what each rank told, in the order of ranks.
    """

    loss: float
    by_task: dict[str, float]
    by_source: dict[str, float]
    labelled: int
    tokens: int
    samples: int
    packs: int
    kept: int
    visual: int
    patches: int
    all_patches: int
    rank_seconds: tuple[float, ...]

    @property
    def keep(self) -> float:
        """Part of the visual tokens that compression keeps; 1 without any."""
        return self.kept / self.visual if self.visual else 1.0


class Tally:
    """Sums of packs. Their losses stay on the device until `over_ranks`, which reads them back at once.

    `sources`: names that all ranks know by number. The list is lengthened, on all ranks alike, by those that a rank meets first; give
    one list to all steps and in the long run a step's numbers take one all-reduce.
    """

    def __init__(self, sources: list[str] | None = None) -> None:
        self.sources = [] if sources is None else sources
        self.finite: list[bool] = []
        self._packs: list[tuple[PackBatch, torch.Tensor, torch.Tensor | None]] = []

    def add(self, batch: PackBatch, tokens: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """`tokens`: cross entropy of each labelled token in the pack's order, float32 [labelled]. `weights`: of them; without, all 1."""
        self._packs.append((batch, tokens, weights))

    def over_ranks(self, device: torch.device, seconds: float = 0.0) -> Totals:
        """The sums of all ranks: every rank must call it. Afterwards `finite` tells of each of this rank's packs whether its losses are."""
        values = self._values()
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        items = [item for batch, _, _ in self._packs for item in batch.items]
        unknown = sorted({item.source for item in items} - set(self.sources))
        rank_seconds = torch.zeros(world, dtype=torch.float64)
        rank_seconds[rank] = seconds
        fixed = torch.cat(
            [torch.tensor([float(len(unknown))]), self._weighted(values), self._counts(), rank_seconds, self._by_task(values)]
        )
        reduced = sum_over_ranks(torch.cat([fixed, self._by_source(values)]), device)
        if reduced[0] > 0:
            self._agree(unknown, world)
            reduced = torch.cat([reduced[: len(fixed)], sum_over_ranks(self._by_source(values), device)])
        _, weighted, counts, rank_seconds, by_task, by_source = reduced.split(
            [1, 2, len(_COUNTS), world, 2 * len(TASKS), 2 * len(self.sources)]
        )
        return Totals(
            loss=float(weighted[0] / weighted[1]) if weighted[1] != 0 else 0.0,
            by_task=_means(by_task, TASKS),
            by_source=_means(by_source, self.sources),
            rank_seconds=tuple(rank_seconds.tolist()),
            **{name: int(count) for name, count in zip(_COUNTS, counts.tolist(), strict=True)},
        )

    def _values(self) -> list[torch.Tensor]:
        """Losses of the packs' labelled tokens, on the host, float64; one copy from the device."""
        if not self._packs:
            return []
        together = torch.cat([tokens for _, tokens, _ in self._packs]).double().cpu()
        values = list(together.split([len(tokens) for _, tokens, _ in self._packs]))
        self.finite = [bool(pack.isfinite().all()) for pack in values]
        return values

    def _weighted(self, values: list[torch.Tensor]) -> torch.Tensor:
        sums = torch.zeros(2, dtype=torch.float64)
        for (_, _, given), pack in zip(self._packs, values, strict=True):
            weights = torch.ones_like(pack) if given is None else given.double()
            sums += torch.stack([pack @ weights, weights.sum()])
        return sums

    def _counts(self) -> torch.Tensor:
        rows = [
            [c.tokens, c.labelled, len(b.items), 1, c.kept, c.visual, c.patches, c.all_patches]
            for b, c in ((b, b.counts) for b, _, _ in self._packs)
        ]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(_COUNTS)).sum(0)

    def _by_task(self, values: list[torch.Tensor]) -> torch.Tensor:
        return self._grouped(values, [task_numbers(batch) for batch, _, _ in self._packs], len(TASKS))

    def _by_source(self, values: list[torch.Tensor]) -> torch.Tensor:
        number = {source: n for n, source in enumerate(self.sources)}
        # the last group takes names that are not agreed upon yet, and is dropped
        named = [_of_items(batch, [number.get(i.source, len(number)) for i in batch.items]) for batch, _, _ in self._packs]
        return self._grouped(values, named, len(number) + 1).reshape(2, -1)[:, :-1].flatten()

    def _grouped(self, values: list[torch.Tensor], numbers: list[torch.Tensor], groups: int) -> torch.Tensor:
        """Losses, then counts, of labelled tokens of each group: float64 [2 · groups]."""
        sums = torch.zeros(2, groups, dtype=torch.float64)
        for (batch, _, _), pack, number in zip(self._packs, values, numbers, strict=True):
            places = number[labelled_places(batch)]
            sums[0].index_add_(0, places, pack)
            sums[1].index_add_(0, places, torch.ones_like(pack))
        return sums.flatten()

    def _agree(self, unknown: list[str], world: int) -> None:
        everywhere: list[list[str]] = [[] for _ in range(world)]
        torch.distributed.all_gather_object(everywhere, unknown)
        self.sources.extend(sorted({name for names in everywhere for name in names}))


def task_numbers(batch: PackBatch) -> torch.Tensor:
    """The number (in TASKS) of each token's task, int64 [L]. A pack without items gives zeros."""
    return _of_items(batch, [TASKS.index(item.task) for item in batch.items])


def sum_over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum of every rank's `values`, on the host. Every rank must call it."""
    moved = values.to(device)
    torch.distributed.all_reduce(moved)
    return moved.cpu()


def _of_items(batch: PackBatch, values: list[int]) -> torch.Tensor:
    return torch.tensor(values or [0])[item_numbers(batch)]


def _means(sums: torch.Tensor, names: list[str] | tuple[str, ...]) -> dict[str, float]:
    losses, counts = sums.reshape(2, -1).tolist()
    return {name: loss / count for name, loss, count in zip(names, losses, counts, strict=True) if count > 0}
