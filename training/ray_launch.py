"""Ray Train on the cluster that curated: each rank is a Ray worker, and a run that loses one begins again from its last checkpoint.

Ray is imported when it is used. The workers have our packages because they are installed there, or because the connection shipped them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.errors import ConfigError, FoveaError, InfrastructureError
from training.checkpoint import latest_state, stage_dir
from training.config_text import load_training_config
from training.launch import train
from training.rank_group import EndedElsewhere, Preempted
from training.stage_chain import TrainReport, chosen_stages, finished_stages
from training.stages import TrainingConfig

log = logging.getLogger("fovea")

_SAID_EVERY = 10  # steps between two lines about a run that is far away
_ANSWERED_WITHIN = 60.0  # seconds in which a node that is well has started a process, however busy it is
_LOOKED_EVERY = 1.0  # seconds between two looks at its numbers


@dataclass(frozen=True, slots=True)
class RayRanks:
    """What is asked of the cluster: so many ranks with so many CPUs and GPUs (0 or 1) each; how often a run that lost one begins again."""

    ranks: int
    cpus: int = 1
    gpus: int = 0
    restarts: int = 3


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker is told. `mark`: a file in `out`, by which it sees that this is the same directory as the driver's."""

    config: TrainingConfig
    dataset: str | None
    tokenizer: str | None
    out: str
    mark: str
    stages: tuple[int, ...]
    resume: bool
    folder: str
    driver: str
    gpu: bool


def train_on_ray(
    config: TrainingConfig | str | Path,
    dataset: str | None,
    out_dir: str | Path,
    asked: RayRanks,
    *,
    tokenizer: str | None = None,
    stages: Sequence[int] | None = None,
    resume: bool = True,
) -> TrainReport:
    """training.launch.train on the workers of the Ray cluster that this process is connected to.

    `out_dir`, the dataset and the tokenizer must lie where every node sees them under the same path (or be URLs). A worker or node that
    dies ends the attempt; the next one begins from the last checkpoint, on as many ranks as there is room for: at most `asked.ranks`, and
    a number that divides the packs of a step. Errors that a person has to mend end the run at once.
    Raises what `train` raises; InfrastructureError when the restarts are used up; ConfigError for ranks that the cluster has no room for.
    """
    import ray

    if not ray.is_initialized():
        raise InfrastructureError("not connected to a Ray cluster; connect first, or train without Ray")
    settings = config if isinstance(config, TrainingConfig) else load_training_config(config)
    out = Path(out_dir).resolve()
    chosen = chosen_stages(settings, stages)
    before = finished_stages(settings, out, chosen)
    if len(before) < len(chosen):
        pending = [k for k in chosen if k not in before]
        refuse_unshared(settings, pending, asked.ranks)
        if (room := room_for(ray.nodes(), asked)) < asked.ranks:
            raise ConfigError(f"{asked.ranks} ranks of {_needs(asked)} each do not fit: the cluster has room for {room}; start fewer")
        with _marked(out) as mark:
            job = _Job(
                config=settings,
                dataset=None if (where := dataset or settings.dataset) is None else _absolute(where),
                tokenizer=None if (words := tokenizer or settings.tokenizer) is None else _absolute(words),
                out=str(out),
                mark=mark,
                stages=tuple(chosen),
                resume=resume,
                folder=os.getcwd(),
                driver=socket.gethostname(),
                gpu=asked.gpus > 0,
            )
            _attempts(job, asked, pending)
    after = finished_stages(settings, out, chosen)
    if missing := [k for k in chosen if k not in after]:
        raise Preempted(f"stages {', '.join(map(str, missing))} were ended before they were done; the same command goes on from {out}")
    return TrainReport(tuple(replace(after[k], done_before=k in before) for k in chosen))


