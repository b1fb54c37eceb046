"""A report of the same figures in three formats: a self-contained HTML page, Markdown, and JSON.

The page has pictures as HTML that needs nothing else (reliability diagram, confusions, mistakes, curves) and a style
for the screen and for paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import ImageColor

from imagenet_pipeline import files
from imagenet_pipeline.drawing import COLOURS, data_address
from imagenet_pipeline.errors import BadRecipe, printable
from imagenet_pipeline.evaluation.report_tables import (
    MANY_CLASSES,
    Headline,
    Table,
    as_markdown,
    calibration_note,
    certainty,
    class_table,
    comparison_table,
    confused_table,
    dependence_table,
    headlines,
    in_train_table,
    sources,
    title,
)
from imagenet_pipeline.evaluation.results import Findings, Mistake, as_json, classes_met
from imagenet_pipeline.evaluation.stats import Calibration
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import decode_rgb, encode_jpeg, encode_png, shrink
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.curves import separate_curves
from imagenet_pipeline.training.journal import Journal

_GENERATOR = '<meta name="generator" content="imagenet_pipeline">'
_DASH = "\N{EN DASH}"
_WIDE = 7
"""A table of more columns breaks the lines of its numbers."""


def require_page(out: Path, own: bool = False) -> None:
    """Raise BadRecipe for a page of another ending, and where it would replace a file that is no earlier report.

    A file with the name of a run's `own` report counts as a report.
    """
    files.require_ending(out, ".html", "the report is written as HTML", "Markdown and JSON are written beside it")
    there = [path for path in (out, out.with_suffix(".md"), out.with_suffix(".json")) if path.exists()]
    if there and not (own or _is_report(out)):
        advice = "a report is NAME.html, .md and .json: name another --report"
        raise BadRecipe("the file exists already and is not an earlier report", where=there[0], advice=advice)


def _is_report(page: Path) -> bool:
    if not page.is_file():
        return False
    with page.open("rb") as file:
        return _GENERATOR.encode() in file.read(1000)


def write_report(findings: Findings, out: Path) -> Path:
    """Write `out`, an HTML file with its pictures inside, and beside it the same as .md and .json."""
    # The page first: with it there, `require_page` lets the same command try again where the others failed.
    files.write_whole(out, _page(findings))
    files.write_whole(out.with_suffix(".md"), as_markdown(findings))
    files.write_json(out.with_suffix(".json"), as_json(findings))
    return out


def _page(findings: Findings) -> str:
    examination = findings.examination
    head = title(examination), sources(examination)
    return page_of(head, headlines(findings), examination.notes, _sections(findings))


def page_of(head: tuple[str, str], figures: Sequence[Headline], notes: Sequence[str], sections: Iterable[str]) -> str:
    """The page: title and the line below it, figures, notes, and sections of HTML."""
    name, sub = map(text, head)
    said = "".join(f"<p>{text(note)}.</p>" for note in notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"{_GENERATOR}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head><body>"
        f'<h1>{name}</h1><p class="sub">{sub}</p>'
        f'<div class="figures">{"".join(map(_headline, figures))}</div>{said}'
        f"{''.join(sections)}</body></html>\n"
    )


def _sections(findings: Findings) -> Iterator[str]:
    examination = findings.examination
    if len(findings.own) > 1:
        yield table_section(comparison_table(findings))
    if (twice := in_train_table(findings)).rows:
        yield table_section(twice)
    confused = table_section(confused_table(findings)) if findings.mistakes else ""
    classes = table_section(class_table(findings))
    if len(findings.classes) <= MANY_CLASSES:
        yield _beside(_confusions(findings), confused)
        yield _beside(classes, _calibration(findings))
    else:
        yield _beside(confused, classes)
        yield _calibration(findings)
    yield section("Surest mistakes", mistakes(findings) if findings.mistakes else "<p>There is none.</p>")
    runs = list(dict.fromkeys(Path(member.run) for member in examination.evaluations))
    yield training_section(runs)
    for member in examination.evaluations:
        yield table_section(dependence_table(examination, member))
    yield from map(recipe_section, runs)


def training_section(runs: Sequence[Path]) -> str:
    """The curves of runs, those that have any."""
    pictures = [f'<p class="note">{text(str(run))}</p>{curve}' for run in runs if (curve := curves(run))]
    return section("Training", "".join(pictures)) if pictures else ""


def recipe_section(run: Path) -> str:
    """The recipe of a run, as it lies there."""
    recipe = (run / "recipe.toml").read_text(encoding="utf-8")
    return section(f"Recipe of {text(str(run))}", f"<pre>{_text_block(recipe)}</pre>")


def _confusions(findings: Findings) -> str:
    note = "A row a class, a column what it was taken for; shaded by the share of the row."
    return section("Confusions", f'<p class="note">{note}</p>{confusion_square(findings)}')


def _calibration(findings: Findings) -> str:
    note = f"{calibration_note(findings)} Bars: the share that is right, with 95 % whiskers; below: images a bin."
    return section("Calibration", f'<p class="note">{note}</p>{reliability(findings.figures.calibration)}')


def _beside(first: str, second: str) -> str:
    """Put two sections side by side where there is room."""
    return f'<div class="beside">{first}{second}</div>'


def _text_block(value: str) -> str:
    """Lines of text that HTML shows as they are."""
    return "\n".join(map(text, value.splitlines()))


def _headline(line: Headline) -> str:
    interval = f"<span>95 %: {text(line.interval)}</span>" if line.interval else ""
    return f"<div><i>{text(line.name)}</i><b>{text(line.value)}</b>{interval}<span>{text(line.basis)}</span></div>"


def section(heading: str, content: str) -> str:
    """HTML under a heading."""
    return f"<section><h2>{heading}</h2>{content}</section>"


def table_section(table: Table) -> str:
    """A table under its heading."""
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    titled = any(table.header)
    head = f"<thead>{_row(table.header, table.words, 'th')}</thead>" if titled else ""
    body = "".join(_row(row, table.words, "td") for row in table.rows)
    kind = ("rows wide" if len(table.header) > _WIDE else "rows") if titled else "pairs"
    whole = f'<table class="{kind}">{head}<tbody>{body}</tbody></table>'
    return section(text(table.heading), f'{note}<div class="scroll">{whole}</div>')


def _row(cells: Sequence[str], words: int, tag: str) -> str:
    written = [f"<{tag}>{text(cell)}</{tag}>" for cell in cells[:words]]
    # An interval is never broken across lines.
    numbers = [
        text(cell).replace(" to ", "&nbsp;to&nbsp;").replace(_DASH, f"&NoBreak;{_DASH}&NoBreak;")
        for cell in cells[words:]
    ]
    written += [f'<{tag} class="number">{number}</{tag}>' for number in numbers]
    return f"<tr>{''.join(written)}</tr>"


NUMBERED_CELLS = 25
"""Up to so many classes a cell has room for its count."""
_THUMBNAIL_PIXELS = 176
_PLOT, _LEFT, _TOP, _COUNTS = 300, 46, 8, 60
"""Sizes of the diagram in its own units: side of the square, margins left and above, height of the counts."""


def text(value: str) -> str:
    """Text that HTML shows as it is."""
    return escape(printable(value))


def reliability(calibration: Calibration) -> str:
    """Share of right predictions by confidence, with 95 % whiskers; dashed where they agree. Below, images a bin."""
    bottom, foot = _TOP + _PLOT, _TOP + _PLOT + 14 + _COUNTS
    parts = [*_grid(bottom, foot)]
    most = max(part.right.images for part in calibration.bins)
    for part in calibration.bins:
        left, width, right = _x(part.low), _x(part.high) - _x(part.low), part.right
        share, (low, high) = right.percent / 100, (_y(edge / 100) for edge in right.interval)
        tip = f"{part.low:.2f} to {part.high:.2f}: {right.hits:,} of {right.images:,} right"
        tip += f", mean confidence {part.confidence:.3f}"
        middle, height = _x(part.confidence), _COUNTS * right.images / most
        parts.append(
            f"<g><title>{tip}</title>"
            f'<rect class="bar" x="{left + 1:.1f}" y="{_y(share):.1f}" width="{width - 2:.1f}"'
            f' height="{bottom - _y(share):.1f}"/>'
            f'<path class="whisker" d="M{middle:.1f} {low:.1f}V{high:.1f}"/>'
            f'<circle class="dot" cx="{middle:.1f}" cy="{_y(share):.1f}" r="3.5"/>'
            f'<rect class="count" x="{left + 1:.1f}" y="{foot - height:.1f}" width="{width - 2:.1f}"'
            f' height="{height:.1f}"/></g>'
        )
    parts.append(f'<path class="ideal" d="M{_LEFT} {bottom}L{_LEFT + _PLOT} {_TOP}"/>')
    parts.append(f'<text class="small" x="{_LEFT - 6}" y="{foot - _COUNTS + 9}" text-anchor="end">{most:,}</text>')
    size = f"{_LEFT + _PLOT + 14} {foot + 40}"
    name = "Reliability diagram: the share that is right by confidence"
    return f'<svg class="plot" viewBox="0 0 {size}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _grid(bottom: int, foot: int) -> Iterator[str]:
    for tenth in range(0, 11, 2):
        at = tenth / 10
        yield f'<path class="grid" d="M{_LEFT} {_y(at):.1f}H{_LEFT + _PLOT}M{_x(at):.1f} {_TOP}V{bottom}"/>'
        yield f'<text x="{_LEFT - 6}" y="{_y(at) + 4:.1f}" text-anchor="end">{10 * tenth}</text>'
        yield f'<text x="{_x(at):.1f}" y="{foot + 15}" text-anchor="middle">{10 * tenth}</text>'
    yield f'<path class="grid" d="M{_LEFT} {foot}H{_LEFT + _PLOT}"/>'
    yield f'<text x="{_LEFT + _PLOT / 2}" y="{foot + 34}" text-anchor="middle">confidence, %</text>'
    centre = _TOP + _PLOT / 2
    yield f'<text x="12" y="{centre}" text-anchor="middle" transform="rotate(-90 12 {centre})">right, %</text>'


def _x(share: float) -> float:
    return _LEFT + _PLOT * share


def _y(share: float) -> float:
    return _TOP + _PLOT * (1 - share)


def confusion_square(findings: Findings) -> str:
    """A row a class, a column a prediction, shaded by the share of the row: blue where right, orange where not."""
    labels = classes_met(findings.examination.outcomes)
    square = findings.confusion.square(labels)
    shares = square / np.maximum(1, square.sum(axis=1, keepdims=True))
    names = [text(findings.class_name(label)) for label in labels.tolist()]
    numbered = len(labels) <= NUMBERED_CELLS
    head = "".join(f"<th><span>{name}</span></th>" for name in names)
    rows = []
    for row, name in enumerate(names):
        cells = "".join(
            _cell(count, share, row == other, numbered, f"{name} taken for {names[other]}: {count}")
            for other, (count, share) in enumerate(zip(square[row].tolist(), shares[row].tolist(), strict=True))
        )
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    kind = "square" if numbered else "square fine"
    table = f'<table class="{kind}"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _cell(count: int, share: float, right: bool, numbered: bool, tip: str) -> str:
    if not count:
        return "<td></td>"
    # The root lets single mistakes be seen beside hundreds of hits.
    strength = 0.08 + 0.92 * share**0.5
    colour = ",".join(map(str, ImageColor.getrgb(COLOURS[0] if right else COLOURS[1])))
    ink = ' class="dark"' if strength > 0.6 else ""
    return f'<td{ink} style="background:rgba({colour},{strength:.2f})" title="{tip}">{count if numbered else ""}</td>'


def mistakes(findings: Findings) -> str:
    """The records behind the surest mistakes, as thumbnails with what they are and what they were taken for."""
    examination = findings.examination
    with RecordSet.of(examination.data, examination.result.split) as records:
        shown = [
            _mistake(findings, mistake, decode_rgb(records.read(mistake.position).image))
            for mistake in findings.mistakes
        ]
    return f'<div class="mistakes">{"".join(shown)}</div>'


def _mistake(findings: Findings, mistake: Mistake, pixels: Pixels) -> str:
    is_small = min(pixels.shape[:2]) < _THUMBNAIL_PIXELS
    encoded = encode_png(pixels) if is_small else encode_jpeg(shrink(pixels, _THUMBNAIL_PIXELS), 85)
    source = data_address(encoded, "png" if is_small else "jpeg")
    coarse = ' class="coarse"' if max(pixels.shape[:2]) <= 64 else ""
    predicted, true = (text(findings.class_name(label)) for label in (mistake.predicted, mistake.label))
    sure = text(certainty(mistake.probability)).replace(" ", "&nbsp;")
    return (
        f'<figure><img{coarse} alt="record {mistake.number}" src="{source}"><figcaption><b>{predicted}</b><br>'
        f"{sure}, is {true}<br><small>record {mistake.number}</small></figcaption></figure>"
    )


def curves(run: Path) -> str:
    """The loss and rank-1 by epoch of a run that was trained here; empty for an imported run."""
    if not (run / "curves.png").is_file() or not Journal(run).exists():
        return ""
    shown = [
        f'<img alt="{name} by epoch" src="{data_address(picture, "png")}">'
        for name, picture in separate_curves(run).items()
    ]
    return f'<div class="curves">{"".join(shown)}</div>'


STYLE = (
    f"""
