"""A run is read as it was curated: without its models, its environment variables, its hub; and never by a digest of another recipe."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.ledger import open_ledger
from pipeline.recipe import StepOp, keep_in_run, load_recipe, load_run_recipe
from pipeline.resolution import FILE
from shards.errors import LedgerError, RecipeError
from shards.sample import uid_of
from shards.store import Store, open_store
from tests.pipeline.small import ask, pictures, recipe, run
from tests.steps import modelled

MODELLED = "tests.steps.modelled"
MODEL = "${FOVEA_SMALL_MODELS:-/nowhere/models}/toy"


def digests(loaded: object) -> dict[str, str]:
    return {op.name: op.digest for op in getattr(loaded, "ops", ()) if isinstance(op, StepOp)}


def put_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def printed(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def finished(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A finished run whose model directory and variables are gone since, and the digests of its steps."""
    folder = tmp_path_factory.mktemp("finished")
    pictures(folder / "pics", 3)
    put_model(folder / "models/toy")
    steps = [{MODELLED: {"as": "m", "model": MODEL}}, {"keep": "m_folder = 'toy'"}, {"compose": {"tasks": ["short_caption"]}}]
    path = recipe(folder / "recipe.yaml", {"pics": folder / "pics"}, steps, write={"path": "${FOVEA_OUT}/written"})
    path.write_text(path.read_text().replace(str(folder / "pics"), "${FOVEA_PICS}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEA_SMALL_MODELS", str(folder / "models"))
        patch.setenv("FOVEA_PICS", str(folder / "pics"))
        patch.setenv("FOVEA_OUT", str(folder / "out"))
        curated = digests(load_recipe(path))
        assert run(path, folder / "run").counts["kept"] == 3
    shutil.rmtree(folder / "models")
    return folder, curated


def test_a_finished_run_is_read_without_models_and_variables(
    finished: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, curated = finished
    monkeypatch.chdir(tmp_path)
    assert digests(load_run_recipe(open_store(str(folder / "run")))) == curated
    told = json.loads(printed("explain", folder / "run", uid_of("pics", "001.jpg"), "--json"))
    assert (told["verdict"], told["life"][0]["scores"]) == ("kept", {"folder": "toy"})
    assert [event["digest"] for event in told["life"] if "digest" in event] == list(curated.values())
    assert ask(folder / "run", "select verdict, m_folder, count(*) from samples group by all") == [("kept", "toy", 3)]
    assert dict(ask(folder / "run", "select step, digest from costs")) == curated
    assert ask(folder / "run", "select sum(samples) from shards") == [(3,)]  # they lie where a variable said
    assert ask(folder / "run", "select count(*) from items") == [(3,)]
    assert '"n": 3' in printed("query", folder / "run", "select count(*) as n from samples", "--json")
    report = json.loads(printed("report", folder / "run", "--json"))
    assert (report["verdicts"]["kept"], report["verdicts"]["pending"]) == (3, 0)


def test_a_run_that_keeps_no_digests_has_its_steps_looked_at_as_a_recipe_has(finished: tuple[Path, dict[str, str]]) -> None:
    folder, _ = finished
    kept = (folder / "run" / FILE).read_bytes()
    (folder / "run" / FILE).unlink()
    try:
        with pytest.raises(RecipeError, match="the environment variable FOVEA_OUT is not set"):
            load_run_recipe(open_ledger(str(folder / "run")).store)
    finally:
        (folder / "run" / FILE).write_bytes(kept)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Store]:
    """A recipe that is kept in a run's folder, where nothing else is yet."""
    put_model(tmp_path / "models/toy")
    monkeypatch.setenv("FOVEA_SMALL_MODELS", str(tmp_path / "models"))
    pictures(tmp_path / "pics", 1)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["probe", {MODELLED: {"as": "m", "model": MODEL}}])
    store = open_store(str(tmp_path / "run"))
    keep_in_run(store, load_recipe(path))
    return path, store


