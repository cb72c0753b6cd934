"""One run at a time in an output directory, and none kept out by the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import InfrastructureError
from training.run_mark import only_run

OTHER = """
import sys
from pathlib import Path
from training.run_mark import only_run
with only_run(Path(sys.argv[1])):
    print("there", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        with (
            pytest.raises(InfrastructureError, match=f"process {other.pid} on this machine is training in {tmp_path}"),
            only_run(tmp_path, 0.1),
        ):
            pass
        other.kill()  # its note stays
        with only_run(tmp_path):
            assert json.loads((tmp_path / ".running").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_notes_of_other_machines_other_lives_and_none_keep_nobody_out(tmp_path: Path) -> None:
    with only_run(tmp_path):
        mine = json.loads((tmp_path / ".running").read_text())
    parent = {**mine, "pid": os.getppid(), "started": "1"}  # the number of a process that is gone, given to another
    for note in (parent, {**parent, "host": "elsewhere"}, {**mine, "pid": "x"}, [], "\xff"):
        (tmp_path / ".running").write_text(json.dumps(note) if note != "\xff" else note, "latin-1")
        with only_run(tmp_path, 0.0):
            pass
