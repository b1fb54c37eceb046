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

import csv
import io
import logging
import math
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
import tomli_w

from imagenet_pipeline import files
from imagenet_pipeline.config import LOWER_IS_BETTER, Recipe, load_recipe, override_words, recipe_text
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom, PipelineError, counted, error_of
from imagenet_pipeline.processes import Interruption, started_apart
from imagenet_pipeline.records.manifest import no_split
from imagenet_pipeline.training.data import records_of
from imagenet_pipeline.training.journal import Journal, branches
from imagenet_pipeline.training.tuning_pictures import draw_study
from imagenet_pipeline.training.tuning_space import Range, Space

try:
    import optuna
    from optuna.exceptions import StorageInternalError
    from optuna.trial import FrozenTrial, Trial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
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


@dataclass(frozen=True)
class TrialResult:
    """A trial: `state` is complete, pruned, failed or unfinished, `value` the figure of its best epoch."""

    number: int
    state: str
    value: float | None
    epochs: int
    changes: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Findings:
    """A study as it stands. `importance` are shares of 1, empty where trials are too few to say."""

    folder: Path
    figure: str
    finished: bool
    trials: tuple[TrialResult, ...]
    best: TrialResult | None
    importance: dict[str, float]


@dataclass
class _Running:
    """A trial whose run is under way in a process of its own."""

    trial: Trial
    place: str
    folder: Path
    process: subprocess.Popen[bytes]
    pruned: bool = False
    told: set[int] = field(default_factory=set)


def tune(plan: Plan, show: Callable[[int, int, Sequence[str]], None]) -> Findings:
    """Run trials until the study has as many as planned, or a signal asks to stop; those under way are then saved.

    A study that is there goes on with the trials it has not ended. `show` is told (trials ended, of how many, state).
    Raises BadRecipe where the study is of another recipe or space, or where the first trial cannot be trained, Damaged,
    OutOfRoom or BadInput where its database cannot be read or written.
    """
    figure = _figure(plan.recipe)
    with files.claim(plan.folder / ".lock", plan.folder, "tuning"), _database(plan.folder / "study.db"):
        study = _study(plan, figure)
        _Search(plan, study, figure, show).run()
        found = _findings(plan, study, weighed=True)
        _write(found, plan, drawn=True)
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
        if len(_proposed(self._study)) >= self._plan.trials:
            return None
        return self._study.ask()

    def _look_at(self, running: _Running) -> None:
        ended = running.process.poll() is not None
        rows = _rows(running.folder)
        for row in rows:
            self._hear(running, row["epoch"], row[self._figure])
        self._show(len(_ended(self._study)), self._plan.trials, self._state(running, rows))
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
        """Tell the study how a trial ended. Raises the error of its run where no trial has come further."""
        code, number = running.process.returncode, running.trial.number
        if running.pruned:
            self._study.tell(running.trial, state=TrialState.PRUNED)
        elif code == 0 and not _is_whole(running.folder):
            self._left.append(running.trial)  # somebody asked that run alone to stop
        elif code == 0:
            best = min if self._figure in LOWER_IS_BETTER else max
            self._study.tell(running.trial, best(row[self._figure] for row in rows))
        else:
            error = _error(running.folder.with_suffix(".log"), code)
            if not _ended(self._study):  # it stays unfinished, for the same command to try again
                raise error.replaced(where=f"trial {number}: {error.where}" if error.where else f"trial {number}")
            running.trial.set_user_attr("reason", str(error))
            # A run that began and cannot go on has left the finite: as bad as can be, and worth knowing.
            diverged = code == BadRecipe.exit_code and Journal(running.folder).exists()
            self._study.tell(running.trial, state=TrialState.PRUNED if diverged else TrialState.FAIL)
            log.warning("trial %d: %s", number, error)
        self._keep()

    def _keep(self) -> None:
        """Write what is found so far; the picture, which takes longest, now and then."""
        drawn = time.monotonic() - self._drawn_at > SECONDS_BETWEEN_PICTURES
        _write(_findings(self._plan, self._study, weighed=drawn), self._plan, drawn)
        if drawn:
            self._drawn_at = time.monotonic()

    def _state(self, running: _Running, rows: list[Any]) -> list[str]:
        best = _best(self._study)
        state = [f"best {best.value:#.4g} (trial {best.number})"] if best else []
        epoch = f"trial {running.trial.number}: epoch {len(rows)}/{self._plan.recipe.epochs}"
        return [*state, f"{epoch}  {rows[-1][self._figure]:#.4g}" if rows else epoch]


def _figure(recipe: Recipe) -> str:
    """The figure trials are compared by. Raises BadRecipe where no split gives it."""
    data, figure = records_of(recipe), recipe.stopping.followed
    if figure.startswith("validation") and not data.counts.get("val"):
        raise no_split(data.name, "val", data.counts).replaced(advice="trials are compared by validation: build one")
    if figure == "validation_rank1" and data.classes.label_kind != "class":
        return "validation_loss"
    return figure


