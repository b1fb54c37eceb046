"""A run of averaged weights: those of several epochs, or of several runs of a network, as a run like any other.

The uniform mean is that of Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization"
(SWA); the greedy one that of Wortsman et al. 2022, "Model soups", recipe 1: the checkpoints come in the order of their
validation figures, and each joins the mean if that is then no worse. Means are summed in float64.

Running statistics of batch normalisation are no mean of the checkpoints': they belong to the averaged weights. So they
are measured anew, on what they were measured on before: training images of the last epoch averaged, as the run had them
then, and as many at a time (a batch, or its micro-batches): the mean over batches of each batch's, as
torch.optim.swa_utils.update_bn has it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.config import OptimizerRecipe, Recipe, StoppingRecipe, TransferRecipe, load_run_recipe
from imagenet_pipeline.engines import Array, Blueprint, Engine, Values, create_engine
from imagenet_pipeline.engines.devices import first_of, micro_batches
from imagenet_pipeline.engines.zoos import network_of
from imagenet_pipeline.errors import BadInput, BadRecipe, counted
from imagenet_pipeline.evaluation.evaluate import scoring_recipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.catalog import FILE_NAME
from imagenet_pipeline.networks.layers import BatchNorm
from imagenet_pipeline.networks.shapes import describe
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.classes import require_same
from imagenet_pipeline.records.manifest import DataSet, no_split
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import Checkpoint, State, find_checkpoint, load_checkpoint, whole_epochs
from imagenet_pipeline.training.data import (
    endless_batches,
    loader_of,
    records_of,
    require_its_classes,
    steps_per_epoch,
    with_window,
)
from imagenet_pipeline.training.engine_setup import scoring_engine
from imagenet_pipeline.training.imported import fill_run
from imagenet_pipeline.training.journal import goodness
from imagenet_pipeline.training.loop import step_seed
from imagenet_pipeline.training.metrics import score, watched

log = logging.getLogger("imagenet_pipeline")

MOST_IMAGES = 50_000
"""Training images that statistics are measured on at most: a mean over so many is known to half a percent."""
NOTE = """\
# Made by `average`: the mean of the checkpoints that the journal names. Evaluation needs `records`; training on goes by
# what stands here: train THIS_RUN --resume latest [key=value ...]
"""
Sums = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Part:
    """A checkpoint that was to be averaged; `value` is its own `figure` of the split, where the choice is greedy."""

    run: str
    checkpoint: str
    sha256: str
    value: float | None = None
    kept: bool = True


@dataclass(frozen=True)
class Averaging:
    """A run that was made. `statistics_images` is 0 where no layer has running statistics, or a single part was kept.

    `figure` and `value` are those of the mean on `split`, where the choice was greedy.
    """

    run: str
    network: str
    parts: list[Part]
    greedy: bool
    statistics_images: int
    split: str | None
    figure: str | None
    value: float | None
    engine: str
    precision: str | None
    seconds: float


def average(
    runs: Sequence[Path],
    out: Path,
    epochs: str = "",
    last: int = 0,
    greedy: bool = False,
    split: str = "val",
    overrides: dict[str, object] | None = None,
) -> Averaging:
    """Make the run `out` of the mean weights of checkpoints, whole or not at all.

    They are the `epochs` of each run ("16-20", "5,10,best"), or its `last` so many; with neither, the best of each of
    several runs. `greedy` leaves out those that make the mean worse on `split`. The first run's recipe and class table
    are those of the new one. Raises BadRecipe where the folder exists, or these are no two checkpoints; BadInput where
    they are not of the same network, classes and normalisation.
    """
    started = time.monotonic()
    if out.exists():
        raise BadRecipe("the folder exists already", where=out, advice="choose another --out")
    recipe = scoring_recipe(runs[0], overrides or {}, "average")
    folders = _chosen(runs, epochs, last)
    first = load_checkpoint(folders[0][1])
    digests = {folder: _require_alike(first, load_checkpoint(folder)) for _, folder in folders}
    _warn_of_other_beginnings(runs)
    bench = Bench(recipe, first.state)
    kept = [folder for _, folder in folders]
    if greedy:
        bench.require(split)
        soup = _greedy(bench, kept, split)
    else:
        soup = Soup({}, kept, bench.mean(kept))
    values, kept = soup.values, soup.kept
    parts = [
        Part(str(run), folder.name, digests[folder], values.get(folder), folder in kept) for run, folder in folders
    ]
    figure = bench.figure.replace("validation", split) if greedy else None
    made = Averaging(
        str(out), first.state.network_name, parts, greedy, bench.images if len(kept) > 1 else 0,
        split if greedy else None, figure, soup.value, bench.engine_name, bench.precision,
        round(time.monotonic() - started, 1),
    )  # fmt: skip
    state = replace(first.state, epoch=0, step=0, metrics={}, partial={}, engine=bench.engine_name)
    averaged = {"greedy": greedy, "parts": [vars(part) for part in parts], "statistics_images": made.statistics_images}
    recipe = load_run_recipe(runs[0])
    text = catalog.file_copy(state.network, len(state.classes)) if catalog.is_custom(state.network) else None
    with files.whole_folder(out) as part:
        if text is not None:
            files.write_whole(part / FILE_NAME, text)
        fill_run(part, NOTE, recipe, (state, soup.mean, {}), {"network": made.network}, {"averaged": averaged})
    return made


def _chosen(runs: Sequence[Path], epochs: str, last: int) -> list[tuple[Path, Path]]:
    """The runs and the folders of their checkpoints, each once, in order. Raises BadRecipe for fewer than two."""
    if epochs and last:
        raise BadRecipe("--epochs and --last both say which", advice="give one of the two")
    if not epochs and not last and len(runs) == 1:
        raise BadRecipe("nothing says which epochs to average", where=runs[0], expected="--epochs 16-20 or --last 5")
    found = {}
    for run in runs:
        for which in _last_epochs(run, last) if last else _epochs(epochs or "best"):
            found[find_checkpoint(run, which)] = run
    if len(found) < 2:
        raise BadRecipe("a mean needs two checkpoints at least", where=runs[0], found=counted(len(found), "checkpoint"))
    return [(run, folder) for folder, run in found.items()]


def _last_epochs(run: Path, last: int) -> list[str]:
    """The last so many epochs of a run. Raises BadRecipe where not all are kept: the best one is, however old."""
    names = [str(epoch) for epoch in whole_epochs(run)[-last:]]
    if len(names) < last or int(names[-1]) - int(names[0]) >= last:
        kept = f"{counted(len(names), 'whole epoch')}{': ' * bool(names)}{', '.join(names)}"
        advice = "train with checkpoint.keep=all, or give a smaller --last or --epochs"
        raise BadRecipe("the run keeps fewer epochs", where=run, expected=last, found=kept, advice=advice)
    return names


def _epochs(words: str) -> list[str]:
    """Epochs from "16-20" or "5,10,best". Raises BadRecipe for what is neither."""
    names: list[str] = []
    for word in words.split(","):
        first, dash, last = (part.strip() for part in word.partition("-"))
        if not dash:
            names.append(first)
        elif first.isdecimal() and last.isdecimal() and int(first) <= int(last) < int(first) + 10_000:
            names += map(str, range(int(first), int(last) + 1))
        else:
            raise BadRecipe("not epochs of a run", where=f"--epochs {words[:80]}", expected="16-20 or 5,10,best")
    return names


def _warn_of_other_beginnings(runs: Sequence[Path]) -> None:
    """Say so where the runs began from values drawn by other seeds, whose mean is worth nothing."""
    recipes = [load_run_recipe(run) for run in runs]
    seeds = [recipe.seed for recipe in recipes if not recipe.initial.weights]
    if len(set(seeds)) > 1:
        what = "the runs began with weights drawn by other seeds (%s): their mean is likely no better than chance; %s"
        log.warning(what, ", ".join(map(str, seeds)), "average runs that began with the same initial.weights")


def _require_alike(first: Checkpoint, other: Checkpoint) -> str:
    """The digest of a checkpoint whose weights mean what the first's do. Raises BadInput for any other."""
    own, state = first.state, other.state
    if not catalog.is_same(own.network, state.network, len(own.classes)) or len(own.classes) != len(state.classes):
        what = "the checkpoint is of another network"
        raise BadInput(what, where=other.folder, expected=own.network_name, found=state.network_name)
    require_same(own.class_table, state.class_table, where=other.folder)
    for name, here, there in (
        ("normalisation", (own.mean, own.std), (state.mean, state.std)),
        ("shapes", *({key: value.shape for key, value in one.weights.items()} for one in (first, other))),
    ):
        if here != there:
            what = f"the checkpoint's {name} are others" if name == "shapes" else f"the checkpoint's {name} is another"
            raise BadInput(what, where=other.folder, expected=f"as {first.folder}")
    return other.weights_digest


