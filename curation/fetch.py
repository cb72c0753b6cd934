"""One file from a URL, whole or not at all, under a bound, checked against its sha256 where one is known."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from curation.weights import file_sha256
from shards.errors import InfrastructureError

FILE_BYTES = 20_000_000_000  # no weights in one file are larger
SILENCE_SECONDS = 60.0  # without a byte
TRIES = 3
_PIECE = 1 << 20


def fetched(url: str, sha256: str, folder: Path, bound: int = FILE_BYTES) -> Path:
    """The file of a URL in `folder`, downloaded at the first call. sha256: 64 hex digits it must have, "" = any.

    Raises InfrastructureError: no network, larger than `bound` bytes, other content than the sha256 says, no room.
    """
    place = place_of(url, folder)
    if not place.is_file():
        for attempt in range(1, TRIES + 1):
            try:
                _download(url, place, bound)
                break
            except OSError as error:  # urllib's errors are OSErrors, and so is a full disk
                if attempt == TRIES or not _passing(error):
                    raise InfrastructureError(
                        f"{_shown(url)} could not be downloaded to {place}: {error}; download it on a machine with a network "
                        "and give the path of the file"
                    ) from error
                time.sleep(2.0**attempt)
    if sha256 and (found := file_sha256(place)) != sha256.lower():
        place.unlink()
        raise InfrastructureError(f"{_shown(url)} is another file than the recipe says: its sha256 is {found}, expected is {sha256}")
    return place


def place_of(url: str, folder: Path) -> Path:
    """Where in `folder` a URL's file is kept."""
    return folder / hashlib.sha256(url.encode()).hexdigest()[:16] / (Path(urlsplit(url).path).name or "file")


def file_size(url: str) -> int | None:
    """Bytes of a URL's file as its server says; None if it does not, or cannot be reached."""
    request = urllib.request.Request(_checked(url), method="HEAD")  # noqa: S310 - http and https only, see _checked
    try:
        with urllib.request.urlopen(request, timeout=10.0) as answer:  # noqa: S310
            length = answer.headers.get("Content-Length", "")
    except OSError:
        return None
    return int(length) if length.isdecimal() else None


def _download(url: str, place: Path, bound: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as made:
        scratch = Path(made.name)
        try:
            with urllib.request.urlopen(_checked(url), timeout=SILENCE_SECONDS) as answer:  # noqa: S310
                promised = answer.headers.get("Content-Length", "")
                size = 0
                while piece := answer.read(_PIECE):
                    size += len(piece)
                    if size > bound:
                        raise InfrastructureError(f"{_shown(url)} is larger than {bound:,} bytes; give the path of the file")
                    made.write(piece)
            if promised.isdecimal() and int(promised) != size:
                raise ConnectionError(f"the connection ended after {size:,} of {promised} bytes")
            made.flush()
            os.fsync(made.fileno())
            scratch.replace(place)
        finally:
            scratch.unlink(missing_ok=True)


def _passing(error: OSError) -> bool:
    """Whether another try may help: not for a file that the server refuses, nor for a full disk."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 429) or error.code >= 500
    return isinstance(error, urllib.error.URLError | TimeoutError | ConnectionError)


def _checked(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https"):
        raise InfrastructureError(f"{_shown(url)}: only http and https URLs are downloaded")
    return url


def _shown(url: str) -> str:
    """Without what may be a secret in its query."""
    return url.partition("?")[0]
