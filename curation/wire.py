"""How the runner and its child process speak: framed messages over pipes, and a page of shared memory that tells what is running.

A message is a JSON header and any number of Arrow IPC streams, each length-prefixed. Nothing is ever unpickled.
"""

from __future__ import annotations

import itertools
import json
import mmap
import struct
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import pyarrow as pa

_COUNTS = struct.Struct("<QI")  # bytes of the JSON header, number of tables
_SIZE = struct.Struct("<Q")


def pack_table(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def write_message(file: IO[bytes], header: dict[str, Any], tables: Sequence[pa.Table] = ()) -> None:
    """Raises BrokenPipeError when the other side is gone."""
    text = json.dumps(header, default=_jsonable).encode()
    payloads = [pack_table(table) for table in tables]
    file.write(_COUNTS.pack(len(text), len(payloads)) + b"".join(_SIZE.pack(len(payload)) for payload in payloads) + text)
    for payload in payloads:
        file.write(payload)
    file.flush()


def read_message(file: IO[bytes]) -> tuple[dict[str, Any], list[pa.Table]]:
    """Blocks for the next message. Raises EOFError at the end of the stream."""
    length, count = _COUNTS.unpack(_exactly(file, _COUNTS.size))
    sizes = [_SIZE.unpack(_exactly(file, _SIZE.size))[0] for _ in range(count)]
    header = json.loads(_exactly(file, length))
    return header, [_table(_exactly(file, size)) for size in sizes]


class MessageParser:
    """The same for a reader that must not block: `feed` bytes as they come, `take` a message when one is whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def take(self) -> tuple[dict[str, Any], list[pa.Table]] | None:
        if len(self._buffer) < _COUNTS.size:
            return None
        length, count = _COUNTS.unpack_from(self._buffer)
        start = _COUNTS.size + count * _SIZE.size
        if len(self._buffer) < start:
            return None
        sizes = [_SIZE.unpack_from(self._buffer, _COUNTS.size + i * _SIZE.size)[0] for i in range(count)]
        if len(self._buffer) < start + length + sum(sizes):
            return None
        data, self._buffer = bytes(self._buffer), bytearray()  # strictly one answer for one request: nothing follows it
        ends = [start + length]
        for size in sizes:
            ends.append(ends[-1] + size)
        return json.loads(data[start : ends[0]]), [_table(data[a:b]) for a, b in itertools.pairwise(ends)]


class Moment(NamedTuple):
    """What a child is at.

    call      number of the running piece of work (a call of a step function, an identification, a rule).
    step      place of the running step in the program; -1 between steps.
    sample    row (in the job) of the sample whose medium is or was last in hand; -1 for none yet.
    decoding  a medium of that sample is being read or decoded right now.
    opening   models are being loaded: no sample can be to blame.
    inputs    inputs of the running call.
    opened    media opened since the child started.
    serial    grows with every change: the same serial twice means no progress.
    """

    call: int = 0
    step: int = -1
    sample: int = -1
    decoding: bool = False
    opening: bool = False
    inputs: int = 1
    opened: int = 0
    serial: int = 0


class Progress:
    """A page of memory shared with the child. It outlives the child, so a dead child still tells where it died; writing costs 1 µs."""

    _LAYOUT = struct.Struct("<Qii??iQQ")

    def __init__(self, descriptor: int) -> None:
        """descriptor: of an open file of at least one page."""
        self._map = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._serial = 0

    def write(self, moment: Moment) -> None:
        """Everything but `serial`, which is counted here."""
        self._serial += 1
        self._LAYOUT.pack_into(self._map, 0, *moment[:-1], self._serial)

    def read(self) -> Moment:
        return Moment(*self._LAYOUT.unpack_from(self._map, 0))

    def close(self) -> None:
        self._map.close()


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _table(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(data)).read_all()


def _jsonable(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"not JSON: {type(value).__name__}")
