"""Many ranks, one run: they begin from one view, what is wrong is said once, and when one of them ends all do."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from shards.errors import ConfigError, FoveaError, InfrastructureError
from training.roll_call import absent, answer, sign_in

if TYPE_CHECKING:
    from training.engine import Ranks

log = logging.getLogger("fovea")

T = TypeVar("T")

SHARED_WITHIN = 30.0  # seconds a network file system may take to show one machine what another has written
_LOST = ("closed by peer", "reset by peer", "gloo", "NCCL", "Broken pipe", "Timed out", "timed out")


class EndedElsewhere(FoveaError):
    """This rank ends because another one does, which says why."""


class Preempted(FoveaError):
    """The run was asked to end (SIGTERM), wrote a checkpoint and ended."""


def launched() -> bool:
    """Whether a launcher (torchrun, deepspeed, Ray Train) has made this process one of several ranks."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def one_run(out: Path) -> Iterator[Ranks | None]:
    """The ranks that a launcher started, met and looking at one `out` (which is made); None in a process that is alone.

    An error on one rank is raised as it is on the first rank that has one; on the others, whose connection to it breaks, EndedElsewhere.
    Where a rank died without a word, one of the others raises InfrastructureError (retryable). Raises ConfigError if `out` is not shared.
    """
    if not launched():
        yield None
        return
    import torch

    from training.engine import start_ranks

    try:
        _meet_anew()
        ranks = start_ranks()
    except RuntimeError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InfrastructureError(
            f"rank {os.environ['RANK']} did not meet the others at {where}: {_first_line(error)}", retryable=True
        ) from error
    mark: Path | None = None
    try:
        sign_in(ranks)
        mark = _shared_mark(ranks, out)
        yield ranks
        torch.distributed.barrier()  # until here one that fails is heard
    except EndedElsewhere:
        raise
    except Exception as error:
        answer(ranks)
        if mark is not None and not _first_to_end(mark):
            raise EndedElsewhere("another rank ended the run and says why") from error
        if not isinstance(error, FoveaError) and _is_lost(error):
            raise InfrastructureError(
                f"rank {ranks.rank} lost the connection to {absent(ranks)}, which is gone (killed, out of memory, or its machine); "
                f"the same command continues from the last checkpoint under {out} ({_first_line(error)})",
                retryable=True,
            ) from error
        raise
    if ranks.rank == 0:
        mark.unlink(missing_ok=True)


def agreed(ranks: Ranks | None, work: Callable[[], T]) -> T:
    """What `work` returns, once it has succeeded on every rank: each must call it.

    A FoveaError is raised on the lowest rank that has one, with its machine where rank 0 has none; EndedElsewhere on the others.
    """
    if ranks is None or ranks.world == 1:
        return work()
    value, error = None, None
    try:
        value = work()
    except FoveaError as caught:
        error = caught
    told = _gathered(ranks, None if error is None else str(error))
    failed = [rank for rank, words in enumerate(told) if words is not None]
    if not failed:
        return value  # type: ignore[return-value]
    if error is None or ranks.rank != failed[0]:
        raise EndedElsewhere(f"rank {failed[0]} ended the run and says why") from error
    if ranks.rank == 0 or len(set(told)) == 1:
        raise error
    others = f"and {len(failed) - 1} more of {ranks.world}" if len(failed) > 1 else f"none of the other {ranks.world - 1}"
    raise type(error)(f"rank {ranks.rank} on {socket.gethostname()} ({others}): {error}") from error


def refuse_different(ranks: Ranks | None, what: str, value: str) -> None:
    """Raises ConfigError (on rank 0; EndedElsewhere on the others) if `value` is not the same on all ranks. `what` names it for people."""
    if ranks is None or ranks.world == 1:
        return
    told = _gathered(ranks, (socket.gethostname(), value))
    other = next((rank for rank, (_, seen) in enumerate(told) if seen != told[0][1]), None)
    if other is None:
        return
    if ranks.rank != 0:
        raise EndedElsewhere("rank 0 ended the run and says why")
    raise ConfigError(
        f"the ranks do not see the same {what}: rank 0 on {told[0][0]} has {told[0][1]}, rank {other} on {told[other][0]} has "
        f"{told[other][1]}; nodes must share config, dataset, tokenizer and output directory"
    )


def from_first(ranks: Ranks | None, work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank: for what is read from files that may still be changing. Errors as in `agreed`."""
    if ranks is None or ranks.world == 1:
        return work()
    import torch

    held: list[Any] = [agreed(ranks, work if ranks.rank == 0 else lambda: None)]
    torch.distributed.broadcast_object_list(held, src=0)
    found: T = held[0]
    return found


class StopRequest:
    """Turns the first SIGTERM into a request to end after the step; a second one ends the process as ever.

    Only the main thread can listen: elsewhere (in a Ray worker) nothing is changed.
    """

    def __init__(self) -> None:
        self._asked = False

    def asked(self, ranks: Ranks) -> bool:
        """Whether any rank was asked to end: every rank must call it after the same step."""
        if ranks.world == 1:
            return self._asked
        import torch

        from training.engine import rank_device

        flag = torch.tensor([int(self._asked)], device=rank_device())
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log.warning("asked to end (SIGTERM): a checkpoint is written after this step")


def _meet_anew() -> None:
    """Joins the process group under names of this life, where torchrun has started the ranks again.

    torchrun keeps one store for all its restarts, and the ranks that died have left their addresses there (PyTorch 2.14: a rank that is
    quicker than another one reads the dead one's, and does not reach it).
    """
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if life == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    import torch

    from training.engine import rank_device

    device, rank, world = rank_device(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=False)
    named = torch.distributed.PrefixStore(f"life-{life}", store)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", store=named, rank=rank, world_size=world)


def _shared_mark(ranks: Ranks, out: Path) -> Path:
    """A file in `out` that all ranks see, removed by the first of them that ends."""

    def make() -> str:
        try:
            out.mkdir(parents=True, exist_ok=True)
            for old in out.glob(".ranks-*"):
                old.unlink(missing_ok=True)
            name = f".ranks-{uuid.uuid4().hex}"
            (out / name).touch()
        except OSError as error:
            raise InfrastructureError(f"{out} cannot be written: {error.strerror or error}") from error
        return f"{socket.gethostname()}:{name}"

    host, _, name = from_first(ranks, make).partition(":")
    mark = out / name

    def see() -> None:
        end = time.monotonic() + SHARED_WITHIN
        while not mark.is_file():
            if time.monotonic() > end:
                raise ConfigError(
                    f"{out} is not the directory that rank 0 on {host} writes to; --out must be one that all nodes share (NFS, Lustre, …)"
                )
            time.sleep(0.1)

    agreed(ranks, see)
    return mark


def _first_to_end(mark: Path) -> bool:
    """Whether this is the first rank that ends, by who removes the mark: it also works where a disk is full, or rank 0 is dead."""
    try:
        mark.unlink()
    except FileNotFoundError:
        return not mark.parent.is_dir()
    except OSError:
        return True  # two voices are better than none
    return True


def _is_lost(error: BaseException) -> bool:
    """Gloo and NCCL raise plain RuntimeErrors of their own words where a peer is gone."""
    import torch

    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST))


def _gathered(ranks: Ranks, value: Any) -> list[Any]:
    import torch

    told: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(told, value)
    return told


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
