"""What training costs: `fovea train --plan` before it is run, `fovea costs` from packs that were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipeline.console import AsJson, out, put_line

if TYPE_CHECKING:
    from training.fit import Fit
    from training.preview import Machine, StagePreview

DeviceName = Annotated[
    str | None, typer.Option("--device", help="With --plan: a100-40g, a100-80g, h100, h100-pcie, h200, l40s, rtx4090, mi300x or cpu.")
]
Devices = Annotated[int, typer.Option("--devices", min=1, help="With --plan: so many of them, a rank each.")]
Mfu = Annotated[float, typer.Option("--mfu", help="With --plan: the share of the devices' peak that is assumed.")]
Price = Annotated[float | None, typer.Option("--price", min=0, help="With --plan: what one of them costs an hour.")]

_STEPS = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_KINDS = {
    "weights": "weights",
    "gradients": "gradients",
    "master": "fp32 copies",
    "optimizer": "Adam's moments",
    "buckets": "reduce buckets",
    "gathered": "gathered weights",
    "update": "update (when stepping)",
    "encoder": "encoder activations",
    "projector": "projector activations",
    "llm": "LLM activations",
    "layer": "layer at work",
    "logits": "or logits at work",
    "whole": "or the whole model",
}


def show_plan(
    config: str,
    dataset: str | None,
    tokenizer: str | None,
    stages: Sequence[int] | None,
    device: str | None,
    devices: int,
    mfu: float,
    price: float | None,
    as_json: bool,
) -> None:
    """Prints what the stages would be; a JSON object a stage for machines."""
    from training.devices import device_named
    from training.preview import Machine, preview

    machine = Machine(None if device is None else device_named(device), devices, mfu, price)
    found = preview(config, dataset, tokenizer=tokenizer, stages=stages, machine=machine)
    if as_json:
        for stage in found:
            put_line(stage.to_json())
        return
    for part in plan_tables(found, machine):
        out.print(part)
    for line in _remarks(found, machine):
        out.print(line, markup=False)


def plan_tables(found: Sequence[StagePreview], machine: Machine) -> list[Table]:
    """Tables with a column for each stage; they fit into 80 columns with four stages."""
    stages = [str(stage.stage) for stage in found]
    made = Table("stage", *(f"{name}" for name in stages), title="the plan", title_justify="left")
    for column in made.columns[1:]:
        column.justify = "right"

    def row(name: str, value: Callable[[StagePreview], str]) -> None:
        made.add_row(name, *(value(stage) for stage in found))

    row("items a pass", lambda s: compact(s.first_pass.items))
    for reason in ("tokens", "patches"):
        if any(s.dropped[reason] for s in found):
            row(f"left out: too many {reason}", lambda s, reason=reason: compact(s.dropped[reason]))  # type: ignore[misc]
    row("tokens a pass", lambda s: compact(s.first_pass.tokens))
    row("packs a pass", lambda s: compact(s.first_pass.packs))
    row("steps a pass", lambda s: compact(s.first_pass.steps))
    row("steps", lambda s: compact(s.steps))
    row("packs a step", lambda s: compact(s.first_pass.packs_per_step))
    row("samples a step, mean", lambda s: f"{s.samples_per_step:.1f}")
    row("fill (fuller bound)", lambda s: _percent(s.first_pass.fill))
    row("token fill", lambda s: _percent(s.first_pass.fill_tokens))
    row("patch fill", lambda s: _percent(s.first_pass.fill_patches))
    row("visual tokens kept", lambda s: _percent(s.keep) if s.first_pass.visual else "-")
    row(f"imbalance, {machine.devices} ranks", lambda s: _imbalance(s, machine))
    made.add_section()
    for part, name in (("encoder", "encoder, FLOP"), ("projector", "projector, FLOP"), ("llm", "LLM, FLOP"), ("head", "head, FLOP")):
        row(name, lambda s, part=part: compact(s.flops[part]))  # type: ignore[misc]
    row("repeated, FLOP", lambda s: compact(s.recomputed))
    if machine.device is not None or any(s.measured_hours is not None for s in found):
        made.add_section()
        row("time", lambda s: "-" if s.hours is None else _time(s.hours))
        if any(s.measured_hours is not None for s in found):
            row("time, measured costs", lambda s: "-" if s.measured_hours is None else _time(s.measured_hours))
        if machine.price is not None:
            row("price", lambda s: "-" if s.price is None else f"{s.price:,.2f}")
    return [made, _memory(found, machine), _sources(found)]


def _memory(found: Sequence[StagePreview], machine: Machine) -> Table:
    made = Table("stage", *(str(s.stage) for s in found), title="memory of a rank", title_justify="left")
    for column in made.columns[1:]:
        column.justify = "right"
    for kind, name in _KINDS.items():
        if any(s.memory.device[kind] for s in found):
            made.add_row(name, *(_bytes(s.memory.device[kind]) for s in found))
    made.add_section()
    made.add_row("peak", *(_bytes(s.memory.peak) for s in found))
    if machine.device is not None and machine.device.memory is not None:
        made.add_row(f"fits {machine.device.name}", *("yes" if s.fits else "NO" for s in found))
    if any(s.memory.host for s in found):
        made.add_row("on the host", *(_bytes(sum(s.memory.host.values())) for s in found))
    return made


def _sources(found: Sequence[StagePreview]) -> Table:
    made = Table("source", *(str(s.stage) for s in found), title="share of tokens", title_justify="left")
    made.columns[0].overflow = "fold"
    for column in made.columns[1:]:
        column.justify = "right"
    for source in sorted({name for s in found for name in s.first_pass.by_source}):
        made.add_row(source, *(_percent(s.first_pass.by_source.get(source, 0.0)) for s in found))
    return made


def _remarks(found: Sequence[StagePreview], machine: Machine) -> list[str]:
    device = machine.device
    said = ["FLOP are forward and backward of the whole stage; checkpointing repeats some (repeated)."]
    if device is None:
        said.append("--device NAME --devices N tells the time it takes, and whether a rank's memory fits.")
    elif device.flops is None:
        said.append(f"time on {device.name}: unknown, it has no stated peak.")
    else:
        peak = f"{machine.devices} × {device.name}, {device.flops / 1e12:,.0f} TFLOP/s bf16 ({device.source})"
        said.append(f"time: assumed are {machine.mfu:.0%} of {peak}. Evaluations, checkpoints and waiting come on top.")
    if any(s.fits is False for s in found):
        said.append("NO: a tenth of the device is kept for its context; see docs/numbers.md for what makes a stage smaller.")
    if any(machine.devices not in s.first_pass.imbalance for s in found):
        said.append(f"imbalance -: {machine.devices} ranks do not divide the packs of a step; set step.divisible_by or step.packs.")
    return said


def costs(
    folder: Annotated[Path, typer.Argument(help="The output directory of a training: its packs-<rank>.jsonl are read.")],
    to: Annotated[Path | None, typer.Option("--out", help="Where the coefficients go; a config's `costs` names that file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit what a pack costs, in seconds, to packs that were trained: later plans deal by it."""
    from training.cost import FEATURES
    from training.fit import fitted_by_stage, save_costs
    from training.measured import read_packs

    records, device = read_packs(folder)
    overall, stages = fitted_by_stage(records)
    if to is not None:
        save_costs(to, overall, stages, device)
    if as_json:
        put_line({"device": device, "all": asdict(overall), "stages": {str(k): asdict(fit) for k, fit in stages.items()}})
        return
    fits: dict[str, Fit] = {f"stage {k}": fit for k, fit in stages.items()}
    if len({record.stage for record in records}) > 1 or not fits:
        fits = {"all": overall, **fits}
    made = Table("seconds for each", *fits)
    for column in made.columns[1:]:
        column.justify = "right"
    for place, name in enumerate(FEATURES):
        values = [f"{fit.model.vector[place]:.2e}{'*' if name in fit.unseen else ''}" for fit in fits.values()]
        made.add_row(name.replace("_square", "²"), *values)
    made.add_section()
    made.add_row("packs", *(f"{fit.packs:,}" for fit in fits.values()))
    made.add_row("mean seconds", *(f"{fit.seconds:.3g}" for fit in fits.values()))
    made.add_row("error, packs held out", *(_percent(fit.error) for fit in fits.values()))
    made.add_row("error by FLOP", *(_percent(fit.error_by_flops) for fit in fits.values()))
    out.print(made)
    out.print(f"measured on {device}", markup=False)
    if any(fit.unseen for fit in fits.values()):
        out.print("* no measured pack has any: its operations at the measured speed", markup=False)
    if to is not None:
        out.print(f"a config takes them by `costs: {to}`", markup=False)


