"""The training loop."""

from __future__ import annotations

from contextlib import ExitStack

from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.curves import draw_curves
from imagenet_pipeline.training.epoch import train_epoch, validate
from imagenet_pipeline.training.interruption import Interruption
from imagenet_pipeline.training.run import Run
from imagenet_pipeline.training.saving import Outcome, note_stop, save_epoch, save_part


def train(run: Run) -> Outcome:
    """Train from where the run stands to its last epoch, or until a signal asks to stop; closes the run.

    Every epoch is validated, saved and journalled before the next begins. Raises BadRecipe when the loss is no
    longer finite, naming the step; the checkpoints before it stand.
    """
    outcome = Outcome(run.epoch, run.step, finished=True)
    with ExitStack() as opened:
        opened.enter_context(run.lock)
        if run.epoch >= run.recipe.epochs:
            draw_curves([run.folder], run.folder / "curves.png")
            return outcome
        records = opened.enter_context(RecordSet.open(run.data.folder, "train"))
        validation = None
        if run.data.counts.get("val"):
            validation = opened.enter_context(RecordSet.open(run.data.folder, "val"))
        interruption = opened.enter_context(Interruption())

        for epoch in range(run.epoch, run.recipe.epochs):
            passed = train_epoch(run, records, epoch, interruption)
            if passed.step < (epoch + 1) * run.steps_per_epoch:
                return save_part(run, epoch, passed)
            validated = validate(run, validation, passed.step) if validation else None
            outcome = save_epoch(run, epoch + 1, passed, validated)
            if interruption.asked:
                return note_stop(run, outcome)
    run.journal.write("end", epoch=outcome.epoch, step=outcome.step)
    draw_curves([run.folder], run.folder / "curves.png")
    return outcome
