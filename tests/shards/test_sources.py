"""Sources of records and folders: the real manifest, identity, selection, damage, and specs that cannot work."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest

from shards.errors import RecipeError
from shards.media import Limits
from shards.read import opened, read_media
from shards.sample import Sample, media_kind, uid_of
from shards.sources import SourceSpec, check_source, list_containers, resolve, scan
from shards.sources import jsonl as jsonl_module
from shards.sources import spec as spec_module


def samples(spec: SourceSpec) -> list[Sample]:
    return [s for c in list_containers(spec) for s in scan(spec, c)]


def whole(spec: SourceSpec) -> list[Sample]:
    found = samples(spec)
    assert [s.damage for s in found if s.damage] == []
    assert len({s.uid for s in found}) == len(found)
    return found


def damages(spec: SourceSpec) -> list[str]:
    return [s.damage for s in samples(spec) if s.damage]


def manifest(tmp_path: Path, *lines: Any, **spec: Any) -> SourceSpec:
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    (tmp_path / "m.jsonl").write_bytes(data)
    return SourceSpec("src", "manifest", str(tmp_path / "m.jsonl"), **spec)


def test_what_cameras_and_discs_call_their_files_is_a_video() -> None:
    assert {media_kind(f"a/b.{extension}") for extension in ("mp4", "MTS", "m2ts", "VOB", "asf")} == {"video"}
    assert (media_kind("a.gif"), media_kind("a.webp"), media_kind("a.txt")) == ("image", "image", None)


# --- the real manifest


@pytest.mark.parametrize(
    ("kind", "fields", "explode", "count", "kinds"),
    [
        ("caption", {"caption": "text"}, None, 443, {"image": 443}),
        ("ocr", {"transcription": "text"}, None, 75, {"image": 75}),
        ("video", {"caption": "text"}, None, 22, {"video": 22}),
        ("sft", {}, None, 133, {"image": 130, "video": 3}),
        ("text", {}, None, 120, {"text": 120}),
        ("dup", {}, "files", 146, {"image": 138, "video": 8}),
        ("quality", {}, "files", 60, {"image": 60}),
        ("hostile", {}, None, 109, {"image": 99, "video": 9, "text": 1}),
    ],
)
def test_every_kind_of_the_real_manifest(
    data_dir: Path, kind: str, fields: dict[str, str | None], explode: str | None, count: int, kinds: dict[str, int]
) -> None:
    path = str(data_dir / "manifest.jsonl")
    spec = SourceSpec("dev", "manifest", path, where=f"kind = '{kind}'", fields=fields, explode=explode)
    assert check_source(spec, ".") == []
    before = opened()
    found = whole(spec)
    assert opened() == before
    assert (len(found), Counter(s.kind for s in found)) == (count, kinds)
    records = {r["id"]: r for r in map(json.loads, (data_dir / "manifest.jsonl").read_text("utf-8").splitlines())}
    for sample in found:
        record = records[sample.key.split("/")[0]]
        assert sample.uid == uid_of("dev", sample.key)
        for role, name in fields.items():
            assert getattr(sample.texts, role) == record[name]
        assert [dict(c) for c in sample.texts.conversations] == record.get("conversations", [])
        media = [f for f in record["files"] if not f.endswith((".json", ".jsonl"))]
        names = [m.name for m in sample.media]
        assert names == media if explode is None else sample.key == f"{record['id']}/{names[0]}"
        assert sample.texts.meta.get("annotations", []) == [f for f in record["files"] if f not in media]
        for ref in sample.media:
            assert ref.length == (data_dir / ref.name).stat().st_size
        assert "text" not in sample.texts.meta or "text" not in fields.values()


def test_real_media_are_read_through_their_references(data_dir: Path) -> None:
    spec = SourceSpec("dev", "manifest", str(data_dir / "manifest.jsonl"), where="kind = 'video'")
    for ref in (m for s in samples(spec)[:5] for m in s.media):
        assert read_media(ref, Limits()) == (data_dir / ref.name).read_bytes()


def test_the_real_folder(data_dir: Path) -> None:
    found = whole(SourceSpec("f", "folder", str(data_dir / "video")))
    on_disk = {p.name for p in (data_dir / "video").iterdir() if p.suffix in (".mp4", ".webm", ".mov", ".mkv", ".avi")}
    assert {s.key for s in found} == on_disk


# --- records


def test_identity_is_never_a_position(tmp_path: Path) -> None:
    lines = [{"id": "a", "text": "1"}, {"id": 7, "text": "2"}, {"text": "no id"}, {"id": "", "text": "empty id"}]
    one = {s.uid: s.texts for s in whole(manifest(tmp_path, *lines))}
    other = {s.uid: s.texts for s in whole(manifest(tmp_path, b"", *reversed(lines)))}
    assert one == other
    assert {"a", "7"} <= {s.key for s in samples(manifest(tmp_path, *lines))}


def test_one_id_with_two_contents_is_two_samples_in_any_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        {"id": "a", "text": "1"},
        {"id": "b", "text": "x"},
        {"id": "a", "text": "2"},
        {"id": "a", "text": "1"},
        {"id": "b", "text": "x"},
    ]
    found = whole(manifest(tmp_path, *lines))
    assert len(found) == 3
    assert "b" in {s.key for s in found}
    forked = {s.texts.text: s.key for s in found if s.key != "b"}
    assert set(forked) == {"1", "2"}
    assert all(k.startswith("a~") for k in forked.values())
    assert "several contents" in caplog.text
    assert {s.uid for s in whole(manifest(tmp_path, *reversed(lines)))} == {s.uid for s in found}


def test_one_id_with_two_contents_across_files(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"id": "a", "text": "1"}\n')
    (tmp_path / "2.jsonl").write_text('{"id": "a", "text": "2"}\n')
    for path in (tmp_path, tmp_path / "*.jsonl"):
        found = whole(SourceSpec("s", "manifest", str(path)))
        assert len(found) == 2
        assert {s.unit for s in found} == {"1.jsonl#0", "2.jsonl#0"}


def test_broken_lines_are_damage_that_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    spec = manifest(
        tmp_path,
        {"id": 1, "files": ["a.jpg"]},
        b'{"id": 2, "files": [',
        b"[1, 2]",
        b'{"id": 3, "x": NaN}',
        b'{"id": 4, "text": "\xff"}',
        b"[" * 100_000,
        b'{"id": 5, "x": ' + b"[" * 200 + b"]" * 200 + b"}",
        {"id": True},
        {"id": 6, "text": 12},
        {"id": 7, "text": "\ud800"},
        {"id": 8, "conversations": [{"from": ["x"], "value": "hi"}]},
        {"id": 9, "conversations": "no json"},
        {"id": 10, "text": None, "meta \ud800": "\udfff"},
    )
    found = samples(spec)
    assert [s.key for s in found if not s.damage] == ["1", "10"]
    assert found[-1].texts.meta == {"meta \ufffd": "\ufffd"}
    said = [s.damage for s in found if s.damage]
    assert [f"m.jsonl:{n}" in (d or "") for n, d in enumerate(said, 2)] == [True] * 11
    assert len({s.uid for s in found}) == 13
    assert all(not s.media and s.texts.text is None for s in found if s.damage)
    for text in (
        "no JSON",
        "must be a JSON object",
        "NaN is no JSON",
        "no UTF-8",
        "nested too deeply",
        "is a number, not text",
        "lone surrogate",
    ):
        assert any(text in (d or "") for d in said), text


def test_an_endless_line_is_damage_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_module, "RECORD_BYTES", 1000)
    found = samples(manifest(tmp_path, {"id": 1, "text": "x" * 5000}, {"id": 2}))
    assert "bytes in one line, more than 1,000" in (found[0].damage or "")
    assert [s.key for s in found[1:]] == ["2"]


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "..", "gone.jpg", "dir", "a\0b.jpg", "x" * 300, 5, ""]
)
def test_files_that_lead_out_or_nowhere_are_damage(tmp_path: Path, name: Any) -> None:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (found,) = samples(manifest(root, {"id": "b", "files": [name]}))
    assert found.key == "b"
    assert found.damage
    assert "m.jsonl:1" in found.damage
    assert not found.media


def test_allow_outside_and_media_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.bin").write_bytes(b"bytes")
    outside = manifest(tmp_path / "root", {"id": 1, "files": ["../media/a.bin"]}, options={"allow_outside": True})
    rooted = manifest(tmp_path / "root", {"id": 1, "files": ["a.bin"]}, options={"media_root": str(tmp_path / "media")})
    for spec in (outside, rooted):
        manifest(tmp_path / "root", {"id": 1, "files": ["../media/a.bin" if spec is outside else "a.bin"]})
        (sample,) = whole(spec)
        assert sample.media[0].kind == "image"  # what is no annotation is a medium; the decoder has the last word
        assert read_media(sample.media[0], Limits()) == b"bytes"


def test_where_sees_scalars_of_every_type(tmp_path: Path) -> None:
    lines = [
        {"id": 1, "n": 1, "mixed": "x", "files": []},
        {"id": 2, "n": 2.5, "mixed": 3, "flag": True, "big": 10**30},
        {"id": 3, "n": None, "mixed": None, "date": "2024-01-02"},
        b"broken",
    ]

    def keys(where: str) -> list[str]:
        return [s.key for s in samples(manifest(tmp_path, *lines, where=where)) if not s.damage]

    assert keys("n > 1") == ["2"]
    assert keys("n >= 1 or n is null") == ["1", "2", "3"]
    assert keys("mixed = '3'") == ["2"]
    assert keys("flag") == ["2"]
    assert keys("big > 1e29") == ["2"]
    assert keys("date::date < date '2025-01-01'") == ["3"]
    assert keys("id in (1, 3)") == ["1", "3"]
    assert len(damages(manifest(tmp_path, *lines, where="false"))) == 1  # a broken line cannot be asked: it is shown


@pytest.mark.parametrize(
    "where",
    ["nope = 1", "kind =", "1=1) or (1=1", "id in (select content from read_text('/etc/passwd'))", "files = 'a'", "cast(kind as int) = 1"],
)
def test_a_where_that_cannot_run_is_the_recipes_fault(tmp_path: Path, where: str) -> None:
    with pytest.raises(RecipeError, match=r"source 'src': where: .* cannot run"):
        samples(manifest(tmp_path, {"id": "a", "kind": "x", "files": []}, where=where))


def test_explode_keeps_the_texts_and_takes_a_file_once(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.mp4", "n.json"):
        (tmp_path / name).write_bytes(b"x")
    record = {"id": "r", "files": ["a.jpg", "b.mp4", "n.json", "a.jpg"], "text": "t"}
    found = whole(manifest(tmp_path, record, {"id": "t", "text": "only"}, explode="files"))
    assert [(s.key, s.kind, s.texts.text) for s in found] == [("r/a.jpg", "image", "t"), ("r/b.mp4", "video", "t"), ("t", "text", "only")]
    assert whole(manifest(tmp_path, {**record, "files": record["files"][:3]}))[0].kind == "mixed"


def test_a_changed_file_changes_its_stamp_alone(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    spec = manifest(tmp_path, {"id": 1, "files": ["a.jpg"]}, {"id": 2, "files": ["b.jpg"]})
    one = whole(spec)
    (tmp_path / "b.jpg").write_bytes(b"xy")
    other = whole(spec)
    assert one[0] == other[0]
    assert one[1].uid == other[1].uid
    assert one[1].media[0].stamp != other[1].media[0].stamp
    assert all(c.external for c in list_containers(spec))


# --- LLaVA


RECORDS = [
    {"id": "one", "image": "a.jpg", "conversations": [{"from": "human", "value": '<image>\n"{[}]\\" ü'}, {"from": "gpt", "value": "b"}]},
    {
        "id": "two",
        "image": ["a.jpg", "sub/b.png"],
        "conversations": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}],
    },
    {"id": "three", "video": "v.mp4", "conversations": [], "extra": {"deep": [1, {"x": 2}]}},
    {"id": "four", "conversations": [{"from": "human", "value": "text"}, {"from": "gpt", "value": "only"}]},
]


@pytest.fixture
def llava_media(tmp_path: Path) -> Path:
    (tmp_path / "media" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.png", "v.mp4"):
        (tmp_path / "media" / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("form", ["array", "pretty", "lines", "bom"])
def test_llava(llava_media: Path, monkeypatch: pytest.MonkeyPatch, form: str, chunk: int) -> None:
    monkeypatch.setattr(jsonl_module, "CHUNK", chunk)
    path = llava_media / "data.json"
    text = {
        "array": json.dumps(RECORDS, ensure_ascii=False),
        "pretty": " \n" + json.dumps(RECORDS, indent=2),
        "lines": "\n".join(map(json.dumps, RECORDS)),
        "bom": "\ufeff" + json.dumps(RECORDS),
    }[form]
    path.write_text(text, "utf-8")
    found = whole(SourceSpec("l", "llava", str(path), options={"media_root": str(llava_media / "media")}))
    assert [(s.key, s.kind, [m.name for m in s.media]) for s in found] == [
        ("one", "image", ["a.jpg"]),
        ("two", "image", ["a.jpg", "sub/b.png"]),
        ("three", "video", ["v.mp4"]),
        ("four", "text", []),
    ]
    assert found[0].texts.conversations[0]["value"] == '<image>\n"{[}]\\" ü'
    assert found[1].texts.conversations == ({"from": "human", "value": "c"}, {"from": "gpt", "value": "d"})
    assert found[2].texts.meta == {"extra": {"deep": [1, {"x": 2}]}}


def test_a_cut_array_gives_its_whole_records_and_one_damage(llava_media: Path) -> None:
    path = llava_media / "media" / "data.json"
    text = json.dumps(RECORDS)
    ends = [len(json.dumps(RECORDS[: n + 1])) - 1 for n in range(4)]
    for cut in range(1, len(text), 7):
        path.write_text(text[:cut])
        found = samples(SourceSpec("l", "llava", str(path)))
        assert len(found) == sum(end <= cut for end in ends) + 1
        assert [bool(s.damage) for s in found] == [False] * (len(found) - 1) + [True]
    for bad in ("[]x", "[{}, 5]", "[5]", '[{"a" 1}]', "[{} {}]", "[{},]"):
        path.write_text(bad)
        assert damages(SourceSpec("l", "llava", str(path))), bad
    path.write_text("[]")
    assert samples(SourceSpec("l", "llava", str(path))) == []


# --- folders


def test_folder_with_sidecars_and_weird_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fovea")
    names = ["a.jpg", "UPPER.JPG", "a.b.c.jpg", "with space.png", "ünï/cödé 图.webp", "deep/er/v.mp4", "no_sidecar.gif", ".hidden.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "a.txt").write_text("\ufeffcaption of a\n")
    (tmp_path / "a.json").write_text('{"caption": "other", "n": 1}')
    (tmp_path / "UPPER.TXT").write_text("upper")
    (tmp_path / "a.b.c.json").write_text('{"caption": "abc", "nested": {"ocr": "words"}}')
    (tmp_path / "with space.png.txt").write_text("exact")
    (tmp_path / "with space.txt").write_text("stem")
    (tmp_path / "readme.md").write_text("ignored")
    (tmp_path / "orphan.txt").write_text("ignored")
    for odd in ("crawled.bin", "no_extension"):  # taken for pictures: the decoder has the last word, and nothing vanishes
        names.append(odd)
        (tmp_path / odd).write_bytes(odd.encode())
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"latin")
    spec = SourceSpec("f", "folder", str(tmp_path), fields={"transcription": "nested.ocr"})
    by_key = {s.key: s for s in whole(spec)}
    (odd,) = set(by_key) - set(names)
    assert set(names) < set(by_key)
    assert read_media(by_key[odd].media[0], Limits()) == b"latin"
    odd.encode("utf-8")
    assert by_key["a.jpg"].texts.caption == "caption of a"
    assert by_key["a.jpg"].texts.meta == {"caption": "other", "n": 1}
    assert by_key["UPPER.JPG"].texts.caption == "upper"
    assert (by_key["a.b.c.jpg"].texts.caption, by_key["a.b.c.jpg"].texts.transcription) == ("abc", "words")
    assert by_key["with space.png"].texts.caption == "exact"
    assert by_key["no_sidecar.gif"].texts.caption is None
    assert "2 files are neither media nor beside a medium" in caplog.text
    for name in names:
        assert read_media(by_key[name].media[0], Limits()) == name.encode()


def test_folder_links_do_not_loop_and_show_nothing_twice(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "sub").mkdir(parents=True)
    (out / "in").mkdir(parents=True)
    (root / "sub" / "a.jpg").write_bytes(b"a")
    (out / "in" / "b.jpg").write_bytes(b"b")
    (root / "sub" / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "sub")
    (root / "link").symlink_to(out)
    (out / "back").symlink_to(root)
    (out / "self").symlink_to(out)
    (root / "dead.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.jpg")
    assert sorted(s.key for s in whole(SourceSpec("f", "folder", str(root)))) == ["link/in/b.jpg", "sub/a.jpg"]


def test_bad_sidecars_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stem, name, data in (
        ("a", "a.json", b"{broken"),
        ("b", "b.txt", b"\xff\xfe"),
        ("c", "c.json", b'{"caption": 5}'),
        ("d", "d.json", b"[1]"),
    ):
        (tmp_path / f"{stem}.jpg").write_bytes(b"x")
        (tmp_path / name).write_bytes(data)
    found = {s.key: s for s in samples(SourceSpec("f", "folder", str(tmp_path)))}
    assert "a.json: no JSON" in (found["a.jpg"].damage or "")
    assert "b.txt: no UTF-8" in (found["b.jpg"].damage or "")
    assert "'caption' is a number" in (found["c.jpg"].damage or "")
    assert found["d.jpg"].texts.meta == {"json": [1]}
    monkeypatch.setattr("shards.sources.folder.RECORD_BYTES", 2)
    assert all(s.damage for s in samples(SourceSpec("f", "folder", str(tmp_path))) if s.key != "b.jpg")


def test_folder_containers_are_stamped_by_their_own_files(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "y/b.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    spec = SourceSpec("f", "folder", str(tmp_path))
    one = {c.name: c for c in list_containers(spec)}
    (tmp_path / "y" / "b.txt").write_text("new")
    other = {c.name: c for c in list_containers(spec)}
    assert set(one) == {"x", "y"}
    assert one["x"] == other["x"]
    assert one["y"].stamp != other["y"].stamp
    assert not one["x"].external


def test_units_are_cut_by_samples_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_module, "UNIT_SAMPLES", 4)
    monkeypatch.setattr(spec_module, "UNIT_BYTES", 1000)
    for n, size in enumerate([10, 10, 10, 10, 10, 600, 600, 5000, 10]):
        (tmp_path / f"{n}.jpg").write_bytes(b"x" * size)
    (tmp_path / "9.mp4").write_bytes(b"x" * 5000)
    found = whole(SourceSpec("f", "folder", str(tmp_path)))
    assert [(s.unit, s.ordinal) for s in found] == [
        *((".#0", n) for n in range(4)),
        (".#1", 0),
        (".#1", 1),
        (".#2", 0),
        (".#3", 0),
        (".#4", 0),
        (".#4", 1),
    ]


def test_remote_sources() -> None:
    fs = fsspec.filesystem("memory")
    for name, data in {"a.jpg": b"1", "a.txt": b"cap", "sub/b.png": b"22", "m.jsonl": b'{"id": 1, "files": ["sub/b.png"]}\n'}.items():
        fs.pipe_file(f"/remote-source/{name}", data)
    found = whole(SourceSpec("r", "folder", "memory://remote-source"))
    assert [(s.key, s.texts.caption, read_media(s.media[0], Limits())) for s in found] == [
        ("a.jpg", "cap", b"1"),
        ("sub/b.png", None, b"22"),
    ]
    (sample,) = whole(SourceSpec("r", "manifest", "memory://remote-source/m.jsonl"))
    assert read_media(sample.media[0], Limits()) == b"22"


# --- specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SourceSpec("s", "zip", "."), "unknown format 'zip'; formats are folder, webdataset"),
        (SourceSpec("s", "folder", "nowhere"), "there is no folder"),
        (SourceSpec("s", "manifest", "nowhere.jsonl"), "No such file"),
        (SourceSpec("s", "webdataset", "."), "no .tar"),
        (SourceSpec("s", "manifest", "*.nothing"), "no file matches"),
        (SourceSpec("s", "folder", ".", options={"recursive": True}), "unknown options recursive"),
        (SourceSpec("s", "folder", ".", fields={"captoin": "x"}), "unknown fields captoin; folder has caption"),
        (SourceSpec("s", "folder", ".", where="1=1"), "where is for sources of records"),
        (SourceSpec("s", "manifest", "m.jsonl", where="kind ="), "is no SQL predicate"),
        (SourceSpec("s", "llava", "m.jsonl", explode="files"), "explode: 'files' is not possible"),
        (SourceSpec("s", "manifest", "m.jsonl", options={"media_root": "nowhere"}), "mend options.media_root"),
        (SourceSpec("s", "manifest", "s3://me:secret@host/x"), "credentials"),
    ],
)
def test_bad_specs_are_said_before_anything_runs(tmp_path: Path, spec: SourceSpec, message: str) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n")
    problems = check_source(spec, tmp_path)
    assert len(problems) == 1
    assert problems[0].startswith("source 's': ")
    assert message in problems[0]
    assert "secret" not in problems[0]


def test_a_source_that_is_gone_is_a_recipe_error(tmp_path: Path) -> None:
    for form in ("manifest", "llava", "parquet", "webdataset"):
        with pytest.raises(RecipeError, match="mend its path"):
            list(list_containers(SourceSpec("s", form, str(tmp_path / "none"))))
    spec = resolve(SourceSpec("s", "manifest", "a/b.jsonl", options={"media_root": "m"}), tmp_path)
    assert (spec.path, spec.options["media_root"]) == (str(tmp_path / "a" / "b.jsonl"), str(tmp_path / "m"))


def test_text_is_running_text_only_where_no_role_is_named(tmp_path: Path) -> None:
    record = {"id": 1, "text": "t", "alt": "a"}
    assert whole(manifest(tmp_path, record))[0].texts.text == "t"
    named = whole(manifest(tmp_path, record, fields={"caption": "alt"}))[0].texts
    assert (named.caption, named.text, named.meta) == ("a", None, {"text": "t"})
    both = whole(manifest(tmp_path, record, fields={"caption": "alt", "text": "text"}))[0].texts
    assert (both.caption, both.text, both.meta) == ("a", "t", {})
    off = whole(manifest(tmp_path, record, fields={"text": None}))[0].texts
    assert (off.text, off.meta) == (None, {"text": "t", "alt": "a"})
