"""What `fovea doctor` looks at: is this machine one that Fovea runs on, and what would have to be done. Starts and downloads nothing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from shards.errors import InfrastructureError

DISTRIBUTION = "fovea-vlm"
INSTALL = "pip install -c constraints.txt -e '.[dev]'"
OURS = ("configs", "shards", "curation", "pipeline", "training")
OPTIONAL_EXTRAS = ("quickstart", "dev", "gpu", "vllm")
# Two distributions that write the same module: the one installed last wins, and either may break the other.
RIVALS = (
    ("faiss-cpu", "faiss-gpu"),
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
)
LIBRARIES = (("libGL.so.1", "libgl1"), ("libgthread-2.0.so.0", "libglib2.0-0"))

State = Literal["good", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """state  good · note: works without, or does less · bad: something will not run.   mend  what to do, empty where nothing is."""

    what: str
    state: State
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which they would be mended."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _own_packages, _packages, _rivals, _compiler, _libraries)
    looks += (_deepspeed_op, _devices, _weights, _space)
    return [finding for look in looks for finding in look()]


def models_of(recipe: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """A finding for each model of a recipe, which is not run. Asks the hub about those that are not here. Raises RecipeError."""
    from pipeline.provision import model_states
    from pipeline.recipe import load_recipe

    found = []
    for state in model_states(load_recipe(recipe, overrides=overrides)):
        revision = f" at {state.model.revision[:12]}" if state.model.revision else ""
        bad = state.state == "missing"
        told = f"{state.model.id}{revision}: {'missing' if bad else state.told()}"
        level: State = "bad" if bad else "good" if state.state == "here" else "note"
        found.append(Finding(f"model of {', '.join(state.steps)}", level, told, state.note if bad else ""))
    return found


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {sys.platform}, {sys.executable}"
    right = sys.version_info[:2] == (3, 11) and sys.platform == "linux"
    yield Finding("python", "good" if right else "bad", found, "" if right else "Fovea is made for Python 3.11 on Linux")


def _own_packages() -> Iterator[Finding]:
    places: dict[str, list[str]] = {}
    for name in OURS:
        spec = importlib.util.find_spec(name)
        origin = spec.origin if spec is not None else None
        places.setdefault(str(Path(origin).parents[1]) if origin else "nowhere", []).append(name)
    if len(places) == 1 and "nowhere" not in places:
        yield Finding("fovea", "good", f"{_version(DISTRIBUTION) or 'not installed as a distribution'}, from {next(iter(places))}")
        return
    found = "; ".join(f"{', '.join(names)} from {place}" for place, names in places.items())
    mend = "a folder on the path has packages of the same names: start from another folder, or unset PYTHONPATH"
    yield Finding("fovea", "bad", found, mend)


def _packages() -> Iterator[Finding]:
    if importlib.util.find_spec("packaging") is None:
        yield Finding("packages", "bad", "packaging is not installed, nor then what Fovea needs", INSTALL)
        return
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", "bad", f"{DISTRIBUTION} is not installed", INSTALL)
        return
    for requirement in map(Requirement, lines):
        extra = next((e for e in OPTIONAL_EXTRAS if _asks(requirement, e)), None) if not _asks(requirement, "") else None
        if requirement.name == DISTRIBUTION or (not _asks(requirement, "") and extra is None):
            continue
        have = _version(requirement.name)
        wanted = str(requirement.specifier) or "any"
        mend = f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'"
        if have is None:
            if requirement.name == "faiss-cpu" and _version("faiss-gpu") is not None:
                continue  # the extra `gpu` takes its place
            if extra is None:
                yield Finding(requirement.name, "bad", f"not installed, wanted {wanted}", mend)
            elif extra == "quickstart":
                yield Finding(requirement.name, "note", "not installed (extra quickstart)", f"pip install '{DISTRIBUTION}[quickstart]'")
        elif requirement.specifier.contains(have, prereleases=True):
            if extra is None:
                yield Finding(requirement.name, "good", have)
        else:
            yield Finding(requirement.name, "bad" if extra is None else "note", f"{have}, wanted {wanted}", mend)


def _asks(requirement: object, extra: str) -> bool:
    marker = getattr(requirement, "marker", None)
    return marker is None or bool(marker.evaluate({"extra": extra}))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _rivals() -> Iterator[Finding]:
    for names in RIVALS:
        there = [name for name in names if _version(name) is not None]
        if len(there) > 1:
            yield Finding(" and ".join(there), "bad", "both installed, and they share a module", f"pip uninstall {there[-1]}, or the other")


def _compiler() -> Iterator[Finding]:
    for name, mend in (("g++", "apt-get install g++"), ("ninja", "pip install ninja")):
        beside = Path(sys.executable).parent / name
        path = shutil.which(name) or (str(beside) if beside.is_file() else None)
        yield Finding(name, "good" if path else "bad", path or "not found; DeepSpeed compiles a small op with it", "" if path else mend)


def _libraries() -> Iterator[Finding]:
    for library, package in LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            yield Finding(library, "bad", f"{error}; OpenCV, and so `ocr`, wants it", f"apt-get install {package}")
        else:
            yield Finding(library, "good", "loads")


def _deepspeed_op() -> Iterator[Finding]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions")
    built = sorted(root.glob("**/deepspeed_shm_comm.so"))
    if built:
        yield Finding("DeepSpeed's op", "good", str(built[0]))
    else:
        yield Finding("DeepSpeed's op", "note", f"not built yet under {root}", "nothing: the first training builds it, about 45 s")


def _devices() -> Iterator[Finding]:
    cores, memory = os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    enough = cores >= 2
    mend = "" if enough else "Ray Data needs two cores"
    yield Finding("cores and memory", "good" if enough else "bad", f"{cores} cores, {memory:.1f} GB", mend)
    if importlib.util.find_spec("torch") is None:
        return  # said among the packages
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if names:
        yield Finding("GPUs", "good", ", ".join(names))
    else:
        yield Finding("GPUs", "note", "none: training and embedding run on the CPU")


def _weights() -> Iterator[Finding]:
    try:
        from curation.encoders import LITE0, Weights
        from curation.models import cache_dir
        from curation.ocr_models import PACKAGE, check_model
    except ImportError as error:
        yield Finding("weights", "bad", f"cannot look: {error}", "install the packages named above")
        return

    def ocr() -> None:
        check_model("det", PACKAGE)
        check_model("rec", PACKAGE)

    looks: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("OCR weights", f"{PACKAGE}; prepared under {cache_dir()}", ocr),
        ("encoder weights", f"package:{LITE0}", lambda: Weights("package", LITE0).file()),
    )
    for what, found, look in looks:
        try:
            look()
        except InfrastructureError as error:
            yield Finding(what, "note", "not found; a recipe may name others", str(error))
        else:
            yield Finding(what, "good", found)


def _space() -> Iterator[Finding]:
    for what, folder, least in (("disk here", Path.cwd(), 2e9), ("/dev/shm", Path("/dev/shm"), 1e9)):  # noqa: S108 - where Ray keeps its objects
        if not folder.is_dir():
            continue
        free = shutil.disk_usage(folder).free
        low = free < least
        mend = f"less than {least / 1e9:.0f} GB: runs, and Ray's object store, may fill it" if low else ""
        yield Finding(what, "note" if low else "good", f"{free / 1e9:.1f} GB free in {folder}", mend)
