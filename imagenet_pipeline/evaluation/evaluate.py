"""Score a run's checkpoint on a split: every record once, counts exact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, load_run_recipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.class_numbers import Numbering, numbering_of
from imagenet_pipeline.evaluation.outcomes import Outcomes
from imagenet_pipeline.evaluation.probabilities import require_finite
from imagenet_pipeline.evaluation.scoring import Crops as Crops
from imagenet_pipeline.evaluation.scoring import Member, Source, score_split
from imagenet_pipeline.records.manifest import DataSet, no_split, read_data_set
from imagenet_pipeline.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from imagenet_pipeline.training.data import records_of
from imagenet_pipeline.training.distributed import require_agreement
from imagenet_pipeline.training.engine_setup import build_engine

HOW_KEYS = ("engine", "devices", "precision", "batch_size", "loader.threads", "loader.prefetch")
"""Recipe keys that say how to compute, not what."""


@dataclass(frozen=True)
class Evaluation:
    """A figure and everything it depends on. `rank1` and `rank5` are percent; every one of `processes` has it.

    `loss` is the mean an image of the run's own kind, `loss_kind`; cross-entropy is in nats.
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
    input_size: int
    crop_fraction: float
    classes: int
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
class Subject:
    """What is to be scored: a run's checkpoint, on records whose classes are among its own."""

    run: Path
    recipe: Recipe
    checkpoint: Checkpoint
    data: DataSet
    numbering: Numbering

    def engine(self) -> Engine:
        """An engine that holds the checkpoint. Scoring is not compiled: it needs no compiler."""
        return build_engine(
            self.recipe.model_copy(update={"compile": False}), self.checkpoint.state, self.checkpoint.weights
        )

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
            network=state.network,
            input_size=state.input_size,
            crop_fraction=state.crop_fraction,
            classes=len(state.classes),
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
    """How subjects were scored, and how long it took them all."""

    split: str
    crops: Crops
    loss_kind: str
    seconds: float


@dataclass(frozen=True)
class Scores:
    """Of each subject its figures and outcomes; `outcomes` begins with those of all together, of several."""

    evaluations: list[Evaluation]
    outcomes: list[Outcomes]


def evaluate(
    run: Path,
    which: str = "best",
    split: str = "test",
    crops: Crops = 1,
    records: Path | None = None,
    overrides: dict[str, object] | None = None,
) -> Evaluation:
    """Evaluate checkpoint `which` ("best", "latest" or an epoch) of `run` on a split of its records.

    `records` names another data set, of the run's classes or some of them. With several crops their probabilities
    are averaged. Raises BadInput where the class tables differ, BadRecipe where there are no records or no such split.
    """
    subject = subject_of(Path(run), open_checkpoint(Path(run), which, overrides or {}), split, records)
    return score_subjects([subject], split, crops).evaluations[0]


def open_checkpoint(run: Path, which: str, overrides: dict[str, object]) -> tuple[Recipe, Checkpoint]:
    """A run's recipe, `overrides` laid over it, and one of its checkpoints."""
    require_harmless(overrides, "evaluate")
    recipe = load_run_recipe(run, overrides)
    return recipe, load_checkpoint(find_checkpoint(run, which))


def subject_of(run: Path, opened: tuple[Recipe, Checkpoint], split: str, records: Path | None) -> Subject:
    """A checkpoint, and the data set in `records`, or the run's own, which must have the split and its classes."""
    recipe, checkpoint = opened
    data = read_data_set(records) if records else records_of(recipe)
    numbering = numbering_of(checkpoint.state, data)
    if not data.counts.get(split):
        raise no_split(data.folder, split, [name for name, count in data.counts.items() if count])
    return Subject(run, recipe, checkpoint, data, numbering)


def default_split(run: Path, records: Path | None, overrides: dict[str, object]) -> str:
    """What is scored where nobody says: the test split, or that of validation where there is none."""
    data = read_data_set(records) if records else records_of(load_run_recipe(run, overrides))
    return "test" if data.counts.get("test") or not data.counts.get("val") else "val"


def require_harmless(overrides: dict[str, object], verb: str) -> None:
    """Raise BadRecipe for a recipe key that says how the run was trained and cannot change what comes of it now."""
    for key in overrides:
        if key not in HOW_KEYS:
            raise BadRecipe(f"recipe key {key!r} does not apply", where=verb, expected=", ".join(HOW_KEYS))


def score_subjects(subjects: Sequence[Subject], split: str, crops: Crops) -> Scores:
    """Score them all on one pass over the records of the first, a batch at a time of its recipe's size.

    The loss is of the run's own kind; of several, whose mean probabilities are scored too, cross-entropy. Collective.
    """
    first, engines = subjects[0], [subject.engine() for subject in subjects]
    loss_kind = first.recipe.loss.kind if len(subjects) == 1 else "cross_entropy"
    _require_one_group(subjects, engines, split, crops)
    members = [_member(subject, engine, loss_kind) for subject, engine in zip(subjects, engines, strict=True)]
    started = time.monotonic()
    source = Source(first.data, split, first.numbering.relabel, first.recipe)
    outcomes = score_split(source, crops, members, len(first.numbering.table))
    setting = Setting(split, crops, loss_kind, time.monotonic() - started)
    scored = zip(subjects, engines, outcomes[-len(subjects) :], strict=True)
    return Scores([subject.evaluation(engine, own, setting) for subject, engine, own in scored], outcomes)


def _member(subject: Subject, engine: Engine, loss_kind: str) -> Member:
    state = subject.checkpoint.state
    return Member(engine, (state.input_size, state.crop_fraction), loss_kind)


def _require_one_group(subjects: Sequence[Subject], engines: Sequence[Engine], split: str, crops: int) -> None:
    places = {(engine.rank, engine.ranks) for engine in engines}
    if len(places) > 1:
        advice = "score runs of both engines in one process, or give engine=pytorch"
        raise BadRecipe("the engines of these runs share their processes differently", advice=advice)
    facts = {"split": split, "crops": str(crops), "records": subjects[0].data.digest}
    for number, subject in enumerate(subjects, 1):
        state, batch_size = subject.checkpoint.state, subjects[0].recipe.batch_size
        name = f"checkpoint {number}" if len(subjects) > 1 else "checkpoint"
        facts[name] = subject.checkpoint.weights_digest
        facts[f"recipe of {name}"] = repr([state.input_size, state.crop_fraction, batch_size])
    require_agreement(engines[0], facts)
