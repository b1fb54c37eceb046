"""Loss, learning rate and rank-1, or the figure of other labels, over the epochs of runs, or out of MXNet's logs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.drawing import COLOURS, png, require_png, written_out
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.training.checkpoint import find_checkpoint, state_beside
from imagenet_pipeline.training.journal import Event, Journal, branches, figures_of, restarts
from imagenet_pipeline.training.metrics import chance_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Corner = Literal["upper right", "lower right", "upper left", "lower left"]
_STYLES: dict[str, dict[str, Any]] = {
    "train": {"linestyle": "--", "alpha": 0.7},
    "validation": {},
    "earlier branch": {"alpha": 0.25},
    "restart": {"linestyle": ":", "linewidth": 1, "alpha": 0.6},
}
"""Style of each kind of line, in the order of the key."""
_KEY_LETTERS = 150
"""About as many fit on a line of the key."""
_RULED = 0.2
"""A loss is drawn on a logarithmic axis where all but its highest tenth of values lie within this share of the axis."""
_CORNERS: dict[Corner, tuple[int, int]] = {
    "upper right": (1, 1),
    "lower right": (1, 0),
    "upper left": (0, 1),
    "lower left": (0, 0),
}
_PANEL_INCHES = 4.6, 3.2
"""About the size of a panel inside its axes."""
_TITLES = {
    "learning_rate": "learning rate",
    "rank1": "rank-1, %",
    "accuracy": "right decisions, %",
    "mae": "mean absolute error",
}
Points = NDArray[np.float64]


@dataclass(frozen=True)
class _Training:
    """A training drawn in a colour of its own, its journal, and its number of classes where labels are one class."""

    name: str
    events: list[Event]
    classes: int | None = None


def draw_curves(runs: Sequence[Path], out: Path, at_most_every_seconds: float = 0.0) -> bool:
    """Draw `out` (PNG) from the journals of `runs`; skipped when it is younger than the limit.

    Files among them are logs of MXNet's, joined as `join_logs` says. Left: the loss, where there is one, and below it
    the learning rate; right: rank-1, or the figure that the last run has of labels that are not one class. Dashed is
    training, left out of more runs than there are colours, solid validation, pale the validation of a branch left by a
    restart, dotted verticals the restarts of the present branch. Returns whether it drew. Raises BadRecipe where there
    is no run, BadInput for a file that is no such log.
    """
    require_png(out)
    # A picture from the future, where the clock went back, counts as old.
    if out.exists() and 0 <= time.time() - out.stat().st_mtime < at_most_every_seconds:
        return False
    trainings = _trainings(runs)
    shown = _figure_of(trainings[-1].events)
    columns = _columns(trainings, shown)
    figure = _figure(columns)
    panels = _draw(figure, columns, trainings)
    if len(trainings) > 1:
        kinds = {label for axes in panels for label in axes.get_legend_handles_labels()[1]}
        _name_below(figure, [training.name for training in trainings], kinds)
    files.write_whole(out, png(figure))
    return True


def separate_curves(run: Path) -> dict[str, bytes]:
    """PNGs of a run by what they show, for a page that lays them side by side: the loss above the rate, and rank-1.

    In place of rank-1 stands the figure of labels that are not one class. Raises BadRecipe where there is no run.
    """
    training = _Training(run.name, _events(run), _classes(run))
    columns = _columns([training], _figure_of(training.events))
    pictures = {}
    for column in columns:
        figure = _figure([column], tall=any("learning_rate" in other for other in columns))
        _draw(figure, [column], [training])
        pictures[" and ".join(_title(quantity).partition(",")[0] for quantity in column)] = png(figure)
    return pictures


def _figure_of(events: list[Event]) -> str:
    """The first figure beside the loss."""
    return figures_of(branches(events)[-1])[0]


def _title(quantity: str) -> str:
    return _TITLES.get(quantity, quantity)


def _columns(trainings: Sequence[_Training], shown: str) -> list[list[str]]:
    """The quantities to draw, from the top of each column: without a loss, or a rate, there is no panel for it."""
    known = {key for training in trainings for event in training.events if event["event"] == "epoch" for key in event}
    rate = ["learning_rate"] if "learning_rate" in known else []
    if known and not known & {"train_loss", "validation_loss"}:
        return [[shown, *rate]]
    return [["loss", *rate], [shown]]


def _figure(columns: Sequence[Sequence[str]], tall: bool = False) -> Figure:
    # Not above: training begins without it.
    from matplotlib.figure import Figure

    tall = tall or any("learning_rate" in column for column in columns)
    return Figure(figsize=(5.5 * len(columns), 5.2 if tall else 4.2), layout="constrained")


def _draw(figure: Figure, columns: Sequence[Sequence[str]], trainings: Sequence[_Training]) -> list[Axes]:
    """Draw every quantity in its panel; the rate's is a third as high. A single training has its key in each."""
    panels: list[Axes] = []
    grid = figure.add_gridspec(1, len(columns))
    for place, column in enumerate(columns):
        below = grid[place].subgridspec(len(column), 1, height_ratios=[3, 1][: len(column)])
        for row, quantity in enumerate(column):
            axes = figure.add_subplot(below[row], sharex=panels[-1] if row else None)
            for colour, training in zip(_colours(len(trainings)), trainings, strict=True):
                _draw_run(axes, training.events, quantity, colour, alone=len(trainings) <= len(COLOURS))
            _finish(axes, _title(quantity), row == len(column) - 1)
            panels.append(axes)
            _scale(axes, quantity)
            words = _draw_chance(axes, trainings) if quantity == "rank1" else []
            if len(trainings) == 1 and quantity != "learning_rate":
                _place_key(axes, words)
    return panels


