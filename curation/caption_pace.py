"""So many requests a minute and no more, over all processes of one machine that ask the same server."""

from __future__ import annotations

import fcntl
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from curation.models import cache_dir
from shards.errors import InfrastructureError

HORIZON = 3600.0  # seconds: a time further ahead was written before somebody set the clock back


@dataclass(frozen=True, slots=True)
class Pace:
    """interval: seconds between two requests; 0 = no limit. path: a file that holds when the next may go, shared under a lock."""

    interval: float
    path: Path

    def wait(self) -> float:
        """Takes the next free moment and returns the seconds until then. Raises InfrastructureError."""
        if not self.interval:
            return 0.0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                now = time.time()
                moment = _moment(file.read(64), now)
                file.truncate(0)
                file.write(repr(moment + self.interval).encode())
        except OSError as error:
            raise InfrastructureError(
                f"requests cannot be paced: {self.path}: {error.strerror}; set FOVEA_CACHE to a folder to write to"
            ) from error
        return moment - now


def open_pace(url: str, requests_per_minute: float) -> Pace:
    """The pace at which one server is asked; 0 requests per minute = as fast as it answers."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return Pace(60.0 / requests_per_minute if requests_per_minute else 0.0, cache_dir() / "pace" / name)


def _moment(stored: bytes, now: float) -> float:
    try:
        found = float(stored)
    except ValueError:
        return now
    return found if now < found < now + HORIZON else now
