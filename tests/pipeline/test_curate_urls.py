"""A whole run over URLs: every format of source, read by workers that know nothing but the URL."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.recipe import load_recipe
from shards.errors import RecipeError
from shards.reader import Dataset
from tests.pipeline.small import ask, run
from tests.shards.five_formats import COUNT, PATHS, picture, recipe_sources, write
from tests.shards.http_folder import served
from tests.shards.test_sources_downloads import FAILED, layout

STEPS = [
    {"text_quality": {"of": "caption", "language": ""}},
    {"keep": {"name": "words", "if": "text_quality_words >= 2 and len(text_quality_boilerplate) = 0"}},
    {"compose": {"tasks": ["short_caption", "vqa"]}},
]
FAR = ("webdataset", "parquet", "manifest")


@pytest.mark.usefixtures("one_ray")
def test_a_run_over_urls(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus")
    layout(folder / "crawl", "webdataset")
    with served(folder) as url:
        far = [{**source, "name": f"far-{source['name']}"} for source in recipe_sources(url) if source["name"] in FAR]
        crawl = {"name": "crawl", "format": "webdataset", "path": f"{url}/crawl"}
        path = tmp_path / "r.yaml"
        sources = [*recipe_sources(f"file://{folder}"), *far, crawl]
        path.write_text(yaml.safe_dump({"name": "urls", "sources": sources, "steps": STEPS}))
        outcome = run(path, tmp_path / "run")
        assert outcome.counts["kept"] == COUNT * (len(PATHS) + len(FAR)) + 4
        assert outcome.counts["errored"] == len(FAILED)
        assert outcome.counts["inputs"] == outcome.counts["kept"] + outcome.counts["errored"]
        assert run(path, tmp_path / "run").calls == {}

    reasons = ask(tmp_path / "run", "select key, reason from samples where verdict = 'errored' order by key")
    assert [key for key, _ in reasons] == ["00000.tar/000000002", "00000.tar/000000004"]
    assert "HTTP Error 404" in reasons[0][1]
    uids = dict(ask(tmp_path / "run", "select source || '/' || key, uid from samples where verdict = 'kept'"))
    keys = ["folder/sub/1.png", "webdataset/00000.tar/00001", "parquet/1", "llava/1", "manifest/1"]
    keys += [f"far-{key}" for key in keys if key.partition("/")[0] in FAR]
    shards = Dataset.open(str(tmp_path / "run" / "dataset"))
    assert [sample.media for sample in shards.read([uids[key] for key in keys])] == [[picture(1)]] * len(keys)


def test_a_url_without_its_driver_is_a_problem_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    source = {"name": "far", "format": "webdataset", "path": "abfs://container/tars"}
    path.write_text(yaml.safe_dump({"name": "urls", "sources": [source], "steps": STEPS}))
    with pytest.raises(RecipeError, match=r"r\.yaml:\d+: source 'far': abfs://container/tars needs a driver that is not installed"):
        load_recipe(path)
