"""`fovea` as its users meet it: exit codes, messages, what it prints and what it does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.cli import app
from tests.pipeline.small import ask, environment, fovea, pictures, recipe

SOURCE = "sources: [{name: p, format: folder, path: pics}]\n"
BAD = {
    "an unknown key": (SOURCE.replace("path:", "patth:") + "steps: [probe]", ":2: unknown key 'patth'", "did you mean 'path'?"),
    "a column that nothing writes": (
        SOURCE + "steps:\n  - probe\n  - keep: widht > 3",
        ":5: rule 'keep': no step writes the column 'widht'",
        "did you mean 'width'?",
    ),
    "a path that is not there": (SOURCE.replace("pics", "nowhere") + "steps: [probe]", ":2: ", "nowhere"),
    "a rule that does not parse": (SOURCE + "steps:\n  - probe\n  - keep: width > > 3", ":5: rule 'keep'", ""),
    "a step that does not exist": (SOURCE + "steps: [prob]", ":3: no step 'prob'", "did you mean 'probe'?"),
}
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
sys.argv = ["fovea", "curate", "bad.yaml", "--run", "run"]
from pipeline.cli import main
main()
"""


@pytest.mark.parametrize("what", BAD)
def test_a_bad_recipe_is_refused_before_anything_starts(tmp_path: Path, what: str) -> None:
    """In a Python that cannot import Ray."""
    pictures(tmp_path / "pics", 1)
    text, place, mend = BAD[what]
    (tmp_path / "bad.yaml").write_text(f"name: bad\n{text}\n")
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("RecipeError: "), done.stderr
    assert f"bad.yaml{place}" in done.stderr
    assert mend in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_from_end_to_end_says_only_what_is_ours(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 3)
    (tmp_path / "pics/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    steps = ["probe", {"keep": "width >= 100"}, {"tests.steps.counting": {"as": "counting", "counter": "calls"}}]
    recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, steps)
    done = fovea("curate", "r.yaml", "--run", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr  # an errored sample is done
    said = [line for line in done.stderr.splitlines() if not line.startswith(("probe", "write shards"))]
    assert said == []
    assert "2 kept + 1 rejected + 1 errored + 0 split + 0 pending = 4 inputs" in done.stdout
    assert "step calls: probe 4, counting 2; media opened: 4;" in done.stdout
    assert f"dataset: {tmp_path}/run/dataset version " in done.stdout
    assert (tmp_path / "run/report.md").read_text().startswith("# small\n")
    assert len((tmp_path / "calls").read_text().splitlines()) == 2  # a step's relative path starts where the command does

    verify = CliRunner().invoke(app, ["shards", "verify", str(tmp_path / "run/dataset")])
    assert (verify.exit_code, verify.output) == (0, "every byte is as the manifest says\n")
    (tar,) = (tmp_path / "run/dataset").glob("v-*/*.tar")
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    broken = CliRunner().invoke(app, ["shards", "verify", str(tmp_path / "run/dataset")])
    assert broken.exit_code == 1
    assert tar.name in broken.output

    plan = fovea("plan", "r.yaml", "--run", "run", "--json", cwd=tmp_path)
    assert (plan.returncode, plan.stderr) == (0, "")
    told = json.loads(plan.stdout)
    assert [(s["step"], s["calls"], s["exact"], s["cached"]) for s in told["steps"]] == [("probe", 0, True, 4), ("counting", 0, True, 2)]


def test_a_bug_is_a_message_that_names_step_and_sample(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 2)
    recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"tests.steps.buggy": {"as": "clumsy"}}])
    done = fovea("curate", "r.yaml", "--run", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "StepBug: a bug in step 'clumsy' with 2 samples (" in done.stderr
    (uid,) = ask(tmp_path / "run", "select min(uid) from samples")[0]
    assert uid in done.stderr
    assert "KeyError: 'a typo'" in done.stderr
    assert "ray::" not in done.stderr
    assert "RayTaskError" not in done.stderr
    assert ask(tmp_path / "run", "select verdict, count(*) from samples group by 1") == [("pending", 2)]


def test_explain_query_and_report_say_what_is_wrong_with_their_run(tmp_path: Path) -> None:
    for command in (["explain", "run", "0" * 32], ["query", "run", "select 1"], ["report", "run"]):
        result = CliRunner().invoke(app, [command[0], str(tmp_path / "run"), *command[2:]])
        assert result.exit_code == 1
        assert "is no run" in str(result.exception)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A `fovea curate` that holds its run: its step sleeps."""
    pictures(tmp_path / "pics", 1)
    recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"tests.steps.hang": {"key": "000.jpg", "busy": False}}])
    command = [sys.executable, "-m", "pipeline.cli", "curate", "r.yaml", "--run", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, start_new_session=True, stderr=subprocess.PIPE)
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


def test_two_runs_at_once_the_second_is_refused(tmp_path: Path, running: subprocess.Popen[str]) -> None:
    wait_for(tmp_path / "run/lease/00000001.json", running)
    second = fovea("curate", "r.yaml", "--run", "run", cwd=tmp_path)
    assert second.returncode == 1
    assert f"is held by process {running.pid} on " in second.stderr
    assert "wait for it, stop it" in second.stderr
    assert "Traceback" not in second.stderr
    assert running.poll() is None
    wait_for(tmp_path / "run/log/00000000000000000001.json", running)
    third = fovea("query", "run", "select count(*) from samples", "--json", cwd=tmp_path)  # readers read on
    assert (third.returncode, third.stdout) == (0, '{"count_star()": 1}\n')


def test_plan_is_readable(rich_run: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(rich_run / "recipe.yaml"), "--run", str(rich_run / "run")])
    assert result.exit_code == 0
    assert "11 samples: 0 new, 0 changed, 0 gone since the last run" in result.output
    assert "phase 1: probe → keep[aspect_ratio < 10 and width >= 100]\n" in result.output
    assert "keep[duplicate_of is null or turns > 0] (implied by deduplicate) → compose\n" in result.output
    assert "7 kept + 2 rejected + 2 errored + 0 split + 0 pending = 11" in result.output
    boxes = [line for line in result.output.splitlines() if line.startswith(("│", "┃"))]
    assert len({len(line) for line in boxes}) == 1


def test_ctrl_c_says_that_the_same_command_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.doctor.examine", interrupted)
    monkeypatch.setattr(sys, "argv", ["fovea", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
