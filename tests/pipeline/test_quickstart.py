"""The quickstart as a user runs it: everything is there, the model loads elsewhere, a second run says that all is done."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from pipeline.corpus import PHOTOGRAPHS, make_corpus
from tests.pipeline.small import fovea

SCRIPT = """
import sys
from pathlib import Path
from pipeline.quickstart import quickstart
done = quickstart(Path(sys.argv[1]), print, lambda what, done, total: None, training=sys.argv[2])
print("BEFORE" if done.before else "MADE")
"""
STEPS = 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickstart whose stages have a few steps each; all else is as shipped."""
    folder = tmp_path_factory.mktemp("quickstart")
    config = folder / "short.yaml"
    shipped = (resources.files("configs.training") / "tiny.yaml").read_text("utf-8")
    config.write_text(re.sub(r"\bsteps: \d+", f"steps: {STEPS}", shipped))
    assert config.read_text() != shipped
    assert run(folder).returncode == 0
    return folder


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", SCRIPT, str(folder / "made"), str(folder / "short.yaml")]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # a second one mostly waits, and for long where other tests run too
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, timeout=560, check=False)
    print(done.stdout, done.stderr)
    return done


@pytest.mark.slow
def test_everything_is_where_it_should_be(finished: Path) -> None:
    made = finished / "made"
    assert (made / "dataset" / "manifest.json").is_file()
    for stage in (1, 2, 3, 4):
        assert (made / "checkpoints" / f"stage{stage}" / "final" / "model.safetensors").is_file()
    assert (made / "export" / "config.json").is_file()
    report = (made / "report.md").read_text()
    found = json.loads((made / "report.json").read_text())
    assert sum(found["verdicts"].values()) == found["inputs"] > 300
    assert found["verdicts"]["pending"] == 0
    for word in ("decode", "limit", "duplicate_of", "Held-out loss", "| 4 |"):
        assert word in report


@pytest.mark.slow
def test_planted_copies_go_and_conversations_stay(finished: Path) -> None:
    from pipeline.ledger import open_ledger
    from pipeline.query import connect
    from pipeline.recipe import load_run_recipe

    ledger = open_ledger(str(finished / "made"))
    with connect(ledger, load_run_recipe(ledger.store)) as connection:
        group = "regexp_extract(key, '^(copies/)?([a-z_]+?)(-(recoded|smaller|brighter|same))?[.]jpg$', 2)"
        kept = connection.execute(
            f"select {group} as name, count(*), count(*) filter (verdict = 'kept') "
            "from samples where source = 'photos' group by 1 having count(*) > 1 and name <> ''"
        ).fetchall()
        others = dict(
            connection.execute("select source, count(*) from samples where verdict <> 'kept' and source <> 'photos' group by 1").fetchall()
        )
        broken = dict(connection.execute("select key, verdict from samples where key like 'broken/%'").fetchall())
    assert len(kept) == 6
    assert {(files, stay) for _, files, stay in kept} == {(5, 1)}  # of a picture and its four copies one stays
    assert others == {}
    assert set(broken.values()) == {"errored", "rejected"}
    assert len(broken) == 8
    assert broken["broken/bomb.png"] == "errored"


@pytest.mark.slow
def test_held_out_loss_falls_over_the_stages(finished: Path) -> None:
    stages = json.loads((finished / "made" / "quickstart.json").read_text())["stages"]
    assert [s["steps"] for s in stages] == [STEPS] * 4
    assert stages[-1]["after"] < stages[0]["before"] - 0.5


@pytest.mark.slow
def test_the_export_loads_with_transformers_alone(finished: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoProcessor, VideoLlama3ForConditionalGeneration

    export = str(finished / "made" / "export")
    model = VideoLlama3ForConditionalGeneration.from_pretrained(export)
    processor = AutoProcessor.from_pretrained(export)
    picture = Image.open(next((finished / "made" / "corpus" / "photos").glob("astronaut.jpg")))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What does this picture show?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[picture], return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert tokens.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.slow
def test_the_last_stage_is_evaluated_by_itself_and_only_the_answer_is_on_standard_output(finished: Path) -> None:
    made = finished / "made"
    few = ("--packs", "16", "--items", "2", "--max-new-tokens", "8")
    done = fovea("evaluate", made / "checkpoints/stage4/final", made / "dataset", *few, "--json", cwd=finished)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    recorded = json.loads((made / "quickstart.json").read_text())["stages"][-1]["after"]
    assert found["loss"] == pytest.approx(recorded, rel=1e-5)
    assert found["labelled"] > 100
    assert set(found["loss_by_task"]) >= {"short_caption", "video", "vqa", "text"}
    assert set(found["scores"]) <= set(found["loss_by_task"])
    assert found["answers"] >= found["asked"] > 5
    assert found["failed"] == []
    wrong = fovea("evaluate", made / "checkpoints", made / "dataset", cwd=finished)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "no finished stage" in wrong.stderr


@pytest.mark.slow
def test_a_quickstart_that_lost_something_or_was_killed_while_it_noted_its_end_makes_it_again(finished: Path, tmp_path: Path) -> None:
    """In a copy whose training and curation are done: only the end is made again."""
    shutil.copytree(finished / "made", tmp_path / "made")
    shutil.copyfile(finished / "short.yaml", tmp_path / "short.yaml")
    weights = (tmp_path / "made/checkpoints/stage4/final/model.safetensors").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "made" / "export")
    (tmp_path / "made" / "quickstart.tmp").write_text('{"seco')
    done = run(tmp_path)
    assert done.stdout.splitlines()[-1] == "MADE", done.stderr
    assert (tmp_path / "made" / "export" / "config.json").is_file()
    assert (tmp_path / "made" / "checkpoints/stage4/final/model.safetensors").stat().st_mtime_ns == weights
    assert (tmp_path / "made" / "report.md").read_text().count("## Training") == 1


@pytest.mark.slow
def test_run_again_all_is_done(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "made").rglob("*") if p.is_file()}
    done = run(finished)
    assert done.stdout.splitlines()[-1] == "BEFORE"
    assert {p: p.stat().st_mtime_ns for p in (finished / "made").rglob("*") if p.is_file()} == before


def test_the_corpus_is_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_corpus(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 10 * len(PHOTOGRAPHS)
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
