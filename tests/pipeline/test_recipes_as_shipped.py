"""The recipes that come with fovea, without an override: of their sources and steps, nothing is wrong but that the data is elsewhere."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

from pipeline.recipe import load_recipe
from shards.errors import RecipeError

RECIPES = Path(str(resources.files("configs"))) / "curation"
SHIPPED = sorted({path.stem for path in RECIPES.glob("*.yaml")} - {"quickstart", "shared-data"})


@pytest.mark.parametrize("name", SHIPPED)
def test_only_the_data_is_missing(name: str, tmp_path: Path, qwen_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOVEA_TOKENIZER", str(qwen_tokenizer_dir))
    with pytest.raises(RecipeError) as told:
        load_recipe(name)
    problems = str(told.value).splitlines()
    written = yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))["sources"]
    assert len(problems) == len(written)
    assert all(": source '" in problem and problem.endswith("; mend the path") for problem in problems)


def test_a_step_that_is_wrong_would_be_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOVEA_TOKENIZER", str(tmp_path / "nothing"))
    with pytest.raises(RecipeError, match="step 'measure'"):
        load_recipe("text")
