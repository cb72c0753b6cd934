"""What DeepSpeed's ZeRO stages need from us: settings that fit, an optimizer where the states lie, and mends of stage 0."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from shards.errors import ConfigError
from training.stages import StageConfig, TrainingConfig, deepspeed_json


class GradientNotFinite(Exception):
    """Raised in ZeRO-0's step before it moves anything."""


def engine_settings(stage: StageConfig, config: TrainingConfig, device: torch.device, universal: bool) -> dict[str, Any]:
    """The settings of config.deepspeed with what the stage says; pinned memory only where there is a GPU to copy to."""
    settings = deepspeed_json(config.deepspeed)
    for ours in ("gradient_clipping", "optimizer", "scheduler", "gradient_accumulation_steps", "train_batch_size"):
        if ours in settings:
            raise ConfigError(f"deepspeed {config.deepspeed}: `{ours}` is the stage's to say (clip, train, schedule, step); take it out")
    settings["managed_gradient_accumulation"] = False  # a step is as many packs as the plan says
    zero = settings.setdefault("zero_optimization", {})
    bf16 = config.model.precision == "bf16"
    if bf16:
        settings["bf16"] = {**settings.get("bf16", {}), "enabled": True}
    if not (zero.get("compute_grad_norm", True) and settings.get("bf16", {}).get("check_grad_overflow", True)):
        raise ConfigError(
            f"deepspeed {config.deepspeed}: no update without a finite gradient: compute_grad_norm and check_grad_overflow stay on"
        )
    # ZeRO-0 in fp32 clips without telling the norm: `norm_before_step` does it
    settings["gradient_clipping"] = stage.clip if bf16 or zero_stage(settings) else 0.0
    for part in ("offload_optimizer", "offload_param"):
        if part in zero and device.type == "cpu":
            zero[part] = {**zero[part], "pin_memory": False}
    if "offload_optimizer" in zero:
        settings["zero_force_ds_cpu_optimizer"] = False
    if universal:
        settings["checkpoint"] = {**settings.get("checkpoint", {}), "load_universal": True}
    return settings


def zero_stage(settings: dict[str, Any]) -> int:
    """0, 1, 2 or 3."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def adamw(groups: list[dict[str, Any]], stage: StageConfig, settings: dict[str, Any], device: torch.device) -> torch.optim.Optimizer:
    """AdamW; DeepSpeed's for the CPU where a GPU's states are kept there (it is compiled at first use), PyTorch's everywhere else."""
    if "offload_optimizer" in settings["zero_optimization"] and device.type == "cuda":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, betas=stage.betas, adamw_mode=True)
    return torch.optim.AdamW(groups, betas=stage.betas)


def norm_before_step(optimizer: torch.optim.Optimizer, clip: float) -> None:
    """Makes every step of `optimizer` (ZeRO-0 in fp32) clip its gradients to norm `clip` (0: not at all), after they were averaged.

    Their norm before is left where DeepSpeed looks for it. Raises GradientNotFinite before anything moves, on all ranks alike.
    """

    def before(stepping: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in stepping.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf)
        stepping._global_grad_norm = norm  # type: ignore[attr-defined]
        if not math.isfinite(float(norm)):
            raise GradientNotFinite(str(float(norm)))

    optimizer.register_step_pre_hook(before)


@contextlib.contextmanager
def trial_step_forgotten(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Around `deepspeed.initialize`: ZeRO-0 in bf16 takes a step of zero gradients there, to make Adam's state. It shall move nothing and
    not count: counted, it would make the first real steps smaller (by a quarter the first: bias is corrected as if two were taken)."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    yield
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = torch.zeros_like(state["step"]) if isinstance(state["step"], torch.Tensor) else 0
