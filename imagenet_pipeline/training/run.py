"""A run folder: opened new, or taken up again at a checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, load_recipe, recipe_text
from imagenet_pipeline.engines import Blueprint, Engine, Values, create_engine
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange.weights import read_weights, starting_values
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape
from imagenet_pipeline.networks.zoo import ZooNetwork
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import (
    Checkpoint,
    State,
    find_checkpoint,
    has_checkpoint,
    load_checkpoint,
    prune,
    set_aside_later,
)
from imagenet_pipeline.training.journal import Journal, branches, write_history
from imagenet_pipeline.training.records import IMPORTED, records_of, require_its_classes
from imagenet_pipeline.training.restart import carried_overrides, changes_of, require_unchanged, with_rate_now

log = logging.getLogger("imagenet_pipeline")


@dataclass
class Run:
    """What the training loop works on. `start` is the checkpoint it goes on from, if any."""

    folder: Path
    recipe: Recipe
    data: DataSet
    engine: Engine
    journal: Journal
    start: Checkpoint | None
    steps_per_epoch: int
    lock: BinaryIO
    """Held while the run is open, so that no other process trains in the same folder."""

    @property
    def epoch(self) -> int:
        """Finished epochs at the start."""
        return self.start.state.epoch if self.start else 0

    @property
    def step(self) -> int:
        """Finished steps at the start."""
        return self.start.state.step if self.start else 0

    def state(self, epoch: int, step: int, metrics: dict[str, Any], partial: dict[str, float]) -> State:
        """The state to save with a checkpoint now."""
        return State(
            epoch=epoch,
            step=step,
            network=self.recipe.network,
            input_size=self.recipe.input.size,
            classes=self.data.classes.ids,
            class_names=self.data.classes.names,
            class_order=self.data.classes.order,
            mean=self.start.state.mean if self.start else self.data.mean,
            std=self.start.state.std if self.start else self.data.std,
            data_digest=self.data.digest,
            engine=self.engine.name,
            versions=self.engine.versions,
            metrics=metrics,
            partial=partial,
            crop_fraction=self.recipe.input.crop_fraction,
        )


def open_run(
    recipe_path: Path, overrides: dict[str, Any], folder: Path | None = None, resume: str | None = None
) -> Run:
    """Start a run, or take one up at checkpoint `resume` ("latest" or an epoch).

    Overrides given to earlier starts of the run stay in force. A learning rate among `overrides` is the rate of
    the very step the run goes on with (inside a warm-up: the rate it rises to); the schedule keeps its form.
    A run that was stopped before its first checkpoint begins again, with or without "latest".
    """
    folder = folder or _default_folder(recipe_path)
    if resume is None:
        return _new_run(folder, load_recipe(recipe_path, overrides), overrides)
    journal = Journal(folder)
    if not journal.exists():
        raise BadRecipe("there is no run to resume", where=folder, advice="start it without --resume")
    rate_given = "optimizer.learning_rate" in overrides
    carried = {key: value for key, value in carried_overrides(journal.events()).items() if key not in overrides}
    if carried:
        words = " ".join(f"{key}={value}" for key, value in carried.items())
        log.info("still in force from earlier command lines: %s", words)
    overrides = {**carried, **overrides}
    recipe = load_recipe(recipe_path, overrides)
    if resume == "latest" and not has_checkpoint(folder):
        log.info("nothing was saved before this run was stopped: it begins again")
        return _new_run(folder, recipe, overrides)
    lock = _claim(folder)
    try:
        return _resumed_run(folder, lock, recipe, overrides, resume, rate_given)
    except BaseException:
        lock.close()
        raise


def _default_folder(recipe_path: Path) -> Path:
    # A run's own recipe means that run, not one that happens to be called "recipe".
    if recipe_path.name == "recipe.toml" and (recipe_path.parent / "checkpoints").is_dir():
        return recipe_path.parent
    return Path("output/runs") / run_name(recipe_path)


def run_name(recipe_path: Path) -> str:
    """The folder name of a recipe's run: its path below `config`, "imagenette-resnet18", or just its own name."""
    words = recipe_path.with_suffix("").parts
    below = words[words.index("config") + 1 :] if "config" in words[:-1] else words[-1:]
    return "-".join(below)


def build_engine(recipe: Recipe, state: State, weights: Any) -> Engine:
    """An engine that holds a checkpoint's weights."""
    network = catalog.build(state.network, len(state.classes))
    blueprint = _blueprint(recipe, network, state.input_size, state.mean, state.std)
    return create_engine(recipe.engine, blueprint, weights)


