"""Decontamination: what is in a benchmark goes, whatever form the benchmark has; the benchmark itself is never part of the run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation import reference_vectors
from curation.population import OneByOne, Population
from curation.reference import Reference, check_references, label, parse_label, parse_references, reference_identity
from pipeline.embeddings import export
from pipeline.explain import explain
from pipeline.globals import LedgerPairs, open_population
from pipeline.ledger import open_ledger
from pipeline.plan import make_plan
from pipeline.recipe import StepOp, load_recipe, load_run_recipe
from pipeline.verdicts import Judge
from shards.errors import InfrastructureError, RecipeError
from tests.pipeline.small import ask, fovea, picture, pictures, recipe, run, talk, verdicts

VECTOR = "seen_vector"


def steps(counter: Path, *references: Mapping[str, str], by: float = 1.0, **more: Any) -> list[Any]:
    """probe, a vector for each picture with a line in `counter`, deduplicate against the references."""
    seen = {"as": "seen", "counter": str(counter), "by": by}
    return ["probe", {"tests.steps.seen": seen}, {"deduplicate": {"embedding": VECTOR, "reference": list(references), **more}}]


def lines(counter: Path) -> list[str]:
    """The pictures that vectors were made of, "<source>/<key>"."""
    return sorted(counter.read_text().split()) if counter.exists() else []


def copies(folder: Path) -> dict[str, str]:
    """key → what it is a copy of."""
    return dict(ask(folder, "select key, duplicate_of from samples where duplicate_of is not null"))


def seen_by_deduplicate(folder: Path, scratch: Path) -> Population:
    """The population of a finished run's last step."""
    ledger = open_ledger(str(folder))
    judge = Judge(ledger.connect(), ledger, load_run_recipe(ledger.store))
    judge.run()
    segment = judge.segments[-1]
    assert segment.global_step is not None
    return open_population(judge, segment, segment.global_step[1], OneByOne(), scratch)


def turned(path: Path, seed: int) -> None:
    """The picture of a seed a little brighter: another hash of its bytes, nearly the same vector."""
    picture(path, seed, 120, 90, 70)


