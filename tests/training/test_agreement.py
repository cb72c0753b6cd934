"""What one rank does while the others wait for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from shards.errors import ConfigError
from tests.training import forked
from training.agreement import bound_waiting, first_works
from training.engine import start_ranks
from training.rank_group import EndedElsewhere

TIMEOUT, WORK = 1.0, 3.0  # seconds


def slow_first(words: Sequence[str]) -> None:
    ranks, out = start_ranks(), Path(words[0])
    bound_waiting(TIMEOUT)

    def work() -> None:
        time.sleep(WORK)
        (out / "made").touch()

    first_works(ranks, work)
    assert (out / "made").is_file()

    def refused() -> None:
        raise ConfigError("stage 1: nothing to train on")

    try:
        first_works(ranks, refused)
    except (ConfigError, EndedElsewhere) as error:
        (out / f"told-{ranks.rank}").write_text(type(error).__name__)


def test_the_first_rank_may_work_for_longer_than_the_ranks_wait_for_each_other(tmp_path: Path) -> None:
    codes, said = forked.run(slow_first, [tmp_path], ranks=2)
    assert codes == [0, 0], said[-3000:]
    assert [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)] == ["ConfigError", "EndedElsewhere"]
