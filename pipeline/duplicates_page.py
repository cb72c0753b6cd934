"""The audit of deduplicate steps as one HTML page: no script, nothing from outside, every name from the data escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.contact_sheet import Thumbnail
from pipeline.duplicates import Group, Member, Told
from pipeline.duplicates_pairs import Bin, Near, Rung
from pipeline.duplicates_recall import Recall

SOURCES = 12  # pairs of sources that are listed

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1f2328; --soft: #5f6670; --line: #dfe2e6; --accent: #2f6f9f;
  --pale: #b9c4ce; --warn: #9a5b00; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1e2125; --ink: #e4e6e9; --soft: #9aa2ac; --line: #32373d;
  --accent: #6fb1e0; --pale: #4d565f; --warn: #e0a95a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; font-weight: 650; }
h2 { font-size: 1.25rem; margin: 3rem 0 .25rem; padding-top: 1.25rem; border-top: 1px solid var(--line); font-weight: 650; }
h3 { font-size: 1.05rem; margin: 2.25rem 0 .25rem; font-weight: 650; }
h4 { font-size: .95rem; margin: 1.5rem 0 .5rem; font-weight: 600; }
p { margin: .35rem 0; max-width: 46rem; } .soft { color: var(--soft); } .warn { color: var(--warn); }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, monospace; overflow-wrap: anywhere; }
nav { margin-top: .75rem; } nav a { margin-right: 1.1rem; } a { color: var(--accent); text-underline-offset: .15em; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2.25rem; margin: 1rem 0; padding: 0; list-style: none; }
.facts b { display: block; font-size: 1.45rem; line-height: 1.2; font-weight: 600; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .3rem 1.1rem .3rem 0; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; } .n { text-align: right; } tr.here td { font-weight: 650; }
.side { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
svg { display: block; overflow: visible; width: 100%; max-width: 46rem; height: auto; margin: .75rem 0; }
svg text { fill: var(--soft); font-size: 11px; } svg .yes { fill: var(--accent); } svg .no { fill: var(--pale); }
svg line { stroke: var(--ink); stroke-dasharray: 3 3; } svg .base { stroke: var(--line); stroke-dasharray: none; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: .9rem; }
.pair, .group { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; }
.group { margin: .9rem 0; }
.pair header { display: flex; justify-content: space-between; gap: .75rem; margin-bottom: .5rem; font-size: .9rem; }
.pair header b { white-space: nowrap; } .pair header span { text-align: right; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .9rem; margin-top: .6rem; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .8rem; line-height: 1.35; color: var(--soft); margin-top: .35rem; }
figcaption bdi { color: var(--ink); overflow-wrap: anywhere; } figcaption span { display: block; }
.frame { height: 9rem; display: flex; align-items: center; justify-content: center; background: var(--paper); border-radius: 5px; }
.frame img { max-width: 100%; max-height: 100%; display: block; border-radius: 3px; }
.text { display: block; height: 9rem; padding: .5rem; overflow: hidden; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
.stays .frame { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 34rem) { body { padding: 1.25rem .85rem 3rem; } .pairs { grid-template-columns: 1fr; } th, td { padding-right: .8rem; }
  .many { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); } }
@media print { .pair, .group { break-inside: avoid; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, run: str, audits: Sequence[tuple[Told, Sequence[Rung]]], pictures: Mapping[str, Thumbnail]) -> str:
    """The whole page. audits: of each step what is told and its rungs. pictures: uid → thumbnail; one that is missing is left out."""
    drawn = _Drawn(pictures)
    links = "".join(f'<a href="#step{n}">{_text(told.step)}</a>' for n, (told, _) in enumerate(audits)) if len(audits) > 1 else ""
    body = "".join(_step(n, told, rungs, drawn) for n, (told, rungs) in enumerate(audits))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Duplicates: {_text(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>Duplicates in {_text(title)}</h1><p class="soft">Run <code>{_text(run)}</code></p>'
        f"{f'<nav>{links}</nav>' if links else ''}{body}</body></html>\n"
    )


def _step(number: int, told: Told, rungs: Sequence[Rung], drawn: _Drawn) -> str:
    facts = [
        ("samples", told.samples), ("groups of copies", told.groups), ("copies", told.copies), ("not copies", told.samples - told.copies),
    ]  # fmt: skip
    listed = "".join(f"<li><b>{count:,}</b>{_text(what)}</li>" for what, count in facts)
    order = f"<code>{_text(told.ordering)}</code>, then uid" if told.ordering else "uid alone: <code>keep_best</code> is not given"
    parts = [
        f'<h2 id="step{number}">Step {_text(told.step)}</h2><ul class="facts">{listed}</ul>',
        f'<p class="soft">Of several copies the first stays, in the order {order}.</p>',
    ]
    if not told.copies:
        parts.append("<p>No sample is a copy of another.</p>")
    else:
        by_rung = _table(("found by", "copies"), [(rung, f"{n:,}") for rung, n in told.by_rung.items()], "an")
        sizes = _table(("samples in a group", "groups"), [(f"{size:,}", f"{n:,}") for size, n in _few(told.sizes)], "nn")
        listed_sources = [(a, b, rung, f"{n:,}") for a, b, rung, n in told.by_sources[:SOURCES]]
        sources = _table(("copy from", "what stays is from", "found by", "copies"), listed_sources, "aaan")
        more = len(told.by_sources) - SOURCES
        sources += f'<p class="soft">and {more:,} more pairs of sources</p>' if more > 0 else ""
        parts.append(f'<div class="side"><div>{by_rung}</div><div>{sources}</div><div>{sizes}</div></div>')
    parts += [_rung(rung, drawn) for rung in rungs]
    if told.shown:
        parts.append("<h3>The largest groups</h3>" + "".join(_group(group, drawn) for group in told.shown))
    return "".join(parts)


def _few(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The smallest groups and the largest: a table that stays short."""
    return list(sizes) if len(sizes) <= 8 else [*sizes[:4], *sizes[-4:]]