@pytest.fixture(scope="module")
def finished(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of six pictures against a benchmark of three good pictures and a broken one; the benchmark is gone.

    Of the run 001 has the bytes of a benchmark's picture, 003 is a picture of it in other bytes and another size.
    """
    folder = tmp_path_factory.mktemp("held")
    pictures(folder / "pics", 6)
    bench = folder / "bench"
    (bench / "deep").mkdir(parents=True)
    shutil.copy(folder / "pics/001.jpg", bench / "same.jpg")
    turned(bench / "deep/again.jpg", 3)
    picture(bench / "other.jpg", 77)
    (bench / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    path = recipe(folder / "recipe.yaml", {"pics": folder / "pics"}, steps(folder / "calls", {"name": "mmbench", "folder": str(bench)}))
    assert "4 samples of mmbench through probe + seen" in [s.beyond for s in make_plan(load_recipe(path), str(folder / "run")).steps]
    first = run(path, folder / "run")
    assert first.calls == {"probe": 10, "seen": 9, "deduplicate": 1}
    assert first.media_opened == 10
    assert len(lines(folder / "calls")) == 9
    again = run(path, folder / "run")
    assert (again.calls, again.media_opened) == ({}, 0)
    picture(folder / "pics/006.jpg", 6)
    (folder / "pics/006.txt").write_text("one more")
    more = run(path, folder / "run")
    assert more.calls == {"probe": 1, "seen": 1, "deduplicate": 1}  # another population, and nothing of the benchmark is opened for it
    bench.rename(folder / "gone")
    return folder


def test_exactly_what_is_in_the_benchmark_goes(finished: Path) -> None:
    assert copies(finished / "run") == {"001.jpg": "reference:mmbench/same.jpg", "003.jpg": "reference:mmbench/deep/again.jpg"}
    said = verdicts(finished / "run")
    assert {key for key, (verdict, *_) in said.items() if verdict == "rejected"} == {"001.jpg", "003.jpg"}
    assert {verdict for verdict, *_ in said.values()} == {"kept", "rejected"}


def test_a_benchmark_is_no_part_of_the_run(finished: Path) -> None:
    assert ask(finished / "run", "select count(*), count(distinct source) from samples") == [(7, 1)]
    ledger = open_ledger(str(finished / "run"))
    for table in ("listing", "records", "verdicts"):
        uids = {uid for file in ledger.files(table) for uid in ledger.read(file)["uid"].to_pylist()}
        assert len(uids) == 7, table
    outcome = ask(finished / "run", "select verdict, count(*) from samples group by 1 order by 1")
    assert outcome == [("kept", 5), ("rejected", 2)]


def test_a_sample_is_explained_when_the_benchmark_is_gone(finished: Path) -> None:
    ledger = open_ledger(str(finished / "run"))
    (uid,) = ask(finished / "run", "select uid from samples where key = '003.jpg'")[0]
    life = explain(ledger, load_run_recipe(ledger.store), uid)["life"]
    (copy,) = [event["copy_of"] for event in life if "copy_of" in event]
    assert (copy["uid"], copy["key"]) == ("reference:mmbench/deep/again.jpg", "deep/again.jpg")
    shown = fovea("explain", finished / "run", uid, cwd=finished)
    assert shown.returncode == 0, shown.stderr
    assert "mmbench" in shown.stdout
    assert "deep/again.jpg" in shown.stdout


def test_what_was_seen_of_a_benchmark_is_there_without_it(finished: Path, tmp_path: Path) -> None:
    """Behind the samples, in order of key, by its names; what a broken picture lacks is null."""
    population = seen_by_deduplicate(finished / "run", tmp_path)
    rows = population.table.slice(population.samples)
    keys = ["broken.jpg", "deep/again.jpg", "other.jpg", "same.jpg"]
    assert rows["uid"].to_pylist() == [f"reference:mmbench/{key}" for key in keys]
    assert [v is not None and v[0] is not None for v in rows["sha256"].to_pylist()] == [False, True, True, True]
    vectors = population.vectors[VECTOR]
    assert vectors.valid.tolist() == [True] * 7 + [False, True, True, True]


def test_a_run_whose_benchmark_is_gone_says_so_before_it_starts(finished: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: step 'deduplicate': reference: 'mmbench': there is no folder"):
        load_recipe(finished / "recipe.yaml")


def test_another_threshold_opens_no_picture_of_a_benchmark(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copytree(finished / "gone", tmp_path / "bench")  # elsewhere, with the same dates
    calls = finished / "calls"
    reference = {"name": "mmbench", "folder": str(tmp_path / "bench")}
    path = recipe(tmp_path / "r.yaml", {"pics": finished / "pics"}, steps(calls, reference, phash_radius=0, embedding=""))
    planned = next(s for s in make_plan(load_recipe(path), str(tmp_path / "run")).steps if s.name == "deduplicate")
    assert planned.beyond == ""  # what steps said of the benchmark is there
    outcome = run(path, tmp_path / "run")
    assert (outcome.calls, outcome.media_opened) == ({"deduplicate": 1}, 0)
    assert copies(tmp_path / "run") == {"001.jpg": "reference:mmbench/same.jpg"}


def test_a_broken_picture_of_a_benchmark_is_told_and_ends_nothing(one_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And what only orders copies is not computed for a benchmark; and a conversation about its picture goes like any copy."""
    pictures(tmp_path / "pics", 2)
    talk(tmp_path / "pics/001.json")
    shutil.copytree(tmp_path / "pics", tmp_path / "bench")
    (tmp_path / "bench/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    reference = {"name": "b", "folder": str(tmp_path / "bench")}
    ordered = steps(tmp_path / "n", reference, embedding="", keep_best="seen_wide desc")
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ordered)
    outcome = run(path, tmp_path / "run")
    assert outcome.calls == {"probe": 5, "seen": 2, "deduplicate": 1}
    assert (outcome.counts["rejected"], outcome.counts["errored"]) == (2, 0)
    assert "reference:b/broken.jpg: decode:" in caplog.text
    picture(tmp_path / "pics/009.jpg", 9)
    again = run(path, tmp_path / "run", retry_errors=True)  # the broken one is tried again, nothing else of the benchmark
    assert again.calls == {"probe": 2, "seen": 1, "deduplicate": 1}


def test_a_benchmark_of_which_nothing_can_be_read_ends_the_run(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/a.jpg").write_bytes(b"\xff\xd8\xff nothing")
    reference = {"name": "b", "folder": str(tmp_path / "bench")}
    path = recipe(tmp_path / "r.yaml", {"pics": finished / "pics"}, steps(tmp_path / "n", reference))
    with pytest.raises(
        InfrastructureError, match=r"reference 'b' at .* none of 1 samples can be read \(the first: decode: .*mend what lies"
    ):
        run(path, tmp_path / "run")


def test_a_dataset_is_a_benchmark_too(finished: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 2, first=4)
    turned(tmp_path / "pics/twin.jpg", 0)
    picture(tmp_path / "pics/own.jpg", 50)
    reference = {"name": "held_out", "dataset": str(finished / "run/dataset")}
    run(recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, steps(tmp_path / "n", reference)), tmp_path / "run")
    wanted = {"004.jpg": "pics/004.jpg", "005.jpg": "pics/005.jpg", "twin.jpg": "pics/000.jpg"}
    assert copies(tmp_path / "run") == {key: f"reference:held_out/{of}" for key, of in wanted.items()}
    assert sum(line.startswith("reference:") for line in lines(tmp_path / "n")) == 5


@pytest.mark.slow
def test_a_document_is_a_benchmark_page_by_page(one_ray: None, tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 2)
    (tmp_path / "bench").mkdir()
    with Image.open(tmp_path / "pics/001.jpg") as page:
        page.resize((600, 450)).save(tmp_path / "bench/paper.pdf", quality=95)
    deduplicate = {"deduplicate": {"reference": [{"name": "b", "folder": str(tmp_path / "bench")}]}}
    run(recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["pages", "probe", deduplicate]), tmp_path / "run")
    assert copies(tmp_path / "run") == {"001.jpg": "reference:b/paper.pdf#page=1"}
    assert ask(tmp_path / "run", "select count(*) from samples") == [(2,)]
    whole = recipe(
        tmp_path / "whole.yaml", {"pics": tmp_path / "pics"}, ["probe", {"deduplicate": {"phash_radius": 3, **deduplicate["deduplicate"]}}]
    )
    with pytest.raises(InfrastructureError, match="holds only pdf, of which probe will tell nothing that deduplicate compares"):
        run(whole, tmp_path / "run")


