"""Fitted costs: known coefficients are found again through noise and outliers, and the files that packs are noted in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ConfigError
from tests.training import handmade
from training.cost import FEATURES, CostModel
from training.fit import FEWEST, fitted, fitted_by_stage, save_costs
from training.measured import PACKS_KEPT, WARM_STEPS, PackLog, PackRecord, batch_features, pack_file, read_packs

TRUE = CostModel(0.02, 4e-6, 3e-9, 1e-6, 2e-5, 1e-9, 6e-6, "seconds")


def features(count: int, seed: int = 0, pictures: bool = True) -> np.ndarray:
    """Packs of a few items each, float64 [count, 7]."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        lengths = random.integers(50, 4000, random.integers(1, 8)).astype(float)
        frames = random.integers(100, 900, random.integers(1, 20)).astype(float) * pictures
        rows.append(
            [
                1,
                frames.sum(),
                (frames**2).sum(),
                frames.sum() / 4,
                lengths.sum(),
                (lengths**2).sum(),
                lengths.sum() * random.uniform(0.1, 0.6),
            ]
        )
    return np.array(rows)


def records(count: int, noise: float = 0.02, seed: int = 0, stage: int = 1, pictures: bool = True) -> list[PackRecord]:
    values, random = features(count, seed, pictures), np.random.default_rng(seed + 1)
    seconds = values @ TRUE.vector * random.normal(1, noise, count)
    return [PackRecord(stage, row, float(s), CostModel()) for row, s in zip(values, seconds, strict=True)]


def test_known_costs_are_found_again() -> None:
    found = fitted(records(400))
    assert found.error == pytest.approx(0.016, abs=0.004), "noise of 2 % is 1.6 % in the mean"
    assert found.error_by_flops > 2 * found.error, "operations of a model of 2 billion are not the seconds of this one"
    unseen = features(200, seed=9)
    assert np.allclose(unseen @ found.model.vector, unseen @ TRUE.vector, rtol=0.02)
    assert (found.model.unit, found.packs, found.unseen) == ("seconds", 400, ())
    assert (found.model.vector >= 0).all()


def test_packs_that_were_held_up_do_not_bend_the_fit() -> None:
    held_up = [PackRecord(r.stage, r.features, r.seconds * (8 if i % 20 == 3 else 1), r.flops) for i, r in enumerate(records(400))]
    unseen = features(200, seed=9)
    assert np.allclose(unseen @ fitted(held_up).model.vector, unseen @ TRUE.vector, rtol=0.03)


def test_what_no_pack_has_costs_its_operations_at_the_measured_speed() -> None:
    found = fitted(records(100, pictures=False))
    assert found.unseen == ("patch", "frame_square", "visual")
    operations = CostModel()
    speed = [r.seconds / (r.features @ operations.vector) for r in records(100, pictures=False)]
    assert found.model.patch == pytest.approx(operations.patch * np.median(speed), rel=1e-6)


def test_equally_full_packs_do_not_share_their_seconds_at_random() -> None:
    """Tokens of full packs tell nothing that the constant does not: the token keeps a cost of the order of its operations."""
    values = features(200)
    values[:, 4] = 16_000
    seconds = values @ TRUE.vector
    operations = CostModel.from_vector([0, *(TRUE.vector[1:] * 1e12)], "flops")
    full = [PackRecord(1, row, float(s), operations) for row, s in zip(values, seconds, strict=True)]
    assert 0.7 * TRUE.token < fitted(full).model.token < 1.3 * TRUE.token
    assert fitted(full).error < 0.01


def test_too_few_packs_are_told() -> None:
    with pytest.raises(ConfigError, match=f"{FEWEST - 1} packs are measured, {FEWEST} are needed"):
        fitted(records(FEWEST - 1))


def test_a_stage_has_its_own_costs_once_it_has_packs_enough(tmp_path: Path) -> None:
    frozen = [PackRecord(1, r.features, r.seconds / 2, r.flops) for r in records(60)]
    overall, stages = fitted_by_stage([*frozen, *records(60, stage=2), *records(5, stage=3)])
    assert list(stages) == [1, 2]
    assert stages[1].seconds == pytest.approx(stages[2].seconds / 2)
    save_costs(tmp_path / "deep" / "costs.json", overall, stages, "a device")
    file = tmp_path / "deep" / "costs.json"
    assert CostModel.load(file, 2) == stages[2].model
    assert CostModel.load(file, 3) == CostModel.load(file) == overall.model
    assert [p.name for p in file.parent.iterdir()] == ["costs.json"]


def log(folder: Path, rank: int = 0, stage: int = 1, digest: str = "d", device: str = "cpu") -> PackLog:
    return PackLog(folder, rank, stage, digest, CostModel(), device, 2)


def test_packs_are_read_as_they_were_noted(tmp_path: Path) -> None:
    batches = handmade.packs(2)
    for rank in (0, 1, 8):
        notes = log(tmp_path, rank)
        for step in range(WARM_STEPS + 2):
            notes.note([batch_features(b) for b in [*batches, handmade.packed([])]], [0.5, 0.25 + step, 0.001])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packs-0.jsonl", "packs-1.jsonl"], "a ninth rank would say nothing new"
    found, device = read_packs(tmp_path)
    assert device == "cpu"
    assert [r.seconds for r in found] == [0.5, 0.25 + WARM_STEPS, 0.5, 1.25 + WARM_STEPS] * 2, "neither warm-up nor packs without items"
    assert found[0].features.tolist() == batch_features(batches[0]).tolist()
    assert found[0].flops == CostModel()


def test_a_start_after_a_kill_goes_on_behind_the_torn_line(tmp_path: Path) -> None:
    for _ in range(2):
        notes = log(tmp_path)
        for _ in range(WARM_STEPS + 1):
            notes.note([np.ones(len(FEATURES))], [1.0])
        with pack_file(tmp_path, 0).open("ab") as file:
            file.write(b'\xff\n{"kind": "pack", "fea')
    found, _ = read_packs(tmp_path)
    assert len(found) == 2


def test_notes_are_bounded_over_starts(tmp_path: Path) -> None:
    for _ in range(3):
        notes = log(tmp_path)
        for _ in range(WARM_STEPS + 1):
            notes.note([np.ones(len(FEATURES))] * (PACKS_KEPT // 2), [1.0] * (PACKS_KEPT // 2))
    assert len(read_packs(tmp_path)[0]) == PACKS_KEPT


def test_a_stage_under_another_config_is_another_stage(tmp_path: Path) -> None:
    for digest, seconds in (("old", 1.0), ("new", 2.0)):
        notes = log(tmp_path, digest=digest)
        for _ in range(WARM_STEPS + 1):
            notes.note([np.ones(len(FEATURES))], [seconds])
    assert [r.seconds for r in read_packs(tmp_path)[0]] == [2.0]


def test_what_cannot_be_fitted_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no packs-<rank>"):
        read_packs(tmp_path)
    for rank, device in enumerate(("A100", "H100")):
        notes = log(tmp_path, rank=rank, device=device)
        for _ in range(WARM_STEPS + 1):
            notes.note([np.ones(len(FEATURES))], [1.0])
    with pytest.raises(ConfigError, match="A100, H100"):
        read_packs(tmp_path)
    with pack_file(tmp_path, 1).open("a") as file:
        file.write(json.dumps({"kind": "pack", "features": [1, 2], "seconds": 1.0}) + "\n")
    with pytest.raises(ConfigError, match=r"packs-1\.jsonl:3: no measured pack"):
        read_packs(tmp_path)