def _rung(rung: Rung, drawn: _Drawn) -> str:
    head = f"<h3>Around the threshold of {_text(rung.rung)}</h3>"
    if rung.missing is not None:
        return f'{head}<p class="warn">{_text(rung.missing)}</p>'
    parts = [
        head,
        f'<p class="soft"><code>{_text(rung.setting)}</code>: pairs at or above a similarity of {rung.threshold:.4g} count as near. '
        f"{rung.pairs:,} pairs at or above {rung.floor:.4g} are stored; of samples of equal content only one is among them.</p>",
    ]
    if rung.pairs:
        axis = "bits of 64 that differ" if rung.bits else "similarity"
        caption = f"<figcaption>Stored pairs by {axis}. Right of the line: near.</figcaption>"
        parts.append(f"<figure>{_histogram(rung.bins, rung.threshold)}{caption}</figure>")
    if rung.moves:
        rows = [
            (move.label, f"{move.pairs:,}", _signed(move.more_pairs), _count(move.copies), _signed(move.more_copies)) for move in rung.moves
        ]
        here = next((n for n, move in enumerate(rung.moves) if move.here), None)
        heads = (rung.setting.partition(":")[0], "pairs", "more or fewer", "copies in all", "more or fewer")
        note = '<p class="soft">Copies by all rungs together, as the step itself would count them.</p>'
        parts.append(f"<h4>If it were moved</h4>{note}{_table(heads, rows, 'annnn', here)}")
    if rung.recall is not None:
        parts.append(_recall(rung.recall, drawn))
    for above, title in ((True, "Nearest above the threshold"), (False, "Nearest below it")):
        near = [pair for pair in rung.near if pair.above == above]
        if near:
            parts.append(f'<h4>{title}</h4><div class="pairs">{"".join(_pair(pair, drawn) for pair in near)}</div>')
    return "".join(parts)


def _recall(recall: Recall, drawn: _Drawn) -> str:
    lines = [
        f"{what}: <b>{share.found:,}</b> of <b>{share.pairs:,}</b> pairs were found, recall {share.value:.4f} "
        f'<span class="soft">(95 %: {share.low:.4f} to {share.high:.4f})</span>'
        if share.pairs
        else f"{what}: there is no pair among the sampled"
        for what, share in (("At the threshold", recall.at_threshold), ("At the floor", recall.at_floor))
    ]
    cut = f" {recall.cut:,} pairs of samples with very many near ones are not counted: only the best are stored." if recall.cut else ""
    missed = "".join(_pair(pair, drawn) for pair in recall.missed)
    return (
        f"<h4>Recall against brute force</h4><p>{'<br>'.join(lines)}</p>"
        f'<p class="soft">{recall.sampled:,} samples, drawn by a hash of their uids, were compared with all {recall.among:,}.{cut}</p>'
        + (f'<h4>Missed</h4><div class="pairs">{missed}</div>' if missed else "")
    )


