"""A dataset of ours is a source again: what its newest version lists, no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.errors import RecipeError
from shards.media import Limits
from shards.read import read_media
from shards.sample import Sample, uid_of
from shards.sources import SourceSpec, check_source, list_containers, scan
from tests.pipeline.small import pictures, recipe, run, talk, texts


@pytest.fixture(scope="module")
def dataset(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    pictures(folder / "pics", 5)
    talk(folder / "pics/001.json", "noise")
    texts(folder / "texts.jsonl", 2)
    steps = ["probe", {"keep": "width >= 100"}, {"compose": {"tasks": ["short_caption", "vqa", "text"]}}]
    run(
        recipe(folder / "r.yaml", {"pics": folder / "pics", "texts": folder / "texts.jsonl"}, steps, write={"max_samples": 3}),
        folder / "run",
    )
    return folder / "run/dataset"


def samples(spec: SourceSpec) -> list[Sample]:
    return [sample for container in list_containers(spec) for sample in scan(spec, container)]


def test_samples_come_back_with_texts_scores_and_bytes(dataset: Path) -> None:
    spec = SourceSpec("again", "dataset", str(dataset), fields={"transcription": "scores.format"})
    assert check_source(spec, dataset) == []
    found = {s.key: s for s in samples(spec)}
    assert sorted(found) == ["pics/001.jpg", "pics/002.jpg", "pics/003.jpg", "pics/004.jpg", "texts/t0", "texts/t1"]
    one = found["pics/001.jpg"]
    assert one.uid == uid_of("again", "pics/001.jpg")
    assert (one.texts.caption, one.texts.transcription, one.texts.conversations[1]["value"]) == ("picture number 1", "JPEG", "noise")
    assert one.media[0].name == "001.jpg"
    assert read_media(one.media[0], Limits()) == (dataset.parent.parent / "pics/001.jpg").read_bytes()
    assert found["texts/t1"].texts.conversations[0]["value"] == "1 + 1?"
    assert len({(s.unit, s.ordinal) for s in found.values()}) == 6


def test_a_tightened_rule_lists_fewer_over_the_same_tars(dataset: Path) -> None:
    folder = dataset.parent.parent
    spec = SourceSpec("again", "dataset", str(dataset))
    before = list(list_containers(spec))
    steps = ["probe", {"keep": "width >= 105"}, {"compose": {"tasks": ["short_caption", "vqa", "text"]}}]
    tight = recipe(folder / "t.yaml", {"pics": folder / "pics", "texts": folder / "texts.jsonl"}, steps, write={"max_samples": 3})
    run(tight, folder / "run")
    assert sorted(s.key for s in samples(spec)) == ["pics/003.jpg", "pics/004.jpg", "texts/t0", "texts/t1"]
    after = list(list_containers(spec))
    assert {c.name for c in after} <= {c.name for c in before}
    assert {c.stamp for c in after} - {c.stamp for c in before}


def test_damage_is_a_sample_with_a_word(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    for path in sorted(dataset.rglob("*")):
        if path.is_file():
            target = copy / path.relative_to(dataset)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    spec = SourceSpec("again", "dataset", str(copy))
    whole = samples(spec)
    record = b'"caption":"picture number 4"'
    [tar] = [p for p in copy.rglob("*.tar") if record in p.read_bytes()]
    tar.write_bytes(tar.read_bytes().replace(record, b'"caption":"picture number 5"'))
    [bad] = [s for s in samples(spec) if s.damage]
    assert "checksum" in (bad.damage or "")
    assert len(samples(spec)) == len(whole)
    tar.write_bytes(tar.read_bytes()[:-512])
    [bad] = [s for s in samples(spec) if s.damage]
    assert "gone or cut" in (bad.damage or "")
    (copy / "manifest.json").unlink()
    with pytest.raises(RecipeError, match="manifest"):
        samples(spec)
