"""The command `frames`: what compression would keep of a video, before anything is measured or trained."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.console import AsJson, out, put_line, table

if TYPE_CHECKING:
    from shards.compression import Method


class Kept(StrEnum):
    difffp = "difffp"
    anchored = "anchored"


def frames(
    video: Annotated[str, typer.Argument(help="A video file.")],
    directory: Annotated[str, typer.Option("--out", help="Where the sheets and the curve are written.")],
    threshold: Annotated[
        list[float] | None, typer.Option(min=0.0, help="Grey levels; may be repeated. Default: the profile's, 1 and 4.")
    ] = None,
    method: Annotated[list[Kept] | None, typer.Option(help="May be repeated. Default: both.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Also the threshold that keeps at most so many tokens.")] = None,
    profile: Annotated[str, typer.Option(help="Measure profile: frames a second, budget of tokens, sizes.")] = "videollama3",
    as_json: AsJson = False,
) -> None:
    """Show which blocks of a video's frames are kept at some thresholds, dropped ones dimmed, and how many at any."""
    from pipeline.frames import Setting, look
    from shards.profile import load_profile

    chosen = load_profile(profile, "none")  # no text is counted
    methods: list[Method] = ["difffp" if name is Kept.difffp else "anchored" for name in dict.fromkeys(method or list(Kept))]
    thresholds = dict.fromkeys(threshold or [chosen.threshold, 1.0, 4.0])
    settings = [Setting(name, at) for name in methods for at in thresholds]
    if budget is not None:
        settings.append(Setting("budget", chosen.threshold, budget))
    found, curves = look(Path(video), Path(directory), chosen, methods, settings)
    if as_json:
        for one in found:
            said = {"method": one.setting.method, "threshold": one.setting.threshold, "budget": one.setting.budget, "kept": one.kept}
            put_line({**said, "tokens": one.tokens, "share": one.share, "worst": one.worst, "sheet": str(one.sheet)})
        put_line({"curve": {name: dict(zip(map(str, at), kept, strict=True)) for name, (at, kept) in curves.items()}})
        return
    shown = table("method", "at", "kept", "of", "share", "worst stand-in", "sheet")
    for one in found:
        at = f"{one.setting.threshold:g}" if one.setting.budget is None else f"{one.setting.budget:,} tokens"
        shown.add_row(one.setting.method, at, f"{one.kept:,}", f"{one.tokens:,}", f"{one.share:.1%}", f"{one.worst:.2f}", str(one.sheet))
    out.print(shown)
    out.print(f"curve: {Path(directory) / 'curve.png'}", markup=False)
