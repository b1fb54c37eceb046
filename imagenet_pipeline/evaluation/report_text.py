"""The report as Markdown: the tables of the page, without its pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from imagenet_pipeline.errors import printable
from imagenet_pipeline.evaluation.report_tables import (
    Table,
    calibration_table,
    class_table,
    comparison_table,
    confused_table,
    dependence_table,
    headlines,
    mistake_table,
    sources,
    title,
)
from imagenet_pipeline.evaluation.results import Findings

_MARKS = re.compile(r"([\\`*_\[\]|~$])")


def as_markdown(findings: Findings) -> str:
    """The whole report; what names hold is shown, never obeyed."""
    examination = findings.examination
    figures = [[one.name, one.value, one.interval, one.basis] for one in headlines(findings)]
    tables = [Table("", ["figure", "", "95 % interval", "of"], figures, 1)]
    if len(findings.own) > 1:
        tables.append(comparison_table(findings))
    tables += [calibration_table(findings), confused_table(findings), class_table(findings), mistake_table(findings)]
    tables += [dependence_table(examination, member) for member in examination.evaluations]
    head = [f"# {plain(title(examination))}", plain(sources(examination)), *map(plain, examination.notes)]
    return "\n\n".join([*head, *(_table(one) for one in tables if one.rows)]) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line, also in a table."""
    escaped = _MARKS.sub(r"\\\1", printable(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(table: Table) -> str:
    parts = [f"## {plain(table.heading)}"] if table.heading else []
    parts += [plain(table.note)] if table.note else []
    rule = "|" + " --- |" * table.words + " ---: |" * (len(table.header) - table.words)
    lines = [_line(table.header), rule, *map(_line, table.rows)]
    return "\n\n".join([*parts, "\n".join(lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(plain, cells))} |"