@dataclass(frozen=True)
class Soup:
    """The checkpoints kept, their mean, and its figure; `values` has the figure of each checkpoint by itself."""

    values: Mapping[Path, float]
    kept: list[Path]
    mean: Values
    value: float | None = None


def _greedy(bench: Bench, folders: Sequence[Path], split: str) -> Soup:
    """The greedy mean, from the best checkpoint on; of equals the earlier comes first (Wortsman et al. 2022)."""
    scores = {folder: bench.score(load_checkpoint(folder).weights, split) for folder in folders}
    first, *others = sorted(folders, key=lambda folder: -scores[folder][0])
    kept, mean, best = [first], bench.mean([first]), scores[first]
    log.info("%s alone: %s %.4f", first, bench.figure.replace("validation", split), best[1])
    for folder in others:
        tried = bench.mean([*kept, folder])
        found = bench.score(tried, split)
        is_better = found[0] >= best[0]
        log.info("%s: %.4f with it, %s", folder, found[1], "kept" if is_better else "left out")
        if is_better:
            kept, mean, best = [*kept, folder], tried, found
    return Soup({folder: value for folder, (_, value) in scores.items()}, kept, mean, best[1])


def _last_epoch(state: State) -> int:
    """The epoch, counted from 0, that a checkpoint's last step is of."""
    return max(0, state.epoch - (not state.is_within_epoch))


