"""The picture of a study: how much each key matters, and each trial's value over each key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagenet_pipeline import files
from imagenet_pipeline.config import better
from imagenet_pipeline.drawing import COLOURS, png
from imagenet_pipeline.training.tuning_space import Range, Space, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from imagenet_pipeline.training.tuning_findings import Findings, TrialResult

COLUMNS = 3
_INCHES = 3.6


def draw_study(found: Findings, space: Space, out: Path) -> None:
    """Draw `out` (PNG): the best value so far, the importance of the keys, and a slice a key.

    Filled circles are trials that came to their end, hollow ones were pruned, the best is orange.
    """
    from matplotlib.figure import Figure

    panels = 2 + len(space.keys)
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(_INCHES * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    _draw_history(axes[0], found)
    _draw_importance(axes[1], found, space)
    for panel, (key, kind) in zip(axes[2:], space.keys.items(), strict=False):
        _draw_slice(panel, found, key, kind)
    for panel in axes[panels:]:
        panel.set_visible(False)
    files.write_whole(out, png(figure))


def _draw_history(axes: Axes, found: Findings) -> None:
    best_of = better(found.figure)
    ended, best = [trial for trial in found.trials if trial.value is not None], list[float]()
    for trial in ended:
        values = [trial.value] if trial.state == "complete" and trial.value is not None else []
        best.append(best_of([*best[-1:], *values], default=float("nan")))
    axes.step([trial.number for trial in ended], best, where="post", color=COLOURS[1], label="best so far")
    _dots(axes, found, [(trial, trial.number) for trial in ended])
    axes.set_xlabel("trial")
    axes.legend(frameon=False, fontsize=8, loc="lower right" if best_of is max else "upper right")
    _finish(axes, found.figure.replace("_", " "))


def _draw_importance(axes: Axes, found: Findings, space: Space) -> None:
    shares = sorted((found.importance.get(key, 0.0), key) for key in space.keys)
    _finish(axes, "importance")
    if not found.importance:
        axes.text(0.5, 0.5, "too few trials to say", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.barh([key for _, key in shares], [share for share, _ in shares], color=COLOURS[0], height=0.6)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", labelsize=8)


def _draw_slice(axes: Axes, found: Findings, key: str, kind: Range | tuple[str, ...]) -> None:
    known = [trial for trial in found.trials if trial.value is not None and key in trial.changes]
    if isinstance(kind, Range):
        places: list[Any] = [trial.changes[key] for trial in known]
        if kind.logarithmic:
            axes.set_xscale("log")
        axes.set_xlim(kind.low, kind.high)
        axes.margins(x=0.05)
    else:
        places = [kind.index(str(trial.changes[key])) for trial in known]
        axes.set_xticks(range(len(kind)), kind)
        axes.set_xlim(-0.5, len(kind) - 0.5)
    _dots(axes, found, list(zip(known, places, strict=True)))
    axes.set_xlabel(
        f"{shown(kind)}{', logarithmic' if isinstance(kind, Range) and kind.logarithmic else ''}", fontsize=8
    )
    _finish(axes, key)


def _dots(axes: Axes, found: Findings, points: list[tuple[TrialResult, Any]]) -> None:
    """Draw trials; those far off the ones that came to their end stand at the edge, lest they flatten all others."""
    whole = [trial.value for trial in found.trials if trial.state == "complete" and trial.value is not None]
    margin = (max(whole) - min(whole)) / 2 or abs(max(whole)) / 20 or 1.0
    low, high = min(whole) - margin, max(whole) + margin
    axes.set_ylim(low, high)
    for trial, place in points:
        colour = COLOURS[1] if found.best and trial.number == found.best.number else COLOURS[0]
        fill = colour if trial.state == "complete" else "none"
        value = min(max(trial.value or 0.0, low), high)
        axes.plot([place], [value], "o", color=colour, markerfacecolor=fill, markersize=5, zorder=3, clip_on=False)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
