"""The training loop: epochs, each with its steps and its validation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np

from imagenet_pipeline.engines import Totals
from imagenet_pipeline.loading.loader import Batch
from imagenet_pipeline.processes import Interruption
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import find_checkpoint, has_checkpoint
from imagenet_pipeline.training.data import balanced_labels, loader_of, training_size
from imagenet_pipeline.training.distributed import agreed, reduced, settle
from imagenet_pipeline.training.metrics import score, watched
from imagenet_pipeline.training.run import Pass, Run, begun, diverged, require_finite
from imagenet_pipeline.training.saving import Outcome, draw_weights, note_end, note_stop, save_epoch, save_part
from imagenet_pipeline.training.schedule import learning_rate


def train(run: Run) -> Outcome:
    """Train from where the run stands until nothing is left to do, or a signal asks to stop; closes the run.

    Every epoch is validated, saved and journalled before the next begins. A signal in its validation leaves it a part
    with no step to come, whose validation a restart begins anew. Raises BadRecipe when the loss is no
    longer finite, naming the step; the checkpoints before it stand.
    """
    outcome = Outcome(run.epoch, run.step, finished=True)
    with run.resources as resources:
        if run.is_done(run.epoch):
            return note_end(run, outcome)
        records = resources.enter_context(RecordSet.of(run.data, "train"))
        validation = None
        if run.data.counts.get("val"):
            validation = resources.enter_context(RecordSet.of(run.data, "val"))
        if run.teacher:
            run.teacher.begin(run, records)
        interruption = resources.enter_context(Interruption(lambda how: _answer(run, how)))
        draw_weights(run, run.step)

        while not run.is_done(outcome.epoch):
            epoch = outcome.epoch
            run.thaw(epoch)
            passed = train_epoch(run, records, epoch, interruption)
            validated = None
            ended = passed.step >= run.end_of(epoch)
            if ended and validation:
                validated = validate(run, validation, passed.step, interruption)
            if not ended or (validation and validated is None):
                save_part(run, epoch, passed)
                return note_stop(run, Outcome(epoch, passed.step, finished=False))
            outcome = save_epoch(run, epoch + 1, passed, validated)
            if any(agreed(run.engine, interruption.asked)) and not run.is_done(outcome.epoch):
                return note_stop(run, outcome)
        return note_end(run, outcome)


def _answer(run: Run, how: str) -> str:
    """The line for somebody who asks the run to stop; rank 0 alone gives it."""
    if not run.leads:
        return ""
    lost = "everything, since nothing is saved yet"
    if has_checkpoint(run.folder):
        lost = f"what came after {find_checkpoint(run.folder, 'latest').name}"
    return (
        "stopping: this step ends, or the validation before its end, and the run is saved; "
        f"{how} again ends at once and loses {lost}"
    )


SECONDS_BETWEEN_READINGS = 1.0
"""Pause between readings of the losses off the device, for the bar and to notice a loss that is not finite."""


def train_epoch(run: Run, records: RecordSet, epoch: int, interruption: Interruption) -> Pass:
    """Steps of an epoch, from the run's own step in it; ends early, after a whole step, on a signal.

    Saves on the way, as the recipe's `checkpoint` section says. All ranks do all of it at the same steps.
    """
    recipe, engine = run.recipe, run.engine
    first_step, end = epoch * run.steps_per_epoch, run.end_of(epoch)
    passed = begun(run, epoch)
    size, classes = training_size(recipe.input, epoch), run.data.classes
    loader = loader_of(
        recipe, records, size, len(classes), run.share, empty=engine.host_array, label_kind=classes.label_kind,
        balanced=balanced_labels(recipe, run.data, records),
    )  # fmt: skip
    started = time.monotonic() - passed.seconds
    read_at = time.monotonic()
    with (
        Bar(f"epoch {epoch + 1}/{run.total_epochs}", "steps", shown=run.leads) as bar,
        loader.training(recipe.seed, epoch, recipe.augmentation, start_step=passed.step - first_step) as batches,
    ):
        for batch in islice(batches, max(0, end - passed.step)):
            passed.rate = learning_rate(recipe, passed.step, run.steps_per_epoch, run.rows)
            taught = run.teacher.logits(batch) if run.teacher else None
            seed = step_seed(recipe.seed, passed.step)
            engine.train_batch(batch.images, batch.training_targets, passed.rate, seed, taught)
            passed.count(batch, engine.ranks)
            draw_weights(run, passed.step)
            now = time.monotonic()
            passed.seconds = now - started
            stop, save, read = agreed(
                engine,
                interruption.asked,
                run.leads and run.save_is_due(passed.step, now),
                run.leads and now - read_at > SECONDS_BETWEEN_READINGS,
            )
            if stop:
                break
            if save or read:
                _read(run, passed)
                read_at = now
                bar.show(passed.step - first_step, end - first_step, passed.state(classes))
            if save and passed.step < end:
                save_part(run, epoch, passed)
        _read(run, passed)
    passed.seconds = time.monotonic() - started
    return passed


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's own randomness (dropout)."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _read(run: Run, passed: Pass) -> None:
    read = reduced(run.engine, run.engine.totals())
    require_finite(run, read, passed.step)
    passed.add(read)
    if read.images:
        run.loggers.add_reading(passed.step, read.loss, passed.rate)


def validate(run: Run, records: RecordSet, step: int, interruption: Interruption) -> Totals | None:
    """Score every record once, with the very values a checkpoint would hold; None where a signal ended it early."""
    recipe, engine = run.recipe, run.engine
    size, classes = recipe.input.scored_size, run.data.classes
    loader = loader_of(
        recipe, records, size, len(classes), run.share, empty=engine.host_array, label_kind=classes.label_kind
    )
    settle(engine)
    with _averages(run), loader.evaluation(recipe.input.crop_fraction) as batches:
        shown = watched(batches, "validation", shown=run.leads)
        totals = score(engine, _until_asked(run, shown, len(records) // recipe.images_per_step, interruption))
    if not np.isfinite(totals.loss):
        raise diverged(run, f"the validation loss is not finite ({totals.loss})", step - 1)
    return totals if totals.images == len(records) else None


def _until_asked(run: Run, batches: Iterator[Batch], whole: int, interruption: Interruption) -> Iterator[Batch]:
    """The batches up to the first after which some rank is asked to stop."""
    for done, batch in enumerate(batches, 1):
        yield batch
        # Ranks have the `whole` batches alike; what is left after them is less than a batch, and not all may have any.
        if done <= whole and any(agreed(run.engine, interruption.asked)):
            return


@contextmanager
def _averages(run: Run) -> Iterator[None]:
    """While the block runs, the engine holds its moving averages, where the recipe has it keep some."""
    if not run.recipe.average_decay:
        yield
        return
    trained = run.engine.values()
    run.engine.set_values(run.engine.averages())
    yield
    run.engine.set_values(trained)
