"""Findings of a study: its trials, the best, how much each key matters; as a table, a recipe, a picture."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import tomli_w
from optuna.trial import FrozenTrial, TrialState

from imagenet_pipeline import files
from imagenet_pipeline.config import better, load_recipe
from imagenet_pipeline.errors import counted
from imagenet_pipeline.training.tuning_pictures import draw_study
from imagenet_pipeline.training.tuning_space import Space

FEWEST_VALUES = 4
"""Different values of whole trials from which on the importance of keys can be told."""


@dataclass(frozen=True)
class TrialResult:
    """A trial: `state` is complete, pruned, failed or unfinished, `value` the figure of its best epoch."""

    number: int
    state: str
    value: float | None
    epochs: int
    changes: dict[str, Any]
    reason: str

    @property
    def has_ended(self) -> bool:
        """True of all but a trial that was stopped under way, which the study goes on with."""
        return self.state != STATES[TrialState.RUNNING]


@dataclass(frozen=True)
class Findings:
    """A study as it stands. `importance` are shares of 1, empty where trials are too few to say."""

    folder: Path
    figure: str
    finished: bool
    trials: tuple[TrialResult, ...]
    best: TrialResult | None
    importance: dict[str, float]


def proposed(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were begun."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to their end, or were pruned."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def best_of(study: optuna.Study) -> FrozenTrial | None:
    """The best of the trials that came to their end, the first of equals."""
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best: FrozenTrial | None = better(study.user_attrs["figure"])(whole, key=lambda trial: trial.value, default=None)
    return best


STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}


def findings_of(study: optuna.Study, folder: Path, trials: int, weighed: bool) -> Findings:
    """Findings of a study so far, with the importance of the keys if it is to be `weighed`."""
    results = tuple(_result(trial, study) for trial in proposed(study))
    best = best_of(study)
    return Findings(
        folder=folder,
        figure=study.user_attrs["figure"],
        finished=sum(result.has_ended for result in results) >= trials,
        trials=results,
        best=results[best.number] if best else None,
        importance=_importance(study) if weighed else {},
    )


def _result(trial: FrozenTrial, study: optuna.Study) -> TrialResult:
    heard = trial.intermediate_values
    best = better(study.user_attrs["figure"])(heard.values(), default=None)
    value = trial.value if trial.state is TrialState.COMPLETE else best
    reason = trial.user_attrs.get("reason", "")
    return TrialResult(trial.number, STATES[trial.state], value, len(heard), dict(trial.params), reason)


def _importance(study: optuna.Study) -> dict[str, float]:
    """Share of each key in how far the trials' values differ (functional ANOVA, Hutter et al. 2014)."""
    values = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if len(values) < FEWEST_VALUES:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=study.user_attrs["seed"])
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: share for key, share in shares.items() if math.isfinite(share)}


def write(found: Findings, space: Space, drawn: bool) -> None:
    """Write trials.csv, best.toml and, if it is to be `drawn`, study.png into the folder of the study."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", found.figure, "epochs", *space.keys, "reason"])
    for trial in found.trials:
        changed = [trial.changes.get(key, "") for key in space.keys]
        writer.writerow([trial.number, trial.state, trial.value, trial.epochs, *changed, trial.reason])
    files.write_whole(found.folder / "trials.csv", text.getvalue())
    if found.best:
        files.write_whole(found.folder / "best.toml", _best_text(found.best, found, space))
    if found.best and drawn:
        draw_study(found, space, found.folder / "study.png")


def _best_text(best: TrialResult, found: Findings, space: Space) -> str:
    """The recipe of the best trial as TOML, without what is as by default."""
    recipe = load_recipe(found.folder / "recipe.toml", space.changes(best.changes))
    whose = f"# Trial {best.number} of {found.folder}, the best of {counted(len(found.trials), 'trial')}"
    values = tomli_w.dumps(recipe.model_dump(mode="json", exclude_defaults=True))
    return f"{whose}: {found.figure} {best.value:.4f}\n{values}"
