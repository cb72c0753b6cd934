"""Captions from a server that speaks OpenAI's chat completions: many requests at once, patient with the server, strict about the sample.

A request that gets no usable answer is tried again, `retries` times, after 1, 2, 4 … s (`backoff`) or when the server says. Whose fault it
is in the end is found out by a control question about a grey picture: if the server answers that one, and fails the picture once more, the
picture gets an error row; if not, the run ends, and what is done is kept. A server that cannot be reached or that says it has too much to
do is never a picture's fault.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from curation import caption_http
from curation.caption_http import Trouble
from curation.caption_pace import Pace, open_pace
from curation.caption_reply import Reply, ReplyError
from curation.caption_request import Request
from shards.errors import InfrastructureError, SampleError

if TYPE_CHECKING:
    import aiohttp

    from curation.caption import Backend, CaptionHow, What

log = logging.getLogger("fovea")
Task = asyncio.Task[Reply | SampleError]

CONTROL = np.full((96, 128, 3), 127, np.uint8)
CONTROL_TOKENS = 16
LONGEST_WAIT = 60.0  # seconds between two tries; a server that asks for more gets up to ASKED_WAIT
ASKED_WAIT = 600.0
BEAT_SECONDS = 1.0


@dataclass(slots=True)
class Server:
    """A server as one actor knows it.

    limit     the name it has for the bound of a reply.
    answered  how many of our questions it has answered. quiet_until: monotonic time before which it asked not to be asked.
    """

    what: What
    how: CaptionHow
    url: str
    name: str
    key: str
    pace: Pace
    proxy: str | None
    limit: str = caption_http.LIMITS[0]
    answered: int = 0
    quiet_until: float = 0.0
    trying: asyncio.Lock = field(default_factory=asyncio.Lock)

    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})


def open_backend(what: What, how: CaptionHow) -> Backend:
    """Asks nothing yet. Raises InfrastructureError where the key is not in the environment."""
    key = os.environ.get(how.api_key_env, "").strip() if how.api_key_env else ""
    if how.api_key_env and not key:
        raise InfrastructureError(
            f"the environment variable {how.api_key_env} (api_key_env) is empty or not set where captions are made; set it"
        )
    if not key.isprintable():
        raise InfrastructureError(
            f"the environment variable {how.api_key_env} (api_key_env) holds a line break or control character: no key does; set it anew"
        )
    url = endpoint(how.url)
    server = Server(what, how, url, how.served_as or what.model, key, open_pace(url, how.requests_per_minute), _proxy(url))
    return lambda requests, alive: answers(server, requests, alive)


def endpoint(url: str) -> str:
    """Where questions go; a query (?api-version=…) stays at the end."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return parts._replace(path=f"{path}/chat/completions").geturl()


def answers(server: Server, requests: Sequence[Request], alive: Callable[[], None]) -> Iterator[tuple[int, Reply | SampleError]]:
    """(place, answer) as they come. Raises InfrastructureError once the server is gone; what came before was yielded before."""
    with asyncio.Runner() as runner:
        server.trying = asyncio.Lock()
        session = runner.run(_session(server))
        pending: set[Task] = set()
        try:
            gate = _Gate(asyncio.Semaphore(server.how.concurrency))
            places = {runner.get_loop().create_task(_gated(gate, server, session, request)): i for i, request in enumerate(requests)}
            pending = set(places)
            while pending:
                done, pending = runner.run(_some(pending))
                alive()
                failed = [task for task in done if task.cancelled() or task.exception() is not None]
                yield from ((places[task], task.result()) for task in done if task not in failed)
                for task in sorted(failed, key=asyncio.Task.cancelled):
                    task.result()
        finally:
            runner.run(_end(session, pending))


def control(what: What) -> Request:
    """A question that no sample is to blame for: with as many pictures as the step shows, for a server may take only one."""
    pixels = np.stack([CONTROL] * what.frames) if what.frames > 1 else CONTROL
    return Request("control", "0" * 64, "Describe this picture.", pixels)


