"""The tar's byte layout: headers of which every byte is fixed by name and length. docs/shards.md is the contract.

Source: POSIX.1-2017, pax, "ustar Interchange Format"; sizes from 8 GiB on in base 256, as GNU tar writes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from shards.errors import ShardError

BLOCK = 512
TRAILER = bytes(2 * BLOCK)

_NAME = 100
_SIZE = slice(124, 136)
_OCTAL_LIMIT = 8**11
_BEFORE_SIZE = b"0000644\0" + b"0000000\0" + b"0000000\0"
_MTIME = b"00000000000\0"
_AFTER_CHECKSUM = b"0" + bytes(100) + b"ustar\0" + b"00" + bytes(64) + b"0000000\0" + b"0000000\0" + bytes(155) + bytes(12)
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(_MTIME) + 8 * ord(" ") + sum(_AFTER_CHECKSUM)

_COMMON = {
    "jpeg": "jpg",
    "jpe": "jpg",
    "jfif": "jpg",
    "tiff": "tif",
    "matroska": "mkv",
    "mpegts": "ts",
    "mpegvideo": "mpg",
    "jpeg2000": "jp2",
}
_EXTENSION = re.compile(r"[a-z0-9]{1,5}")
_UID = re.compile(r"[0-9a-f]{32}")
_MEMBER = re.compile(r"([0-9a-f]{32})(?:\.[0-9]{2,})?\.[a-z0-9]{1,5}")


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member of `size` bytes. Raises ValueError for a name that ustar cannot hold."""
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= _NAME or size < 0:
        raise ValueError(f"no ustar member: name of {len(encoded)} bytes (1 to {_NAME}), size {size}")
    digits = b"%011o\0" % size if size < _OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big")
    checksum = _FIXED_SUM + sum(encoded) + sum(digits)
    return b"".join((encoded.ljust(_NAME, b"\0"), _BEFORE_SIZE, digits, _MTIME, b"%06o\0 " % checksum, _AFTER_CHECKSUM))


def parse_header(block: bytes) -> tuple[str, int] | None:
    """(name, size) if `block` is a header exactly as `tar_header` writes it, else None. Never raises."""
    raw, digits = block[:_NAME].rstrip(b"\0"), block[_SIZE]
    try:
        name = raw.decode("ascii")
        size = int.from_bytes(digits[1:], "big") if digits[:1] == b"\x80" else int(digits[:11], 8)
        return (name, size) if tar_header(name, size) == block else None
    except ValueError:
        return None


def padding(size: int) -> int:
    """Zero bytes between the end of a member of `size` bytes and the next header."""
    return -size % BLOCK


def is_uid(value: str) -> bool:
    return _UID.fullmatch(value) is not None


def uid_in(member: str) -> str | None:
    """The uid in a member's name; None for a name that this package does not write."""
    match = _MEMBER.fullmatch(member)
    return match.group(1) if match else None


def member_extension(name: str, found: str = "") -> str:
    """Extension of a medium in the tar: from the format found in its bytes (Pillow's or FFmpeg's word for it), else from its name."""
    tail = name.rsplit("/", 1)[-1]
    claimed = tail.rsplit(".", 1)[-1].lower() if "." in tail else ""
    formats = found.lower().split(",") if found else [claimed]
    if "mp4" in formats:
        fallback = "mp4"
    else:
        fallback = formats[-1] if "webm" in formats and claimed == "webm" else formats[0]
    chosen = claimed if claimed in formats else fallback
    chosen = _COMMON.get(chosen, chosen)
    return chosen if _EXTENSION.fullmatch(chosen) and chosen != "json" else "bin"


def member_names(uid: str, extensions: Sequence[str]) -> list[str]:
    """Names of a sample's members in the tar's order: its media, then its JSON. Raises ShardError for what is no uid."""
    if not is_uid(uid):
        raise ShardError(f"{uid!r} is no uid: it must be 32 hexadecimal digits (shards.sample.uid_of)")
    if len(extensions) == 1:
        return [f"{uid}.{extensions[0]}", f"{uid}.json"]
    width = max(2, len(str(len(extensions) - 1)))
    return [f"{uid}.{place:0{width}d}.{extension}" for place, extension in enumerate(extensions)] + [f"{uid}.json"]