@dataclass
class Bench:
    """An engine that measures and scores averaged weights of the network of `state`; made where it is needed."""

    recipe: Recipe
    state: State
    images: int = 0
    """Training images that the last mean's statistics were measured on."""
    _engine: Engine | None = None
    _frozen: tuple[str, ...] = ()
    _data: DataSet | None = None
    _shares: dict[str, float] = field(init=False)
    _micro_batches: int = field(init=False)

    def __post_init__(self) -> None:
        engine = scoring_engine(self.recipe, self.state)
        self._micro_batches = self.recipe.accumulation
        changes: dict[str, Any] = {
            "engine": engine, "compile": False, "average_decay": 0.0, "accumulation": 1, "sync_batch_norm": False,
            "devices": first_of(self.recipe.devices) if engine == "pytorch" else self.recipe.devices,
            "transfer": TransferRecipe(), "optimizer": OptimizerRecipe(momentum=0.0, weight_decay=0.0),
        }  # fmt: skip
        self.recipe = self.recipe.model_copy(update=changes)
        self._shares = self._new_shares()

    def _new_shares(self) -> dict[str, float]:
        """Running statistics by name, with the share that a step's batch has in them, 1 - momentum."""
        network = network_of(self.state.network, len(self.state.classes))
        if network.engine is not None:
            named = [name for name in network.shapes(self.state.input_shape) if name.endswith("running_var")]
            if named:
                what = "how a zoo's network keeps its running statistics is not known here, so none can be measured"
                raise BadInput(what, where=str(network), advice="average a network of ours")
            return {}
        return {
            f"{report.path}.running_{name}": 1 - report.layer.momentum
            for report in describe(network, self.state.input_shape)
            if isinstance(report.layer, BatchNorm) and not report.layer.frozen and report.layer.momentum < 1
            for name in ("mean", "var")
        }

    @property
    def engine_name(self) -> str:
        return self.recipe.engine

    @property
    def precision(self) -> str | None:
        """The precision in which something was computed, if anything was."""
        return self._engine.precision if self._engine else None

    @property
    def figure(self) -> str:
        """The figure that says which weights are better, that of the recipe's `stopping`."""
        own = self.recipe.stopping
        stopping = own if own.followed.startswith("validation") else StoppingRecipe()
        return stopping.followed_of(self.state.label_kind)

    def data(self) -> DataSet:
        """The records of the run. Raises as `records_of`, and BadInput where their classes are others."""
        if self._data is None:
            self._data = records_of(self.recipe)
            require_its_classes(self.state, self._data)
            self.recipe = with_window(self.recipe, self._data)
        return self._data

    def require(self, split: str) -> None:
        """Raise BadRecipe where the records lack the split."""
        data = self.data()
        if not data.counts.get(split):
            raise no_split(data.name, split, [name for name, count in data.counts.items() if count])

    def mean(self, folders: Sequence[Path]) -> dict[str, Array]:
        """The mean weights of checkpoints, statistics measured anew; of a single one its own weights."""
        checkpoint = load_checkpoint(folders[0])
        first, epoch, moved = checkpoint.weights, _last_epoch(checkpoint.state), set[str]()
        if len(folders) == 1:
            return dict(first)
        sums: Sums = {name: value.astype(np.float64) for name, value in first.items()}
        for checkpoint in map(load_checkpoint, folders[1:]):
            epoch = max(epoch, _last_epoch(checkpoint.state))
            for name, value in checkpoint.weights.items():
                sums[name] += value
                if name in self._shares and not np.array_equal(value, first[name]):
                    moved.add(name.rpartition(".running_")[0])
        mean = {name: np.asarray(total / len(folders), first[name].dtype) for name, total in sums.items()}
        return self._measured(mean, moved, epoch) if moved else mean

    def score(self, values: Values, split: str) -> tuple[float, float]:
        """How good the weights are on a split, higher being better, and the `figure` itself."""
        engine, data = self._holding(values, self._frozen), self.data()
        with RecordSet.of(data, split) as records:
            loader = loader_of(
                self.recipe, records, self.state.input_size, len(data.classes),
                empty=engine.host_array, label_kind=self.state.label_kind, channels=len(self.state.mean),
            )  # fmt: skip
            with loader.evaluation(self.state.crop_fraction) as batches:
                totals = score(engine, watched(batches, split))
        figures = {"loss": totals.loss, **totals.figures(data.classes)}
        row = {f"validation_{name}": value for name, value in figures.items()}
        return goodness(row, self.figure) or 0.0, float(row[self.figure])

    def _measured(self, values: dict[str, Array], moved: Collection[str], epoch: int) -> dict[str, Array]:
        """The values with the running statistics of training images, from an epoch on: the mean over batches.

        Those of layers that have not `moved` from a checkpoint to the next, since they were frozen, stay. A step from
        statistics of 0 leaves a batch's own in them, times its share. Its weights are set back.
        """
        data = self.data()
        shares = {name: share for name, share in self._shares.items() if name.rpartition(".running_")[0] in moved}
        empty: dict[str, Array] = {**values, **{name: np.zeros_like(values[name]) for name in shares}}
        still = tuple(sorted({name.rpartition(".running_")[0] for name in self._shares} - set(moved)))
        engine, recipe = self._holding(empty, still), self.recipe
        size, parts = recipe.images_per_step, self._micro_batches
        wanted = min(steps_per_epoch(recipe, data) * recipe.loader.repeats, -(-MOST_IMAGES // size))
        sums: Sums = {name: np.zeros(values[name].shape) for name in shares}
        with (
            RecordSet.of(data, "train") as records,
            closing(endless_batches(recipe, data, records, empty=engine.host_array, first_epoch=epoch)) as batches,
            Bar("statistics", "batches") as bar,
        ):
            for step, batch in zip(range(wanted), batches, strict=False):
                for images, targets, _ in micro_batches(batch.images, batch.training_targets, parts, 1):
                    engine.set_values(empty)
                    engine.train_batch(images, targets, 1e-30, step_seed(recipe.seed, step))
                    found = engine.values()
                    for name, share in shares.items():
                        sums[name] += found[name] / share
                bar.show(step + 1, wanted)
        engine.totals()
        self.images = wanted * size
        means = {name: np.asarray(total / (wanted * parts), values[name].dtype) for name, total in sums.items()}
        return {**values, **means}

    def _holding(self, values: Values, frozen: tuple[str, ...] = ()) -> Engine:
        """The engine, with these values, and these layers as they are in training."""
        if self._engine is None or frozen != self._frozen:
            self._frozen = frozen
            state, network = self.state, network_of(self.state.network, len(self.state.classes))
            blueprint = Blueprint(
                network, self.recipe.input.trained_size, state.mean, state.std, self.recipe, frozen, state.label_kind
            )
            self._engine = create_engine(self.recipe.engine, blueprint, values)
        self._engine.set_values(values)
        return self._engine