async def ask(server: Server, session: aiohttp.ClientSession, request: Request) -> Reply | SampleError:
    """The answer to one question, whatever it takes within the limits. Raises InfrastructureError."""
    found = await _tried(server, session, request)
    if not isinstance(found, Trouble):
        return found
    if found.kind in ("broken", "unfit") and await _sound(server, session):
        found = await once(server, session, request, server.what.max_new_tokens)
        if not isinstance(found, Trouble):
            return found
        if found.kind in ("broken", "unfit"):
            return ReplyError(f"failed: the server answers others, but not for this picture: {found.why}")
    raise _gone(server, found)


async def _tried(server: Server, session: aiohttp.ClientSession, request: Request) -> Reply | SampleError | Trouble:
    attempt, seen = 0, server.answered
    while True:
        found = await once(server, session, request, server.what.max_new_tokens)
        if not isinstance(found, Trouble) or found.kind == "unfit":
            return found
        if found.kind == "busy" and server.answered > seen:
            attempt, seen = 0, server.answered  # others get their answers: our turn will come
        if attempt >= server.how.retries:
            return found
        wait = min(server.how.backoff * 2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.5)  # noqa: S311 no secret hangs on it
        if found.wait is not None:
            wait = max(wait, min(found.wait, ASKED_WAIT))
        if found.kind == "busy":
            server.quiet_until = max(server.quiet_until, time.monotonic() + wait)
        log.info("%s: %s; another try in %.1f s", server.url, found.why, wait)
        await asyncio.sleep(wait)
        attempt += 1


async def once(server: Server, session: aiohttp.ClientSession, request: Request, most: int) -> Reply | SampleError | Trouble:
    """One try, when the pace allows it."""
    while (wait := server.quiet_until - time.monotonic()) > 0:
        await asyncio.sleep(wait)
    if wait := server.pace.wait():
        await asyncio.sleep(wait)
    data = await asyncio.to_thread(caption_http.body, server.what, server.name, request, server.limit, most)
    try:
        found = await caption_http.post(session, server.url, data, server.how.timeout, server.proxy, server.key)
    except InfrastructureError as error:
        raise InfrastructureError(f"{server.url}: {error}. What is done is kept: mend it, then run the same command again") from error
    if isinstance(found, Trouble) and found.kind == "unfit" and (other := caption_http.LIMITS[1]) in found.why and server.limit != other:
        server.limit = other
        return await once(server, session, request, most)
    if not isinstance(found, Trouble):
        server.answered += 1
    return found


async def _sound(server: Server, session: aiohttp.ClientSession) -> bool:
    """Whether the server answers a question that has nothing odd about it."""
    async with server.trying:
        return not isinstance(await once(server, session, control(server.what), CONTROL_TOKENS), Trouble)


def _gone(server: Server, trouble: Trouble) -> InfrastructureError:
    tries = "" if trouble.kind == "unfit" else f" after {server.how.retries + 1} tries"
    mend = {
        "away": "start the server again, or mend `url`",
        "busy": "lower `concurrency`, or set `requests_per_minute` to what the server allows",
        "broken": "look into the server's log",
        "unfit": "it refuses a plain picture too: check the step's parameters against the server's model",
    }[trouble.kind]
    return InfrastructureError(
        f"{server.url}: no answer{tries}: {trouble.why}. What is done is kept, the rest is pending: {mend}, then run the same command again"
    )


async def _session(server: Server) -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession(headers=server.headers(), connector=aiohttp.TCPConnector(limit=server.how.concurrency))


@dataclass(slots=True)
class _Gate:
    """Lets so many through at once, and nobody more once it is shut."""

    places: asyncio.Semaphore
    shut: bool = False


async def _gated(gate: _Gate, server: Server, session: aiohttp.ClientSession, request: Request) -> Reply | SampleError:
    async with gate.places:
        if gate.shut:
            raise asyncio.CancelledError
        try:
            return await ask(server, session, request)
        except InfrastructureError:
            gate.shut = True
            raise


async def _some(pending: set[Task]) -> tuple[set[Task], set[Task]]:
    return await asyncio.wait(pending, timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)


async def _end(session: aiohttp.ClientSession, pending: set[Task]) -> None:
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    await session.close()


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this URL (HTTPS_PROXY, NO_PROXY), if any."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)
