"""Hyperparameter search: a study of trials, each a run of its own, that Optuna proposes, prunes and keeps in SQLite.

The folder of a study:

    study.db       Optuna's trials
    recipe.toml    the recipe that every trial changes
    trials/0007    a run like any other, as `train` leaves it, and 0007.log, what it said
    trials.csv, study.png, best.toml    the trials, their importance and slices, the recipe of the best

A trial's value is the figure of its best epoch by `stopping.figure`: that of the checkpoint which `evaluate` takes.
Trials are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011), seeded anew for each, so that a study
that was killed proposes what it would have; the first are the recipe's own values. A trial is pruned after an epoch
where it is worse than the median of the earlier trials at that epoch (Golovin et al. 2017).
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, better, override_words, recipe_text
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom, PipelineError, error_said
from imagenet_pipeline.processes import Interruption, started_apart
from imagenet_pipeline.records.manifest import no_split
from imagenet_pipeline.training.data import records_of
from imagenet_pipeline.training.engine_setup import image_shape, network_for
from imagenet_pipeline.training.journal import Journal, branches
from imagenet_pipeline.training.tuning_space import Range, Space

try:
    import optuna
    from optuna.exceptions import StorageInternalError
    from optuna.trial import Trial, TrialState
    from sqlalchemy.exc import SQLAlchemyError

    from imagenet_pipeline.training.tuning_findings import Findings, best_of, ended, findings_of, proposed, write
except ImportError as error:
    raise BadRecipe(
        f"Optuna is not installed ({error})", where="tune", advice="pip install 'imagenet-pipeline[tune]'"
    ) from error

log = logging.getLogger("imagenet_pipeline")
optuna.logging.set_verbosity(optuna.logging.ERROR)

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_PICTURES = 30.0
TRIALS_BEFORE_PRUNING = 4
"""Whole trials that a median takes."""
NAME = "imagenet_pipeline"


@dataclass(frozen=True)
class Plan:
    """A search: the recipe that trials change, the keys searched, and where they run.

    `devices` are the values of the key `devices`, one a trial at a time; () is the recipe's own.
    """

    recipe: Recipe
    space: Space
    folder: Path
    trials: int = 20
    seed: int = 42
    prune: bool = True
    devices: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """The devices of each trial that may run at a time."""
        return self.devices or (self.recipe.devices,)


@dataclass
class _Running:
    """A trial whose run is under way in a process of its own."""

    trial: Trial
    place: str
    folder: Path
    process: subprocess.Popen[Any]
    pruned: bool = False
    told: set[int] = field(default_factory=set)
    journal_bytes: int = -1
    said: str = ""

    def has_news(self) -> bool:
        """Tell whether the run's journal has grown since this was asked."""
        path = self.folder / "journal.jsonl"
        before, self.journal_bytes = self.journal_bytes, path.stat().st_size if path.exists() else 0
        return self.journal_bytes != before


def tune(plan: Plan, show: Callable[[int, int, Sequence[str]], None]) -> Findings:
    """Run trials until the study has as many as planned, or a signal asks to stop; those under way are then saved.

    A study that is there goes on with the trials it has not ended. `show` is told (trials ended, of how many, state).
    Raises BadRecipe where the study is of another recipe or space, or where the first trial cannot be trained, Damaged
    or BadInput where its database cannot be read, OutOfRoom where a trial or the database has no room.
    """
    figure = _figure(plan.recipe)
    with files.claim(plan.folder / ".lock", plan.folder, "tuning"), _database(plan.folder / "study.db"):
        study = _study(plan, figure)
        _Search(plan, study, figure, show).run()
        found = findings_of(study, plan.folder, plan.trials, weighed=True)
        write(found, plan.space, drawn=True)
        return found


