"""What a checkpoint holds in each stage of ZeRO: exact, refused where it does not fit, and mended where DeepSpeed loads it wrong."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from shards.errors import ConfigError, InfrastructureError
from tests.training import handmade
from tests.training.hand_train import PACKS, config, zero_settings
from training import checkpoint, engine_state, universal
from training.checkpoint import TrainState, latest_state, load_state, make_universal, save_state
from training.engine import Ranks, build_engine, start_ranks, train_step
from training.whole import frozen_digest, make_whole

STATE = TrainState(stage=1, step=2, epoch=0, plan_digest="p", window=0, plan_step=2, stage_digest="d", world=1)
OTHER_WORLD = replace(STATE, world=2)


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return start_ranks()


@pytest.fixture(scope="module")
def saved(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., SimpleNamespace]]:
    """By stage of ZeRO: a checkpoint after two steps, the losses of the two steps that followed it, and how to build such an engine."""
    made: dict[Any, SimpleNamespace] = {}

    def give(zero: int, frozen: bool = False, precision: str = "fp32") -> SimpleNamespace:
        if (zero, frozen, precision) not in made:
            folder = tmp_path_factory.mktemp(f"zero{zero}")
            settings = config(4, zero=str(zero_settings(folder, zero)), frozen=frozen, model={"precision": precision})

            def build(seed: int = 0, resized: bool = False, model: nn.Module | None = None) -> Any:
                return build_engine(model or handmade.model(seed), settings.stages[1], settings, ranks, universal=resized)

            def steps(engine: Any, first: int) -> list[tuple[float, float]]:
                results = [train_step(engine, settings.stages[1], handmade.packs(PACKS, 1000 * k), k, 4) for k in range(first, first + 2)]
                return [(r.loss, r.grad_norm) for r in results]

            engine = build()
            steps(engine, 0)
            path = save_state(engine, folder / "stage1", STATE, 2, ranks)
            after = steps(engine, 2)
            made[zero, frozen, precision] = SimpleNamespace(path=path, after=after, build=build, steps=steps, engine=engine)
        return made[zero, frozen, precision]

    yield give
    for one in made.values():
        one.engine.destroy()


def copied(one: SimpleNamespace, folder: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(one.path.parent, folder / "stage1")) / one.path.name


KINDS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (3, "bf16")]


@pytest.mark.parametrize(("zero", "precision"), KINDS)
def test_on_the_same_ranks_the_steps_after_a_load_are_those_after_the_save(
    saved: Callable, ranks: Ranks, zero: int, precision: str
) -> None:
    one = saved(zero, precision=precision)
    engine = one.build(seed=5)
    load_state(engine, one.path, STATE, ranks)
    assert one.steps(engine, 2) == one.after, "to the last digit"
    engine.destroy()


@pytest.mark.parametrize(("zero", "precision"), KINDS)
def test_in_the_form_for_any_number_of_ranks_too(saved: Callable, ranks: Ranks, tmp_path: Path, zero: int, precision: str) -> None:
    one = saved(zero, precision=precision)
    path = copied(one, tmp_path)
    engine = one.build(seed=5, resized=True)
    own = [dict(group, params=None) for group in engine.optimizer.param_groups]
    assert len({(group["peak"], group["weight_decay"]) for group in own}) == len(own) > 3 or zero == 0, "no two groups are alike"
    make_universal(path, ranks)
    load_state(engine, path, OTHER_WORLD, ranks)
    assert [dict(group, params=None) for group in engine.optimizer.param_groups] == own
    assert sum(one.steps(engine, 2), ()) == pytest.approx(sum(one.after, ()), rel=1e-6)
    assert not list(path.glob("latest*")), "a pointer of DeepSpeed's is not left beside ours"
    engine.destroy()


def test_without_the_mend_zero_3_goes_on_with_other_rates_and_steps(
    saved: Callable, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, DeepSpeed has been mended and training.universal.mend can go."""
    one = saved(3)
    path = copied(one, tmp_path)
    monkeypatch.setattr(universal, "mend", lambda engine, groups: None)
    engine = one.build(resized=True)
    make_universal(path, ranks)
    load_state(engine, path, OTHER_WORLD, ranks)
    assert len({(g["peak"], g["weight_decay"]) for g in engine.optimizer.param_groups}) == 1, "every group has the first one's"
    states = engine.optimizer.optimizer.state
    assert len({id(states[part]["step"]) for part in engine.optimizer.fp32_partitioned_groups_flat}) == 1
    (first, _), (second, _) = one.steps(engine, 2)
    assert first == pytest.approx(one.after[0][0], rel=1e-6), "the weights are right, so the first loss tells nothing"
    assert second != pytest.approx(one.after[1][0], rel=1e-5)
    engine.destroy()


