"""The listing follows the sources: what is new, changed, gone or moved, and nothing else; a plan sees the same without writing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.ledger import Ledger, open_ledger
from pipeline.scan import Changes, overlay, update_listing
from shards.sources import SourceSpec
from tests.pipeline.small import picture, pictures, texts


@pytest.fixture
def sources(tmp_path: Path) -> list[SourceSpec]:
    pictures(tmp_path / "pics", 3)
    pictures(tmp_path / "pics/more", 2, first=10)
    texts(tmp_path / "texts.jsonl", 2)
    return [SourceSpec("pics", "folder", str(tmp_path / "pics")), SourceSpec("texts", "manifest", str(tmp_path / "texts.jsonl"))]


def update(folder: Path, sources: Sequence[SourceSpec]) -> tuple[Changes, int]:
    """Changes, and how many commits they made. What a plan sees of them is the same, and is written nowhere."""
    before = open_ledger(str(folder), write=True)
    seen = before.log.state.seq
    connection = before.connect()
    assert overlay(connection, before, sources) is not None
    planned = connection.execute(f"select * from {before.scan(connection, 'listing')} order by uid").fetchall()
    connection.close()
    assert before.log.state.seq == seen
    before.close()
    ledger = open_ledger(str(folder), write=True)
    try:
        changes = update_listing(ledger, sources)
        assert listing(ledger) == planned
        return changes, ledger.log.state.seq - seen
    finally:
        ledger.close()


def listing(ledger: Ledger) -> list[tuple[object, ...]]:
    with ledger.connect() as connection:
        both = f"{ledger.scan(connection, 'listing')} l full join {ledger.scan(connection, 'records')} r using (uid)"
        assert connection.execute(f"select count(*) from {both} where l.key is null or r.media is null").fetchall() == [(0,)]
        return connection.execute(f"select * from {ledger.scan(connection, 'listing')} order by uid").fetchall()


def test_the_listing_follows_its_sources(tmp_path: Path, sources: list[SourceSpec]) -> None:
    run = tmp_path / "run"
    assert update(run, sources) == (Changes(new=7, changed=0, gone=0, total=7), 1)
    assert update(run, sources) == (Changes(new=0, changed=0, gone=0, total=7), 0)
    (tmp_path / "pics/000.txt").write_text("another caption")
    assert update(run, sources) == (Changes(new=0, changed=1, gone=0, total=7), 1)
    status = (tmp_path / "pics/more/010.jpg").stat()
    os.utime(tmp_path / "pics/more/010.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    assert update(run, sources) == (Changes(new=0, changed=1, gone=0, total=7), 1)
    picture(tmp_path / "pics/other/x.jpg", 5)
    (tmp_path / "pics/001.jpg").unlink()
    (tmp_path / "pics/001.txt").unlink()
    assert update(run, sources) == (Changes(new=1, changed=0, gone=1, total=7), 1)
    shutil.rmtree(tmp_path / "pics/more")
    assert update(run, sources) == (Changes(new=0, changed=0, gone=2, total=5), 1)
    assert update(run, sources[:1]) == (Changes(new=0, changed=0, gone=2, total=3), 1)  # a source that left the recipe
    assert update(run, sources) == (Changes(new=2, changed=0, gone=0, total=5), 1)
    assert update(run, sources) == (Changes(new=0, changed=0, gone=0, total=5), 0)


def test_a_source_that_moved_is_new_nowhere(tmp_path: Path, sources: list[SourceSpec]) -> None:
    run = tmp_path / "run"
    update(run, sources)
    (tmp_path / "pics").rename(tmp_path / "elsewhere")
    moved = [SourceSpec("pics", "folder", str(tmp_path / "elsewhere")), sources[1]]
    assert update(run, moved) == (Changes(new=0, changed=0, gone=0, total=7, moved=5), 1)
    assert update(run, moved) == (Changes(new=0, changed=0, gone=0, total=7), 0)
    ledger = open_ledger(str(run))
    with ledger.connect() as connection:
        found = connection.execute(f"select distinct unnest(media).path from {ledger.scan(connection, 'records')}").fetchall()
    assert {str(Path(p).parts[len(tmp_path.parts)]) for (p,) in found} == {"elsewhere"}
