"""Hub models of a recipe: pinned when a run is made, kept with it, shown and looked for before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from curation.models import Kind, Model
from curation.tags import resolved, tag_model
from pipeline import cluster
from pipeline.cli import app
from pipeline.curate import curate
from pipeline.pins import FILE, read_pins
from pipeline.provision import ModelState, model_states, provide
from pipeline.recipe import Recipe, StepOp, keep_in_run, load_recipe, load_run_recipe
from shards.errors import InfrastructureError, LedgerError, RecipeError
from shards.store import open_store
from tests.curation.hub_server import Hub

MODELLED = "tests.steps.modelled"
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 100_000}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, op: str = MODELLED, **parameters: Any) -> Path:
    (folder / "t.jsonl").write_text('{"id": "1", "text": "a"}\n')
    lines = "".join(f"      {key}: {json.dumps(value)}\n" for key, value in parameters.items())
    source = f"  - {{name: t, format: manifest, path: {folder / 't.jsonl'}}}"
    (folder / "r.yaml").write_text(f"name: r\nsources:\n{source}\nsteps:\n  - {op}:\n      as: m\n{lines}")
    return folder / "r.yaml"


def revision(recipe: Recipe) -> str:
    (op,) = recipe.ops
    assert isinstance(op, StepOp)
    assert [m.revision for m in op.models] == [op.what.revision]
    return str(op.what.revision)


def test_a_run_pins_its_models_and_keeps_them(tmp_path: Path, model_hub: Hub) -> None:
    first = model_hub.put("org/model", FILES)
    path, run = write(tmp_path, model="org/model"), tmp_path / "run"
    unpinned = load_recipe(path)
    assert (revision(unpinned), model_hub.asked) == ("", [])
    recipe = load_recipe(path, run=run)
    assert not run.exists()
    assert (revision(recipe), recipe.pins) == (first, {"org/model@": first})
    assert recipe.digest != unpinned.digest
    keep_in_run(open_store(str(run)), recipe)
    model_hub.put("org/model", {**FILES, "config.json": b'{"a": 1}'})
    model_hub.asked.clear()
    again, kept = load_recipe(path, run=run), load_run_recipe(open_store(str(run)))
    assert (revision(again), kept.pins, model_hub.asked) == (first, recipe.pins, [])
    assert again.digest == kept.digest == recipe.digest
    assert revision(load_recipe(path, run=tmp_path / "another")) != first


def test_the_pins_of_another_model_are_added(tmp_path: Path, model_hub: Hub) -> None:
    one, two = model_hub.put("org/one", FILES), model_hub.put("org/two", FILES, "v2")
    store = open_store(str(tmp_path / "run"))
    keep_in_run(store, load_recipe(write(tmp_path, model="org/one"), run=tmp_path / "run"))
    recipe = load_recipe(write(tmp_path, model="org/two", revision="v2"), run=tmp_path / "run")
    assert revision(recipe) == two  # a branch moves, so it is pinned too
    keep_in_run(store, recipe)
    assert read_pins(store) == {"org/one@": one, "org/two@v2": two}
    store.put_replace(FILE, b'{"models": {}}')
    with pytest.raises(LedgerError, match=r"models\.json is damaged"):
        load_run_recipe(store)


def test_the_cache_says_it_before_the_hub_is_asked(tmp_path: Path, no_hub: None) -> None:
    ref = Path(constants.HF_HUB_CACHE) / "models--org--model/refs/main"
    ref.parent.mkdir(parents=True)
    ref.write_text(COMMIT)
    assert revision(load_recipe(write(tmp_path, model="org/model"), run=tmp_path / "run")) == COMMIT


@pytest.mark.usefixtures("no_hub")
def test_a_model_that_cannot_be_pinned_is_a_problem_with_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, model="org/model")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, run=tmp_path / "run")
    (told,) = str(caught.value).splitlines()
    assert told.startswith(f"{path}:5: step {MODELLED!r}: revision: org/model cannot be pinned to a commit: ")
    assert told.endswith("or write `revision: <commit>`")
    assert "give a directory" in told
    assert revision(load_recipe(write(tmp_path, model="org/model", revision=COMMIT), run=tmp_path / "run")) == COMMIT


@pytest.mark.usefixtures("no_hub")
def test_what_a_server_has_is_not_pinned_here(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    served = load_recipe(write(tmp_path, model="org/model", url="http://127.0.0.1:9"), run=tmp_path / "run")
    assert [state.state for state in model_states(served)] == ["served"]
    keep_in_run(store, served)
    own = load_recipe(write(tmp_path, model="org/model"), run=tmp_path / "run")  # another How: no row of the run is another now
    assert (revision(served), own.digest) == ("", served.digest)


def test_models_are_shown_with_their_size_and_had_before_anything_starts(
    tmp_path: Path,
    model_hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = model_hub.put("org/model", FILES)
    path = write(tmp_path, model="org/model")
    (state,) = model_states(load_recipe(path, run=tmp_path / "run"))
    assert (state.state, state.bytes, state.steps, state.model.revision) == ("download", 700_002, ("m",), commit)
    shown = CliRunner().invoke(app, ["plan", str(path), "--run", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    assert "will be downloaded, 0.7 MB" in shown.output
    assert commit[:12] in shown.output
    told = json.loads(CliRunner().invoke(app, ["plan", str(path), "--run", str(tmp_path / "run"), "--json"]).output)
    assert told["models"] == [
        {"id": "org/model", "kind": "hub", "revision": commit, "steps": ["m"], "state": "download", "bytes": 700_002, "note": ""}
    ]

    def started(address: Any, ops: Any) -> None:
        raise RuntimeError("Ray")

    monkeypatch.setattr(cluster, "connect", started)
    with pytest.raises(RuntimeError, match="Ray"):
        curate(load_recipe(path, run=tmp_path / "run"), str(tmp_path / "run"))
    (state,) = model_states(load_recipe(path, run=tmp_path / "run"))
    assert (state.state, state.told()) == ("here", "here")


@pytest.mark.usefixtures("no_hub")
def test_a_model_that_cannot_be_had_ends_the_run_before_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "connect", lambda address, ops: pytest.fail("Ray was started"))
    path = write(tmp_path, model="org/model", revision=COMMIT)
    with pytest.raises(InfrastructureError, match=rf"step m: model org/model at {COMMIT} is not in the local cache and the hub cannot"):
        curate(load_recipe(path, run=tmp_path / "run"), str(tmp_path / "run"))
    (state,) = model_states(load_recipe(path, run=tmp_path / "run"))
    assert state.told().startswith("missing: model org/model")


def test_only_models_of_steps_with_something_to_do_are_asked_for(rich_run: Path, tmp_path: Path) -> None:
    missing = ModelState(Model("org/model", "hub"), ("probe",), "missing", None, "there is no network")
    recipe = load_recipe(rich_run / "recipe.yaml")
    provide(recipe, str(rich_run / "run"), [missing], download=True, fresh=False)  # the run is finished
    with pytest.raises(InfrastructureError, match="step probe: there is no network"):
        provide(recipe, str(tmp_path / "new"), [missing], download=True, fresh=True)
    elsewhere = ModelState(Model("org/model", "hub"), ("probe", "later"), "missing", None, "there is no network")
    with pytest.raises(InfrastructureError, match="step probe, later: there is no network"):
        provide(recipe, str(rich_run / "run"), [elsewhere], download=True, fresh=False)


def test_what_is_said_of_each_kind(tmp_path: Path, model_hub: Hub) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    recipe = load_recipe(write(tmp_path, model=str(tmp_path)))
    (op,) = recipe.ops
    assert isinstance(op, StepOp)
    kinds: list[tuple[str, Kind]] = [(str(tmp_path), "folder"), ("PP-OCRv6_small_det", "library"), (f"{model_hub.url}/head.pth", "url")]
    models = tuple(Model(name, kind) for name, kind in [*kinds, ("package:nothing", "package")])
    found = {state.model.kind: state.told() for state in model_states(replace(recipe, ops=(replace(op, models=models),)))}
    assert found == {
        "folder": "here",
        "library": "its library finds or downloads it",
        "url": "will be downloaded, size unknown: its server does not say, or cannot be reached",
        "package": "missing: package:nothing is not installed; pip install nothing",
    }


def test_a_tag_of_timm_is_pinned_as_the_repository_it_stands_for(tmp_path: Path, model_hub: Hub) -> None:
    commit = model_hub.put("timm/resnet18.a1_in1k", FILES)
    path, run = write(tmp_path, "embed", model="timm:resnet18", weights="pretrained:a1_in1k"), tmp_path / "run"
    recipe = load_recipe(path, run=run)
    (op,) = recipe.ops
    assert isinstance(op, StepOp)
    assert (op.what.revision, recipe.pins) == (commit, {"timm:resnet18 pretrained:a1_in1k@": commit})
    (state,) = model_states(recipe)
    assert (state.model.id, state.model.revision, state.state, state.bytes) == ("timm/resnet18.a1_in1k", commit, "download", 700_002)
    keep_in_run(open_store(str(run)), recipe)
    model_hub.asked.clear()
    assert load_run_recipe(open_store(str(run))).digest == recipe.digest
    assert model_hub.asked == []
    found = resolved(tag_model("open_clip:ViT-L-14", "openai"))  # known by its size, but nothing of ours pins it
    assert (found.id, found.kind, found.field) == ("timm/vit_large_patch14_clip_224.openai", "hub", "")
