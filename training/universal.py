"""Checkpoints across numbers of ranks: DeepSpeed's universal format, with what its loading does wrong in ZeRO-3 put right.

DeepSpeed 0.19.8, ZeroOptimizer_Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3: every parameter group gets the hyperparameters
of the first group, and one `step` tensor is handed to all sub-groups, each of which then counts it up: with three groups a step counts as
three in AdamW's bias correction. Neither raises anything.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.durable import publish

log = logging.getLogger("fovea")


def convert(state: Path, target: Path) -> None:
    """Rewrites DeepSpeed's files in `state` as a universal checkpoint `target`, whole or not at all. One process must call it.

    Takes three times the bytes of the optimizer's state on disk for as long as it runs, and twice after it (parameter by parameter
    fp32 weights and both moments).
    """
    from deepspeed.checkpoint import ds_to_universal

    scratch = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    arguments = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True, "inject_missing_state": False}
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
            ds_to_universal.main(Namespace(input_folder=str(state), output_folder=str(scratch), **arguments))
        log.debug("%s", told.getvalue())
        publish(scratch, target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        (target.parent / "latest_universal").unlink(missing_ok=True)


def load(engine: Any, path: Path, tag: str) -> bool:
    """Loads `path`/`tag` into an engine that was built `universal`; False if DeepSpeed found nothing. Every rank must call it."""
    groups = hyperparameters(engine)
    loaded, _ = engine.load_checkpoint(str(path), tag=tag)
    if loaded is None:
        return False
    mend(engine, groups)
    return True


def hyperparameters(engine: Any) -> list[dict[str, Any]]:
    """Of each parameter group of an engine: everything but its parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in engine.optimizer.param_groups]


def mend(engine: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Gives each group its own hyperparameters back, and each part of the optimizer's state a `step` of its own, where torch wants it.

    The hyperparameters are the config's, which is the one of the checkpoint (its stage digest says so): none has to be read from it.
    """
    import torch

    for group, own in zip(engine.optimizer.param_groups, groups, strict=True):
        group.update(own)
    # DeepSpeed leaves it on the device of the rank that saved it; torch.optim wants it beside the parameter if it is fused, else on the CPU
    beside = any(group.get("fused") or group.get("capturable") for group in groups)
    for parameter, state in engine.optimizer.optimizer.state.items():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].to(device=parameter.device if beside else "cpu", copy=True)
