"""Processes as tests look at them: one that ends while it is looked at is no error."""

from __future__ import annotations

import psutil


def command_of(process: psutil.Process) -> str:
    """Its command line; empty once it has ended, or is a zombie."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
