"""Several ranks in one run: one view at the start, one voice for what is wrong, an end for all; the launchers themselves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.training import forked, hand_launch, small_dataset
from tests.training.hand_launch import CONFIG
from training.checkpoint import final_dir, latest_state, stage_dir
from training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
STAGE = ("--stage", 1)  # six steps, a checkpoint after each second one
DIED, SILENT, SAID = -signal.SIGKILL, 3, 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    dataset, words = small_dataset.write(tmp_path_factory.mktemp("corpus"))
    return SimpleNamespace(dataset=dataset, words=words)


def two(corpus: SimpleNamespace, out: Path, *arguments: object) -> tuple[list[int | None], str]:
    """Stage 1 on two ranks: exit codes, and what both said."""
    return forked.run(hand_launch.main, [corpus.dataset, corpus.words, out, *STAGE, *arguments], ranks=2)


@pytest.fixture(scope="module")
def calm(corpus: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    """The numbers of a run that nothing disturbs."""
    out = tmp_path_factory.mktemp("calm")
    codes, said = two(corpus, out)
    assert codes == [0, 0], said[-3000:]
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    return numbers(out)


def numbers(out: Path) -> list[tuple]:
    return [(r["kind"], r["stage"], r["step"], r["loss"]) for r in read_metrics(out)]


def errors_in(said: str) -> list[str]:
    return [line for line in said.splitlines() if "Error: " in line and not line.startswith((" ", "["))]


def test_a_rank_that_dies_is_told_once_and_the_same_command_goes_on(corpus: SimpleNamespace, calm: list[tuple], tmp_path: Path) -> None:
    for dying in (0, 1):
        out = tmp_path / str(dying)
        codes, said = two(corpus, out, "--die-at", 1, 3, "--on", dying)
        assert codes[dying] == DIED
        assert codes[1 - dying] == SAID
        (told,) = errors_in(said)
        assert told.startswith(f"InfrastructureError: rank {1 - dying} lost the connection to rank {dying}")
        assert f"continues from the last checkpoint under {out}" in told
        assert latest_state(stage_dir(out, 1))[1].step == 2  # type: ignore[index]
    codes, said = two(corpus, out)
    assert codes == [0, 0], said[-3000:]
    assert numbers(out) == calm


def test_an_error_on_one_rank_ends_both_and_is_said_by_it_alone(corpus: SimpleNamespace, tmp_path: Path) -> None:
    codes, said = two(corpus, tmp_path, "--break-at", 1, 3, "--on", 1)
    assert codes == [SILENT, SAID]
    assert errors_in(said) == ["ShardError: shard train-000000.tar is torn"]
    assert latest_state(stage_dir(tmp_path, 1))[1].step == 2  # type: ignore[index]


def test_what_is_wrong_at_the_start_is_said_once(corpus: SimpleNamespace, tmp_path: Path) -> None:
    codes, said = two(corpus, tmp_path / "a", "--stage", 3)
    assert codes == [SAID, SILENT]
    assert errors_in(said) == ["ConfigError: small: no stage 3; it has 1, 2, 4"]
    codes, said = two(corpus, tmp_path / "b", "--blind", 1)
    assert codes == [SILENT, SAID]
    (told,) = errors_in(said)
    assert f": rank 1 on {socket.gethostname()} (none of the other 1): " in told
    assert "dataset-gone" in told


def test_ranks_that_do_not_share_the_output_directory_are_told(corpus: SimpleNamespace, tmp_path: Path) -> None:
    codes, said = two(corpus, tmp_path / "out", "--apart", 1)
    assert codes == [SILENT, SAID]
    (told,) = errors_in(said)
    assert f"{tmp_path}/out-apart is not the directory that rank 0 on {socket.gethostname()} writes to; --out must be one" in told


def test_ranks_that_cannot_share_a_step_are_refused(corpus: SimpleNamespace, tmp_path: Path) -> None:
    codes, said = forked.run(hand_launch.main, [corpus.dataset, corpus.words, tmp_path, *STAGE], ranks=3)
    assert codes == [SAID, SILENT, SILENT]
    assert errors_in(said) == [
        "ConfigError: stage 1: a step of 2 packs cannot be shared by 3 ranks; start 1, 2, or change the stage's `step`"
    ]


def test_asked_to_end_all_ranks_write_a_checkpoint_that_fewer_and_more_of_them_go_on_from(
    corpus: SimpleNamespace, calm: list[tuple], tmp_path: Path
) -> None:
    codes, said = two(corpus, tmp_path, "--end-at", 1, 2, "--on", 1)
    assert sorted(codes) == [SAID, SILENT]  # type: ignore[type-var]
    (told,) = [line for line in said.splitlines() if line.startswith("Preempted: ")]
    assert told == "Preempted: stage 1 was asked to end and has a checkpoint of step 3 of 6; the same command goes on there"
    assert latest_state(stage_dir(tmp_path, 1))[1].step == 3  # type: ignore[index]
    codes, said = forked.run(hand_launch.main, [corpus.dataset, corpus.words, tmp_path, *STAGE, "--die-at", 1, 4])
    assert codes == [DIED], said[-3000:]
    left = latest_state(stage_dir(tmp_path, 1))
    assert left is not None
    assert (left[1].step, left[1].world) == (4, 1)
    codes, said = two(corpus, tmp_path)
    assert codes == [0, 0], said[-3000:]
    assert [row[:3] for row in numbers(tmp_path)] == [row[:3] for row in calm]
    assert [row[3] for row in numbers(tmp_path)] == pytest.approx([row[3] for row in calm], abs=1e-4)


def quiet() -> dict[str, str]:
    """The environment without what a launcher sets."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {k: v for k, v in os.environ.items() if k not in ours} | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_torchrun_begins_again_by_itself_when_a_rank_dies(corpus: SimpleNamespace, calm: list[tuple], tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    ranks = ["-m", "tests.training.hand_launch", corpus.dataset, corpus.words, tmp_path, *STAGE, "--no-resume", "--die-at", 1, 5, "--on", 1]
    # a new run that is begun again goes on from its own checkpoints
    done = subprocess.run([sys.executable, *launcher, *map(str, ranks)], cwd=ROOT, env=quiet(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert numbers(tmp_path) == calm


def test_the_deepspeed_launcher_starts_the_command_on_the_nodes_of_a_hostfile(
    corpus: SimpleNamespace, calm: list[tuple], tmp_path: Path
) -> None:
    """Two nodes, each started by itself (--no_ssh) as DeepSpeed has it where nodes do not reach each other by ssh."""
    values = CONFIG.model_dump(mode="json", exclude_unset=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    tools = Path(sys.executable).parent
    command = [tools / "fovea", "train", "config.yaml", "--dataset", corpus.dataset, "--tokenizer", corpus.words, "--out", "out", *STAGE]
    place = ["--hostfile", "hosts", "--no_ssh", "--master_addr", "127.0.0.1", "--master_port", free_port(), "--no_python"]
    nodes = [
        subprocess.Popen(
            [str(part) for part in (sys.executable, tools / "deepspeed", *place, "--node_rank", node, *command)],
            cwd=tmp_path,
            env=quiet(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert all("--local_rank=0" in text for text in said), "the launcher gives it, the command takes it"
    assert "held-out loss before" in said[0]
    assert "held-out loss" not in said[1], "one rank speaks"
    assert final_dir(tmp_path / "out", 1).is_dir()
    assert numbers(tmp_path / "out") == calm
