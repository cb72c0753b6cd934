"""Speaking to people and to machines: consoles, progress, JSON lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.provision import ModelState

# Into a file or a pipe nothing is folded: what reads it there wants whole lines.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1_000)
err = Console(stderr=True, highlight=False, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@contextmanager
def progress_bars(as_json: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Bars on a terminal, a line for each tenth elsewhere, nothing with --json."""
    if as_json:
        yield lambda what, done, total: None
        return
    if not err.is_terminal:
        said: dict[str, int] = {}

        def line(what: str, done: int, total: int) -> None:
            tenth = 10 * done // max(total, 1)
            if said.get(what) != tenth:
                said[what] = tenth
                err.print(f"{what}: {done:,} of {total:,}")

        yield line
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=err) as bars:
        tasks: dict[str, Any] = {}

        def bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield bar


def table(*heads: str) -> Table:
    """A table whose cells are folded, never cut: a uid that is shown can be copied."""
    made = Table()
    for head in heads:
        made.add_column(head, overflow="fold", min_width=32 if head == "uid" else None)
    return made


def show_models(console: Console, states: Sequence[ModelState]) -> None:
    """A recipe's models: which, at which commit, whether they are here."""
    shown = table("model", "kind", "revision", "for", "")
    for state in states:
        model = state.model
        shown.add_row(*(escape(text) for text in (model.id, model.kind, model.revision[:12], ", ".join(state.steps), state.told())))
    console.print(shown)


def short(value: Any) -> str:
    """A value on one line, at most 160 characters."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 160 else text[:157] + "…"


def put_line(value: Any) -> None:
    """One JSON object on a line of its own, to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