def _colours(count: int) -> list[Any]:
    """A colour a training; of more than have one of their own, all along a rainbow."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return list(colormaps["turbo"](np.linspace(0.04, 0.94, count)))


def _classes(run: Path) -> int | None:
    """The number of classes of a run, out of its last checkpoint; None where labels are not one class, or none is."""
    try:
        state = state_beside(find_checkpoint(run, "latest") / "state.json")
    except (BadRecipe, Damaged):
        return None
    return len(state.classes) if state and state.label_kind == "class" else None


def _joined(paths: Sequence[Path], numbers: list[int]) -> dict[int, tuple[Path, list[Event]]]:
    """Trainings from those `paths` that are MXNet's logs, by the number of the first log of each."""
    from imagenet_pipeline.training.mxnet_log import join_logs

    found = {}
    for training in join_logs([paths[number] for number in numbers]):
        found[numbers[0]] = (training.logs[0].with_suffix(""), list(training.events))
        numbers = numbers[len(training.logs) :]
    return found


def _trainings(paths: Sequence[Path]) -> list[_Training]:
    """List trainings in the order given, joined logs at the first of them; a name that comes twice gets its folder."""
    logs = [number for number, path in enumerate(paths) if path.is_file()]
    found = {number: (path, _events(path)) for number, path in enumerate(paths) if number not in logs}
    if logs:
        found |= _joined(paths, logs)
    names = [path.name for path, _ in found.values()]
    return [
        _Training(
            path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}",
            events,
            None if number in logs else _classes(path),
        )
        for number, (path, events) in sorted(found.items())
    ]


def _events(run: Path) -> list[Event]:
    journal = Journal(run)
    if not journal.exists():
        expected = "a folder that `train` or `import` made, or a log of MXNet or GluonCV"
        raise BadRecipe("there is no run here", where=run, expected=expected)
    return journal.events()


def _draw_run(axes: Axes, events: list[Event], quantity: str, colour: Any, alone: bool) -> None:
    """Draw a run's lines of a quantity; `alone` without crowding, so that training is drawn beside validation."""
    *left_behind, current = branches(events)
    validated = any(f"validation_{quantity}" in row for row in current)
    if quantity == "learning_rate":
        _draw_line(axes, current, quantity, colour, "validation")
    else:
        for rows in left_behind if alone else []:
            _draw_line(axes, rows, f"validation_{quantity}", colour, "earlier branch")
        if alone or not validated:
            _draw_line(axes, current, f"train_{quantity}", colour, "train")
        _draw_line(axes, current, f"validation_{quantity}", colour, "validation")
    for epoch in restarts(events):
        axes.axvline(epoch, color=colour, label="restart", **_STYLES["restart"])


def _draw_line(axes: Axes, rows: list[Event], column: str, colour: Any, kind: str) -> None:
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    if points:
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), color=colour, label=kind, marker=marker, markersize=3, **_STYLES[kind])


def _finish(axes: Axes, title: str, lowest: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=11)
    if lowest:
        axes.set_xlabel("epoch")
    axes.tick_params(labelbottom=lowest)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _scale(axes: Axes, quantity: str) -> None:
    """Make the axis of a loss or a rate logarithmic where the rules say so; another rate's begins at 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values = [value for points in _lines(axes) for value in points[:, 1].tolist() if math.isfinite(value)]
    if (quantity == "loss" and is_ruled(values)) or (quantity == "learning_rate" and spans_decades(values)):
        axes.set_yscale("log")
        near = max(values) < 30 * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if near else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(f"{axes.get_title(loc='left')}, logarithmic", loc="left", fontsize=11)
    elif quantity == "learning_rate" and values:
        axes.set_ylim(0, 1.15 * max(values) or 1.0)
        axes.locator_params(axis="y", nbins=3)


def is_ruled(losses: Sequence[float]) -> bool:
    """Tell losses, finite ones, of which a tenth (one at least) takes four fifths of the axis from all others."""
    rest = sorted(losses)[: len(losses) - max(1, len(losses) // 10)]
    if len(losses) < 4 or rest[0] <= 0:
        return False
    return rest[-1] - rest[0] < _RULED * (max(losses) - min(losses))


def spans_decades(rates: Sequence[float]) -> bool:
    """Tell rates, of which a third is a tenth of the highest or less, as with steps; a cosine's last epochs are not."""
    if not rates or min(rates) <= 0:
        return False
    return 3 * sum(rate <= 0.1001 * max(rates) for rate in rates) >= len(rates)


