"""Verdicts by SQL are those of a slow walk over each sample in Python, on random ledgers; and those of the rules in the child process."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation.deduplicate import STEP as DEDUPLICATE
from curation.population import OneByOne, population_of
from curation.rows import fingerprint, flat_table, row_schema, work_field
from curation.rules import BASE_COLUMNS, judge, reason
from pipeline.curate import counts
from pipeline.globals import run_global
from pipeline.ledger import CONTENTS, LISTING, RECORDS, Ledger, open_ledger
from pipeline.recipe import Recipe, RuleOp, StepOp, load_recipe
from pipeline.segments import step_table
from pipeline.verdicts import Judge
from shards.sample import MEDIA_REF_TYPE
from tests.pipeline.small import recipe

Row = dict[str, Any]
MEDIA = frozenset({"image", "video"})
ALL = frozenset({"text", "image", "video"})


def at_least(column: str, bound: float) -> Callable[[Row], bool | None]:
    return lambda row: None if row[column] is None else row[column] >= bound


def either(*parts: Callable[[Row], bool | None]) -> Callable[[Row], bool | None]:
    def said(row: Row) -> bool | None:
        values = [part(row) for part in parts]
        return True if True in values else None if None in values else False

    return said


@dataclass(frozen=True)
class Part:
    """A conjunct as this file understands it: kinds it applies to, whether it is about a medium, what it says of a row."""

    kinds: frozenset[str]
    medium: bool
    says: Callable[[Row], bool | None]


@dataclass(frozen=True)
class Said:
    """A rule twice: as a recipe has it, and as this file judges it."""

    keep: Any
    parts: tuple[Part, ...]
    any: bool = False


WIDE = Part(MEDIA, True, at_least("width", 100))
LONG = Part(frozenset({"video"}), True, at_least("duration", 2.0))
TALL = Part(frozenset({"image"}), True, at_least("height", 80))
WORDY = Part(ALL, False, at_least("words_n", 2))
SAID = Part(ALL, False, at_least("caption_chars", 4))
BIG = Part(MEDIA, True, at_least("counting_size", 500))

EARLY = (
    Said("width >= 100", (WIDE,)),
    Said("width >= 100 and duration >= 2.0", (WIDE, LONG)),
    Said({"any": "width >= 100"}, (WIDE,), True),
    Said({"any": "width >= 100 and duration >= 2.0"}, (WIDE, LONG), True),
    Said({"any": "duration >= 2.0"}, (LONG,), True),
    Said({"if": "height >= 80 and width >= 100", "for": ["image"]}, (TALL, Part(frozenset({"image"}), True, WIDE.says))),
    Said({"any": "caption_chars >= 4 and duration >= 2.0"}, (SAID, LONG), True),
)
MIDDLE = (
    Said("words_n >= 2", (WORDY,)),
    Said("caption_chars >= 4 and words_n >= 2", (SAID, WORDY)),
    Said("words_n >= 2 or width >= 100", (Part(MEDIA, True, either(WORDY.says, WIDE.says)),)),
    Said({"if": "caption_chars >= 4", "for": ["text", "video"]}, (Part(frozenset({"text", "video"}), False, SAID.says),)),
)
LATE = (
    Said("counting_size >= 500", (BIG,)),
    Said({"any": "counting_size >= 500"}, (BIG,), True),
    Said("width >= 100 and counting_size >= 500", (WIDE, BIG)),
)
COPY = Said(None, (Part(MEDIA, False, lambda row: row["duplicate_of"] is None or row["turns"] > 0),))


@dataclass
class Made:
    """A sample of a random ledger: its listing and, by name of the step, None (no row), a text (an error) or a row for each medium."""

    listing: Row
    kinds: list[str]
    content: str | None
    known: dict[str, str | list[Row] | None] = field(default_factory=dict)

    @property
    def flat(self) -> Iterator[Row]:
        """One row for each medium, or one for a text."""
        for m, kind in enumerate(self.kinds or ["text"]):
            row = {"medium_kind": kind, **{c: self.listing.get(c) for c in BASE_COLUMNS}}
            for name, prefix in (("probe", ""), ("words", "words_"), ("counting", "counting_")):
                rows = self.known.get(name)
                found = rows[m if name != "words" else 0] if isinstance(rows, list) else {}
                columns = {"probe": PROBE, "words": ("n",), "counting": ("size",)}[name]
                row |= {prefix + c: found.get(c) for c in columns}
            yield row


PROBE = ("width", "height", "duration", "sha256", "phash")


def sample(rng: random.Random, n: int) -> Made:
    kinds = rng.choice([[], ["image"], ["image"], ["video"], ["image", "video"], ["video", "image", "image"], ["image", "image"]])
    kind = "text" if not kinds else "mixed" if len(set(kinds)) > 1 else kinds[0]
    listing = {
        "uid": f"{rng.getrandbits(128):032x}", "source": "s", "key": str(n), "unit": f"u{n % 3}", "ordinal": n, "kind": kind,
        "n_media": len(kinds), "media_kinds": kinds if len(kinds) > 1 else None,
        "media_bytes": 10, "media_stamp": f"stamp{n}" if kinds else None,
        "text_fp": f"t{n}", "damage": "line 3 is no JSON" if rng.random() < 0.05 else None, "parent": None,
        "caption_chars": rng.randrange(8), "transcription_chars": 0, "text_chars": 0, "turns": rng.choice([0, 0, 2]),
    }  # fmt: skip
    made = Made(listing, kinds, f"c{n}" if kinds and rng.random() < 0.9 else None)

    def rows(one: Callable[[str], Row]) -> str | list[Row] | None:
        chance = rng.random()
        return None if chance < 0.08 else "decode: it is broken" if chance < 0.14 else [one(kind) for kind in kinds or ["text"]]

    def probe(kind: str) -> Row:
        video = kind == "video"
        return {
            "width": rng.choice([60, 100, 140, 140, None]), "height": rng.choice([60, 90, 120]),
            "duration": rng.choice([1.0, 3.0, 3.0, None]) if video else None, "sha256": rng.choice("abcdefghij") * 64,
            "phash": None if video else rng.choice([0x0F0F0F0F0F0F0F0F, 0x0F0F0F0F0F0F0F1F, 0x3333333333333333, 0xAAAA5555AAAA5555]),
        }  # fmt: skip

    if made.content is not None:
        made.known["probe"] = rows(probe)
        made.known["counting"] = rows(lambda kind: {"size": rng.choice([100, 600, 900, None])})
    made.known["words"] = rows(lambda kind: {"n": rng.choice([0, 1, 2, 3, 4, None])})
    return made


def write(ledger: Ledger, loaded: Recipe, samples: list[Made]) -> None:
    tables: dict[str, list[Row]] = {}
    listing = pa.Table.from_pylist([s.listing for s in samples], LISTING)
    media = [[{"kind": k, "name": "n", "path": "p", "offset": -1, "length": 1, "stamp": "x"} for k in s.kinds] for s in samples]
    records = [{"uid": s.listing["uid"], "media": m, "texts": "{}"} for s, m in zip(samples, media, strict=True)]
    contents = [
        {"uid": s.listing["uid"], "stamp": s.listing["media_stamp"], "content": s.content, "sha256": []} for s in samples if s.content
    ]
    for op in loaded.ops:
        if not isinstance(op, StepOp) or op.step.shape != "annotator":
            continue
        for made in samples:
            rows = made.known.get(op.name)
            if rows is None:
                continue
            row = {"uid": made.listing["uid"], "fp": fingerprint(op.roots, made.content, made.listing["text_fp"])}
            row |= {"error": rows} if isinstance(rows, str) else {**rows[0], "_more": rows[1:] or None}
            tables.setdefault(op.name, []).append(row)
            if made.listing["key"].endswith("7"):  # history: what the file was before says nothing now
                tables[op.name].append({**row, "fp": "old", "error": "decode: of old"})
    stored = {
        step_table(op): pa.Table.from_pylist(tables.get(op.name, []), row_schema(op.step, op.what, wide=False))
        for op in loaded.ops
        if isinstance(op, StepOp) and op.step.shape == "annotator"
    }
    fixed = {
        "listing": listing,
        "records": pa.Table.from_pylist(records, RECORDS),
        "contents": pa.Table.from_pylist(contents, CONTENTS),
    }
    ledger.commit("steps", {**fixed, **stored})


def outcome_of(said: Said, rows: list[Row]) -> int:
    """0 passes, k: conjunct k is false, -k: it is missing."""
    found: list[int | None] = []
    for row in rows:
        outcome: int | None = 0
        for k, part in enumerate(said.parts, 1):
            if row["medium_kind"] in part.kinds and (value := part.says(row)) is not True:
                outcome = -k if value is None else k
                break
        if outcome == 0 and said.any and not any(row["medium_kind"] in p.kinds for p in said.parts if p.medium):
            outcome = None
        found.append(outcome)
    if not said.any:
        return next((o for o in found if o), 0)
    if 0 in found:
        return 0
    return next((o for o in found if o is not None and o < 0), next((o for o in found if o), 0))


def walk(loaded: Recipe, samples: list[Made], rules: dict[str, Said], with_copies: bool) -> dict[str, tuple[str, str | None, str | None]]:
    """(verdict, step, reason) of every sample, operator after operator."""
    found: dict[str, tuple[str, str | None, str | None]] = {}
    alive = list(samples)
    for made in samples:
        if made.listing["damage"]:
            found[made.listing["uid"]] = ("errored", "source", made.listing["damage"])
    copies: dict[str, str | None] = {}
    for op in loaded.ops:
        alive = [s for s in alive if s.listing["uid"] not in found]
        if isinstance(op, StepOp) and op.step.shape == "global":
            population = [s for s in alive if s.kinds]
            copies = duplicates(op, population) if with_copies else {}
            found |= {s.listing["uid"]: ("pending", op.name, None) for s in population if not with_copies}
            continue
        for made in alive:
            uid = made.listing["uid"]
            if isinstance(op, StepOp):
                if not made.kinds and op.name != "words":
                    continue
                rows = made.known.get(op.name)
                if op.name == "words" or made.content is not None:
                    if isinstance(rows, str):
                        found[uid] = ("errored", op.name, rows)
                    elif rows is None:
                        found[uid] = ("pending", op.name, None)
                else:
                    found[uid] = ("pending", op.name, None)
                continue
            outcome = outcome_of(rules[op.name], [{**row, "duplicate_of": copies.get(uid)} for row in made.flat])
            if outcome:
                found[uid] = ("rejected" if outcome > 0 else "errored", op.name, reason(op.rule, outcome))
    return {s.listing["uid"]: found.get(s.listing["uid"], ("kept", None, None)) for s in samples}


def duplicates(op: StepOp, population: list[Made]) -> dict[str, str | None]:
    table = pa.Table.from_pylist(
        [
            {"uid": s.listing["uid"], "kind": s.listing["kind"], **{c: [r[c] for r in s.known["probe"]] for c in PROBE}}  # type: ignore[union-attr, index]
            for s in population
        ],
        pa.schema([("uid", pa.string()), ("kind", pa.string()), ("width", pa.list_(pa.int32())), ("height", pa.list_(pa.int32())),
                   ("sha256", pa.list_(pa.string())), ("phash", pa.list_(pa.uint64()))]),
    )  # fmt: skip
    assert DEDUPLICATE.reduce is not None
    with tempfile.TemporaryDirectory() as scratch:
        result = DEDUPLICATE.reduce(op.what, population_of(table, Path(scratch)))
    return dict(zip(result["uid"].to_pylist(), result["of"].to_pylist(), strict=True))


def by_sql(judged: Judge, compute: bool) -> dict[str, tuple[str, str | None, str | None]]:
    for segment in judged.segments:
        judged.judge(segment)
        if compute and segment.global_step is not None:
            run_global(judged, segment, segment.global_step[1], OneByOne())
            judged.judge(segment)
    rows = judged.connection.execute(f"select uid, verdict, step, reason from {judged.verdict_sql()}").fetchall()
    assert len(rows) == len({uid for uid, *_ in rows})
    return {uid: (verdict, step, why) for uid, verdict, step, why in rows}


@pytest.mark.parametrize("seed", range(24))
def test_verdicts_are_those_of_a_slow_walk(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    (tmp_path / "pics").mkdir()
    early, middle, late = rng.choice(EARLY), rng.choice(MIDDLE), rng.choice(LATE)
    steps = [
        "probe", {"keep": early.keep}, {"tests.steps.words": {"as": "words"}}, {"keep": middle.keep},
        {"deduplicate": {"keep_best": "width*height desc"}}, {"tests.steps.counting": {"as": "counting"}}, {"keep": late.keep},
    ]  # fmt: skip
    loaded = load_recipe(recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, steps))
    rules = {"keep": early, "keep_2": middle, "deduplicate": COPY, "keep_3": late}
    samples = [sample(rng, n) for n in range(rng.choice([0, 1, 40, 80]) if seed < 4 else 70)]
    ledger = open_ledger(str(tmp_path / "run"), write=True)
    connection = ledger.connect()
    try:
        write(ledger, loaded, samples)
        judged = Judge(connection, ledger, loaded)
        before = by_sql(judged, compute=False)
        assert before == walk(loaded, samples, rules, with_copies=not any(v[:2] == ("pending", "deduplicate") for v in before.values()))
        after = by_sql(judged, compute=True)
        assert after == walk(loaded, samples, rules, with_copies=True)
        found = counts(connection, judged)
        tally = Counter(verdict for verdict, _, _ in after.values())
        assert {v: n for v, n in found.items() if n and v != "inputs"} == tally
        assert found["inputs"] == len(samples)
        for made in samples[:6]:  # explain judges one sample alone, by the results of the newest population
            alone = Judge(connection, ledger, loaded, made.listing["uid"])
            assert by_sql(alone, compute=False) == {made.listing["uid"]: after[made.listing["uid"]]}
        in_the_child(loaded, samples, rules)
    finally:
        connection.close()
        ledger.close()


def in_the_child(loaded: Recipe, samples: list[Made], rules: dict[str, Said]) -> None:
    """Rules of segment 0 on a work table, as the child judges them."""
    ops = {op.name: op for op in loaded.ops if isinstance(op, StepOp)}
    columns = {"width": "probe", "height": "probe", "duration": "probe", "words_n": "words"}
    known = [s for s in samples if isinstance(s.known.get("words"), list) and (not s.kinds or isinstance(s.known.get("probe"), list))]
    arrays: dict[str, pa.Array] = {"uid": pa.array([s.listing["uid"] for s in known], pa.string())}
    media = [[{"kind": k, "name": "n", "path": "p", "offset": -1, "length": 1, "stamp": "x"} for k in s.kinds] for s in known]
    fields = [pa.field("uid", pa.string()), pa.field("media", pa.list_(MEDIA_REF_TYPE))]
    arrays["media"] = pa.array(media, fields[1].type)
    for name, step in columns.items():
        op = ops[step]
        column = next(c for c, final in zip(op.step.columns(op.what), op.columns, strict=True) if final.name == name)
        fields.append(work_field(op.step, column, op.prefix))
        values = [[row[name] for row in s.flat] if s.kinds or step == "words" else None for s in known]
        values = [v[0] if v is not None and step == "words" else v for v in values]
        arrays[name] = pa.array(values, fields[-1].type)
    for name in ("caption_chars", "turns"):
        fields.append(pa.field(name, BASE_COLUMNS[name].type))
        arrays[name] = pa.array([s.listing[name] for s in known], fields[-1].type)
    batch = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields))
    for op in loaded.ops:
        if isinstance(op, RuleOp) and op.name in ("keep", "keep_2"):
            outcomes = judge(op.rule, flat_table(batch, sorted(op.rule.columns)))
            found = dict(zip(outcomes["uid"].to_pylist(), outcomes["outcome"].to_pylist(), strict=True))
            assert found == {s.listing["uid"]: outcome_of(rules[op.name], list(s.flat)) for s in known}
