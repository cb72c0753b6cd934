"""Measured packs: OUT/packs-<rank>.jsonl, the features and the seconds of packs that were trained. What costs are fitted to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import ConfigError
from training.cost import FEATURES, CostModel
from training.durable import append_line

if TYPE_CHECKING:
    from training.collate import PackBatch

WARM_STEPS = 3  # the first steps of a process: kernels are chosen, memory is found, files come into the cache
PACKS_KEPT = 4_096  # of a stage and rank; 7 coefficients are found with far fewer
RANKS_KEPT = 8  # ranks from this one on write nothing: a thousand files would say the same


def batch_features(batch: PackBatch) -> np.ndarray:
    """Features of a pack as it was trained, without the items that left it: float64 [7] in the order of training.cost.FEATURES."""
    if not batch.items:
        return np.zeros(len(FEATURES))
    lengths = np.diff(np.append(np.flatnonzero(batch.position_ids[0].numpy() == 0), batch.position_ids.shape[1])).astype(np.float64)
    counts, rows = batch.counts, batch.rows
    squares = (np.array(rows.lengths, dtype=np.float64) ** 2).sum()
    # a pack of text alone encodes the dummy, which is nobody's
    seen = (counts.patches, squares, rows.projector_rows) if counts.patches else (0, 0, 0)
    return np.array([1, *seen, counts.tokens, (lengths**2).sum(), counts.labelled], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class PackRecord:
    """One pack: its stage, features (float64 [7]), forward and backward seconds, and the model by which its operations are predicted."""

    stage: int
    features: np.ndarray
    seconds: float
    flops: CostModel


@dataclass
class PackLog:
    """Notes a rank's packs of one stage in `folder`; at most PACKS_KEPT of them, none of the first WARM_STEPS steps after a start.

    A line {"kind": "model", "stage", "digest", "flops", "device", "ranks"} goes before the packs of a start: `flops` is the CostModel by
    which operations are predicted, `digest` the stage's: packs of the same stage under another config are another stage's packs.
    Raises InfrastructureError where the disk does not take a line.
    """

    folder: Path
    rank: int
    stage: int
    digest: str
    flops: CostModel
    device: str
    ranks: int
    _kept: int = 0
    _steps: int = field(default=0)

    def __post_init__(self) -> None:
        if self.rank >= RANKS_KEPT:
            return
        header = {"stage": self.stage, "digest": self.digest, "flops": self.flops.to_json(), "device": self.device, "ranks": self.ranks}
        known = _groups(pack_file(self.folder, self.rank)) if pack_file(self.folder, self.rank).is_file() else []
        self._kept = sum(len(packs) for head, packs in known if (head["stage"], head["digest"]) == (self.stage, self.digest))
        self._append([{"kind": "model", **header}])

    def note(self, features: Sequence[np.ndarray] | np.ndarray, seconds: Sequence[float]) -> None:
        """The packs of one step on this rank, and the forward and backward seconds of each."""
        self._steps += 1
        if self.rank >= RANKS_KEPT or self._steps <= WARM_STEPS or self._kept >= PACKS_KEPT:
            return
        lines = [
            {"kind": "pack", "features": values.tolist(), "seconds": round(taken, 6)}
            for values, taken in zip(features, seconds, strict=True)
            if values[0]
        ]
        self._kept += len(lines)
        self._append(lines)

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        if records:
            append_line(pack_file(self.folder, self.rank), "\n".join(map(json.dumps, records)))


def pack_file(folder: Path, rank: int) -> Path:
    return folder / f"packs-{rank}.jsonl"


def read_packs(folder: Path) -> tuple[list[PackRecord], str]:
    """(the packs measured under `folder`, the device they ran on), in the order of stages, ranks and steps.

    Of a stage that ran under several configs the last one counts. Raises ConfigError: no files, a line that is none of ours, or packs of
    several kinds of devices, which no coefficients fit.
    """
    files = sorted(folder.glob("packs-*.jsonl"))
    if not files:
        raise ConfigError(
            f"{folder} has no packs-<rank>.jsonl: it is no output directory of `fovea train`, or of one that took no step yet"
        )
    groups = [group for path in files for group in _groups(path)]
    last = {head["stage"]: head["digest"] for head, _ in groups}
    used = [(head, packs) for head, packs in groups if head["digest"] == last[head["stage"]]]
    devices = sorted({head["device"] for head, packs in used if packs})
    if len(devices) > 1:
        raise ConfigError(
            f"{folder} was measured on several kinds of devices ({', '.join(devices)}); train a few steps on one of them alone"
        )
    records: list[PackRecord] = []
    for head, packs in sorted(used, key=lambda group: int(group[0]["stage"])):
        flops = CostModel.from_json(head["flops"])
        records.extend(PackRecord(head["stage"], values, seconds, flops) for values, seconds in packs)
    return records, devices[0] if devices else ""


def _groups(path: Path) -> list[tuple[dict[str, Any], list[tuple[np.ndarray, float]]]]:
    """(header, its packs) for each start that a file tells of; a line torn by a kill or a disk, which is no JSON, is left out."""
    groups: list[tuple[dict[str, Any], list[tuple[np.ndarray, float]]]] = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        try:
            if record["kind"] == "model":
                CostModel.from_json(record["flops"])
                groups.append(({key: record[key] for key in ("stage", "digest", "flops", "device", "ranks")}, []))
                continue
            values, seconds = np.array(record["features"], dtype=np.float64), float(record["seconds"])
            if values.shape != (len(FEATURES),) or not np.isfinite(values).all() or not (math.isfinite(seconds) and seconds > 0):
                raise ValueError("not the features and seconds of a pack")
            groups[-1][1].append((values, seconds))
        except (ValueError, KeyError, TypeError, IndexError, ConfigError) as error:
            raise ConfigError(f"{path}:{number}: no measured pack ({error}); delete the file and train a few steps again") from error
    return groups