def _lines(axes: Axes) -> list[Points]:
    """The curves as points [n, 2], verticals left out."""
    found = [np.asarray(line.get_xydata(), np.float64) for line in axes.lines if line.get_label() != "restart"]
    return [points for points in found if len(points)]


def _draw_chance(axes: Axes, trainings: Sequence[_Training]) -> list[Points]:
    """Draw the rank-1 of guessing as a thin line with a word, where the curves keep half the height beside it.

    Returns where the word stands, as points of the panel (0 to 1); nothing where runs have other classes, or unknown.
    """
    values = [value for points in _lines(axes) for value in points[:, 1].tolist()]
    known = {training.classes for training in trainings}
    classes = known.pop()
    if known or not classes or classes < 2 or not values:
        return []
    chance = chance_percent(classes)
    if min(values) - chance > max(values) - min(values):
        return []
    axes.axhline(chance, color="#666666", linewidth=0.8, zorder=1)
    axes.annotate(
        f"chance {chance:.3g} %", (1, chance), xycoords=("axes fraction", "data"), xytext=(0, 2),
        textcoords="offset points", ha="right", va="bottom", fontsize=8, color="#666666",
    )  # fmt: skip
    bottom = _in_panel(axes, np.array([[0.0, chance]]))[0, 1]
    across = np.linspace(0, 1, 50)
    return [np.column_stack([across, np.full(50, bottom)]), np.column_stack([across[35:], np.full(15, bottom + 0.05)])]


def _in_panel(axes: Axes, points: Points) -> Points:
    """Points in data as shares of the panel's width and height."""
    axes.autoscale_view()
    placed: Points = axes.transLimits.transform(axes.transScale.transform(points))
    return placed


def _place_key(axes: Axes, words: Sequence[Points]) -> None:
    """Put the key into a corner that no curve crosses, nor any of `words`; above the panel where there is none."""
    handles, kinds = axes.get_legend_handles_labels()
    if not kinds:
        return
    # Of several lines of a kind the first stands in the key.
    lines = dict(zip(reversed(kinds), reversed(handles), strict=True))
    shown = [lines[kind] for kind in _STYLES if kind in lines]
    width = (0.6 + 0.075 * max(map(len, lines))) / _PANEL_INCHES[0]
    height = (0.2 + 0.2 * len(shown)) / _PANEL_INCHES[1]
    # A run that was resumed within its first epoch has restarts alone.
    drawn = np.concatenate([np.zeros((0, 2)), *(_along(_in_panel(axes, points)) for points in _lines(axes)), *words])
    for line in axes.lines:
        if line.get_label() == "restart":
            x = _in_panel(axes, np.asarray(line.get_xydata(), np.float64))[0, 0]
            drawn = np.concatenate([drawn, _along(np.array([[x, 0.0], [x, 1.0]]))])
    # Left to find the best position itself, matplotlib takes long, and warns where it took over a second.
    for corner, at in _CORNERS.items():
        near = np.abs(drawn - at) < (width, height)
        if not near.all(axis=1).any():
            axes.legend(handles=shown, frameon=False, fontsize=9, loc=corner)
            return
    axes.legend(
        handles=shown, frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(shown),
        borderaxespad=0.2, columnspacing=1.0, handlelength=1.6,
    )  # fmt: skip


def _along(corners: Points) -> Points:
    """Points along a line through `corners` [n, 2], close to each other."""
    steps = np.linspace(0, 1, 30)[:, None]
    return np.concatenate([corners[:1], *(a + steps * (b - a) for a, b in itertools.pairwise(corners))])


def _name_below(figure: Figure, names: list[str], kinds: Collection[str]) -> None:
    """One key for both axes: a colour a training, and what each of these kinds of lines means."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=colour, label=_as_text(name))
        for colour, name in zip(_colours(len(names)), names, strict=True)
    ]
    lines += [Line2D([], [], color="#444444", label=kind, **_STYLES[kind]) for kind in _STYLES if kind in kinds]
    columns = max(1, min(len(lines), _KEY_LETTERS // (8 + max(map(len, names)))))
    # The key takes its room below; the axes keep theirs.
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(lines) // columns))
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _as_text(name: str) -> str:
    # Dollars are formulas to matplotlib, and what begins with an underscore is left out of a key.
    return f" {written_out(name)}".replace("$", r"\$")
