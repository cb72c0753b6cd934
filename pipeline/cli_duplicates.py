"""`fovea duplicates`: who is a copy of whom in a run and why, what lies around the thresholds, in numbers, in pictures, on a page."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.console import AsJson, err, out, progress_bars, put_line, short, table

if TYPE_CHECKING:
    from pipeline.contact_sheet import Thumbnail
    from pipeline.duplicates import Member, Told
    from pipeline.duplicates_pairs import Near, Rung
    from pipeline.recipe import Recipe
    from shards.store import Store

Audits = Sequence[tuple["Told", Sequence["Rung"]]]


def duplicates(
    run: Annotated[str, typer.Argument(help="A finished run: a path or an fsspec URL. It is only read.")],
    step: Annotated[str | None, typer.Option(help="Only the deduplicate step of this name; else all of them.")] = None,
    out_dir: Annotated[str | None, typer.Option("--out", help="Where page and sheets go; else RUN/duplicates.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Samples compared with all others by brute force, for recall; 0 = none.")] = 500,
    seed: Annotated[int, typer.Option(help="Which samples these are.")] = 0,
    groups: Annotated[int, typer.Option(min=0, help="The largest groups that are shown.")] = 10,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs shown on each side of a threshold.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Audit what deduplicate did: groups, who stays and why, similarities around the threshold, recall, contact sheets."""
    from pipeline.duplicates import opened, steps_of, tell
    from pipeline.duplicates_page import page
    from pipeline.duplicates_pairs import rungs_of
    from pipeline.ledger import open_ledger
    from pipeline.recipe import load_run_recipe
    from shards.store import open_store

    ledger = open_ledger(run)
    recipe = load_run_recipe(ledger.store)
    audits = []
    with (
        progress_bars(as_json) as progress,
        tempfile.TemporaryDirectory(dir=ledger.scratch(), prefix=".tmp-duplicates-") as scratch,
        opened(ledger, recipe, steps_of(recipe, step), Path(scratch)) as steps,
    ):
        for one in steps:
            audits.append((tell(one, groups), rungs_of(one, pairs, sample, seed)))
        pictures = _pictures(audits, recipe, progress)
    store = open_store(out_dir if out_dir is not None else ledger.store.url("duplicates"))
    files = list(_sheets(audits, pictures, store))
    store.put_replace("duplicates.html", page(recipe.name, run, audits, pictures).encode())
    files.append(store.url("duplicates.html"))
    if as_json:
        for line in lines(audits, files):
            put_line(line)
    else:
        _show(audits, files)


def told_of_copies(event: dict[str, Any]) -> str:
    """What `explain` adds to a deduplicate step's scores: whom the sample is a copy of, or how many copies it stands for."""
    if copy := event.get("copy_of"):
        similarity = event["scores"]["similarity"]
        return f"; a copy of {copy['key']} of source {copy['source']} by {event['scores']['rung']}, similarity {similarity:.4g}"
    copies = event.get("stands_for", 0)
    return f"; stands for {copies:,} {'copy' if copies == 1 else 'copies'} of it" if copies else ""


