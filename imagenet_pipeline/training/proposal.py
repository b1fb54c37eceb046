"""A recipe for photos that were looked at, with its reasons in plain words, and the time it takes on this machine."""

from __future__ import annotations

import contextlib
import tempfile
import textwrap
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from imagenet_pipeline.config import INSTEAD, Recipe, Size, pair, read_recipe, shown_size
from imagenet_pipeline.engines import is_installed, may_have_gpus
from imagenet_pipeline.engines.zoos import network_of
from imagenet_pipeline.errors import BadRecipe, PipelineError, counted
from imagenet_pipeline.networks.catalog import is_zoo_name
from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.plan import Plan
from imagenet_pipeline.records.survey import Survey, sample_of
from imagenet_pipeline.training.benchmark import measure_steps
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint

SMALL_EDGE = 48
"""Shorter edge, pixels, up to which photos are looked at as CIFAR's are."""
FEW_IMAGES = 5_000
"""Images an epoch up to which a network on a CPU sees all of them 25 times."""
UNEVEN = 3.0
"""Photos of the largest class for each of the smallest from which on classes are weighed."""
_SAMPLE, _STEPS = 64, 3
"""Photos, besides those of a step, with which it is measured, and steps of a round."""
_START_SECONDS = 5.0
"""Each verb imports its engine and opens its files in about so long."""
_SCORING_SHARE = 1 / 3
"""Forward alone, of a training step's time."""
_MANY_CLASSES = 50
"""From so many classes on a run has learnt enough about photos to start another from."""
_EDGE_ON_CPU = 128
"""Side of the input, pixels, up to which fine-tuning on a CPU does not take too long."""


@dataclass(frozen=True)
class Weights:
    """A run to start from, and what its checkpoint says of its network."""

    run: Path
    network: str
    classes: int
    input_size: Size
    channels: int = 3

    def proposed_size(self, on_gpu: bool) -> int:
        """Its input's side, pixels: on a CPU a smaller one is quicker."""
        edge = max(pair(self.input_size))
        return edge if on_gpu else min(edge, _EDGE_ON_CPU)

    def fits(self, size: int) -> bool:
        """Tell whether the network has the same parameters at that size; of a zoo's, its library alone knows.

        Raises BadRecipe where the network is not to be had.
        """
        if is_zoo_name(self.network):
            return size == self.input_size
        network = network_of(self.network, self.classes)
        with contextlib.suppress(BadRecipe):  # too small for it
            own = network.shapes((self.channels, *pair(self.input_size)))
            return network.shapes((self.channels, size, size)) == own
        return False


@dataclass(frozen=True)
class Proposal:
    """Keys of a recipe, nested as in TOML, and why: each reason a sentence."""

    values: dict[str, Any]
    reasons: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe as it will be trained. Raises BadRecipe."""
        return read_recipe(self.values, "proposal")

    @property
    def text(self) -> str:
        """The recipe's file: the reasons, then the keys."""
        head = ["Proposed by `imagenet-pipeline start`. Every key can be changed: `imagenet-pipeline keys` lists them."]
        lines = [line for sentence in (*head, *self.reasons) for line in textwrap.wrap(sentence, 118)]
        return "\n".join(f"# {line}" for line in lines) + "\n" + tomli_w.dumps(self.values)


@dataclass(frozen=True)
class TimeNeeded:
    """Seconds that the work takes by what was measured: a step of training, and the whole of it."""

    step_seconds: float
    images_per_second: float
    build_seconds: float
    train_seconds: float
    evaluate_seconds: float

    @property
    def seconds(self) -> float:
        """All together."""
        return self.build_seconds + self.train_seconds + self.evaluate_seconds


def propose(survey: Survey, records: Path, weights: Weights | None, changes: Mapping[str, Any]) -> Proposal:
    """Choose network, input size, epochs and batch for the photos, in a data set `records` to be built.

    `changes` are keys that were asked for, dotted; they are put in last.
    """
    images, on_gpu = survey.images["train"], may_have_gpus()
    reasons = [_seen_in(survey)]
    values = _network(survey, weights, images, on_gpu, [] if "network" in changes else reasons)
    values = {"records": str(records), **values, **_length(images, weights, on_gpu, changes, reasons)}
    values["augmentation"] = {"area": [0.35, 1.0], "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    reasons.append("Crops, mirror images and changes of colour make more of few photos; augmentation.flip = 0 where "
                   "left and right mean something, as in letters.")  # fmt: skip
    values["loss"] = {"label_smoothing": 0.1}
    if survey.imbalance >= UNEVEN:
        values["loss"]["class_weights"] = "balanced"
        reasons.append(f"The largest class has {survey.imbalance:.0f} times the photos of the smallest: "
                       "loss.class_weights = \"balanced\" lets each class count the same.")  # fmt: skip
    if survey.grey == survey.usable and not weights:
        values["input"]["channels"] = 1
        del values["augmentation"]["saturation"]
        reasons.append("All photos are grey: one channel is enough.")
    rate = 5e-4 if weights else 1e-3
    values["optimizer"] = {"name": "adamw", "learning_rate": rate, "weight_decay": 0.05, "decay_all": False}
    values["schedule"] = {"kind": "cosine", "warmup_epochs": min(3, values["epochs"] / 4)}
    values["checkpoint"] = {"keep": 1}
    if "network" in changes and not weights:
        del values["initial"]  # which residual networks alone have a use for
    for key, value in changes.items():
        values.pop(INSTEAD.get(key, ""), None)
        _put(values, key, value)
    if is_installed("pytorch") and not is_zoo_name(str(values["network"])):  # which has an engine of its own
        values.setdefault("engine", "pytorch")
    if changes:
        reasons.append(f"As asked for: {', '.join(changes)}.")
    # Keys of the recipe itself come before its sections.
    ordered = dict(sorted(values.items(), key=lambda item: isinstance(item[1], dict)))
    return Proposal(ordered, tuple(reasons))


