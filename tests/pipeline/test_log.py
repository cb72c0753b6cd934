"""The commit log: numbers are taken once, checkpoints change nothing, damage is loud."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from pipeline.log import CHECKPOINT_EVERY, CommitLog, Cost, LedgerFile
from shards.errors import LedgerError
from shards.store import open_store


def file(n: int) -> LedgerFile:
    return LedgerFile("listing", f"tables/listing/{n}.parquet", n, 10 * n)


def test_entries_are_read_back_in_order(tmp_path: Path) -> None:
    log = CommitLog(open_store(tmp_path))
    log.append("scan", lease=1, add=[file(1), file(2)])
    log.append("steps", lease=1, add=[file(3)], remove=[file(1).path], costs=[Cost("d", "probe", calls=3, seconds=1.5)])
    log.append("steps", lease=1, costs=[Cost("d", "probe", calls=4, seconds=0.5)])
    again = CommitLog(open_store(tmp_path)).state
    assert list(again.files.values()) == [file(2), file(3)]
    assert again.costs[("d", "probe")] == Cost("d", "probe", calls=7, seconds=2.0)
    assert again.seq == 3
    assert again.changed == 3


def test_checkpoints_say_what_the_entries_say(tmp_path: Path) -> None:
    log = CommitLog(open_store(tmp_path))
    for n in range(1, CHECKPOINT_EVERY + 6):
        remove = [file(n - 2).path] if n > 2 else []
        log.append(
            "verdicts" if n % 7 == 0 else "steps",
            lease=1,
            add=[file(n)],
            remove=remove,
            costs=[Cost("d", "x", calls=1)],
            note={"recipe": str(n), "populations": {}},
        )
    assert [p.name for p in (tmp_path / "log").glob("*.checkpoint.json")] == [f"{CHECKPOINT_EVERY:020d}.checkpoint.json"]
    from_checkpoint = CommitLog(open_store(tmp_path)).state
    for path in (tmp_path / "log").glob("*.checkpoint.json"):
        path.unlink()
    assert CommitLog(open_store(tmp_path)).state == from_checkpoint == log.state


def test_two_writers_one_number(tmp_path: Path) -> None:
    first, second = CommitLog(open_store(tmp_path)), CommitLog(open_store(tmp_path))
    first.append("scan", lease=1)
    with pytest.raises(LedgerError, match="another process"):
        second.append("scan", lease=2)
    second.refresh()
    assert second.append("steps", lease=2) == 2


def _race(folder: str, results: multiprocessing.Queue[int]) -> None:
    won = 0
    for _ in range(20):
        log = CommitLog(open_store(folder))
        try:
            log.append("steps", lease=1)
            won += 1
        except LedgerError:
            continue
    results.put(won)


def test_racing_processes_leave_a_log_without_gaps(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path), results)) for _ in range(3)]
    for racer in racers:
        racer.start()
    won = sum(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    assert CommitLog(open_store(tmp_path)).state.seq == won > 0


def test_a_gap_damage_and_another_format_are_refused(tmp_path: Path) -> None:
    log = CommitLog(open_store(tmp_path))
    for _ in range(3):
        log.append("steps", lease=1)
    second = tmp_path / "log" / f"{2:020d}.json"
    text = second.read_text()
    second.unlink()
    with pytest.raises(LedgerError, match="entry 2 is missing"):
        CommitLog(open_store(tmp_path))
    second.write_text(text[: len(text) // 2])
    with pytest.raises(LedgerError, match="damaged"):
        CommitLog(open_store(tmp_path))
    second.write_text(json.dumps({**json.loads(text), "format": "fovea-ledger/99"}))
    with pytest.raises(LedgerError, match="fovea-ledger/99"):
        CommitLog(open_store(tmp_path))