def test_vectors_of_a_run_are_a_benchmark_too(finished: Path, tmp_path: Path) -> None:
    """Other vectors under the same key are another reference: neither verdicts nor stored pairs are those of the first."""
    shutil.copytree(finished / "run", tmp_path / "run")
    ledger = open_ledger(str(finished / "run"))
    done = export(ledger, load_run_recipe(ledger.store), VECTOR, tmp_path / "kept.parquet")
    assert (done.vectors, done.width) == (5, 144)
    shown = fovea("embeddings", finished / "run", "--column", VECTOR, "--out", tmp_path / "cli.parquet", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "cli.parquet").read_bytes() == (tmp_path / "kept.parquet").read_bytes()
    found = pq.read_table(tmp_path / "kept.parquet")["embedding"].to_pylist()
    reference = {"name": "v", "embeddings": str(tmp_path / "one.parquet")}
    path = recipe(tmp_path / "r.yaml", {"pics": finished / "pics"}, steps(tmp_path / "n", reference))
    stored = set()
    for number, key in ((0, "000.jpg"), (2, "004.jpg")):
        vectors_of(tmp_path / "one.parquet", done.digest, [found[number]], ["it"])
        assert run(path, tmp_path / "run").calls == {"deduplicate": 1}
        assert copies(tmp_path / "run") == {key: "reference:v/it"}
        population = seen_by_deduplicate(tmp_path / "run", tmp_path / f"scratch{number}")
        assert (population.references, population.table["uid"].to_pylist()[-1]) == (1, "reference:v/it")
        assert isinstance(population.pairs, LedgerPairs)
        stored.add(population.pairs.population)
    assert len(stored) == 2
    assert ask(tmp_path / "run", "select distinct duplicate_rung from samples order by 1") == [("embedding",), (None,)]


