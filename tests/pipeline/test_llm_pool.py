"""`caption` through an engine of its own: everything of ours around a processor of `ray.data.llm`, with one that asks a server."""

from __future__ import annotations

import io
import json
import random
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow.parquet import write_table

from pipeline import llm_pool, payload, work
from pipeline.llm_engine import ERROR, PASSES
from pipeline.llm_pool import REPLIES, AskingActor, FoldingActor
from shards.errors import InfrastructureError
from shards.media import Limits
from shards.sample import Texts, uid_of
from tests.curation.chat_server import Action, Ask, ChatServer, grey_pictures, serving, status
from tests.curation.stills import film, grey
from tests.curation.units import call, reference, row, unit
from tests.pipeline import http_engine
from tests.pipeline.small import ask, recipe, run, seq, texts, verdicts

JSON = {"Content-Type": "application/json"}
CAPTION = {"model": "small-captioner", "prompt": "Describe {key}.", "backend": "vllm", "batch": 8}


def say(text: str, finish: str = "stop", tokens: int = 7) -> Action:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return status(200, {"choices": [choice], "usage": {"completion_tokens": tokens}}, JSON)


def grey_words(asked: Ask) -> Action:
    match asked.grey:
        case 3:
            return say("I'm sorry, but I cannot describe this image.")
        case 5:
            return say("on and on", "length", 128)
        case 7:
            return status(400, {"error": {"message": "this picture breaks the engine"}}, JSON)
    return say(f"grey {asked.grey}: {asked.prompt}")


@pytest.fixture
def engine(one_ray: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[ChatServer], None]:
    """Puts a server's processor in vLLM's place."""

    def use(server: ChatServer) -> None:
        monkeypatch.setattr(llm_pool, "build_engine", partial(http_engine.build, server.url))
        monkeypatch.setattr(llm_pool, "require", lambda where: None)

    return use


