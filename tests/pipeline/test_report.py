"""The report: numbers that add up, reasons by kind, Markdown whose tables hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.funnel import _stages
from pipeline.ledger import open_ledger
from pipeline.recipe import load_run_recipe
from pipeline.report import ADDED, report, to_markdown, write_report
from shards.sample import uid_of


def test_the_report_says_what_became_of_everything(rich_run: Path) -> None:
    ledger = open_ledger(str(rich_run / "run"))
    found = report(ledger, load_run_recipe(ledger.store))
    assert found["inputs"] == 11
    assert found["verdicts"] == {"kept": 7, "rejected": 2, "errored": 2, "split": 0, "pending": 0}
    assert found["sources"] == {"pics": {"kept": 4, "rejected": 2, "errored": 2}, "texts": {"kept": 2}, "pairs": {"kept": 1}}
    reasons = {(r["verdict"], r["step"], r["reason"]): (r["samples"], r["example"]) for r in found["reasons"]}
    assert reasons == {
        ("rejected", "size", "size: width >= 100"): (1, uid_of("pics", "000.jpg")),
        ("rejected", "deduplicate", "deduplicate: duplicate_of is null or turns > 0"): (1, uid_of("pics", "copy.jpg")),
        ("errored", "probe", "decode"): (1, uid_of("pics", "broken.jpg")),
        ("errored", "source", "damaged"): (1, uid_of("pics", "torn.jpg")),
    }
    assert sum(s["samples"] for s in found["dataset"]["splits"]) == 7
    assert {t["task"]: t["items"] for t in found["dataset"]["tasks"]} == {"short_caption": 4, "text": 2, "multi_image": 1}
    assert {c["step"] for c in found["costs"]} == {"probe", "deduplicate", "compose"}

    stages = {s["step"]: (s["entered"], s["rejected"], s["errored"], s["out"], s["calls"]) for s in found["funnel"]}
    assert stages == {
        "source": (11, 0, 1, 10, None),
        "probe": (10, 0, 1, 9, 9),  # 7 pictures and a pair
        "size": (9, 1, 0, 8, None),
        "deduplicate": (8, 1, 0, 7, 8),
        "compose": (7, 0, 0, 7, 7),
    }
    by_source = found["funnel_by_source"]
    assert list(by_source) == ["pairs", "pics", "texts"]
    assert [(s["step"], s["entered"], s["calls"]) for s in by_source["pairs"]][1] == ("probe", 1, 2)
    for i, stage in enumerate(found["funnel"]):
        for field in ("entered", "rejected", "errored", "split", "pending", "out"):
            assert stage[field] == sum(stages[i][field] for stages in by_source.values())
        if stage["calls"] is not None:
            cost = next(c for c in found["costs"] if c["step"] == stage["step"])
            assert stage["seconds"] == pytest.approx(cost["seconds"]) == pytest.approx(sum(s[i]["seconds"] for s in by_source.values()))
    write_report(ledger, found)
    assert json.loads((rich_run / "run/report.json").read_text()) == json.loads(json.dumps(found))
    text = (rich_run / "run/report.md").read_text()
    assert "7 kept + 2 rejected + 2 errored + 0 split + 0 pending = 11 inputs" in text
    assert "| pairs | probe | 1 | 0 | 0 | 0 | 0 | 1 | 2 | " in text
    assert f"| rejected | size | size: width >= 100 | 1 | `{uid_of('pics', '000.jpg')[:12]}` |" in text


def test_what_was_added_below_stays(rich_run: Path) -> None:
    ledger = open_ledger(str(rich_run / "run"))
    found = report(ledger, load_run_recipe(ledger.store))
    write_report(ledger, found)
    path = rich_run / "run/report.md"
    path.write_text(path.read_text() + ADDED + "## Training\n")
    write_report(ledger, found)
    assert path.read_text() == to_markdown(found) + ADDED + "## Training\n"
    path.write_text(to_markdown(found))


def test_every_row_of_a_table_has_its_columns() -> None:
    """Whatever a reason or a name holds."""
    found = {
        "name": "x", "inputs": 1, "verdicts": {"kept": 0, "rejected": 1, "errored": 0, "split": 0, "pending": 0},
        "sources": {"a|b": {"rejected": 1}}, "costs": [], "dataset": {"splits": [], "tasks": []}, "funnel": [], "funnel_by_source": {},
        "reasons": [{"verdict": "rejected", "step": "k", "reason": "k: caption in ('a|b', 'c\nd')", "samples": 1, "example": "0" * 32}],
    }  # fmt: skip
    text = to_markdown(found)
    assert "None was written yet." in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 3
    for table in tables:
        columns = {line.replace("\\|", "").count("|") for line in table}
        assert len(columns) == 1, table


def test_stages_with_children_add_up() -> None:
    """One of three films is rejected, the others are cut into five clips: one could not be made, one errs later."""
    fates = [("", "rejected", "size", 1), ("", "split", "clips", 2), ("clips", "errored", "clips", 1), ("clips", "errored", "ocr", 1)]
    stages = _stages(["source", "size", "clips", "ocr", "late"], [*fates, ("clips", "kept", "", 3)])
    found = {s.step: (s.entered, s.rejected, s.errored, s.split, s.out) for s in stages}
    assert found == {
        "source": (3, 0, 0, 0, 3), "size": (3, 1, 0, 0, 2), "clips": (3, 0, 1, 2, 0), "ocr": (4, 0, 1, 0, 3), "late": (3, 0, 0, 0, 3),
    }  # fmt: skip