@pytest.mark.parametrize("zero", [1, 3])
def test_frozen_weights_are_those_that_the_stage_starts_from(saved: Callable, ranks: Ranks, zero: int) -> None:
    one = saved(zero, frozen=True)
    weights = sum(p.numel() for p in handmade.model().model.language_model.parameters()) * 4
    held = sum(path.stat().st_size for path in one.path.rglob("*_states.pt"))
    whole = sum(path.stat().st_size for path in saved(zero).path.rglob("*_states.pt"))
    assert held < whole - 3 * weights, "neither they nor moments of theirs are written"
    engine = one.build()
    load_state(engine, one.path, STATE, ranks)
    assert one.steps(engine, 2) == one.after
    other = handmade.model()
    with torch.no_grad():
        other.model.language_model.norm.weight[3] += 1e-3
    with pytest.raises(InfrastructureError, match="frozen weights of this stage are not those it was started with"):
        load_state(one.build(model=other), one.path, STATE, ranks)
    assert frozen_digest(engine) == json.loads((one.path / "state.json").read_text())["frozen"] != ""
    assert frozen_digest(engine) == frozen_digest(saved(4 - zero, frozen=True).engine), "whatever stage of ZeRO holds them"
    engine.destroy()


def test_a_model_that_zero_3_had_spread_is_plain_again(saved: Callable, ranks: Ranks) -> None:
    for frozen in (False, True):
        one = saved(3, frozen=frozen)
        model = handmade.model(seed=5 if not frozen else 0)
        engine = one.build(model=model)
        load_state(engine, one.path, STATE, ranks)
        assert all(p.numel() == 0 for p in model.parameters()), "spread"
        make_whole(engine)
        plain, same = handmade.model(), saved(1, frozen=frozen)
        rigid = same.build(model=plain)
        load_state(rigid, same.path, STATE, ranks)
        for (name, ours), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
            torch.testing.assert_close(ours.data, theirs.data, rtol=0, atol=1e-5, msg=name)
            assert ours.requires_grad == theirs.requires_grad
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
        assert model.state_dict().keys() == plain.state_dict().keys()
        rigid.destroy()


def test_states_in_the_memory_of_the_machine_come_back_too(ranks: Ranks, tmp_path: Path) -> None:
    """Offload is another place, not another format. Exercised on a CPU: the code path of both, not the copy between devices."""
    away = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    settings = config(4, zero=str(zero_settings(tmp_path, 3, **away)))

    def steps(engine: Any, first: int) -> list[float]:
        return [train_step(engine, settings.stages[1], handmade.packs(PACKS, 1000 * k), k, 4).loss for k in range(first, first + 2)]

    engine = build_engine(handmade.model(), settings.stages[1], settings, ranks)
    steps(engine, 0)
    path = save_state(engine, tmp_path / "stage1", STATE, 2, ranks)
    after = steps(engine, 2)
    again = build_engine(handmade.model(5), settings.stages[1], settings, ranks)
    load_state(again, path, STATE, ranks)
    assert steps(again, 2) == after
    resized = build_engine(handmade.model(5), settings.stages[1], settings, ranks, universal=True)
    make_universal(path, ranks)
    load_state(resized, path, OTHER_WORLD, ranks)
    assert steps(resized, 2) == pytest.approx(after, rel=1e-6)


