"""Opening a run folder, new or at a checkpoint; provenance of each start (data, versions, hardware) for the journal."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import imagenet_pipeline
from imagenet_pipeline import files
from imagenet_pipeline.config import INSTEAD, Recipe, find_recipe, load_recipe, options, recipe_text
from imagenet_pipeline.config.shipped import shipped_name
from imagenet_pipeline.engines import Engine, keys_of_ranks
from imagenet_pipeline.errors import BadInput, BadRecipe, counted
from imagenet_pipeline.networks.catalog import FILE_NAME
from imagenet_pipeline.processes import hardware
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import (
    Checkpoint,
    find_checkpoint,
    has_checkpoint,
    load_checkpoint,
    prune,
    save_checkpoint,
    set_aside_later,
)
from imagenet_pipeline.training.data import (
    IMPORTED,
    class_weights_of,
    records_of,
    require_fitting_loss,
    require_its_classes,
    require_no_secret,
    require_sizes,
    require_validation,
    steps_per_epoch,
    with_window,
)
from imagenet_pipeline.training.distributed import facts_of, require_agreement, require_even_shares, together
from imagenet_pipeline.training.engine_setup import (
    Beginning,
    as_kept,
    frozen_layers,
    image_shape,
    is_network_of,
    network_for,
    new_engine,
    own_copy,
    resumed_engine,
    with_engine,
    with_network_file,
    with_single_output,
)
from imagenet_pipeline.training.journal import Journal, branches, rows_until, write_history
from imagenet_pipeline.training.loggers import Loggers, Start, require_loggers
from imagenet_pipeline.training.restart import (
    AskedRate,
    batch_size_of_last_start,
    begun_with,
    carried_network,
    carried_overrides,
    changes_of,
    engine_of_last_start,
    first_rate,
    is_restored,
    placed,
    rate_in_force,
    require_unchanged,
    say_other_threads,
    with_same_decay,
    with_same_window,
    without_own_network,
)
from imagenet_pipeline.training.run import Run, nothing_left, teacher_of, trained_epochs
from imagenet_pipeline.training.schedule import highest_rate, settled_schedule, warmup_steps

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class RunSettings:
    """A run before it is opened: its recipe with every override in force, its folder, the checkpoint to go on from."""

    recipe: Recipe
    folder: Path
    resume: str | None
    given: dict[str, Any]
    """Overrides of this start, dotted key -> value."""
    carried: dict[str, Any]
    """Overrides of earlier starts that this start does not give again."""

    @property
    def overrides(self) -> dict[str, Any]:
        """All overrides in force."""
        return {**self.carried, **self.given}


def open_run(
    recipe: Recipe | str | Path,
    overrides: dict[str, Any] | None = None,
    folder: str | Path | None = None,
    resume: str | None = None,
) -> Run:
    """Start a run, or resume it at checkpoint `resume` ("latest", "best" or an epoch).

    Overrides given to earlier starts of the run stay in force. A learning rate among `overrides` is the rate of
    the very step the run goes on with (inside a warm-up: the rate it rises to); the schedule keeps its form.
    A run that was stopped before its first checkpoint begins again, with or without "latest".
    """
    return open_settled(run_settings(recipe, overrides, folder, resume))


def run_settings(
    recipe: Recipe | str | Path,
    overrides: dict[str, Any] | None = None,
    folder: str | Path | None = None,
    resume: str | None = None,
) -> RunSettings:
    """Read the recipe of a run, for what has to be known before the run is opened.

    A run folder in place of a recipe file means its own. Raises BadRecipe as `load_recipe` does, and for a recipe
    that is no file without a `folder`.
    """
    given = {key: str(value) if isinstance(value, Path) else value for key, value in (overrides or {}).items()}
    if not isinstance(recipe, Recipe):
        recipe, folder = _recipe_file_and_folder(find_recipe(recipe), folder)
    elif folder is None:
        raise BadRecipe(
            "a recipe without a file needs a folder for its run", where="run", expected="a folder for the run"
        )
    folder = Path(folder)
    journal = Journal(folder)
    carried: dict[str, Any] = {}
    engine = found = None
    if resume is not None and journal.exists():
        events = journal.events()
        engine, found = engine_of_last_start(events), batch_size_of_last_start(events)
        carried = {
            key: value
            for key, value in carried_overrides(events).items()
            if key not in given and INSTEAD.get(key) not in given
        }
        carried = carried_network(carried, given, folder)
    settled = with_engine(load_recipe(recipe, {**carried, **given}), engine)
    if found is not None and settled.batch_size == "auto":
        settled = settled.model_copy(update={"batch_size": found})
    return RunSettings(settled, folder, resume, given, carried)


def open_settled(settings: RunSettings) -> Run:
    """Open the run of these settings, as `open_run` does."""
    folder = settings.folder
    require_no_secret(settings.recipe)
    if settings.resume is None:
        return _new_run(settings)
    if not Journal(folder).exists():
        raise BadRecipe("there is no run to resume", where=folder, advice="start it without --resume")
    if carried := without_own_network(settings.carried, folder):
        shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in carried.items()}
        words = " ".join(f"{key}={value}" for key, value in shown.items())
        log.info("still in force from earlier command lines (a key given again changes it): %s", words)
    if settings.given.get("batch_size") == "auto" and settings.recipe.batch_size != "auto":
        log.info("batch_size=auto: the run keeps its %d; only a new run looks for the batch that fits",
                 settings.recipe.batch_size)  # fmt: skip
    if settings.resume == "latest" and not has_checkpoint(folder):
        log.info("nothing was saved before this run was stopped: it begins again")
        return _new_run(settings)
    return _resumed_run(settings, settings.resume)


def _recipe_file_and_folder(recipe: Path, folder: str | Path | None) -> tuple[Path, Path]:
    if recipe.is_dir() and (recipe / "recipe.toml").exists():
        return recipe / "recipe.toml", Path(folder or recipe)
    return recipe, Path(folder or _default_folder(recipe))


def _default_folder(recipe_path: Path) -> Path:
    # A run's own recipe means that run, not a run that happens to be called "recipe".
    if recipe_path.name == "recipe.toml" and (recipe_path.parent / "checkpoints").is_dir():
        return recipe_path.parent
    return Path("output/runs") / run_name(recipe_path)


def run_name(recipe_path: Path) -> str:
    """Name the run folder of a recipe: its path below `config`, "imagenette-resnet18", or just its own name."""
    if name := shipped_name(recipe_path):
        return name.replace("/", "-")
    words = recipe_path.with_suffix("").parts
    below = words[words.index("config") + 1 :] if "config" in words[:-1] else words[-1:]
    return "-".join(below)


def _new_run(settings: RunSettings) -> Run:
    folder, recipe = settings.folder, settings.recipe
    _require_no_run(folder)
    data = records_of(recipe)
    recipe = with_window(recipe, data)
    require_fitting_loss(recipe, data)
    recipe = with_single_output(recipe, data.classes)
    _require_possible(recipe, data)
    teacher = teacher_of(recipe, data, folder)
    recipe, engine, beginning = _begun(recipe, data)
    entry, steps = beginning.journal_entry, steps_per_epoch(recipe, data)
    recipe = settled_schedule(recipe, recipe.optimizer.learning_rate, steps)
    run = Run(folder, recipe, data, engine, Journal(folder), None, steps, [], beginning.normalisation, teacher)
    _require_agreement(run, entry.get("initial_weights", {}).get("sha256", ""))
    with _claimed(run):
        if run.leads:
            _require_no_run(folder)
            _keep_recipe(run)
            frozen = _tell(run)
            origin = {**provenance(run), **recipe_entry(folder, recipe)}
            run.journal.write("start", overrides=settings.overrides, **entry, **frozen, **origin)
    return run


def _begun(recipe: Recipe, data: DataSet) -> tuple[Recipe, Engine, Beginning]:
    """The engine of a new run, and the recipe with the batch that fits, where that is to be found. Collective then."""
    if recipe.batch_size != "auto":
        steps_per_epoch(recipe, data)
        return recipe, *new_engine(recipe, data)
    # Only a run that looks for it needs what finds it.
    from imagenet_pipeline.training.batch_size import agreed, find_batch_size

    found = find_batch_size(recipe, data)
    engine, beginning = new_engine(recipe, data)
    found = agreed(engine, found)
    entry = {**beginning.journal_entry, **found.entry()}
    return found.settle(recipe), engine, replace(beginning, journal_entry=entry)


def _keep_recipe(run: Run) -> None:
    """Write the run's recipe, and the file of a custom network or one with an input transform: it goes by that."""
    text, copy = own_copy(run.recipe, len(run.data.classes)), run.folder / FILE_NAME
    if text is not None:
        files.write_whole(copy, text)
        run.recipe = with_network_file(run.recipe, str(copy))
    files.write_whole(run.folder / "recipe.toml", recipe_text(as_kept(run.recipe)))


