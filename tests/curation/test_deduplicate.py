from __future__ import annotations

import hashlib
import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from curation import ladder_scan
from curation.deduplicate import STEP, What, reduce
from curation.ordering import order_columns
from curation.population import population_of
from curation.probe import phash
from shards.sample import media_kind

GOLDEN = Path(__file__).parent / "golden" / "deduplicate.json"
BASE = 0xF0F0_3C3C_A5A5_9696

Record = dict[str, Any]


def record(uid: str, sha: str | list[str], phash: int | None = None, kind: str = "image", **columns: Any) -> Record:
    digests = [sha] if isinstance(sha, str) else sha
    hashes = [phash, *[None] * (len(digests) - 1)] if digests else []
    return {"uid": uid, "kind": kind, "sha256": digests, "phash": hashes, **columns}


def population(records: list[Record]) -> pa.Table:
    types = {
        "uid": pa.string(),
        "kind": pa.string(),
        "sha256": pa.list_(pa.string()),
        "phash": pa.list_(pa.uint64()),
        "width": pa.list_(pa.int32()),
        "score": pa.float64(),
        "source": pa.string(),
    }
    names = [name for name in types if not records or any(name in r for r in records)]
    return pa.table({name: pa.array([r.get(name) for r in records], types[name]) for name in names})


def flip(value: int, *bits: int) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def reduced(what: What, table: pa.Table, **more: Any) -> pa.Table:
    with tempfile.TemporaryDirectory() as scratch:
        return reduce(what, population_of(table, Path(scratch), **more))


def answers(what: What, records: list[Record], **more: Any) -> dict[str, Record]:
    return {row.pop("uid"): row for row in reduced(what, population(records), **more).to_pylist()}


def test_golden_rows() -> None:
    """Other output under the same version of the step is an error: bump STEP.version and write the rows anew."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["version"] == STEP.version
    for case in golden["cases"]:
        table = reduced(What(**case["what"]), population([record(**r) for r in case["population"]]))
        assert table.to_pylist() == case["rows"], case["name"]


def test_equal_bytes_keep_the_first_in_the_order() -> None:
    records = [record("a", "s", width=[10]), record("b", "s", width=[30]), record("c", "s", width=[None]), record("d", "t", width=[5])]
    rows = answers(What(keep_best="width desc"), records)
    assert {uid: row["of"] for uid, row in rows.items()} == {"a": "b", "b": None, "c": "b", "d": None}
    assert rows["a"] == {"of": "b", "rung": "sha256", "similarity": 1.0, "group": "b"}
    assert rows["d"] == {"of": None, "rung": None, "similarity": None, "group": "d"}


def test_copies_do_not_chain() -> None:
    """b is near a, c is near b but not a: c stays, for what it is near to was rejected itself."""
    b, c = flip(BASE, 0, 1, 2), flip(BASE, 0, 1, 2, 10, 11, 12)
    rows = answers(What(phash_radius=4), [record("a", "1", BASE), record("b", "2", b), record("c", "3", c)])
    assert [rows[u]["of"] for u in "abc"] == [None, "a", None]
    assert rows["b"]["similarity"] == 1 - 3 / 64


def test_the_nearest_kept_sample_replaces_a_copy() -> None:
    far, near = flip(BASE, 0, 1, 2, 3), flip(BASE, 60)
    assert (far ^ near).bit_count() == 5
    rows = answers(What(phash_radius=4), [record("a", "1", far), record("b", "2", near), record("c", "3", BASE)])
    assert [rows[u]["of"] for u in "abc"] == [None, None, "b"]


def test_a_byte_copy_of_a_copy_goes_where_that_went() -> None:
    near = flip(BASE, 5)
    rows = answers(What(), [record("a", "1", BASE), record("b", "2", near), record("c", "2", near)])
    assert [(rows[u]["of"], rows[u]["rung"]) for u in "abc"] == [(None, None), ("a", "phash"), ("a", "phash")]


@pytest.mark.parametrize("flat", [0, 1 << 63, 0x7F, (1 << 64) - 1])
def test_flat_pictures_match_by_bytes_only(flat: int) -> None:
    rows = answers(What(), [record("a", "1", flat), record("b", "2", flat), record("c", "1", flat)])
    assert [rows[u]["of"] for u in "abc"] == [None, None, "a"]


def test_videos_match_by_bytes_only() -> None:
    records = [record("a", "1", BASE), record("b", "2", BASE, kind="video"), record("c", "2", BASE, kind="video")]
    assert [answers(What(), records)[u]["of"] for u in "abc"] == [None, None, "b"]


def test_an_answer_is_the_same_in_whatever_pieces_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    table = population([record(f"u{i}", str(i % 4), flip(BASE, i % 3)) for i in range(11)])
    whole = reduced(What(), table)
    monkeypatch.setattr("curation.deduplicate.PIECE", 3)
    assert reduced(What(), table).equals(whole)
    assert reduced(What(), table.slice(0, 0)).num_rows == 0


def test_a_crowd_of_one_source_is_no_work_across_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of one source are near each other, more than a list holds: those of the other source are copies of the best of them."""
    held: list[int] = []
    maybe = ladder_scan._maybe
    monkeypatch.setattr(ladder_scan, "_maybe", lambda *a: held.append(len(a[3]) * len(a[4])) or maybe(*a))
    records = [record(f"a{i:03d}", f"a{i}", flip(BASE, *divmod(i, 12)), source="a") for i in range(140)]
    records += [record(f"b{i}", f"b{i}", flip(BASE, 60 + i), source="b") for i in range(3)]
    rows = answers(What(across="sources", phash_radius=6), records)
    assert [rows[f"b{i}"]["of"] is not None for i in range(3)] == [True] * 3
    assert all(row["of"] is None for uid, row in rows.items() if uid.startswith("a"))
    assert sum(held) <= 2 * 140 * 3


