"""Evaluation of a run's checkpoint on a split: every record once, counts exact.

Where the data set numbers its classes otherwise than the network, its labels are mapped to the network's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from imagenet_pipeline import files
from imagenet_pipeline.config import LossRecipe, Recipe, Size, load_run_recipe
from imagenet_pipeline.engines import Engine, is_installed
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.calibration import Temperature, fit_temperature, temperature_of
from imagenet_pipeline.evaluation.numbering import Numbering, is_subset_by_name, numbering_of, subset_of
from imagenet_pipeline.evaluation.scoring import (
    CROSS_ENTROPY,
    Member,
    Outcomes,
    RelabelledSplit,
    require_finite,
    score_split,
)
from imagenet_pipeline.evaluation.scoring import Crops as Crops
from imagenet_pipeline.records.classes import require_one_class
from imagenet_pipeline.records.manifest import DataSet, no_split
from imagenet_pipeline.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from imagenet_pipeline.training.data import records_to_read
from imagenet_pipeline.training.distributed import require_agreement
from imagenet_pipeline.training.engine_setup import build_engine

HOW_KEYS = ("engine", "devices", "precision", "batch_size", "loader.threads", "loader.prefetch")
"""Recipe keys of the computation alone, not of its result."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint on a split, equal in all `processes`, and everything they depend on; ranks are percent.

    `loss` is the mean an image of the run's own kind, `loss_kind`; cross-entropies are in nats. Of the network's
    `classes` so many are `scored_classes`, all but where a subset of the logits is scored. Probabilities and
    cross-entropy are at `temperature`, where one was fitted; `fitted_here` says that it was on these very images.
    """

    run: str
    checkpoint: str
    epoch: int
    split: str
    images: int
    rank1: float
    rank5: float
    loss: float
    loss_kind: str
    rank1_hits: int
    rank5_hits: int
    crops: int
    network: str
    input_size: Size
    crop_fraction: float
    classes: int
    scored_classes: int
    temperature: float | None
    fitted_here: bool
    engine: str
    devices: list[str]
    precision: str
    process: int
    processes: int
    images_per_second: float
    weights_digest: str
    data_digest: str
    recipe_digest: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Candidate:
    """A checkpoint of a run to be scored, and records whose classes are among its own."""

    run: Path
    recipe: Recipe
    checkpoint: Checkpoint
    data: DataSet
    numbering: Numbering

    @cached_property
    def temperature(self) -> Temperature | None:
        """The temperature that was fitted for the checkpoint."""
        return temperature_of(self.checkpoint)

    def engine(self) -> Engine:
        """An engine that holds the checkpoint. Scoring is not compiled: it needs no compiler."""
        return build_engine(
            self.recipe.model_copy(update={"compile": False}), self.checkpoint.state, self.checkpoint.weights
        )

    def is_fitted_on(self, split: str) -> bool:
        """True where the temperature was fitted on these very images."""
        fitted = self.temperature
        return fitted is not None and (fitted.records, fitted.split) == (self.data.digest, split)

    def evaluation(self, engine: Engine, outcomes: Outcomes, setting: Setting) -> Evaluation:
        """The figures with everything they depend on. Raises BadInput where they are none."""
        state, images = self.checkpoint.state, len(outcomes)
        require_finite(outcomes.losses, self.checkpoint.folder)
        rank1_hits, rank5_hits = int(outcomes.rank1_right.sum()), int(outcomes.rank5_right.sum())
        return Evaluation(
            run=str(self.run),
            checkpoint=self.checkpoint.folder.name,
            epoch=state.epoch,
            split=setting.split,
            images=images,
            rank1=100.0 * rank1_hits / images,
            rank5=100.0 * rank5_hits / images,
            loss=float(outcomes.losses.mean()),
            loss_kind=setting.loss_kind,
            rank1_hits=rank1_hits,
            rank5_hits=rank5_hits,
            crops=setting.crops,
            network=state.network_name,
            input_size=state.input_size,
            crop_fraction=state.crop_fraction,
            classes=len(state.classes),
            scored_classes=len(self.numbering.table),
            temperature=self.temperature.temperature if self.temperature else None,
            fitted_here=self.is_fitted_on(setting.split),
            engine=engine.name,
            devices=list(engine.device_names),
            precision=engine.precision,
            process=engine.rank,
            processes=engine.ranks,
            images_per_second=round(images / setting.seconds, 1),
            weights_digest=self.checkpoint.weights_digest,
            data_digest=self.data.digest,
            recipe_digest=files.sha256_of(self.run / "recipe.toml"),
            versions=engine.versions,
        )


@dataclass(frozen=True)
class Setting:
    """Split, crops and kind of loss of an evaluation, and the seconds it took for all candidates."""

    split: str
    crops: Crops
    loss_kind: str
    seconds: float


@dataclass(frozen=True)
class Scores:
    """Figures and outcomes of each candidate; of several candidates, `outcomes[0]` is the ensemble's."""

    evaluations: list[Evaluation]
    outcomes: list[Outcomes]


