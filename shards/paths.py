"""Names of files as text: local paths and fsspec URLs alike, also where a name on disk is no valid Unicode."""

from __future__ import annotations

import hashlib
import os
from urllib.parse import quote, unquote_to_bytes, urlsplit


def is_url(path: str) -> bool:
    """An fsspec URL of another place than this machine's disk."""
    return "://" in path and not path.startswith(("file://", "local://"))


def is_unicode(text: str) -> bool:
    """False where `text` holds lone surrogates: such text cannot be written as UTF-8, to Arrow or to JSON."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def to_text(path: str) -> str:
    """A local path as valid Unicode: unchanged where it is, else a percent-encoded file:// URL. `to_local` is the inverse."""
    return path if is_unicode(path) else "file://" + quote(os.fsencode(path))


def to_local(path: str) -> str:
    """The path that the operating system knows, for a plain path or a file:// URL (percent-encoded, RFC 8089)."""
    if path.startswith(("file://", "local://")):
        return os.fsdecode(unquote_to_bytes(path.split("://", 1)[1]))
    return path


def absolute(path: str) -> str:
    """Absolute local path (symbolic links kept), or the URL without a slash at its end."""
    return path.rstrip("/") if is_url(path) else os.path.abspath(to_local(path))


def printable(name: str) -> str:
    """A name as valid Unicode, one-to-one: undecodable bytes are written as escapes, a hash of the raw name stands before the extension."""
    if is_unicode(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    stem, extension = os.path.splitext(name.encode("utf-8", "backslashreplace").decode("utf-8"))
    return f"{stem}~{digest}{extension}"


def has_credentials(url: str) -> bool:
    """True for a URL with a user or password in it: secrets are passed by the name of an environment variable only."""
    try:
        return "://" in url and "@" in urlsplit(url).netloc
    except ValueError:
        return False
