"""The house: which room may import which (docs and DESIGN: data flows one way)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "configs": set(),
    "shards": set(),
    "curation": {"shards"},
    "training": {"shards"},
    "pipeline": {"shards", "curation", "training"},
}
# Of training the pipeline only starts it.
STARTS_TRAINING = {"cli_costs.py", "cli_evaluate.py", "cli_training.py", "quickstart.py", "cluster.py"}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere in it, in functions too, and through importlib with a literal name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value.split(".")[0])
    return found


def violations(path: Path, room: str) -> set[str]:
    return (imported(path) & set(MAY_IMPORT)) - {room} - MAY_IMPORT[room] - {"configs"}


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_no_arrow_runs_upward(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"room {room} is empty"
    wrong = {str(f.relative_to(ROOT)): v for f in files if (v := violations(f, room))}
    assert not wrong


def test_pipeline_only_starts_training() -> None:
    users = {f.name for f in (ROOT / "pipeline").rglob("*.py") if "training" in imported(f)}
    assert users <= STARTS_TRAINING, users - STARTS_TRAINING


def test_an_upward_import_is_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from pipeline.ledger import Ledger\n    return Ledger\n")
    assert violations(wrong, "shards") == {"pipeline"}
    wrong.write_text("import importlib\nm = importlib.import_module('curation.step')\n")
    assert violations(wrong, "training") == {"curation"}


def test_configs_hold_no_code() -> None:
    assert [f.name for f in (ROOT / "configs").rglob("*.py")] == ["__init__.py"]


def test_no_file_is_over_one_megabyte() -> None:
    import subprocess

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    large = [n for n in listed.stdout.decode().split("\0") if n and (ROOT / n).is_file() and (ROOT / n).stat().st_size > 1 << 20]
    assert not large
