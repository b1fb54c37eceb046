"""Which learning rate suits a recipe: raise it from step to step and watch the loss (Smith 2017, section 3.3)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.epoch import step_seed
from imagenet_pipeline.training.feeding import lone_engine, open_fed, train_on
from imagenet_pipeline.training.records import records_of

FEWEST_STEPS = 20
SMOOTHING = 0.9
"""Weight of the past in the smoothed loss."""
TOO_HIGH = 4.0
"""Times the best smoothed loss: beyond it there is nothing more to learn."""

Losses = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RateCurve:
    """Loss by learning rate: one number a step that was done, the loss before that step's update."""

    rates: Losses
    losses: Losses
    smoothed: Losses
    suggestion: float | None
    """Where the smoothed loss falls fastest over the logarithm of the rate; None where it never falls."""
    key_value: float | None
    """The same as `optimizer.learning_rate` of the recipe, which may be meant for another batch size."""
    ended: str
    """Why it went no higher."""


def find_rate(
    recipe: Recipe, lowest: float, highest: float, steps: int, show: Callable[[int, int, str], None]
) -> RateCurve:
    """Train a fresh network for up to `steps` steps at rates that grow from `lowest` to `highest` by equal factors.

    It trains as the recipe's first epochs would, schedule aside, and keeps nothing. It ends early when the smoothed
    loss passes 4 times its best or the loss is not finite. `show` is told (steps done, steps, what was found).
    Raises BadRecipe for rates that do not grow and for fewer than FEWEST_STEPS steps.
    """
    _require_range(lowest, highest, steps)
    data = records_of(recipe)
    engine = lone_engine(recipe, data)
    rates = np.geomspace(lowest, highest, steps)
    losses: list[float] = []
    ended = f"the highest rate, {highest:g}"
    with RecordSet.open(data.folder, "train") as records, closing(open_fed(recipe, data, records)) as batches:
        for step, rate, batch in zip(count(), rates, batches, strict=False):
            train_on(engine, batch, float(rate), step_seed(recipe.seed, step))
            loss = engine.totals().loss
            if not math.isfinite(loss):
                ended = f"the loss was no longer finite at {rate:.3g}"
                break
            losses.append(loss)
            latest = smoothed(np.array(losses))
            show(step + 1, steps, f"  rate {rate:.3g}  loss {latest[-1]:.3f}")
            if latest[-1] > TOO_HIGH * latest.min():
                ended = f"the loss passed {TOO_HIGH:g} times its best at {rate:.3g}"
                break
    if not losses:
        raise BadRecipe("the very first loss is not finite", where=data.folder, advice="give a lower --from")
    return _curve(recipe, rates[: len(losses)], np.array(losses), steps, ended)


def smoothed(losses: Losses) -> Losses:
    """Means of the losses so far, the weight of each SMOOTHING times that of the next (Kingma & Ba 2015, section 3)."""
    means, mean = np.empty_like(losses), 0.0
    for step, loss in enumerate(losses):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means[step] = mean / (1 - SMOOTHING ** (step + 1))
    return means


def steepest(rates: Losses, losses: Losses, tenth: int) -> float | None:
    """The rate, up to the lowest loss, where the loss falls fastest over the rate's logarithm; None if it never does.

    The fall at a rate is the slope of the straight line through the losses up to `tenth` steps to either side. The
    first `tenth` steps are not looked at: what their smoothed loss does is mostly which images came first.
    """
    last = int(losses.argmin())
    heights, positions = losses[: last + 1], np.log(rates[: last + 1])
    slopes = {}
    for step in range(2 * tenth, last + 1):
        near = slice(step - tenth, step + tenth + 1)
        slopes[step] = float(np.polyfit(positions[near], heights[near], 1)[0])
    best = min(slopes, key=slopes.__getitem__, default=None)
    return float(rates[best]) if best is not None and slopes[best] < 0 else None


def _curve(recipe: Recipe, rates: Losses, losses: Losses, steps: int, ended: str) -> RateCurve:
    means = smoothed(losses)
    suggestion = steepest(rates, means, steps // 10)
    reference = recipe.optimizer.reference_batch_size or recipe.batch_size
    key_value = None if suggestion is None else suggestion * reference / recipe.batch_size
    return RateCurve(rates, losses, means, suggestion, key_value, ended)


def _require_range(lowest: float, highest: float, steps: int) -> None:
    if not 0 < lowest < highest < math.inf:
        raise BadRecipe("--from and --to", expected="two rates above 0 that grow", found=f"{lowest:g}, {highest:g}")
    if steps < FEWEST_STEPS:
        raise BadRecipe("--steps", expected=f"at least {FEWEST_STEPS}", found=steps)


def draw_rates(curve: RateCurve, out: Path) -> None:
    """Draw `out` (PNG): losses pale, smoothed solid, the suggestion a dotted vertical."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(curve.rates, curve.losses, color="#1f5fa8", alpha=0.25)
    axes.semilogx(curve.rates, curve.smoothed, color="#1f5fa8", label="smoothed loss")
    if curve.suggestion is not None:
        axes.axvline(curve.suggestion, color="#c2571a", linestyle=":", label=f"falls fastest: {curve.suggestion:.2g}")
    # Not the explosion at its end.
    low, high = float(curve.smoothed.min()), float(curve.smoothed[: curve.smoothed.argmin() + 1].max())
    axes.set_ylim(low - 0.2 * (high - low) - 1e-3, high + 0.2 * (high - low) + 1e-3)
    axes.set_xlabel("learning rate")
    axes.set_title("loss", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    image = io.BytesIO()
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure.savefig(image, format="png", dpi=110)
    files.write_whole(out, image.getvalue())