def _require_no_run(folder: Path) -> None:
    if has_checkpoint(folder):
        advice = "go on with --resume latest, or choose another --run"
        raise BadRecipe("the folder holds a run already", where=folder, advice=advice)


def _resumed_run(settings: RunSettings, resume: str) -> Run:
    folder, recipe = settings.folder, settings.recipe
    rate_given = "optimizer.learning_rate" in settings.given
    journal = Journal(folder)
    events = journal.events()
    begun, recipe = with_same_window(begun_with(events, folder), recipe, events)
    start = load_checkpoint(find_checkpoint(folder, resume))
    state = start.state
    data = records_of(recipe)
    require_fitting_loss(recipe, data)
    recipe = with_single_output(recipe, data.classes)
    require_unchanged(begun, recipe, state.step, folder)
    _require_its_own(start, recipe, data)
    recipe = with_window(recipe, data)
    _require_possible(recipe, data)
    teacher = teacher_of(recipe, data, folder, events)
    steps = steps_per_epoch(recipe, data)
    recipe = settled_schedule(with_same_decay(begun, recipe), first_rate(events, begun), steps)
    start = placed(start, recipe, steps)
    state = start.state
    rows = rows_until(events, state.epoch, state.metrics, folder / "journal.jsonl")
    if resume == "latest" and is_restored(events, state) and nothing_left(recipe, steps, 0, branches(events)[-1]):
        rows = branches(events)[-1]
    at = AskedRate(recipe.optimizer.learning_rate, state.step, state.epoch)
    rate = rate_in_force(recipe, settings.overrides, rate_given, at, begun, events, steps, rows)
    entry = {"overrides": rate.overrides, "changes": changes_of(begun, recipe if rate_given else rate.recipe)}
    if rate.asked is not None:
        entry["asked_rate"] = asdict(rate.asked)
    recipe = rate.recipe
    weights = class_weights_of(recipe.loss, data)
    engine = resumed_engine(recipe, state, start.trained, start.optimizer_state, weights)
    run = Run(folder, recipe, data, engine, journal, start, steps, rows, (state.mean, state.std), teacher)
    _require_agreement(run)
    with _claimed(run):
        if run.leads:
            if find_checkpoint(folder, resume) != start.folder:
                raise BadInput("another process was training here just now", where=folder, advice="try again")
            say_other_threads(events, engine)
            _write_resumed(run, entry)
    return run


