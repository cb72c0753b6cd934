"""The command line as a benchmark runs it: one command after the other in a folder, with a log, and what each of them cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """seconds of wall time, and of processors (all threads and children)."""

    seconds: float
    cpu_seconds: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)


@dataclass(frozen=True, slots=True)
class Line:
    """`fovea` in the folder `out`, which recipes find as FOVEA_DIGITS; torch takes `threads`."""

    out: Path
    threads: int

    def fovea(self, *arguments: object) -> Cost:
        """Runs the command; what it says goes to `log.txt`. Ends the benchmark where it fails."""
        command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
        environment = {**os.environ, "FOVEA_DIGITS": str(self.out.resolve()), "OMP_NUM_THREADS": str(self.threads)}
        began = time.monotonic()
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"$ fovea {' '.join(command[3:])}\n")
            log.flush()
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"`fovea {' '.join(command[3:])}` ended with {process.returncode}; {self.out / 'log.txt'} says why")
        return Cost(time.monotonic() - began, used.ru_utime + used.ru_stime)


@dataclass(frozen=True, slots=True)
class Keeper(Line):
    """A line whose commands are run once: what each cost stands in `costs.jsonl`, and a command that stands there is not run again. One
    that was killed is begun anew."""

    def once(self, name: str, *arguments: object) -> Cost:
        known = self.costs()
        if name not in known:
            cost = self.fovea(*arguments)
            with (self.out / "costs.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, **asdict(cost)}) + "\n")
            return cost
        return known[name]

    def costs(self) -> dict[str, Cost]:
        """Of every command that has ended, by name."""
        path = self.out / "costs.jsonl"
        found = lines_of(path) if path.is_file() else ()
        return {one["name"]: Cost(one["seconds"], one["cpu_seconds"]) for one in found}

    def train(self, name: str, config: Mapping[str, Any], data: Path, words: Path) -> Path:
        """Weights of the last stage of `config`, which is kept as <name>.yaml."""
        written, trained = self.out / f"{name}.yaml", self.out / name
        written.write_text(yaml.safe_dump(dict(config), sort_keys=False), "utf-8")
        self.once(f"train {name}", "train", written, "--dataset", data, "--tokenizer", words, "--out", trained)
        return trained / "checkpoints" / f"stage{max(config['stages'])}" / "final"

    def ask(self, name: str, weights: Path, data: Path) -> Path:
        """The file of answers about everything in `data`."""
        answers = self.out / f"{name}.answers.jsonl"
        options = ("--split", "train", "--metrics", "exact_match", "--max-new-tokens", 8, "--batch", 64, "--out", answers)
        self.once(f"ask {name}", "evaluate", weights, data, *options)
        return answers


def quiet_seconds(trained: Path) -> float:
    """Of a training's steps as if nothing else had run on the machine: for each stage their number times the 10 % quantile of their
    seconds, from its metrics."""
    stages: dict[int, list[float]] = {}
    for one in lines_of(trained / "metrics.jsonl"):
        if one["kind"] == "step":
            stages.setdefault(one["stage"], []).append(one["seconds"])
    return sum(len(steps) * float(np.quantile(steps, 0.1)) for steps in stages.values())


def timed(seconds: dict[str, float], name: str, work: Callable[[], T]) -> T:
    at = time.monotonic()
    result = work()
    seconds[name] = time.monotonic() - at
    return result


def parameters(weights: Path) -> int:
    from safetensors import safe_open

    total = 0
    for file in sorted(weights.glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            total += sum(int(opened.get_tensor(name).size) for name in opened.keys())  # noqa: SIM118
    return total


def lines_of(path: Path) -> Iterable[dict[str, Any]]:
    """The objects of a JSONL file."""
    return (json.loads(line) for line in path.read_text("utf-8").splitlines())
