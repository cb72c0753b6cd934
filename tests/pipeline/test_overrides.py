"""Override files: what they change, what they may not, and where a problem is said to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.overrides import names_of, to_text
from pipeline.recipe import Recipe, RuleOp, StepOp, keep_in_run, load_recipe, load_run_recipe
from pipeline.yamlpos import parse_yaml
from shards.errors import RecipeError
from shards.media import Limits
from shards.store import open_store

SIZE, BEST, WORDS = "tests.steps.toy_size", "tests.steps.toy_best", "tests.steps.words"
RECIPE = f"""\
name: toy  # a comment
sources:
  - {{name: photos, format: folder, path: data}}
limits:
  image: {{pixels: 1_000_000, bytes: 5_000_000}}
steps:
  - {SIZE}: {{as: small, scale: 2, sizes: [3, 4], batch: 8}}
  - keep: "small_width > 100"
  - {WORDS}
  - keep: {{name: wordy, any: "words_n > 3", for: [image, video]}}
  - keep: "words_n < 1000"
split: {{val: 0.01}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("data", "other"):
        (tmp_path / name / "a.txt").write_text("a picture")
    (tmp_path / "my.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*overrides: str) -> Recipe:
    names = []
    for i, text in enumerate(overrides):
        names.append(f"over{i}.yaml")
        Path(names[-1]).write_text(text)
    return load_recipe("my.yaml", overrides=names)


def refused(*overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as told:
        load(*overrides)
    return str(told.value).splitlines()


def rules(recipe: Recipe) -> dict[str, str]:
    return {op.name: op.rule.expression for op in recipe.ops if isinstance(op, RuleOp)}


def test_everything_an_override_may_change(folder: Path) -> None:
    recipe = load(
        """
name: mine
sources:
  - {name: others, format: folder, path: other}
limits: {image: {pixels: 7, bytes: null}, text: {chars: 9}}
steps:
  small: {scale: 3, batch: null, actors: 2, max_errors: 5}
  tests.steps.words: {batch: 4}
rules: {keep: "small_width > 1", wordy: "words_n > 0", keep_2: "words_n < 9"}
write: {max_samples: 5}
split: {val: null, test: 0.5}
"""
    )
    assert (recipe.name, [s.name for s in recipe.sources]) == ("mine", ["others"])
    assert recipe.limits == Limits(image_pixels=7, text_chars=9)
    small, _, words, _, _ = recipe.ops
    assert isinstance(small, StepOp)
    assert isinstance(words, StepOp)
    assert (small.what.scale, small.what.sizes, small.how.batch, small.how.actors, small.max_errors) == (3, (3, 4), 64, 2, 5)
    assert words.how.batch == 4
    assert rules(recipe) == {"keep": "small_width > 1", "wordy": "words_n > 0", "keep_2": "words_n < 9"}
    wordy = next(op.rule for op in recipe.ops if op.name == "wordy" and isinstance(op, RuleOp))
    assert (wordy.quantifier, wordy.kinds) == ("any", frozenset({"image", "video"}))
    assert (recipe.write.max_samples, dict(recipe.split)) == (5, {"test": 0.5})


def test_later_overrides_win_and_null_takes_a_section_out(folder: Path) -> None:
    recipe = load("steps: {small: {scale: 3, kernel: x}}\nsplit: {val: 0.5}", "steps: {small: {scale: 4}}\nlimits: null\nsplit: null\n")
    small = recipe.ops[0]
    assert isinstance(small, StepOp)
    assert (small.what.scale, small.what.kernel) == (4, "x")
    assert (recipe.limits, dict(recipe.split)) == (Limits(), {})


def test_an_override_that_changes_nothing_that_counts_has_the_digest_of_the_recipe(folder: Path) -> None:
    plain = load_recipe("my.yaml")
    same = load("steps: {small: {batch: 16}}")
    assert same.digest == plain.digest
    assert load("steps: {small: {scale: 5}}").digest != plain.digest
    Path("written.yaml").write_text(RECIPE.replace("scale: 2", "scale: 5"))
    assert load("steps: {small: {scale: 5}}").digest == load_recipe("written.yaml").digest


def test_the_merged_recipe_is_what_the_run_keeps(folder: Path) -> None:
    first, second = load("steps: {small: {kernel: '1e-3'}}"), load("steps: {small: {kernel: '1e-3'}}")
    assert first.text == second.text
    assert first.text.startswith(b"# my.yaml with over0.yaml\n")
    store = open_store(str(folder / "run"))
    keep_in_run(store, first)
    Path("over0.yaml").unlink()
    again = load_run_recipe(store)
    assert again.digest == first.digest
    small = again.ops[0]
    assert isinstance(small, StepOp)
    assert small.what.kernel == "1e-3"  # a text, though YAML 1.2 reads it as a number without its quotes
    keep_in_run(store, load_recipe("my.yaml"))
    assert store.read("recipe.yaml") == RECIPE.encode()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("steps: {smal: {scale: 3}}", ["over0.yaml:1: the recipe has no step 'smal'; did you mean 'small'?"]),
        ("\nrules:\n  wordly: 'true'\n", ["over0.yaml:3: the recipe has no rule 'wordly'; did you mean 'wordy'?"]),
        ("rules: {small: 'true'}", ["over0.yaml:1: the recipe has no rule 'small'; it is a step: change its parameters under `steps`"]),
        ("steps: {wordy: {if: 'true'}}", ["over0.yaml:1: the recipe has no step 'wordy'; it is a rule: change it under `rules`"]),
        ("steps: {small: null}", ["over0.yaml:1: the parameters of 'small' are a mapping (null removes one), not null"]),
        ("rules: {wordy: 3}", ["over0.yaml:1: the rule 'wordy' takes an expression, not 3"]),
        ("stepps: {}", ["over0.yaml:1: unknown key 'stepps' in an override; did you mean 'steps'?"]),
        ("- a", ["over0.yaml:1: an override is a mapping of what it changes: name, sources, limits, steps, rules, write, split"]),
        ("", ["over0.yaml:1: an override is a mapping of what it changes: name, sources, limits, steps, rules, write, split"]),
        ("steps: [small]", ["over0.yaml:1: 'steps' of an override is a mapping of names, not a list"]),
        ("sources: null", ["my.yaml:1: the recipe lacks 'sources'"]),
    ],
)
def test_what_an_override_may_not(folder: Path, override: str, told: list[str]) -> None:
    assert refused(override) == told


def test_a_problem_says_which_file_it_comes_from(folder: Path) -> None:
    Path("my.yaml").write_text(RECIPE.replace("batch: 8", "batch: x"))
    told = refused("steps:\n  small:\n    scale: 0.5\n", "split:\n  val: -1\n")
    assert [line.partition(": ")[0] for line in told] == ["my.yaml:7", "over0.yaml:3", "over1.yaml:2"]
    assert "'batch' of step" in told[0]
    assert "'scale' of step" in told[1]
    Path("my.yaml").write_text(RECIPE.replace("words_n < 1000", "words_m < 1000"))
    told = refused("rules:\n  wordy: words_x > 3\n")
    assert [line.partition(": ")[0] for line in told] == ["my.yaml:11", "over0.yaml:2"]
    assert "words_x" in told[1]
    Path("my.yaml").write_text(RECIPE)
    told = refused("\nsources:\n  - {name: others, format: folder, path: nowhere}\n")
    assert [line.partition(": ")[0] for line in told][-1] == "over0.yaml:3"


def test_a_value_that_only_the_step_refuses_is_the_override_s(folder: Path) -> None:
    (told,) = refused("steps:\n  small:\n    scale: 0\n")
    assert told == f"over0.yaml:3: step {SIZE!r}: scale: 0 is below 1"


@pytest.mark.parametrize(
    "override",
    [
        "steps: {small: {endpoint: 'https://user:hunter2@host/'}}",
        "steps: {small: {api_key_env: sk-0123456789abcdefhunter2}}",
        "steps: {smal: {api_key: hunter2}}",
        "steps: {small: {api_key: hunter2}}\nnonsense: 3",
    ],
)
def test_secrets_are_refused_and_not_repeated(folder: Path, override: str) -> None:
    told = refused(override)
    assert "hunter2" not in "\n".join(told)
    assert all(line.startswith("over0.yaml:1: ") for line in told)


def test_the_recipe_s_own_form_may_be_wrong(folder: Path) -> None:
    for text, told in (("- a", "my.yaml:1: a recipe is a mapping"), ("name: x\nsources: []\nsteps: probe\n", "my.yaml:3: `steps` must be")):
        Path("my.yaml").write_text(text)
        assert any(line.startswith(told) for line in refused("steps: {small: {scale: 1}}"))


def test_the_command_line_takes_overrides(folder: Path) -> None:
    Path("a.yaml").write_text("rules: {wordy: 'words_n > 6'}\nsources:\n  - {name: others, format: folder, path: other}\n")
    Path("b.yaml").write_text("rules: {wordy: 'words_n > 7'}")
    Path("other/a.jpg").write_bytes(b"not opened by a plan")
    arguments = ["plan", "my.yaml", "--run", "run", "--override", "a.yaml", "--override", "b.yaml", "--json"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    (told,) = (json.loads(line) for line in shown.stdout.splitlines())
    assert "keep[words_n > 7]" in told["phases"][0]
    assert (told["changes"]["total"], told["models"]) == (1, [])
    assert not Path("run").exists()


def test_names_are_those_of_the_reports(folder: Path) -> None:
    entries: list[Any] = ["probe", {"keep": "a"}, {"keep": {"if": "b"}}, {"embed": {"as": "keep_2"}}, {"keep": {"name": "n", "if": "c"}}]
    assert names_of([*entries, {"keep": "d"}, 3, {"a": 1, "b": 2}]) == ["probe", "keep", "keep_3", "keep_2", "n", "keep_4", None, None]


SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
WORDS_OF_YAML = st.sampled_from(
    ["1e-3", "on", "0o17", "1_000", "~", "null", "1:30", "- a", "a: b", "#", " x", "line\nline\n", "é\n\n", "0x1F"]
)
VALUES = st.recursive(
    SCALARS | WORDS_OF_YAML,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(min_size=1).filter(lambda key: key != "<<"), v, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.from_regex("[a-z]{1,8}", fullmatch=True), VALUES, max_size=4))
def test_what_is_kept_is_read_back_as_it_was(value: dict[str, Any]) -> None:
    assert parse_yaml(to_text(value, ["a.yaml", "b.yaml"]), "x").value == value
