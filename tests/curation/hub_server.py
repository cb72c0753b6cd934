"""A model hub in miniature, on this machine: the three questions that huggingface_hub asks, answered from memory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """repos  id → branch → (commit, files by name).   asked  the paths that were asked for, with the method."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, tuple[str, dict[str, bytes]]]] = {}
        self.asked: list[str] = []
        self.url = ""

    def put(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit at the head of a branch; its hash."""
        commit = hashlib.sha1(json.dumps([repo, branch, sorted((k, v.hex()) for k, v in files.items())]).encode()).hexdigest()
        self.repos.setdefault(repo, {})[branch] = self.repos[repo][commit] = (commit, files)
        return commit

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        return self.repos.get(repo, {}).get(revision)


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, format: str, *args: object) -> None:
            hub.asked.append(f"{self.command} {self.path}")

        def _answer(self, body: bool) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                repo, rest = "/".join(parts[2:4]), parts[4:]
                found = hub.at(repo, rest[1] if len(rest) > 1 else "main")
                if found is None:
                    self._refuse(repo)
                elif rest[:1] == ["tree"]:
                    self._send(json.dumps([_entry(name, data) for name, data in found[1].items()]).encode(), body)
                else:
                    siblings = [{"rfilename": name, "size": len(data)} for name, data in found[1].items()]
                    self._send(json.dumps({"id": repo, "sha": found[0], "siblings": siblings}).encode(), body)
                return
            repo, revision, name = "/".join(parts[:2]), (parts[3:4] or [""])[0], "/".join(parts[4:])
            found = hub.at(repo, revision)
            if found is None or name not in found[1]:
                self._refuse(repo)
                return
            data = found[1][name]
            self._send(data, body, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": found[0]})

        def _refuse(self, repo: str) -> None:
            code = "RevisionNotFound" if repo in hub.repos else "RepoNotFound"
            self._send(b"{}", True, {"X-Error-Code": code}, status=404)

        def _send(self, data: bytes, body: bool, headers: dict[str, str] | None = None, status: int = 200) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}


def _oid(data: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
