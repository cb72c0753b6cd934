"""The three layouts that img2dataset 1.47 writes: what it could not fetch is counted, under the key it would have."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.media import Limits
from shards.read import read_media
from shards.sample import Sample, uid_of
from shards.sources import SourceSpec, check_source, list_containers, scan
from tests.shards.five_formats import picture

LIMITS = Limits()
FAILED = {2: ("failed_to_download", "HTTP Error 404: Not Found"), 4: ("failed_to_resize", "Image decoding error")}
SCHEMA = pa.schema(
    [
        ("caption", pa.large_string()),
        ("url", pa.large_string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
    ]
)


def meta(shard: int, n: int) -> dict[str, Any]:
    status, error = FAILED.get(n, ("success", None))
    side = None if error else 70
    name = f"{shard:05d}{n:04d}"
    return dict(zip(SCHEMA.names, (f"c {n}", f"https://x.org/{n}?sig=a", name, status, error, side, side, None), strict=True))


def write_record(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), path, row_group_size=2)


def layout(folder: Path, form: str, fetched: Sequence[int] = (0, 1, 3)) -> Path:
    """Two shards; the first holds `fetched` of five URLs, the second one of one."""
    folder.mkdir(exist_ok=True)
    for shard, (wanted, have) in enumerate(((range(5), fetched), ((0,), (0,)))):
        rows = [meta(shard, n) for n in wanted]
        name = f"{shard:05d}"
        if form == "parquet":
            pictures = pa.array([picture(n) if n in have else None for n in wanted], pa.binary())
            table = pa.Table.from_pylist(rows, SCHEMA).append_column("jpg", pictures)
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)
            continue
        write_record(folder / f"{name}.parquet", rows)
        (folder / f"{name}_stats.json").write_text("{}")
        members = {
            f"{meta(shard, n)['key']}{end}": data
            for n in have
            for end, data in ((".jpg", picture(n)), (".txt", f"c {n}".encode()), (".json", json.dumps(meta(shard, n)).encode()))
        }
        if form == "folder":
            for member, data in members.items():
                (folder / name).mkdir(exist_ok=True)
                (folder / name / member).write_bytes(data)
            continue
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def samples(path: Path, form: str, **more: Any) -> dict[str, Sample]:
    spec = SourceSpec("s", form, str(path), **more)
    assert check_source(spec, ".") == []
    found = [s for c in list_containers(spec) for s in scan(spec, c)]
    assert len({s.uid for s in found}) == len(found)
    return {s.key: s for s in found}


KEYS = {"webdataset": "{shard:05d}.tar/{key}", "folder": "{shard:05d}/{key}.jpg", "parquet": "{key}"}
FORMS = pytest.mark.parametrize("form", KEYS)


@FORMS
def test_every_url_is_a_sample_fetched_or_not(tmp_path: Path, form: str) -> None:
    found = samples(layout(tmp_path, form), form)
    key = {(shard, n): KEYS[form].format(shard=shard, key=meta(shard, n)["key"]) for shard in (0, 1) for n in range(5)}
    assert set(found) == {key[0, n] for n in range(5)} | {key[1, 0]}
    for n in (0, 1, 3):
        sample = found[key[0, n]]
        assert (sample.texts.caption, sample.damage) == (f"c {n}", None)
        assert sample.texts.meta["url"] == f"https://x.org/{n}?sig=a"
        assert [read_media(m, LIMITS) for m in sample.media] == [picture(n)]
    for n, (status, error) in FAILED.items():
        damage = found[key[0, n]].damage or ""
        assert f"was not downloaded ({status}): {error}" in damage
        assert "sig=" not in damage
    units = {s.unit.rsplit("#")[0] for s in found.values()}
    assert len(units) == 2


@FORMS
def test_a_later_try_that_succeeds_is_the_same_sample(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = samples(layout(tmp_path, form), form)
    stamps = [c.stamp for c in list_containers(SourceSpec("s", form, str(tmp_path)))]
    monkeypatch.setattr("tests.shards.test_sources_downloads.FAILED", {})
    after = samples(layout(tmp_path, form, fetched=range(5)), form)
    assert set(after) == set(before)
    assert all(s.damage is None and s.uid == before[k].uid for k, s in after.items())
    changed = [a != b for a, b in zip(stamps, (c.stamp for c in list_containers(SourceSpec("s", form, str(tmp_path)))), strict=True)]
    assert changed[0]


@FORMS
def test_they_may_be_left_out(tmp_path: Path, form: str) -> None:
    found = samples(layout(tmp_path, form), form, options={"downloads": False})
    assert len(found) == 4
    assert all(s.damage is None and s.media for s in found.values())


def test_a_row_group_without_a_picture_and_a_where(tmp_path: Path) -> None:
    layout(tmp_path, "parquet", fetched=())
    found = samples(tmp_path, "parquet")
    assert sum("not downloaded" in (s.damage or "") for s in found.values()) == 2
    with pytest.raises(Exception, match="is empty"):
        read_media(found["000000000"].media[0], LIMITS)
    assert len(samples(layout(tmp_path, "parquet"), "parquet", where="status = 'success'")) == 4
    assert len(samples(tmp_path, "parquet", where="width > 0", fields={"id": "url"})) == 4


def test_what_the_tar_lost_is_said_too(tmp_path: Path) -> None:
    found = samples(layout(tmp_path, "webdataset", fetched=(0, 3)), "webdataset")
    assert (found["00000.tar/000000001"].damage or "").endswith("000000001 was downloaded, but its picture is not there")
    data = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(data[: len(data) // 3])
    found = samples(tmp_path, "webdataset")
    assert "00000.tar/@damage" in found
    assert sum(k.startswith("00000.tar/0") for k in found) == 5


def test_a_shard_of_failures_only(tmp_path: Path) -> None:
    for form in ("folder", "webdataset"):
        found = samples(layout(tmp_path / form, form, fetched=()), form)
        assert sum(s.damage is not None for s in found.values()) == 5
        assert sum(s.damage is None for s in found.values()) == 1


def test_one_tar_and_a_pattern_know_what_lies_beside(tmp_path: Path) -> None:
    layout(tmp_path, "webdataset")
    for path in (tmp_path / "00000.tar", tmp_path / "*0.tar"):
        assert sum(s.damage is not None for s in samples(path, "webdataset").values()) == 2


def test_other_parquet_files_beside_mean_nothing_and_broken_ones_are_said(tmp_path: Path) -> None:
    for form in ("folder", "webdataset"):
        layout(tmp_path / form, form)
        pq.write_table(pa.table({"key": ["zzz"], "score": [1.0]}), tmp_path / form / "00000.parquet")
        pq.write_table(pa.table({"any": [1]}), tmp_path / form / "elsewhere.parquet")
        (tmp_path / form / "no.parquet").write_bytes(b"no")
        assert len(samples(tmp_path / form, form)) == 4
        (tmp_path / form / "00000.parquet").write_bytes(b"PAR1 nothing")
        found = samples(tmp_path / form, form)
        [broken] = [s for s in found.values() if s.damage]
        assert "what was not downloaded is not known" in (broken.damage or "")
        assert broken.uid == uid_of("s", broken.key)
        assert len(found) == 5


def test_a_key_that_is_listed_twice_is_one_sample(tmp_path: Path) -> None:
    layout(tmp_path, "webdataset")
    write_record(tmp_path / "00000.parquet", [meta(0, 2), meta(0, 2)])
    assert sum(s.damage is not None for s in samples(tmp_path, "webdataset").values()) == 1
