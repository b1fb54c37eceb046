"""Loss and rank-1 over the epochs, across restarts, of one run or several, ours or out of MXNet's logs."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.records.contact_sheet import require_png
from imagenet_pipeline.records.lettering import written_out
from imagenet_pipeline.training.journal import Event, Journal, branches, restarts
from imagenet_pipeline.training.mxnet_log import join_logs

COLOURS = ("#1f5fa8", "#c2571a", "#2e7d4f", "#7b4ea3", "#8a6d1d", "#a83262")
_KEY_LETTERS = 150
"""About as many fit on one line of the key."""


@dataclass(frozen=True)
class _Training:
    """What is drawn in one colour, and its journal."""

    name: str
    events: list[Event]


def draw_curves(runs: Sequence[Path], out: Path, at_most_every_seconds: float = 0.0) -> bool:
    """Draw `out` (PNG) from the journals of `runs`; skipped when it is younger than the limit.

    Files among them are logs of MXNet's, joined as `join_logs` says. Left: the loss; right: rank-1. Dashed is
    training, solid validation, pale a branch left by a restart, dotted verticals the restarts. Returns whether it
    drew. Raises BadRecipe where there is no run, BadInput for a file that is no such log.
    """
    require_png(out)
    if out.exists() and time.time() - out.stat().st_mtime < at_most_every_seconds:
        return False
    trainings = _trainings(runs)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, rank1 = figure.subplots(1, 2)
    for number, training in enumerate(trainings):
        for axes, quantity in ((loss, "loss"), (rank1, "rank1")):
            _draw_run(axes, training.events, quantity, COLOURS[number % len(COLOURS)])
    alone = len(trainings) == 1
    _finish(loss, "loss", "upper right" if alone else None)
    _finish(rank1, "rank-1, %", "lower right" if alone else None)
    if not alone:
        _name_below(figure, [training.name for training in trainings])
    files.write_whole(out, _png(figure))
    return True


def separate_curves(run: Path) -> tuple[bytes, bytes]:
    """The loss and the rank-1 of one run as two PNGs, for a page that lays them side by side or one below the other.

    Raises BadRecipe where there is no run.
    """
    events = _events(run)
    return (_alone(events, "loss", "loss", "upper right"), _alone(events, "rank1", "rank-1, %", "lower right"))


def _alone(events: list[Event], quantity: str, title: str, corner: Literal["upper right", "lower right"]) -> bytes:
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    _draw_run(axes, events, quantity, COLOURS[0])
    _finish(axes, title, corner)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def _trainings(paths: Sequence[Path]) -> list[_Training]:
    """Runs, then logs; what would be called the same gets its folder's name before it."""
    runs = [path for path in paths if not path.is_file()]
    logged = join_logs([path for path in paths if path.is_file()])
    places = [*runs, *(training.logs[0].with_suffix("") for training in logged)]
    names = [place.name for place in places]
    events = [*map(_events, runs), *(list(training.events) for training in logged)]
    return [
        _Training(place.name if names.count(place.name) == 1 else f"{place.parent.name}/{place.name}", one)
        for place, one in zip(places, events, strict=True)
    ]


def _events(run: Path) -> list[Event]:
    journal = Journal(run)
    if not journal.exists():
        raise BadRecipe("there is no run here", where=run, expected="a run folder with a journal.jsonl")
    return journal.events()


def _draw_run(axes: Axes, events: list[Event], quantity: str, colour: str) -> None:
    *left_behind, current = branches(events)
    for rows in left_behind:
        _draw_line(axes, rows, f"validation_{quantity}", color=colour, alpha=0.25)
    _draw_line(axes, current, f"train_{quantity}", color=colour, linestyle="--", alpha=0.7, label="train")
    _draw_line(axes, current, f"validation_{quantity}", color=colour, label="validation")
    for epoch in restarts(events):
        axes.axvline(epoch, color=colour, alpha=0.6, linestyle=":", linewidth=1)


def _draw_line(axes: Axes, rows: list[Event], column: str, label: str = "", **style: Any) -> None:
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    if points:
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), label=label or None, marker=marker, markersize=3, **style)


def _finish(axes: Axes, title: str, empty_corner: Literal["upper right", "lower right"] | None) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if empty_corner and axes.get_legend_handles_labels()[0]:
        # Left to find the best place itself, matplotlib takes long, and warns where it took over a second.
        axes.legend(frameon=False, fontsize=9, loc=empty_corner)


def _name_below(figure: Figure, names: list[str]) -> None:
    """One key for both axes: a colour a training, and what dashes mean."""
    lines = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], label=_as_text(name)) for number, name in enumerate(names)
    ]
    lines.append(Line2D([], [], color="#666666", linestyle="--", label="train"))
    lines.append(Line2D([], [], color="#666666", label="validation"))
    columns = max(1, min(len(lines), _KEY_LETTERS // (8 + max(map(len, names)))))
    # The key takes its room below; the axes keep theirs.
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(lines) // columns))
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _as_text(name: str) -> str:
    # Dollars are formulas to matplotlib, and what begins with an underscore is left out of a key.
    return f" {written_out(name)}".replace("$", r"\$")
