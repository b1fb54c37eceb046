"""Words and tables of a report as plain text, shown by the page and by the Markdown report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imagenet_pipeline.config import shown_size
from imagenet_pipeline.errors import counted, printable
from imagenet_pipeline.evaluation.compare import Ensemble, Examination
from imagenet_pipeline.evaluation.evaluate import Evaluation
from imagenet_pipeline.evaluation.results import Figures, Findings
from imagenet_pipeline.evaluation.stats import Difference, Interval, Mean, Rate

if TYPE_CHECKING:
    from imagenet_pipeline.evaluation.vectors import VectorEvaluation

LOSSES = {
    "cross_entropy": "cross-entropy, nats",
    "binary_cross_entropy": "binary cross-entropy, nats",
    "focal": "focal loss, nats",
    "hinge": "hinge loss",
}
MANY_CLASSES = 50
"""Beyond this a square of all classes cannot be read, nor a table of them all."""
SHOWN_CLASSES = SHOWN_PAIRS = 15
TOGETHER = "all, probabilities averaged"
"""The row of an ensemble."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading, and a line on how to read them; after `words` columns come those of numbers."""

    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """A figure at the top: its name, value, interval, and basis."""

    name: str
    value: str
    interval: str
    basis: str


def who(result: Evaluation | Ensemble) -> str:
    """Name a run's network and checkpoint, or the number of checkpoints together."""
    if isinstance(result, Evaluation):
        return f"{result.network}, {result.checkpoint}"
    runs = len({member.run for member in result.members})
    if runs == 1:
        return f"{len(result.members)} checkpoints together"
    among = f"checkpoints of {runs} runs" if runs < len(result.members) else "runs"
    return f"{len(result.members)} {among} together"


def title(examination: Examination) -> str:
    """The title of a report: network, number of images and split."""
    result = examination.result
    name = result.network if isinstance(result, Evaluation) else who(result)
    return f"{name} on {counted(result.images, f'{result.split} image')}"


def sources(examination: Examination) -> str:
    """Name the checkpoint, or the mean of several, and the crops."""
    first, *others = examination.evaluations
    named = "mean of their probabilities" if others else f"{first.checkpoint} of {first.run}"
    return f"{named} \N{MIDDLE DOT} {seen(examination.result.crops)}"


def seen(crops: int) -> str:
    """The crop or crops of each image that were scored, in words."""
    return "centre crop" if crops == 1 else f"{crops} crops, probabilities averaged"


def headlines(findings: Findings) -> list[Headline]:
    """The figures, each with its 95 % interval."""
    figures = findings.figures
    found = [
        _headline("rank-1", figures.rank1, f"; {findings.chance}"),
        *([_headline("rank-5", figures.rank5)] if findings.says_rank5 else []),
        Headline(
            "loss", f"{figures.loss.value:z.4f}", _mean_span(figures.loss), LOSSES[findings.examination.loss_kind]
        ),
    ]
    error = f"{100 * figures.calibration.error:.2f} %"
    found.append(Headline("calibration error", error, "", "expected, 15 bins"))
    if figures.real is not None:
        found.insert(1, _headline("ReaL rank-1", figures.real))
    return found


def comparison_table(findings: Findings) -> Table:
    """Every member beside the others, and all together."""
    rows = []
    members = findings.examination.evaluations
    for member, figures, gap in zip(members, findings.own, [None, *findings.differences], strict=False):
        names = [
            _called(member, members),
            f"{member.network}, {member.engine}, {shown_size(member.input_size)} px",
        ]
        rows.append([*names, *_figure_cells(figures, findings.says_rank5), *difference_cells(gap)])
    together = [*_figure_cells(findings.figures, findings.says_rank5), *difference_cells(findings.differences[-1])]
    rows.append([TOGETHER, "", *together])
    real = ["ReaL %"] if findings.figures.real else []
    ranks = ["rank-1 %", "rank-5 %"] if findings.says_rank5 else ["rank-1 %"]
    header = ["checkpoint", "network", *ranks, *real, "loss", "ECE %", "to the first", "p"]
    gaps = "To the first: percentage points of rank-1 on the same images, with 95 % interval; p: McNemar's exact test."
    note = f"Rank-1, {findings.chance}. {gaps}"
    return Table("Side by side", header, rows, 2, note)