def test_an_export_is_of_whom_it_is_asked_for(finished: Path, tmp_path: Path) -> None:
    ledger = open_ledger(str(finished / "run"))
    loaded = load_run_recipe(ledger.store)
    done = export(ledger, loaded, VECTOR, tmp_path / "some.parquet", "width > 110 or key = '001.jpg'")
    table = pq.read_table(tmp_path / "some.parquet")
    assert table["key"].to_pylist() == ["pics/001.jpg", "pics/004.jpg", "pics/005.jpg"]
    seen = next(op for op in loaded.ops if isinstance(op, StepOp) and op.name == "seen")
    assert reference_vectors.read_header(str(tmp_path / "some.parquet")) == reference_vectors.Header(3, 144, seen.digest)
    assert done.digest == seen.digest
    with Image.open(finished / "pics/001.jpg") as image:
        small = image.convert("RGB").resize((8, 6), Image.Resampling.BOX)
    assert np.allclose(table["embedding"][0].as_py(), np.asarray(small, np.float32).reshape(-1) - 127.5)
    with pytest.raises(RecipeError, match="no step writes vectors to a column 'seen_vectr'; did you mean 'seen_vector'"):
        export(ledger, loaded, "seen_vectr", tmp_path / "none.parquet")
    with pytest.raises(RecipeError, match="predicate"):
        export(ledger, loaded, VECTOR, tmp_path / "none.parquet", "colour = 3")
    for told in (f"true; copy (select 1) to '{tmp_path}/other.csv'", f"true); copy (select 1) to '{tmp_path}/other.csv'; select (true", ""):
        with pytest.raises(RecipeError, match="predicate"):
            export(ledger, loaded, VECTOR, tmp_path / "none.parquet", told)
    with pytest.raises(InfrastructureError, match="nothing was written"):
        export(ledger, loaded, VECTOR, tmp_path / "none.parquet", "false")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["some.parquet"]


def vectors_of(path: Path, digest: str, rows: list[list[float] | None], keys: list[str] | None = None) -> Path:
    keys = keys or [f"k{i}" for i in range(len(rows))]
    pq.write_table(
        pa.table([pa.array(keys, pa.string()), pa.array(rows, pa.list_(pa.float32()))], schema=reference_vectors.schema(digest)), path
    )
    return path