def _write_resumed(run: Run, entry: dict[str, Any]) -> None:
    if run.recipe.log.pictures:
        from imagenet_pipeline.training.weight_pictures import forget_later

        forget_later(run.folder, run.step)
    frozen = _tell(run)
    written = [row["epoch"] for row in branches(run.journal.events())[-1]]
    if run.rows and run.rows[-1]["epoch"] not in written:
        # A kill just after a checkpoint leaves its line to the restart.
        run.journal.write(**run.rows[-1])
    _tell_done(run)
    if not run.is_done(run.epoch) and run.start:
        branch = set_aside_later(run.folder, _beginning_of(run, run.start))
        if branch:
            log.info("the later checkpoints of the earlier branch are kept in %s", branch)
        _keep_recipe(run)
        position = {"epoch": run.epoch, "step": run.step}
        origin = {**provenance(run), **recipe_entry(run.folder, run.recipe)}
        run.journal.write("resume", **position, **entry, **frozen, **origin)
    write_history(run.folder, run.journal.events())
    prune(run.folder, run.recipe.checkpoint.keep)


def _beginning_of(run: Run, start: Checkpoint) -> Path:
    """The folder that the run goes on from; that of an epoch cut short is of an epoch begun from now on."""
    if not start.state.partial or "-step-" in start.folder.name:
        return start.folder
    return save_checkpoint(run.folder, start.state, start.weights, start.optimizer)


def _tell_done(run: Run) -> None:
    epochs, steps = trained_epochs(run.epoch, run.rows), run.recipe.steps
    if epochs >= run.total_epochs:
        done = f"all {epochs} epochs are" if epochs != 1 else "the only epoch is"
        more = f"epochs={epochs + 1}"
        if steps:
            done, more = f"all {counted(steps, 'step')} are" if steps != 1 else "the only step is", f"steps={steps + 1}"
        log.info("%s done; %s would go on", done, more)


