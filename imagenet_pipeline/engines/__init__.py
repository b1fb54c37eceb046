"""The border between the pipeline and the frameworks: NumPy in, NumPy out.

An engine builds a network out of its description, keeps its parameters on the devices, and trains on, scores and
predicts batches. Normalisation, layout and precision are its own affair. It never waits for the step it has
just issued: losses and hits stay on the device until `totals` is called. But the images and labels of a batch have
left the host, and may be overwritten, as soon as the call that was given them returns.

`imagenet_pipeline/optimizers.py` writes the update rules, shared by the engines. The losses of an image with logits s,
target t (shares of the classes, or 1 for its one class y) and smoothing e over C classes, in training, where
q_j = (1 - e) t_j + e / C and p = softmax(s):

    cross_entropy           - sum over j of q_j log p_j                            (Szegedy et al. 2016, section 7)
    binary_cross_entropy    the same, p_1 = sigmoid(z) and p_0 = 1 - p_1           (C = 2; z is the only output)
    focal                   - sum over j of q_j (1 - p_j)^gamma log p_j            (Lin et al. 2017)
    hinge                   sum over j != y of max(0, s_j - s_y + margin)          (Weston & Watkins 1999)

Of a single output z the network makes the scores s = (-d / 2, d / 2), d = z - log(h / (1 - h)), which are even where
p_1 is the threshold h: so all that ranks two scores goes by the threshold (`networks/head.py`).

Of records with a vector of C labels t, each 0 or 1 or of mixed images a share, or each a number:

    binary_cross_entropy    - mean over j of (t_j log p_j + (1 - t_j) log (1 - p_j)),   p = 1 / (1 + exp(-s))
    mae, mse                mean over j of |s_j - t_j|, of (s_j - t_j)^2
    huber                   mean over j of h(|s_j - t_j|): h(d) = d^2 / 2 up to delta, delta (d - delta / 2) beyond it

With class weights w the loss of an image of one class is the above times sum over j of t_j w_j (w_y of its class y).
A step's loss is the sum of its images', divided by their number, as Keras divides it, not by the sum of their weights,
as PyTorch does: so an image weighs the same whatever shares its batch, and shares of ranks and micro-batches add up.
"balanced" is w_c = n / (C n_c) over all n training images, n_c of them of class c, as scikit-learn has it: the mean
weight of the training images is 1 then, and both ways to divide agree but for chance.

With a teacher's logits v, a share a and a temperature T (`distillation`) the training loss of an image of one class,
smoothing included, becomes (1 - a) times the above plus a times

    soft    T^2 sum over j of q_j log(q_j / p_j),  q = softmax(v / T),  p = softmax(s / T)      (Hinton et al. 2015)
    hard    - log p_c,  c the first class of the largest v_c                       (Touvron et al. 2021, section 4)

and class weights multiply the whole. Auxiliary classifiers learn from the same teacher; of a mixed image it sees the
mixture.

Scoring uses the same without smoothing and without weights: a validation loss is that of the records as they are.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Recipe, Size, TransferRecipe, pair
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.networks.catalog import ZOOS, is_zoo_name
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.subnetwork import no_layer
from imagenet_pipeline.processes import this_process
from imagenet_pipeline.records.classes import ClassTable, LabelKind

LEAST_MISSING = 1e-12
"""Least 1 - p in focal loss: its powers below 1 have no slope at 0."""
FRAMEWORKS = {"gluon": "mxnet", "pytorch": "torch"}
"""Engines, and the packages that they need."""
Array = npt.NDArray[np.floating[Any]]
Values = Mapping[str, Array]
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of an input per channel, in 0..255."""
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Targets = Labels | npt.NDArray[np.float32]
"""Classes [n], or the share of each class or the label vectors [n, classes]."""

FIGURES: dict[LabelKind, tuple[str, str]] = {
    "class": ("rank1", "rank5"),
    "classes": ("accuracy", "exact"),
    "number": ("mae", "rmse"),
}
"""Figures beside the loss. Of several classes an image: percent of right decisions (a positive score is a yes), and of
images with no wrong decision. Of numbers: mean absolute error, and the root of the mean squared error."""


