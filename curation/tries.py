"""Another try for what may pass by itself: a network that was away, memory that others held, a disk that was full for a moment."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

from shards.errors import InfrastructureError

log = logging.getLogger("fovea")
T = TypeVar("T")

PAUSES = "1,4,16"  # seconds before the second, third and fourth try, unless FOVEA_RETRY_PAUSES says otherwise

_DISK_ERRORS = {errno.ENOSPC, errno.EIO, errno.EDQUOT}


def as_infrastructure(error: Exception, where: str) -> InfrastructureError | None:
    """The error as one that is nobody's fault, `where` in front of its message; None for what is a bug or belongs to a sample.

    What a step says itself (InfrastructureError) is tried again only if it says so: it may have tried for long already.
    """
    if isinstance(error, InfrastructureError):
        return InfrastructureError(f"{where}: {error}", retryable=error.retryable)
    if isinstance(error, MemoryError | ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in _DISK_ERRORS):
        return InfrastructureError(f"{where}: {type(error).__name__}: {error}", retryable=True)
    return None


def pauses() -> list[float]:
    """$FOVEA_RETRY_PAUSES, else PAUSES: seconds with commas between; "" = no second try."""
    text = os.environ.get("FOVEA_RETRY_PAUSES", PAUSES)
    try:
        found = [float(seconds) for seconds in text.split(",") if seconds.strip()]
    except ValueError:
        found = [-1.0]
    if not all(0 <= seconds < 86_400 for seconds in found):
        raise InfrastructureError(f"FOVEA_RETRY_PAUSES={text!r}: write seconds with commas between, as {PAUSES!r}")
    return found


def tried(work: Callable[[], T], pause: Callable[[float], None] = time.sleep) -> T:
    """What `work` gives; an InfrastructureError that another try may mend is met with more tries, each after the next of `pauses()`."""
    waits = pauses()
    for seconds in waits:
        try:
            return work()
        except InfrastructureError as error:
            if not error.retryable:
                raise
            log.warning("%s; another try in %g s", str(error).partition("\n")[0], seconds)
            pause(seconds)
    try:
        return work()
    except InfrastructureError as error:
        if not error.retryable:
            raise
        raise InfrastructureError(f"{error}\ngiven up after {len(waits) + 1} tries") from error
