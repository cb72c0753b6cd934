"""The runner with real processes: what a step does to its process costs its sample one row, and nothing else."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from curation import sandbox
from curation.group import GroupResult, GroupRunner, RuleCall, call_from_json
from curation.rows import work_fields
from curation.rules import RuleColumn, parse_rule, rule_to_json
from curation.step import find_step
from shards.errors import InfrastructureError, RecipeError, StepBug
from shards.media import Limits
from shards.sample import Texts, content_fingerprint, uid_of
from tests.curation.units import call, picture_unit, pictures, reference, row, unit

STEPS = "tests.steps."
COUNTING, WORDS, DEADLY_READER = STEPS + "counting", STEPS + "words", STEPS + "deadly_reader"
SEGFAULT, HANG, HOG, BUGGY = STEPS + "segfault", STEPS + "hang", STEPS + "hog", STEPS + "buggy"
LIMITS = Limits()


def run(program: list, batch: pa.Table, limits: Limits = LIMITS, memory: int = 0) -> GroupResult:
    with GroupRunner(program, limits, memory=memory) as runner:
        return runner.run(batch)


def errors(rows: pa.Table) -> dict[str, str]:
    return {uid: error for uid, error in zip(rows["uid"].to_pylist(), rows["error"].to_pylist(), strict=True) if error is not None}


def rule(name: str, expression: str, **columns: RuleColumn) -> RuleCall:
    return RuleCall(name, rule_to_json(parse_rule(name, expression, columns)))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_rows_columns_contents_and_costs(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 50)
    counter = tmp_path / "calls"
    step = call(COUNTING, how={"batch": 20, "counter": str(counter)})
    result = run([step], picture_unit(paths))

    uids = [uid_of("test", path.name) for path in paths]
    contents = [content_fingerprint([("image", sha(path))]) for path in paths]
    rows = result.rows[step.digest]
    assert rows.column_names == ["uid", "fp", "error", "size", "_more"]
    assert rows["uid"].to_pylist() == uids
    assert rows["fp"].to_pylist() == contents
    assert rows["size"].to_pylist() == [path.stat().st_size for path in paths]
    assert rows["error"].null_count == rows["_more"].null_count == 50
    assert result.wide[step.digest].column_names == ["uid", "fp", "first", "_more"]
    assert result.wide[step.digest]["first"].to_pylist() == [[137.0, 80.0, 78.0, 71.0]] * 50
    assert result.contents.to_pylist() == [
        {"uid": uid, "stamp": stamp, "content": content, "sha256": [sha(path)]}
        for uid, stamp, content, path in zip(uids, picture_unit(paths)["media_stamp"].to_pylist(), contents, paths, strict=True)
    ]
    assert result.onward["counting_size"].to_pylist() == [[path.stat().st_size] for path in paths]
    assert result.onward["content"].to_pylist() == contents
    cost = result.costs[step.digest]
    assert (cost.name, cost.calls, cost.rows, cost.errors) == ("counting", 50, 50, 0)
    assert cost.bytes_read == sum(path.stat().st_size for path in paths)
    assert cost.seconds > 0
    assert (result.media_opened, result.crashes) == (50, 0)
    # chunks of 32 by position, batches of 20 within them
    assert [line.split()[1] for line in counter.read_text().splitlines()] == ["20"] * 20 + ["12"] * 12 + ["18"] * 18


@pytest.mark.parametrize("decoding", [True, False], ids=["in the media room", "in the middle of a batch"])
def test_a_segfault_costs_one_row(tmp_path: Path, decoding: bool) -> None:
    paths = pictures(tmp_path, 50)
    first, deadly, last = call(COUNTING), call(SEGFAULT, {"keys": ("017.png",), "decoding": decoding}), call(WORDS)
    result = run([first, deadly, last], picture_unit(paths))
    calm = run([first, call(SEGFAULT), last], picture_unit(paths))

    bad = uid_of("test", "017.png")
    rows = result.rows[deadly.digest]
    assert errors(rows) == {bad: "crash: signal 11 (SIGSEGV) in step segfault"}
    others = pa.compute.not_equal(rows["uid"], bad)
    undisturbed = calm.rows[call(SEGFAULT).digest]
    assert rows.filter(others).equals(undisturbed.filter(others))
    assert rows["uid"].equals(undisturbed["uid"])  # in the order of the batch
    assert rows["fp"].equals(undisturbed["fp"])  # the dead sample's content is known too
    assert result.rows[first.digest].equals(calm.rows[first.digest])  # and what came before the deadly step
    assert result.wide[first.digest].equals(calm.wide[first.digest])
    assert result.rows[last.digest].equals(calm.rows[last.digest].filter(pa.compute.not_equal(calm.rows[last.digest]["uid"], bad)))
    assert result.contents.equals(calm.contents)
    assert result.onward["key"].to_pylist() == [path.name for path in paths if path.name != "017.png"]
    assert result.costs[deadly.digest].errors == 1
    assert 2 <= result.crashes <= (2 if decoding else math.ceil(math.log2(32)) + 3)


def test_many_bad_samples_and_a_child_kept_for_the_next_unit(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 12)
    keys = ("000.png", "003.png", "011.png")
    deadly = call(SEGFAULT, {"keys": keys, "decoding": True})
    with GroupRunner([deadly], LIMITS) as runner:
        result = runner.run(picture_unit(paths))
        again = runner.run(picture_unit(paths[1:3]))
    assert set(errors(result.rows[deadly.digest])) == {uid_of("test", key) for key in keys}
    assert len(result.rows[deadly.digest]) == 12
    assert result.crashes == 2 * len(keys)
    assert (again.crashes, len(again.onward)) == (0, 2)


@pytest.mark.parametrize("native", [False, True])
def test_a_busy_hang_is_ended_by_cpu_time(native: bool) -> None:
    """Also one within a single native call, in which no limit that Python checks can be seen."""
    batch = unit([row(f"{i}", i) for i in range(3)])
    step = call(HANG, {"key": "1", "native": native}, {"batch": 1})
    result = run([step], batch, Limits(cpu_seconds=0.6))
    assert errors(result.rows[step.digest]) == {uid_of("test", "1"): "crash: CPU over 0.6 s in step hang"}
    assert result.onward["key"].to_pylist() == ["0", "2"]


def test_a_sleeping_hang_is_ended_by_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL_GRACE", 3.0)
    step = call(HANG, {"key": "1", "busy": False}, {"batch": 1})
    result = run([step], unit([row(f"{i}", i) for i in range(2)]), Limits(cpu_seconds=0.5))
    assert errors(result.rows[step.digest]) == {uid_of("test", "1"): "crash: no progress in 5 s in step hang"}


def test_a_memory_hog_is_killed_before_it_takes_the_machine() -> None:
    step = call(HOG, {"key": "2"}, {"batch": 1})
    result = run([step], unit([row(f"{i}", i) for i in range(4)]), memory=500_000_000)
    assert errors(result.rows[step.digest]) == {uid_of("test", "2"): "crash: memory over 0.5 GB in step hog"}
    assert result.onward["key"].to_pylist() == ["0", "1", "3"]


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("raise", "KeyError: 'a typo'"),
        ("raise_sample_error", "returns a sample's error as its answer"),
        ("short", "gave 1 answers to 2 inputs"),
        ("extra", "'other'"),
        ("missing", "wrote columns ['value'], declared are ['note', 'value']"),
        ("type", "column 'value' is declared int64"),
    ],
)
def test_a_bug_ends_the_run_and_names_step_and_samples(way: str, told: str) -> None:
    with pytest.raises(StepBug) as caught:
        run([call(BUGGY, {"way": way})], unit([row("a", 0), row("b", 1)]))
    assert caught.value.step == "buggy"
    assert caught.value.uids == [uid_of("test", "a"), uid_of("test", "b")]
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("way", "told"),
    [("memory", "MemoryError"), ("disk", "No space left"), ("network", "hung up"), ("open", "weights/of/nothing.safetensors")],
)
def test_infrastructure_is_never_a_verdict(way: str, told: str) -> None:
    with pytest.raises(InfrastructureError, match=told):
        run([call(BUGGY, {"way": way})], unit([row("a", 0)]))


def test_a_child_that_dies_while_it_loads_models_is_infrastructure(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"SIGSEGV[\s\S]*open_segfault"):  # the end of stderr holds the stack
        run([call(SEGFAULT, {"opening": True})], picture_unit(pictures(tmp_path, 1)))


@pytest.mark.parametrize(("program", "told"), [("/nowhere/python", "nowhere"), ("/bin/false", "exit code 1")])
def test_a_child_that_cannot_start_is_infrastructure(monkeypatch: pytest.MonkeyPatch, program: str, told: str) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(InfrastructureError, match=told):
        run([call(WORDS)], unit([row("a", 0)]))


def test_a_program_that_cannot_be_bound_is_refused() -> None:
    with pytest.raises(RecipeError, match="way"):
        GroupRunner([call_from_json({**call(BUGGY).to_json(), "what": {"way": 3}})], LIMITS)


def test_prints_and_hostile_unicode_do_not_break_the_pipe() -> None:
    texts = [Texts(caption="fine 雨"), Texts(caption="lone \ud800 surrogate")]
    batch = unit([row(f"{i}", i, texts=text) for i, text in enumerate(texts)])
    assert len(run([call(BUGGY, {"way": "print"})], batch).onward) == 2
    step = call(BUGGY, {"way": "surrogate"})
    rows = run([step], batch).rows[step.digest].to_pylist()
    assert rows[0]["note"] == "fine 雨"
    assert rows[1]["error"].startswith("decode: column 'note' holds text that is no valid Unicode")


def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 6)
    counter = tmp_path / "calls"
    step, reader = call(COUNTING, how={"counter": str(counter)}), call(WORDS, {"columns": ("counting_size",)}, reads=["counting_size"])
    first = run([step], picture_unit(paths))
    counter.unlink()

    fields = work_fields(find_step(COUNTING), None, "counting_")[:1]
    rows = picture_unit(paths).to_pylist()
    for old, size, content in zip(
        rows[:4], first.rows[step.digest]["size"].to_pylist(), first.contents["content"].to_pylist(), strict=False
    ):
        old |= {"have": [step.digest], "counting_size": [size], "content": content}
    again = run([step, reader], unit(rows, fields))
    assert counter.read_text().splitlines() == ["004.png 2", "005.png 2"]
    assert again.rows[step.digest].equals(first.rows[step.digest].slice(4))
    assert again.media_opened == 2
    assert again.onward["counting_size"].to_pylist() == [[size] for size in first.rows[step.digest]["size"].to_pylist()]
    assert again.onward["words_seen"].to_pylist() == [f"{{'counting_size': [{path.stat().st_size}]}}" for path in paths]

    counter.unlink()
    for old, content in zip(rows[4:], first.contents["content"].to_pylist()[4:], strict=True):
        old |= {"have": [step.digest], "content": content}
    nothing = run([step], unit(rows, fields))
    assert (nothing.media_opened, len(nothing.rows[step.digest]), len(nothing.onward)) == (0, 0, 6)
    assert not counter.exists()


def test_a_touched_file_needs_nothing_and_a_changed_one_everything(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 3)
    rows = picture_unit(paths).to_pylist()
    contents = [content_fingerprint([("image", sha(path))]) for path in paths]
    rows[0]["known"], rows[1]["known"] = ["0123456789abcdef", contents[0]], ["0123456789abcdef"]
    step = call(COUNTING)
    result = run([step], unit(rows))
    assert result.contents["content"].to_pylist() == contents
    assert result.rows[step.digest]["uid"].to_pylist() == [uid_of("test", path.name) for path in paths[1:]]
    assert result.onward["key"].to_pylist() == ["001.png", "002.png"]


def test_a_rule_between_steps_spares_the_later_ones(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 5)
    (tmp_path / "004.png").write_bytes(b"short")
    batch = unit([*picture_unit(paths).to_pylist(), row("text", 5, texts=Texts(text="three little words"))])
    size = RuleColumn(pa.int64(), frozenset({"image"}), "medium")
    probe, keep, later = call(COUNTING), rule("big", "counting_size > 5", counting_size=size), call(WORDS)
    result = run([probe, keep, later, rule("wordy", "words_n < 3", words_n=RuleColumn(pa.int32()))], batch)
    assert len(result.rows[probe.digest]) == 5  # the text has no media: no row, and a rule on media passes it
    assert errors(result.rows[probe.digest]) == {}
    assert result.rows[later.digest]["uid"].to_pylist() == [
        uid_of("test", key) for key in ("000.png", "001.png", "002.png", "003.png", "text")
    ]
    assert result.onward["key"].to_pylist() == ["000.png", "001.png", "002.png", "003.png"]


def test_several_media_and_mixed_kinds(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 3)
    film = tmp_path / "film.mp4"
    film.write_bytes(b"not a film")
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:300])
    batch = unit(
        [
            row("two", 0, [reference(paths[0]), reference(paths[1])]),
            row("one", 1, [reference(paths[2])]),
            row("mixed", 2, [reference(film), reference(paths[2])]),
            row("bad", 3, [reference(paths[0]), reference(broken)]),
        ]
    )
    counting = call(COUNTING, how={"batch": 2})
    result = run([counting], batch)
    sizes = [[ref["length"] for ref in refs] for refs in batch["media"].to_pylist()]
    rows = result.rows[counting.digest].to_pylist()
    assert [[r["size"], *((m or {}).get("size") for m in r["_more"] or ())] for r in rows] == sizes
    assert rows[1]["_more"] is None
    assert result.onward["counting_size"].to_pylist() == sizes
    assert rows[0]["fp"] == content_fingerprint([("image", sha(paths[0])), ("image", sha(paths[1]))])
    assert result.costs[counting.digest].calls == 7

    probe = call("probe")
    result = run([probe], batch)
    failed = errors(result.rows[probe.digest])
    assert failed[uid_of("test", "bad")].startswith("decode: PNG")
    assert failed[uid_of("test", "bad")].endswith("[medium 1]")
    assert failed[uid_of("test", "mixed")].endswith("[medium 0]")
    assert result.onward["width"].to_pylist() == [[40, 40], [40]]
    assert result.onward["kind"].to_pylist() == ["image", "image"]


def test_a_sample_whose_bytes_kill_the_reader(tmp_path: Path) -> None:
    """Its content can never be known; the row has a fingerprint all the same, and the steps before it have theirs."""
    paths = pictures(tmp_path, 5)
    paths[2] = paths[2].rename(tmp_path / "deadly.png")
    batch = picture_unit(paths)
    words, reader = call(WORDS), call(DEADLY_READER)
    for known in ([], ["0123456789abcdef"]):
        batch = unit([{**line, "known": known if line["key"] == "deadly.png" else []} for line in batch.to_pylist()])
        result = run([words, reader, call(COUNTING)], batch)
        rows = result.rows[reader.digest].to_pylist()
        stamp = batch["media_stamp"][2].as_py()
        assert rows[2]["fp"] == f"stamp:{stamp}"
        assert rows[2]["error"].startswith("crash: signal 11 (SIGSEGV)")
        assert result.contents.to_pylist()[2] == {
            "uid": uid_of("test", "deadly.png"),
            "stamp": stamp,
            "content": f"stamp:{stamp}",
            "sha256": [None],
        }
        assert [len(result.rows[step.digest]) for step in (words, reader, call(COUNTING))] == [5, 5, 4]
        assert errors(result.rows[words.digest]) == {}
        assert "deadly.png" not in result.onward["key"].to_pylist()


def test_texts_alone_open_no_media_and_obey_their_limit(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 1)
    batch = unit(
        [
            row("a", 0, texts=Texts(text="two words")),
            row("b", 1, [reference(paths[0])], Texts(caption="x" * 101)),
            row("c", 2, [reference(paths[0])], Texts(caption="one")),
        ]
    )
    step = call(WORDS)
    result = run([step], batch, Limits(text_chars=100))
    rows = result.rows[step.digest].to_pylist()
    assert rows[0] == {
        "uid": uid_of("test", "a"),
        "fp": batch["text_fp"][0].as_py(),
        "error": None,
        "n": 2,
        "list": ["two", "words"],
        "seen": "{}",
    }
    assert rows[1]["error"] == "limit: texts of 101 characters, allowed are 100"
    assert result.onward["key"].to_pylist() == ["a", "c"]
    assert (result.media_opened, len(result.contents)) == (0, 0)


def test_bytes_that_cannot_be_read_have_a_fingerprint_of_their_own(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 3)
    batch = picture_unit(paths)
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes() + b"more")
    step = call("probe")
    result = run([step], batch, Limits(image_bytes=3_000_000))
    stamps = batch["media_stamp"].to_pylist()
    assert result.rows[step.digest]["fp"].to_pylist()[:2] == [f"stamp:{stamps[0]}", f"stamp:{stamps[1]}"]
    assert all(error.startswith("source: ") for error in errors(result.rows[step.digest]).values())
    assert result.contents["content"].to_pylist()[:2] == [f"stamp:{stamps[0]}", f"stamp:{stamps[1]}"]
    assert result.contents["sha256"].to_pylist() == [[None], [None], [sha(paths[2])]]
    assert result.onward["key"].to_pylist() == ["002.png"]


def test_an_empty_unit_starts_nothing() -> None:
    step = call("probe")
    result = run([step], unit([]))
    assert len(result.rows[step.digest]) == len(result.onward) == len(result.contents) == 0
    assert "phash" in result.onward.column_names


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "from tests.steps import hang\nfrom tests.curation.units import call, row, unit\n"
        "from curation.group import GroupRunner\nfrom shards.media import Limits\n"
        "GroupRunner([call('tests.steps.hang', {'key': '0', 'busy': False})], Limits()).run(unit([row('0', 0)]))\n"
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    try:
        children: list[psutil.Process] = []
        deadline = time.monotonic() + 30
        while not children and time.monotonic() < deadline:
            children = psutil.Process(parent.pid).children()
            time.sleep(0.05)
        assert len(children) == 1
        while "curation.child" not in children[0].cmdline() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)  # far enough into its imports to have asked for its parent's death
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=15)
    assert (len(gone), alive) == (1, [])
