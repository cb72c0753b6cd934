"""Weights & Biases as one more place where a training's numbers are shown; imported only where a config asks for it (extra `wandb`)."""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.errors import ConfigError
from training.durable import replace_text, writing
from training.stages import close_to

SETTINGS = ("project", "name", "entity", "group", "job_type", "notes", "mode")
MODES = ("online", "offline", "disabled")
KEY = "WANDB_API_KEY"


def refuse_wandb(settings: Mapping[str, str]) -> None:
    """Raises ConfigError, before the first step and on every rank, for settings that could not run: a key among them, no package, no key in
    the environment where the numbers are to be sent."""
    for name in settings:
        if "key" in name:
            raise ConfigError(f"wandb.{name}: a key is never part of a config; set the environment variable {KEY}")
        if name not in SETTINGS:
            raise ConfigError(f"wandb.{name}: unknown{close_to(name, SETTINGS)}; known: {', '.join(SETTINGS)}")
    if "project" not in settings:
        raise ConfigError("wandb: needs a project, as in `wandb: {project: my-project}`")
    mode = _mode(settings)
    if mode not in MODES:
        raise ConfigError(f"wandb.mode is {mode!r}; it is {', '.join(MODES)}")
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("the config asks for wandb, which is not installed: `pip install fovea-vlm[wandb]`, or take `wandb:` out of it")
    if mode == "online" and not os.environ.get(KEY):
        raise ConfigError(f"wandb would send to its server, but {KEY} is not set; set it, or keep the numbers here with WANDB_MODE=offline")


class WandbBoard:
    """A run of wandb in `folder`/wandb; started again in the same folder it is the same run, whose id is kept in wandb.json.

    Curves are called stage<k>/<kind>/<name> over stage<k>/step. Nothing of the config, the code or the console is sent.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        refuse_wandb(settings)
        import wandb

        quiet = wandb.Settings(console="off", silent=True, save_code=False)
        try:
            with writing(folder / "wandb"):
                self.run: Any = wandb.init(dir=str(folder), id=_run_id(folder), resume="allow", settings=quiet, **settings)
        except wandb.Error as error:
            told = str(error)
            if secret := os.environ.get(KEY):
                told = told.replace(secret, "***")
            raise ConfigError(f"wandb does not start ({told}); set {KEY} anew, or keep the numbers here with WANDB_MODE=offline") from None
        self._stages: set[int] = set()

    def write(self, stage: int, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """One record's numbers by name."""
        if stage not in self._stages:
            self.run.define_metric(f"stage{stage}/step")
            self.run.define_metric(f"stage{stage}/*", step_metric=f"stage{stage}/step")
            self._stages.add(stage)
        self.run.log({f"stage{stage}/step": step, **{f"stage{stage}/{kind}/{name}": value for name, value in numbers.items()}})

    def close(self) -> None:
        self.run.finish()


def _mode(settings: Mapping[str, str]) -> str:
    return settings.get("mode") or os.environ.get("WANDB_MODE") or "online"


def _run_id(folder: Path) -> str:
    file = folder / "wandb.json"
    if not file.is_file():
        replace_text(file, json.dumps({"id": uuid.uuid4().hex[:12]}))
    found: str = json.loads(file.read_text("utf-8"))["id"]
    return found
