"""The child process of the runner: `python -m curation.child <descriptor of the progress page> <pid of the parent>`."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import traceback
from dataclasses import asdict
from typing import Any, BinaryIO

from curation.fused import Chunk, Group
from curation.program import call_from_json
from curation.view import Room
from curation.wire import Progress, read_message, write_message
from shards.errors import InfrastructureError, StepBug
from shards.media import Limits

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> int:
    """Answers requests until its input ends. What kills it is seen by the parent; nothing is caught here that is no answer."""
    requests, answers = _take_pipes()
    _die_with(parent)
    faulthandler.enable()  # a fatal signal leaves the Python stack on stderr, which the parent keeps the end of
    header, _ = read_message(requests)
    room = Room(Limits(**header["limits"]), Progress(descriptor), header["pixel_bytes"], header["derived"])
    room.mark(opening=True)
    group = Group(tuple(call_from_json(call) for call in header["program"]), room)
    room.mark()
    write_message(answers, {"type": "ready"})
    while True:
        try:
            header, tables = read_message(requests)
        except EOFError:
            return 0
        try:
            chunk = group.run(tables[0], header["stop"])
        except StepBug as error:
            write_message(answers, {"type": "bug", "step": error.step, "uids": error.uids, "what": error.what})
        except (InfrastructureError, MemoryError) as error:
            write_message(answers, {"type": "infrastructure", "message": str(error) or type(error).__name__})
        except Exception as error:
            what = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            write_message(answers, {"type": "bug", "step": group.running, "uids": tables[0]["uid"].to_pylist(), "what": what})
        else:
            room.mark()
            write_message(
                answers,
                _header(chunk),
                [chunk.contents, chunk.onward, *chunk.rows.values(), *chunk.wide.values(), *chunk.children.values()],
            )


def _header(chunk: Chunk) -> dict[str, Any]:
    costs = {digest: asdict(cost) for digest, cost in chunk.costs.items()}
    failure = None if chunk.failure is None else [str(chunk.failure), chunk.failure.retryable]
    tables = {"rows": list(chunk.rows), "wide": list(chunk.wide), "children": list(chunk.children)}
    return {"type": "done", **tables, "costs": costs, "failure": failure}


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes for ourselves; descriptors 0 and 1 become /dev/null and stderr, so that a native print cannot break a message."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, answers


def _die_with(parent: int) -> None:
    """Linux kills this process with the thread that started it, even while it hangs in native code; elsewhere the end of input does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