def lines(audits: Audits, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The audit for machines: objects with `what`: "step", "group", "rung", "pair", and at last "files"."""
    for told, rungs in audits:
        counts = {"samples": told.samples, "copies": told.copies, "groups": told.groups, "by_rung": told.by_rung}
        sources = [dict(zip(("copy", "stays", "rung", "copies"), row, strict=True)) for row in told.by_sources]
        sizes = [{"size": size, "groups": n} for size, n in told.sizes]
        yield {"what": "step", "step": told.step, "keep_best": told.ordering, **counts, "by_sources": sources, "sizes": sizes}
        for group in told.shown:
            copies = [copy.told() for copy in group.copies]
            yield {
                "what": "group",
                "step": told.step,
                "size": group.size,
                "why": group.why,
                "keeper": group.keeper.told(),
                "copies": copies,
            }
        for rung in rungs:
            numbers = {k: getattr(rung, k) for k in ("rung", "setting", "threshold", "floor", "pairs", "missing")}
            around = {"bins": [asdict(b) for b in rung.bins], "moves": [asdict(m) for m in rung.moves], "recall": _recall(rung)}
            yield {"what": "rung", "step": told.step, **numbers, **around}
            for kind, near in (("near", rung.near), ("missed", rung.recall.missed if rung.recall else ())):
                for pair in near:
                    yield {"what": "pair", "step": told.step, "rung": rung.rung, "why": kind, **_pair(pair)}
    yield {"what": "files", "files": list(files)}


def _recall(rung: Rung) -> dict[str, Any] | None:
    if rung.recall is None:
        return None
    shares = {"at_threshold": rung.recall.at_threshold, "at_floor": rung.recall.at_floor}
    told = {k: {"found": s.found, "pairs": s.pairs, "recall": s.value, "low": s.low, "high": s.high} for k, s in shares.items()}
    return {"sampled": rung.recall.sampled, "among": rung.recall.among, "cut": rung.recall.cut, **told}


def _pair(pair: Near) -> dict[str, Any]:
    ends = {"better": pair.better.told(), "worse": pair.worse.told()}
    return {"similarity": pair.similarity, "above": pair.above, "said": pair.said, **ends}


def _pictures(audits: Audits, recipe: Recipe, progress: Callable[[str, int, int], None]) -> dict[str, Thumbnail]:
    """A thumbnail of everybody who is shown and is of this run, or whose media are known."""
    from pipeline.contact_sheet import thumbnail

    shown: dict[str, Member] = {}
    for told, rungs in audits:
        for group in told.shown:
            shown.update({m.uid: m for m in (group.keeper, *group.copies)})
        for rung in rungs:
            near = [*rung.near, *(rung.recall.missed if rung.recall else ())]
            shown.update({m.uid: m for pair in near for m in (pair.better, pair.worse)})
    found = {}
    for number, (uid, member) in enumerate(shown.items(), 1):
        if member.role == "sample" or member.media or member.text:
            found[uid] = thumbnail(member.media, member.text, recipe.limits)
        progress("pictures", number, len(shown))
    return found


def _sheets(audits: Audits, pictures: dict[str, Thumbnail], store: Store) -> Iterator[str]:
    """Writes a contact sheet for each rung that has pairs near its threshold; their URLs."""
    from pipeline.contact_sheet import Pair, blank, sheet

    for told, rungs in audits:
        for rung in rungs:
            pairs = [
                Pair(
                    pictures.get(near.better.uid) or blank(f"{near.better.source}: its media are not known here"),
                    pictures.get(near.worse.uid) or blank(f"{near.worse.source}: its media are not known here"),
                    near.better.key,
                    near.worse.key,
                    [near.told, "above" if near.above else "below", near.said],
                )
                for near in rung.near
            ]
            if pairs:
                file = f"{_file_name(told.step)}-{_file_name(rung.rung)}.jpg"
                store.put_replace(file, sheet(f"{told.step}, {rung.rung}: pairs nearest to {rung.setting}", pairs))
                yield store.url(file)


def _show(audits: Audits, files: Sequence[str]) -> None:
    for told, rungs in audits:
        by_rung = ", ".join(f"{n:,} by {rung}" for rung, n in told.by_rung.items())
        out.print(
            f"[bold]{escape(told.step)}[/]: {told.samples:,} samples, {told.copies:,} copies in {told.groups:,} groups"
            + (f" ({by_rung})" if by_rung else "")
        )
        if told.shown:
            largest = table("samples", "stays", "its source", "least alike copy", "by", "similarity")
            for group in told.shown:
                least = group.copies[0]
                cells = (group.keeper.key, group.keeper.source, least.key, least.rung, f"{least.similarity:.4g}")
                largest.add_row(f"{group.size:,}", *(escape(short(cell)) for cell in cells))
            out.print(largest)
        for rung in rungs:
            _show_rung(rung)
    for file in files:
        out.print(file, markup=False)


def _show_rung(rung: Rung) -> None:
    if rung.missing is not None:
        err.print(f"{rung.rung}: {rung.missing}", markup=False)
        return
    out.print(f"{rung.rung}: {rung.setting}, {rung.pairs:,} pairs of {rung.floor:.4g} and more are stored", markup=False)
    moved = table("threshold", "pairs", "more or fewer", "copies in all", "more or fewer")
    for move in rung.moves:
        cells = [f"{move.pairs:,}", f"{move.more_pairs:+,}", *("" if n is None else f"{n:,}" for n in (move.copies,))]
        moved.add_row(f"{'→ ' if move.here else ''}{move.label}", *cells, "" if move.more_copies is None else f"{move.more_copies:+,}")
    out.print(moved)
    if rung.recall is not None:
        for what, share in (("at the threshold", rung.recall.at_threshold), ("at the floor", rung.recall.at_floor)):
            interval = f", recall {share.value:.4f} (95 %: {share.low:.4f} to {share.high:.4f})" if share.pairs else ""
            out.print(f"{what} {share.found:,} of {share.pairs:,} pairs of {rung.recall.sampled:,} samples{interval}", markup=False)


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)
