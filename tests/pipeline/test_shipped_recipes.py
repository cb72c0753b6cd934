"""The recipes that come with fovea, run over real files by their override files with small models: one recipe, no second one for tests."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.curate import Outcome, curate
from pipeline.explain import explain
from pipeline.ledger import open_ledger
from pipeline.plan import RunPlan, make_plan
from pipeline.recipe import Recipe, load_recipe, load_run_recipe
from pipeline.report import report
from shards.reader import Dataset
from shards.verify import verify
from tests.pipeline.small import ask

OVERRIDES = Path(str(resources.files("configs"))) / "overrides"
RECIPES = Path(str(resources.files("configs"))) / "curation"
SHIPPED = sorted(path.stem for path in OVERRIDES.glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def _places(
    data_dir: Path,
    qwen_tokenizer_dir: Path,
    small_clip: Path,
    small_captioner: Path,
    small_head: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """The environment that the overrides name: data, tokenizer, models, and a cache of replies of our own."""
    models = tmp_path_factory.mktemp("models")
    for name, folder in (("clip", small_clip), ("captioner", small_captioner), ("aesthetic", small_head.parent)):
        (models / name).symlink_to(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEA_TEST_DATA", str(data_dir))
        patch.setenv("FOVEA_TOKENIZER", str(qwen_tokenizer_dir))
        patch.setenv("FOVEA_SMALL_MODELS", str(models))
        yield


def few(folder: Path, sources: Mapping[str, tuple[str, dict[str, Any]]], **more: Any) -> Path:
    """An override of the override: sources as (where, more keys) over the development data, few enough for a test."""
    listed = [
        {"name": name, "format": "manifest", "path": "${FOVEA_TEST_DATA}/manifest.jsonl", "where": where, **keys}
        for name, (where, keys) in sources.items()
    ]
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump({"sources": listed, **more}))
    return path


def load(name: str, *overrides: Path) -> Recipe:
    return load_recipe(name, overrides=[OVERRIDES / f"{name}.yaml", *overrides])


def calls(plan: RunPlan) -> dict[str, int]:
    return {step.name: step.calls for step in plan.steps if step.calls}


def test_every_recipe_has_its_override_and_says_where_its_numbers_come_from() -> None:
    others = {"quickstart", "shared-data"}
    assert {path.stem for path in RECIPES.glob("*.yaml")} - others == set(SHIPPED)
    assert set(SHIPPED) == {"vl3-syn7m", "documents", "charts", "text", "stage1", "stage2", "stage3", "stage4", "video"}
    for name in SHIPPED:
        words = (RECIPES / f"{name}.yaml").read_text("utf-8")
        assert "ours" in words
        assert "report" in words or "arXiv" in words or name == "charts"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_compiles_over_the_development_data(name: str) -> None:
    recipe = load(name)
    assert [op.name for op in recipe.ops][-1] == "measure"
    assert recipe.split["val"] > 0


@pytest.fixture(scope="module")
def syn(one_ray: None, _places: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Outcome]:
    """(run, override for few, outcome) of vl3-syn7m over photographs, copies and files that break."""
    folder = tmp_path_factory.mktemp("syn")
    override = few(
        folder,
        {
            "caption": ("kind = 'caption' and id <= 'd-caption-0030'", {"fields": {"caption": "text"}}),
            "hostile": ("kind = 'hostile' and id <= 'd-hostile-0020'", {"explode": "files"}),
        },
        steps={"balance": {"clusters": 4, "per_cluster": 5}},
    )
    return folder / "run", override, curate(load("vl3-syn7m", override), str(folder / "run"))


def test_vl3_syn7m_goes_from_files_to_shards(syn: tuple[Path, Path, Outcome]) -> None:
    run, _, outcome = syn
    counts = outcome.counts
    assert counts["inputs"] == counts["kept"] + counts["rejected"] + counts["errored"]
    assert min(counts["kept"], counts["rejected"], counts["errored"]) > 0
    assert verify(run / "dataset") == []
    index = Dataset.open(run / "dataset").index(["task", "short_text", "detailed_text", "short_clip_similarity", "aesthetic_score", "tiny"])
    assert set(index["task"].to_pylist()) == {"short_caption", "detailed_caption"}
    assert index.num_rows == 2 * counts["kept"]
    assert all(column.null_count == 0 for column in index.columns)
    found = dict(ask(run, "select step, count(*) from samples where verdict = 'rejected' group by 1"))
    assert found["balance"] > 0


def test_every_fate_of_vl3_syn7m_is_explained(syn: tuple[Path, Path, Outcome]) -> None:
    run, _, _ = syn
    ledger = open_ledger(str(run))
    recipe = load_run_recipe(ledger.store)
    for verdict in ("kept", "rejected", "errored"):
        [(uid, step, reason)] = ask(run, f"select uid, step, reason from samples where verdict = '{verdict}' order by step, uid limit 1")
        told = explain(ledger, recipe, uid)
        assert (told["verdict"], told["step"], told["reason"]) == (verdict, step, reason)
        steps = [entry.get("step") or entry.get("rule") for entry in told["life"]]
        if verdict == "kept":
            assert {"coarse", "coarse_clip", "short", "short_clip", "detailed", "balance"} <= set(steps)
            assert {item["task"] for item in told["items"]} == {"short_caption", "detailed_caption"}
        else:
            assert steps[-1] == step
            assert reason
            assert told["items"] == []


def test_the_funnel_has_a_cost_for_each_source_and_step(syn: tuple[Path, Path, Outcome]) -> None:
    run, _, outcome = syn
    ledger = open_ledger(str(run))
    found = report(ledger, load_run_recipe(ledger.store))
    assert found["inputs"] == outcome.counts["inputs"]
    assert {cost["step"] for cost in found["costs"]} >= {"clip", "aesthetic", "coarse", "short", "detailed"}


@pytest.mark.slow
def test_a_changed_threshold_costs_what_the_plan_says_and_a_changed_prompt_its_caption(
    syn: tuple[Path, Path, Outcome], tmp_path: Path
) -> None:
    run, base, first = syn

    def again(**change: Any) -> tuple[RunPlan, Outcome]:
        path = tmp_path / "change.yaml"
        path.write_text(yaml.safe_dump(change))
        recipe = load("vl3-syn7m", base, path)
        plan = make_plan(recipe, str(run))
        return plan, curate(recipe, str(run))

    globals_ = {"deduplicate", "balance"}
    # How: nothing
    how = {"coarse": {"batch": 3}, "short": {"batch": 2, "timeout": 5.0}, "clip": {"batch": 5, "device": "cpu"}, "probe": {"batch": 4}}
    plan, outcome = again(steps=how)
    assert (calls(plan), outcome.calls, outcome.media_opened) == ({}, {}, 0)
    assert outcome.dataset is not None
    assert first.dataset is not None
    assert outcome.dataset.version == first.dataset.version
    # tightened: globals see fewer, and whoever they newly let in is what the plan said
    plan, outcome = again(rules={"shape": "aspect_ratio between 0.334 and 3.0 and least(width, height) >= 428"})
    assert {k: v for k, v in outcome.calls.items() if k not in globals_} == {k: v for k, v in calls(plan).items() if k not in globals_}
    assert set(outcome.calls) <= globals_ | {"short", "short_clip", "detailed", "compose", "measure"}
    # loosened in the middle: the newly admitted alone
    plan, outcome = again(steps={"balance": {"clusters": 4, "per_cluster": 7}})
    exact = {s.name for s in plan.steps if s.calls and s.exact}
    assert exact == {"balance", "short", "short_clip"}  # behind them stands a rule over what they will write
    assert {name: outcome.calls[name] for name in exact} == {name: calls(plan)[name] for name in exact}
    assert all(outcome.calls[name] <= calls(plan)[name] for name in outcome.calls)
    assert 0 < outcome.calls["short"] == outcome.calls["detailed"] < first.calls["short"]
    assert "clip" not in outcome.calls
    assert "coarse" not in outcome.calls
    # a prompt: that caption, and what reads it; whoever had no caption before goes on from there
    [(stuck,)] = ask(run, "select count(*) from samples where step = 'short'")
    plan, outcome = again(steps={"balance": {"clusters": 4, "per_cluster": 7}, "short": {"prompt": "What is shown?"}})
    assert set(outcome.calls) - {"detailed"} == {"short", "short_clip", "compose", "measure"}
    assert outcome.calls.get("detailed", 0) <= stuck
    assert outcome.calls["short"] == calls(plan)["short"]
    assert all(outcome.calls[name] <= calls(plan)[name] for name in outcome.calls)


def outcome_of(name: str, folder: Path, *overrides: Path) -> Outcome:
    outcome = curate(load(name, *overrides), str(folder / "run"))
    assert outcome.counts["pending"] == 0
    assert verify(folder / "run/dataset") == []
    return outcome


def tasks(folder: Path) -> dict[str, int]:
    return dict(ask(folder / "run", "select task, count(*) from items where task <> '' group by 1"))


@pytest.mark.usefixtures("one_ray")
def test_documents_from_pages_and_pdfs(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "pdf").mkdir()
    figure = Figure((5, 4))
    for line in range(12):
        figure.text(0.1, 0.9 - line * 0.06, f"line {line} of a page that is typeset and not scanned")
    figure.savefig(tmp_path / "pdf/typeset.pdf", metadata={"CreationDate": None})
    (tmp_path / "pdf/broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    override = few(
        tmp_path,
        {
            "pages": ("id = 'd-ocr-0071'", {"fields": {"transcription": "text"}}),
        },
    )
    listed = yaml.safe_load(override.read_text())
    listed["sources"].append({"name": "pdf", "format": "folder", "path": str(tmp_path / "pdf")})
    override.write_text(yaml.safe_dump(listed))
    outcome = outcome_of("documents", tmp_path, override)
    assert {k: v for k, v in outcome.counts.items() if v} == {"inputs": 4, "kept": 2, "errored": 1, "split": 1}
    assert tasks(tmp_path) == {"document": 2}


@pytest.mark.usefixtures("one_ray")
def test_charts_are_taken_out_of_figures(tmp_path: Path) -> None:
    alt = "kind = 'caption' and subset = 'openstax' and id in ('d-caption-0120', 'd-caption-0121', 'd-caption-0122', 'd-caption-0123')"
    photo = "kind = 'caption' and id <= 'd-caption-0003'"
    override = few(tmp_path, {"figures": (alt, {"fields": {"caption": "alt"}}), "photographs": (photo, {"fields": {"caption": "text"}})})
    outcome_of("charts", tmp_path, override)
    assert set(tasks(tmp_path)) <= {"chart", "vqa"}
    assert ask(tmp_path / "run", "select count(*) from samples where source = 'photographs' and verdict = 'kept'") == [(0,)]


@pytest.mark.usefixtures("one_ray")
def test_texts_alone(tmp_path: Path) -> None:
    outcome = outcome_of("text", tmp_path)
    assert outcome.media_opened == 0
    assert tasks(tmp_path) == {"text": outcome.counts["kept"]}
    assert outcome.counts["kept"] >= 0.9 * outcome.counts["inputs"]


@pytest.mark.usefixtures("one_ray")
def test_films_become_items_of_their_shots(tmp_path: Path) -> None:
    clips = "kind = 'video' and id in ('d-video-0006', 'd-video-0010', 'd-video-0016')"  # a title card, a street, 0.07 s
    outcome = outcome_of("video", tmp_path, few(tmp_path, {"films": (clips, {})}))
    counts = outcome.counts
    assert (counts["split"], counts["rejected"], counts["errored"]) == (2, 1, 0)
    assert counts["kept"] == counts["inputs"] - 3 >= 2
    told = tasks(tmp_path)
    assert told["video"] >= 3  # a caption each, and the shots of one at least
    assert told["temporal_grounding"] >= 1
    assert told["streaming"] >= 1
    clips = ask(tmp_path / "run", "select ocr_text, shot_text from samples where key like '%0006#%' and verdict = 'kept' order by key")
    assert any("Audioless" in text for text, _ in clips)
    assert all(said for _, said in clips)


STAGES: dict[str, tuple[dict[str, tuple[str, dict[str, Any]]], set[str]]] = {
    "stage1": (
        {
            "scene": ("kind = 'caption' and id <= 'd-caption-0006'", {"fields": {"caption": "text"}}),
            "documents": ("id = 'd-ocr-0071'", {"fields": {"transcription": "text"}}),
        },
        {"short_caption", "ocr", "document"},
    ),
    "stage2": (
        {
            "scene": ("kind = 'caption' and id <= 'd-caption-0006'", {"fields": {"caption": "text"}}),
            "text": ("kind = 'text' and id <= 'd-text-0010'", {"fields": {"conversations": "conversations"}}),
        },
        {"detailed_caption", "ocr", "text"},
    ),
    "stage3": (
        {
            "general": ("kind = 'sft' and id <= 'd-sft-0006'", {"fields": {"conversations": "conversations"}}),
            "text": ("kind = 'text' and id <= 'd-text-0010'", {"fields": {"conversations": "conversations"}}),
            "video": ("kind = 'video' and id <= 'd-video-0002'", {"fields": {"caption": "text"}}),
        },
        {"vqa", "text", "video"},
    ),
    "stage4": (
        {
            "video": ("kind = 'video' and id <= 'd-video-0002'", {"fields": {"caption": "text"}}),
            "image": ("kind = 'sft' and id <= 'd-sft-0006'", {"fields": {"conversations": "conversations"}}),
        },
        {"video", "vqa"},
    ),
}


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("name", sorted(STAGES))
def test_what_a_stage_is_fed_with(name: str, tmp_path: Path) -> None:
    sources, expected = STAGES[name]
    outcome = outcome_of(name, tmp_path, few(tmp_path, sources))
    assert outcome.counts["kept"] > 0
    assert expected <= set(tasks(tmp_path))