def _study(plan: Plan, figure: str) -> optuna.Study:
    """The study in the folder, or a new one. Raises BadRecipe where that is of another recipe, space or seed."""
    trials, recipe = plan.folder / "trials", recipe_text(plan.recipe)
    trials.mkdir(parents=True, exist_ok=True)
    identity = {"recipe": recipe, "space": plan.space.text(), "seed": plan.seed, "figure": figure}
    study = _opened(plan.folder, figure)
    is_same = all(study.user_attrs.get(key) == value for key, value in identity.items())
    if study.user_attrs and not is_same and not _ended(study) and not any(trials.glob("*/checkpoints/*")):
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
    better = optuna.study.StudyDirection
    return optuna.create_study(
        storage=f"sqlite:///file:{quote(str(folder / 'study.db'))}?uri=true",  # a "?" ends the name otherwise
        study_name=NAME,
        direction=better.MINIMIZE if figure in LOWER_IS_BETTER else better.MAXIMIZE,
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
    if Journal(folder).exists() and Journal(folder).events():
        # Its keys are in force; a learning rate given again would be that of its very next step.
        words += ["--resume", "latest", *override_words({"devices": place} if plan.devices else {})]
    else:
        words += override_words(changes)
    return _Running(trial, place, folder, started_apart(words, folder.with_suffix(".log")))


def _rows(run: Path) -> list[dict[str, Any]]:
    journal = Journal(run)
    return branches(journal.events())[-1] if journal.exists() else []


def _is_whole(run: Path) -> bool:
    return bool(Journal(run).events()[-1]["event"] == "end")


def _error(said: Path, code: int) -> PipelineError:
    """The error that a run ended with: the last line of what it said."""
    lines = said.read_text(encoding="utf-8", errors="replace").split("\n")
    line = next((line for line in reversed(lines) if line.strip()), f"ended with exit code {code}")
    return error_of(line.removeprefix("error: "), code)


def _proposed(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were begun."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _best(study: optuna.Study) -> FrozenTrial | None:
    """The best of the trials that came to their end, the first of equals."""
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == optuna.study.StudyDirection.MINIMIZE else 1
    return max(whole, key=lambda trial: sign * (trial.value or 0.0), default=None)


STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}


def _findings(plan: Plan, study: optuna.Study, weighed: bool) -> Findings:
    """What a study has found so far, with the importance of the keys if it is to be `weighed`."""
    results = tuple(_result(trial, study) for trial in _proposed(study))
    best = _best(study)
    return Findings(
        folder=plan.folder,
        figure=study.user_attrs["figure"],
        finished=sum(result.state != "unfinished" for result in results) >= plan.trials,
        trials=results,
        best=results[best.number] if best else None,
        importance=_importance(study) if weighed else {},
    )


def _result(trial: FrozenTrial, study: optuna.Study) -> TrialResult:
    best = min if study.direction == optuna.study.StudyDirection.MINIMIZE else max
    heard = trial.intermediate_values
    value = trial.value if trial.state is TrialState.COMPLETE else best(heard.values(), default=None)
    reason = trial.user_attrs.get("reason", "")
    return TrialResult(trial.number, STATES[trial.state], value, len(heard), dict(trial.params), reason)


def _importance(study: optuna.Study) -> dict[str, float]:
    """Share of each key in how far the trials' values differ (functional ANOVA, Hutter et al. 2014)."""
    values = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if len(values) < TRIALS_BEFORE_PRUNING:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=study.user_attrs["seed"])
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: share for key, share in shares.items() if math.isfinite(share)}


def _write(found: Findings, plan: Plan, drawn: bool) -> None:
    """Write trials.csv, best.toml and, if it is to be `drawn`, study.png into the folder of the study."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", found.figure, "epochs", *plan.space.keys, "reason"])
    for trial in found.trials:
        changed = [trial.changes.get(key, "") for key in plan.space.keys]
        writer.writerow([trial.number, trial.state, trial.value, trial.epochs, *changed, trial.reason])
    files.write_whole(found.folder / "trials.csv", text.getvalue())
    if found.best:
        files.write_whole(found.folder / "best.toml", _best_text(found.best, found, plan))
    if found.best and drawn:
        draw_study(found, plan.space, found.folder / "study.png")


def _best_text(best: TrialResult, found: Findings, plan: Plan) -> str:
    """The recipe of the best trial as TOML, without what is as by default."""
    recipe = load_recipe(found.folder / "recipe.toml", plan.space.changes(best.changes))
    whose = f"# Trial {best.number} of {found.folder}, the best of {counted(len(found.trials), 'trial')}"
    values = tomli_w.dumps(recipe.model_dump(mode="json", exclude_defaults=True))
    return f"{whose}: {found.figure} {best.value:.4f}\n{values}"