def _seen_in(survey: Survey) -> str:
    classes = counted(len(survey.class_counts), "class")
    return f"For {survey.images['train']:,} training photos in {classes}, their shorter edge {survey.edges[1]} pixels."


def _network(survey: Survey, weights: Weights | None, images: int, on_gpu: bool, reasons: list[str]) -> dict[str, Any]:
    """The keys of the network and its input."""
    edge = survey.edges[1]
    if weights:
        proposed = weights.proposed_size(on_gpu)
        own = proposed if weights.fits(proposed) else weights.input_size
        reasons.append(f"Fine-tuning: {weights.run} has learnt {weights.classes:,} classes, so that few photos are "
                       f"enough; {weights.network} with a new last layer, at {shown_size(own)} pixels.")  # fmt: skip
        sides: dict[str, Any] = {"height": own[0], "width": own[1]} if isinstance(own, tuple) else {"size": own}
        channels = {} if weights.channels == 3 else {"channels": weights.channels}
        initial = {"weights": str(weights.run), "new_head": True}
        return {"network": weights.network, "initial": initial, "input": {**sides, **channels}}
    if edge <= SMALL_EDGE:
        name, size = "networks/resnet18_cifar.toml", 32
        reasons.append(f"{name} at {size} pixels: the photos are small, and it keeps their pixels until late.")
    elif on_gpu:
        name, size = ("resnet50_d", 224) if images >= 20_000 and edge >= 200 else ("resnet18_d", 128)
        reasons.append(f"{name} at {size} pixels: there is a GPU.")
    else:
        name, size = "resnet18_d", 64
        reasons.append(f"{name} at {size} pixels: on a CPU a step on small images is quick, and shapes remain.")
    return {
        "network": name,
        "average_decay": 0.99 if images <= FEW_IMAGES else 0.999,
        "initial": {"zero_last_scale": "auto"},
        "input": {"size": size, "crop_fraction": 1.0},
    }


def _length(
    images: int, weights: Weights | None, on_gpu: bool, changes: Mapping[str, Any], reasons: list[str]
) -> dict[str, Any]:
    """Epochs and batch."""
    if isinstance(changes.get("epochs"), int):
        epochs = changes["epochs"]
    elif weights:
        epochs = 15
    elif on_gpu:
        epochs = max(20, min(90, round(5_000_000 / images)))
    else:
        epochs = max(5, min(25, round(25 * FEW_IMAGES / images)))
    batch_size = 16 if images < 1_000 else 32 if images < 10_000 else 128
    # An epoch needs a whole batch.
    while batch_size > max(1, images):
        batch_size //= 2
    reasons.append(f"{counted(epochs, 'epoch')} in batches of {batch_size}: {epochs * (images // batch_size):,} steps"
                   f".")  # fmt: skip
    return {"epochs": epochs, "batch_size": batch_size}


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def weights_of(run: Path) -> Weights:
    """A run as weights to start from. Raises BadRecipe where it is no run, Damaged."""
    state = load_checkpoint(find_checkpoint(run, "best")).state
    return Weights(run, state.network, len(state.classes), state.input_size, len(state.mean))


def weights_at_hand(runs: Path, besides: Path) -> Weights | None:
    """The run under the folder `runs` that tells the most classes apart, many at least; none of `besides`.

    None that not all photos, sizes and engines suit: those are for who asks for them.
    """
    found = []
    for recipe in sorted(runs.glob("*/recipe.toml")):
        if recipe.parent != besides:
            with contextlib.suppress(PipelineError):  # of another's run, which is no matter of the photos
                weights = weights_of(recipe.parent)
                if weights.classes >= _MANY_CLASSES and _suits_any(weights):
                    found.append(weights)
    return max(found, key=lambda weights: weights.classes, default=None)


def _suits_any(weights: Weights) -> bool:
    suits = weights.channels == 3 and not is_zoo_name(weights.network)
    return suits and weights.fits(weights.proposed_size(may_have_gpus()))


def measure_time(plan: Plan, survey: Survey, proposal: Proposal) -> TimeNeeded:
    """Build a sample of the photos, train some steps on it, and reckon what all of it takes on this machine."""
    without = [path for path, _ in survey.unusable]
    recipe = proposal.recipe
    with tempfile.TemporaryDirectory(prefix="imagenet_pipeline_") as folder, ThreadPoolExecutor(1) as pool:
        # More than a step takes: of many photos only some were looked at, and others may be damaged.
        sample = sample_of(plan, recipe.images_per_step + _SAMPLE, without)
        started = time.perf_counter()
        build(sample, Path(folder) / "data", BuildOptions(max_rejects=_SAMPLE), executor=pool)
        photo_seconds = (time.perf_counter() - started) / sum(sample.counts.values())
        speed = measure_steps(
            read_recipe({**proposal.values, "records": f"{folder}/data"}, "proposal"), _STEPS, 1, False, lambda *_: None
        )
    step_seconds = speed.seconds if speed else 0.0
    image_seconds = step_seconds / recipe.images_per_step
    scored = survey.images.get("val", 0)
    epoch_seconds = (survey.images["train"] + _SCORING_SHARE * scored) * image_seconds
    tested = survey.images.get("test", scored)
    return TimeNeeded(
        step_seconds=step_seconds,
        images_per_second=1 / image_seconds if image_seconds else 0.0,
        build_seconds=_START_SECONDS + survey.total * photo_seconds / available_processors(),
        train_seconds=_START_SECONDS + recipe.epochs * epoch_seconds,
        evaluate_seconds=_START_SECONDS + tested * _SCORING_SHARE * image_seconds,
    )
