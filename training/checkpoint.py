"""Checkpoints: whole directories or none. A state to continue a stage from, and the plain weights that a finished stage hands on."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError, InfrastructureError

if TYPE_CHECKING:
    from torch import nn

    from training.engine import Ranks

log = logging.getLogger("fovea")

CHECKPOINT_FORMAT = "fovea-checkpoint/1"
_TAG = "state"


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
    machines need a shared file system.
    """
    import torch

    target = folder / f"step-{state.step:06d}"
    scratch = folder / f".{target.name}.tmp"
    if ranks.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(scratch), tag=_TAG, save_latest=False)
    randoms = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        randoms["cuda"] = torch.cuda.get_rng_state()
    torch.save(randoms, scratch / f"random-{ranks.rank}.pt")
    torch.distributed.barrier()
    if ranks.rank == 0:
        sizes = {str(p.relative_to(scratch)): p.stat().st_size for p in sorted(scratch.rglob("*")) if p.is_file()}
        note = {"format": CHECKPOINT_FORMAT, **asdict(state), "files": sizes}
        (scratch / "state.json").write_text(json.dumps(note, indent=1), "utf-8")
        _publish(scratch, target)
        replace_text(folder / "latest", target.name)
        for old in _saved(folder)[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()
    return target


def latest_state(folder: Path) -> tuple[Path, TrainState] | None:
    """The checkpoint to continue from: the one `latest` names, else the newest whole one; None for a stage that has none."""
    whole = _saved(folder)
    if not whole:
        return None
    pointer = folder / "latest"
    named = folder / pointer.read_text("utf-8").strip() if pointer.is_file() else whole[-1]
    # A kill between the directory's appearance and the pointer leaves the pointer behind by one; both are whole, either is right.
    chosen = named if named in whole else whole[-1]
    values = _read_json(chosen / "state.json")
    if values.pop("format", None) != CHECKPOINT_FORMAT:
        raise InfrastructureError(f"{chosen}: not a {CHECKPOINT_FORMAT}; written by another version, use that one or delete the directory")
    _refuse_cut(chosen, values.pop("files", {}))
    return chosen, TrainState(**values)


def _refuse_cut(folder: Path, sizes: Mapping[str, int]) -> None:
    """A file that is gone or shorter (a full disk, a copy that broke off) is named here; torch would not say which."""
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "gone" if found is None else f"of {found:,} bytes instead of {size:,}"
            raise InfrastructureError(f"{path} is {state}; delete {folder} to continue from the checkpoint before it")


def load_state(engine: Any, path: Path, state: TrainState, ranks: Ranks) -> None:
    """Brings the engine to where the checkpoint at `path` stands. With another number of ranks it must have been built `universal`."""
    import torch

    if state.world != ranks.world:
        loaded, _ = engine.load_checkpoint(str(path), tag="universal")
    else:
        loaded, _ = engine.load_checkpoint(str(path), tag=_TAG)
        randoms = torch.load(path / f"random-{ranks.rank}.pt", weights_only=True)
        torch.set_rng_state(randoms["cpu"])
        if torch.cuda.is_available() and "cuda" in randoms:
            torch.cuda.set_rng_state(randoms["cuda"])
    if loaded is None:
        raise InfrastructureError(f"{path}: the engine's state could not be loaded; delete this directory to continue from the one before")


def make_universal(path: Path, ranks: Ranks) -> None:
    """Converts the checkpoint at `path` so that any number of ranks can load it. Every rank must call it; rank 0 works."""
    import torch

    if ranks.rank == 0 and not (path / "universal").is_dir():
        from argparse import Namespace

        from deepspeed.checkpoint import ds_to_universal

        scratch = path / ".universal.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        ds_to_universal.main(
            Namespace(
                input_folder=str(path / _TAG),
                output_folder=str(scratch),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=False,
            )
        )
        _publish(scratch, path / "universal")
    torch.distributed.barrier()


def save_final(model: nn.Module, out: Path, stage: int, facts: Mapping[str, Any], ranks: Ranks, beside: Sequence[Path] = ()) -> Path:
    """The plain weights of a finished stage (safetensors, Hugging Face layout) with `facts` in fovea.json; its states are deleted.

    Plain, because an optimizer's state does not load into a stage that trains other parts. The files `beside` (the tokenizer) are copied.
    """
    import torch

    target = final_dir(out, stage)
    if ranks.rank == 0:
        scratch = target.with_name(".final.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        model.save_pretrained(scratch, safe_serialization=True)  # type: ignore[operator]
        for path in beside:
            shutil.copyfile(path, scratch / path.name)
        (scratch / "fovea.json").write_text(json.dumps(dict(facts), indent=1), "utf-8")
        _publish(scratch, target)
        for old in _saved(target.parent):
            shutil.rmtree(old)
        (target.parent / "latest").unlink(missing_ok=True)
    torch.distributed.barrier()
    return target


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
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").is_file())


def _publish(scratch: Path, target: Path) -> None:
    for path in scratch.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)  # only ever the leftover of an equal step
    scratch.rename(target)
    _sync_folder(target.parent)


def replace_text(path: Path, text: str) -> None:
    """The file has its old content or the new one, whole and on disk."""
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise InfrastructureError(f"{path}: damaged ({error}); delete its directory to continue from the one before") from error
    if not isinstance(values, dict):
        raise InfrastructureError(f"{path}: damaged (a JSON object was expected); delete its directory")
    return values
