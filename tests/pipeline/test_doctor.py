"""`fovea doctor`: what is right here, and each thing that can be wrong, told apart from what is merely absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import doctor
from pipeline.cli import app
from pipeline.doctor import Finding, examine


def found(what: str) -> Finding:
    (finding,) = [f for f in examine() if f.what == what]
    return finding


def test_here_versions_are_those_that_are_installed_and_the_exit_code_is_that_of_the_findings() -> None:
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    findings = [json.loads(line) for line in shown.stdout.splitlines()]
    by_name = {f["what"]: f for f in findings}
    for name in ("torch", "ray", "transformers", "deepspeed", "faiss-cpu", "open_clip_torch"):
        assert (by_name[name]["state"], by_name[name]["found"]) == ("good", metadata.version(name)), by_name[name]
    assert by_name["python"]["state"] == by_name["fovea"]["state"] == "good"
    assert {"g++", "libGL.so.1", "GPUs", "OCR weights", "encoder weights", "DeepSpeed's op"} <= by_name.keys()
    assert all(f["mend"] for f in findings if f["state"] == "bad")
    assert shown.exit_code == (1 if any(f["state"] == "bad" for f in findings) else 0)


def test_packages_that_are_missing_old_or_only_wanted_by_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["no-such-thing>=1", "numpy>=99", "pyarrow", "no-pictures>=1; extra == 'quickstart'", "no-linter; extra == 'dev'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: wanted)
    assert (found("no-such-thing").state, found("numpy").state, found("pyarrow").state) == ("bad", "bad", "good")
    assert found("numpy").found == f"{metadata.version('numpy')}, wanted >=99"
    assert "numpy>=99" in found("numpy").mend
    assert found("no-pictures").state == "note"
    assert not [f for f in examine() if f.what == "no-linter"]
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1
    assert "2 of" in shown.output


def test_two_packages_of_one_module_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "RIVALS", (("numpy", "pyarrow", "no-such-thing"), ("numpy", "no-such-thing")))
    (rivals,) = [f for f in examine() if "share a module" in f.found]
    assert (rivals.what, rivals.state) == ("numpy and pyarrow", "bad")


def test_no_compiler_and_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "LIBRARIES", (("libno-such-thing.so.9", "libnone"),))
    assert (found("g++").state, found("g++").mend) == ("bad", "apt-get install g++")
    assert (found("libno-such-thing.so.9").state, found("libno-such-thing.so.9").mend) == ("bad", "apt-get install libnone")


def test_the_op_is_found_where_torch_puts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert found("DeepSpeed's op").state == "note"
    built = tmp_path / "deepspeed_shm_comm" / "deepspeed_shm_comm.so"
    built.parent.mkdir()
    built.write_bytes(b"")
    assert (found("DeepSpeed's op").state, found("DeepSpeed's op").found) == ("good", str(built))


def test_weights_that_are_not_installed_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from curation import weights

    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    (ocr, encoder) = doctor._weights()
    assert (ocr.state, encoder.state) == ("note", "note")
    assert "requirements-nodeps.txt" in ocr.mend


def test_a_folder_that_hides_one_of_our_packages_is_found(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").write_text("")
    root = str(Path(doctor.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import sys; sys.argv = ['fovea', 'doctor', '--json']; from pipeline.cli import main; main()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (own,) = [f for line in done.stdout.splitlines() if (f := json.loads(line))["what"] == "fovea"]
    assert done.returncode == 1, done.stderr
    assert own["state"] == "bad"
    assert f"training from {tmp_path}" in own["found"]


def test_the_models_of_a_recipe(tmp_path: Path, no_hub: None) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": "1", "text": "a"}\n')
    for name, data in (("config.json", b"{}"), ("model.safetensors", b"weights")):
        (tmp_path / name).write_bytes(data)
    steps = f"  - tests.steps.modelled: {{as: a, model: org/model}}\n  - tests.steps.modelled: {{as: b, model: {tmp_path}}}\n"
    path = tmp_path / "r.yaml"
    path.write_text(f"name: r\nsources:\n  - {{name: t, format: manifest, path: {tmp_path / 't.jsonl'}}}\nsteps:\n{steps}")
    there, gone = sorted(doctor.models_of(str(path)), key=lambda f: f.state, reverse=True)
    assert (there.what, there.state, there.found) == ("model of b", "good", f"{tmp_path}: here")
    assert (gone.what, gone.state, gone.found) == ("model of a", "bad", "org/model: missing")
    assert "give a directory" in gone.mend
    shown = CliRunner().invoke(app, ["doctor", str(path), "--json"])
    assert shown.exit_code == 1
    assert [json.loads(line)["what"] for line in shown.stdout.splitlines()][-2:] == ["model of a", "model of b"]
