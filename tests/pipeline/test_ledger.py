"""The ledger's tables: what is committed is read, what is not is swept, compaction changes no row."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.ledger import Ledger, open_ledger
from shards.errors import LedgerError

PLACES = pa.schema([("uid", pa.string()), ("shard", pa.string()), ("sample", pa.string())])


def rows(*uids: str) -> pa.Table:
    return pa.Table.from_pylist([{"uid": u, "shard": f"s-{u}", "sample": "x"} for u in uids], PLACES)


def read(ledger: Ledger, uid: str | None = None) -> list[str]:
    with ledger.connect() as connection:
        found = connection.execute(f"select uid from {ledger.scan(connection, 'placements', uid=uid)} order by uid").fetchall()
    return [u for (u,) in found]


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_commit_scan_and_reopen(tmp_path: Path, where: str) -> None:
    run = str(tmp_path / "run") if where == "disk" else f"memory://ledger-{tmp_path.name}"
    ledger = open_ledger(run, write=True)
    assert read(ledger) == []
    ledger.commit("steps", {"placements": rows("b", "a")})
    ledger.commit("steps", {"placements": rows("d", "c")})
    ledger.close()
    again = open_ledger(run)
    assert read(again) == ["a", "b", "c", "d"]
    assert read(again, "c") == ["c"]
    with pytest.raises(LedgerError, match="reading only"):
        again.commit("steps", {"placements": rows("e")})


def test_a_file_without_an_entry_is_no_row_and_is_swept(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path), write=True)
    ledger.commit("steps", {"placements": rows("a")})
    ledger.write("placements", rows("ghost"), "0")
    assert read(ledger) == ["a"]
    ledger.close()
    ledger = open_ledger(str(tmp_path), write=True)
    assert ledger.sweep() == 1
    assert read(ledger) == ["a"]
    ledger.close()


def test_compaction_keeps_every_row_in_fewer_files(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path), write=True)
    for i in range(50):
        ledger.commit("steps", {"placements": rows(f"{i:03d}")})
    assert ledger.needs_compaction()
    before = read(ledger)
    assert ledger.compact() == 49
    assert read(ledger) == before
    assert not ledger.needs_compaction()
    ledger.close()
    assert read(open_ledger(str(tmp_path))) == before


def test_what_is_no_run_and_what_is_another_version(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is no run"):
        open_ledger(str(tmp_path / "nothing"))
    (tmp_path / "run.json").write_text('{"format": "fovea-ledger/7"}\n')
    with pytest.raises(LedgerError, match="another version"):
        open_ledger(str(tmp_path))
