"""Pictures of a data set: images of each class in each split, and sizes of the stored images in pixels and bytes.

For the sizes, headers alone are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from imagenet_pipeline import files
from imagenet_pipeline.drawing import COLOURS, contact_sheet, png, require_png, tile, write_png, written_out
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image import Header, Rejected, decode_rgb, read_header
from imagenet_pipeline.records.inspect import count_labels, label_vectors, within, words_of
from imagenet_pipeline.records.lone import read_records
from imagenet_pipeline.records.manifest import DataSet, is_data_set, read_data_set
from imagenet_pipeline.records.plan import SPLITS
from imagenet_pipeline.records.reader import RecordSet

SPLIT_COLOURS = dict(zip(SPLITS, COLOURS, strict=False))
BARS_LIMIT = 60
"""Classes that get a bar with a name each; more are drawn as a curve."""
_NAMED = 5
_NAME_LETTERS = 34

Counts = NDArray[np.int64]
FIRST_FORTY = range(40)
MONTAGE_LIMIT = 400
"""Records on a sheet."""
_MONTAGE_COLUMNS = 8
_MONTAGE_SIDE = 160
"""Side of a tile's image, pixels."""


def montage(path: Path, out: Path, records: range = FIRST_FORTY, split: str | None = None) -> list[int]:
    """Draw records (by position) with number and class name on a sheet, eight to a row; return the positions drawn.

    `path` is a data set folder (its first split unless `split` is given) or a `.rec` file. Raises BadInput where there
    is nothing to draw, or more than 400, BadRecipe for a name that is no PNG's.
    """
    require_png(out)
    data = read_data_set(path) if is_data_set(path) else None
    with RecordSet.of(data, split or next(iter(data.counts))) if data else RecordSet.open(path) as found:
        positions = list(within(records, found))
        if not 1 <= len(positions) <= MONTAGE_LIMIT:
            expected = f"1..{MONTAGE_LIMIT}"
            raise BadInput(
                "the number of records to draw is out of range", where=path, expected=expected, found=len(positions)
            )
        tiles = [_tile(found, position, data.classes if data else None) for position in positions]
    write_png(contact_sheet(tiles, min(_MONTAGE_COLUMNS, len(tiles)), ""), out)
    return positions


def _tile(found: RecordSet, position: int, classes: ClassTable | None) -> Image.Image:
    """An image with the record's number and class below, or all its labels; of several that have no name none."""
    record = found.read(position)
    name = words_of(record.labels, classes)
    words = [str(record.number), name or (f"{record.labels[0]:g}" if len(record.labels) == 1 else "")]
    try:
        pixels = decode_rgb(record.image)
    except BadInput:
        pixels = np.full((1, 1, 3), 255, np.uint8)
        words.append("no image")
    return tile(pixels, _MONTAGE_SIDE, [" ".join(filter(None, words))])


def count_classes(folder: Path) -> dict[str, Counts]:
    """Images of each class, int64 [classes], by split; from its list, or the records' own labels where it is not whole.

    Of several classes an image each counts. Raises BadInput where there is neither a data set nor a record file, and
    for labels that are no classes.
    """
    data = read_records(folder)
    if data.classes.label_kind == "number":
        raise BadInput("the labels are numbers, not classes to be counted", where=data.name)
    counts: dict[str, Counts] = {}
    if data.classes.label_kind == "classes":
        return {split: np.count_nonzero(label_vectors(data, split), axis=0).astype(np.int64) for split in data.counts}
    for split in data.counts:
        with RecordSet.of(data, split) as records:
            labelled = count_labels(records, data, split)
        labels = np.array([*labelled], np.int64)
        counts[split] = np.bincount(labels, [*labelled.values()], len(data.classes)).astype(np.int64)
    return counts


