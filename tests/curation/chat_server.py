"""A server of chat completions that misbehaves as it is told to: over real sockets, in a thread of the test."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Action = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class Ask:
    """A request that came. nth: of this picture and prompt, from 0. grey: of the picture's first pixel."""

    nth: int
    grey: int
    prompt: str
    body: dict[str, Any]
    headers: dict[str, str]
    pixels: np.ndarray


@dataclass
class ChatServer:
    """behave: what becomes of an ask. asks: what came. answered: (grey, prompt) of the replies that went out whole."""

    behave: Callable[[Ask], Action]
    port: int = 0
    asks: list[Ask] = field(default_factory=list)
    answered: list[tuple[int, str]] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def count(self) -> Counter[int]:
        """Asks by the picture's grey."""
        return Counter(ask.grey for ask in self.asks)

    def start(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner._take(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        data = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",", 1)[1]))))
        prompt = next((part["text"] for part in content if part["type"] == "text"), "")
        grey = int(pixels[0, 0, 0])
        with self._lock:
            nth = sum((ask.grey, ask.prompt) == (grey, prompt) for ask in self.asks)
            ask = Ask(nth, grey, prompt, body, dict(handler.headers), pixels)
            self.asks.append(ask)
        action = self.behave(ask)
        action(handler)
        if getattr(action, "whole", False):
            with self._lock:
                self.answered.append((grey, prompt))


@contextmanager
def serving(behave: Callable[[Ask], Action]) -> Iterator[ChatServer]:
    server = ChatServer(behave)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def say(text: str | None, finish: str = "stop", **message: Any) -> Action:
    """A proper reply."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    action = status(200, {"object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": 7}})
    action.whole = True  # type: ignore[attr-defined]
    return action


def status(code: int, value: Any, headers: dict[str, str] | None = None) -> Action:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, text in (headers or {}).items():
            handler.send_header(name, text)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return act


def half_a_line(handler: BaseHTTPRequestHandler) -> None:
    """A promise of 5,000 bytes, 30 of them, and the end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"con')
    hang_up(handler)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.wfile.flush()
    handler.connection.close()


def hang(until: threading.Event) -> Action:
    """No byte before `until`; then none either."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        until.wait(30)
        hang_up(handler)

    return act


def grey_pictures(folder: Path, greys: list[int], size: tuple[int, int] = (16, 12)) -> list[Path]:
    """One picture of each grey, named by it."""
    folder.mkdir(parents=True, exist_ok=True)
    for grey in greys:
        Image.new("RGB", size, (grey, grey, grey)).save(folder / f"{grey:03d}.png")
    return [folder / f"{grey:03d}.png" for grey in greys]
