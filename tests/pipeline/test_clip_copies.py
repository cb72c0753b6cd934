"""Clips through a whole run: shots and stillness as scores, copies by their frames, what explain and the page of duplicates say of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.recipe import load_recipe
from shards.errors import RecipeError
from tests.curation.films import film, plain, scene
from tests.pipeline.small import ask, picture, recipe, run, verdicts

pytest.importorskip("scenedetect", reason="SCENEDETECT ABSENT: pip install --no-deps -r requirements-nodeps.txt")

STEPS = [
    "probe",
    {"video": {"min_shot": 0.5}},
    {"keep": "video_n_shots <= 3 and video_black_share < 0.9"},
    {"deduplicate": {"frames": "video_hashes", "keep_best": "width desc"}},
]


@pytest.fixture(scope="module")
def clips(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    films = folder / "films"
    films.mkdir()
    two = scene(1, 20) + scene(2, 20)
    large = [f.repeat(2, axis=0).repeat(2, axis=1) for f in two]
    for name, data in {
        "large.mkv": film(large),
        "copy.mp4": film(two, format="mp4", codec="mpeg4"),
        "later.avi": film(two[6:], format="avi", codec="mpeg4"),
        "other.mkv": film(scene(3, 40)),
        "black.mkv": film(plain(0, 20)),
        "cuts.mkv": film([f for k in range(5) for f in scene(10 + k, 8)]),
        "one.mkv": film(scene(5, 1)),
        "torn.mp4": film(two, format="mp4", codec="mpeg4")[:3000],
    }.items():
        (films / name).write_bytes(data)
    moving = [Image.fromarray(f) for f in scene(1, 6)]
    moving[0].save(films / "moving.gif", save_all=True, append_images=moving[1:], duration=100)
    picture(films / "photo.jpg", 3)
    run(recipe(folder / "recipe.yaml", {"films": films}, STEPS), folder / "run")
    return folder


def test_verdicts_and_scores(clips: Path) -> None:
    found = {key: (verdict, step) for key, (verdict, step, _) in verdicts(clips / "run").items()}
    assert found.pop("torn.mp4")[0] == "errored"
    assert found == {
        "large.mkv": ("kept", None),
        "copy.mp4": ("rejected", "deduplicate"),
        "later.avi": ("rejected", "deduplicate"),
        "other.mkv": ("kept", None),
        "one.mkv": ("kept", None),
        "black.mkv": ("rejected", found["black.mkv"][1]),
        "cuts.mkv": ("rejected", found["cuts.mkv"][1]),
        "moving.gif": ("kept", None),  # a GIF is a picture: the step leaves it alone, and the rule passes it
        "photo.jpg": ("kept", None),
    }
    scores = dict(ask(clips / "run", "select key, (video_n_shots, video_by, len(video_hashes)) from samples where video_by is not null"))
    assert scores["large.mkv"] == (2, "frames", 8)
    assert "moving.gif" not in scores
    [(rung,)] = ask(clips / "run", "select distinct duplicate_rung from samples where duplicate_of is not null")
    assert rung == "frames"


def test_explain_and_the_page_tell_of_frames(clips: Path, tmp_path: Path) -> None:
    [(uid,)] = ask(clips / "run", "select uid from samples where key = 'later.avi'")
    told = CliRunner().invoke(app, ["explain", str(clips / "run"), uid])
    assert "a copy of large.mkv of source films by frames, similarity" in told.output.replace("\n", " ")
    page = CliRunner().invoke(app, ["duplicates", str(clips / "run"), "--out", str(tmp_path), "--json"])
    assert page.exit_code == 0, page.output
    rungs = {line["rung"]: line for line in map(json.loads, page.stdout.splitlines()) if line["what"] == "rung"}
    assert (rungs["frames"]["setting"], rungs["frames"]["threshold"], rungs["frames"]["floor"]) == ("frame_share: 0.5", 0.5, 0.45)
    assert rungs["frames"]["pairs"] == 3
    assert rungs["frames"]["recall"]["at_floor"]["recall"] == 1.0
    assert "frame_share" in (tmp_path / "duplicates.html").read_text()


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        ("video_hash", "no column of a video step"),
        ("film_hashes", "no step writes the column 'film_hashes'"),
    ],
)
def test_a_recipe_that_names_other_hashes_is_told(tmp_path: Path, frames: str, told: str) -> None:
    steps = ["probe", "video", {"deduplicate": {"frames": frames}}]
    with pytest.raises(RecipeError, match=told):
        load_recipe(recipe(tmp_path / "r.yaml", {"films": tmp_path}, steps))
