"""Loss and rank-1, or the figure of other labels, over the epochs of runs of ours or out of MXNet's logs."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imagenet_pipeline import files
from imagenet_pipeline.drawing import COLOURS, png, require_png, written_out
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training.journal import Event, Journal, branches, figures_of, restarts
from imagenet_pipeline.training.metrics import ERRORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES: dict[str, dict[str, Any]] = {
    "train": {"linestyle": "--", "alpha": 0.7},
    "validation": {},
    "earlier branch": {"alpha": 0.25},
    "restart": {"linestyle": ":", "linewidth": 1, "alpha": 0.6},
}
"""Style of each kind of line, in the order of the key."""
_KEY_LETTERS = 150
"""About as many fit on a line of the key."""


@dataclass(frozen=True)
class _Training:
    """A training drawn in a colour of its own, and its journal."""

    name: str
    events: list[Event]


def draw_curves(runs: Sequence[Path], out: Path, at_most_every_seconds: float = 0.0) -> bool:
    """Draw `out` (PNG) from the journals of `runs`; skipped when it is younger than the limit.

    Files among them are logs of MXNet's, joined as `join_logs` says. Left: the loss; right: rank-1, or the figure that
    the last run has of labels that are not one class. Dashed is
    training, solid validation, pale the validation of a branch left by a restart, dotted verticals the restarts of
    the present branch. Returns whether it drew. Raises BadRecipe where there is no run, BadInput for a file that is
    no such log.
    """
    require_png(out)
    # A picture from the future, where the clock went back, counts as old.
    if out.exists() and 0 <= time.time() - out.stat().st_mtime < at_most_every_seconds:
        return False
    trainings = _trainings(runs)
    figure = _figure(11)
    loss, rank1 = figure.subplots(1, 2)
    shown = _figure_of(trainings[-1].events)
    for number, training in enumerate(trainings):
        for axes, quantity in ((loss, "loss"), (rank1, shown)):
            _draw_run(axes, training.events, quantity, COLOURS[number % len(COLOURS)])
    alone = len(trainings) == 1
    _finish(loss, "loss", "upper right" if alone else None)
    _finish(rank1, _title(shown), _corner(shown) if alone else None)
    if not alone:
        kinds = {label for axes in (loss, rank1) for label in axes.get_legend_handles_labels()[1]}
        _name_below(figure, [training.name for training in trainings], kinds)
    files.write_whole(out, png(figure))
    return True


def separate_curves(run: Path) -> tuple[bytes, bytes]:
    """The loss and the rank-1 of a run as two PNGs, for a page that lays them side by side or below each other.

    In place of rank-1 stands the figure of labels that are not one class. Raises BadRecipe where there is no run.
    """
    events = _events(run)
    shown = _figure_of(events)
    return (_alone(events, "loss", "loss", "upper right"), _alone(events, shown, _title(shown), _corner(shown)))


Corner = Literal["upper right", "lower right"]


def _figure_of(events: list[Event]) -> str:
    """The first figure beside the loss."""
    return figures_of(branches(events)[-1])[0]


def _title(figure: str) -> str:
    titles = {"rank1": "rank-1, %", "accuracy": "right decisions, %", "mae": "mean absolute error"}
    return titles.get(figure, figure)


def _corner(figure: str) -> Corner:
    """The corner that curves of a figure leave empty."""
    return "upper right" if figure in ERRORS else "lower right"


def _alone(events: list[Event], quantity: str, title: str, corner: Corner) -> bytes:
    figure = _figure(5.5)
    axes = figure.subplots()
    _draw_run(axes, events, quantity, COLOURS[0])
    _finish(axes, title, corner)
    return png(figure)


def _figure(width_inches: float) -> Figure:
    # Not above: training begins without it.
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, 4.2), layout="constrained")


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
        _Training(path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}", events)
        for _, (path, events) in sorted(found.items())
    ]


def _events(run: Path) -> list[Event]:
    journal = Journal(run)
    if not journal.exists():
        expected = "a folder that `train` or `import` made, or a log of MXNet or GluonCV"
        raise BadRecipe("there is no run here", where=run, expected=expected)
    return journal.events()


def _draw_run(axes: Axes, events: list[Event], quantity: str, colour: str) -> None:
    *left_behind, current = branches(events)
    for rows in left_behind:
        _draw_line(axes, rows, f"validation_{quantity}", colour, "earlier branch")
    _draw_line(axes, current, f"train_{quantity}", colour, "train")
    _draw_line(axes, current, f"validation_{quantity}", colour, "validation")
    for epoch in restarts(events):
        axes.axvline(epoch, color=colour, label="restart", **_STYLES["restart"])


def _draw_line(axes: Axes, rows: list[Event], column: str, colour: str, kind: str) -> None:
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    if points:
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), color=colour, label=kind, marker=marker, markersize=3, **_STYLES[kind])


def _finish(axes: Axes, title: str, empty_corner: Corner | None) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    handles, kinds = axes.get_legend_handles_labels()
    if empty_corner and kinds:
        # Of several lines of a kind the first stands in the key.
        lines = dict(zip(kinds, handles, strict=True))
        # Left to find the best position itself, matplotlib takes long, and warns where it took over a second.
        shown = [lines[kind] for kind in _STYLES if kind in lines]
        axes.legend(handles=shown, frameon=False, fontsize=9, loc=empty_corner)


def _name_below(figure: Figure, names: list[str], kinds: Collection[str]) -> None:
    """One key for both axes: a colour a training, and what each of these kinds of lines means."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], label=_as_text(name)) for number, name in enumerate(names)
    ]
    lines += [Line2D([], [], color="#444444", label=kind, **_STYLES[kind]) for kind in _STYLES if kind in kinds]
    columns = max(1, min(len(lines), _KEY_LETTERS // (8 + max(map(len, names)))))
    # The key takes its room below; the axes keep theirs.
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(lines) // columns))
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _as_text(name: str) -> str:
    # Dollars are formulas to matplotlib, and what begins with an underscore is left out of a key.
    return f" {written_out(name)}".replace("$", r"\$")
