"""Manifests and LLaVA files against whatever may stand in them: every record is a sample, a damaged one is said, nothing is raised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.sample import Sample, media_stamp, texts_fingerprint
from shards.sources import SourceSpec, check_source, list_containers, scan

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["a.jpg", "b.txt", "../x", "\0", ""])
)
JSONISH = st.recursive(LEAVES, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=6), s, max_size=3), max_leaves=8)
NAMED = ["id", "files", "image", "images", "video", "caption", "transcription", "conversations", "text", "annotations"]
RECORDS = st.dictionaries(st.sampled_from(NAMED) | st.text(max_size=4), JSONISH, max_size=6)
LINES = st.lists(
    RECORDS.map(lambda r: json.dumps(r).encode()) | JSONISH.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=40), max_size=8
)


def samples(spec: SourceSpec) -> list[Sample]:
    return [sample for container in list_containers(spec) for sample in scan(spec, container)]


def manifest(folder: Path, *records: Any, **more: Any) -> SourceSpec:
    (folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return SourceSpec("src", "manifest", str(folder / "m.jsonl"), **more)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(lines=LINES, form=st.sampled_from(["manifest", "llava"]), explode=st.booleans(), seed=st.randoms(use_true_random=False))
def test_any_lines_are_samples_or_damage(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], form: str, explode: bool, seed: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    (folder / "a.jpg").write_bytes(b"x")
    (folder / "b.txt").write_bytes(b"x")
    lines = [line.replace(b"\n", b" ").replace(b"\r", b" ") for line in lines if not line.lstrip().startswith(b"[")]
    spec = SourceSpec("src", form, str(folder / "any.jsonl"), explode="files" if explode and form == "manifest" else None)

    def scanned(order: list[bytes]) -> list[Sample]:
        (folder / "any.jsonl").write_bytes(b"{}\n" + b"\n".join(order))
        return samples(spec)

    found = scanned(lines)
    assert len({s.uid for s in found}) == len(found)
    for sample in found:
        sample.key.encode("utf-8")
        texts_fingerprint(sample.texts)
        media_stamp(sample.media)
        json.dumps(sample.texts.meta, allow_nan=False, ensure_ascii=False).encode("utf-8")
        assert sample.damage is None or not sample.media
    seed.shuffle(lines)
    assert {s.uid for s in scanned(lines)} == {s.uid for s in found}


def test_numbers_that_are_no_floats_and_ids_without_end(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'{"x": 1e999}\n{"x": -1e999}\n{"id": "' + b"i" * 2_000 + b'"}\n{"id": 1e999}\n{"id": {}}\n')
    found = samples(SourceSpec("src", "manifest", str(tmp_path / "m.jsonl")))
    assert [s.texts.meta for s in found[:2]] == [{"x": "inf"}, {"x": "-inf"}]
    assert [s.damage is None for s in found] == [True, True, False, False, False]
    assert len({s.key for s in found}) == 5
    assert all(f"m.jsonl:{n}: " in (s.damage or "") for n, s in enumerate(found[2:], 3))
    assert max(len(s.key) for s in found) < 100


def test_an_exploded_record_loses_only_the_file_at_fault(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    found = samples(manifest(tmp_path, {"id": "r", "files": ["a.jpg", "gone.jpg", "../out.jpg", "b.jpg"], "label": "dup"}, explode="files"))
    assert {s.key: s.damage is None for s in found} == {"r/a.jpg": True, "r/b.jpg": True, "r/gone.jpg": False, "r/../out.jpg": False}
    assert all("m.jsonl:1" in (s.damage or "") for s in found[2:])
    (tmp_path / "gone.jpg").write_bytes(b"x")
    again = samples(manifest(tmp_path, {"id": "r", "files": ["a.jpg", "gone.jpg", "b.jpg"], "label": "dup"}, explode="files"))
    assert {s.uid for s in again} < {s.uid for s in found}  # a file that comes back is the same sample
    assert all(s.texts.meta == {"label": "dup"} for s in again)


def test_a_file_in_several_records_is_a_sample_of_each(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    found = samples(manifest(tmp_path, {"id": "r", "files": ["a.jpg"]}, {"id": "s", "files": ["a.jpg"]}, explode="files"))
    assert [s.key for s in found] == ["r/a.jpg", "s/a.jpg"]


def test_annotations_never_hide_a_field_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{}")
    plain, own = samples(manifest(tmp_path, {"id": "1", "files": ["a.json"]}, {"id": "2", "files": ["a.json"], "annotations": [1]}))
    assert (plain.kind, plain.texts.meta) == ("text", {"annotations": ["a.json"]})
    assert own.texts.meta == {"annotations": [1], "annotation_files": ["a.json"]}


def test_a_field_named_text_is_no_role_by_accident(tmp_path: Path, data_dir: Path) -> None:
    record = {"id": "1", "text": "seen", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    (plain,) = samples(manifest(tmp_path, record))
    (named,) = samples(manifest(tmp_path, record, fields={"conversations": "conversations"}))
    (both,) = samples(manifest(tmp_path, record, fields={"conversations": "conversations", "text": "text"}))
    assert [s.texts.text for s in (plain, named, both)] == ["seen", None, "seen"]
    assert named.texts.meta == {"text": "seen"}
    assert len(named.texts.conversations) == 2
    ocr = samples(SourceSpec("o", "manifest", str(data_dir / "manifest.jsonl"), where="kind = 'ocr'", fields={"transcription": "text"}))
    assert len(ocr) == 75
    assert all(s.texts.transcription and s.texts.text is None and s.texts.caption is None for s in ocr)
    assert sum("annotations" in s.texts.meta for s in ocr) == 28


@pytest.mark.parametrize(
    ("spec", "mend"),
    [
        (SourceSpec("s", "manifst", "m.jsonl"), "did you mean 'manifest'?"),
        (SourceSpec("s", "manifest", "m.jsonl", fields={"captoin": "x"}), "did you mean 'caption'?"),
        (SourceSpec("s", "manifest", "m.jsonl", options={"allow_outsid": True}), "did you mean 'allow_outside'?"),
    ],
)
def test_a_near_miss_is_named(tmp_path: Path, spec: SourceSpec, mend: str) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n")
    (problem,) = check_source(spec, tmp_path)
    assert mend in problem