def compact(value: float) -> str:
    """Whole numbers below a hundred thousand, else three digits and a letter: 12,345 · 1.23 M."""
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    size, letter = next((size, letter) for size, letter in _STEPS if abs(value) >= size)
    digits = max(0, 3 - len(f"{abs(value) / size:.0f}"))
    return f"{value / size:,.{digits}f} {letter}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _bytes(size: float) -> str:
    step, unit = next(((step, unit) for step, unit in ((2**30, "GiB"), (2**20, "MiB")) if size >= step), (2**10, "KiB"))
    return f"{size / step:,.1f} {unit}"


def _time(hours: float) -> str:
    step, unit = next(((step, unit) for step, unit in ((1.0, "h"), (1 / 60, "min")) if hours >= step), (1 / 3600, "s"))
    return f"{hours / step:,.1f} {unit}" if hours / step >= 0.1 else "< 0.1 s"


def _imbalance(stage: StagePreview, machine: Machine) -> str:
    """Of full steps; none where the ranks do not divide a step's packs, or a pass does not fill one."""
    found = stage.first_pass.imbalance.get(machine.devices)
    return "-" if found is None or stage.first_pass.packs < stage.first_pass.packs_per_step else _percent(found)


def register(app: typer.Typer) -> None:
    app.command()(costs)
