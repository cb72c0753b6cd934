"""Measure profiles in a recipe: what the index could not hold is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.recipe import load_recipe
from shards.errors import RecipeError


def test_a_profile_is_measured_once_and_is_no_other_column(tmp_path: Path, qwen_tokenizer_dir: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "uid.yaml").write_text("name: uid\n")
    path = tmp_path / "my.yaml"
    path.write_text(
        f"name: toy\nsources:\n  - {{name: photos, format: folder, path: {tmp_path}/data}}\nsteps:\n  - compose\n"
        f"  - measure: {{profile: tiny, tokenizer: {qwen_tokenizer_dir}}}\n"
        f"  - measure: {{as: again, profile: tiny, tokenizer: {qwen_tokenizer_dir}}}\n"
        f"  - measure: {{as: third, profile: {tmp_path}/uid.yaml, tokenizer: {qwen_tokenizer_dir}}}\n"
    )
    with pytest.raises(RecipeError) as told:
        load_recipe(path)
    assert str(told.value).splitlines() == [
        f"{path}:7: step 'again': measure (line 6) measures under the profile 'tiny' already; remove one of the two",
        f"{path}:8: step 'third': the profile is named 'uid', which is another column of the index; give it another `name`",
    ]
