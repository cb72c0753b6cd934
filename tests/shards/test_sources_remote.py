"""Every format from every sort of URL: listing, scanning, reading by range, stamps; and what goes wrong on the way."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from shards.errors import FoveaError, InfrastructureError, SourceError
from shards.media import Limits
from shards.paths import absolute
from shards.read import open_media, read_media
from shards.sample import Sample
from shards.sources import SourceSpec, check_source, list_containers, scan
from shards.sources.files import open_file
from tests.shards.five_formats import COUNT, PATHS, PATTERNS, files, picture, specs, write
from tests.shards.http_folder import served

LIMITS = Limits()
SORTS = ("plain", "file", "memory", "http")


def samples(spec: SourceSpec) -> list[Sample]:
    return [s for c in list_containers(spec) for s in scan(spec, c)]


@pytest.fixture(params=SORTS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The five sources behind a URL of each sort."""
    if request.param == "memory":
        fs = fsspec.filesystem("memory")
        for name, data in files().items():
            fs.pipe_file(f"/{tmp_path.name}/{name}", data)
        yield f"memory://{tmp_path.name}"
        fs.rm(f"/{tmp_path.name}", recursive=True)
        return
    folder = write(tmp_path / "with space" if request.param != "http" else tmp_path / "served")
    if request.param == "http":
        with served(folder) as url:
            yield url
    else:
        yield str(folder) if request.param == "plain" else "file://" + str(folder).replace(" ", "%20")


def told(found: list[Sample]) -> list[tuple[str, str | None, str, list[bytes]]]:
    assert all(s.damage is None for s in found), [s.damage for s in found]
    return [(s.key, s.texts.caption, s.unit, [read_media(m, LIMITS) for m in s.media]) for s in found]


def test_the_same_samples_from_everywhere(base: str, tmp_path: Path) -> None:
    here = write(tmp_path / "here")
    for spec, local in zip(specs(base), specs(str(here)), strict=True):
        assert check_source(spec, ".") == []
        found = samples(spec)
        assert told(found) == told(samples(local))
        assert [s.media[0].name.endswith(".png") for s in found] == [True] * COUNT
        assert [read_media(s.media[0], LIMITS) for s in found] == [picture(n) for n in range(COUNT)]
        if spec.format in ("webdataset", "parquet"):  # parts of one file
            assert len({m.stamp for s in found for m in s.media}) == COUNT
        assert [c.stamp for c in list_containers(spec)] == [c.stamp for c in list_containers(spec)]


def test_a_file_and_a_pattern_name_the_same_samples_as_their_folder(base: str) -> None:
    for spec in specs(base, PATTERNS):
        assert check_source(spec, ".") == []
        keys = [s.key for s in samples(spec)]
        whole = next(s for s in specs(base) if s.format == spec.format)
        assert [k.removeprefix("lists/") for k in keys] == [s.key for s in samples(whole)]
    tar = SourceSpec("webdataset", "webdataset", f"{base}/tars/00000.tar")
    assert told(samples(tar)) == told(samples(specs(base)[1]))


def test_ranges_are_read_and_no_more(base: str) -> None:
    member = samples(specs(base)[1])[1].media[0]
    assert member.offset > 0
    with open_media(member, LIMITS) as file:
        file.seek(10)
        assert file.read(5) == picture(1)[10:15]
        assert file.seek(0, 2) == len(picture(1))
        assert file.read() == b""


