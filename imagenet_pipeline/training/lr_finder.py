"""The learning rate finder: raise the rate from step to step and watch the loss (Smith 2017, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe
from imagenet_pipeline.drawing import COLOURS, png
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.data import endless_batches, records_of
from imagenet_pipeline.training.distributed import reduced
from imagenet_pipeline.training.engine_setup import fresh_engine, settled
from imagenet_pipeline.training.loop import step_seed

FEWEST_STEPS = 20
SURE_STEPS = 50
"""Steps of a search to trust: of fewer the loss is smoothed over so few that noise may be what falls fastest."""
SMOOTHING = 0.9
"""Weight of the past in the mean of the losses so far."""
TOO_HIGH = 4.0
"""Times the best mean so far: beyond it there is nothing more to learn."""


Losses = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RateCurve:
    """Loss by learning rate: a number a step that was done, the loss before that step's update."""

    rates: Losses
    losses: Losses
    smoothed: Losses
    """Without lag; no higher than the losses of the first tenth of the steps."""
    suggestion: float | None
    """Rate at which the smoothed loss falls fastest over the logarithm of the rate; None where it never falls."""
    key_value: float | None
    """The same as `optimizer.learning_rate` of the recipe, which may be meant for another batch size."""
    ended: str
    """Reason why the rate went no higher."""


def find_rate(
    recipe: Recipe, lowest: float, highest: float, steps: int, show: Callable[[int, int, str], None]
) -> RateCurve | None:
    """Train a fresh network for up to `steps` steps at rates that grow from `lowest` to `highest` by equal factors.

    It trains as the recipe's first epochs would, schedule aside, and keeps nothing. It ends early when the mean of
    the losses so far passes 4 times its best or the loss is not finite. `show` is told (steps done, steps, what was
    found). Processes that train together do so here, and all but the first return None. Raises BadRecipe for rates
    that do not grow and for fewer than FEWEST_STEPS steps.
    """
    _require_range(lowest, highest, steps)
    data = records_of(recipe)
    recipe = settled(recipe, data)
    engine = fresh_engine(recipe, data)
    share = Share(engine.rank, engine.ranks)
    rates = np.geomspace(lowest, highest, steps)
    losses: list[float] = []
    ended = f"the highest rate, {highest:g}"
    with (
        RecordSet.of(data, "train") as records,
        closing(endless_batches(recipe, data, records, share, engine.host_array)) as batches,
    ):
        for step, rate, batch in zip(count(), rates, batches, strict=False):
            engine.train_batch(batch.images, batch.training_targets, float(rate), step_seed(recipe.seed, step))
            loss = reduced(engine, engine.totals()).loss
            if not math.isfinite(loss):
                ended = f"the loss was no longer finite at {rate:.3g}"
                break
            losses.append(loss)
            latest = mean_so_far(np.array(losses))
            if engine.rank == 0:
                show(step + 1, steps, f"  rate {rate:.3g}  loss {latest[-1]:.3f}")
            if latest[-1] > TOO_HIGH * latest.min():
                ended = f"the loss passed {TOO_HIGH:g} times its best at {rate:.3g}"
                break
    if not losses:
        raise BadRecipe("the very first loss is not finite", where=data.name, advice="give a lower --from")
    if engine.rank:
        return None
    key_factor = (recipe.optimizer.reference_batch_size or recipe.images_per_step) / recipe.images_per_step
    return curve_of(rates[: len(losses)], np.array(losses), steps, key_factor, ended)


def mean_so_far(losses: Losses) -> Losses:
    """Means of the losses so far, the weight of each SMOOTHING times that of the next (Kingma & Ba 2015, section 3)."""
    means, mean = np.empty_like(losses), 0.0
    for step, loss in enumerate(losses):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means[step] = mean / (1 - SMOOTHING ** (step + 1))
    return means


def capped(losses: Losses, tenth: int) -> Losses:
    """Losses above the highest of the first `tenth` count as that, so that an explosion does not reach back."""
    return np.minimum(losses, losses[:tenth].max())


def straight_lines(losses: Losses, reach: int) -> tuple[Losses, Losses]:
    """Heights and slopes (a step), at each step, of the straight line through the losses up to `reach` steps away.

    Their weights fall as a parabola with the distance (local regression, Cleveland 1979). Looking both ways, the
    heights are a smoothed loss that does not lag; at either end the line has losses on a single side.
    """
    heights, slopes = np.empty_like(losses), np.empty_like(losses)
    for step in range(len(losses)):
        near = np.arange(max(0, step - reach), min(len(losses), step + reach + 1))
        weights = 1 - ((near - step) / (reach + 1)) ** 2
        middle, height = np.average(near, weights=weights), np.average(losses[near], weights=weights)
        away = weights * (near - middle)
        # A single loss has a slope of 0.
        slopes[step] = away @ losses[near] / (away @ (near - middle) or 1.0)
        heights[step] = height + slopes[step] * (step - middle)
    return heights, slopes


def steepest(heights: Losses, slopes: Losses, reach: int) -> int | None:
    """The step before the lowest height where the loss falls fastest; None if it never does.

    Only lines that have losses on both sides count: another's slope is that of a point further in.
    """
    slopes = slopes[reach : min(int(heights.argmin()), len(slopes) - reach)]
    if not len(slopes) or slopes.min() >= 0:
        return None
    return reach + int(slopes.argmin())


def curve_of(rates: Losses, losses: Losses, steps: int, key_factor: float, ended: str) -> RateCurve:
    """The curve of what was measured in a search of `steps` steps, and the suggestion; see RateCurve.

    `key_factor` is the recipe's key over the rate of a step.
    """
    tenth = steps // 10
    # The rate grows by equal factors, so a slope over the steps is a slope over its logarithm.
    heights, slopes = straight_lines(capped(losses, tenth), tenth)
    step = steepest(heights, slopes, tenth)
    suggestion = None if step is None else float(rates[step])
    key_value = None if suggestion is None else suggestion * key_factor
    return RateCurve(rates, losses, heights, suggestion, key_value, ended)


def _require_range(lowest: float, highest: float, steps: int) -> None:
    if not 0 < lowest < highest < math.inf:
        raise BadRecipe(
            "not a range of learning rates",
            where="--from and --to",
            expected="two rates above 0 that grow",
            found=f"{lowest:g}, {highest:g}",
        )
    if steps < FEWEST_STEPS:
        raise BadRecipe("too few steps", where="--steps", expected=f"at least {FEWEST_STEPS}", found=steps)


def draw_rates(curve: RateCurve, out: Path) -> None:
    """Draw `out` (PNG): losses pale, smoothed solid, the suggestion a dotted vertical."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(curve.rates, curve.losses, color=COLOURS[0], alpha=0.25, label="loss of each step")
    axes.semilogx(curve.rates, curve.smoothed, color=COLOURS[0], label="smoothed loss")
    if curve.suggestion is not None:
        axes.axvline(curve.suggestion, color=COLOURS[1], linestyle=":", label=f"falls fastest: {curve.suggestion:.2g}")
    axes.set_ylim(*shown_losses(curve))
    axes.set_xlabel("learning rate")
    axes.set_title("loss", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    files.write_whole(out, png(figure))


def shown_losses(curve: RateCurve) -> tuple[float, float]:
    """Least and most on the picture: all of the smoothed loss, and of the losses all but the explosion and odd ones."""
    falling = curve.losses[: int(curve.smoothed.argmin()) + 1]
    low = float(min(curve.smoothed.min(), curve.losses.min()))
    high = float(max(curve.smoothed.max(), np.percentile(falling, 98)))
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin
