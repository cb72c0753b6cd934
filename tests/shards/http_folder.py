"""A folder behind HTTP, as an object store or a plain server shows it: directory listings, Last-Modified, range requests or not."""

from __future__ import annotations

import http.server
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet, or each answer waits for an acknowledgement
    disable_nagle_algorithm = True
    ranges = True
    broken = ""  # part of a path that is answered with 500

    def log_message(self, format: str, *args: Any) -> None:
        return

    def send_head(self) -> Any:
        if self.broken and self.broken in self.path:
            self.send_error(500)
            return None
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = self.translate_path(self.path)
        if not self.ranges or asked is None or not os.path.isfile(path):
            return super().send_head()
        data = Path(path).read_bytes()
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        body: BinaryIO = io.BytesIO(data[first : last + 1])
        return body


@contextmanager
def served(folder: Path, ranges: bool = True, broken: str = "") -> Iterator[str]:
    """The URL of `folder` while it is served."""
    kind = type("Served", (Handler,), {"ranges": ranges, "broken": broken})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