def test_a_digest_belongs_to_the_recipe_it_was_kept_with(small: tuple[Path, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = small
    before = load_recipe(path)
    weights = path.parent / "models/toy/model.safetensors"
    weights.write_bytes(b"others")
    now = load_recipe(path)
    assert digests(now) != digests(before)
    assert digests(load_run_recipe(store)) == digests(before)  # what the run was curated with
    kept = store.read(FILE)
    for broken in ("recipe.yaml", "until"):  # the run that was to begin was killed between two files
        keep_in_run(store, replace(now, text=now.text + b"# another\n") if broken == "recipe.yaml" else replace(now, until="m"))
        store.put_replace(FILE, kept)
        assert digests(load_run_recipe(store)) == digests(now)
    keep_in_run(store, now)
    weights.write_bytes(b"weights")
    assert digests(load_run_recipe(store)) == digests(now)
    monkeypatch.setattr(modelled, "STEP", replace(modelled.STEP, version=2))
    new = digests(load_run_recipe(store))
    assert new == digests(load_recipe(path))
    assert new["m"] not in (digests(now)["m"], digests(before)["m"])


def test_what_a_variable_was_counts_not_what_it_is(small: tuple[Path, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = small
    monkeypatch.setenv("FOVEA_SMALL_MODELS", "/elsewhere")
    found = load_run_recipe(store)
    assert [op.what.model for op in found.ops if isinstance(op, StepOp) and op.name == "m"] == [str(path.parent / "models/toy")]
    again = open_store(str(path.parent / "again"))
    keep_in_run(again, found)
    assert again.read(FILE) == store.read(FILE)


def test_a_step_that_looks_at_files_is_neither_checked_nor_opened(
    tmp_path: Path, qwen_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Path(shutil.copytree(qwen_tokenizer_dir, tmp_path / "tokenizer"))
    pictures(tmp_path / "pics", 1)
    path = recipe(
        tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["compose", {"measure": {"profile": "tiny", "tokenizer": str(tokenizer)}}]
    )
    store = open_store(str(tmp_path / "run"))
    curated = load_recipe(path)
    keep_in_run(store, curated)
    shutil.rmtree(tokenizer)
    with pytest.raises(RecipeError, match="tokenizer"):
        load_recipe(path)
    assert digests(load_run_recipe(store)) == digests(curated)
    assert load_run_recipe(store).digest == curated.digest


def test_no_secret_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter3")
    monkeypatch.setenv("PLAIN", "sk-abcdefghijklmnopqrstuv")
    monkeypatch.setenv("SERVER", "example.com/v1?api_key=hunter4")
    pictures(tmp_path / "pics", 1)

    def load(**parameters: str) -> Store:
        path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"tests.steps.toy_size": parameters}])
        store = open_store(str(tmp_path / "run"))
        keep_in_run(store, load_recipe(path))
        return store

    for endpoint in ("https://example.com/${HF_TOKEN}", "${PLAIN}", "https://${SERVER}"):
        with pytest.raises(RecipeError) as caught:
            load(endpoint=endpoint)
        assert not any(secret in str(caught.value) for secret in ("hunter", "sk-abc"))
    monkeypatch.setenv("SERVER", "example.com/v1")
    store = load(endpoint="https://${SERVER}", api_key_env="MY_KEY")
    assert json.loads(store.read(FILE))["variables"] == {"SERVER": "example.com/v1"}
    assert not any(b"hunter" in store.read(name) for name in store.list())


def test_what_is_damaged_is_told(small: tuple[Path, Store]) -> None:
    _, store = small
    whole = json.loads(store.read(FILE))
    for damaged in ({**whole, "format": "other"}, {**whole, "variables": None}, {**whole, "steps": {"m": {"digest": "x"}}}):
        store.put_replace(FILE, json.dumps(damaged).encode())
        with pytest.raises(LedgerError, match=r"resolved\.json is damaged"):
            load_run_recipe(store)
    del whole["steps"]["m"]
    store.put_replace(FILE, json.dumps(whole).encode())
    with pytest.raises(RecipeError, match=r"step 'm': resolved\.json beside this recipe lacks its digest; delete that file"):
        load_run_recipe(store)


def test_a_step_of_ones_own_that_cannot_be_imported_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own/my_words.py"
    own.parent.mkdir()
    own.write_text("from tests.steps.words import STEP as STEP\n")
    pictures(tmp_path / "pics", 1)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [{"own.my_words": {"as": "w"}}])
    store = open_store(str(tmp_path / "run"))
    with monkeypatch.context() as inside:
        inside.syspath_prepend(str(tmp_path))
        keep_in_run(store, load_recipe(path))
        del sys.modules["own.my_words"]
        own.write_text("import a_package_that_is_not_there\n")
        with pytest.raises(
            RecipeError, match=r"recipe\.yaml:\d+: step 'own\.my_words': the module own\.my_words cannot be imported: No module"
        ):
            load_run_recipe(store)
    for name in [name for name in sys.modules if name.split(".")[0] == "own"]:
        del sys.modules[name]
    with pytest.raises(RecipeError, match=r"recipe\.yaml:\d+: no step 'own\.my_words': there is no module own\.my_words; put the folder"):
        load_run_recipe(store)
