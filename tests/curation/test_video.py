"""video: shots at known cuts, fades and flashes, stillness and black, hashes, key frames, limits, and clips that are hardly any."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.group import GroupRunner
from curation.probe import phash
from curation.step import How
from curation.video import STEP, What, open_video
from curation.video_shots import check_library, shots_of, stretches
from curation.video_watch import largest_change
from shards.errors import DecodeError, InfrastructureError, LimitError
from shards.media import Limits
from shards.video_scan import scan, told_frames
from tests.curation.films import faded, film, photograph, plain, scene, still
from tests.curation.units import call, picture_unit
from tests.curation.views import media_view
from tests.shards.clips import CLOSED, moving

pytest.importorskip("scenedetect", reason="SCENEDETECT ABSENT: pip install --no-deps -r requirements-nodeps.txt")

GOLDEN = Path(__file__).parent / "golden" / f"video_v{STEP.version}.json"
BLACK = plain(0, 1)[0]


def looked(path: Path, limits: Limits | None = None, **what: Any) -> Any:
    """The step's answer to one file."""
    [answer] = open_video(What(**what), How())([media_view(path, limits)])
    return answer


def row(folder: Path, data: bytes, **what: Any) -> dict[str, Any]:
    (folder / "clip.mkv").write_bytes(data)
    answer = looked(folder / "clip.mkv", **what)
    assert isinstance(answer, dict), answer
    return answer


def spans(found: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(round(s["start"], 2), round(s["end"], 2)) for s in found]


def test_golden_rows_hold_the_version(tmp_path: Path) -> None:
    """Other output under the same version is an error: bump STEP.version and store new rows."""
    films = {
        "cuts": film(scene(1, 20) + scene(2, 25) + scene(3, 15)),
        "fade": film(scene(4, 20) + faded(scene(4, 20)[-1], BLACK, 8) + plain(0, 10) + faded(BLACK, scene(5, 1)[0], 8) + scene(5, 20)),
        "still": film(still(scene(1, 1)[0], 20) + scene(1, 20, speed=3)),
    }
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert set(golden) == set(films)
    for name, data in films.items():
        made, known = row(tmp_path, data), golden[name]
        assert set(made) == set(known) == {column.name for column in STEP.columns(What())}
        for column, value in known.items():
            if column in ("shots", "static", "black"):
                assert spans(made[column]) == [tuple(span) for span in value], (name, column)
            elif column == "hashes":
                assert max((int(a) ^ int(b)).bit_count() for a, b in zip(made[column], value, strict=True)) <= 2
            else:
                assert made[column] == (pytest.approx(value, rel=0.02) if isinstance(value, float) else value), (name, column)


def test_shots_begin_at_cuts_and_fades_but_not_at_flashes(data_dir: Path, tmp_path: Path) -> None:
    photos = [photograph(path) for path in sorted((data_dir / "caption" / "coco").glob("*.jpg"))[:4]]
    a, b, c, d = photos
    frames = still(a, 14) + still(b, 16) + scene(8, 13) + still(c, 12) + still(d, 15)
    assert [s for s, _ in spans(row(tmp_path, film(frames))["shots"])] == [0.0, 1.4, 3.0, 4.3, 5.5]

    dipped = still(a, 15) + faded(a, BLACK, 6) + still(BLACK, 4) + faded(BLACK, b, 6) + still(b, 15)
    told = row(tmp_path, film(dipped), detector="threshold")
    assert told["n_shots"] == 2
    assert 2.1 <= told["shots"][1]["start"] <= 2.5  # the middle of what is black
    slow = still(a, 15) + faded(a, BLACK, 25) + still(BLACK, 4) + faded(BLACK, b, 25) + still(b, 15)
    told = [row(tmp_path, film(slow, 25), detector="content", threshold=80.0, fades=fades)["n_shots"] for fades in (True, False)]
    assert told == [2, 1]

    flashed = scene(6, 41)
    flashed[20] = plain(255, 1)[0]
    assert row(tmp_path, film(flashed))["n_shots"] == 1
    assert row(tmp_path, film(scene(6, 20) + plain(255, 8) + scene(7, 20)))["n_shots"] == 3  # what lasts is no flash


