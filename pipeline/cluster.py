"""The Ray cluster a run works on: connected once, with our packages shipped to its workers by module, never the working folder."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterable
from types import ModuleType

import ray

import configs
import curation
import pipeline
import shards
import training
from shards.errors import InfrastructureError

OURS: tuple[ModuleType, ...] = (configs, shards, curation, pipeline, training)


def connect(address: str | None = None, user_ops: Iterable[str] = ()) -> None:
    """Connect to `address` ("auto", "ray://…"), or start Ray on this machine. Does nothing when connected already.

    user_ops: dotted operators of a recipe; the packages that hold them travel as well. Raises InfrastructureError.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    packages = {op.split(".", 1)[0] for op in user_ops if "." in op}
    modules = [*OURS, *(importlib.import_module(p) for p in sorted(packages))]
    try:
        ray.init(
            address=address,
            runtime_env={"py_modules": modules},
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
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the command line has progress of its own


def cpus() -> int:
    """CPUs of the whole cluster, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
