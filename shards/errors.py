"""The typed errors. What belongs to a sample is a verdict; everything else ends the run with a message."""

from __future__ import annotations


class FoveaError(Exception):
    """Base of every error that is meant for people: what, where, and what to do."""


class SampleError(FoveaError):
    """The sample is at fault: becomes an errored row, never ends a run."""

    kind = "sample"


class DecodeError(SampleError):
    """A medium could not be decoded. The media room turns whatever a decoder raises into this."""

    kind = "decode"


class LimitError(SampleError):
    """A declared limit (pixels, bytes, frames, seconds, characters) was exceeded before or while reading."""

    kind = "limit"


class SourceError(SampleError):
    """The source itself is damaged there: a torn tar, a line that is no JSON, a file that went away."""

    kind = "source"


class CrashError(SampleError):
    """The process that handled the sample died or overran its limits of memory or CPU time."""

    kind = "crash"


class RecipeError(FoveaError):
    """A recipe that cannot run. The message names file, line and the mend."""


class LedgerError(FoveaError):
    """The run directory is unusable: other format version, lost lease, damaged log."""


class ShardError(FoveaError):
    """A dataset, shard, index or manifest is damaged or is not what it says."""


class ProfileError(FoveaError):
    """A measure profile is missing from a dataset, or is another one than the stage asks for."""


class ConfigError(FoveaError):
    """A training config that cannot run. The message names file, key and the mend."""


class InfrastructureError(FoveaError):
    """Weights, network, disk or memory are missing: rows stay pending, the run ends with exit code ≠ 0.

    retryable  whether another try a little later may help: a network that was away, never weights that are not there.
    """

    def __init__(self, message: str = "", retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class StepBug(FoveaError):
    """A step or rule broke its contract: a bug, never bad data. Ends the run.

    step  name in the recipe. uids: the samples it was called with. what: what happened, with the traceback where there is one.
    """

    def __init__(self, step: str, uids: list[str], what: str) -> None:
        self.step, self.uids, self.what = step, uids, what
        shown = ", ".join(uids[:5]) + (f" and {len(uids) - 5} more" if len(uids) > 5 else "")
        super().__init__(f"a bug in step {step!r} with {len(uids)} samples ({shown}): {what}")

    def __reduce__(self) -> tuple[type[StepBug], tuple[str, list[str], str]]:
        return StepBug, (self.step, self.uids, self.what)