@contextmanager
def _claimed(run: Run) -> Iterator[None]:
    """Claim the folder for this run by a lock of rank 0; the other ranks wait for what the block writes."""
    with ExitStack() as resources, together(run.engine):
        if run.leads:
            resources.enter_context(files.claim(run.folder / ".lock", run.folder, "training"))
            for folder in (run.folder, run.folder / "checkpoints"):
                files.remove_parts(folder)
        yield
        if run.leads and not run.is_done(run.epoch):
            start = Start(run.folder, dict(options(run.recipe)), run.step, tuple(run.rows))
            run.loggers = Loggers.open(run.recipe.log.loggers, start)
            resources.callback(run.loggers.close)
        run.resources = resources.pop_all()


def _require_agreement(run: Run, weights_digest: str = "") -> None:
    """Raise BadRecipe where processes that train together do not mean the same run. Collective."""
    start = run.start
    facts = {
        "the content of initial.weights": weights_digest,
        "the normalisation of the input": repr(run.normalisation),
        "the checkpoint to go on from": f"{start.folder.name} {start.weights_digest}" if start else "",
        "the history so far": repr(run.rows),
        "the teacher": run.teacher.digest if run.teacher else "",
    }
    require_agreement(run.engine, facts_of(run.recipe, run.data, run.engine) | facts)
    require_even_shares(run.recipe, run.engine)


def _require_its_own(start: Checkpoint, recipe: Recipe, data: DataSet) -> None:
    """Raise BadInput for a checkpoint of another network, or of other classes or records than the recipe's."""
    state = start.state
    name = recipe.whole_network
    if not is_network_of(recipe, state.network, len(state.classes)):
        what = "the checkpoint is of another network"
        raise BadInput(what, where=start.folder, expected=name[:200], found=state.network)
    require_its_classes(state, data)
    if state.data_digest not in (IMPORTED, data.digest):
        raise BadInput("the records are not those this run began with", where=data.name, advice="start a new run")


def _require_possible(recipe: Recipe, data: DataSet) -> None:
    """Raise BadRecipe for records, sizes or loggers that cannot be had."""
    require_validation(recipe, data)
    require_sizes(recipe, network_for(recipe, recipe.whole_network, len(data.classes)))
    require_loggers(recipe.log.loggers)
    if recipe.log.pictures:
        from imagenet_pipeline.training.weight_pictures import require_drawable  # few runs draw any

        network = network_for(recipe, recipe.whole_network, len(data.classes))
        require_drawable(network, image_shape(recipe), recipe.log.pictures)


def _tell(run: Run) -> dict[str, Any]:
    """Say what the run trains on, and which layers are frozen to begin with; the latter as the journal has it."""
    engine = run.engine
    together = f", process 0 of {engine.ranks}" if engine.ranks > 1 else ""
    log.info("%s on %s, %s%s", engine.name, ", ".join(engine.device_names), engine.precision, together)
    for key in keys_of_ranks(run.recipe) if engine.ranks == 1 else ():
        log.info("%s has no effect in one process", key)
    _tell_warmup(run)
    frozen = frozen_layers(run.recipe, run.epoch)
    for layer in frozen:
        log.info("%s: frozen for the first %s", layer, counted(run.recipe.transfer.frozen[layer], "epoch"))
    return {"frozen": [*frozen]} if frozen else {}


def _tell_warmup(run: Run) -> None:
    recipe = run.recipe
    wanted, steps = recipe.schedule.warmup_epochs, warmup_steps(recipe.schedule, run.steps_per_epoch, run.total_steps)
    if steps < wanted * run.steps_per_epoch:
        log.warning(
            "warning: a warm-up of %g epoch%s in a run of %s is cut to half of it, %s, for the rate to come down",
            wanted, "" if wanted == 1 else "s", counted(run.total_epochs, "epoch"), counted(int(steps), "step"),
        )  # fmt: skip


def provenance(run: Run) -> dict[str, Any]:
    """Fields of a start or resume event on data, versions and hardware, and the teacher where there is one."""
    engine = run.engine
    return {
        "engine": engine.name,
        "versions": {
            "imagenet_pipeline": imagenet_pipeline.__version__,
            "python": platform.python_version(),
            **engine.versions,
        },
        "devices": list(engine.device_names),
        "threads": engine.threads,
        "ranks": engine.ranks,
        "precision": engine.precision,
        "hardware": hardware(),
        "data_digest": run.data.digest,
        "learning_rate": highest_rate(run.recipe),
        **({"teacher": run.teacher.entry} if run.teacher else {}),
    }


def recipe_entry(run: Path, recipe: Recipe) -> dict[str, Any]:
    """Fields of an event on the recipe, defaults included, once it is written into the run folder."""
    return {"recipe": as_kept(recipe).model_dump(mode="json"), "recipe_digest": files.sha256_of(run / "recipe.toml")}
