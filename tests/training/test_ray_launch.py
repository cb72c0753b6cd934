"""Ray Train as the launcher: a worker that is killed, errors that no restart mends, ranks that the cluster has room for."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from shards.errors import ConfigError, InfrastructureError
from tests.processes import command_of
from tests.training import forked, hand_launch, small_dataset
from tests.training.hand_launch import CONFIG
from training import ray_launch
from training.checkpoint import final_dir
from training.config_text import load_training_config
from training.metrics import read_metrics
from training.ray_launch import RayRanks, ranks_in, room_for, train_on_ray

STEPS = 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("corpus")
    dataset, words = small_dataset.write(folder)
    values = CONFIG.model_dump(mode="json", exclude_unset=True)
    stage = {k: v for k, v in values["stages"]["2"].items() if k != "epochs"}
    values |= {"stages": {2: stage | {"steps": STEPS}}, "checkpoint_steps": 4}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return SimpleNamespace(dataset=str(dataset), words=str(words), config=folder / "config.yaml")


def losses(out: Path) -> list[tuple[str, int, float]]:
    return [(r["kind"], r["step"], r["loss"]) for r in read_metrics(out)]


def kill_a_worker(out: Path, after: int, killed: list[int]) -> None:
    """Kills one of Ray's workers when step `after` has been noted."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if any(r["kind"] == "step" and r["step"] >= after for r in read_metrics(out)):
            workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in command_of(p)]
            os.kill(workers[-1].pid, signal.SIGKILL)
            killed.append(workers[-1].pid)
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(
    one_ray: None, corpus: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codes, said = forked.run(hand_launch.main, [corpus.dataset, corpus.words, tmp_path / "calm", "--config", corpus.config], ranks=2)
    assert codes == [0, 0], said[-3000:]
    out = tmp_path / "out"
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(out, 6, killed))
    killer.start()
    with caplog.at_level(logging.INFO, "fovea"):
        report = train_on_ray(corpus.config, corpus.dataset, out, RayRanks(ranks=2, restarts=1), tokenizer=corpus.words)
    killer.join()
    assert killed
    (told,) = [m for m in caplog.messages if "restart 1 of 1 on 2 ranks" in m]
    assert re.match(r"rank [01] died \(\w+Error: process or machine\); restart", told), told
    assert re.search(r"Stage 2 has a checkpoint of step (4|8|12|16|20|24|28)$", told), told
    assert any(re.search(rf"stage 2 step {STEPS} loss", m) for m in caplog.messages), "steps of far workers are told"
    assert losses(out) == losses(tmp_path / "calm")
    (stage,) = report.stages
    assert (stage.stage, stage.steps, stage.done_before) == (2, STEPS, False)
    again = train_on_ray(corpus.config, corpus.dataset, out, RayRanks(ranks=2), tokenizer=corpus.words)
    assert again.stages[0].done_before
    assert not list(out.glob(".*-*")), "no marks are left"


def test_an_error_that_a_person_has_to_mend_ends_the_run_at_once(
    one_ray: None, corpus: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"^small: no tokenizer; name its directory"):
        train_on_ray(CONFIG, corpus.dataset, tmp_path, RayRanks(ranks=1), stages=[2])
    assert not [m for m in caplog.messages if "restart" in m]


def test_ranks_that_do_not_fit_are_refused_before_they_start(one_ray: None, corpus: SimpleNamespace, tmp_path: Path) -> None:
    def start(asked: RayRanks, config: object = corpus.config) -> None:
        train_on_ray(config, corpus.dataset, tmp_path, asked, tokenizer=corpus.words)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r"stage 2: steps that 2 ranks can share are not for 3; start 1, 2, or"):
        start(RayRanks(ranks=3))
    with pytest.raises(ConfigError, match=r"2 ranks of 1000 CPUs each do not fit: the cluster has room for 0"):
        start(RayRanks(ranks=2, cpus=1000))
    with pytest.raises(ConfigError, match=r"2 ranks of 1 CPU and 1 GPU each do not fit"):
        start(RayRanks(ranks=2, gpus=1))
    assert not list(tmp_path.iterdir())


