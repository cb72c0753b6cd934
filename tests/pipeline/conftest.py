"""Finished runs that tests of the engine share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.small import picture, pictures, recipe, run, texts


@pytest.fixture(scope="session")
def rich_run(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with a sample of every fate but pending; `recipe.yaml` lies beside `run`."""
    folder = tmp_path_factory.mktemp("rich")
    pics = folder / "pics"
    pictures(pics, 5)
    picture(pics / "copy.jpg", 4, 104, 66, quality=60)
    (pics / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    picture(pics / "torn.jpg", 999, 120)
    (pics / "torn.json").write_text("{not JSON")
    texts(folder / "texts.jsonl", 2)
    pairs = [{"id": "pair", "files": ["pics/003.jpg", "pics/004.jpg"], "caption": "two | three\nfour"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    steps = [
        "probe", {"keep": {"name": "size", "if": "aspect_ratio < 10 and width >= 100"}},
        {"deduplicate": {"keep_best": "width * height desc"}}, {"compose": {"tasks": ["short_caption", "text", "multi_image"]}},
    ]  # fmt: skip
    sources = {"pics": pics, "texts": folder / "texts.jsonl", "pairs": folder / "pairs.jsonl"}
    run(recipe(folder / "recipe.yaml", sources, steps, split={"val": 0.3}), folder / "run")
    return folder
