"""The package's face for programs: build, train, evaluate, predict and load in a call each.

    import imagenet_pipeline as ip

The command line calls the same functions. Paths are text or `Path`; bad input raises an exception of
`imagenet_pipeline.errors`. Keys of a recipe are given as on the command line: those of the recipe itself by name
(`epochs=15`), those of its sections dotted, in `options` (`options={"input.size": 64}`).
Progress is a bar on a terminal; `logging.basicConfig(level="INFO")` shows log lines, of the logger "imagenet_pipeline".
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from imagenet_pipeline import files
from imagenet_pipeline.builders import STORED, AnyPath, plan_of, store
from imagenet_pipeline.errors import BadRecipe, counted
from imagenet_pipeline.progress import Bar

if TYPE_CHECKING:
    from imagenet_pipeline.config import Recipe
    from imagenet_pipeline.evaluation.predict import Prediction
    from imagenet_pipeline.evaluation.results import EvaluationReport
    from imagenet_pipeline.evaluation.vectors import VectorEvaluation
    from imagenet_pipeline.loading.loader import Loader
    from imagenet_pipeline.records.build import BuildSummary
    from imagenet_pipeline.training.journal import Event
    from imagenet_pipeline.training.resume import RunSettings
    from imagenet_pipeline.training.saving import Outcome

__all__ = [
    "Predictions",
    "TrainingResult",
    "build",
    "evaluate",
    "loader",
    "predict",
    "train",
]


def build(builder: str, *, out: AnyPath, executor: Executor | str | None = None, **options: Any) -> BuildSummary:
    """Make a data set of records in the folder or at the address (s3://) `out`, or finish a build begun there.

        summary = ip.build("folder", root="photos", out="data", val_fraction=0.2, resize=128)
        print(summary.records)

    `builder` is "imagenet", "folder", "list", "csv", "digits", "mnist", "cifar", "fer2013", "ckplus", "records",
    "parquet", "webdataset", "tfrecord" or a registered builder. A `root` may be an archive (.zip, .tar, .tar.gz, ...).
    `options` are the parameters of its `plan`, and those of `BuildOptions`: resize, resize_mode, interpolation,
    quality, pass_through, shards, workers, max_rejects, keep_damaged, no_mean, and train_val_fraction ("records" has
    workers, max_rejects and keep_damaged alone). `executor` is any of concurrent.futures, or a Dask scheduler,
    "dask://10.0.0.1:8786". Raises as `records.build.build`, BadRecipe for an option there is not.
    """
    from imagenet_pipeline.records.build import BuildOptions
    from imagenet_pipeline.records.tasks import reached

    names = [field.name for field in fields(BuildOptions)]
    stored = BuildOptions(**STORED.get(builder, {}) | {name: options.pop(name) for name in names if name in options})
    with reached(executor) as there:
        return store(plan_of(builder, out, options, names), out, stored, there)


@dataclass(frozen=True)
class TrainingResult:
    """A run as it stands, as `train --json` prints it. `metrics` is the last epoch's row of the history.

    Ranks are percent, losses the mean an image. `finished` is false where a signal stopped the run, which is saved.
    """

    run: Path
    epoch: int
    step: int
    finished: bool
    metrics: dict[str, Any]

    @classmethod
    def of(cls, run: Path, outcome: Outcome | None = None) -> TrainingResult:
        """The result of a training that ended so; without `outcome`, as the journal says."""
        from imagenet_pipeline.training.journal import Journal, branches

        events = Journal(run).events()
        last, ended = _plain(branches(events)[-1][-1:]), events[-1]
        metrics = last[0] if last else {}
        if outcome is None:
            return cls(run, ended.get("epoch", 0), ended.get("step", 0), ended["event"] == "end", metrics)
        return cls(run, outcome.epoch, outcome.step, outcome.finished, metrics)

    @cached_property
    def history(self) -> list[Event]:
        """The rows of `history.csv`, a row an epoch, restarts left behind not counted."""
        from imagenet_pipeline.training.journal import Journal, branches

        return _plain(branches(Journal(self.run).events())[-1])

    @property
    def best(self) -> Event:
        """The row of the best epoch, by the recipe's `stopping.figure`, the earliest of equals; the last without it."""
        from imagenet_pipeline.training.checkpoint import best_row

        return best_row(self.run, self.history) or self.metrics

    def _repr_html_(self) -> str:
        from imagenet_pipeline.evaluation.notebook import run_html

        state = f"{'finished' if self.finished else 'stopped'} after epoch {self.epoch}, {counted(self.step, 'step')}"
        return run_html(self.run, state, self.metrics)


def _plain(rows: Sequence[Event]) -> list[Event]:
    return [{key: value for key, value in row.items() if key != "event"} for row in rows]


def train(
    recipe: Recipe | AnyPath,
    *,
    run: AnyPath | None = None,
    resume: str | int | None = None,
    options: Mapping[str, Any] | None = None,
    **keys: Any,
) -> TrainingResult:
    """Train a recipe, or go on with a run; what the run holds is saved at every epoch.

        run = ip.train("demo", records="data", epochs=15, options={"input.size": 28}, run="runs/demo")
        print(run.metrics["validation_rank1"], run.best["epoch"])
        run = ip.train("runs/demo", resume="latest", epochs=20)

    `recipe` is a `Recipe`, a TOML file, the name of a shipped recipe, or a run folder. `run` is the run folder, by
    default output/runs/NAME for a file; `resume` is "latest", "best" or an epoch. `keys` and `options` change keys of
    the recipe. Ctrl-C (SIGINT) and SIGTERM in the main thread finish the step, save, and return a result that is not
    `finished`; a second Ctrl-C ends at once.
    PyTorch on several devices trains in a process for each: what was registered by a call is not known there, an entry
    point is. Raises BadRecipe, BadInput, Damaged, OutOfRoom.
    """
    changes, resumed = _changes(options, keys), None if resume is None else str(resume)
    settings, outcome = run_training(recipe, changes, run, resumed)
    return TrainingResult.of(settings.folder, outcome)


def run_training(
    recipe: Recipe | AnyPath,
    changes: dict[str, Any],
    run: AnyPath | None,
    resume: str | None,
    words: Sequence[str] = (),
) -> tuple[RunSettings, Outcome | None]:
    """Train in this process, or in a process for each of several devices where the engine needs that.

    These are started with the command line `words`, or its equivalent. The outcome is None where another process
    reports it.
    """
    from imagenet_pipeline.config import Recipe
    from imagenet_pipeline.engines import launch_ranks, taking_part
    from imagenet_pipeline.training.loop import train as train_run
    from imagenet_pipeline.training.resume import open_settled, run_settings

    source = recipe if isinstance(recipe, Recipe) else Path(recipe)
    with taking_part(), ExitStack() as opened_files:
        settings = run_settings(source, changes, None if run is None else Path(run), resume)
        words = words or _words(source, settings, opened_files)
        if launch_ranks(settings.recipe.engine, settings.recipe.devices, words):
            return settings, None
        opened = open_settled(settings)
        outcome = train_run(opened)
    return settings, outcome if opened.leads else None


def _words(recipe: Recipe | Path, settings: RunSettings, opened_files: ExitStack) -> list[str]:
    """The command line that trains the same; a recipe that is no file is written to a file of `opened_files`."""
    from imagenet_pipeline.config import Recipe, override_words, recipe_text

    if isinstance(recipe, Recipe):
        folder = opened_files.enter_context(tempfile.TemporaryDirectory(prefix="imagenet_pipeline_"))
        files.write_whole(Path(folder) / "recipe.toml", recipe_text(recipe))
        recipe = Path(folder) / "recipe.toml"
    words = ["train", str(recipe), *override_words(settings.given), "--run", str(settings.folder)]
    return words if settings.resume is None else [*words, "--resume", settings.resume]


def _changes(options: Mapping[str, Any] | None, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in {**keys, **(options or {})}.items()
    }


def evaluate(
    run: AnyPath,
    *,
    checkpoint: str | int = "best",
    split: str | None = None,
    crops: Literal[1, 2, 10] = 1,
    records: AnyPath | None = None,
    subset: bool | None = None,
    real_labels: AnyPath | None = None,
    report: AnyPath | None = None,
    options: Mapping[str, Any] | None = None,
    **keys: Any,
) -> EvaluationReport | VectorEvaluation:
    """Score a run's checkpoint on every record of a split once.

        result = ip.evaluate("runs/demo", split="test", report="report.html")
        print(result.rank1, result.rank1_interval)

    `checkpoint` is "best", "latest" or an epoch; `split` by default test, or val where there is none. `records` is
    another data set of the run's classes, or some; with `subset` the logits of those alone are scored, by default for
    ImageNet-A and -R. `real_labels` is the file of ReaL labels for ImageNet, `report` a page to write, NAME.html, with
    NAME.md and NAME.json beside it. `keys` say how to compute: engine, devices, precision, batch_size; after a training
    of PyTorch's on several devices name a single device, as devices="gpu:0".
    Of labels that are not one class it is a `VectorEvaluation`, with `figures`. Raises BadRecipe, BadInput, Damaged.
    """
    from imagenet_pipeline.evaluation.compare import examine
    from imagenet_pipeline.evaluation.evaluate import crops_of, default_split
    from imagenet_pipeline.evaluation.report import require_page, write_report
    from imagenet_pipeline.evaluation.results import findings_of, report_of
    from imagenet_pipeline.evaluation.vector_report import report_where_vectors

    folder, changes = Path(run), _changes(options, keys)
    page, data, real = (None if path is None else Path(path) for path in (report, records, real_labels))
    views, split = crops_of(crops), split or default_split(folder, data, changes)
    if page is not None:
        require_page(page)
    asked = [folder], [str(checkpoint)], split, views, data, changes, real
    if vectors := report_where_vectors(*asked, page):
        return vectors
    findings = findings_of(examine(*asked, subset=subset))
    if page is not None:
        write_report(findings, page)
    return cast("EvaluationReport", report_of(findings, page))  # one checkpoint has one evaluation


@dataclass(frozen=True)
class Predictions(Sequence["Prediction"]):
    """Predictions for pictures, in their order; those that could not be read have no `top` but a `reason`."""

    run: Path
    checkpoint: str
    predictions: tuple[Prediction, ...]

    @property
    def unreadable(self) -> list[Prediction]:
        """The pictures that could not be read."""
        return [prediction for prediction in self.predictions if prediction.reason]

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...

    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.predictions[index]

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)

    def _repr_html_(self) -> str:
        from imagenet_pipeline.evaluation.notebook import predictions_html

        return predictions_html(self.predictions)