@contextmanager
def _database(path: Path) -> Iterator[None]:
    """Say in a line what SQLite has against the database of the study."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, sqlite3.Error):
            cause = cause.__cause__ or cause.__context__
        kinds = {"SQLITE_FULL": OutOfRoom, "SQLITE_NOTADB": Damaged, "SQLITE_CORRUPT": Damaged}
        kind = kinds.get(getattr(cause, "sqlite_errorname", ""), BadInput)
        advice = "the runs are whole, the study is lost: give another --out" if kind is Damaged else None
        raise kind(f"the study cannot be used ({cause or error})", where=path, advice=advice) from error


class _Search:
    """The trials under way, and what is done with what they tell."""

    def __init__(self, plan: Plan, study: optuna.Study, figure: str, show: Callable[..., None]) -> None:
        self._plan, self._study, self._figure, self._show = plan, study, figure, show
        self._running: list[_Running] = []
        self._drawn_at = time.monotonic()
        unfinished = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._left = [Trial(study, trial._trial_id) for trial in unfinished]
        self._count()

    def run(self) -> None:
        with Interruption(
            lambda how: f"stopping: the trials under way are saved ({how}); the same command goes on"
        ) as stop:
            try:
                while not stop.asked and (self._begin_more() or self._running):
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    for running in [*self._running]:
                        self._look_at(running)
            finally:
                for running in self._running:
                    running.process.send_signal(signal.SIGTERM)
                for running in self._running:
                    running.process.wait()

    def _begin_more(self) -> bool:
        """Begin trials on the places that are free; False where none is left to begin."""
        taken = [running.place for running in self._running]
        for place in self._plan.places:
            if place in taken:
                taken.remove(place)
                continue
            trial = self._next()
            if trial is None:
                return False
            self._running.append(_begun(self._plan, _drawn(self._study, self._plan, trial), place))
        return True

    def _next(self) -> Trial | None:
        if self._left:
            return self._left.pop(0)
        known = proposed(self._study)
        if len(known) >= self._plan.trials:
            return None
        if any(trial.state is TrialState.FAIL for trial in known) and not self._has_trained():
            return None  # what failed may fail every trial: the one under way will tell
        return self._study.ask()

    def _look_at(self, running: _Running) -> None:
        ended = running.process.poll() is not None
        if running.has_news() or ended:
            rows = _rows(running.folder)
            for row in rows:
                self._hear(running, row["epoch"], row[self._figure])
            running.said = self._said_of(running, rows)
        self._show(self._ended, self._plan.trials, [*self._best_said, running.said])
        if ended:
            self._running.remove(running)
            self._end(running, rows)

    def _hear(self, running: _Running, epoch: int, value: float) -> None:
        if epoch in running.told or running.pruned:
            return
        running.told.add(epoch)
        known = self._study._storage.get_trial(running.trial._trial_id).intermediate_values
        if epoch not in known:
            running.trial.report(value, epoch)
        if self._plan.prune and epoch < self._plan.recipe.epochs and running.trial.should_prune():
            running.pruned = True
            running.process.send_signal(signal.SIGTERM)

    def _end(self, running: _Running, rows: list[Any]) -> None:
        """Tell the study how a trial ended.

        Raises the error of its run where no other trial is under way or has come to an epoch, and where none could.
        """
        code, number = running.process.returncode, running.trial.number
        if running.pruned:
            self._study.tell(running.trial, state=TrialState.PRUNED)
        elif code == 0 and Journal(running.folder).last_event() != "end":
            self._left.append(running.trial)  # somebody asked that run alone to stop
        elif code == 0:
            self._study.tell(running.trial, better(self._figure)(row[self._figure] for row in rows))
        else:
            said = running.folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
            error = error_said(said, code)
            # Loss or weights have left the finite: as bad as can be, and worth knowing.
            diverged = code == BadRecipe.exit_code and "finite" in str(error)
            is_its_own = diverged or self._running or self._has_trained(besides=number)
            if not is_its_own or _ends_every_trial(error):  # it stays unfinished, for the same command to try again
                raise error.replaced(where=f"trial {number}: {error.where}" if error.where else f"trial {number}")
            running.trial.set_user_attr("reason", str(error))
            self._study.tell(running.trial, state=TrialState.PRUNED if diverged else TrialState.FAIL)
            log.warning("trial %d: %s", number, error)
        self._keep()

    def _has_trained(self, besides: int | None = None) -> bool:
        """Tell whether a trial has come to an epoch or its end, so that the recipe can be trained."""
        trials = self._study.get_trials(deepcopy=False)
        return self._ended > 0 or any(trial.intermediate_values for trial in trials if trial.number != besides)

    def _keep(self) -> None:
        """Write what is found so far; the picture, which takes longest, now and then."""
        drawn = time.monotonic() - self._drawn_at > SECONDS_BETWEEN_PICTURES
        write(findings_of(self._study, self._plan.folder, self._plan.trials, weighed=drawn), self._plan.space, drawn)
        if drawn:
            self._drawn_at = time.monotonic()
        self._count()

    def _count(self) -> None:
        """Take up from the study how many trials have ended, and which was the best."""
        best, self._ended = best_of(self._study), len(ended(self._study))
        self._best_said = [f"best {best.value:#.4g} (trial {best.number})"] if best else []

    def _said_of(self, running: _Running, rows: list[Any]) -> str:
        epoch = f"trial {running.trial.number}: epoch {len(rows)}/{self._plan.recipe.epochs}"
        return f"{epoch}  {rows[-1][self._figure]:#.4g}" if rows else epoch


def _figure(recipe: Recipe) -> str:
    """The figure trials are compared by. Raises BadRecipe where no split gives it, or for images too small."""
    data = records_of(recipe)
    network_for(recipe, recipe.whole_network, len(data.classes)).shapes(image_shape(recipe))
    figure = recipe.stopping.followed_of(data.classes.label_kind)
    if figure.startswith("validation") and not data.counts.get("val"):
        raise no_split(data.name, "val", data.counts).replaced(advice="trials are compared by validation: build one")
    return figure


def _study(plan: Plan, figure: str) -> optuna.Study:
    """The study in the folder, or a new one. Raises BadRecipe where that is of another recipe, space or seed."""
    trials, recipe = plan.folder / "trials", recipe_text(plan.recipe)
    trials.mkdir(parents=True, exist_ok=True)
    identity = {"recipe": recipe, "space": plan.space.text(), "seed": plan.seed, "figure": figure}
    study = _opened(plan.folder, figure)
    is_same = all(study.user_attrs.get(key) == value for key, value in identity.items())
    if study.user_attrs and not is_same and not ended(study) and not any(trials.glob("*/checkpoints/*")):
        # It has found nothing yet, since its recipe could not be trained.
        files.remove_folder(trials)
        optuna.delete_study(study_name=NAME, storage=study._storage)
        return _study(plan, figure)
    if study.user_attrs:
        _require_same(study.user_attrs, identity, plan.folder)
        return study
    if any(trials.iterdir()):
        advice = "runs of a study that is not known are not gone on with: move them away, or give another --out"
        raise BadRecipe("trials without their study", where=trials, expected=f"{NAME} in study.db", advice=advice)
    files.write_whole(plan.folder / "recipe.toml", recipe)
    if not study.get_trials(deepcopy=False) and (own := plan.space.own_values(plan.recipe)) is not None:
        study.enqueue_trial(own)
    for key, value in identity.items():  # last: a study with all of them is whole
        study.set_user_attr(key, value)
    return study


def _opened(folder: Path, figure: str) -> optuna.Study:
    return optuna.create_study(
        storage=f"sqlite:///file:{quote(str(folder / 'study.db'))}?uri=true",  # a "?" ends the name otherwise
        study_name=NAME,
        direction="minimize" if better(figure) is min else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING),
        load_if_exists=True,
    )


def _require_same(kept: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    for key in ("recipe", "space", "seed", "figure"):
        if kept.get(key) != asked[key]:
            old, new = str(kept.get(key)).splitlines(), str(asked[key]).splitlines()
            lost, found = (next((line for line in a if line not in b), "") for a, b in ((old, new), (new, old)))
            raise BadRecipe(
                f"the study here is of another {key}", where=folder, expected=lost or None, found=found or None,
                advice="give another --out, or what the study was begun with",
            )  # fmt: skip


def _drawn(study: optuna.Study, plan: Plan, trial: Trial) -> Trial:
    """The trial with a value for every key; those it has already stay.

    Each is drawn by a sampler of its own, which depends on the seed, the trial's number and the key's place alone: so
    a study that was killed between two of them draws what it would have.
    """
    for place, (key, kind) in enumerate(plan.space.keys.items()):
        seed = int(np.random.SeedSequence([plan.seed, trial.number, place]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=len(plan.places) > 1)
        if not isinstance(kind, Range):
            trial.suggest_categorical(key, kind)
        elif kind.whole:
            trial.suggest_int(key, int(kind.low), int(kind.high), log=kind.logarithmic)
        else:
            trial.suggest_float(key, kind.low, kind.high, log=kind.logarithmic)
    return trial


def _begun(plan: Plan, trial: Trial, place: str) -> _Running:
    """Start the run of a trial, or go on with it; its process ends with this one."""
    folder = plan.folder / "trials" / f"{trial.number:04d}"
    changes = plan.space.changes(trial.params) | ({"devices": place} if plan.devices else {})
    words = ["train", str(plan.folder / "recipe.toml"), "--run", str(folder)]
    if Journal(folder).last_event():
        # Its keys are in force; a learning rate given again would be that of its very next step.
        words += ["--resume", "latest", *override_words({"devices": place} if plan.devices else {})]
    else:
        words += override_words(changes)
    return _Running(trial, place, folder, started_apart(words, folder.with_suffix(".log")))


def _rows(run: Path) -> list[dict[str, Any]]:
    journal = Journal(run)
    return branches(journal.events())[-1] if journal.exists() else []


def _ends_every_trial(error: PipelineError) -> bool:
    """Tell a full disk from what is wrong with a trial alone."""
    words = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "disk space")
    return isinstance(error, OutOfRoom) and any(word in str(error) for word in words)
