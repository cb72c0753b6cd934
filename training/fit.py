"""Costs in seconds, fitted to measured packs: what packs are dealt to ranks by once a few steps have been measured (`fovea costs`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from shards.errors import ConfigError
from training.cost import FEATURES, CostModel
from training.durable import replace_text
from training.measured import PackRecord

FEWEST = 30  # packs: four for each coefficient, and two to spare
_ROUNDS = 10  # of reweighting; the weights settle within five
_DOUBT = 0.1  # of a pack's mean seconds
_LEAST = 1e-3  # of them: no clock of packs is better
_HUBER = 1.345  # in standard deviations: 95 % as efficient as plain least squares where errors are normal (Huber 1964)


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients in seconds, and how well they predict.

    model           fitted to all packs.
    error           mean absolute percentage error, as a share, of a fit to every other pack on the packs between.
    error_by_flops  the same error of predicted operations, at one speed for all (fitted to the same packs).
    packs           measured packs.   seconds  their mean.   unseen  features that no pack has.
    """

    model: CostModel
    error: float
    error_by_flops: float
    packs: int
    seconds: float
    unseen: tuple[str, ...]


def fitted(records: Sequence[PackRecord]) -> Fit:
    """Non-negative least squares (Lawson and Hanson 1974) of seconds on a pack's features, outliers weighing less (Huber).

    What the packs do not tell, the predicted operations do, at the speed that the packs were trained with: a feature that no pack has (no
    pictures in a text stage) would be free of charge, and features that always go together (full packs all have as many tokens) would
    share their seconds at random. Raises ConfigError with fewer than FEWEST packs.
    """
    if len(records) < FEWEST:
        raise ConfigError(f"{len(records)} packs are measured, {FEWEST} are needed; train some more steps")
    features = np.stack([r.features for r in records])
    seconds = np.array([r.seconds for r in records])
    operations = np.stack([r.flops.vector for r in records])
    predicted = (features * operations).sum(axis=1)
    even, odd = np.arange(0, len(records), 2), np.arange(1, len(records), 2)
    speed = float(np.median(seconds[even] / predicted[even]))
    half = _solved(features[even], seconds[even], operations[even].mean(axis=0) * speed)
    values = _solved(features, seconds, operations.mean(axis=0) * float(np.median(seconds / predicted)))
    return Fit(
        CostModel.from_vector(values, "seconds"),
        _error(features[odd] @ half, seconds[odd]),
        _error(predicted[odd] * speed, seconds[odd]),
        len(records),
        float(seconds.mean()),
        tuple(name for name, column in zip(FEATURES, features.T, strict=True) if not column.any()),
    )


def fitted_by_stage(records: Sequence[PackRecord]) -> tuple[Fit, dict[int, Fit]]:
    """(over all stages, of each stage that has packs enough): what is frozen in a stage costs less than where it learns."""
    stages = sorted({r.stage for r in records})
    chosen = {stage: [r for r in records if r.stage == stage] for stage in stages}
    return fitted(records), {stage: fitted(mine) for stage, mine in chosen.items() if len(mine) >= FEWEST}


def save_costs(path: Path, overall: Fit, stages: dict[int, Fit], device: str) -> None:
    """The file that a config's `costs` names (CostModel.load). It appears whole or not at all.

    Raises InfrastructureError where the disk does not take it."""
    values: dict[str, Any] = {
        "model": overall.model.to_json(),
        "stages": {str(stage): fit.model.to_json() for stage, fit in stages.items()},
        "device": device,
        "fits": {name: _facts(fit) for name, fit in {"all": overall, **{str(k): f for k, f in stages.items()}}.items()},
    }
    replace_text(path, json.dumps(values, indent=1) + "\n")


def _facts(fit: Fit) -> dict[str, Any]:
    return {name: value for name, value in asdict(fit).items() if name != "model"}


def _solved(features: np.ndarray, seconds: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Coefficients ≥ 0, float64 [7], of seconds on features [n, 7].

    Each is known beforehand to be about `expected` (float64 [7]), give or take as much again, or a tenth of a pack's seconds if that is
    more; packs are known to miss by what they miss. So many packs overrule what was expected, few do not.
    """
    scale = features.max(axis=0)  # columns lie twelve powers of ten apart: each is counted in its largest value
    scale[scale == 0] = 1.0
    mean = float(seconds.mean())
    known = expected * scale
    doubt = np.maximum(known, _DOUBT * mean)
    weights = np.ones(len(seconds))
    values = known
    for _ in range(_ROUNDS):
        missed = np.abs(features @ (values / scale) - seconds)
        spread = max(1.4826 * float(np.median(missed)), _LEAST * mean)  # of a normal distribution, by its median absolute deviation
        weights = _HUBER * spread / np.maximum(missed, _HUBER * spread)
        root = np.sqrt(weights)
        rows = np.vstack([features / scale * root[:, None], np.diag(spread / doubt)])
        values, _ = nnls(rows, np.concatenate([seconds * root, spread / doubt * known]))
    found: np.ndarray = values / scale
    return found


def _error(predicted: np.ndarray, seconds: np.ndarray) -> float:
    return float(np.mean(np.abs(predicted - seconds) / seconds))