def test_several_media_match_as_a_whole() -> None:
    records = [
        record("a", ["1", "2"], BASE),
        record("b", ["2", "1"], BASE),
        record("c", ["1", "2"], BASE),
        record("d", "1", BASE),
        record("e", [], kind="text"),
        record("f", [], kind="text"),
    ]
    assert [answers(What(), records)[u]["of"] for u in "abcdef"] == [None, None, "a", None, None, None]


def test_rungs_can_be_turned_off() -> None:
    records = [record("a", "1", BASE), record("b", "1", BASE), record("c", "3", flip(BASE, 3))]
    assert [answers(What(phash_radius=0), records)[u]["of"] for u in "abc"] == [None, "a", None]
    assert [answers(What(sha256=False), records)[u]["rung"] for u in "abc"] == [None, "phash", "phash"]


def test_an_order_of_a_sample_column_and_a_trailing_comment_is_completed_by_uid() -> None:
    records = [record("b", "1", score=0.5), record("a", "1", score=0.5), record("c", "1", score=None)]
    assert [answers(What(keep_best="score desc -- best first"), records)[u]["of"] for u in "abc"] == [None, "a", "a"]


samples = st.lists(
    st.tuples(
        st.integers(0, 4),  # bytes
        st.one_of(st.none(), st.lists(st.integers(0, 40), max_size=6)),  # bits flipped in the hash
        st.one_of(st.none(), st.integers(0, 3)),  # width
        st.sampled_from(["image", "image", "image", "video"]),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(samples, st.integers(1, 8), st.integers(0, 2**32), st.sampled_from(["", "width desc", "width, kind desc"]))
def test_the_order_of_rows_does_not_matter_and_every_copy_is_near_a_kept_one(
    drawn: list[tuple[int, list[int] | None, int | None, str]], radius: int, seed: int, keep_best: str
) -> None:
    records = []
    for place, (content, bits, width, kind) in enumerate(drawn):
        # the hash is a function of the bytes, as in the world
        phash = None if bits is None or kind == "video" else flip(BASE, *drawn[content % len(drawn)][1] or [])
        sha = f"{content}-{phash}-{kind}"
        records.append(record(f"u{place:02d}", sha, phash, kind=kind, width=[width]))
    what = What(phash_radius=radius, keep_best=keep_best)
    table = population(records)
    straight = reduced(what, table)
    shuffled = [*records]
    random.Random(seed).shuffle(shuffled)
    assert reduced(what, population(shuffled)).equals(straight)

    by_uid = {r["uid"]: r for r in records}
    rows = {row["uid"]: row for row in straight.to_pylist()}
    assert set(rows) == set(by_uid)
    kept = [uid for uid, row in rows.items() if row["of"] is None]
    for uid, row in rows.items():
        mine = by_uid[uid]
        if row["of"] is not None:
            other = by_uid[row["of"]]
            assert row["of"] in kept
            assert row["group"] == row["of"]
            if row["rung"] == "sha256":
                assert mine["sha256"] == other["sha256"]
            else:
                assert (mine["phash"][0] ^ other["phash"][0]).bit_count() == round((1 - row["similarity"]) * 64) <= radius
    for a in kept:
        for b in kept:
            if a < b:
                one, two = by_uid[a], by_uid[b]
                assert one["sha256"] != two["sha256"]
                if one["phash"][0] is not None and two["phash"][0] is not None:
                    assert (one["phash"][0] ^ two["phash"][0]).bit_count() > radius


def test_the_step_reads_what_its_ordering_names() -> None:
    assert STEP.reads(What(keep_best="width*height desc, least(aesthetic, 3), kind")) == ["sha256", "phash", "aesthetic", "height", "width"]
    assert STEP.reads(What(phash_radius=0)) == ["sha256"]
    assert [c.name for c in STEP.columns(What())] == ["of", "rung", "similarity", "group"]
    assert STEP.implied is not None
    assert (STEP.implied(What()) or "").format(prefix="copy_") == "copy_of is null or turns > 0"


@pytest.mark.parametrize(
    "ordering",
    [
        "random()",
        "now() desc",
        "count(*)",
        "row_number() over ()",
        "(select 1)",
        "width; drop table population",
        "width limit 1",
        "width,,",
        "nosuchfunction(width)",
        "getenv('HOME')",
        "width union select 2 order by 1",
    ],
)
def test_orderings_that_are_no_pure_function_of_a_sample_are_refused(ordering: str) -> None:
    with pytest.raises(ValueError, match="keep_best"):
        order_columns(ordering)


def test_values_that_cannot_work_are_refused() -> None:
    assert STEP.check is not None
    STEP.check(What(keep_best="width * height desc nulls last"))
    unknown: Any = "captions"
    for what in (
        What(on=unknown),
        What(across=unknown),
        What(action=unknown),
        What(cosine=1.2),
        What(jaccard=0.1),
        What(probes=0),
        What(seed=-1),
        What(phash_radius=17),
        What(phash_radius=-1),
        What(phash_radius=0, sha256=False),
    ):
        with pytest.raises(ValueError):
            STEP.check(what)


def test_real_copies_are_found_and_nothing_else(data_dir: Path) -> None:
    """Every picture of the development set at once; truth is the union of its overlapping groups. 0.54 of the made and mined copies are
    within radius 4: flips, deep crops and wide borders are not what a perceptual hash is for."""
    manifest = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    groups = [r["files"] for r in manifest if r["kind"] == "dup" and r["label"] in ("dup", "dup_group")]
    files = sorted({f for r in manifest if r["kind"] == "dup" for f in r["files"] if media_kind(f) == "image"})
    group_of = {f: f for f in files}
    for members in groups:
        joined = {group_of[f] for f in members if f in group_of}
        group_of = {f: min(joined) if g in joined else g for f, g in group_of.items()}
    assert set(group_of.values()) <= set(files)
    records = []
    for name in files:
        data = (data_dir / name).read_bytes()
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        records.append(record(name, hashlib.sha256(data).hexdigest(), phash(pixels), width=[pixels.shape[1]]))
    rows = answers(What(keep_best="width desc"), records)
    rejected = [f for f in files if rows[f]["of"] is not None]
    assert [(f, rows[f]["of"]) for f in rejected if group_of[f] != group_of[rows[f]["of"]]] == []
    assert len(rejected) / (len(files) - len(set(group_of.values()))) >= 0.5
