"""Processes as tests look at them: one that ends while it is looked at is no error."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def command_of(process: psutil.Process) -> str:
    """Its command line; empty once it has ended, or is a zombie."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def alive_after(seconds: float, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended by then; a zombie has ended."""
    _, alive = psutil.wait_procs(list(processes), timeout=seconds)
    return [p for p in alive if command_of(p)]
