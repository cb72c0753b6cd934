"""One request of OpenAI's chat completions: its body, and what a server's answer means. Nothing is tried twice here."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from curation.caption_reply import RefusalError, Reply
from curation.caption_request import Request, data_url, seed_of
from shards.errors import InfrastructureError

if TYPE_CHECKING:
    import aiohttp

    from curation.caption import What

ANSWER_BYTES = 4_000_000  # no caption is longer
CONNECT_SECONDS = 10.0
LIMITS = ("max_tokens", "max_completion_tokens")  # how a server calls the bound of a reply: newer models of OpenAI want the second
_POLICY = re.compile(r"content[ _-]?(?:management[ _-]?)?(?:policy|filter)|moderation|safety system|flagged|responsible ?ai", re.IGNORECASE)
_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|billing", re.IGNORECASE)
_PASSING = (408, 409, 425)


@dataclass(frozen=True, slots=True)
class Trouble:
    """No answer, or none that can be used.

    kind  away: the server was not reached · busy: it has too much to do · broken: it failed, or what came is no answer · unfit: it
          refuses this very request. Only the last two can be a picture's fault; `unfit` is not tried again.
    why   for people. wait: seconds the server asks for, None where it does not say.
    """

    kind: Literal["away", "busy", "broken", "unfit"]
    why: str
    wait: float | None = None


def body(what: What, name: str, request: Request, limit: str, most: int) -> bytes:
    """The JSON of a request: the picture, or the frames in their order, as data URLs, then the prompt."""
    content: list[Mapping[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(one)}} for one in request.pictures]
    if request.prompt:
        content.append({"type": "text", "text": request.prompt})
    messages: list[Mapping[str, Any]] = [{"role": "system", "content": what.system}] if what.system else []
    value: dict[str, Any] = {"model": name, "messages": [*messages, {"role": "user", "content": content}], limit: most}
    value["temperature"] = what.temperature
    if what.temperature > 0:
        value["seed"] = seed_of(request)
    return json.dumps(value).encode()


async def post(
    session: aiohttp.ClientSession, url: str, data: bytes, timeout: float, proxy: str | None, secret: str
) -> Reply | RefusalError | Trouble:
    """One try, bounded in time and bytes. secret: what no message may show.

    Raises InfrastructureError for what no other try and no other picture can mend.
    """
    import aiohttp

    limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, CONNECT_SECONDS))
    try:
        async with session.post(url, data=data, timeout=limits, allow_redirects=False, proxy=proxy) as answer:
            return meaning(answer.status, answer.headers, await _bounded(answer.content), secret)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        return Trouble("away", f"it cannot be reached ({error})")
    except TimeoutError:
        return Trouble("broken", f"no answer within {timeout:g} s")
    except (aiohttp.ClientError, ConnectionError) as error:
        return Trouble("broken", f"the connection broke ({type(error).__name__})")


def meaning(status: int, headers: Mapping[str, str], text: bytes | None, secret: str = "") -> Reply | RefusalError | Trouble:
    """What an answer says. text: None for one that is too long. Raises InfrastructureError: a refused key, no such model, no money."""
    if status == 200:
        return parse(text) if text is not None else Trouble("broken", f"an answer of more than {ANSWER_BYTES:,} bytes")
    told = _message(text or b"", secret)
    shown = f"HTTP {status}" + (f": {told}" if told else "")
    wait = _seconds(headers.get("Retry-After"))
    if status in (401, 403):
        raise InfrastructureError(f"HTTP {status}: it refuses the key; check `api_key_env`, and that the key may use this model")
    if status == 402 or (status == 429 and _QUOTA.search(told)):
        raise InfrastructureError(f"{shown}; the account has no credit left")
    if status == 404:
        raise InfrastructureError(f"{shown}; check `url` (it ends in /v1) and the model's name there (`served_as`)")
    if status in (400, 422, 451) and _POLICY.search(told):
        return RefusalError(f"refused by the server: {told}")
    if status in (400, 413, 415, 422, 451):
        return Trouble("unfit", shown)
    if status == 429:
        return Trouble("busy", shown, wait)
    if status in _PASSING or status >= 500:
        return Trouble("broken", shown, wait)
    raise InfrastructureError(f"{shown}; this is no server of chat completions: check `url`")


def parse(text: bytes) -> Reply | Trouble:
    """The reply in an answer's JSON; a Trouble for what is none."""
    try:
        value = json.loads(text)
        choice = value["choices"][0]
        message = choice["message"]
        content = message.get("content")
        finish = choice.get("finish_reason")
        used = (value.get("usage") or {}).get("completion_tokens")
        refusal = message.get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Trouble("broken", "an answer that is no chat completion")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    if content is not None and not isinstance(content, str):
        return Trouble("broken", "an answer that is no chat completion")
    tokens = used if type(used) is int and 0 <= used < 1 << 31 else None  # JSON's true is an int to isinstance
    if finish == "content_filter" or (isinstance(refusal, str) and refusal):
        return Reply(str(refusal or content or ""), "refused", tokens)
    return Reply(content or "", "length" if finish == "length" else "stop", tokens)


async def _bounded(content: aiohttp.StreamReader) -> bytes | None:
    parts = bytearray()
    async for part in content.iter_chunked(1 << 16):
        parts += part
        if len(parts) > ANSWER_BYTES:
            return None
    return bytes(parts)


def _message(text: bytes, secret: str) -> str:
    """What a server says of an error, one printable line without the key; servers put it in `error.message`, `message` or `detail`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text[:10_000].decode("utf-8", "replace")
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        value = value["error"]
    if isinstance(value, dict):
        said = [value.get(key) for key in ("code", "type", "message", "detail", "error")]
        value = ", ".join(str(part) for part in said if part)
    told = str(value)
    for form in {secret, quote(secret), quote(secret, safe="")} - {""}:
        told = told.replace(form, "***")
    return " ".join("".join(c if c.isprintable() else " " for c in told).split())[:300]


def _seconds(header: str | None) -> float | None:
    """Retry-After: seconds, or a date (RFC 9110 §10.2.3)."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