def class_table(findings: Findings) -> Table:
    """Class by class, or the weakest of many."""
    classes, note = findings.classes, "Percent; rank-1 is recall."
    if len(classes) > MANY_CLASSES:
        there = [figures for figures in classes if figures.images]
        classes = sorted(there, key=lambda figures: (figures.rank1, figures.rank5))[:SHOWN_CLASSES]
        note = f"The {len(classes)} weakest of {len(there):,}, in percent; rank-1 is recall. The JSON has them all."
    columns = {"rank-1": "rank1", "rank-5": "rank5", "precision": "precision", "F1": "f1"}
    if not findings.says_rank5:
        del columns["rank-5"]
    rows = [
        [
            findings.class_name(figures.label), f"{figures.images:,}",
            *(f"{getattr(figures, name):.1f}" for name in columns.values()),
        ]
        for figures in classes
    ]  # fmt: skip
    return Table("Classes", ["class", "images", *columns], rows, 1, note)


def confused_table(findings: Findings) -> Table:
    """The pairs of classes that are mixed up most."""
    pairs = findings.confusion.most_confused(SHOWN_PAIRS)
    of_class = {figures.label: figures.images for figures in findings.classes}
    columns = pairs.true.tolist(), pairs.predicted.tolist(), pairs.images.tolist()
    rows = [
        [
            findings.class_name(true),
            findings.class_name(predicted),
            f"{images:,}",
            f"{100 * images / of_class[true]:.1f}",
        ]
        for true, predicted, images in zip(*columns, strict=True)
    ]
    return Table("Most confused", ["class", "taken for", "images", "% of the class"], rows, 2)


def in_train_table(findings: Findings) -> Table:
    """Rank-1 with and without the images that are in train, too; no rows where nobody looked, or there are none."""
    found, whole = findings.in_train, findings.figures.rank1
    rates = (
        {"all": whole, "without those in train": found.rank1_without, "those in train": found.rank1_of_them}
        if (found and found.images)
        else {}
    )
    rows = [
        [name, f"{part.images:,}", f"{part.percent:.2f}", _span(part.interval)] for name, part in rates.items() if part
    ]
    return Table("Images in train, too", ["", "images", "rank-1 %", "95 % interval"], rows, 1, in_train_note(findings))


def in_train_note(findings: Findings) -> str:
    """The number of images scored that are in train, too, in words; empty where nobody looked."""
    found = findings.in_train
    if found is None:
        return ""
    images = counted(findings.figures.rank1.images, "image")
    return (
        f"{found.images:,} of {images} in train, too, by a perceptual hash (distance <= {found.distance} of 64 bits)."
    )


def calibration_table(findings: Findings) -> Table:
    """The bins of the reliability diagram."""
    rows = [
        [
            f"{100 * part.low:.0f}\N{EN DASH}{100 * part.high:.0f}", f"{part.right.images:,}",
            f"{100 * part.confidence:.1f}", f"{part.right.percent:.1f}", _span(part.right.interval),
        ]
        for part in findings.figures.calibration.bins
    ]  # fmt: skip
    header = ["confidence %", "images", "mean confidence %", "right %", "95 % interval"]
    return Table("Calibration", header, rows, 0, calibration_note(findings))


def calibration_note(findings: Findings) -> str:
    """The expected calibration error in words."""
    return f"Expected calibration error {100 * findings.figures.calibration.error:.2f} % over 15 bins of equal width."


def mistake_table(findings: Findings) -> Table:
    """The surest wrong predictions."""
    rows = [
        [
            str(mistake.number),
            findings.class_name(mistake.label),
            findings.class_name(mistake.predicted),
            certainty(mistake.probability),
        ]
        for mistake in findings.mistakes
    ]
    return Table("Surest mistakes", ["record", "class", "predicted", "probability"], rows, 3)


def dependence_table(examination: Examination, member: Evaluation) -> Table:
    """Everything that a member's figures depend on: weights, data, recipe, versions."""
    rows = dependence_rows(member, examination.data.name)
    if examination.real is not None:
        rows.append(["ReaL labels", str(examination.real.path)])
    members = examination.evaluations
    whose = f"figures of {_called(member, members)}" if len(members) > 1 else "figures"
    return Table(f"What the {whose} depend on", ["", ""], rows, 2)