@dataclass(frozen=True)
class Blueprint:
    """A network, its input, and the recipe whose engine keys (devices, precision, optimizer, loss, ...) hold for it.

    `mean` and `std` are per channel (R, G, B, or grey alone), in 0..255; `input_size` is that of the input in pixels
    (a network whose parameters do not depend on it takes other sizes as well), which a checkpoint has of its own.
    `frozen` names layers by the beginnings of their paths: those whose values stay in this epoch.
    `label_kind` is that of the class table, whose figures are counted beside the loss; `class_weights` are the numbers
    that the recipe's come to, none where every class weighs the same.
    """

    network: Sequential | ZooNetwork
    input_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: Recipe
    frozen: tuple[str, ...] = ()
    label_kind: LabelKind = "class"
    class_weights: tuple[float, ...] = ()

    def for_scoring(self) -> Blueprint:
        """The same without the recipe's keys of training alone, which need a compiler or the whole network."""
        return replace(self, recipe=self.recipe.model_copy(update={"compile": False, "transfer": TransferRecipe()}))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (len(self.mean), *pair(self.input_size))


@dataclass(frozen=True)
class Totals:
    """Exact counts over the batches since the last reading.

    `step_losses` is the loss summed over each batch's images, float64, a row a batch. So is, for each of the two
    `FIGURES`, `step_figures` [batches, 2] where labels are not one class; hits are 0 then: of right decisions their
    number, of numbers the absolute and the squared error, each the mean over an image's numbers.
    """

    images: int
    rank1_hits: int
    rank5_hits: int
    step_losses: npt.NDArray[np.float64]
    step_figures: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))

    @classmethod
    def of(cls, images: int, sums: npt.NDArray[np.float64], label_kind: LabelKind) -> Totals:
        """Totals out of the loss and the sums of both figures, [batches, 3]."""
        if label_kind == "class":
            return cls(images, int(sums[:, 1].sum()), int(sums[:, 2].sum()), sums[:, 0])
        return cls(images, 0, 0, sums[:, 0], sums[:, 1:])

    def in_order(self) -> Totals:
        """The same, its batches added up one after the other: not by np.sum, whose order depends on their number."""
        losses, figures = np.cumsum(self.step_losses)[-1:], np.cumsum(self.step_figures, axis=0)[-1:]
        return Totals(self.images, self.rank1_hits, self.rank5_hits, losses, figures)

    def figures(self, classes: ClassTable) -> dict[str, float]:
        """The two `FIGURES` of labels of these classes by name, over all images."""
        if classes.label_kind == "class":
            return {"rank1": self.rank1, "rank5": self.rank5}
        first, second = self.step_figures.sum(axis=0).tolist()
        if classes.label_kind == "number":
            values = first / self.images, math.sqrt(second / self.images)
        else:
            values = 100.0 * first / (self.images * len(classes)), 100.0 * second / self.images
        return dict(zip(FIGURES[classes.label_kind], values, strict=True))

    @property
    def loss(self) -> float:
        """Mean loss per image; of cross-entropy, in nats."""
        return float(self.step_losses.sum()) / self.images

    @property
    def rank1(self) -> float:
        """Percent of images whose true class was ranked first."""
        return 100.0 * self.rank1_hits / self.images

    @property
    def rank5(self) -> float:
        """Percent of images whose true class was among the first five."""
        return 100.0 * self.rank5_hits / self.images

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.images + other.images,
            self.rank1_hits + other.rank1_hits,
            self.rank5_hits + other.rank5_hits,
            np.concatenate([self.step_losses, other.step_losses]),
            np.concatenate([self.step_figures, other.step_figures]),
        )


NO_TOTALS = Totals(0, 0, 0, np.zeros(0))


