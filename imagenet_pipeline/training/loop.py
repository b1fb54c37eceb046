"""The training loop."""

from __future__ import annotations

from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import find_checkpoint, has_checkpoint
from imagenet_pipeline.training.distributed import agreed
from imagenet_pipeline.training.epoch import train_epoch, validate
from imagenet_pipeline.training.interruption import Interruption
from imagenet_pipeline.training.run import Run
from imagenet_pipeline.training.saving import Outcome, note_end, note_stop, save_epoch, save_part


def train(run: Run) -> Outcome:
    """Train from where the run stands until nothing is left to do, or a signal asks to stop; closes the run.

    Every epoch is validated, saved and journalled before the next begins. A signal in its validation leaves it a part
    with no step to come, whose validation a restart begins anew. Raises BadRecipe when the loss is no
    longer finite, naming the step; the checkpoints before it stand.
    """
    outcome = Outcome(run.epoch, run.step, finished=True)
    with run.held as opened:
        if run.is_done(run.epoch):
            return note_end(run, outcome)
        records = opened.enter_context(RecordSet.open(run.data.folder, "train"))
        validation = None
        if run.data.counts.get("val"):
            validation = opened.enter_context(RecordSet.open(run.data.folder, "val"))
        interruption = opened.enter_context(Interruption(lambda how: _answer(run, how)))

        while not run.is_done(outcome.epoch):
            epoch = outcome.epoch
            run.thaw(epoch)
            passed = train_epoch(run, records, epoch, interruption)
            validated = None
            ended = passed.step == (epoch + 1) * run.steps_per_epoch
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
    """The line for somebody who asks the run to stop; one process of a group gives it."""
    if not run.leads:
        return ""
    lost = "everything, since nothing is saved yet"
    if has_checkpoint(run.folder):
        lost = f"what came after {find_checkpoint(run.folder, 'latest').name}"
    return (
        "stopping: this step ends, or the validation before its end, and the run is saved; "
        f"{how} again ends at once and loses {lost}"
    )