def test_vectors_of_another_step_or_width_are_refused(finished: Path, tmp_path: Path) -> None:
    file = vectors_of(tmp_path / "v.parquet", "0123456789abcdef", [[1.0, 2.0]])
    reference = {"name": "v", "embeddings": str(file)}
    path = recipe(tmp_path / "r.yaml", {"pics": finished / "pics"}, steps(tmp_path / "n", reference))
    seen = next(op for op in load_recipe(path).ops if isinstance(op, StepOp) and op.name == "seen")
    for attempt in (lambda: run(path, tmp_path / "new"), lambda: make_plan(load_recipe(path), str(tmp_path / "new"))):
        with pytest.raises(RecipeError, match=rf"\(2 numbers\) were made by the step 0123456789abcdef.* by seen, {seen.digest}"):
            attempt()
    assert not (tmp_path / "new").exists()  # refused before anything started
    shutil.copytree(finished / "run", tmp_path / "run")
    vectors_of(file, seen.digest, [[1.0] * 144, [1.0, 2.0]])
    with pytest.raises(InfrastructureError, match="vectors of 2 numbers, the step's have 144"):
        run(path, tmp_path / "run")
    vectors_of(file, seen.digest, [None, [float("nan")] * 144, [0.0] * 144], ["c", "a", "d"])
    assert run(path, tmp_path / "run").counts["kept"] == 7  # what is no vector is near nothing
    without = [*steps(tmp_path / "n")[:2], {"deduplicate": {"reference": [reference]}}]
    plain = load_recipe(recipe(tmp_path / "r.yaml", {"pics": finished / "pics"}, without))
    with pytest.raises(RecipeError, match="is a file of vectors, and deduplicate compares none"):
        make_plan(plain, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([{"folder": "x"}], "needs a `name` of letters"),
        ([{"name": "a/b", "folder": "x"}], "needs a `name` of letters"),
        ([{"name": "a"}], "names nothing; give exactly one of folder, dataset, webdataset, embeddings"),
        ([{"name": "a", "folder": "x", "dataset": "y"}], "names folder and dataset; give exactly one"),
        ([{"name": "a", "folder": ""}], "folder is a path or URL"),
        ([{"name": "a", "fodler": "x"}], "unknown keys fodler"),
        ([{"name": "a", "folder": "x"}, {"name": "a", "dataset": "y"}], "'a' is there twice"),
    ],
)
def test_references_that_cannot_be_meant(value: list[dict[str, str]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_references(value)


def test_references_are_parsed_in_order_of_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse_references([{"name": "b", "folder": "x"}, {"name": "a", "dataset": "s3://bucket/d"}])
    assert found == (Reference("a", "dataset", "s3://bucket/d"), Reference("b", "folder", str(tmp_path / "x")))
    assert parse_label(label("a-b", "c/d.jpg")) == ("a-b", "c/d.jpg")
    assert parse_label("0" * 32) is None


def test_references_that_are_not_there_or_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    pq.write_table(pa.table({"key": ["a"], "embedding": [[1.0]]}), tmp_path / "plain.parquet")
    vectors_of(tmp_path / "none.parquet", "d", [])
    cut = vectors_of(tmp_path / "cut.parquet", "d", [[1.0, 2.0]] * 1000)
    cut.write_bytes(cut.read_bytes()[:-100])
    for form, place, why in (
        ("folder", "nowhere", "'r': there is no folder .*nowhere; mend the path"),
        ("folder", "empty", "there is nothing of format folder at .*empty"),
        ("dataset", "empty", "no manifest"),
        ("webdataset", "empty", "no .tar"),
        ("embeddings", "nowhere", "no such file.*mend the path|No such file.*mend the path"),
        ("embeddings", "torn.parquet", "damaged or no Parquet file"),
        ("embeddings", "cut.parquet", "damaged or no Parquet file"),
        ("embeddings", "plain.parquet", "no file of vectors: .*fovea.embed"),
        ("embeddings", "none.parquet", "holds no vectors"),
    ):
        with pytest.raises(ValueError, match=why):
            check_references([Reference("r", form, str(tmp_path / place))])  # type: ignore[arg-type]


def test_other_content_is_another_identity_and_another_place_is_not(tmp_path: Path) -> None:
    picture(tmp_path / "a/x.jpg", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = reference_identity(Reference("r", "folder", str(tmp_path / "a")))
    assert reference_identity(Reference("r", "folder", str(tmp_path / "b"))) == first
    assert reference_identity(Reference("s", "folder", str(tmp_path / "b"))) != first
    os.utime(tmp_path / "b/x.jpg", (1, 1))
    assert reference_identity(Reference("r", "folder", str(tmp_path / "b"))) != first
    picture(tmp_path / "a/y.jpg", 2)
    assert reference_identity(Reference("r", "folder", str(tmp_path / "a"))) != first
    file = vectors_of(tmp_path / "v.parquet", "d", [[1.0, 2.0]])
    before = reference_identity(Reference("r", "embeddings", str(file)))
    vectors_of(file, "d", [[1.0, 3.0]])
    assert reference_identity(Reference("r", "embeddings", str(file))) != before