class Engine(Protocol):
    """A framework, as training and evaluation see it. Images are uint8 [n, height, width, channels], RGB or grey."""

    name: str
    versions: dict[str, str]
    device_names: tuple[str, ...]
    precision: str
    """The precision it computes in, "auto" decided."""
    threads: int
    """Compute threads on the CPU: how sums are cut up, and so their last bits, depend on it."""
    rank: int
    """Number of this process among those that train together, from 0."""
    ranks: int
    """Count of these processes. A method marked collective every rank calls at the same point of its program."""

    def train_batch(
        self, images: Images, labels: Targets, learning_rate: float, seed: int, teacher: Array | None = None
    ) -> None:
        """Step once on this rank's share of a batch; every rank's share has as many images. Collective.

        The gradient is the mean over the images of all ranks. `seed` drives dropout and nothing else. Hits of soft
        labels count their largest. `teacher` has a teacher's logits [n, classes], for the recipe's `distillation`.
        """

    def score_batch(self, images: Images, labels: Targets) -> None:
        """Add a batch's loss and hits to the totals."""

    def totals(self) -> Totals:
        """Losses and hits of this rank's images since the last call; waits for the device."""

    def sum_over_ranks(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sums over all ranks, the same on each; exact for whole numbers below 2**53. Collective.

        Does not wait for the device. Raises WorkerLost where another rank is gone.
        """

    def logits(self, images: Images) -> Array:
        """Logits [n, classes], before the softmax: float64 where that is the precision, or else float32."""

    def issue_logits(self, images: Images) -> Callable[[], Array]:
        """Issue the computation of `logits`; the function returned waits for them, and for nothing issued since."""

    def host_array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A new array, not filled, in the memory from which copies to the device are fastest.

        Raises MemoryError where there is not so much of it.
        """

    def layer_gradients(self, images: Images, layer: str, classes: Labels) -> tuple[Array, Array]:
        """Output of `layer` for each image, and the gradient by it of the image's logit for its class.

        Both [n, ...] of `logits`' kind, as in scoring: nothing dropped out, running statistics. `layer` is a path as
        `networks NAME` shows it, or that of a group of layers: any that scoring runs through, residual bodies and
        branches included. On the first device; it leaves no trace in the engine.
        Raises BadRecipe for another path, and for a zoo's network.
        """

    def values(self) -> dict[str, Array]:
        """A copy of every parameter and running statistic (the mean of all devices'), by name. Collective."""

    def averages(self) -> dict[str, Array]:
        """The moving averages of `values`, or those themselves where `average_decay` is 0. Collective.

        After step t, counted from 1: average = d average + (1 - d) value with d = min(average_decay, t / (t + 9)),
        so that the first values weigh little (as in TensorFlow's ExponentialMovingAverage).
        """

    def set_values(self, values: Values) -> None:
        """Replace every parameter and running statistic; names and shapes must be the network's own."""

    def optimizer_state(self) -> dict[str, Array]:
        """The optimizer state by name; empty before the first step. Collective.

        The update rule's slots for every trained parameter, frozen or not (`OptimizerState.arrays`); moving averages as
        `average/NAME` and `average_steps` [1]; float16's `loss_scale` [2].
        """

    def set_optimizer_state(self, state: Values) -> None:
        """Go on from an optimizer state."""


def is_installed(engine: str) -> bool:
    """Look for an engine's framework, without importing it."""
    return importlib.util.find_spec(FRAMEWORKS[engine]) is not None


def choose_engine(devices: str, network: str = "") -> str:
    """Choose the engine that "auto" stands for, at this moment on this machine.

    A zoo's network brings its own, and torchrun starts PyTorch. Else Gluon where it is installed, unless GPUs are asked
    for, or "auto" may take one, and PyTorch alone can use some; frameworks are imported only then. Raises BadRecipe
    where there is neither.
    """
    if is_zoo_name(network):
        return ZOOS[network.partition(":")[0]]
    installed = [engine for engine in FRAMEWORKS if is_installed(engine)]
    if not installed:
        packages = " or ".join(f"'imagenet-pipeline[{engine}]'" for engine in FRAMEWORKS)
        raise BadRecipe("no engine is installed", expected="MXNet or PyTorch", advice=f"pip install {packages}")
    if "gluon" not in installed or ("pytorch" in installed and this_process().launched):
        return installed[-1]
    wanted = devices.startswith("gpu") or (devices == "auto" and may_have_gpus())
    if "pytorch" in installed and wanted and not gpus_seen("gluon") and gpus_seen("pytorch"):
        return "pytorch"
    return "gluon"


def may_have_gpus() -> bool:
    """Tell a machine that shows no GPU, so that no framework need be imported to count them."""
    if sys.platform == "linux":
        # Of NVIDIA's driver, of Windows' Linux, of AMD's driver.
        return any(os.path.exists(f"/dev/{name}") for name in ("nvidiactl", "dxg", "kfd"))
    return sys.platform == "win32"


def gpus_seen(engine: str) -> int:
    """Count the GPUs that an engine can use; one whose framework cannot be imported uses none."""
    try:
        runtime = importlib.import_module(f"imagenet_pipeline.engines.{engine}.runtime")
    except (ImportError, OSError):
        return 0
    return int(runtime.gpu_count())


def create_engine(name: str, blueprint: Blueprint, values: Values | None) -> Engine:
    """Build the named engine, "auto" chosen; a zoo's network without `values` draws its own, every other needs them.

    Raises BadRecipe where the engine's framework is not installed or cannot be imported, a device is not there, or a
    zoo's network needs the other engine or cannot be built.
    """
    network = blueprint.network
    if name == "auto":
        name = network.engine or choose_engine(blueprint.recipe.devices)
    if network.engine not in (None, name):
        raise BadRecipe(
            f"{network} runs on the {network.engine} engine alone",
            where=f"engine = {name!r}",
            advice=f"take engine={network.engine}",
        )
    if name == "gluon":
        try:
            from imagenet_pipeline.engines.gluon.engine import GluonEngine
        except (ImportError, OSError) as error:
            raise not_importable(name, error, alone=network.engine is not None) from error
        return GluonEngine(blueprint, values)
    if name == "pytorch":
        try:
            from imagenet_pipeline.engines.pytorch.engine import PyTorchEngine
        except (ImportError, OSError) as error:
            raise not_importable(name, error, alone=network.engine is not None) from error
        return PyTorchEngine(blueprint, values)
    raise BadRecipe("there is no such engine", where=f"engine = {name!r}", expected="'gluon' or 'pytorch'")


def keys_of_ranks(recipe: Recipe) -> dict[str, Any]:
    """The keys that several processes of the pytorch engine alone read, and their defaults, where a recipe differs."""
    defaults = {key: Recipe.model_fields[key].default for key in ("gradient_compression", "sync_batch_norm")}
    return {key: default for key, default in defaults.items() if getattr(recipe, key) != default}


def in_cluster() -> bool:
    """True where a variable of MXNet's clusters is set, DMLC_ROLE or another."""
    return any(name.startswith("DMLC_") for name in os.environ)


def taking_part() -> AbstractContextManager[None]:
    """Join the cluster of the DMLC variables for the work with an engine (`engines/gluon/membership.py`), if any."""
    if not in_cluster():
        return nullcontext()
    from imagenet_pipeline.engines.gluon import membership

    return membership.taking_part()


def launch_ranks(engine: str, devices: str, words: Sequence[str]) -> bool:
    """Run the command line `words` in a process for each of the `devices`, where the engine needs that.

    False where this process is to do it itself: for one device, for an engine that takes several, or as a rank.
    Raises what ended them: a rank's own error, or WorkerLost; BadRecipe for PyTorch in a cluster of MXNet's.
    """
    if engine != "gluon" and in_cluster():
        from imagenet_pipeline.engines.gluon.cluster import require_no_cluster

        require_no_cluster(engine)
    several = "," in devices or (devices == "gpu:all" and engine == "pytorch" and gpus_seen(engine) > 1)
    if engine != "pytorch" or not several or this_process().launched:
        return False
    try:
        from imagenet_pipeline.engines.pytorch.launch import launch
    except (ImportError, OSError) as error:
        raise not_importable(engine, error) from error
    launch(devices, words)
    return True


def find_layer(layers: Mapping[str, Any], path: str) -> Any:
    """The block or module of a layer. Raises BadRecipe with the nearest names; of a zoo's network none is known."""
    if not layers:
        raise BadRecipe("the layers of a zoo's network are not known here", where=f"layer {path}")
    if path not in layers:
        raise no_layer(path, layers)
    return layers[path]


def not_scored(path: str) -> BadRecipe:
    """The error for a layer that scoring does not run through."""
    what = "scoring does not use this layer"
    return BadRecipe(what, where=f"layer {path}", advice="auxiliary classifiers work in training only")


def check_fits(expected: dict[str, Any], found: Values, what: str) -> None:
    """Raise BadInput naming the first few names or shapes that differ."""
    faults = [f"{name} missing" for name in expected if name not in found]
    faults += [f"{name} not in this network" for name in found if name not in expected]
    faults += [
        f"{name} has shape {found[name].shape}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(shape) != found[name].shape
    ]
    if faults:
        raise BadInput(f"the {what} do not fit the network: {'; '.join(faults[:3])} ({len(faults)} in all)")


def not_importable(engine: str, error: ImportError | OSError, alone: bool = False) -> BadRecipe:
    """The error for an engine whose framework is missing, or is there and broken; no other will do if `alone`."""
    package = f"'imagenet-pipeline[{engine}]'"
    if isinstance(error, ModuleNotFoundError):
        too_new = engine == "gluon" and sys.version_info >= (3, 13)  # the extra leaves MXNet out there
        python = "take Python 3.11 or 3.12, which MXNet needs, and " if too_new else ""
        others = [] if alone else [other for other in FRAMEWORKS if other != engine and is_installed(other)]
        instead = f", or take engine={others[0]}, which is installed" if others else ""
        advice = f"{python}pip install {package}{instead}"
        return BadRecipe(f"the {engine} engine is not installed ({error})", advice=advice)
    # A shared library that is missing or does not fit says so in an OSError or a bare ImportError.
    if "libcuda.so" in str(error):
        return BadRecipe(
            f"the {engine} engine is built for GPUs, and the NVIDIA driver is missing (libcuda.so)",
            advice=f"install the driver, or the build for CPUs: pip install {package}",
        )
    what = f"the {engine} engine is installed but cannot be imported ({ascii(str(error))[1:-1][:200]})"
    return BadRecipe(what, advice=f"mend it: pip install --force-reinstall {package}")
