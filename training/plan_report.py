"""An epoch in numbers, from the counts of its windows; how even its steps are, from a few of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.packing import deal
from training.window import Counts

if TYPE_CHECKING:
    from training.plan import Plan

_WINDOWS_LOOKED_AT = 8  # for the predicted imbalance


@dataclass(frozen=True, slots=True)
class PlanReport:
    """An epoch in numbers. Fills are shares of the bounds over all packs with items; `fill` counts the fuller bound of each pack.

    dropped    items that fit into no pack, `over_tokens` of them for their tokens, the others for their patches alone.
    by_source  share of the tokens.   imbalance  for numbers of ranks: mean over steps of the dearest rank's predicted cost over the mean
    rank's, less 1; over the steps of `windows_looked_at` windows spread over the epoch.
    """

    items: int
    dropped: int
    over_tokens: int
    windows: int
    steps: int
    packs: int
    packs_per_step: int
    samples_per_step: float
    empty_packs: int
    tokens: int
    labelled: int
    patches: int
    visual: int
    kept: int
    projected: int
    frame_squares: int
    token_squares: int
    fill_tokens: float
    fill_patches: float
    fill: float
    cost: float
    by_source: dict[str, float]
    imbalance: dict[int, float]
    windows_looked_at: int


def report_of(plan: Plan, ranks: tuple[int, ...] = ()) -> PlanReport:
    """The epoch in numbers; the imbalance over `ranks` (those that divide a step's packs) by composing a few windows."""
    counts, config = plan.laid.counts, plan.config
    total = {name: sum(getattr(c, name) for c in counts) for name in Counts.__slots__ if name != "by_source"}
    by_source = np.sum([c.by_source for c in counts], axis=0)
    looked = sorted({round(w) for w in np.linspace(0, len(counts) - 1, min(len(counts), _WINDOWS_LOOKED_AT))})
    steps = plan.steps_total
    return PlanReport(
        items=total["items"],
        dropped=plan.laid.dropped,
        over_tokens=plan.laid.over_tokens,
        windows=len(counts),
        steps=steps,
        packs=total["packs"],
        packs_per_step=plan.packs_per_step,
        samples_per_step=total["items"] / steps,
        empty_packs=steps * plan.packs_per_step - total["packs"],
        tokens=total["tokens"],
        labelled=total["labelled"],
        patches=total["patches"],
        visual=total["visual"],
        kept=total["kept"],
        projected=total["projected"],
        frame_squares=total["frame_squares"],
        token_squares=total["token_squares"],
        fill_tokens=total["tokens"] / (total["packs"] * config.seq_tokens),
        fill_patches=total["patches"] / (total["packs"] * config.pack_patches),
        fill=total["fuller"] / total["packs"],
        cost=total["cost"] + total["packs"] * plan.cost.pack,
        by_source={n: float(t / by_source.sum()) for n, t in zip(plan.laid.sources, by_source.tolist(), strict=True)},
        imbalance=_imbalance(plan, [r for r in ranks if plan.packs_per_step % r == 0], looked) if ranks else {},
        windows_looked_at=len(looked),
    )


def _imbalance(plan: Plan, ranks: list[int], windows: list[int]) -> dict[int, float]:
    found: dict[int, list[float]] = {r: [] for r in ranks}
    for number in windows:
        for step in plan.window(number).steps:
            costs = [p.cost for p in step.packs]
            if any(not p.items for p in step.packs):
                continue  # the last step of an epoch may hold anything
            for r in ranks:
                loads = [sum(costs[p] for p in hand) for hand in deal(costs, r)]
                found[r].append(max(loads) * r / sum(loads) - 1 if sum(loads) else 0.0)
    return {r: float(np.mean(values)) if values else 0.0 for r, values in found.items()}
