"""One child process under limits of memory, CPU time and silence. It answers requests or it is killed; it never takes its parent along."""

from __future__ import annotations

import collections
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import psutil
import pyarrow as pa

from curation.program import Program
from curation.wire import MessageParser, Moment, Progress, write_message
from shards.errors import InfrastructureError
from shards.media import Limits

log = logging.getLogger("fovea")

POLL_SECONDS = 0.2
OPEN_SECONDS = 3600.0  # wall time for loading models
WALL_FACTOR, WALL_GRACE = 4.0, 30.0  # silence allowed: factor × the CPU seconds allowed + grace
_PAGE = 65536
_TAIL_LINES = 40


class Crash(Exception):
    """The child died or was killed. reason: "signal 11 (SIGSEGV)", "memory over 4.0 GB", …; moment: what it was at."""

    def __init__(self, reason: str, moment: Moment) -> None:
        super().__init__(reason)
        self.reason, self.moment = reason, moment


class Sandbox:
    """Starts the child at the first request, and again at the first request after a crash."""

    def __init__(self, program: Program, limits: Limits, memory: int, python_path: Sequence[str], derived: str = "") -> None:
        self._hello = {
            "program": [call.to_json() for call in program],
            "limits": asdict(limits),
            "pixel_bytes": memory // 4,
            "derived": derived,
        }
        self._limits, self._memory, self._python_path = limits, memory, list(python_path)
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._page = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the sandbox
        self._page.truncate(_PAGE)
        self._progress = Progress(self._page.fileno())
        self._opened_before = 0

    @property
    def opened(self) -> int:
        """Media opened so far, in dead children too."""
        return self._opened_before + self._progress.read().opened

    def ask(self, header: dict[str, Any], tables: Sequence[pa.Table]) -> tuple[dict[str, Any], list[pa.Table]]:
        """One request, one answer. Raises Crash, and InfrastructureError when the child cannot start or load its models."""
        try:
            if self._process is None:
                self._start()
            return self._exchange(header, tables)
        except BaseException as error:
            self.kill()
            if isinstance(error, Crash) and error.moment.opening:
                mend = "; give the step more `memory` (bytes of one actor)" if error.reason.startswith("memory") else ""
                raise InfrastructureError(f"a step's models cannot be loaded: {error.reason}{mend}{self.stderr_tail()}") from error
            raise

    def kill(self) -> None:
        """Ends the child, whatever it is doing. The next request starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: what a step started goes with it
        except ProcessLookupError:
            log.debug("the child is gone already")
        process.wait()
        if self._keeper is not None:
            self._keeper.join(timeout=5)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    log.debug("a request to the child was cut off")
        self._opened_before += self._progress.read().opened
        self._progress.write(Moment())

    def close(self) -> None:
        self.kill()
        self._progress.close()
        self._page.close()

    def stderr_tail(self) -> str:
        """The last lines that the child wrote, for messages; empty when there are none."""
        return "\nlast lines of its stderr:\n" + "\n".join(self._tail) if self._tail else ""

    def _start(self) -> None:
        self._tail.clear()
        self._progress.write(Moment(opening=True))
        started = threading.Event()
        failure: list[OSError] = []
        # The child dies with the thread that forked it (PDEATHSIG), so that thread must live as long as the child: it drains stderr.
        self._keeper = threading.Thread(target=self._keep, args=(started, failure), name="fovea-child", daemon=True)
        self._keeper.start()
        started.wait()
        if failure:
            raise InfrastructureError(f"cannot start a child process: {failure[0]}") from failure[0]
        self._exchange(self._hello, [])

    def _keep(self, started: threading.Event, failure: list[OSError]) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(self._python_path)}
        page = self._page.fileno()
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "curation.child", str(page), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(page,),
                env=environment,
                start_new_session=True,  # Ctrl-C goes to the parent alone, which ends the child in order
            )
        except OSError as error:
            failure.append(error)
            started.set()
            return
        self._process = process
        started.set()
        assert process.stderr is not None
        with process.stderr:
            self._drain(process.stderr)

    def _drain(self, stderr: IO[bytes]) -> None:
        while line := stderr.readline(4096):
            self._tail.append(line.decode("utf-8", "replace").rstrip())

    def _exchange(self, header: dict[str, Any], tables: Sequence[pa.Table]) -> tuple[dict[str, Any], list[pa.Table]]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write_message(process.stdin, header, tables)
        except BrokenPipeError:
            raise self._death(process) from None
        parser, watch = MessageParser(), _Watch(process.pid, self._limits, self._memory, self._progress)
        descriptor, looked = process.stdout.fileno(), time.monotonic()
        while True:
            if select.select([descriptor], [], [], POLL_SECONDS)[0]:
                data = os.read(descriptor, 1 << 20)
                if not data:
                    raise self._death(process)
                parser.feed(data)
                if (message := parser.take()) is not None:
                    return message
            if time.monotonic() - looked >= POLL_SECONDS:
                looked = time.monotonic()
                if (reason := watch.breach()) is not None:
                    raise Crash(reason, self._progress.read())

    def _death(self, process: subprocess.Popen[bytes]) -> Crash:
        """Why the child closed its pipes: it is dead, or will be at once."""
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return Crash("closed its pipes", self._progress.read())
        reason = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return Crash(reason, self._progress.read())


class _Watch:
    """Measures a child during one request.

    A medium in a decoder may take `cpu_seconds`; a call of a step function that many seconds for each of its inputs.
    """

    def __init__(self, pid: int, limits: Limits, memory: int, progress: Progress) -> None:
        self._limits, self._memory, self._progress = limits, memory, progress
        self._process = psutil.Process(pid)
        self._moment = progress.read()
        self._call_cpu = self._visit_cpu = self._cpu()
        self._moved = time.monotonic()

    def breach(self) -> str | None:
        """The limit that is broken, in the words of an error row; None while all is well (or the child is already dead)."""
        try:
            return self._breach()
        except psutil.NoSuchProcess:
            return None  # the pipe's end tells why

    def _breach(self) -> str | None:
        if self._process.memory_info().rss > self._memory:
            return f"memory over {self._memory / 1e9:.1f} GB"
        before, self._moment = self._moment, self._progress.read()
        cpu, now, moment = self._cpu(), time.monotonic(), self._moment
        if moment.serial != before.serial:
            self._moved = now
        if moment.call != before.call:
            self._call_cpu = self._visit_cpu = cpu
        elif (moment.sample, moment.decoding) != (before.sample, before.decoding):
            self._visit_cpu = cpu
        if moment.opening:
            return f"no end of loading after {OPEN_SECONDS:.0f} s" if now - self._moved > OPEN_SECONDS else None
        allowed = self._limits.cpu_seconds * max(1, moment.inputs)
        decoder_over = moment.decoding and cpu - self._visit_cpu > self._limits.cpu_seconds
        if decoder_over or cpu - self._call_cpu > allowed:
            return f"CPU over {self._limits.cpu_seconds:g} s"
        silence = WALL_FACTOR * (self._limits.cpu_seconds if moment.decoding else allowed) + WALL_GRACE
        return f"no progress in {silence:g} s" if now - self._moved > silence else None

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def child_path(extra: Sequence[str] | None = None) -> list[str]:
    """PYTHONPATH of a child: the folder of our packages first, then `extra`, or else the parent's own entries outside its installation."""
    own = str(Path(__file__).resolve().parents[1])
    if extra is None:
        installed = [Path(root).resolve() for root in (sys.prefix, sys.base_prefix)]
        entries = [Path(entry).absolute() for entry in sys.path]
        extra = [str(e) for e in entries if e.is_dir() and not any(e.resolve().is_relative_to(root) for root in installed)]
    return list(dict.fromkeys([own, *extra]))