def dependence_rows(member: Evaluation | VectorEvaluation, data: str) -> list[list[str]]:
    """Name and value of all that the figures of a checkpoint on a data set depend on."""
    versions = ", ".join(f"{name} {version}" for name, version in member.versions.items())
    size, whole = member.input_size, "shorter edge" if isinstance(member.input_size, int) else "largest such window"
    crop = f"{shown_size(size)} px, {100 * member.crop_fraction:g} % of the {whole}, {seen(member.crops)}"
    return [
        ["checkpoint", f"{member.checkpoint} of {member.run}"],
        ["network", f"{member.network}, {counted(member.classes, 'class')}{_scored(member)}"],
        ["engine", f"{member.engine} on {', '.join(member.devices)}, {member.precision}"],
        ["versions", versions],
        ["input", crop],
        ["data", f"{member.split} of {data}"],
        ["weights, SHA-256", member.weights_digest],
        ["data manifest, SHA-256", member.data_digest],
        ["recipe, SHA-256", member.recipe_digest],
    ]


def _scored(member: Evaluation | VectorEvaluation) -> str:
    """Name the number of classes that were scored, where these are not all."""
    scored = getattr(member, "scored_classes", member.classes)
    return "" if scored == member.classes else f", scored on the logits of {scored:,}"


def certainty(probability: float) -> str:
    """A probability in percent; never 100 where it is not."""
    percent = 100 * probability
    return "> 99.9 %" if 99.95 <= percent < 100 else f"{percent:.1f} %"


def difference_cells(gap: Difference | None) -> list[str]:
    """The difference of rank-1 to the first member and its p-value; empty for the first itself."""
    if gap is None:
        return ["", ""]
    low, high = gap.rank1_interval
    p = "<0.001" if gap.p < 0.001 else f"{gap.p:.3f}"
    return [f"{gap.rank1:+.2f} ({low:+.2f} to {high:+.2f})", p]


def _called(member: Evaluation, members: Sequence[Evaluation]) -> str:
    return f"{member.checkpoint} of {_short(member, members)}"


def _short(member: Evaluation, members: Sequence[Evaluation]) -> str:
    """The run folder's own name, unless another run has it too."""
    name = Path(member.run).name
    alike = {other.run for other in members if Path(other.run).name == name}
    return name if len(alike) == 1 and name else member.run


def _headline(name: str, rate: Rate, beside: str = "") -> Headline:
    basis = f"{rate.hits:,} of {rate.images:,}{beside}"
    return Headline(name, f"{rate.percent:.2f} %", _span(rate.interval), basis)


def _figure_cells(figures: Figures, with_rank5: bool) -> list[str]:
    rates = [figures.rank1, *([figures.rank5] if with_rank5 else []), *([figures.real] if figures.real else [])]
    cells = [f"{rate.percent:.2f} ({_span(rate.interval)})" for rate in rates]
    return [*cells, f"{figures.loss.value:z.4f}", f"{100 * figures.calibration.error:.2f}"]


def _mean_span(found: Mean) -> str:
    return "" if found.interval is None else f"{found.interval[0]:.3f}\N{EN DASH}{found.interval[1]:.3f}"


def _span(interval: Interval) -> str:
    return f"{interval[0]:.1f}\N{EN DASH}{interval[1]:.1f}"


_MARKS = re.compile(r"([\\`*_\[\]|~$])")


def as_markdown(findings: Findings) -> str:
    """The whole report; what names hold is shown, never obeyed."""
    examination = findings.examination
    figures = [[line.name, line.value, line.interval, line.basis] for line in headlines(findings)]
    tables = [Table("", ["figure", "", "95 % interval", "of"], figures, 1)]
    if len(findings.own) > 1:
        tables.append(comparison_table(findings))
    tables += [
        in_train_table(findings),
        calibration_table(findings),
        confused_table(findings),
        class_table(findings),
        mistake_table(findings),
    ]
    tables += [dependence_table(examination, member) for member in examination.evaluations]
    head = [f"# {plain(title(examination))}", plain(sources(examination)), *map(plain, examination.notes)]
    return markdown_of(head, tables)


def markdown_of(head: Sequence[str], tables: Sequence[Table]) -> str:
    """Paragraphs, of Markdown, and below them those of the tables that have rows."""
    return "\n\n".join([*head, *(_table(table) for table in tables if table.rows)]) + "\n"


def plain(text: str) -> str:
    """Escape text so that Markdown shows it as it is, on a single line, also in a table."""
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