def draw_classes(folder: Path, out: Path) -> dict[str, Counts]:
    """Draw `out` (PNG): a bar a class and split, or for many classes their counts in falling order; the counts.

    Of many classes the largest and the smallest are named. Raises BadInput as `count_classes` does.
    """
    require_png(out)
    counts = count_classes(folder)
    data = read_records(folder)
    few = len(data.classes) <= BARS_LIMIT
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(data.classes) if few else 5.2), layout="constrained")
    axes = figure.subplots()
    (_draw_bars if few else _draw_curves)(axes, data, counts)
    totals = ", ".join(f"{count:,} {split}" for split, count in data.counts.items())
    axes.set_title(f"images a class: {totals}; {len(data.classes):,} classes", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    files.write_whole(out, png(figure))
    return counts


def _draw_bars(axes: Axes, data: DataSet, counts: dict[str, Counts]) -> None:
    """Draw the splits end to end, a row a class, the numbers behind."""
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
        x = 0.02 if side == "left" else 0.98
        axes.text(
            x, 0.98, "\n".join([heading, *lines]), transform=axes.transAxes, ha=side, va="top", fontsize=8.5,
            color="#444444", parse_math=False,
        )  # fmt: skip


def _name(data: DataSet, label: int) -> str:
    name = written_out(data.classes.names[label])
    return name if len(name) <= _NAME_LETTERS else name[: _NAME_LETTERS - 1].rstrip() + "…"


HEAD_BYTES = 4096
"""Bytes read of a record at first; enough for the header of nearly any."""
_SHOW_EVERY = 256
_FEW_IMAGES = 100
"""Images of a split from which on shares say more than counts."""
_RING_POINTS = 2.5
"""Extra width of a ring over the mark it is drawn around, in points."""
_LINE_POINTS = 1.4
"""Width of the last line, and the extra width of each line over the line drawn on top of it."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a split's images: widths, heights and bytes, int64 [n] each, and the count of unreadable headers."""

    widths: Numbers
    heights: Numbers
    bytes: Numbers
    unreadable: int


def read_sizes(folder: Path, show: Callable[[int, int], None]) -> dict[str, Sizes]:
    """The sizes of all images of a data set or record file by split; `show` is called with (done, of all).

    Memory is 24 bytes an image. Raises BadInput where there is no data set, Damaged naming a record.
    """
    data = read_records(folder)
    counts, before = data.counts, 0
    sizes = {}
    for split, count in counts.items():
        with RecordSet.of(data, split) as records:
            table = np.zeros((count, 3), np.int64)
            for position in range(count):
                table[position] = _size(records, position)
                if position % _SHOW_EVERY == 0:
                    show(before + position, sum(counts.values()))
        read = table[table[:, 0] > 0]
        sizes[split] = Sizes(read[:, 0], read[:, 1], read[:, 2], count - len(read))
        before += count
    return sizes


def _size(records: RecordSet, position: int) -> tuple[int, int, int]:
    """Width, height (0 where the header cannot be read) and bytes of an image."""
    head, size_bytes = records.image_head(position, HEAD_BYTES)
    try:
        header = _header(head) or read_header(records.read(position).image)
    except Rejected:
        return 0, 0, size_bytes
    return header.width, header.height, size_bytes


def _header(head: bytes) -> Header | None:
    """The header of an image out of its first bytes; None where it is longer, as with a preview in it."""
    try:
        return read_header(head)
    except Rejected:
        return None


def draw_sizes(folder: Path, sizes: dict[str, Sizes], out: Path) -> None:
    """Draw `out` (PNG): width by height, the shorter and longer edge, and the bytes. Raises BadInput without images."""
    require_png(out)
    shown = {split: each for split, each in sizes.items() if len(each.widths)}
    if not shown:
        raise BadInput("the data set has no image whose header can be read", where=folder)
    figure = Figure(figsize=(13.2, 8.4), layout="constrained")
    (plane, weights), (short, long) = figure.subplots(2, 2)
    _draw_plane(plane, shown)
    _draw_spread(weights, {split: each.bytes / 1000 for split, each in shown.items()}, "file size, kB")
    edges = {split: np.sort([each.widths, each.heights], axis=0) for split, each in shown.items()}
    _draw_spread(short, {split: shorter for split, (shorter, _) in edges.items()}, "shorter edge, pixels")
    _draw_spread(long, {split: longer for split, (_, longer) in edges.items()}, "longer edge, pixels")
    for axes in (plane, weights, short, long):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    key = [Line2D([], [], color=SPLIT_COLOURS[split], marker="o", label=split) for split in shown]
    figure.legend(handles=key, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(_title(sizes), x=0.01, ha="left", fontsize=11)
    files.write_whole(out, png(figure))


def _draw_plane(axes: Axes, shown: dict[str, Sizes]) -> None:
    """A dot for each size there is in the first split, rings for the others; larger where there are more images."""
    for number, (split, each) in enumerate(shown.items()):
        pairs, counts = np.unique(np.column_stack([each.widths, each.heights]), axis=0, return_counts=True)
        across = np.sqrt(12 + 60 * np.log1p(counts) / np.log1p(max(counts.max(), 100))) + _RING_POINTS * number
        widths, heights = pairs.T
        if number == 0:
            axes.scatter(widths, heights, across**2, color=SPLIT_COLOURS[split], alpha=0.35, linewidths=0)
        else:
            axes.scatter(widths, heights, across**2, color="none", edgecolors=SPLIT_COLOURS[split], linewidths=1)
    axes.set_title("images by width and height", loc="left", fontsize=10)
    axes.set_xlabel("width, pixels")
    axes.set_ylabel("height, pixels")
    axes.margins(0.08)


def _draw_spread(axes: Axes, by_split: dict[str, NDArray[np.float64]], quantity: str) -> None:
    """The images of a split in each bin, drawn so that all splits are seen where they coincide.

    Shares of the split; where every split has few images their counts.
    """
    bins = bins_of(np.concatenate([*by_split.values()]), max(map(len, by_split.values())), "pixels" in quantity)
    counted = max(map(len, by_split.values())) < _FEW_IMAGES
    for number, (split, values) in enumerate(by_split.items()):
        counts, _ = np.histogram(values, bins)
        shares, colour = counts / (1 if counted else len(values)), SPLIT_COLOURS[split]
        if number == 0:
            axes.stairs(shares, bins, color=colour, alpha=0.35, fill=True)
        else:
            axes.stairs(shares, bins, color=colour, linewidth=_LINE_POINTS * (len(by_split) - number))
    if counted:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
    kind = "images" if counted else "share of images"
    axes.set_title(f"{kind} by {quantity.partition(',')[0]}", loc="left", fontsize=10)
    axes.set_xlabel(quantity)


def bins_of(values: NDArray[Any], images: int, whole: bool) -> NDArray[np.float64]:
    """Edges of 5 to 40 equal bins for a split of so many images, by Rice's rule, 2 n^(1/3) (Lane 2013).

    Bins of whole numbers hold equally many of them, one at least. A single size leaves no range to divide: it is the
    middle one of a few.
    """
    low, high = float(values.min()), float(values.max())
    count = min(40, max(5, math.ceil(2 * images ** (1 / 3))))
    if high - low < 1:
        width = max(1.0, round(0.02 * low)) if whole else max(1.0, 0.02 * low)
        return low + width * (np.arange(8) - 3.5)
    width = max(1.0, math.ceil((high - low + 1) / count)) if whole else (high - low) / count
    first = low - 0.5 if whole else low
    edges: NDArray[np.float64] = first + width * np.arange(1 + max(1, math.ceil((high - first) / width - 1e-9)))
    return edges


def _title(sizes: dict[str, Sizes]) -> str:
    said = "stored images: " + ", ".join(
        f"{len(each.widths) + each.unreadable:,} {split}" for split, each in sizes.items()
    )
    unreadable = sum(each.unreadable for each in sizes.values())
    return f"{said}; {unreadable:,} of them unreadable" if unreadable else said