@pytest.mark.parametrize("detector", ["adaptive", "content", "hash", "histogram"])
def test_each_detector_of_the_library_is_there(tmp_path: Path, detector: str) -> None:
    frames = scene(1, 12) + [frame // 3 for frame in scene(2, 12)]
    made = row(tmp_path, film(frames), detector=detector, min_shot=0.5)
    assert spans(made["shots"]) == [(0.0, 1.2), (1.2, 2.4)]
    most = 255 if detector in ("adaptive", "content") else 1
    if detector != "histogram":  # whose picture of two scenes may be as unlike as can be
        assert row(tmp_path, film(frames), detector=detector, threshold=most)["n_shots"] == 1


@given(st.lists(st.floats(-1, 12), max_size=12), st.floats(0, 10), st.floats(0, 3))
def test_shots_cover_the_clip_and_none_is_too_short(cuts: list[float], end: float, shortest: float) -> None:
    shots = shots_of(cuts, end, shortest)
    assert shots[0][0] == 0.0
    assert shots[-1][1] == end
    assert all(a[1] == b[0] for a, b in pairwise(shots))
    assert len(shots) == 1 or all(until - start >= shortest - 1e-9 for start, until in shots)
    assert all(start in cuts for start, _ in shots[1:])


def test_stretches_are_joined_and_short_ones_left_out() -> None:
    assert stretches([0, 1, 2, 3], [True, True, False, True], 5.0, 2.0) == [(0, 2), (3, 5.0)]
    assert stretches([0, 1, 2, 3], [True, False, False, False], 5.0, 2.0) == []
    assert stretches([0.0], [True], 0.05, 2.0) == [(0.0, 0.05)]  # the whole clip


def test_the_real_clips_have_the_shots_that_are_known(data_dir: Path) -> None:
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    films = {r["id"]: r for r in records if r["kind"] == "video"}
    for number, least in (("0006", 1), ("0010", 4), ("0014", 0)):
        record = films[f"d-video-{number}"]
        made = looked(data_dir / record["files"][0])
        assert made["n_shots"] - 1 >= record.get("shot_changes_at_least", 0) == least
        assert made["shots"][0]["start"] == 0
        assert made["seconds"] == pytest.approx(record["duration"], abs=0.1)
    assert made["n_shots"] == 1


def test_motion_is_the_same_at_any_size_and_rate(tmp_path: Path) -> None:
    """160 pixels wide, 16 of them a second: a tenth of the longer side."""
    slow = row(tmp_path, film(scene(3, 40, speed=1.6)))["motion"]
    assert slow == pytest.approx(0.1, rel=0.15)
    assert row(tmp_path, film(scene(3, 80, speed=0.8), 20))["motion"] == pytest.approx(slow, rel=0.1)
    assert row(tmp_path, film(scene(3, 40, (320, 192), speed=3.2)))["motion"] == pytest.approx(slow, rel=0.1)
    assert row(tmp_path, film(scene(3, 40, speed=4.8)))["motion"] == pytest.approx(3 * slow, rel=0.2)
    assert row(tmp_path, film(scene(3, 15) + still(scene(4, 1)[0], 15)))["motion"] < 0.05  # the cut is no motion


def test_still_and_black_stretches(tmp_path: Path) -> None:
    made = row(tmp_path, film(plain(0, 10) + scene(1, 20, speed=3) + still(scene(2, 1)[0], 20), 10))
    assert spans(made["black"]) == [(0.0, 1.0)]
    assert spans(made["static"]) == [(0.0, 0.88), (3.0, 5.0)]  # to the last look at which nothing had moved
    assert (made["black_share"], made["static_share"]) == (pytest.approx(0.2), pytest.approx(0.575, abs=0.001))
    corner = still(scene(2, 1)[0], 20)
    moving = [frame.copy() for frame in corner]
    for k, frame in enumerate(moving):
        frame[-12:, -20:] = (k * 20) % 256  # one cell of 64 changes
    assert row(tmp_path, film(corner))["static_share"] == 1
    assert row(tmp_path, film(moving))["static_share"] == 0
    noisy = [np.clip(f + np.random.default_rng(k).normal(0, 3, f.shape), 0, 255).astype(np.uint8) for k, f in enumerate(corner)]
    assert row(tmp_path, film(noisy))["static_share"] == 1  # noise is averaged away
    dot = np.zeros((64, 64), np.uint8)
    dot[:2, :2] = 32  # one of the sixteen means of one cell
    assert largest_change(np.zeros((64, 64), np.uint8), dot) == 2


def test_hashes_lie_at_fixed_times_whatever_the_rate(tmp_path: Path) -> None:
    frames = scene(1, 15) + scene(2, 15) + scene(3, 15)
    made = row(tmp_path, film(frames))
    assert made["hash_step"] == 0.5
    wanted = [phash(frames[k]) for k in range(0, 45, 5)]
    assert [(a ^ b).bit_count() for a, b in zip(made["hashes"], wanted, strict=True)] == [0] * 9
    uneven = [t + (0.07 if k % 5 == 2 else 0) for k, t in enumerate(np.arange(45) / 10)]
    assert row(tmp_path, film(frames, times=uneven))["hashes"] == made["hashes"]  # variable frame rate: the frame on screen counts
    thinned = row(tmp_path, film(frames), max_hashes=4)
    assert (thinned["hash_step"], thinned["hashes"]) == (2.0, made["hashes"][::4])
    assert row(tmp_path, film(frames), hash_fps=1)["hashes"] == made["hashes"][::2]


@pytest.mark.parametrize(
    ("frames", "seconds", "static", "black"),
    [(plain(90, 1), 0.1, 1.0, 0.0), (plain(0, 30), 3.0, 1.0, 1.0), (scene(1, 2), 0.2, 0.0, 0.0)],
)
def test_clips_that_are_hardly_any(tmp_path: Path, frames: list[np.ndarray], seconds: float, static: float, black: float) -> None:
    made = row(tmp_path, film(frames))
    assert made["n_shots"] == 1
    assert (made["shots"][0]["start"], made["shots"][0]["end"]) == (0.0, made["seconds"])
    assert made["seconds"] == pytest.approx(seconds)
    assert (made["static_share"], made["black_share"]) == (static, black)
    assert len(made["hashes"]) == max(1, round(seconds * 2))


def test_a_frame_that_stands_for_ever_costs_nothing(tmp_path: Path) -> None:
    """A container may say that the next frame comes in a month."""
    frames = scene(1, 10) + scene(2, 2)
    made = row(tmp_path, film(frames, times=[*(k / 10 for k in range(11)), 3e6]), frames="all")
    assert made["seconds"] == pytest.approx(3e6, rel=1e-3)
    assert made["static_share"] == pytest.approx(1.0)
    assert 120 < len(made["hashes"]) <= 240
    assert made["motion"] < 1e-6


def test_no_frame_and_turned_frames(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "none.mp4").write_bytes(film([scene(1, 1)[0]], format="mp4", codec="mpeg4")[:200])
    assert isinstance(looked(tmp_path / "none.mp4"), DecodeError)
    upright, turned = (looked(data_dir / "video" / f"decord__video_{angle}.mov") for angle in (0, 90))
    assert (turned["seconds"], turned["looked"]) == (pytest.approx(0.1), 3)  # 0.07 s by the container
    assert upright["hashes"] != turned["hashes"]
    shapes: list[tuple[int, ...]] = []
    for angle in (0, 90):
        with (data_dir / "video" / f"decord__video_{angle}.mov").open("rb") as file:
            scan(file, Limits(), 160, lambda at, pixels, first: shapes.append(pixels.shape))
    assert (shapes[0], shapes[-1]) == ((90, 160, 3), (160, 90, 3))


def test_key_frames_alone_are_decoded_where_there_are_many(tmp_path: Path) -> None:
    frames = scene(1, 60) + scene(2, 60) + scene(3, 60)
    data = film(frames, 20, "mp4", "libx264", g="60", bf="2", sc_threshold="0")
    (tmp_path / "clip.mp4").write_bytes(data)
    assert told_frames(data, Limits()) == 180
    whole, some = looked(tmp_path / "clip.mp4"), looked(tmp_path / "clip.mp4", many=179)
    assert (whole["by"], whole["looked"]) == ("frames", 180)
    assert some["by"] == "key frames"
    assert 3 < some["looked"] <= 3 * 4  # an eighth of a second behind each
    assert some["seconds"] == pytest.approx(whole["seconds"], abs=0.05)
    assert some["motion"] == pytest.approx(whole["motion"], rel=0.35)
    assert len(some["hashes"]) == len(whole["hashes"]) == 18
    assert looked(tmp_path / "clip.mp4", frames="key") == some
    assert looked(tmp_path / "clip.mp4", frames="all", many=1)["by"] == "frames"
    assert spans(some["shots"]) == spans(whole["shots"]) == [(0.0, 3.0), (3.0, 6.0), (6.0, 9.0)]


@pytest.mark.parametrize("frames", ["all", "key"])
def test_a_torn_clip_is_looked_at_up_to_the_tear(tmp_path: Path, frames: str) -> None:
    whole = moving("mp4", "libx264", CLOSED, muxer={"movflags": "faststart"})
    good, torn = (row(tmp_path, data, frames=frames) for data in (whole, whole[: len(whole) * 6 // 10]))
    assert good["seconds"] == pytest.approx(10, abs=0.1)
    assert 3 < torn["seconds"] < 7
    assert 0 < torn["looked"] < good["looked"]
    assert torn["shots"][-1]["end"] == pytest.approx(torn["seconds"])
    assert torn["hashes"][:3] == good["hashes"][:3]


def test_limits_hold_and_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(film(scene(1, 60), 20, "mp4", "mpeg4", g="30"))
    few = looked(tmp_path / "clip.mp4", Limits(decoded_frames=40))
    assert isinstance(few, LimitError)
    assert "decoded_frames = 40" in str(few)
    assert "frames: key" in str(few)
    assert looked(tmp_path / "clip.mp4", Limits(decoded_frames=40), frames="key")["by"] == "key frames"
    hurried = looked(tmp_path / "clip.mp4", Limits(cpu_seconds=0.01))
    assert isinstance(hurried, LimitError)
    assert isinstance(looked(tmp_path / "clip.mp4", Limits(video_pixels=1000)), LimitError)
    assert isinstance(looked(tmp_path / "clip.mp4", Limits(video_bytes=1000)), LimitError)


def test_pictures_and_gifs_are_left_alone_and_hostile_clips_get_a_row(data_dir: Path) -> None:
    hostile = sorted((data_dir / "hostile").glob("**/*.m[op][v4]")) + sorted((data_dir / "hostile").glob("**/*.avi"))
    paths = [*hostile, *sorted((data_dir / "hostile").glob("**/animated.gif"))]
    step = call("video")
    with GroupRunner([step], Limits(), memory=1_500_000_000) as runner:
        result = runner.run(picture_unit(paths))
    rows = dict(zip((path.name for path in hostile), result.rows[step.digest].to_pylist(), strict=True))  # none for the GIF: an image
    assert len(result.onward) == 1 + sum(found["error"] is None for found in rows.values())
    assert len(rows) >= 8
    assert rows["empty.mp4"]["error"].startswith("decode: ")
    assert rows["unordered.mov"]["error"] is None


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert STEP.check is not None
    for wrong, told in (
        ({"detector": "magic"}, "adaptive, content"),
        ({"frames": "some"}, "auto, all or key"),
        ({"threshold": -1.0}, r"0\.\.255"),
        ({"threshold": 3.0, "detector": "hash"}, r"0\.\.1 of the detector hash"),
        ({"min_shot": -1.0}, "seconds"),
        ({"side": 8}, "pixels"),
        ({"many": 0}, "key frames"),
        ({"still": 300.0}, "grey levels"),
        ({"min_stretch": 0.0}, "seconds"),
        ({"hash_fps": 3}, "1, 2, 4, 8"),
        ({"max_hashes": 1}, "max_hashes"),
    ):
        with pytest.raises(ValueError, match=told):
            STEP.check(What(**wrong))
    STEP.check(What())
    monkeypatch.setitem(__import__("sys").modules, "scenedetect.detectors", None)
    with pytest.raises(InfrastructureError, match=r"--no-deps -r requirements-nodeps\.txt"):
        check_library()