:root {{ --ink: #222; --quiet: #666; --line: #e4e4e4; --blue: {COLOURS[0]}; --orange: {COLOURS[1]}; }}
"""
    + """\
* { box-sizing: border-box; }
html { font-size: 16px; }
body { font: .95rem/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; color: var(--ink);
       background: #fff; max-width: 62rem; margin: 2.5rem auto 4rem; padding: 0 1.5rem; }
h1 { font-size: 1.55rem; font-weight: 600; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.4rem 0 .5rem; overflow-wrap: anywhere; }
.sub, .note { color: var(--quiet); overflow-wrap: anywhere; }
.sub { margin: .25rem 0 1.8rem; }
.note { margin: 0 0 .7rem; font-size: .9rem; }
.figures { display: flex; gap: 1rem 2.4rem; flex-wrap: wrap; }
.figures i { font-style: normal; font-weight: 600; }
.figures b { display: block; font-size: 2rem; font-weight: 600; line-height: 1.25; color: var(--blue);
       font-variant-numeric: tabular-nums; }
.figures span { display: block; color: var(--quiet); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.rows, .pairs { width: 100%; font-size: .92rem; }
.rows th, .rows td, .pairs td { border-top: 1px solid var(--line); padding: .28rem .8rem .28rem 0; text-align: left;
       vertical-align: top; }
.rows td { max-width: 16rem; overflow-wrap: break-word; } .pairs td { overflow-wrap: anywhere; }
.rows th { font-weight: 600; color: var(--quiet); border-top: 0; vertical-align: bottom; }
.rows .number { text-align: right; white-space: nowrap; width: 1%; }
.wide td.number { white-space: normal; width: auto; }
.rows tr > :last-child { padding-right: 0; }
.pairs td:first-child { color: var(--quiet); white-space: nowrap; width: 14rem; }
.beside { display: flex; flex-wrap: wrap; gap: 0 3rem; }
.beside section { flex: 1 1 min-content; min-width: min(22rem, 100%); max-width: 100%; }
.square { font-size: .8rem; }
.square th { font-weight: 400; color: var(--quiet); text-align: right; padding: 0 .5rem 0 0; white-space: nowrap;
       max-width: 11rem; overflow: hidden; text-overflow: ellipsis; }
.square thead th { vertical-align: bottom; text-align: left; padding: 0 0 .35rem; height: 1rem; }
.square thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11rem; overflow: hidden;
       text-overflow: ellipsis; display: inline-block; line-height: 1; }
.square tbody td { width: 2.3rem; min-width: 2.3rem; height: 2.3rem; padding: 0; text-align: center;
       border: 1px solid #f0f0f0; }
.square .dark { color: #fff; }
.fine { font-size: .68rem; } .fine tbody td { width: .95rem; min-width: .95rem; height: .95rem; }
.plot { display: block; width: 100%; max-width: 29rem; font-size: 11px; }
.plot text { fill: var(--quiet); } .plot .small { font-size: 10px; }
.plot .grid { stroke: var(--line); fill: none; } .plot .ideal { stroke: #999; stroke-dasharray: 4 4; }
.plot .bar { fill: #bcd2ea; } .plot .count { fill: #d6d6d6; }
.plot .dot { fill: var(--blue); } .plot .whisker { stroke: var(--blue); stroke-width: 1.5; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); gap: 1.1rem .9rem; }
.mistakes figure { margin: 0; break-inside: avoid; }
.mistakes img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 3px;
       background: #f3f3f3; }
.mistakes .coarse { image-rendering: pixelated; }
.mistakes figcaption { font-size: .84rem; line-height: 1.35; margin-top: .35rem; overflow-wrap: anywhere; }
.mistakes b { color: var(--orange); font-weight: 600; } small { color: var(--quiet); }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.curves img { flex: 1 1 20rem; min-width: 0; max-width: 100%; }
pre { background: #f7f7f7; padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem;
       line-height: 1.4; columns: 3 16rem; }
@media (max-width: 40rem) {
  body { margin-top: 1.5rem; padding: 0 1rem; }
  .pairs td:first-child { white-space: normal; width: 8rem; }
}
@page { margin: 16mm 14mm; }
@media print {
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  html { font-size: 11px; }
  body { max-width: none; margin: 0; padding: 0; }
  h2 { break-after: avoid; margin-top: 1.8rem; }
  .note { break-after: avoid; }
  tr, .figures, .beside section, .plot, .curves { break-inside: avoid; }
  .scroll { overflow: visible; }
  thead { display: table-header-group; }
  .mistakes { grid-template-columns: repeat(8, 1fr); }
  pre { background: none; padding: 0; columns: 3; }
}
"""
)
