"""Reading a tar by its headers alone: ustar, GNU long names and sizes, pax (POSIX.1-2017 pax, GNU tar manual "Basic Tar Format").

No body is read except those of extended headers. Everything a header says is checked against the file; nothing in it is used as a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from shards.errors import SourceError

BLOCK = 512
EXTENDED_BYTES = 1 << 20  # of a long name or a pax header; more is damage
FILE_TYPES = b"0\x007"
OTHER_TYPES = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a pipe"}


@dataclass(frozen=True, slots=True)
class Member:
    """`name` as bytes decoded with surrogateescape. `what` says what it is when it is no plain file ("a folder", "a symbolic link", …)."""

    name: str
    offset: int
    size: int
    what: str | None = None


@dataclass(slots=True)
class _Extended:
    """What extended headers say about the next member."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


class TarDamage(SourceError):
    """The tar cannot be read any further. `after_last`: only its end marker is missing, every member is whole."""

    def __init__(self, message: str, after_last: bool = False) -> None:
        super().__init__(message)
        self.after_last = after_last


def tar_members(file: BinaryIO, size: int) -> Iterator[Member]:
    """The members of a tar of `size` bytes, each with its whole body inside the file. Raises TarDamage at the first place that is not as
    the format says, the missing end marker included: a tar that was cut is never taken for a shorter one."""
    place = 0
    common, extended = _Extended(), _Extended()
    while True:
        header = _read(file, place, BLOCK, size)
        if not header.strip(b"\0"):
            _only_zeros(file, place, size)
            between = extended == _Extended()
            if len(header) == BLOCK and between:
                return
            raise TarDamage(f"cut at byte {size}: the end marker is missing", after_last=between and len(header) > 0)
        if len(header) < BLOCK:
            raise TarDamage(f"cut at byte {size}: the header at byte {place} is not whole")
        kind, body = header[156:157], _number(header[124:136], place)
        _check_header(header, place)
        pax_size = extended.size if extended.size is not None else common.size
        if pax_size is not None and kind not in b"xgLK":
            body = pax_size
        if kind in b"123456":
            body = 0  # links, devices and folders have no body, whatever size they name
        start = place + BLOCK
        if kind == b"S":
            start = _after_sparse_map(file, header, start, size)
        if start + body > size:
            raise TarDamage(f"cut at byte {size}: the member at byte {place} needs {start + body:,} bytes")
        place = start + (body + BLOCK - 1) // BLOCK * BLOCK
        if kind in b"xgLK":
            if body > EXTENDED_BYTES:
                raise TarDamage(f"the extended header at byte {start - BLOCK} has {body:,} bytes")
            data = _read(file, start, body, size)
            if kind == b"L":
                extended.name = data.split(b"\0", 1)[0]
            elif kind in b"xg":
                _read_pax(data, common if kind == b"g" else extended, start)
            continue
        name = extended.name or common.name or _short_name(header)
        what = None if kind in FILE_TYPES else OTHER_TYPES.get(kind, f"of type {kind!r}")
        if kind == b"S" or extended.sparse:
            what = "a sparse file"
        if what is None and name.endswith(b"/"):
            what = "a folder"
        yield Member(name.decode("utf-8", "surrogateescape"), start, body, what)
        extended = _Extended()


def _read(file: BinaryIO, place: int, length: int, size: int) -> bytes:
    length = max(0, min(length, size - place))
    file.seek(place)
    data = file.read(length)
    if len(data) < length:
        raise TarDamage(f"the file ends at byte {place + len(data)}, it had {size} bytes when it was listed")
    return data


def _check_header(header: bytes, place: int) -> None:
    stored = _number(header[148:156], place)
    counted = sum(header) - sum(header[148:156]) + 8 * 32
    signed = counted - 256 * sum(b > 127 for b in header[:148] + header[156:])  # some old writers summed signed bytes
    if stored not in (counted, signed):
        raise TarDamage(f"no tar header at byte {place} (its checksum is {stored}, the bytes give {counted})")


def _number(field: bytes, place: int) -> int:
    if field[0] in (0x80, 0xFF):  # GNU: base 256, big-endian, signed
        value = int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    else:
        digits = field.split(b"\0", 1)[0].strip(b" ")
        if digits.translate(None, b"01234567"):
            raise TarDamage(f"no tar header at byte {place} (the number {field!r} is not octal)")
        value = int(digits or b"0", 8)
    if not 0 <= value < 1 << 62:
        raise TarDamage(f"no tar header at byte {place} (it says {value})")
    return value


def _short_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _read_pax(data: bytes, into: _Extended, place: int) -> None:
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or len(length) > 8 or not len(length) + 3 < int(length) <= len(data):
            raise TarDamage(f"the pax header at byte {place} is damaged")
        record, data = data[len(length) + 1 : int(length)], data[int(length) :]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n":
            raise TarDamage(f"the pax header at byte {place} is damaged")
        if key == b"path":
            into.name = value.split(b"\0", 1)[0]
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise TarDamage(f"the pax header at byte {place} says a size of {value[:20]!r}")
            into.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            into.sparse = True


def _after_sparse_map(file: BinaryIO, header: bytes, place: int, size: int) -> int:
    more = header[482]
    while more:
        block = _read(file, place, BLOCK, size)
        if len(block) < BLOCK:
            raise TarDamage(f"cut at byte {size}: the map of a sparse file is not whole")
        more = block[504]
        place += BLOCK
    return place


def _only_zeros(file: BinaryIO, place: int, size: int) -> None:
    while place < size:
        data = _read(file, place, 1 << 20, size)
        if data.strip(b"\0"):
            raise TarDamage(f"something follows the end marker at byte {place}")
        place += len(data)
