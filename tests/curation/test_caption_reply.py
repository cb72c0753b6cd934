"""What counts as a caption; the golden judgements are those of version 1 of the patterns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curation.caption import What
from curation.caption_reply import REFUSALS_VERSION, RefusalError, Reply, ReplyError, check_reply, refused, repeats

WHAT = What(model="m", max_chars=500)
GOLDEN = Path(__file__).parent / "golden" / "caption_replies.json"


def judgement(text: str) -> str:
    result = check_reply(WHAT, Reply(text, "stop", 5))
    return "caption" if isinstance(result, dict) else f"{result.kind}: {str(result).split(':')[0]}"


def test_golden_judgements_belong_to_their_version() -> None:
    """Other judgements under the same version are a mistake: raise REFUSALS_VERSION, then write this file anew."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["version"] == REFUSALS_VERSION
    assert {text: judgement(text) for text in golden["replies"]} == golden["replies"]


@pytest.mark.parametrize(("finish", "kind"), [("length", ReplyError), ("refused", RefusalError)])
def test_how_a_reply_ended_counts(finish: str, kind: type[Exception]) -> None:
    result = check_reply(WHAT, Reply("A dog lies on the", finish, 128))  # type: ignore[arg-type]
    assert isinstance(result, kind)
    assert "A dog lies on the" in str(result)


def test_a_message_is_one_short_line() -> None:
    result = check_reply(WHAT, Reply("\x1b[31m" + "red\n" * 60, "stop"))
    assert len(str(result).splitlines()) == 1
    assert len(str(result)) < 200
    assert "\x1b" not in str(result)


def test_a_recipe_may_know_more_refusals() -> None:
    assert refused("Ich kann das nicht beschreiben", (r"ich kann .* nicht",))
    assert not refused("Ich kann das nicht beschreiben")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cat " * 10, "a cat"), ("The end. " + "no " * 20, "no"), ("红" * 40, "红"), ("-" * 200, None), ("", None), ("ab" * 15, None),
        ("ab" * 16, "ab"), ("A dog, a cat, a bird and a horse stand on a hill.", None), ("very very very good", None),
    ],
)  # fmt: skip
def test_what_is_said_over_and_over(text: str, found: str | None) -> None:
    assert repeats(text) == found
