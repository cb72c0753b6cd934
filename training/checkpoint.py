"""Checkpoints: whole directories or none. A state to continue a stage from, and the plain weights that a finished stage hands on."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError, FoveaError, InfrastructureError
from training import universal
from training.agreement import agree, attempt, everywhere, while_first_works
from training.durable import content_of, publish, replace_text
from training.engine_state import TAG, load_module, load_own, write_own

if TYPE_CHECKING:
    from torch import nn

    from training.engine import Ranks

log = logging.getLogger("fovea")

CHECKPOINT_FORMAT = "fovea-checkpoint/2"
_UNIVERSAL = "universal"
_STEP = re.compile(r"step-([0-9]+)")


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a stage stands: `step` optimizer steps are done; the next one is at (plan_digest, window, plan_step) of pass `epoch`.

    stage_digest and plan_digest refuse a continuation under another config or over other data. `world`: the ranks that wrote it.
    """

    stage: int
    step: int
    epoch: int
    plan_digest: str
    window: int
    plan_step: int
    stage_digest: str
    world: int


def stage_dir(out: Path, stage: int) -> Path:
    return out / "checkpoints" / f"stage{stage}"


def final_dir(out: Path, stage: int) -> Path:
    """Where the plain weights of a finished stage lie: it exists exactly when the stage is done."""
    return stage_dir(out, stage) / "final"


def save_state(engine: Any, folder: Path, state: TrainState, keep: int, ranks: Ranks) -> Path:
    """Writes `folder`/step-<n> with the engine's state, the random states and `state`; then points `latest` at it; keeps `keep`.

    Every rank must call it. The directory appears under its name when all of it is on disk, and `latest` moves after that. Ranks on several
    machines need a shared file system. Frozen weights are not written: they are those that the stage starts from; a digest of them is kept.
    If any rank could not write (a full disk) one of them raises InfrastructureError, the others training.rank_group.EndedElsewhere: the
    room is given back, the last checkpoint stays.
    """
    from training.whole import frozen_digest

    target = folder / f"step-{state.step:06d}"
    scratch = folder / f".{target.name}.tmp"
    note = {"format": CHECKPOINT_FORMAT, **asdict(state), "zero": engine.zero_optimization_stage(), "frozen": frozen_digest(engine)}
    agree(attempt(lambda: _cleared(folder, scratch), folder) if ranks.rank == 0 else None, ranks, lambda told: f"{target}: {told}")
    files, problem = write_own(engine, scratch, ranks)
    everyones = [item for own in everywhere(files, ranks) for item in own.items()]
    problems = [told for told in everywhere(problem, ranks) if told is not None]
    if ranks.rank == 0 and not problems:
        problem = attempt(lambda: _finish(scratch, target, {**note, "files": dict(sorted(everyones))}, keep), folder)
    try:
        agree(problem, ranks, lambda told: f"checkpoint {target} could not be written: {told}. {_mend_of_disk(folder)}")
    except FoveaError:
        if ranks.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target


def _cleared(folder: Path, scratch: Path) -> None:
    """What a killed process left half written is of no use, and may be what fills the disk."""
    _swept(folder)
    scratch.mkdir(parents=True)


def _swept(folder: Path) -> None:
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left)


def _finish(scratch: Path, target: Path, note: Mapping[str, Any], keep: int) -> None:
    (scratch / "state.json").write_text(json.dumps(note, indent=1), "utf-8")
    publish(scratch, target)
    replace_text(target.parent / "latest", target.name)
    for old in _saved(target.parent)[:-keep]:
        _delete(old)