@pytest.mark.parametrize("sort", ["memory", "http"])
def test_other_content_is_another_stamp(sort: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    with served(tmp_path) as http:
        url = http if sort == "http" else f"memory://{tmp_path.name}"

        def put(name: str, data: bytes, day: int) -> None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
            os.utime(tmp_path / name, (day * 86_400, day * 86_400))  # HTTP tells seconds
            fs.pipe_file(f"/{tmp_path.name}/{name}", data)

        for name, data in files().items():
            put(name, data, day=10_000)
        before = {spec.format: samples(spec) for spec in specs(url)}
        stamps = {spec.format: [c.stamp for c in list_containers(spec)] for spec in specs(url)}
        for found in before.values():
            told(found)  # opens everything, so that whatever could be held is held
        for name in files():
            (tmp_path / name).unlink()
            fs.rm(f"/{tmp_path.name}/{name}")
        for name, data in files(first=5).items():
            put(name, data, day=10_001)
        for spec in specs(url):
            found = samples(spec)
            assert [read_media(s.media[0], LIMITS) for s in found] == [picture(n) for n in range(5, 5 + COUNT)]
            assert [c.stamp for c in list_containers(spec)] != stamps[spec.format]
            assert not {m.stamp for s in found for m in s.media} & {m.stamp for s in before[spec.format] for m in s.media}


def test_readers_of_one_file_do_not_share_a_place(base: str) -> None:
    place = absolute(f"{base}/tars/00000.tar")
    with open_file(place) as one, open_file(place) as other:
        size = one.seek(0, 2)
        assert other.read(6) == b"00000."
        assert one.tell() == size > 6


# --- what goes wrong


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("abfs://container/x", "needs a driver that is not installed.*on every node"),
        ("nonsense://x/y", "Protocol not known"),
        ("zip://folder::file:///x.zip", "chain of URLs"),
        ("memory://nothing-here", "there is no folder"),
    ],
)
def test_urls_that_cannot_work_are_said_before_the_run(path: str, why: str) -> None:
    for form in ("folder", "webdataset") if "memory" not in path else ("folder",):
        [problem] = check_source(SourceSpec("s", form, path), ".")
        assert problem.startswith("source 's': ")
        assert re.search(why, problem), problem
        with pytest.raises(FoveaError):
            samples(SourceSpec("s", form, path))


def test_a_server_without_ranges_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "large.tar", "w") as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = 8 << 20
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    with (
        served(tmp_path, ranges=False) as url,
        pytest.raises(InfrastructureError, match=r"large\.tar failed: .*; the server must answer range requests"),
    ):
        samples(SourceSpec("s", "webdataset", url))
    with served(tmp_path) as url:
        assert [s.key for s in samples(SourceSpec("s", "webdataset", url))] == ["large.tar/a", "large.tar/b"]


def test_a_server_that_fails_is_no_fault_of_a_sample(tmp_path: Path) -> None:
    write(tmp_path)
    with served(tmp_path) as url:
        refs = {form: samples(spec)[0].media[0] for form, spec in zip(PATHS, specs(url), strict=True)}
    with served(tmp_path, broken=".png") as url:
        for form in ("folder", "manifest", "llava"):
            ref = replace(refs[form], path=url + re.sub(r"http://[^/]*", "", refs[form].path))
            with pytest.raises(InfrastructureError, match=r"0\.png"):
                read_media(ref, LIMITS)
        gone = replace(refs["folder"], path=f"{url}/folder/sub/none.gif")
        with pytest.raises(SourceError, match=r"none\.gif"):
            read_media(gone, LIMITS)
    for form, broken in (("webdataset", "00000.tar"), ("parquet", "part.parquet"), ("manifest", "m.jsonl"), ("llava", "talks.json")):
        with served(tmp_path, broken=broken) as url, pytest.raises(InfrastructureError, match=re.escape(broken)):
            samples(SourceSpec("s", form, f"{url}/{PATHS[form]}"))


def test_paths_are_those_of_the_five_formats() -> None:
    from shards.sources import FORMATS

    assert set(PATHS) <= set(FORMATS)


@pytest.mark.parametrize("form", ["folder", "webdataset", "manifest"])
def test_a_server_that_refuses_is_told_before_a_run(tmp_path: Path, form: str) -> None:
    with served(tmp_path) as url:
        pass
    [problem] = check_source(SourceSpec("far", form, f"{url}/x/"), tmp_path)
    assert url in problem
    assert "mend" in problem