def _blueprint(
    recipe: Recipe, network: Sequential | ZooNetwork, input_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Blueprint:
    return Blueprint(
        network,
        input_size,
        mean,
        std,
        recipe.optimizer,
        recipe.devices,
        recipe.precision,
        recipe.loss,
        recipe.compile,
        recipe.seed,
    )


def _claim(folder: Path) -> BinaryIO:
    lock = files.claim(folder / ".lock", folder, "training")
    for place in (folder, folder / "checkpoints"):
        files.remove_parts(place)
    return lock


def _new_run(folder: Path, recipe: Recipe, overrides: dict[str, Any]) -> Run:
    if has_checkpoint(folder):
        raise BadRecipe(
            "a run is here already",
            where=folder,
            advice="go on with --resume latest, or choose another --run",
        )
    data = records_of(recipe)
    steps_per_epoch = _steps_per_epoch(recipe, data)
    network = catalog.build(recipe.network, len(data.classes))
    blueprint = _blueprint(recipe, network, recipe.input.size, data.mean, data.std)
    engine = create_engine(recipe.engine, blueprint, _first_values(recipe, network, blueprint.input_shape))
    lock, journal = _claim(folder), Journal(folder)
    files.write_whole(folder / "recipe.toml", recipe_text(recipe))
    _tell(engine)
    journal.write("start", overrides=overrides, **_weights_file(recipe), **_provenance(recipe, data, engine))
    return Run(folder, recipe, data, engine, journal, None, steps_per_epoch, lock)


def _first_values(recipe: Recipe, network: Sequential | ZooNetwork, input_shape: Shape) -> Values | None:
    """Those of the file `initial.weights`, or drawn; None where a zoo's network shall draw its own."""
    file = recipe.initial.weights
    if isinstance(network, ZooNetwork):
        return read_weights(Path(file)) if file else None
    drawn = initial_values(network, input_shape, recipe.initial.kind, recipe.seed)
    return starting_values(Path(file), network, input_shape, drawn) if file else drawn


def _weights_file(recipe: Recipe) -> dict[str, Any]:
    file = recipe.initial.weights
    return {"initial_weights": {"file": file, "sha256": files.sha256_of(Path(file))}} if file else {}


def _resumed_run(
    folder: Path, lock: BinaryIO, recipe: Recipe, overrides: dict[str, Any], resume: str, rate_given: bool
) -> Run:
    journal = Journal(folder)
    begun = load_recipe(folder / "recipe.toml")
    start = load_checkpoint(find_checkpoint(folder, resume))
    require_unchanged(begun, recipe, start.state.step, folder)
    data = records_of(recipe)
    require_its_classes(start.state, data)
    if start.state.data_digest not in (IMPORTED, data.digest):
        raise BadInput("not the records this run began with", where=data.folder, advice="start a new run")
    steps_per_epoch = _steps_per_epoch(recipe, data)
    finished = start.state.epoch >= recipe.epochs
    changes = changes_of(begun, recipe)
    if rate_given and not finished:
        recipe = with_rate_now(recipe, start.state.step, steps_per_epoch)
        overrides = {**overrides, "optimizer.learning_rate": recipe.optimizer.learning_rate}
    engine = build_engine(recipe, start.state, start.weights)
    engine.set_optimizer_state(start.optimizer)
    _tell(engine)
    _complete_journal(journal, start.state)
    if finished:
        log.info("all %d epochs are done; epochs=%d would go on", start.state.epoch, start.state.epoch + 1)
    else:
        branch = set_aside_later(folder, start.folder)
        if branch:
            log.info("the later checkpoints of the earlier branch are kept in %s", branch)
        files.write_whole(folder / "recipe.toml", recipe_text(recipe))
        place = {"epoch": start.state.epoch, "step": start.state.step}
        journal.write("resume", **place, overrides=overrides, changes=changes, **_provenance(recipe, data, engine))
    write_history(folder, journal.events())
    prune(folder, recipe.checkpoint.keep)
    return Run(folder, recipe, data, engine, journal, start, steps_per_epoch, lock)


def _complete_journal(journal: Journal, state: State) -> None:
    # A kill just after a checkpoint leaves its line to the restart.
    written = [row["epoch"] for row in branches(journal.events())[-1]]
    if state.metrics and state.epoch not in written:
        journal.write("epoch", **state.metrics)


def _steps_per_epoch(recipe: Recipe, data: DataSet) -> int:
    images = data.counts.get("train", 0)
    steps = images // recipe.batch_size
    if steps == 0:
        raise BadRecipe(
            "batch_size exceeds the training records", where=data.folder, expected=f"at most {images}",
            found=recipe.batch_size,
        )  # fmt: skip
    return steps


def _tell(engine: Engine) -> None:
    log.info("%s on %s, %s", engine.name, ", ".join(engine.device_names), engine.precision)


def _provenance(recipe: Recipe, data: DataSet, engine: Engine) -> dict[str, Any]:
    return {
        "engine": engine.name,
        "versions": engine.versions,
        "devices": list(engine.device_names),
        "precision": engine.precision,
        "data_digest": data.digest,
        "learning_rate": recipe.optimizer.learning_rate,
    }
