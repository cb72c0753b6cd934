"""What devices can do: dense bf16 operations a second and memory, as their makers' data sheets say. By name; no driver is asked to plan."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shards.errors import ConfigError
from training.stages import close_to

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """flops: dense bf16 operations a second at the peak (matrix units, no sparsity), None where nobody states one.   memory: bytes.
    told: what its driver calls it, a regular expression.   source: where the numbers stand."""

    name: str
    flops: float | None
    memory: int | None
    told: str
    source: str


_TABLE = (
    Device("a100-40g", 312e12, 40 * GIB, r"NVIDIA A100-(SXM4|PCIE)-40GB", "NVIDIA A100 data sheet, 2021"),
    Device("a100-80g", 312e12, 80 * GIB, r"NVIDIA A100(-SXM4-80GB| 80GB PCIe)", "NVIDIA A100 data sheet, 2021"),
    Device("h100", 989.4e12, 80 * GIB, r"NVIDIA H100 80GB HBM3", "NVIDIA H100 architecture white paper: SXM5"),
    Device("h100-pcie", 756e12, 80 * GIB, r"NVIDIA H100 PCIe", "NVIDIA H100 architecture white paper: PCIe"),
    Device("h200", 989.4e12, 140 * GIB, r"NVIDIA H200", "NVIDIA H200 data sheet, 2024: SXM; 140 of its 141 GiB are told"),
    Device("l40s", 362.05e12, 45 * GIB, r"NVIDIA L40S", "NVIDIA L40S data sheet, 2023; error correction takes 3 of 48 GiB"),
    Device("rtx4090", 165.2e12, 24 * GIB, r"NVIDIA GeForce RTX 4090", "NVIDIA Ada architecture white paper: bf16 with fp32 sums"),
    Device("mi300x", 1307.4e12, 192 * GIB, r"AMD Instinct MI300X( OAM)?", "AMD Instinct MI300X data sheet, 2023"),
    Device("cpu", None, None, r"cpu", "no maker states one for a machine; memory is that of the machine"),
)
DEVICES: dict[str, Device] = {device.name: device for device in _TABLE}


def device_named(name: str) -> Device:
    """Raises ConfigError for a name that the table has not."""
    if name not in DEVICES:
        raise ConfigError(f"device {name!r} is not known{close_to(name, DEVICES)}; known: {', '.join(DEVICES)}")
    return DEVICES[name]


def device_told(told: str) -> Device | None:
    """The device that a driver calls so; None for one that is not in the table, a slice of one (MIG) or a slower kin of one among them."""
    return next((device for device in _TABLE if re.fullmatch(device.told, told.strip())), None)


def this_device() -> tuple[str, Device | None]:
    """(what the driver calls this rank's device, what the table knows of it)."""
    from training.engine import rank_device

    found = rank_device()
    if found.type != "cuda":
        return found.type, DEVICES.get(found.type)
    import torch

    name = torch.cuda.get_device_name(found)
    return name, device_told(name)
