"""The numbers of a training: metrics.jsonl, one object a step or evaluation, and the same for TensorBoard and, if asked for, wandb."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.durable import append_line, replace_text, whole_lines, writing
from training.wandb_board import WandbBoard, refuse_wandb


class Metrics:
    """Writes `folder`/metrics.jsonl and `folder`/tensorboard/stage<k>; only the rank that is `active` writes.

    A step: kind "step", stage, step (from 1), and what training.numbers.step_numbers tells. An evaluation: kind "held_out", stage, step,
    loss, loss_by_task (nats a labelled token), labelled, items. Of an encoder that prunes: kind "pruning", stage, step, and what
    training.pruning.pruning_numbers tells. A number that is not known is null there and a gap in the curves.
    wandb: settings of training.wandb_board. Raises ConfigError, on every rank, for those that cannot run. What writes raises
    InfrastructureError where the disk does not take it.
    """

    def __init__(self, folder: Path, active: bool, wandb: Mapping[str, str] | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        self.active = active
        self._boards: dict[int, Any] = {}
        if wandb is not None:
            refuse_wandb(wandb)
        self._wandb = WandbBoard(folder, wandb) if active and wandb is not None else None

    def forget_after(self, stage: int, step: int) -> None:
        """Drops the records of steps of `stage` beyond `step` and of later stages: they are made again. wandb keeps both."""
        if not self.active or not self.path.is_file():
            return
        kept = [r for r in read_metrics(self.path.parent) if (r["stage"], r["step"]) <= (stage, step)]
        replace_text(self.path, "".join(_line(record) + "\n" for record in kept))
        with writing(self._folder(stage)):
            board = self._boards.pop(stage, None)
            if board is not None:
                board.close()
            self._board(stage, purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record (see the class) and its numbers."""
        if not self.active:
            return
        append_line(self.path, _line(record))
        stage, step, kind = record["stage"], record["step"], record["kind"]
        numbers = curves(record)
        with writing(self._folder(stage)):
            self._board(stage).file_writer.add_summary(_summary(kind, numbers), step)
        if self._wandb is not None:
            self._wandb.write(stage, step, kind, numbers)

    def close(self) -> None:
        for stage, board in self._boards.items():
            with writing(self._folder(stage)):
                board.close()
        self._boards.clear()
        if self._wandb is not None:
            self._wandb.close()
            self._wandb = None

    def _board(self, stage: int, purge_step: int | None = None) -> Any:
        if stage not in self._boards:
            from torch.utils.tensorboard import SummaryWriter

            self._boards[stage] = SummaryWriter(str(self._folder(stage)), purge_step=purge_step)
        return self._boards[stage]

    def _folder(self, stage: int) -> Path:
        return self.path.parent / "tensorboard" / f"stage{stage}"


def curves(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by the name of their curve: those of a mapping (of tasks, sources, parts) are called <name>/<key>."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": inner for key, inner in value.items() if inner is not None}
        elif isinstance(value, int | float) and name not in ("stage", "step"):
            found[name] = value
    return found


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, in order; lines that are torn or garbled are left out (training.durable.whole_lines)."""
    return whole_lines(folder / "metrics.jsonl", needs=("kind", "stage", "step"))


def _summary(kind: str, numbers: Mapping[str, float]) -> Any:
    """All numbers of a record as one event: one for each of some forty would cost a hundredth of a short step."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=f"{kind}/{name}", simple_value=float(value)) for name, value in numbers.items()])


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)
