"""Changes that a restart may make to a recipe, and those of earlier starts that stay in force."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, load_recipe, load_run_recipe, options, read_recipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.catalog import FILE_NAME, is_custom
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.training.checkpoint import Checkpoint, State
from imagenet_pipeline.training.data import with_window_shards
from imagenet_pipeline.training.engine_setup import as_kept, is_network_of, with_single_output
from imagenet_pipeline.training.journal import Event
from imagenet_pipeline.training.schedule import relative_rate, steps_of, warmup_steps

log = logging.getLogger("imagenet_pipeline")

_OF_WEIGHTS = (
    "input.transform", "network", "input.size", "input.height", "input.width", "input.channels", "loss.threshold",
)  # fmt: skip
"""Keys a restart cannot change: the weights would not mean the same."""
_OF_ORDER = ("seed", "batch_size", "loader.window_shards", "loader.order", "loader.repeats")
"""Nor these, once there was a step: the position in the order of images would not."""
_KEPT_ON_OR_OFF = ("average_decay", "distillation.teacher")
"""These may change but not be switched: no average, and no teacher, could make up for the steps it did not see."""
_INITIAL = (
    "initial.kind", "initial.weights", "initial.new_head", "initial.mean", "initial.std", "initial.zero_last_scale",
    "initial.bias", "input.transform_images", "input.transform_epsilon", "input.transform_components",
)  # fmt: skip
"""Keys that a restart would not even read."""
FARTHEST = 100.0
"""Largest ratio of a schedule's highest rate to the run's own, or to a rate asked for: two drops to a tenth."""


def carried_overrides(events: list[Event]) -> dict[str, Any]:
    """Read the overrides in force at the last start of a run."""
    starts = [event for event in events if event["event"] in ("start", "resume")]
    return dict(starts[-1]["overrides"]) if starts else {}


def carried_network(carried: dict[str, Any], given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The carried overrides with the run's own file for a network of earlier command lines that was kept as one.

    Where this start is `given` a network or options for it, all are taken by their words: the run then compares.
    """
    words = [key for key in carried if _is_of_network(key)]
    is_kept = any(key != "network" or is_custom(str(carried[key])) for key in words)
    if not is_kept or any(_is_of_network(key) for key in given) or not (folder / FILE_NAME).exists():
        return carried
    others = {key: value for key, value in carried.items() if key not in words}
    return {**others, **_own_network(folder)}


