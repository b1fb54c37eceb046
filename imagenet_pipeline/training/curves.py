"""Loss and rank-1 over the epochs, across restarts, of one run or several."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training.journal import Event, Journal, branches, restarts

COLOURS = ("#1f5fa8", "#c2571a", "#2e7d4f", "#7b4ea3", "#8a6d1d", "#a83262")


def draw_curves(runs: Sequence[Path], out: Path, at_most_every_seconds: float = 0.0) -> bool:
    """Draw `out` (PNG) from the journals of `runs`; skipped when it is younger than the limit.

    Left: the loss; right: rank-1. Dashed is training, solid validation, pale a branch left by a restart,
    dotted verticals the restarts. Returns whether it drew.
    """
    require_png(out)
    if out.exists() and time.time() - out.stat().st_mtime < at_most_every_seconds:
        return False
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, rank1 = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        events = _events(run)
        for axes, quantity in ((loss, "loss"), (rank1, "rank1")):
            _draw_run(axes, events, quantity, COLOURS[number % len(COLOURS)], run.name if len(runs) > 1 else "")
    _finish(loss, "loss", "upper right")
    _finish(rank1, "rank-1, %", "lower right")
    image = io.BytesIO()
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure.savefig(image, format="png", dpi=110)
    files.write_whole(out, image.getvalue())
    return True


def require_png(out: Path) -> None:
    """Raise BadRecipe for a picture that is no PNG by its name."""
    if out.suffix != ".png":
        raise BadRecipe("curves are drawn as PNG", where=out, expected="a name that ends in .png")


def _events(run: Path) -> list[Event]:
    journal = Journal(run)
    if not journal.exists():
        raise BadRecipe("there is no run here", where=run, expected="a run folder with a journal.jsonl")
    return journal.events()


def _draw_run(axes: Axes, events: list[Event], quantity: str, colour: str, label: str) -> None:
    *left_behind, current = branches(events)
    for rows in left_behind:
        _draw_line(axes, rows, f"validation_{quantity}", color=colour, alpha=0.25)
    _draw_line(axes, current, f"train_{quantity}", color=colour, linestyle="--", alpha=0.7, label=f"{label} train")
    _draw_line(axes, current, f"validation_{quantity}", color=colour, label=f"{label} validation")
    for epoch in restarts(events):
        axes.axvline(epoch, color="#999999", linestyle=":", linewidth=1)


def _draw_line(axes: Axes, rows: list[Event], column: str, label: str = "", **style: Any) -> None:
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    if points:
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), label=label.strip() or None, marker=marker, markersize=3, **style)


def _finish(axes: Axes, title: str, empty_corner: Literal["upper right", "lower right"]) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Left to find the best place itself, matplotlib takes long, and warns where it took over a second.
        axes.legend(frameon=False, fontsize=9, loc=empty_corner)