def predict(
    run: AnyPath,
    pictures: AnyPath | Sequence[AnyPath],
    *,
    top: int = 5,
    crops: Literal[1, 2, 10] = 1,
    checkpoint: str | int = "best",
    root: AnyPath = "",
    options: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Predictions:
    """Name the `top` most probable classes of pictures.

        for guess in ip.predict("runs/demo", ["cat.jpg", "holidays"], top=3):
            print(guess.path, guess.top[0].name, guess.top[0].probability)

    `pictures` is a picture, a folder of them, a list (.txt, .lst) whose relative paths start from `root`, or several.
    One that cannot be read has a `reason` and no `top`. `keys` say how to compute, as for `evaluate`.
    Raises BadRecipe, BadInput (for a path that is not there), Damaged.
    """
    from imagenet_pipeline.evaluation.evaluate import crops_of
    from imagenet_pipeline.evaluation.predict import find_pictures, open_classifier
    from imagenet_pipeline.evaluation.predict import predict as predict_pictures

    if top < 1:
        raise BadRecipe("not a number of classes", where="top", expected="1 or more", found=top)
    views = crops_of(crops)
    sources = [pictures] if isinstance(pictures, str | os.PathLike) else pictures
    paths = find_pictures([Path(source) for source in sources], Path(root))
    classifier = open_classifier(Path(run), str(checkpoint), _changes(options, keys))
    made = []
    with Bar("predict", "pictures") as bar:
        for prediction in predict_pictures(classifier, paths, top, views):
            made.append(prediction)
            bar.show(len(made), len(paths))
    return Predictions(Path(run), classifier.checkpoint.folder.name, tuple(made))


def loader(
    records: AnyPath,
    split: str | None = None,
    *,
    size: int | tuple[int, int],
    batch_size: int,
    threads: int | Literal["auto"] = "auto",
    prefetch: int = 4,
    channels: Literal[1, 3] = 3,
) -> Loader:
    """Batches out of a data set's split, or out of any `.rec` file, for a loop of your own.

        with ip.loader("data", "train", size=224, batch_size=64).training(seed=0, epoch=0) as batches:
            for batch in batches:
                step(batch.images, batch.labels)

    `size` is a side, or (height, width). Images are uint8 [batch_size, height, width, 3], RGB, or grey [..., 1],
    valid until the next batch is asked for. `training` draws crops, flips and what its `augmentation` says;
    `evaluation` has every record once, in order. The files close with the loader. Raises BadInput, BadRecipe, Damaged.
    """
    from imagenet_pipeline.loading.loader import Loader
    from imagenet_pipeline.records.manifest import is_data_set, read_data_set
    from imagenet_pipeline.records.reader import RecordSet

    data = read_data_set(path) if is_data_set(path := Path(records)) else None
    opened = RecordSet.of(data, split) if data else RecordSet.open(path)
    made = Loader(opened, size, batch_size, threads, prefetch, len(data.classes) if data else None, channels=channels)
    made.label_kind = data.classes.label_kind if data else "class"
    weakref.finalize(made, opened.close)
    return made