def test_a_worker_that_does_not_see_the_directory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # and back again: a worker goes where the command was started
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    job = ray_launch._Job(CONFIG, None, None, str(tmp_path), ".driver-1", (2,), True, str(tmp_path), "head", False)
    with pytest.raises(
        ConfigError, match=r"is not the directory that head writes to; --out must be one that all nodes of the cluster share"
    ):
        ray_launch._rank({"job": job})


def test_the_number_of_ranks_is_what_fits_and_divides_the_steps(corpus: SimpleNamespace) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 3.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert room_for(nodes, RayRanks(1, cpus=2)) == 5
    assert room_for(nodes, RayRanks(1, cpus=3, gpus=1)) == 2
    config = load_training_config(corpus.config)
    step = {"samples": 128, "divisible_by": 12}
    stages = {k: {**config.stages[2].model_dump(exclude_unset=True), "step": s} for k, s in ((1, {"packs": 8}), (2, step))}
    wide = config.model_validate(config.model_dump(exclude_unset=True) | {"stages": stages})
    assert [ranks_in(room, wide, [2], 12) for room in (0, 1, 5, 7, 11, 40)] == [0, 1, 4, 6, 6, 12]
    assert [ranks_in(room, wide, [1, 2], 8) for room in (3, 8)] == [2, 4]
    assert ranks_in(40, wide, [1], 4) == 4, "never more than were asked for"


def test_losses_of_workers_are_counted_and_what_is_left_decides(
    corpus: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Attempts that end by themselves, on a cluster that shrinks and grows."""
    config = load_training_config(corpus.config)
    config = config.model_copy(update={"stages": {2: config.stages[2].model_copy(update={"step": {"packs": 4}})}})
    config = type(config).model_validate_json(config.model_dump_json(warnings=False))
    job = ray_launch._Job(config, None, None, str(tmp_path), "mark", (2,), True, str(tmp_path), "head", False)
    cpus, tried = iter([3.0, 1.0, 8.0, 0.0]), []

    def attempt(job: object, asked: RayRanks) -> None:
        tried.append(asked.ranks)
        raise ray_launch._Lost("rank 1: ActorDiedError: its node is gone")

    monkeypatch.setattr(ray_launch, "_attempt", attempt)
    monkeypatch.setattr(ray_launch, "_answering", lambda: [{"Alive": True, "Resources": {"CPU": next(cpus)}}])
    with pytest.raises(InfrastructureError, match=r"no node is left with 1 CPU\. Stage 2 has no checkpoint yet"):
        ray_launch._attempts(job, RayRanks(4, restarts=9), [2])
    assert tried == [4, 2, 1, 4]
    with pytest.raises(InfrastructureError, match=r"begun again 0 times, which is all that was asked for \(--restarts\)"):
        ray_launch._attempts(job, RayRanks(4, restarts=0), [2])
    assert not final_dir(tmp_path, 2).exists()


def test_the_end_of_an_attempt_is_a_loss_or_an_error_to_mend() -> None:
    from ray.exceptions import ActorUnavailableError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import ControllerError

    mend, lost = ConfigError("no such profile"), InfrastructureError("rank 0 lost the connection", retryable=True)
    died = WorkerHealthCheckFailedError("A worker health check failed.", ActorUnavailableError("killed", None))
    assert ray_launch._cause(WorkerGroupError("", {0: lost, 3: mend})) is mend
    assert isinstance(ray_launch._cause(WorkerGroupError("", {0: InfrastructureError("no room on the disk")})), InfrastructureError)
    for failures, told in (
        ({0: lost, 1: died}, "rank 1 died (ActorUnavailableError: process or machine)"),
        ({0: lost}, "rank 0: InfrastructureError: rank 0 lost the connection"),
        ({2: RuntimeError("CUDA error: ECC\nmore")}, "rank 2: RuntimeError: CUDA error: ECC"),
    ):
        cause = ray_launch._cause(WorkerGroupError("", failures))
        assert isinstance(cause, ray_launch._Lost)
        assert str(cause) == told
    assert str(ray_launch._cause(ControllerError(TimeoutError("no workers")))) == "TimeoutError: no workers"
