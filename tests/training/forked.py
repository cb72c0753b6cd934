"""Processes of their own for tests that kill them, without the seconds that importing torch and DeepSpeed takes each time."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.training.preloaded"])

Main = Callable[[Sequence[str]], None]


def run(main: Main, arguments: Sequence[object], ranks: int = 1, timeout: float = 240) -> tuple[list[int | None], str]:
    """`main(arguments)` in `ranks` processes that find each other as torchrun's do: (exit codes, all they said).

    None for a process that was still running after `timeout` seconds; it is killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{rank}.txt" for rank in range(ranks)]
        processes = []
        for rank, log in enumerate(logs):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {name: str(value) for name, value in place.items()} if ranks > 1 else {}
            process = _FORKS.Process(target=_child, args=(main, [str(a) for a in arguments], environment, str(log)))
            process.start()
            processes.append(process)
        codes: list[int | None] = []
        for process in processes:
            process.join(timeout)
            codes.append(process.exitcode)
            if process.exitcode is None:
                process.kill()
                process.join()
        return codes, "".join(log.read_text("utf-8", "replace") for log in logs if log.is_file())


def _child(main: Main, arguments: Sequence[str], environment: dict[str, str], log: str) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    with open(log, "wb") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main(arguments)