def evaluate(
    run: Path,
    which: str = "best",
    split: str = "test",
    crops: Crops = 1,
    records: Path | None = None,
    overrides: dict[str, object] | None = None,
    subset: bool | None = None,
) -> Evaluation:
    """Evaluate checkpoint `which` ("best", "latest" or an epoch) of `run` on a split of its records.

    `records` names another data set, of the run's classes or some of them; `subset` is as for `candidate_of`. With
    several crops their probabilities are averaged. Raises BadInput where the class tables differ, BadRecipe where there
    are no records or no such split.
    """
    recipe, checkpoint = open_checkpoint(Path(run), which, overrides or {})
    candidate = candidate_of(Path(run), (recipe, checkpoint), split, records_to_read(recipe, records), subset)
    return score_candidates([candidate], split, crops).evaluations[0]


def calibrate(
    run: Path,
    which: str = "best",
    split: str = "val",
    records: Path | None = None,
    overrides: dict[str, object] | None = None,
) -> tuple[Temperature, Path]:
    """Fit the temperature of a checkpoint on a split and keep it with the checkpoint; its probabilities then use it.

    Gives the temperature and the checkpoint's folder. Raises as `evaluate` does, and where none fits.
    """
    recipe, checkpoint = open_checkpoint(Path(run), which, overrides or {}, "calibrate")
    candidate = candidate_of(Path(run), (recipe, checkpoint), split, records_to_read(recipe, records), subset=False)
    source = RelabelledSplit(candidate.data, split, candidate.numbering.relabel, recipe)
    member = replace(member_of(candidate, candidate.engine(), recipe.loss), temperature=1.0)
    return fit_temperature(checkpoint, source, member), checkpoint.folder


def open_checkpoint(
    run: Path, which: str, overrides: dict[str, object], verb: str = "evaluate"
) -> tuple[Recipe, Checkpoint]:
    """Read a run's recipe, `overrides` laid over it, and its checkpoint `which`, to score with.

    Raises BadRecipe, naming the verb, for an override that cannot change what comes of the checkpoint now.
    """
    recipe = scoring_recipe(run, overrides, verb)
    return recipe, load_checkpoint(find_checkpoint(run, which))


def scoring_recipe(run: Path, overrides: dict[str, object], verb: str) -> Recipe:
    """Read a run's recipe to score with; its engine, unless given, is "auto" where it is not installed."""
    require_harmless(overrides, verb)
    recipe = load_run_recipe(run, overrides)
    if "engine" in overrides or recipe.engine == "auto" or is_installed(recipe.engine):
        return recipe
    return recipe.model_copy(update={"engine": "auto"})


