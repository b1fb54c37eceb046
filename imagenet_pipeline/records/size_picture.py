"""How large the stored images are, in pixels and bytes, as a picture; headers alone are read."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.class_picture import SPLIT_COLOURS
from imagenet_pipeline.records.contact_sheet import require_png
from imagenet_pipeline.records.image import Header, Rejected, read_header
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet

HEAD_BYTES = 4096
"""What is read of a record at first; enough for the header of nearly any."""
_SHOW_EVERY = 256

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """Of the images of one split: widths, heights and bytes, int64 [n] each, and how many headers cannot be read."""

    widths: Numbers
    heights: Numbers
    bytes: Numbers
    unreadable: int


def read_sizes(folder: Path, show: Callable[[int, int], None]) -> dict[str, Sizes]:
    """The sizes of all images of a data set by split; `show` is told (done, of all).

    Memory is 24 bytes an image. Raises BadInput where there is no data set, Damaged naming a record.
    """
    counts, before = read_data_set(folder).counts, 0
    sizes = {}
    for split, count in counts.items():
        with RecordSet.open(folder, split) as records:
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
    """Width, height (0 where the header cannot be read) and bytes of one image."""
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
        raise BadInput("there is no image whose header can be read", where=folder)
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    plane, edges, weights = figure.subplots(1, 3)
    _draw_plane(plane, shown)
    shorter = {split: np.minimum(each.widths, each.heights) for split, each in shown.items()}
    longer = {split: np.maximum(each.widths, each.heights) for split, each in shown.items()}
    _draw_spread(edges, {"shorter": shorter, "longer": longer}, "shorter edge (solid) and longer (dashed), pixels")
    _draw_spread(weights, {"bytes": {split: each.bytes / 1000 for split, each in shown.items()}}, "file size, kB")
    for axes in (edges, weights):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
    for axes in (plane, edges, weights):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    key = [Line2D([], [], color=SPLIT_COLOURS[split], marker="o", label=split) for split in shown]
    figure.legend(handles=key, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(_told(sizes), x=0.01, ha="left", fontsize=11)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    files.write_whole(out, image.getvalue())


def _draw_plane(axes: Axes, shown: dict[str, Sizes]) -> None:
    """A dot for each size there is, larger where there are more images of it."""
    for split, each in shown.items():
        pairs, counts = np.unique(np.column_stack([each.widths, each.heights]), axis=0, return_counts=True)
        area = 12 + 60 * np.log1p(counts) / np.log1p(max(counts.max(), 100))
        axes.scatter(pairs[:, 0], pairs[:, 1], s=area, color=SPLIT_COLOURS[split], alpha=0.35, linewidths=0)
    axes.set_title("height over width, pixels", loc="left", fontsize=10)
    axes.margins(0.08)


def _draw_spread(axes: Axes, quantities: dict[str, dict[str, NDArray[np.float64]]], title: str) -> None:
    """The share of a split's images in each of 40 bins; of two quantities the second is dashed."""
    everything = np.concatenate([values for by_split in quantities.values() for values in by_split.values()])
    low, high = float(everything.min()), float(everything.max())
    # Of one size alone there is no range to divide.
    bins = np.linspace(low, high, 41) if high - low >= 1 else np.linspace(low - 20.5, low + 20.5, 42)
    for style, by_split in zip(("-", "--"), quantities.values(), strict=False):
        for split, values in by_split.items():
            heights, _ = np.histogram(values, bins)
            axes.stairs(heights / len(values), bins, color=SPLIT_COLOURS[split], linestyle=style, linewidth=1.3)
    axes.set_title(f"images by {title}", loc="left", fontsize=10)


def _told(sizes: dict[str, Sizes]) -> str:
    said = "stored images: " + ", ".join(
        f"{len(each.widths) + each.unreadable:,} {split}" for split, each in sizes.items()
    )
    unreadable = sum(each.unreadable for each in sizes.values())
    return f"{said}; {unreadable:,} of them unreadable" if unreadable else said
