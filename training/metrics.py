"""The numbers of a training: metrics.jsonl, one object a step or evaluation, and the same for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Metrics:
    """Writes `folder`/metrics.jsonl and `folder`/tensorboard/stage<k>; only the rank that is `active` writes.

    A step: kind "step", stage, step (from 1), loss, loss_by_task, rates, grad_norm, tokens, labelled, samples (items), packs, fill, keep,
    seconds, wait. Losses in nats a labelled token; `fill`: tokens over the packs' budget, `keep`: kept over all visual tokens, `seconds`
    of the step without waiting for data, `wait`: seconds of waiting. An evaluation: kind "held_out", stage, step, loss, loss_by_task,
    labelled, items.
    """

    def __init__(self, folder: Path, active: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self.active = active
        self._boards: dict[int, Any] = {}

    def forget_after(self, stage: int, step: int) -> None:
        """Drops the records of steps of `stage` beyond `step` and of later stages: they are made again."""
        if not self.active or not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text("utf-8").splitlines(keepends=True):
            record = _whole(line)
            if record is not None and (record["stage"] < stage or (record["stage"] == stage and record["step"] <= step)):
                kept.append(line)
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text("".join(kept), "utf-8")
        os.replace(scratch, self.path)
        board = self._boards.pop(stage, None)
        if board is not None:
            board.close()
        self._board(stage, purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record (see the class) and its numbers."""
        if not self.active:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        board = self._board(record["stage"])
        for name, value in record.items():
            if isinstance(value, dict):
                for key, inner in value.items():
                    board.add_scalar(f"{record['kind']}/{name}/{key}", inner, record["step"])
            elif isinstance(value, int | float) and name not in ("stage", "step"):
                board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        for board in self._boards.values():
            board.close()
        self._boards.clear()

    def _board(self, stage: int, purge_step: int | None = None) -> Any:
        if stage not in self._boards:
            from torch.utils.tensorboard import SummaryWriter

            self._boards[stage] = SummaryWriter(str(self.path.parent / "tensorboard" / f"stage{stage}"), purge_step=purge_step)
        return self._boards[stage]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, in order; a line torn by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [record for line in path.read_text("utf-8").splitlines(keepends=True) if (record := _whole(line)) is not None]


def _whole(line: str) -> dict[str, Any] | None:
    if not line.endswith("\n"):
        return None
    record: dict[str, Any] = json.loads(line)
    return record