def without_own_network(carried: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The carried overrides that somebody gave: not the run's own file, which stands for theirs of the network."""
    own = _own_network(folder)
    return {key: value for key, value in carried.items() if own.get(key) != value}


def _own_network(folder: Path) -> dict[str, Any]:
    """The overrides that name the run's own file of its network, whose options are made."""
    return {"network": str(folder / FILE_NAME), "network_options": {}}


def _is_of_network(key: str) -> bool:
    return key.split(".")[0] in ("network", "network_options")


def begun_with(events: list[Event], folder: Path) -> Recipe:
    """Read the recipe of the last start, by the journal: the file in the run folder may have been changed since.

    Journals of older versions leave it to the file. Says where the two are not the same.
    """
    recorded = _last(events, "recipe")
    path = folder / "recipe.toml"
    digest = _last(events, "recipe_digest")
    if digest is not None and path.exists() and files.sha256_of(path) != digest:
        log.warning("%s: has changed since the last start; what differs in what is trained now is said below", path)
    return load_recipe(path) if recorded is None else read_recipe(recorded, str(path))


def with_same_window(begun: Recipe, now: Recipe, events: list[Event]) -> tuple[Recipe, Recipe]:
    """Both recipes with `loader.window_shards` as it is in force: "auto" goes on with that of the last start.

    It stays "auto" where no start has settled it, after an import; older versions knew no windows.
    """
    if begun.loader.window_shards == "auto":
        imported = bool(_starts(events)) and _starts(events)[-1]["event"] == "import"
        begun = with_window_shards(begun, now.loader.window_shards if imported else 0)
    if now.loader.window_shards == "auto":
        now = with_window_shards(now, begun.loader.window_shards)
    return begun, now


def with_same_decay(begun: Recipe, now: Recipe) -> Recipe:
    """The recipe with `schedule.decay` as it is in force: "auto" goes on with that of the last start, a number."""
    if now.schedule.decay != "auto" or begun.schedule.kind != now.schedule.kind:
        return now
    return now.model_copy(update={"schedule": now.schedule.model_copy(update={"decay": begun.schedule.decay})})


def engine_of_last_start(events: list[Event]) -> str | None:
    """Name the engine a run was last started with; None where the journal does not say."""
    engine: str | None = _last(events, "engine")
    return engine


def batch_size_of_last_start(events: list[Event]) -> int | None:
    """The batch of a run's last start, which "auto" goes on with; None where the journal does not say."""
    recorded = _last(events, "recipe")
    batch_size = None if recorded is None else recorded.get("batch_size")
    return batch_size if isinstance(batch_size, int) else None


def _starts(events: list[Event]) -> list[Event]:
    return [event for event in events if event["event"] in ("start", "resume", "import")]


def _last(events: list[Event], key: str) -> Any:
    starts = _starts(events)
    return starts[-1].get(key) if starts else None


def placed(start: Checkpoint, recipe: Recipe, steps_per_epoch: int) -> Checkpoint:
    """The checkpoint with its finished steps; of one imported without records its epochs alone are known.

    An epoch that was cut short is one begun, where the recipe has steps for it now.
    """
    state = start.state
    if not state.is_cut_short:
        state = replace(state, step=max(state.step, state.epoch * steps_per_epoch))
    elif state.step < steps_of(recipe, steps_per_epoch):
        state = replace(state, epoch=state.epoch - 1, metrics={})
    return replace(start, state=state)


def is_restored(events: list[Event], state: State) -> bool:
    """Tell whether the run ended and went back to the epoch of this state."""
    return any(event["event"] == "end" and event.get("restored") == state.epoch for event in events[-1:])


@dataclass(frozen=True)
class AskedRate:
    """A learning rate that a restart was given, and the step whose rate it was to be."""

    learning_rate: float
    step: int
    epoch: int | None = None
    """Epochs validated by then: a schedule that goes by scores knew no more."""


@dataclass(frozen=True)
class RateInForce:
    """The rate that a restart goes on with: the recipe with the schedule's highest, and the journal's words on it.

    `overrides` are what the command lines so far come to, `asked` what of them the schedule goes by.
    """

    recipe: Recipe
    overrides: dict[str, Any]
    asked: AskedRate | None


def rate_in_force(
    recipe: Recipe,
    overrides: dict[str, Any],
    given: bool,
    at: AskedRate,
    begun: Recipe,
    events: list[Event],
    steps_per_epoch: int,
    rows: Sequence[Event],
) -> RateInForce:
    """Find the rate that a restart goes on with, and the schedule's highest that it takes.

    `at` is the recipe's rate at the step of the restart; it counts where this command line has `given` it. Else the
    last rate asked for up to there does, and a rate asked for at a later step is left behind with its branch.
    Raises BadRecipe as `with_rate_asked` does.
    """
    asked, left_behind = (at, None) if given else _asked_before(events, at.step)
    own_rate = first_rate(events, begun)
    if left_behind is not None:
        rate = asked.learning_rate if asked else own_rate
        overrides = {**overrides, "optimizer.learning_rate": rate}
        log.info("the learning rate asked for at step %d is left behind; %g is in force", left_behind.step, rate)
    if at.step >= steps_of(recipe, steps_per_epoch) and (asked or left_behind):
        # Nothing is left to train; a later restart with more epochs looks at it anew.
        recipe = with_rate(recipe, begun.optimizer.learning_rate)
    elif asked is not None:
        recipe = with_rate_asked(recipe, asked, steps_per_epoch, rows, own_rate)
    elif left_behind is not None:
        recipe = with_rate(recipe, own_rate)
    return RateInForce(recipe, overrides, asked)


def _asked_before(events: list[Event], step: int) -> tuple[AskedRate | None, AskedRate | None]:
    """The rate asked for last up to a step, and the last rate asked for at a later step.

    None of either in journals of older versions, which know the schedule's highest alone.
    """
    later = None
    for start in reversed(_starts(events)):
        recorded = start.get("asked_rate")
        if recorded is None:
            break
        asked = AskedRate(**recorded)
        if asked.step <= step:
            return asked, later
        later = later or asked
    return None, later


def with_rate_asked(
    recipe: Recipe, asked: AskedRate, steps_per_epoch: int, rows: Sequence[Event], own_rate: float
) -> Recipe:
    """Derive the recipe whose schedule has the asked rate at its step, or where that is inside a warm-up rises to it.

    `rows` are those of the history, `own_rate` the rate the run began with. A rate is for the reference batch, where
    there is one. Raises BadRecipe where the schedule's highest would be more than FARTHEST times the larger of the
    two: at the end of a schedule every rate is a small share of the highest, and a later restart may reach that.
    """
    given, step, steps = asked.learning_rate, asked.step, steps_of(recipe, steps_per_epoch)
    rate = given
    if step + 1 >= warmup_steps(recipe.schedule, steps_per_epoch, steps):
        known = step // steps_per_epoch if asked.epoch is None else asked.epoch
        before = [row for row in rows if row["epoch"] <= known]
        share = relative_rate(recipe.schedule, step, steps_per_epoch, steps, before)
        rate = given / share
        if rate > FARTHEST * max(own_rate, given):
            possible = 0.99 * FARTHEST * own_rate * share
            raise BadRecipe(
                f"the schedule is so far down at step {step} that its highest rate would become {rate:.4g}",
                where=f"optimizer.learning_rate = {given:g}",
                expected=f"at most {FARTHEST:g} times {max(own_rate, given):g}",
                advice=f"ask for {possible:.3g} or less, or give more epochs or another schedule",
            )
    log.info("learning rate %g at step %d, as asked: the schedule's highest is %g", given, step, rate)
    return with_rate(recipe, rate)


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    """Copy the recipe with this `optimizer.learning_rate`."""
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"learning_rate": rate})})


