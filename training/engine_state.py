"""DeepSpeed's files of a checkpoint: written so that no rank waits for one that could not, and read back without the frozen weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError, InfrastructureError
from training.agreement import attempt
from training.durable import content_of, sync

if TYPE_CHECKING:
    from torch import nn

    from training.engine import Ranks

TAG = "state"


def write_own(engine: Any, scratch: Path, ranks: Ranks) -> tuple[dict[str, tuple[int, str]], str | None]:
    """This rank's files of a checkpoint, on disk: (bytes and hash by name, what kept it from writing them)."""
    import torch

    with _telling(engine, scratch) as (written, problems):
        engine.save_checkpoint(str(scratch), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    files: dict[str, tuple[int, str]] = {}

    def rest() -> None:
        randoms = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            randoms["cuda"] = torch.cuda.get_rng_state()
        torch.save(randoms, scratch / f"random-{ranks.rank}.pt")
        for path in (*written, scratch / f"random-{ranks.rank}.pt"):
            sync(path)
            files[str(path.relative_to(scratch))] = content_of(path)

    problem = problems[0] if problems else attempt(rest, scratch)
    return files, problem


@contextmanager
def _telling(engine: Any, scratch: Path) -> Iterator[tuple[list[Path], list[str]]]:
    """While the engine saves: (files that this rank has written, what kept it from writing others).

    The engine's ranks meet in barriers while they save. One that raised in between would leave the others there.
    """
    writer = engine.checkpoint_engine
    if writer.is_decoupled():
        raise ConfigError("deepspeed: a checkpoint writer that goes on in the background is not supported; take the `writer` out")
    plain = writer.save
    written: list[Path] = []
    problems: list[str] = []
    aliases = {name for name, parameter in engine.module.named_parameters(remove_duplicate=False) if not parameter.requires_grad}

    def save(state_dict: dict[str, Any], path: str) -> None:
        if "module" in state_dict:  # the engine leaves frozen weights out under their first name only; tied ones have two
            state_dict["module"] = {name: value for name, value in state_dict["module"].items() if name not in aliases}
        if told := attempt(lambda: plain(state_dict, path), scratch):
            problems.append(f"{path}: {told}")
        written.append(Path(path))

    writer.save = save
    engine._copy_recovery_script = lambda path: None  # scripts of DeepSpeed's, copied by rank 0 alone: it may fail there alone
    try:
        yield written, problems
    finally:
        del writer.save, engine._copy_recovery_script


def load_own(engine: Any, path: Path, ranks: Ranks) -> bool:
    """The engine's state and this rank's random states from `path`, which as many ranks have written; False if nothing was found."""
    import torch

    found = load_module(engine, path)
    randoms = torch.load(path / f"random-{ranks.rank}.pt", weights_only=True)
    torch.set_rng_state(randoms["cpu"])
    if torch.cuda.is_available() and "cuda" in randoms:
        torch.cuda.set_rng_state(randoms["cuda"])
    return found


def load_module(engine: Any, path: Path) -> bool:
    """The engine's own way, except that exactly the frozen weights are missing from the files."""

    def into(src: Mapping[str, Any], dst: nn.Module) -> None:
        result = dst.load_state_dict(src, strict=False)
        frozen = {name for name, parameter in dst.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
        other = set(result.missing_keys) ^ frozen
        if other or result.unexpected_keys:
            raise InfrastructureError(f"{path}: weights of another model: {', '.join(sorted([*other, *result.unexpected_keys])[:5])}")

    found, _ = engine.load_checkpoint(str(path), tag=TAG, custom_load_fn=into)
    return found is not None
