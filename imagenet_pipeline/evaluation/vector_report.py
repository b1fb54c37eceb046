"""The report of an evaluation of label vectors: a page, Markdown and JSON, as that of ranks, and the lines of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import counted
from imagenet_pipeline.evaluation.evaluate import Crops
from imagenet_pipeline.evaluation.report import page_of, recipe_section, section, table_section, text, training_section
from imagenet_pipeline.evaluation.report_tables import (
    Headline,
    Table,
    dependence_rows,
    markdown_of,
    mean_span,
    plain,
    seen,
)
from imagenet_pipeline.evaluation.stats import Mean, Reals
from imagenet_pipeline.evaluation.vectors import (
    VectorEvaluation,
    VectorFindings,
    evaluate_vectors,
    label_kind_of,
    require_alone,
)

LOSSES = {"binary_cross_entropy": "binary cross-entropy, nats", "mae": "absolute", "mse": "squared", "huber": "Huber"}
MOST_POINTS = 2000
"""Records of a scatter picture, evenly out of more."""
SCATTERS = 12
_SIDE, _LEFT, _TOP = 300, 62, 8
"""Sizes of a scatter picture in its own units: side of the square, margins left and above."""


def report_where_vectors(
    runs: Sequence[Path],
    checkpoints: Sequence[str],
    split: str,
    crops: Crops,
    records: Path | None,
    overrides: dict[str, object],
    real: Path | None,
    page: Path | None,
) -> VectorEvaluation | None:
    """Evaluate what `compare.examine` is asked where its labels are vectors, and write the report; None elsewhere."""
    if label_kind_of(runs[0], checkpoints[0]) == "class":
        return None
    require_alone(runs, checkpoints, real)
    findings = evaluate_vectors(runs[0], checkpoints[0], split, crops, records, overrides)
    if page is not None:
        write_vector_report(findings, page)
    return dataclasses.replace(findings.evaluation, report=page)


def write_vector_report(findings: VectorFindings, out: Path) -> Path:
    """Write `out`, an HTML file with its pictures inside, and beside it the same as .md and .json."""
    files.write_whole(out, page_of(_head(findings.evaluation), headlines(findings.evaluation), (), _sections(findings)))
    files.write_whole(out.with_suffix(".md"), _markdown(findings))
    files.write_json(out.with_suffix(".json"), dataclasses.asdict(findings.evaluation) | {"report": str(out)})
    return out


def lines_of(evaluation: VectorEvaluation) -> list[str]:
    """The figures in lines of text."""
    images = counted(evaluation.images, f"{evaluation.split} image")
    lines = [f"{evaluation.network}, {evaluation.checkpoint}: {images}, {seen(evaluation.crops)}"]
    for figure in headlines(evaluation):
        beside = ", ".join(filter(None, (figure.basis, figure.interval and f"95 %: {figure.interval}")))
        lines.append(f"{figure.name:<14} {figure.value}" + (f"  ({beside})" if beside else ""))
    table = label_table(evaluation)
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    for row in (table.header, *table.rows):
        cells = [cell.ljust(width) if at < table.words else cell.rjust(width)
                 for at, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return lines


def headlines(evaluation: VectorEvaluation) -> list[Headline]:
    """The figures of all labels together."""
    figures = evaluation.figures
    span = mean_span(Mean(evaluation.loss, evaluation.loss_interval))
    loss = Headline("loss", f"{evaluation.loss:.4g}", span, LOSSES[evaluation.loss_kind])
    if evaluation.label_kind == "number":
        names = {"mae": "MAE", "rmse": "RMSE", "r2": "R2"}
        basis = {"r2": "0: the mean for all; 1: no error"}
        said = [Headline(names[key], f"{value:.4g}", "", basis.get(key, "")) for key, value in figures.items()]
        return [*said, loss]
    names = {"mean_average_precision": "mAP", "f1": "F1", "accuracy": "right", "exact": "all right"}
    basis = {
        "mean_average_precision": f"chance: {figures['chance']:.3g} %",
        "f1": f"precision {figures['precision']:.2f} %, recall {figures['recall']:.2f} %",
        "accuracy": "of all decisions",
        "exact": "images with no wrong one",
    }
    return [*(Headline(name, f"{figures[key]:.2f} %", "", basis[key]) for key, name in names.items()), loss]


def label_table(evaluation: VectorEvaluation) -> Table:
    """The figures label by label."""
    rows = evaluation.per_label
    if evaluation.label_kind == "number":
        columns = {"mean": "mean", "deviation": "deviation", "MAE": "mae", "RMSE": "rmse", "R2": "r2"}
        cells = [[row["name"], *(_cell(row[key], ".4g") for key in columns.values())] for row in rows]
        return Table("Numbers", ["number", *columns], cells, 1)
    columns = {"AP": "average_precision", "precision": "precision", "recall": "recall", "F1": "f1"}
    cells = [
        [row["name"], f"{row['positives']:,}", *(_cell(row[key], ".1f") for key in columns.values())] for row in rows
    ]
    note = "Percent; AP: average precision. A class is said where its probability is above 1/2."
    return Table("Classes", ["class", "positives", *columns], cells, 1, note)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _head(evaluation: VectorEvaluation) -> tuple[str, str]:
    images = counted(evaluation.images, f"{evaluation.split} image")
    below = f"{evaluation.checkpoint} of {evaluation.run} \N{MIDDLE DOT} {seen(evaluation.crops)}"
    return f"{evaluation.network} on {images}", below


def _dependence(findings: VectorFindings) -> Table:
    return Table("What the figures depend on", ["", ""], dependence_rows(findings.evaluation, findings.data.name), 2)


def _sections(findings: VectorFindings) -> Iterator[str]:
    evaluation = findings.evaluation
    yield table_section(label_table(evaluation))
    if evaluation.label_kind == "number":
        shown = [
            f"<figure>{scatter(findings.outcomes.targets[:, at], findings.outcomes.outputs[:, at], name)}</figure>"
            for at, name in enumerate(findings.table.names[:SCATTERS])
        ]
        note = '<p class="note">A dot a record; dashed: said as it is.</p>'
        yield section("Said and true", f'{note}<div class="beside">{"".join(shown)}</div>')
    run = Path(evaluation.run)
    yield training_section([run])
    yield table_section(_dependence(findings))
    yield recipe_section(run)


def _markdown(findings: VectorFindings) -> str:
    evaluation = findings.evaluation
    name, below = _head(evaluation)
    figures = [[line.name, line.value, line.interval, line.basis] for line in headlines(evaluation)]
    tables = [Table("", ["figure", "", "95 % interval", ""], figures, 1), label_table(evaluation)]
    return markdown_of([f"# {plain(name)}", plain(below)], [*tables, _dependence(findings)])


def scatter(truths: Reals, said: Reals, name: str) -> str:
    """A picture (SVG) of a number as the network says it over what it is, on equal scales."""
    chosen = np.unique(np.linspace(0, len(truths) - 1, MOST_POINTS).round().astype(int))
    low, high = (float(each) for each in (min(truths.min(), said.min()), max(truths.max(), said.max())))
    span = high - low or 1.0
    bottom, right = _TOP + _SIDE, _LEFT + _SIDE

    def at(value: float) -> float:
        return (value - low) / span * _SIDE

    parts = [f'<path class="ideal" d="M{_LEFT} {bottom}L{right} {_TOP}"/>']
    for share in (0.0, 0.5, 1.0):
        tick = f"{low + share * span:.3g}"
        across, up = _LEFT + share * _SIDE, bottom - share * _SIDE
        parts.append(f'<path class="grid" d="M{_LEFT} {up:.1f}H{right}M{across:.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{tick}</text>')
        parts.append(f'<text x="{across:.1f}" y="{bottom + 15}" text-anchor="middle">{tick}</text>')
    pairs = zip(truths[chosen].tolist(), said[chosen].tolist(), strict=True)
    parts += [
        f'<circle class="dot" cx="{_LEFT + at(true):.1f}" cy="{bottom - at(guess):.1f}" r="2" opacity=".5"/>'
        for true, guess in pairs
    ]
    middle = _TOP + _SIDE / 2
    parts.append(f'<text x="{_LEFT + _SIDE / 2}" y="{bottom + 34}" text-anchor="middle">{text(name)}, true</text>')
    parts.append(f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">said</text>')
    size = f"{right + 14} {bottom + 42}"
    label = text(f"{name}: said over true")
    return f'<svg class="plot" viewBox="0 0 {size}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