def _delete(checkpoint: Path) -> None:
    """A kill in the midst of it leaves a directory that the next saving sweeps, never half of one under its own name."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.tmp")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _mend_of_disk(folder: Path) -> str:
    found = _saved(folder)
    if not found:
        return "Make room and start again: the stage has no checkpoint yet and begins anew"
    size = sum(path.stat().st_size for path in found[-1].rglob("*") if path.is_file())
    return (
        f"One takes about {size / 1e9:,.3f} GB, and for a moment there is one more than `keep_checkpoints`. Make room, or keep fewer, "
        f"and start again: {found[-1]} is whole, and the stage continues from it"
    )


def latest_state(folder: Path) -> tuple[Path, TrainState] | None:
    """The checkpoint to continue from: the one `latest` names, else the newest whole one; None for a stage that has none.

    Raises InfrastructureError for one that is damaged or cut; the directory that it names can be deleted for the one before it.
    """
    whole = _saved(folder)
    if not whole:
        return None
    pointer = folder / "latest"
    named = folder / pointer.read_text("utf-8", "replace").strip() if pointer.is_file() else whole[-1]
    # A kill between the directory's appearance and the pointer leaves the pointer behind by one; both are whole, either is right.
    chosen = named if named in whole else whole[-1]
    note = _note(chosen)
    for name, (size, _) in note["files"].items():
        path = chosen / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "gone" if found is None else f"of {found:,} bytes instead of {size:,}"
            raise InfrastructureError(f"{path} is {state}; {_back(chosen)}")
    return chosen, TrainState(**{name: note[name] for name in TrainState.__dataclass_fields__})


def _note(path: Path) -> dict[str, Any]:
    values = _read_json(path / "state.json")
    if values.get("format") != CHECKPOINT_FORMAT:
        raise InfrastructureError(f"{path}: not a {CHECKPOINT_FORMAT}; written by another version, use that one or delete the directory")
    missing = [name for name in (*TrainState.__dataclass_fields__, "zero", "frozen", "files") if name not in values]
    if missing:
        raise InfrastructureError(f"{path / 'state.json'}: damaged ({', '.join(missing)} missing); {_back(path)}")
    return values


def _back(path: Path) -> str:
    return f"delete {path} to continue from the checkpoint before it"


def load_state(engine: Any, path: Path, state: TrainState, ranks: Ranks) -> None:
    """Brings the engine to where the checkpoint at `path` stands. Every rank must call it.

    With another number of ranks it must have been built `universal`, and make_universal called before. Random states are then new ones,
    of (seed, step, rank); on the same number of ranks each rank has its own back.
    Raises ConfigError for another ZeRO stage, InfrastructureError for damage and for other frozen weights than the stage began with.
    """
    import torch

    from training.whole import frozen_digest

    note = _note(path)
    zero = engine.zero_optimization_stage()
    if note["zero"] != zero:
        raise ConfigError(
            f"{path} was written under ZeRO-{note['zero']}, and `deepspeed:` now asks for ZeRO-{zero}; keep the stage of ZeRO until this "
            f"stage of training is done, or delete {path.parent} to start it again"
        )
    _refuse_damaged(path, note["files"], ranks)
    if note["frozen"] != frozen_digest(engine):
        raise InfrastructureError(
            f"{path}: the frozen weights of this stage are not those it was started with; the model that `model:` names, or the final "
            f"weights of the stage before, have changed. Restore them, or delete {path.parent} to start the stage again"
        )
    if state.world == ranks.world:
        found = load_own(engine, path, ranks)
    else:
        # without ZeRO every rank holds all of the state, so any number of them loads it as it is
        engine._config.load_universal_checkpoint = zero > 0
        found = universal.load(engine, path, _UNIVERSAL) if zero > 0 else load_module(engine, path)
        torch.manual_seed(torch.initial_seed() + 1_000_003 * state.step + ranks.rank)
    if not found:
        raise InfrastructureError(f"{path}: the engine's state could not be loaded; {_back(path)}")


def _refuse_damaged(path: Path, files: Mapping[str, Sequence[Any]], ranks: Ranks) -> None:
    """Every file is read once, by one of the ranks."""
    damaged: list[str] = []

    def read() -> None:
        for name in sorted(files)[ranks.rank :: ranks.world]:
            if [*content_of(path / name)] != [*files[name]]:
                damaged.append(name)

    problem = attempt(read, path)
    if damaged:
        problem = f"{damaged[0]} is damaged (its content is not what was written)"
    agree(problem, ranks, lambda told: f"{path}: {told}; {_back(path)}")


def make_universal(path: Path, ranks: Ranks) -> None:
    """Converts the checkpoint at `path` so that any number of ranks can load it. Every rank must call it; rank 0 works.

    Raises InfrastructureError if there is no room for it, as save_state does.
    """
    problem: list[str | None] = [None]

    def work() -> None:
        if not (path / _UNIVERSAL).is_dir() and _note(path)["zero"] > 0:
            problem[0] = attempt(lambda: universal.convert(path / TAG, path / _UNIVERSAL), path)

    while_first_works(work, ranks)
    agree(
        problem[0],
        ranks,
        lambda told: (
            f"{path}: could not be converted for another number of ranks: {told}. That takes three times its own room for a while, "
            f"and twice after it: make room, or continue with the number of ranks that wrote it"
        ),
    )


def save_final(model: nn.Module, out: Path, stage: int, facts: Mapping[str, Any], ranks: Ranks, beside: Sequence[Path] = ()) -> Path:
    """The plain weights of a finished stage (safetensors, Hugging Face layout) with `facts` in fovea.json; its states are deleted.

    Plain, because an optimizer's state does not load into a stage that trains other parts. The files `beside` (the tokenizer) are copied.
    `model` has whole weights (training.whole). Every rank must call it; raises InfrastructureError if the disk is full, as save_state does.
    """
    target = final_dir(out, stage)
    scratch = target.with_name(".final.tmp")

    def write() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        model.save_pretrained(scratch, safe_serialization=True)  # type: ignore[operator]
        for path in beside:
            shutil.copyfile(path, scratch / path.name)
        (scratch / "fovea.json").write_text(json.dumps(dict(facts), indent=1), "utf-8")
        publish(scratch, target)

    problem = attempt(write, target.parent) if ranks.rank == 0 else None
    if problem is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    agree(problem, ranks, lambda told: f"{target} could not be written: {told}. {_mend_of_disk(target.parent)}")
    if ranks.rank == 0:
        forget_states(out, stage)
    everywhere(None, ranks)  # nobody looks for the stage's states while they are deleted
    return target


def forget_states(out: Path, stage: int) -> None:
    """Deletes the states of a finished stage, and what a kill has left of them. One process must call it; a failure is logged."""
    folder = stage_dir(out, stage)

    def work() -> None:
        _swept(folder)
        for old in _saved(folder):
            _delete(old)
        if (folder / "latest").exists():
            (folder / "latest").unlink()

    if told := attempt(work, folder):
        log.warning("%s: the states of the finished stage could not be deleted: %s", folder, told)


def finished(out: Path, stage: int, stage_digest: str) -> dict[str, Any] | None:
    """What save_final noted of a finished stage; None for one that is not. Raises ConfigError if it was another config's stage."""
    path = final_dir(out, stage) / "fovea.json"
    if not path.is_file():
        return None
    facts = _read_json(path)
    if facts.get("stage_digest") != stage_digest:
        raise ConfigError(
            f"{path.parent}: stage {stage} was trained under another config; give another output directory, "
            f"or delete {path.parent.parent} and those of later stages to train it again"
        )
    return facts


def _saved(folder: Path) -> list[Path]:
    """The whole checkpoints of a stage, the newest last."""
    named = ((_STEP.fullmatch(path.name), path) for path in folder.glob("step-*"))  # a copy under another name is none of ours
    return [path for _, path in sorted((int(name[1]), path) for name, path in named if name and (path / "state.json").is_file())]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InfrastructureError(f"{path}: damaged ({error}); delete its directory to continue from the one before") from error
    if not isinstance(values, dict):
        raise InfrastructureError(f"{path}: damaged (a JSON object was expected); delete its directory")
    return values