def first_rate(events: list[Event], begun: Recipe) -> float:
    """The `optimizer.learning_rate` that the run began with, by its journal."""
    starts = [event["recipe"] for event in events if event["event"] in ("start", "import") and "recipe" in event]
    return float(starts[-1]["optimizer"]["learning_rate"]) if starts else begun.optimizer.learning_rate


def say_other_threads(events: list[Event], engine: Engine) -> None:
    """Say where the CPU computes with another number of threads than at the last start."""
    before = _last(events, "threads")
    on_cpu = any("cpu" in name.lower() for name in engine.device_names)
    if before not in (None, engine.threads) and on_cpu and _last(events, "engine") == engine.name:
        log.warning(
            "compute threads: %d, and %d at the last start: the last bits of sums differ from those of a run never "
            "stopped; OMP_NUM_THREADS=%d would give the same bytes",
            engine.threads, before, before,
        )  # fmt: skip


def changes_of(begun: Recipe, now: Recipe) -> dict[str, Any]:
    """The keys whose values differ from those of the last start, told to the reader."""
    before, after = dict(options(as_kept(begun))), dict(options(as_kept(now)))
    changes = {key: value for key, value in after.items() if value != before[key]}
    for key, value in changes.items():
        log.info("changed since the last start: %s = %r, was %r", key, value, before[key])
    return changes


def keys_unlike(recipe: Recipe, run: Path, classes: ClassTable) -> list[str]:
    """The keys in which a recipe for these classes differs from a run's own; "auto" is whatever the run made of it.

    Raises BadRecipe where the run's cannot be read.
    """
    kept, recipe = load_run_recipe(run), with_single_output(recipe, classes)
    has_its_network = is_network_of(recipe, kept.whole_network, len(classes))
    before = dict(options(kept))
    others = [key for key, value in options(recipe) if not _is_of_network(key) and value not in ("auto", before[key])]
    return others if has_its_network else ["network", *others]


def require_unchanged(begun: Recipe, now: Recipe, step: int, folder: Path) -> None:
    """Raise BadRecipe for a key whose change at this step would spoil the run, or do nothing.

    Of networks that are files the content counts, which the checkpoint knows.
    """
    before, after = dict(options(as_kept(begun))), dict(options(as_kept(now)))
    switched = [key for key in _KEPT_ON_OR_OFF if step and bool(before[key]) != bool(after[key])]
    for key in (*_OF_WEIGHTS, *(_OF_ORDER if step else ()), *switched, *_INITIAL):
        if before[key] != after[key]:
            why = "acts only at the start of a run" if key in _INITIAL else "cannot change within a run"
            raise BadRecipe(
                f"recipe key {key!r} {why}",
                where=folder,
                expected=repr(before[key]),
                found=repr(after[key]),
                advice="put it back, or start a new run with --run",
            )