def _histogram(bins: Sequence[Bin], threshold: float) -> str:
    wide, high, top, bottom = 720.0, 190.0, 24.0, 34.0
    most = max((b.pairs for b in bins), default=0) or 1
    each = wide / max(len(bins), 1)
    parts = []
    for n, b in enumerate(bins):
        tall = max((high - top - bottom) * b.pairs / most, 1.5) if b.pairs else 0.0
        x, y = n * each, high - bottom - tall
        bar = f'<rect class="{"yes" if b.above else "no"}" x="{x + 1:.1f}" y="{y:.1f}" width="{max(each - 2, 1):.1f}" height="{tall:.1f}"/>'
        parts.append(f"<g><title>{_text(b.label)}: {b.pairs:,} pairs</title>{bar}</g>")
        if len(bins) <= 32 and b.pairs:
            parts.append(f'<text x="{x + each / 2:.1f}" y="{y - 4:.1f}" text-anchor="middle">{_short(b.pairs)}</text>')
        if n % max(1, -(-len(bins) // 12)) == 0:
            parts.append(f'<text x="{x + each / 2:.1f}" y="{high - bottom + 15:.1f}" text-anchor="middle">{_text(b.label)}</text>')
    border = next((n for n, b in enumerate(bins) if b.above), len(bins)) * each
    parts.append(f'<line x1="{border:.1f}" x2="{border:.1f}" y1="8" y2="{high - bottom}"/>')
    parts.append(f'<line class="base" x1="0" x2="{wide}" y1="{high - bottom}" y2="{high - bottom}"/>')
    label = f"Stored pairs by similarity, threshold {threshold:.4g}"
    return f'<svg viewBox="0 0 {wide:g} {high:g}" role="img" aria-label="{_text(label)}">{"".join(parts)}</svg>'


def _pair(pair: Near, drawn: _Drawn) -> str:
    return (
        f'<div class="pair"><header><b>{_text(pair.told)}</b><span class="soft">{_text(pair.said)}</span></header>'
        f'<div class="two">{drawn.figure(pair.better, [])}{drawn.figure(pair.worse, [])}</div></div>'
    )


def _group(group: Group, drawn: _Drawn) -> str:
    more = group.size - 1 - len(group.copies)
    ends = f'<p class="soft">and {more:,} copies more, which are more alike</p>' if more > 0 else ""
    figures = drawn.figure(group.keeper, ["stays", *_values(group.keeper)], "stays")
    figures += "".join(drawn.figure(copy, [f"{copy.rung} {_digits(copy.similarity)}", *_values(copy)]) for copy in group.copies)
    head = f'<b>{group.size:,} samples</b> <span class="soft">{_text(group.why)}</span>'
    return f'<div class="group">{head}<div class="many">{figures}</div>{ends}</div>'


class _Drawn:
    """The pictures of a page by uid."""

    def __init__(self, pictures: Mapping[str, Thumbnail]) -> None:
        self.pictures = pictures

    def figure(self, member: Member, lines: Iterable[str], kind: str = "") -> str:
        picture = self.pictures.get(member.uid)
        under = "".join(f"<span>{_text(line)}</span>" for line in [*lines, *([member.verdict] if member.verdict else [])])
        why = f'<span class="warn">{_text(picture.why)}</span>' if picture is not None and picture.why else ""
        name = f"<bdi>{_text(member.key)}</bdi><span>{_text(member.source)}</span>"
        return f'<figure class="{kind}">{self._frame(member, picture)}<figcaption>{name}{under}{why}</figcaption></figure>'

    def _frame(self, member: Member, picture: Thumbnail | None) -> str:
        if picture is None:
            return ""
        if picture.text:
            return f'<div class="frame"><bdi class="text">{_text(picture.text[:400])}</bdi></div>'
        data = base64.b64encode(picture.jpeg()).decode()
        return f'<div class="frame"><img alt="{_text(member.key)}" loading="lazy" src="data:image/jpeg;base64,{data}"></div>'


def _values(member: Member) -> list[str]:
    return [f"{column} {_digits(value)}" for column, value in member.values.items()]


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]], align: str, here: int | None = None) -> str:
    """align: a letter for each column, n for numbers. here: the row that stands out."""
    marks = [' class="n"' if a == "n" else "" for a in align]
    head = "".join(f"<th{mark}>{_text(h)}</th>" for h, mark in zip(heads, marks, strict=True))
    body = "".join(
        ('<tr class="here">' if n == here else "<tr>")
        + "".join(f"<td{mark}>{_text(cell)}</td>" for cell, mark in zip(row, marks, strict=True))
        + "</tr>"
        for n, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: Any) -> str:
    """As HTML: escaped, without control characters, and what is no Unicode replaced."""
    plain = "".join(c if c.isprintable() or c == "\n" else " " for c in str(value).encode("utf-8", "replace").decode())
    return html.escape(plain)


def _digits(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _signed(value: int | None) -> str:
    return "" if value is None else "·" if value == 0 else f"{value:+,}"


def _short(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1e3:.0f} k" if count < 1_000_000 else f"{count / 1e6:.1f} M"
