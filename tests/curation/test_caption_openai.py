"""The backend `openai` against a server that misbehaves: every fault is met with patience, an error row or the end of the run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation import caption_http, caption_openai
from curation.caption import STEP, CaptionHow, What
from curation.caption_pace import Pace
from curation.caption_reply import RefusalError, ReplyError
from curation.view import MediaView
from shards.errors import InfrastructureError
from tests.curation.chat_server import Action, Ask, ChatServer, grey_pictures, half_a_line, hang, hang_up, say, serving, status
from tests.curation.views import media_view

WHAT = What(model="some-model", prompt="What is it?", max_new_tokens=50)
KEY = "a-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def views(tmp_path: Path) -> list[MediaView]:
    return [media_view(path) for path in grey_pictures(tmp_path / "pics", [10, 20, 30, 40])]


def how(server: ChatServer, **more: Any) -> CaptionHow:
    return CaptionHow(**{"backend": "openai", "url": server.url, "backoff": 0.01, "retries": 2, "cache": "off", **more})


def asked(server: ChatServer, views: Sequence[MediaView], what: What = WHAT, **more: Any) -> Sequence[Any]:
    assert STEP.open is not None
    return STEP.open(what, how(server, **more))(views)


def texts(results: Sequence[Any]) -> list[str]:
    return [result["text"] if isinstance(result, dict) else f"{type(result).__name__}: {result}" for result in results]


def test_a_question_holds_the_picture_the_prompt_and_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_KEY", KEY)
    [path] = grey_pictures(tmp_path / "pics", [77], (60, 40))
    view = media_view(path)
    what = replace(WHAT, system="Be brief.", max_pixels=1024)
    with serving(lambda _: say(" a dog \r\n on grass ")) as server:
        [row] = asked(server, [view], what, served_as="other", api_key_env="CAPTION_KEY")
        asked(server, [view], replace(what, temperature=0.7))
    assert row == {"text": "a dog \n on grass", "tokens": 7}
    first, drawn = server.asks
    assert first.headers["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in drawn.headers
    assert first.pixels.shape == (26, 39, 3)  # 60 × 40 shrunk to at most 1,024 pixels
    assert np.unique(first.pixels).tolist() == [77]
    system, user = first.body.pop("messages")
    assert (system["content"], [part["type"] for part in user["content"]]) == ("Be brief.", ["image_url", "text"])
    assert first.body == {"model": "other", "max_tokens": 50, "temperature": 0.0}
    assert (drawn.body["temperature"], drawn.body["model"]) == (0.7, "some-model")
    assert drawn.body["seed"] == asked_seed(view)


def asked_seed(view: MediaView) -> int:
    from curation.caption_request import Request, seed_of

    return seed_of(Request("u", view.sha256(), WHAT.prompt, np.zeros((1, 1, 3), np.uint8)))


PASSING: dict[str, Action] = {
    "429": status(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
    "500": status(500, b"<html>oops</html>"),
    "503 until a date": status(503, b"", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "garbage": status(200, b"\xff\xfe not JSON"),
    "other JSON": status(200, {"choices": []}),
    "deep JSON": status(200, b"[" * 100_000),
    "no end of it": status(200, b"x" * (caption_http.ANSWER_BYTES + 1)),
    "half a line": half_a_line,
    "hangs up": hang_up,
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(fault: str, views: list[MediaView]) -> None:
    with serving(lambda ask: PASSING[fault] if ask.nth < 2 else say(f"grey {ask.grey}")) as server:
        assert texts(asked(server, views[:2])) == ["grey 10", "grey 20"]
    assert server.count() == {10: 3, 20: 3}


@pytest.mark.parametrize("fault", sorted(set(PASSING) - {"429"}))
def test_one_picture_that_never_gets_an_answer_costs_one_row(fault: str, views: list[MediaView]) -> None:
    with serving(lambda ask: PASSING[fault] if ask.grey == 20 else say(f"grey {ask.grey}")) as server:
        found = asked(server, views)
    assert [texts(found)[i] for i in (0, 2, 3)] == ["grey 10", "grey 30", "grey 40"]
    assert isinstance(found[1], ReplyError)
    assert str(found[1]).startswith("failed: the server answers others")
    assert server.count() == {10: 1, 20: 4, 30: 1, 40: 1, 127: 1}  # three tries, the control question, and one more


def test_a_server_that_hangs_on_one_picture_costs_one_row_and_the_process_says_that_it_lives(
    views: list[MediaView], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_openai, "BEAT_SECONDS", 0.05)
    calls = [0]
    monkeypatch.setattr(MediaView, "alive", lambda _: calls.__setitem__(0, calls[0] + 1))
    over = threading.Event()
    with serving(lambda ask: hang(over) if ask.grey == 30 else say(f"grey {ask.grey}")) as server:
        found = asked(server, views, timeout=0.4, retries=0)
        over.set()
    assert texts(found)[:2] == ["grey 10", "grey 20"]
    assert "no answer within 0.4 s" in str(found[2])
    assert calls[0] >= 8


def test_too_many_requests_are_nobodys_fault(views: list[MediaView]) -> None:
    """However often: as long as others are answered, a turn comes."""
    with serving(lambda ask: PASSING["429"] if ask.grey == 20 and len(server.answered) < 3 else say(f"grey {ask.grey}")) as server:
        assert texts(asked(server, views, concurrency=2)) == ["grey 10", "grey 20", "grey 30", "grey 40"]
    with serving(lambda _: PASSING["429"]) as server, pytest.raises(InfrastructureError, match="requests_per_minute"):
        asked(server, views)


POLICY = {"error": {"code": "content_policy_violation", "message": "Your request was rejected by our safety system."}}


def test_refusals_of_a_server_are_errors_of_the_sample(views: list[MediaView]) -> None:
    actions = {10: status(400, POLICY), 20: say(None, "content_filter"), 30: say(None, refusal="I won't."), 40: say("Sorry, I can't help.")}
    with serving(lambda ask: actions[ask.grey]) as server:
        found = asked(server, views)
    assert all(isinstance(error, RefusalError) for error in found), found
    assert len(server.asks) == 4


def test_a_request_that_is_refused_is_the_pictures_fault_only_if_a_plain_one_is_not(views: list[MediaView]) -> None:
    bad = status(400, {"error": {"message": "image has too few pixels"}})
    with serving(lambda ask: bad if ask.grey == 40 else say("fine")) as server:
        found = asked(server, views)
    assert texts(found)[:3] == ["fine"] * 3
    assert "too few pixels" in str(found[3])
    with serving(lambda _: status(400, {"error": {"message": "temperature is not supported"}})) as server:
        with pytest.raises(InfrastructureError, match="temperature is not supported"):
            asked(server, views)
        assert len(server.asks) <= 8


def test_newer_models_name_the_bound_of_a_reply_otherwise(views: list[MediaView]) -> None:
    wrong = status(400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}})
    with serving(lambda ask: wrong if "max_tokens" in ask.body else say("fine")) as server:
        assert texts(asked(server, views)) == ["fine"] * 4
    assert server.asks[-1].body["max_completion_tokens"] == 50


@pytest.mark.parametrize(("code", "mend"), [(401, "api_key_env"), (403, "api_key_env"), (404, "served_as"), (402, "credit"), (307, "url")])
def test_what_no_retry_mends_ends_the_run_at_once_and_shows_no_key(
    code: int, mend: str, views: list[MediaView], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_KEY", KEY)
    with serving(lambda _: status(code, {"error": {"message": f"bad key {KEY}"}}, {"Location": "http://elsewhere.invalid"})) as server:
        with pytest.raises(InfrastructureError, match=mend) as raised:
            asked(server, views, api_key_env="CAPTION_KEY", concurrency=1)
        assert len(server.asks) == 1
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://h/v1", "http://h/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions/", "http://h/v1/chat/completions"),
        ("https://h/v1?api-version=preview", "https://h/v1/chat/completions?api-version=preview"),
    ],
)
def test_a_query_stays_behind_the_path(url: str, asked: str) -> None:
    assert caption_openai.endpoint(url) == asked


def test_a_key_that_is_not_set_is_told_before_anything_is_asked() -> None:
    with pytest.raises(InfrastructureError, match="NO_SUCH_KEY"):
        asked(ChatServer(lambda _: say("x"), 1), [], api_key_env="NO_SUCH_KEY")


@pytest.mark.parametrize("key", ["first-line\nsecond-line", "with\0nul"])
def test_a_key_that_no_header_can_carry_is_told_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "CAPTION_KEY": key})
    with pytest.raises(InfrastructureError, match=r"CAPTION_KEY.*line break") as raised:
        asked(ChatServer(lambda _: say("x"), 1), [], api_key_env="CAPTION_KEY")
    assert key[:5] not in str(raised.value)


@pytest.mark.parametrize("echo", ["k/e y", "k\\/e y", "\\u006b/e y", "k/e%20y", "k%2Fe%20y"])
def test_an_error_that_echoes_the_key_in_any_spelling_shows_none(echo: str) -> None:
    told = caption_http.meaning(500, {}, b'{"error": {"message": "bad key <%s>"}}' % echo.encode(), "k/e y")
    assert isinstance(told, caption_http.Trouble)
    assert told.why == "HTTP 500: bad key <***>"


def test_what_a_server_says_of_an_error_can_be_printed_and_stored() -> None:
    told = caption_http.meaning(500, {}, b'{"error": "half \\ud800 of it, \\u001b[2J, \\u0000 and \\u202e"}')
    assert isinstance(told, caption_http.Trouble)
    assert told.why == "HTTP 500: half of it, [2J, and"


def test_a_server_that_goes_away_ends_the_run_and_what_is_done_is_kept(views: list[MediaView], tmp_path: Path) -> None:
    def dying(ask: Ask) -> Action:
        return say(f"grey {ask.grey}") if ask.grey <= 20 else status(500, b"dying")

    cache = {"cache": str(tmp_path / "kept.sqlite")}
    with serving(dying) as server, pytest.raises(InfrastructureError, match=r"HTTP 500: dying.* run the same command again"):
        asked(server, views, **cache)
    with pytest.raises(InfrastructureError, match=r"cannot be reached.*start the server again"):
        asked(server, views, **cache)
    before = server.count()
    server.behave = lambda ask: say(f"grey {ask.grey}")
    server.start()
    try:
        assert texts(asked(server, views, **cache)) == ["grey 10", "grey 20", "grey 30", "grey 40"]
    finally:
        server.stop()
    assert (server.count() - before) == {30: 1, 40: 1}


def test_long_and_foreign_replies(views: list[MediaView]) -> None:
    said = {10: "word " * 20_000, 20: "قطة تجلس على السجادة \u200f😀👩‍👩‍👧", 30: "שלום 日本語 ﷺ", 40: "half a \ud83d pair"}
    with serving(lambda ask: say(said[ask.grey])) as server:
        long, arabic, mixed, broken = asked(server, views)
    assert str(long) == "too long: 100,000 characters, allowed are max_chars: 4,000"
    assert (arabic["text"], mixed["text"]) == (said[20], said[30])
    assert str(broken).startswith("garbled: it holds U+D83D")
    str(broken).encode()


def test_so_many_requests_are_under_way_at_once(views: list[MediaView]) -> None:
    together = threading.Barrier(4)

    def behave(ask: Ask) -> Action:
        together.wait(20)
        return say("fine")

    with serving(behave) as server:
        assert texts(asked(server, views, concurrency=4)) == ["fine"] * 4


def test_the_pace_is_shared_by_all_who_ask_a_server(tmp_path: Path) -> None:
    waits: list[float] = []
    threads = [threading.Thread(target=lambda: waits.append(Pace(1000.0, tmp_path / "pace").wait())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(sorted(waits), [0, 1000, 2000, 3000], atol=60)
    (tmp_path / "pace").write_bytes(b"9e99")  # a clock that was ahead, or a torn write
    assert Pace(1000.0, tmp_path / "pace").wait() == 0
    assert Pace(0.0, tmp_path / "none").wait() == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "openai"}, {"backend": "other"}, {"url": "http://x/v1"}, {"backend": "openai", "url": "http://me:secret@x/v1"},
        {"concurrency": 0}, {"timeout": 0.0}, {"retries": -1},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as raised:
        CaptionHow(**wrong)
    assert "secret" not in str(raised.value)


def test_a_batch_holds_as_many_as_are_asked_at_once() -> None:
    assert CaptionHow(backend="openai", url="http://x/v1", concurrency=64).batch == 64
    assert CaptionHow(backend="openai", url="http://x/v1", batch=99).batch == 99
    assert CaptionHow(concurrency=64).batch == 16


def test_what_an_answer_means() -> None:
    meaning: Callable[..., Any] = caption_http.meaning
    parts = b'{"choices": [{"message": {"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "cat"}]}}]}'
    assert meaning(200, {}, parts).text == "a cat"
    assert meaning(200, {}, b'{"choices": [{"message": {"content": 3}}]}').kind == "broken"
    assert meaning(200, {}, b'{"choices": [{"message": {"content": "x"}, "finish_reason": "length"}], "usage": null}').finish == "length"
    assert meaning(200, {}, b'{"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": true}}').tokens is None
    assert meaning(503, {"Retry-After": "7"}, b"").wait == 7
    assert meaning(429, {"Retry-After": "soon"}, b"").wait is None
    with pytest.raises(InfrastructureError, match="credit"):
        meaning(429, {}, b'{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}')