def test_another_stage_of_zero_is_refused(saved: Callable, ranks: Ranks) -> None:
    with pytest.raises(ConfigError, match="written under ZeRO-1, and `deepspeed:` now asks for ZeRO-3"):
        load_state(saved(3).engine, saved(1).path, STATE, ranks)


def test_damage_that_keeps_the_length_is_found_and_the_checkpoint_before_it_is_good(saved: Callable, ranks: Ranks, tmp_path: Path) -> None:
    one = saved(1)
    good = copied(one, tmp_path)
    damaged = good.with_name("step-000004")
    shutil.copytree(good, damaged)
    (good.parent / "latest").write_text(damaged.name)
    note = json.loads((damaged / "state.json").read_text())
    (damaged / "state.json").write_text(json.dumps({**note, "step": 4}))
    (path,) = damaged.glob("state/*optim_states.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found, state = latest_state(good.parent)
    assert found == damaged
    engine = one.build(seed=5)
    with pytest.raises(InfrastructureError, match=rf"{path.name} is damaged .*; delete {damaged} to continue from"):
        load_state(engine, found, state, ranks)
    shutil.rmtree(damaged)
    found, state = latest_state(good.parent)
    assert found == good
    load_state(engine, found, state, ranks)
    assert one.steps(engine, 2) == one.after
    engine.destroy()


def test_random_states_come_back_and_are_loaded_as_data_only(saved: Callable, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    one = saved(1)
    seen: list[tuple[str, Any]] = []
    load = torch.load

    def noted(path: Any, *rest: Any, **more: Any) -> Any:
        seen.append((Path(path).name, more.get("weights_only")))
        return load(path, *rest, **more)

    monkeypatch.setattr(torch, "load", noted)
    drawn = []
    for _ in range(2):
        torch.manual_seed(len(drawn))
        load_state(one.engine, one.path, STATE, ranks)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]
    assert ("random-0.pt", True) in seen


def test_without_room_for_the_conversion_nothing_is_left_of_it(
    saved: Callable, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(saved(1), tmp_path)

    def full(*values: Any) -> None:
        with open("/dev/full", "w") as disk:
            disk.write("a fragment")

    monkeypatch.setattr("deepspeed.checkpoint.ds_to_universal._save_checkpoint", full)
    with pytest.raises(InfrastructureError, match=r"could not be converted .*No space left on device.*three times its own room"):
        make_universal(path, ranks)
    assert sorted(p.name for p in path.iterdir()) == ["random-0.pt", "state", "state.json"]
    monkeypatch.undo()
    make_universal(path, ranks)
    assert (path / "universal" / "zero").is_dir()


def test_the_final_weights_too_are_there_whole_or_not_at_all(ranks: Ranks, tmp_path: Path) -> None:
    folder = checkpoint.stage_dir(tmp_path, 1)
    (folder / "step-000002").mkdir(parents=True)
    (folder / "step-000002" / "state.json").write_text("{}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the kernel breaks off in the midst of the weights
    try:
        with pytest.raises(InfrastructureError, match=r"final could not be written: .*GB free.*step-000002 is whole"):
            checkpoint.save_final(handmade.model(), tmp_path, 1, {}, ranks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in folder.iterdir()] == ["step-000002"]


def test_the_newest_is_the_one_of_the_most_steps(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "state.json").write_text("{}")
    assert [p.name for p in checkpoint._saved(tmp_path)] == ["step-999999", "step-1000000"]


def test_weights_of_another_model_are_not_loaded(saved: Callable, ranks: Ranks) -> None:
    one, lacking = saved(1), handmade.model()
    lacking.model.projector.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(InfrastructureError, match=r"weights of another model: model\.model\.projector\.extra"):
        engine_state.load_module(one.build(model=lacking), one.path)
