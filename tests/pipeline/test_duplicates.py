"""The audit of deduplicate steps: a run of pictures, tars, pages, films and a reference, told in numbers, pictures and a page."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from curation.population import PairsInMemory, population_of
from curation.vectors import write_vectors
from pipeline.cli import app
from pipeline.contact_sheet import SIDE, Pair, sheet, thumbnail
from pipeline.duplicates import Opened, members, opened, steps_of, tell
from pipeline.duplicates_pairs import Rung, rungs_of
from pipeline.duplicates_recall import near_by_bits, near_by_cosine, near_by_places, wilson
from pipeline.ledger import open_ledger
from pipeline.recipe import load_run_recipe
from shards.errors import LedgerError, RecipeError
from shards.media import Limits
from shards.sample import MediaRef, uid_of
from tests.pdfs import write_pdf
from tests.pipeline.small import picture, recipe, run, texts

HOSTILE = '<script>alert(1)</script> & "名前".jpg'
NEAR = 0.9


def mixed(path: Path, seed: int, share: float, width: int = 60) -> None:
    """A picture of `seed` with a share of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    one, other = (np.random.default_rng(s).uniform(0, 255, (6, 8, 3)) for s in (seed, 1_000 + seed))
    small = np.clip((1 - share) * one + share * other, 0, 255).astype(np.uint8)
    Image.fromarray(small).resize((width, width * 3 // 4), Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="module")
def audited(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, whose picture gone.jpg was deleted since."""
    folder = tmp_path_factory.mktemp("audited")
    pics = folder / "pics"
    for i in range(8):
        picture(pics / f"{i}.jpg", i, width=120 + 4 * i, height=90)
    picture(pics / HOSTILE.replace("/", "_"), 3, width=100)
    picture(pics / "gone.jpg", 3, width=90, quality=70)
    (pics / "same.jpg").write_bytes((pics / "2.jpg").read_bytes())
    for n in range(12):  # cosines from 0.97 to 0.80, far apart as hashes
        mixed(pics / f"m{n}.png", 20 + n, 0.0, 80)
        mixed(pics / f"m{n}-mixed.png", 20 + n, 0.22 + 0.02 * n)
    with io.BytesIO() as file:
        Image.open(pics / "5.jpg").resize((80, 60)).save(file, "JPEG")
        (folder / "tars").mkdir()
        with tarfile.open(folder / "tars" / "0.tar", "w") as tar:
            member = tarfile.TarInfo("a.jpg")
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))
    write_pdf(folder / "docs" / "one.pdf", 1)
    write_pdf(folder / "docs" / "two.pdf", 1)
    picture(folder / "bench" / "held out.jpg", 6, width=64)
    texts(folder / "texts.jsonl", 2)
    ladder = {"embedding": "thumbnail", "cosine": NEAR, "keep_best": "width * height desc"}
    ladder["reference"] = [{"name": "bench", "folder": str(folder / "bench")}]
    steps = [
        {"pages": {"dpi": 36}}, "probe", "tests.steps.thumbnail", {"deduplicate": ladder},
        {"deduplicate": {"as": "bytes", "phash_radius": 0, "action": "mark"}},
    ]  # fmt: skip
    sources = {"pics": pics, "docs": folder / "docs", "texts": folder / "texts.jsonl"}
    path = recipe(folder / "recipe.yaml", sources, steps)
    tars = f"- {{name: tars, format: webdataset, path: {folder / 'tars'}}}"
    path.write_text(path.read_text().replace("sources:\n", f"sources:\n{tars}\n"))
    run(path, folder / "run")
    (pics / "gone.jpg").unlink()
    return folder


@pytest.fixture
def step(audited: Path, tmp_path: Path) -> Iterator[Opened]:
    ledger = open_ledger(str(audited / "run"))
    loaded = load_run_recipe(ledger.store)
    with opened(ledger, loaded, steps_of(loaded, "deduplicate"), tmp_path) as steps:
        yield next(steps)


@pytest.fixture(scope="module")
def spoken(audited: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Where the page lies, and what the command says to machines, while another process holds the run."""
    out = tmp_path_factory.mktemp("page")
    writer = open_ledger(str(audited / "run"), write=True)
    try:
        result = CliRunner().invoke(app, ["duplicates", str(audited / "run"), "--out", str(out), "--json", "--pairs", "4"])
    finally:
        writer.close()
    assert result.exit_code == 0, result.output
    return out, [json.loads(line) for line in result.stdout.splitlines()]


def test_groups_say_who_stays_and_why(step: Opened) -> None:
    told = tell(step, 99)
    assert told.samples == 38
    assert ("pics", "reference bench", "phash", 1) in told.by_sources
    assert ("tars", "pics", "phash", 1) in told.by_sources
    assert ("docs", "docs", "sha256", 1) in told.by_sources
    assert sum(told.by_rung.values()) == told.copies == sum(n for *_, n in told.by_sources)
    assert sum((size - 1) * n for size, n in told.sizes) == told.copies
    groups = {group.keeper.key: group for group in told.shown}
    third = groups["3.jpg"]
    assert {copy.key for copy in third.copies} == {HOSTILE.replace("/", "_"), "gone.jpg"}
    assert third.keeper.values == {"height": 90, "width": 132}
    assert [copy.values["width"] for copy in third.copies] in ([100, 90], [90, 100])
    assert third.why == "it is the first by width * height desc"
    assert {c.verdict for c in third.copies} == {"rejected"}
    assert groups["2.jpg" if "2.jpg" in groups else "same.jpg"].why == "all are equal in width * height desc; its uid is the smallest"
    bench = groups["held out.jpg"]
    assert (bench.keeper.role, bench.keeper.source) == ("reference", "reference bench")
    assert "reference" in bench.why
    assert bench.keeper.media[0].path.endswith("bench/held out.jpg")
    assert [copy.key for copy in bench.copies] == ["6.jpg"]
    assert [g.size for g in told.shown] == sorted((g.size for g in told.shown), reverse=True)


def rung_of(step: Opened, name: str, **options: Any) -> Rung:
    return next(rung for rung in rungs_of(step, **options) if rung.rung == name)


def test_moved_thresholds_are_what_the_step_itself_counts(step: Opened) -> None:
    assert step.op.step.reduce is not None
    for name, field in (("phash", "phash_radius"), ("embedding", "cosine")):
        rung = rung_of(step, name, sample=0)
        assert [move.value for move in rung.moves if move.here] == [getattr(step.op.what, field)]
        assert len(rung.moves) >= 6
        assert sum(b.pairs for b in rung.bins) == rung.pairs
        assert sum(b.pairs for b in rung.bins if b.above) == next(move.pairs for move in rung.moves if move.here)
        for move in rung.moves:
            what = replace(step.op.what, **{field: type(getattr(step.op.what, field))(move.value)})
            result = step.op.step.reduce(what, replace(step.population, pairs=PairsInMemory()))
            assert move.copies == result.num_rows - result["of"].null_count
    assert len({move.copies for move in rung_of(step, "embedding", sample=0).moves}) > 2


def test_the_nearest_pairs_of_each_side_decide_something(step: Opened) -> None:
    rung = rung_of(step, "embedding", borders=6, sample=0)
    above, below = ([pair for pair in rung.near if pair.above == side] for side in (True, False))
    assert above
    assert below
    assert all(pair.similarity >= NEAR for pair in above)
    assert [pair.similarity for pair in above] == sorted(pair.similarity for pair in above)
    assert all(0.85 <= pair.similarity < NEAR for pair in below)
    assert [pair.similarity for pair in below] == sorted((pair.similarity for pair in below), reverse=True)
    for pair in above:
        if pair.worse.of == pair.better.uid and pair.worse.rung == "embedding":
            assert pair.said == "second is a copy of first, by embedding"
            assert pair.worse.similarity == pytest.approx(pair.similarity)
    assert any(pair.said == "second is a copy of first, by embedding" for pair in above)
    shown = [member.uid for pair in rung.near for member in (pair.better, pair.worse)]
    assert max(shown.count(uid) for uid in shown) <= 4  # twice on each side


def test_recall_counts_what_brute_force_finds(step: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rung_of(step, "embedding").recall
    assert whole is not None
    assert whole.sampled == whole.among == 37
    assert whole.at_floor.found == whole.at_floor.pairs == rung_of(step, "embedding", sample=0).pairs > 10
    assert whole.missed == ()
    few = rung_of(step, "embedding", sample=9, seed=1).recall
    assert few is not None
    assert 0 < few.at_floor.pairs < whole.at_floor.pairs
    hashes = rung_of(step, "phash").recall
    assert hashes is not None
    assert (hashes.at_floor.value, hashes.at_floor.found > 0) == (1.0, True)

    from pipeline import duplicates_pairs

    load = duplicates_pairs.load

    def lossy(ladder: Any, kept: Any, rung: int) -> Any:
        table = load(ladder, kept, rung)
        return None if table is None else table.slice(3)

    monkeypatch.setattr(duplicates_pairs, "load", lossy)
    lost = rung_of(step, "embedding").recall
    assert lost is not None
    assert lost.at_floor.pairs - lost.at_floor.found == 3
    assert len(lost.missed) == 3
    assert lost.at_floor.low < lost.at_floor.value < lost.at_floor.high < 1
    assert lost.missed[0].similarity >= lost.missed[-1].similarity


def test_brute_force_is_that(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 16)).astype(np.float32)
    values[200:] = values[:100] + rng.normal(size=(100, 16)).astype(np.float32) * 0.3
    row = np.arange(300)
    vectors = write_vectors(tmp_path / "v", 300, np.zeros((0, 2), np.int64), [(row, np.zeros(300, np.int64), values)])
    unit = vectors.block(0).astype(np.float64)
    asked = np.array([3, 50, 210])
    found = {(int(asked[a]), int(b)) for q, o, _ in near_by_cosine(vectors, asked, 0.9) for a, b in zip(q, o, strict=True)}
    assert found == {(int(q), j) for q in asked for j in range(300) if unit[q] @ unit[j] >= 0.9}
    assert len(found) > len(asked)
    hashes = rng.integers(0, 1 << 63, 500, dtype=np.uint64)
    hashes[400:] = hashes[:100] ^ np.uint64(0b10011)
    near = {(a, b, s) for q, o, alike in near_by_bits(hashes, np.array([7]), 3) for a, b, s in zip(q, o, alike, strict=True)}
    assert {(int(b), float(s)) for _, b, s in near} == {(7, 1.0), (407, 1 - 3 / 64)}
    signatures = rng.integers(0, 1 << 32, (50, 128), dtype=np.uint32)
    signatures[40] = np.where(np.arange(128) < 100, signatures[2], signatures[40])
    kept = write_vectors(tmp_path / "s", 50, np.zeros((0, 2), np.int64), [(row[:50], row[:50] * 0, signatures)], dtype="uint32")
    ((_, b, s),) = near_by_places(kept, np.array([2]), 0.7)
    assert (b.tolist(), s.tolist()) == ([2, 40], [1.0, 100 / 128])


def test_wilson() -> None:
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # as published tables have it
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_by_itself_and_names_are_text(spoken: tuple[Path, list[dict[str, Any]]]) -> None:
    out, _ = spoken
    page = Page()
    source = (out / "duplicates.html").read_text()
    page.feed(source)
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "link", "iframe", "object"}
    assert all((attrs.get("src") or "data:").startswith("data:") and (attrs.get("href") or "#").startswith("#") for _, attrs in page.tags)
    assert "url(" not in source
    assert "@import" not in source
    assert HOSTILE.replace("/", "_") in page.text
    assert any("gone.jpg cannot be read" in text for text in page.text)
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    assert sum(tag == "h2" for tag, _ in page.tags) == 2
    assert "prefers-color-scheme: dark" in source
    images = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(images) > 20


def test_machines_are_told_everything(spoken: tuple[Path, list[dict[str, Any]]]) -> None:
    out, lines = spoken
    steps = {line["step"]: line for line in lines if line["what"] == "step"}
    assert set(steps) == {"deduplicate", "bytes"}
    assert steps["bytes"]["copies"] == 0  # those of equal bytes were rejected by the first
    rungs = {line["rung"]: line for line in lines if line["what"] == "rung"}
    assert rungs["embedding"]["recall"]["at_floor"]["recall"] == 1.0
    assert rungs["phash"]["threshold"] == 1 - 4 / 64
    groups = [line for line in lines if line["what"] == "group"]
    assert {"uid", "source", "key", "values", "role"} <= set(groups[0]["keeper"])
    assert all(copy["of"] == group["keeper"]["uid"] for group in groups for copy in group["copies"])
    pairs = [line for line in lines if line["what"] == "pair"]
    assert {pair["above"] for pair in pairs if pair["rung"] == "embedding"} == {True, False}
    assert lines[-1]["what"] == "files"
    sheets = [Path(file) for file in lines[-1]["files"] if file.endswith(".jpg")]
    assert [path.parent for path in sheets] == [out, out]
    for path in sheets:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert image.width > 2 * SIDE


def test_people_are_told(audited: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["duplicates", str(audited / "run"), "--step", "deduplicate", "--sample", "5", "--groups", "2"])
    assert result.exit_code == 0, result.output
    assert "deduplicate: 38 samples" in result.output
    assert "→ 0.9" in result.output
    assert "pairs of 5 samples" in result.output
    assert (audited / "run/duplicates/duplicates.html").is_file()
    assert "bytes" not in result.output.split("run/duplicates")[0].replace("by bytes", "")


def test_the_same_run_gives_the_same_page(audited: Path, spoken: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    again = CliRunner().invoke(app, ["duplicates", str(audited / "run"), "--out", str(tmp_path), "--json", "--pairs", "4"])
    assert again.exit_code == 0
    assert (tmp_path / "duplicates.html").read_bytes() == (spoken[0] / "duplicates.html").read_bytes()


def test_explain_tells_copies_references_and_children(audited: Path) -> None:
    def said(uid: str) -> str:
        result = CliRunner().invoke(app, ["explain", str(audited / "run"), uid])
        assert result.exit_code == 0, result.output
        return next(line for line in result.output.splitlines() if line.startswith("step deduplicate"))

    assert "; stands for 2 copies of it" in said(uid_of("pics", "3.jpg"))
    assert "; a copy of 3.jpg of source pics by phash, similarity" in said(uid_of("pics", "gone.jpg"))
    assert "; a copy of held out.jpg of source reference bench by phash" in said(uid_of("pics", "6.jpg"))
    assert "stands for" not in said(uid_of("pics", "7.jpg"))
    ledger = open_ledger(str(audited / "run"))
    loaded = load_run_recipe(ledger.store)
    with tempfile.TemporaryDirectory() as scratch, opened(ledger, loaded, steps_of(loaded, "deduplicate"), Path(scratch)) as steps:
        one = next(steps)
        pages = [uid for (uid,) in one.connection.execute(f"select uid from {one.everybody} where key like '%#page=1'").fetchall()]
        known = members(one, pages)
    copy = next(member for member in known.values() if member.of is not None)
    keeper = next(member for member in known.values() if member.of is None)
    assert f"; a copy of {keeper.key} of source docs by sha256, similarity 1" in said(copy.uid)
    assert "; stands for 1 copy of it" in said(keeper.uid)
    assert keeper.media[0].path.startswith(str(audited / "run"))


def test_what_cannot_be_told_is_said(audited: Path, tmp_path: Path) -> None:
    ledger = open_ledger(str(audited / "run"))
    loaded = load_run_recipe(ledger.store)
    with pytest.raises(RecipeError, match=r"no deduplicate step is named 'dedupicate'; did you mean 'deduplicate'\?"):
        steps_of(loaded, "dedupicate")
    with pytest.raises(RecipeError, match="has no deduplicate step"):
        steps_of(replace(loaded, ops=loaded.ops[:2]))
    with pytest.raises(LedgerError, match="no run"):
        open_ledger(str(tmp_path / "nowhere"))
    (one,) = steps_of(loaded, "deduplicate")
    never = replace(one, digest="0" * 16)
    changed = replace(loaded, ops=tuple(never if op is one else op for op in loaded.ops))
    with (
        pytest.raises(LedgerError, match=r"step deduplicate has no result in .*: it has not run yet.*fovea curate"),
        opened(ledger, changed, [never], tmp_path) as steps,
    ):
        next(steps)
    with open_ledger(str(audited / "run")).connect() as connection:
        ledger.overlays["listing"] = f"(select * from {ledger.scan(connection, 'listing')} where key <> '7.jpg')"
    with (
        pytest.raises(LedgerError, match=r"step deduplicate has no result in .*: it has one of other samples than there are now"),
        opened(ledger, loaded, [one], tmp_path) as steps,
    ):
        next(steps)


def test_pairs_that_are_gone_are_said_to_be(step: Opened) -> None:
    bare = replace(step, ladder=replace(step.ladder, population=replace(step.population, pairs=PairsInMemory())))
    rungs = rungs_of(bare)
    assert [rung.rung for rung in rungs] == ["phash", "embedding"]
    assert all(rung.missing is not None and "not stored" in rung.missing for rung in rungs)


def test_every_sample_has_a_small_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 1, 400, 100)
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff nothing")

    def ref(name: str, kind: Any = "image") -> MediaRef:
        path = tmp_path / name
        return MediaRef(kind, name, str(path), -1, path.stat().st_size if path.exists() else 7, "")

    good = thumbnail([ref("a.jpg")], "", Limits())
    assert (good.image.size, good.why) == ((SIDE, SIDE // 4), None)
    bad = thumbnail([ref("b.jpg")], "", Limits())
    assert bad.why is not None
    assert bad.image.getpixel((SIDE - 1, SIDE - 1)) == (216, 218, 222)
    assert "more than" in str(thumbnail([ref("a.jpg")], "", Limits(image_bytes=10)).why)
    both = thumbnail([ref("a.jpg"), ref("b.jpg"), ref("gone.jpg")], "", Limits())
    assert both.image.size == (SIDE, SIDE)
    assert both.why is not None
    assert "gone.jpg" in both.why
    written = thumbnail([], "user: what?\x00‮", Limits())
    assert (written.text[:10], written.why) == ("user: what", None)
    assert thumbnail([], " ", Limits()).why == "no media, no text"
    assert "PDF" in str(thumbnail([ref("c.pdf", "pdf")], "", Limits()).why)
    one = sheet("t", [Pair(good, bad, "a", "b" * 99, ["0.9", "x"])])
    three = sheet("t", [Pair(good, bad, "a", "b" * 99, ["0.9", "x"])] * 3)
    sizes = [Image.open(io.BytesIO(data)).size for data in (one, three)]
    assert sizes[1][0] > sizes[0][0]
    assert sizes[1][1] > sizes[0][1]


def test_a_population_of_none(tmp_path: Path) -> None:
    import pyarrow as pa

    from curation.deduplicate import STEP, What, open_ladder

    table = pa.table({"uid": pa.array([], pa.string()), "kind": pa.array([], pa.string()), "phash": pa.array([], pa.list_(pa.uint64()))})
    table = table.append_column("sha256", pa.array([], pa.list_(pa.string())))
    ladder, _, held = open_ladder(What(), population_of(table, tmp_path))
    assert STEP.reduce is not None
    assert (ladder.rungs, held.table.num_rows) == ([1], 0)
