"""The Ray cluster a run works on: connected once, with our packages shipped to its workers by module, never the working folder."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

import configs
import curation
import pipeline
import shards
import training
from shards.errors import FoveaError, InfrastructureError

log = logging.getLogger("fovea")

T = TypeVar("T")

OURS: tuple[ModuleType, ...] = (configs, shards, curation, pipeline, training)


def connect(address: str | None = None, user_ops: Iterable[str] = ()) -> None:
    """Connect to `address` ("auto", "ray://…"), or start Ray on this machine. Does nothing when connected already.

    user_ops: dotted operators of a recipe; the packages that hold them travel as well. Raises InfrastructureError.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    packages = {op.split(".", 1)[0] for op in user_ops if "." in op}
    _look_for(address)
    ray._private.worker.print_to_stdstream = _to_log  # what its daemons report, on stdout, which belongs to --json
    modules = [*OURS, *(importlib.import_module(p) for p in sorted(packages))]
    try:
        with _quiet_core(), tempfile.TemporaryDirectory() as nothing:
            # Ray puts the folder of the command in front of a worker's sys.path, where a `training/` of the user's own would be taken for
            # ours; not so if it is given a working folder. The command's folder comes behind our packages.
            environment = {"py_modules": modules, "working_dir": nothing, "env_vars": {"PYTHONPATH": os.getcwd()}}
            ray.init(
                address=address,
                runtime_env=environment,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.WARNING,
                configure_logging=False,
            )
    except (ConnectionError, TimeoutError, ValueError) as error:
        raise InfrastructureError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the command line has progress and errors of its own


def _look_for(address: str | None) -> None:
    """Raises InfrastructureError at once where nobody listens; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise InfrastructureError(f"no Ray cluster at {address}: {error.strerror or error}; start one with `ray start --head`") from error


def _to_log(data: dict[str, Any], ignore_prefix: bool) -> None:
    log.warning("Ray: %s", " ".join(str(line).split("\n", 1)[0] for line in data["lines"])[:300])


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Ray's core writes to the stderr of whoever connects what only its developers can act on, for each actor pool of Ray Data, and, told
    to be quiet, that it will be. Whoever debugs Ray sets RAY_BACKEND_LOG_LEVEL himself. Its errors come as exceptions."""
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def cpus() -> int:
    """CPUs of the whole cluster, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def gpus() -> float:
    """GPUs of the whole cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def get(ref: Any) -> Any:
    """`ray.get`. Raises the FoveaError of the task as itself, InfrastructureError where Ray fails; a bug keeps Ray's traceback."""
    (value,) = ours(ray.get(r) for r in (ref,))
    return value


def ours(results: Iterable[T]) -> Iterator[T]:
    """The results; errors that Ray raises between them become ours as `get` says."""
    iterator = iter(results)
    while True:
        try:
            value = next(iterator)
        except StopIteration:
            return
        except RayTaskError as error:
            if isinstance(error.cause, FoveaError):
                raise error.cause from None
            raise
        except RayError as error:
            raise InfrastructureError(f"Ray: {error}; what is done is kept, run again") from error
        yield value