def refuse_unshared(config: TrainingConfig, stages: Sequence[int], ranks: int) -> None:
    """Raises ConfigError for a number of ranks that cannot share the steps of every one of `stages`."""
    for number in stages:
        shared = _shared_by(config, number)
        if shared % ranks:
            fitting = ", ".join(str(n) for n in range(1, shared + 1) if shared % n == 0)
            raise ConfigError(
                f"stage {number}: steps that {shared} ranks can share are not for {ranks}; start {fitting}, or change the stage's `step`"
            )


def ranks_in(room: int, config: TrainingConfig, stages: Sequence[int], most: int) -> int:
    """The largest number of ranks ≤ `room` and ≤ `most` that can share the steps of every one of `stages`; 0 without room."""
    common = math.gcd(*(_shared_by(config, number) for number in stages))
    return max((n for n in range(1, min(room, most) + 1) if common % n == 0), default=0)


def room_for(nodes: Sequence[dict[str, Any]], asked: RayRanks) -> int:
    """How many ranks fit on `nodes` (as ray.nodes() has them), each on one of them, were nothing else running there."""
    room = 0
    for node in nodes:
        if node["Alive"]:
            held = node["Resources"]
            by_cpu = int(held.get("CPU", 0) // asked.cpus) if asked.cpus else None
            by_gpu = int(held.get("GPU", 0) // asked.gpus) if asked.gpus else None
            room += min(n for n in (by_cpu, by_gpu) if n is not None)
    return room


def _shared_by(config: TrainingConfig, number: int) -> int:
    """A number of ranks that can share the stage's steps, as all its divisors can, as far as the config says."""
    step = config.stages[number].step
    return step.packs if step.packs is not None else step.divisible_by


def _attempts(job: _Job, asked: RayRanks, pending: Sequence[int]) -> None:
    ranks, lost = asked.ranks, 0
    while True:
        try:
            with _told(Path(job.out)):
                _attempt(replace(job, resume=job.resume or lost > 0), replace(asked, ranks=ranks))
            return
        except _Lost as error:
            lost += 1
            if lost > asked.restarts:
                raise InfrastructureError(
                    f"{error}; begun again {asked.restarts} times, which is all that was asked for (--restarts). {_stand(job, pending)}: "
                    "the same command goes on from there"
                ) from error
            ranks = ranks_in(room_for(_answering(), asked), job.config, pending, asked.ranks)
            if ranks == 0:
                raise InfrastructureError(f"{error}; no node is left with {_needs(asked)}. {_stand(job, pending)}") from error
            log.warning("%s; restart %d of %d on %d ranks. %s", error, lost, asked.restarts, ranks, _stand(job, pending))


def _answering() -> list[dict[str, Any]]:
    """The nodes that do what they are asked: Ray takes a machine that is gone for alive until it has missed enough heartbeats."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def here() -> bool:
        return True

    alive = [node for node in ray.nodes() if node["Alive"]]
    asked = {here.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node for node in alive}
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWERED_WITHIN)
    found = []
    for answer in done:
        try:
            ray.get(answer)
        except ray.exceptions.RayError as error:
            log.info("a node is gone: %s", _first_line(error))
        else:
            found.append(asked[answer])
    return found


class _Lost(Exception):
    """An attempt that ended because a worker, a node or the connection between them is gone."""


def _attempt(job: _Job, asked: RayRanks) -> None:
    """One life of a group of workers. Raises _Lost where another may end better, else the workers' own error."""
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    needs = {"CPU": float(asked.cpus)} | ({"GPU": float(asked.gpus)} if asked.gpus else {})
    on_interrupt = signal.getsignal(signal.SIGINT)
    # What Ray Train keeps of a run (nothing of ours: checkpoints lie under `out`) is written on this node alone.
    with tempfile.TemporaryDirectory(prefix="fovea-ray-") as folder:
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="nccl" if job.gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=asked.ranks, use_gpu=job.gpu, resources_per_worker=needs),
            # It would begin again with as many workers as before, and also after errors that no restart mends.
            run_config=RunConfig(
                name="train",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
        except RayActorError as error:  # so it is when the run is interrupted, too
            raise InfrastructureError(
                f"Ray Train's controller is gone: {_first_line(error)}; the same command goes on from the last checkpoint under {job.out}"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)  # Ray leaves its own


def _rank(settings: dict[str, Any]) -> None:
    """What each worker runs. One that ends because another did says nothing: its error would hide the other's."""
    job: _Job = settings["job"]
    if not job.gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    first = os.environ.get("RANK", "0") == "0"
    logging.getLogger("fovea").setLevel(logging.INFO if first else logging.WARNING)
    if Path(job.folder).is_dir():
        os.chdir(job.folder)  # relative paths in the config mean what they mean to whoever started the run
    if not (Path(job.out) / job.mark).is_file():
        raise ConfigError(
            f"{job.out} on {socket.gethostname()} is not the directory that {job.driver} writes to; "
            "--out must be one that all nodes of the cluster share (NFS, Lustre, …)"
        )
    try:
        train(job.config, job.dataset, job.out, tokenizer=job.tokenizer, stages=job.stages, resume=job.resume)
    except EndedElsewhere as error:
        log.info("%s", error)


def _cause(error: Exception) -> Exception:
    """What an attempt's end comes to: an error of ours that a person has to mend, else _Lost."""
    from ray.exceptions import RayError

    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for rank in sorted(failures):
        own = failures[rank]
        if isinstance(own, FoveaError) and not (isinstance(own, InfrastructureError) and own.retryable):
            return own
    dead = {rank: gone for rank, own in failures.items() if isinstance(gone := getattr(own, "health_check_failure", own), RayError)}
    if dead:  # what the others say is that they lost it
        return _Lost("; ".join(f"rank {rank} died ({type(gone).__name__}: process or machine)" for rank, gone in sorted(dead.items())))
    if failures:
        return _Lost("; ".join(f"rank {rank}: {type(own).__name__}: {_first_line(own)}" for rank, own in sorted(failures.items())))
    controller = getattr(error, "controller_failure", error)
    return _Lost(f"{type(controller).__name__}: {_first_line(controller)}")


def _stand(job: _Job, pending: Sequence[int]) -> str:
    """Where the next attempt goes on, for people."""
    out = Path(job.out)
    left = [k for k in pending if k not in finished_stages(job.config, out, pending)]
    if not left:
        return "All stages are done"
    found = latest_state(stage_dir(out, left[0]))
    return f"Stage {left[0]} has {'no checkpoint yet' if found is None else f'a checkpoint of step {found[1].step}'}"


@contextmanager
def _marked(out: Path) -> Iterator[str]:
    """A file in `out` by which a worker knows the directory; its name."""
    mark = out / f".driver-{uuid.uuid4().hex}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise InfrastructureError(f"{out} cannot be written: {error.strerror or error}") from error
    try:
        yield mark.name
    finally:
        mark.unlink(missing_ok=True)


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """Lines about the steps that workers far away have done, from their numbers under `out`."""
    path, done = out / "metrics.jsonl", threading.Event()

    def follow() -> None:
        offset = path.stat().st_size if path.is_file() else 0
        file_number = path.stat().st_ino if path.is_file() else None
        while not done.wait(_LOOKED_EVERY):
            if not path.is_file():
                continue
            if (found := path.stat()).st_ino != file_number:  # written anew without steps that are made again
                file_number, offset = found.st_ino, found.st_size if file_number is not None else 0
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offset += len(line)
                    record = json.loads(line)
                    if record["kind"] == "step" and (record["step"] % _SAID_EVERY == 0 or record["step"] == 1):
                        log.info("stage %d step %d loss %.4f", record["stage"], record["step"], record["loss"])

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _needs(asked: RayRanks) -> str:
    return f"{asked.cpus} CPU{'s' if asked.cpus != 1 else ''}" + (f" and {asked.gpus} GPU" if asked.gpus else "")


def _absolute(path_or_url: str) -> str:
    return path_or_url if "://" in path_or_url else str(Path(path_or_url).resolve())


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:200]