def test_a_run_with_an_engine_between_other_steps(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "TASK_ROWS", 8)
    grey_pictures(tmp_path / "a", [0, 1, 2, 3, 4, 5])
    grey_pictures(tmp_path / "b", [7, 8])
    (tmp_path / "a/009.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    texts(tmp_path / "t.jsonl", 2)
    word = "tests.steps.words"
    steps = [
        {word: {"as": "before"}},
        {"caption": {**CAPTION, "prompt": "{key} has {before_n} words", "cache": str(tmp_path / "replies")}},
        {"keep": {"if": "not starts_with(caption_text, 'grey 4')", "for": "image"}},
        {word: {"as": "after", "columns": ["caption_text"]}},
    ]
    path = recipe(tmp_path / "r.yaml", {name: tmp_path / name for name in ("a", "b", "t.jsonl")}, steps)
    with serving(grey_words) as server:
        engine(server)
        outcome = run(path, tmp_path / "run")
        assert sorted(asked.prompt for asked in server.asks) == [f"{i:03d}.png has 0 words" for i in (0, 1, 2, 3, 4, 5, 7, 8)]
        found = verdicts(tmp_path / "run")
        assert {key: (step, reason) for key, (verdict, step, reason) in found.items() if verdict != "kept"} == {
            "003.png": ("caption", 'refusal: the model refuses: "I\'m sorry, but I cannot describe this image."'),
            "004.png": ("keep", "keep: not starts_with(caption_text, 'grey 4')"),
            "005.png": ("caption", "reply: runaway: no end within max_new_tokens: 128: 'on and on'"),
            "007.png": ("caption", "reply: failed: this picture breaks the engine"),
            "009.png": ("caption", "decode: damaged image (PNG: broken PNG file (chunk b'ing'))"),
        }
        (kept,) = ask(tmp_path / "run", "select caption_text, caption_tokens, after_seen from samples where key = '008.png'")
        assert kept == ("grey 8: 008.png has 0 words", 7, "{'caption_text': ['grey 8: 008.png has 0 words']}")
        assert outcome.calls == {"before": 11, "caption": 9, "after": 6}
        ((rows, errors, device),) = ask(tmp_path / "run", "select rows, errors, device_seconds > 0 from costs where step = 'caption'")
        assert (rows, errors, device) == (9, 4, True)
        before, opened = seq(tmp_path / "run"), outcome.media_opened
        again = run(path, tmp_path / "run")
        assert (again.calls, again.media_opened, seq(tmp_path / "run")) == ({}, 0, before)
        assert opened <= 18  # twice each: to know it, and to ask about it


def test_an_engine_that_fails_ends_the_run_and_the_same_command_goes_on(engine: Any, tmp_path: Path) -> None:
    grey_pictures(tmp_path / "a", [0, 1, 2])
    path = recipe(tmp_path / "r.yaml", {"a": tmp_path / "a"}, [{"caption": {**CAPTION, "cache": "off"}}])
    with serving(lambda _: status(503, {}, JSON)) as server:
        engine(server)
        with pytest.raises(InfrastructureError, match=r"'caption': the engine failed: RuntimeError: Reached max(?s:.*)3 are pending"):
            run(path, tmp_path / "run")
        server.behave = grey_words
        assert run(path, tmp_path / "run").counts["kept"] == 3


def task_of(folder: Path, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A work file of one unit, as an actor gets it."""
    write_table(unit(rows), folder / "work.parquet")
    return {name: [value] for name, value in asdict(work.Task(str(folder / "work.parquet"), 0, 1, len(rows))).items()}


def actors(folder: Path, **what: Any) -> tuple[AskingActor, FoldingActor]:
    caption = call("caption", {"model": "small", **what}, {"backend": "vllm", "cache": str(folder / "replies")})
    text = json.dumps(caption.to_json())
    asker = AskingActor(text, asdict(Limits()), 0, "", str(folder / "stop"))
    return asker, FoldingActor(text, asdict(Limits()), str(folder / "replies"), 1)


def replied(table: pa.Table, error: str = "") -> list[dict[str, Any]]:
    """What an engine makes of questions: it says the first grey of each picture."""
    found = []
    for line in table.to_pylist():
        if line[ERROR]:
            found.append(line)
            continue
        text = f"grey {Image.open(io.BytesIO(line['pictures'][0])).getpixel((0, 0))[0]}"
        reply = {ERROR: error} if error else {"text": text, "finish": "stop", "tokens": 3, ERROR: ""}
        found.append({**dict.fromkeys(REPLIES), "task": line["task"], "key": line["key"], "sent": line["sent"], **reply})
    return found


def batch(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in REPLIES} for row in rows])


def opened(answers: Iterable[Mapping[str, Any]]) -> list[tuple[dict[str, Any], dict[str, pa.Table]]]:
    return [payload.decode(value.as_py()) for answer in answers for value in answer["payload"]]


def test_replies_in_any_order_find_their_pictures(tmp_path: Path) -> None:
    """Several media in a sample, the same question twice, an unreadable picture, a text."""
    a, b, c = map(reference, grey_pictures(tmp_path, [10, 20, 30]))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    rows = [
        row("several", 0, [a, b]), row("same", 1, [a]), row("torn", 2, [c, reference(broken)]), row("later", 3, [c]),
        row("text", 4, texts=Texts(text="no picture")),
    ]  # fmt: skip
    asker, folder = actors(tmp_path)
    questions = list(asker(task_of(tmp_path, rows)))
    asked = [line for table in questions for line in table.to_pylist()]
    assert [line[ERROR] for line in asked] == ["", "", "", PASSES]
    assert len({line["key"] for line in asked[:3]}) == 3
    random.Random(2).shuffle(lines := [line for table in questions for line in replied(table)])
    found = [folder(batch([line])) for line in lines]
    assert [len(answer["payload"]) for answer in found] == [0, 0, 0, 1]
    ((header, tables),) = opened(found)
    digest = call("caption", {"model": "small"}).digest
    stored = {line["uid"]: line for line in tables[f"step-{digest}"].to_pylist()}
    told = {key: stored[uid_of("test", key)] for key in ("several", "same", "torn", "later")}
    assert {key: line["text"] for key, line in told.items()} == {"several": "grey 10", "same": "grey 10", "torn": None, "later": "grey 30"}
    assert told["several"]["_more"] == [{"text": "grey 20", "tokens": 3}]
    assert told["torn"]["error"].startswith("decode: ")
    assert len(stored) == 4
    assert tables[payload.ONWARD]["key"].to_pylist() == ["several", "same", "later", "text"]
    assert tables[payload.ONWARD]["caption_text"].to_pylist() == [["grey 10", "grey 20"], ["grey 10"], ["grey 30"], None]
    assert not [name for name in tables[payload.ONWARD].column_names if name.startswith("_ask_")]
    assert [(cost["calls"], cost["rows"], cost["errors"]) for cost in header["costs"]] == [(6, 4, 1), (0, 0, 0)]
    again = [line for table in asker(task_of(tmp_path, rows)) for line in table.to_pylist()]
    assert [line[ERROR] for line in again] == [PASSES]  # every reply was cached as it came
    ((_, twice),) = opened([folder(batch(again))])
    assert twice[f"step-{digest}"].sort_by("uid").equals(tables[f"step-{digest}"].sort_by("uid"))


def test_a_film_asks_for_each_of_its_stretches(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mkv", [(grey(10), 1), (grey(20), 1), (grey(10), 1)])
    rows = [row("film", 0, [reference(path)]), row("still", 1, [reference(*grey_pictures(tmp_path, [30]))])]
    for what, pictures, text in (({"every": 1.0}, [1, 1, 1], "grey 10\ngrey 20\ngrey 10"), ({"frames": 3}, [3], "grey 10")):
        asker, folder = actors(tmp_path, **what)
        lines = [line for table in asker(task_of(tmp_path, rows)) for line in table.to_pylist()]
        assert [len(line["pictures"] or ()) for line in lines] == [*pictures, 0]
        ((_, tables),) = opened([folder(batch(replied(pa.Table.from_pylist(lines))))])
        onward = tables[payload.ONWARD]
        assert onward["caption_text"].to_pylist() == [[text], None]
        if "every" in what:
            assert [shot["start"] for shot in onward["caption_each"][0].as_py()[0]] == [0.0, 1.0, 2.0]
    assert onward.column_names == [name for name in onward.column_names if not name.startswith("_ask_")]


def test_a_folding_actor_in_anothers_place_leaves_its_tasks_pending_and_loses_no_reply(tmp_path: Path) -> None:
    rows = [row(path.name, i, [reference(path)]) for i, path in enumerate(grey_pictures(tmp_path, [10, 20]))]
    asker, first = actors(tmp_path)
    lines = [line for table in asker(task_of(tmp_path, rows)) for line in replied(table)]
    assert opened([first(batch(lines[:1]))]) == []
    _, second = actors(tmp_path)
    assert opened([second(batch(lines[1:]))]) == []
    assert [line[ERROR] for table in asker(task_of(tmp_path, rows)) for line in table.to_pylist()] == [PASSES]


def test_an_engine_that_answers_nothing_is_no_fault_of_the_pictures(tmp_path: Path) -> None:
    rows = [row(path.name, i, [reference(path)]) for i, path in enumerate(grey_pictures(tmp_path, list(range(10, 19))))]
    asker, folder = actors(tmp_path)
    lines = [line for table in asker(task_of(tmp_path, rows)) for line in replied(table, "ValueError: the prompt is too long")]
    ((header, tables),) = opened([folder(batch(lines))])
    assert header["failure"]["arguments"] == [
        "step 'caption': the engine answered none of 9 questions, the last with: ValueError: the prompt is too long"
    ]
    assert payload.ONWARD not in tables
    assert [table.num_rows for name, table in tables.items() if name.startswith("step-")] == [0]


def test_where_the_cache_cannot_be_written_the_run_ends_with_what_came(tmp_path: Path) -> None:
    (path,) = grey_pictures(tmp_path, [10])
    asker, folder = actors(tmp_path)
    lines = [line for table in asker(task_of(tmp_path, [row("one", 0, [reference(path)])])) for line in replied(table)]
    with sqlite3.connect(tmp_path / "replies") as connection:
        connection.execute("drop table replies")
    ((header, tables),) = opened([folder(batch(lines))])
    assert "cache of replies" in header["failure"]["arguments"][0]
    assert tables[payload.ONWARD]["caption_text"].to_pylist() == [["grey 10"]]


def test_a_stopped_run_asks_no_more(tmp_path: Path) -> None:
    rows = [row(path.name, i, [reference(path)]) for i, path in enumerate(grey_pictures(tmp_path, [10, 20]))]
    asker, folder = actors(tmp_path)
    (tmp_path / "stop").touch()
    (table,) = asker(task_of(tmp_path, rows))
    ((header, tables),) = opened([folder(batch(table.to_pylist()))])
    assert header["rows"] == 2
    assert tables == {}
