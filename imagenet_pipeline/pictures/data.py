"""How many images each class has in each split, as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.drawing import require_png
from imagenet_pipeline.records.lettering import written_out
from imagenet_pipeline.records.manifest import DataSet, read_data_set
from imagenet_pipeline.records.reader import RecordSet

SPLIT_COLOURS = {"train": "#1f5fa8", "val": "#c2571a", "test": "#2e7d4f"}
BARS_LIMIT = 60
"""Classes that get a bar with a name each; more are drawn as a curve."""
_NAMED = 5
_NAME_LETTERS = 34

Counts = NDArray[np.int64]


def count_classes(folder: Path) -> dict[str, Counts]:
    """Images of each class, int64 [classes], by split; read from the records' own labels.

    Raises BadInput where there is no data set.
    """
    data = read_data_set(folder)
    counts = {}
    for split in data.counts:
        with RecordSet.open(folder, split) as records:
            labels = records.first_labels().astype(np.int64)
        counts[split] = np.bincount(labels, minlength=len(data.classes))
    return counts


def draw_classes(folder: Path, out: Path) -> dict[str, Counts]:
    """Draw `out` (PNG): a bar a class and split, or for many classes their counts in falling order; the counts.

    Of many classes the largest and the smallest are named. Raises BadInput as `count_classes` does.
    """
    require_png(out)
    counts = count_classes(folder)
    data = read_data_set(folder)
    few = len(data.classes) <= BARS_LIMIT
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(data.classes) if few else 5.2), layout="constrained")
    axes = figure.subplots()
    (_draw_bars if few else _draw_curves)(axes, data, counts)
    totals = ", ".join(f"{count:,} {split}" for split, count in data.counts.items())
    axes.set_title(f"images a class: {totals}; {len(data.classes):,} classes", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    files.write_whole(out, image.getvalue())
    return counts


def _draw_bars(axes: Axes, data: DataSet, counts: dict[str, Counts]) -> None:
    """Splits end to end, one row a class, the numbers behind."""
    rows, left = np.arange(len(data.classes)), np.zeros(len(data.classes), np.int64)
    for split, each in counts.items():
        axes.barh(rows, each, left=left, height=0.7, color=SPLIT_COLOURS[split], label=split)
        left = left + each
    for row in rows:
        numbers = " + ".join(f"{each[row]:,}" for each in counts.values())
        axes.annotate(
            numbers, (left[row], row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5,
            color="#666666",
        )  # fmt: skip
    axes.set_yticks(rows, [_name(data, row) for row in rows], fontsize=9, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.14)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(left=False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _draw_curves(axes: Axes, data: DataSet, counts: dict[str, Counts]) -> None:
    """Each split's counts over the classes, in falling order of the first split's."""
    first = next(iter(counts.values()))
    order = np.argsort(-first, kind="stable")
    for split, each in counts.items():
        axes.step(range(len(order)), each[order], where="mid", color=SPLIT_COLOURS[split], label=split, linewidth=1.2)
    axes.set_xlabel(f"classes, in falling order of {next(iter(counts))} images")
    axes.set_ylim(bottom=0, top=1.4 * max(each.max() for each in counts.values()))
    axes.margins(x=0.01)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    for side, heading, some in (("left", "most", order[:_NAMED]), ("right", "fewest", order[: -_NAMED - 1 : -1])):
        lines = [f"{first[label]:,}  {_name(data, label)}" for label in some]
        place = 0.02 if side == "left" else 0.98
        axes.text(
            place, 0.98, "\n".join([heading, *lines]), transform=axes.transAxes, ha=side, va="top", fontsize=8.5,
            color="#444444", parse_math=False,
        )  # fmt: skip


def _name(data: DataSet, label: int) -> str:
    name = written_out(data.classes.names[label])
    return name if len(name) <= _NAME_LETTERS else name[: _NAME_LETTERS - 1].rstrip() + "…"
