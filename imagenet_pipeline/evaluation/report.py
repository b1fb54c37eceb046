"""A report in three forms, of the same figures: one self-contained page, Markdown, and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.report_pictures import confusion_square, curves, mistakes, reliability, text
from imagenet_pipeline.evaluation.report_style import STYLE
from imagenet_pipeline.evaluation.report_tables import (
    MANY_CLASSES,
    Headline,
    Table,
    calibration_note,
    class_table,
    comparison_table,
    confused_table,
    dependence_table,
    headlines,
    sources,
    title,
)
from imagenet_pipeline.evaluation.report_text import as_markdown
from imagenet_pipeline.evaluation.results import Findings, as_json

_GENERATOR = '<meta name="generator" content="imagenet_pipeline">'
_DASH = "\N{EN DASH}"
_WIDE = 7
"""A table of more columns breaks the lines of its numbers."""


def require_page(out: Path, own: bool = False) -> None:
    """Raise BadRecipe for a page of another ending, and where a file is there that is no earlier report.

    What has the name of a run's `own` report is one.
    """
    if out.suffix != ".html":
        advice = "Markdown and JSON are written beside it"
        raise BadRecipe("a report is a page", where=out, expected="a name that ends in .html", advice=advice)
    there = [path for path in (out, out.with_suffix(".md"), out.with_suffix(".json")) if path.exists()]
    if there and not (own or _is_report(out)):
        advice = "a report is NAME.html, .md and .json: name another --report"
        raise BadRecipe("is there already, and is of no earlier report", where=there[0], advice=advice)


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
    name = text(title(examination))
    notes = "".join(f"<p>{text(note)}.</p>" for note in examination.notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"{_GENERATOR}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head><body>"
        f'<h1>{name}</h1><p class="sub">{text(sources(examination))}</p>'
        f'<div class="figures">{"".join(map(_headline, headlines(findings)))}</div>{notes}'
        f"{''.join(_sections(findings))}</body></html>\n"
    )


def _sections(findings: Findings) -> Iterator[str]:
    examination = findings.examination
    if len(findings.own) > 1:
        yield _table(comparison_table(findings))
    confused = _table(confused_table(findings)) if findings.mistakes else ""
    classes = _table(class_table(findings))
    if len(findings.classes) <= MANY_CLASSES:
        yield _beside(_confusions(findings), confused)
        yield _beside(classes, _calibration(findings))
    else:
        yield _beside(confused, classes)
        yield _calibration(findings)
    yield _section("Surest mistakes", mistakes(findings) if findings.mistakes else "<p>There is none.</p>")
    runs = list(dict.fromkeys(Path(member.run) for member in examination.evaluations))
    pictures = [f'<p class="note">{text(str(run))}</p>{curve}' for run in runs if (curve := curves(run))]
    if pictures:
        yield _section("Training", "".join(pictures))
    for member in examination.evaluations:
        yield _table(dependence_table(examination, member))
    for run in runs:
        recipe = (run / "recipe.toml").read_text(encoding="utf-8")
        yield _section(f"Recipe of {text(str(run))}", f"<pre>{_text_block(recipe)}</pre>")


def _confusions(findings: Findings) -> str:
    note = "A row a class, a column what it was taken for; shaded by the share of the row."
    return _section("Confusions", f'<p class="note">{note}</p>{confusion_square(findings)}')


def _calibration(findings: Findings) -> str:
    note = f"{calibration_note(findings)} Bars: the share that is right, with 95 % whiskers; below: images a bin."
    return _section("Calibration", f'<p class="note">{note}</p>{reliability(findings.figures.calibration)}')


def _beside(first: str, second: str) -> str:
    """Two sections, one beside the other where there is room."""
    return f'<div class="beside">{first}{second}</div>'


def _text_block(value: str) -> str:
    """Lines of text that HTML shows as they are."""
    return "\n".join(map(text, value.splitlines()))


def _headline(one: Headline) -> str:
    interval = f"<span>95 %: {text(one.interval)}</span>" if one.interval else ""
    return f"<div><i>{text(one.name)}</i><b>{text(one.value)}</b>{interval}<span>{text(one.basis)}</span></div>"


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>{content}</section>"


def _table(table: Table) -> str:
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    titled = any(table.header)
    head = f"<thead>{_row(table.header, table.words, 'th')}</thead>" if titled else ""
    body = "".join(_row(row, table.words, "td") for row in table.rows)
    kind = ("rows wide" if len(table.header) > _WIDE else "rows") if titled else "pairs"
    whole = f'<table class="{kind}">{head}<tbody>{body}</tbody></table>'
    return _section(text(table.heading), f'{note}<div class="scroll">{whole}</div>')


def _row(cells: Sequence[str], words: int, tag: str) -> str:
    written = [f"<{tag}>{text(cell)}</{tag}>" for cell in cells[:words]]
    # An interval stays on one line.
    numbers = [
        text(cell).replace(" to ", "&nbsp;to&nbsp;").replace(_DASH, f"&NoBreak;{_DASH}&NoBreak;")
        for cell in cells[words:]
    ]
    written += [f'<{tag} class="number">{number}</{tag}>' for number in numbers]
    return f"<tr>{''.join(written)}</tr>"
