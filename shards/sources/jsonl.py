"""JSON records from a file: one object a line (JSONL), or one array of objects, streamed. A record is bounded, a broken one is said."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from shards.errors import SourceError
from shards.sources.spec import RECORD_BYTES
from shards.sources.texts import parse_json

CHUNK = 1 << 20
SPACE = b" \t\r\n"
TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[{}]', re.DOTALL)  # a string (group 1 is empty where it is not whole yet) or a bracket
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One record as it lies in the file: its fields, or what is wrong with it and a digest of its bytes. `where` is file:line or
    file[n], `size` its bytes."""

    where: str
    digest: str = ""
    record: dict[str, Any] | None = None
    damage: str | None = None
    size: int = 0


def json_records(file: BinaryIO, path: str) -> Iterator[Line]:
    """The records of a JSONL file, or of a file that holds one JSON array."""
    start = 0
    head = file.read(len(BOM))
    if head == BOM:
        start = len(BOM)
    file.seek(start)
    while (byte := file.read(1)) and byte in SPACE:
        pass
    file.seek(start)
    yield from _array(file, path) if byte == b"[" else _lines(file, path)


def _lines(file: BinaryIO, path: str) -> Iterator[Line]:
    number = 0
    while raw := file.readline(RECORD_BYTES + 1):
        number += 1
        where = f"{path}:{number}"
        if len(raw) > RECORD_BYTES:
            digest, length = hashlib.sha256(raw), len(raw)
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(CHUNK)
                digest.update(raw)
                length += len(raw)
            yield Line(where, digest.hexdigest()[:16], damage=f"{where}: {length:,} bytes in one line, more than {RECORD_BYTES:,}")
        elif raw.strip():
            yield _line(raw.strip(), where)


def _array(file: BinaryIO, path: str) -> Iterator[Line]:
    """Elements by bracket counting over bytes (outside strings), so that each is parsed once and none beyond its bound."""
    scanner = _Elements(file)
    number = 0
    while True:
        where = f"{path}[{number}]"
        try:
            raw = scanner.next()
        except SourceError as error:
            yield Line(where, "array", damage=f"{where}: {error}; what follows it cannot be read")
            return
        if raw is None:
            return
        yield _line(raw, where)
        number += 1


def _line(raw: bytes, where: str) -> Line:
    try:
        record = parse_json(raw, where)
        if isinstance(record, dict):
            return Line(where, record=record, size=len(raw))
        damage = f"{where}: a record must be a JSON object, this is {json.dumps(record)[:40]}"
    except SourceError as error:
        damage = str(error)
    return Line(where, hashlib.sha256(raw).hexdigest()[:16], damage=damage)


class _Elements:
    """The raw elements of one JSON array."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.buffer = b""
        self.place = 0
        self.first = True

    def next(self) -> bytes | None:
        """The next element, None after the last. Raises SourceError where the array is not well formed."""
        if self.first:
            self._take(b"[")
        byte = self._peek()
        if byte == b"]":
            self.place += 1
            if self._peek() != b"":
                raise SourceError("something follows the array")
            return None
        if not self.first:
            self._take(b",")
            byte = self._peek()
        self.first = False
        if byte != b"{":
            raise SourceError(f"expected an object, found {byte.decode('latin-1')!r}" if byte else "the array ends too early")
        return self._object()

    def _object(self) -> bytes:
        start, at, depth = self.place, self.place, 0
        while True:
            match = TOKENS.search(self.buffer, at)
            if match is None or (match.group().startswith(b'"') and not match.group(1)):
                at = match.start() if match else len(self.buffer)
                if len(self.buffer) - start > RECORD_BYTES:
                    raise SourceError(f"an element is larger than {RECORD_BYTES:,} bytes")
                data = self.file.read(max(CHUNK, len(self.buffer) - at))
                if not data:
                    raise SourceError("the array ends too early")
                self.buffer = self.buffer[start:] + data
                at, start = at - start, 0
                continue
            at = match.end()
            if match.group() == b"{":
                depth += 1
            elif match.group() == b"}":
                depth -= 1
                if depth == 0:
                    self.place = at
                    return self.buffer[start:at]

    def _peek(self) -> bytes:
        while True:
            while self.place < len(self.buffer):
                byte = self.buffer[self.place : self.place + 1]
                if byte not in SPACE:
                    return byte
                self.place += 1
            self.buffer, self.place = self.file.read(CHUNK), 0
            if not self.buffer:
                return b""

    def _take(self, wanted: bytes) -> None:
        if self._peek() != wanted:
            raise SourceError(f"expected {wanted.decode()!r}")
        self.place += 1