def candidate_of(
    run: Path, opened: tuple[Recipe, Checkpoint], split: str, data: DataSet | None, subset: bool | None = None
) -> Candidate:
    """A checkpoint, and `data`, or the run's own records; they must have the split and its classes.

    `subset`: score the logits of the data set's own classes alone; for None as its authors do, where it has a name.
    """
    recipe, checkpoint = opened
    data = data or records_to_read(recipe)
    for table, where in ((checkpoint.state.class_table, run), (data.classes, data.name)):
        require_one_class(table, where, "scoring by rank")
    alone = is_subset_by_name(data) if subset is None else subset
    numbering = (subset_of if alone else numbering_of)(checkpoint.state, data)
    if not data.count(split):
        raise no_split(data.name, split, [name for name, count in data.counts.items() if count])
    return Candidate(run, recipe, checkpoint, data, numbering)


def crops_of(number: int) -> Crops:
    """Check that evaluation has this number of crops. Raises BadRecipe for any other."""
    if number in (1, 2, 10):
        return cast(Crops, number)
    raise BadRecipe("not a number of crops", where="--crops", expected="1, 2 or 10", found=number)


def default_split(run: Path, records: Path | None, overrides: dict[str, object]) -> str:
    """The split to score by default: test, or validation where there is none."""
    return usual_split(records_to_read(load_run_recipe(run, overrides), records))


def usual_split(data: DataSet) -> str:
    """The split of a data set to score by default: test, or validation where there is none."""
    return "test" if data.counts.get("test") or not data.counts.get("val") else "val"


def require_harmless(overrides: dict[str, object], verb: str) -> None:
    """Raise BadRecipe for a recipe key that says how the run was trained and cannot change what comes of it now."""
    for key in overrides:
        if key not in HOW_KEYS:
            raise BadRecipe(f"recipe key {key!r} does not apply", where=verb, expected=", ".join(HOW_KEYS))


def score_candidates(
    candidates: Sequence[Candidate], split: str, crops: Crops, every: int = 1, engines: Sequence[Engine] = ()
) -> Scores:
    """Score all candidates in a single pass over the records of the first, or every so many of them, in its batches.

    The loss is of the run's own kind; several candidates, whose mean probabilities are scored too, have cross-entropy.
    `engines` are the candidates' own, where they were built before. Collective.
    """
    first, engines = candidates[0], engines or [candidate.engine() for candidate in candidates]
    loss = first.recipe.loss if len(candidates) == 1 else CROSS_ENTROPY
    _require_same_ranks(candidates, engines, split, crops)
    members = [member_of(candidate, engine, loss) for candidate, engine in zip(candidates, engines, strict=True)]
    started = time.monotonic()
    source = RelabelledSplit(first.data, split, first.numbering.relabel, first.recipe, every)
    outcomes = score_split(source, crops, members, len(first.numbering.table))
    setting = Setting(split, crops, loss.kind, time.monotonic() - started)
    scored = zip(candidates, engines, outcomes[-len(candidates) :], strict=True)
    return Scores([candidate.evaluation(engine, own, setting) for candidate, engine, own in scored], outcomes)


def member_of(candidate: Candidate, engine: Engine, loss: LossRecipe) -> Member:
    """A candidate on its engine, as `score_split` takes it."""
    state, fitted = candidate.checkpoint.state, candidate.temperature
    view, temperature = (state.input_size, state.crop_fraction), fitted.temperature if fitted else 1.0
    return Member(engine, view, loss, len(state.mean), candidate.numbering.columns, temperature)


def _require_same_ranks(candidates: Sequence[Candidate], engines: Sequence[Engine], split: str, crops: int) -> None:
    ranks = {(engine.rank, engine.ranks) for engine in engines}
    if len(ranks) > 1:
        advice = "score runs of both engines in a single process, or give engine=pytorch"
        raise BadRecipe("the engines of these runs must have the same rank and number of processes", advice=advice)
    facts = {"split": split, "crops": str(crops), "records": candidates[0].data.digest}
    for number, candidate in enumerate(candidates, 1):
        state, batch_size = candidate.checkpoint.state, candidates[0].recipe.images_per_step
        name = f"checkpoint {number}" if len(candidates) > 1 else "checkpoint"
        facts[name] = candidate.checkpoint.weights_digest
        facts[f"recipe of {name}"] = repr([state.input_size, state.crop_fraction, batch_size])
    require_agreement(engines[0], facts)
