"""Metrics: what the file says TensorBoard shows, through kills and torn lines."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.metrics import Metrics, read_metrics


def step(stage: int, number: int, loss: float) -> dict[str, object]:
    return {"kind": "step", "stage": stage, "step": number, "loss": loss, "loss_by_task": {"vqa": loss}}


def held_out(stage: int, number: int, loss: float) -> dict[str, object]:
    return {**step(stage, number, loss), "kind": "held_out"}


def shown(folder: Path, stage: int, name: str) -> list[tuple[int, float]]:
    """(step, value) of a curve as TensorBoard reads it back."""
    events = EventAccumulator(str(folder / "tensorboard" / f"stage{stage}"))
    events.Reload()
    return [(e.step, round(e.value, 3)) for e in events.Scalars(name)]


def test_every_number_can_be_read_back_from_both(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, active=True)
    records = [held_out(1, 0, 3.0), step(1, 1, 2.5), step(1, 2, 2.0), held_out(1, 2, 1.75), step(2, 1, 1.5)]
    metrics.write(records[0])
    metrics.forget_after(1, 0)
    for record in records[1:]:
        metrics.write(record)
    metrics.close()
    assert read_metrics(tmp_path) == records
    assert shown(tmp_path, 1, "step/loss") == shown(tmp_path, 1, "step/loss_by_task/vqa") == [(1, 2.5), (2, 2.0)]
    assert shown(tmp_path, 1, "held_out/loss") == [(0, 3.0), (2, 1.75)]
    assert shown(tmp_path, 2, "step/loss") == [(1, 1.5)]


def test_what_is_made_again_is_there_once(tmp_path: Path) -> None:
    killed = Metrics(tmp_path, active=True)
    for record in (held_out(1, 0, 3.0), step(1, 1, 2.5), step(1, 2, 2.0), step(1, 3, 9.0)):
        killed.write(record)
    killed.close()
    with killed.path.open("a") as file:
        file.write('{"kind": "st')  # a full disk tears a line
    again = Metrics(tmp_path, active=True)
    again.forget_after(1, 2)
    again.write(step(1, 3, 1.0))
    again.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(0, 3.0), (1, 2.5), (2, 2.0), (3, 1.0)]
    assert shown(tmp_path, 1, "step/loss") == [(1, 2.5), (2, 2.0), (3, 1.0)]

    anew = Metrics(tmp_path, active=True)
    anew.forget_after(1, -1)
    anew.write(held_out(1, 0, 4.0))
    anew.close()
    assert read_metrics(tmp_path) == [held_out(1, 0, 4.0)]
    assert shown(tmp_path, 1, "held_out/loss") == [(0, 4.0)]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    quiet = Metrics(tmp_path, active=False)
    quiet.write(step(1, 1, 2.0))
    quiet.forget_after(1, 0)
    quiet.close()
    assert list(tmp_path.iterdir()) == []
