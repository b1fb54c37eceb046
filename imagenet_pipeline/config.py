"""Recipes: what to train, on what, how. TOML in, frozen and validated models out; an unknown key is an error."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.recipe_faults import recipe_fault

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Range = tuple[Positive, Positive]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class InputRecipe(_Section):
    """What the network sees."""

    size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Side of the square input, pixels."""
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation looks at the centre square of this fraction of the shorter edge."""
    evaluation_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side of the input in evaluation, pixels; 0 is `size` (larger suits networks trained on crops: Touvron 2019)."""
    start_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side in the first epochs, pixels; 0 is `size`. `training/sizes.py` says how it grows."""
    grow_epochs: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """From which epoch on `start_size` grows, and from which it is `size`."""

    @property
    def scored_size(self) -> int:
        """Side of the input in evaluation, pixels."""
        return self.evaluation_size or self.size

    @model_validator(mode="after")
    def _check_growth(self) -> InputRecipe:
        if self.start_size > self.size:
            raise ValueError(f"start_size: exceeds size, {self.size}")
        if self.grow_epochs[0] > self.grow_epochs[1]:
            raise ValueError(
                f"grow_epochs: the first, {self.grow_epochs[0]}, exceeds the second, {self.grow_epochs[1]}"
            )
        if bool(self.start_size) != bool(self.grow_epochs[1]):
            raise ValueError("start_size: goes with grow_epochs, give both or neither")
        return self


class AugmentationRecipe(_Section):
    """Random changes to a training image; `loading/augment.py` defines each."""

    crop: Literal["resized", "random", "centre"] = "resized"
    area: tuple[Fraction, Fraction] = (0.08, 1.0)
    aspect: Range = (3 / 4, 4 / 3)
    flip: Fraction = 0.5
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    shear: Annotated[float, Field(ge=0, le=1)] = 0.0
    zoom: Range = (1.0, 1.0)
    shift: Fraction = 0.0
    pad: Annotated[int, Field(ge=0, le=1024)] = 0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    lighting: NotNegative = 0.0
    fill: Annotated[int, Field(ge=0, le=255)] = 128
    policy: Literal["none", "rand_augment", "trivial_augment"] = "none"
    """Random changes out of a published list (Cubuk et al. 2020; Mueller & Hutter 2021); `loading/policy.py`."""
    policy_changes: Annotated[int, Field(ge=1, le=4)] = 2
    """How many changes rand_augment makes to an image."""
    policy_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """How strong rand_augment's are, of 30."""
    erasing: Fraction = 0.0
    """Probability of a random rectangle of noise (Zhong et al. 2020)."""
    mixup: NotNegative = 0.0
    """Alpha of mixup (Zhang et al. 2018); 0 is off. With cutmix too, each image gets one of the two by chance."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix (Yun et al. 2019); 0 is off."""

    @property
    def mixes(self) -> bool:
        """Whether training labels become shares of classes."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _check_ranges(self) -> AugmentationRecipe:
        for name in ("area", "aspect", "zoom"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first number, {low}, exceeds the second, {high}")
        if self.area[1] == 0:
            raise ValueError("area: the largest area is 0")
        return self

    @model_validator(mode="after")
    def _check_policy(self) -> AugmentationRecipe:
        for key in ("policy_changes", "policy_magnitude"):
            if self.policy != "rand_augment" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f'{key}: has no effect on policy "{self.policy}", only on "rand_augment"')
        return self


class InitialRecipe(_Section):
    """Initial values of the weights; `networks/initial.py` defines each kind."""

    kind: Literal["xavier", "msra", "he", "lecun", "sparse"] = "msra"
    weights: str = ""
    """What to start from instead of drawing: a file (safetensors or MXNet .params), or a run (its best checkpoint)."""
    new_head: bool = False
    """Whether the layers whose shape depends on the number of classes are drawn anew, not taken from `weights`."""
    zero_last_scale: bool = False
    """Start the last normalisation of every residual body at scale 0 (Goyal et al. 2017, section 5.1)."""

    @model_validator(mode="after")
    def _check_head(self) -> InitialRecipe:
        if self.new_head and not self.weights:
            raise ValueError("new_head: has no effect without weights")
        if self.zero_last_scale and self.weights:
            raise ValueError("zero_last_scale: has no effect with weights, whose scales count")
        return self


class TransferRecipe(_Section):
    """Which layers of a network that starts from `initial.weights` move, and how fast.

    Keys are layers as `networks NAME` shows them, or their beginnings: `stage1` means all of that stage.
    """

    frozen: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Layer -> epochs for which its weights and running statistics stay as they are."""
    rates: dict[str, Positive] = {}
    """Layer -> factor of the learning rate; of several that fit the longest name counts."""


class LossRecipe(_Section):
    """What training lowers; `engines/__init__.py` states each kind."""

    kind: Literal["cross_entropy", "hinge"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes (Szegedy et al. 2016, section 7)."""

    @model_validator(mode="after")
    def _check_smoothing(self) -> LossRecipe:
        if self.kind == "hinge" and self.label_smoothing:
            raise ValueError("label_smoothing: has no effect on hinge, which looks at one class an image")
        return self


_READ_BY_ALL = (
    "name", "learning_rate", "reference_batch_size", "weight_decay", "decay_all", "l1", "clip_norm", "max_norm",
)  # fmt: skip
KEYS_OF_OPTIMIZERS = {
    "sgd": ("momentum", "nesterov"),
    "adam": ("beta1", "beta2", "epsilon"),
    "adamw": ("beta1", "beta2", "epsilon"),
    "nadam": ("beta1", "beta2", "epsilon"),
    "rmsprop": ("decay", "epsilon"),
    "adagrad": ("epsilon",),
    "adadelta": ("decay", "epsilon"),
    "lamb": ("beta1", "beta2", "epsilon"),
    "lars": ("momentum", "epsilon", "trust"),
}
"""The keys each optimizer reads, beside those that all do."""


class OptimizerRecipe(_Section):
    """The update rule; `engines/rules.py` states each."""

    name: Literal["sgd", "adam", "adamw", "nadam", "rmsprop", "adagrad", "adadelta", "lamb", "lars"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, le=1e30)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd and lars."""
    nesterov: bool = False
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean gradient (adam, adamw, nadam, lamb)."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the mean squared gradient (adam, adamw, nadam, lamb)."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean squares (rmsprop, adadelta)."""
    epsilon: Positive = 1e-8
    """What is added to a denominator (all but sgd)."""
    trust: Positive = 0.001
    """Trust coefficient of lars."""
    weight_decay: NotNegative = 1e-4
    """L2: times the weight, added to the gradient (adamw, lamb: beside it)."""
    l1: NotNegative = 0.0
    """Times the sign of the weight, added to the gradient; with weight_decay this is the elastic net."""
    decay_all: bool = True
    """Whether weight_decay and l1 act on biases and normalisation too, and not on Conv and Dense weights alone."""
    clip_norm: NotNegative = 0.0
    """Longest gradient, all parameters together, before a step; 0 is no limit (Pascanu et al. 2013)."""
    reference_batch_size: Annotated[int, Field(ge=0)] = 0
    """Batch that `learning_rate` is meant for: another one scales it (Goyal et al. 2017); 0 takes it as it is."""
    max_norm: NotNegative = 0.0
    """Largest norm of the weights of one output (a row of a Conv or Dense weight) after a step; 0 is no limit."""

    @model_validator(mode="after")
    def _check_effect(self) -> OptimizerRecipe:
        read = (*KEYS_OF_OPTIMIZERS[self.name], *_READ_BY_ALL)
        for key, field in type(self).model_fields.items():
            if key not in read and getattr(self, key) != field.default:
                raise ValueError(
                    f"{key}: has no effect on {self.name}, which reads {', '.join(KEYS_OF_OPTIMIZERS[self.name])}"
                )
        return self

    @model_validator(mode="after")
    def _check_nesterov(self) -> OptimizerRecipe:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum above 0")
        return self


KEYS_OF_SCHEDULES = {
    "constant": (),
    "steps": ("drops", "factor"),
    "polynomial": ("power",),
    "cosine": ("end_share",),
    "one_cycle": ("start_share", "end_share"),
    "plateau": ("patience_epochs", "factor"),
}
"""The keys each kind of schedule reads, beside warmup_epochs."""


class ScheduleRecipe(_Section):
    """How the learning rate moves; `training/schedule.py` defines each kind."""

    kind: Literal["constant", "steps", "polynomial", "cosine", "one_cycle", "plateau"] = "constant"
    drops: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs after which the rate falls (kind "steps")."""
    factor: Positive = 0.1
    """What each drop multiplies the rate by (kinds "steps" and "plateau")."""
    power: Positive = 1.0
    """Exponent of kind "polynomial"."""
    warmup_epochs: NotNegative = 0.0
    """Rise at the start, in epochs: in a straight line from 0, of "one_cycle" along a cosine from `start_share`."""
    start_share: Annotated[float, Field(gt=0, le=1)] = 0.04
    """Share of the rate that kind "one_cycle" starts from."""
    end_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the rate that kinds "cosine" and "one_cycle" end at."""
    patience_epochs: Annotated[int, Field(ge=1)] = 5
    """Epochs without a lower validation loss after which kind "plateau" drops the rate."""

    @model_validator(mode="after")
    def _check_drops(self) -> ScheduleRecipe:
        if list(self.drops) != sorted(set(self.drops)):
            raise ValueError(f"drops: must rise, found {list(self.drops)}")
        if self.kind == "steps" and not self.drops:
            raise ValueError('drops: kind "steps" needs at least one epoch')
        if self.kind == "plateau" and self.factor >= 1:
            raise ValueError(f'factor: of kind "plateau" must be below 1, found {self.factor:g}')
        if self.kind == "one_cycle" and not self.warmup_epochs:
            raise ValueError('warmup_epochs: kind "one_cycle" rises for longer than 0 epochs')
        return self

    @model_validator(mode="after")
    def _check_effect(self) -> ScheduleRecipe:
        read = KEYS_OF_SCHEDULES[self.kind]
        for key, field in type(self).model_fields.items():
            if key not in ("kind", "warmup_epochs", *read) and getattr(self, key) != field.default:
                reads = ", ".join((*read, "warmup_epochs"))
                raise ValueError(f'{key}: has no effect on kind "{self.kind}", which reads {reads}')
        return self


class StoppingRecipe(_Section):
    """When to end before the last epoch."""

    patience_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better validation rank-1 after which the run ends; 0 is never."""


class CheckpointRecipe(_Section):
    keep: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """How many of the latest checkpoints to keep, so that a run can go back to them; the best is always kept."""
    every_steps: Annotated[int, Field(ge=0)] = 0
    """Also save inside an epoch, every so many steps of the run; 0 is off."""
    every_minutes: NotNegative = 15.0
    """Also save inside an epoch, this long after the last checkpoint; 0 is off."""


class LogRecipe(_Section):
    tensorboard: bool = False
    """Whether to write RUN/tensorboard beside history.csv and the journal."""


class LoaderRecipe(_Section):
    threads: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = "auto"
    """Decoding threads; 0 decodes in the training thread; "auto" is one a processor."""
    prefetch: Annotated[int, Field(ge=1, le=64)] = 4
    """Batches prepared ahead."""


class Recipe(_Section):
    """One training run, from its seed to its last epoch."""

    network: str
    records: str
    engine: Literal["gluon", "pytorch"] = "gluon"
    epochs: Annotated[int, Field(ge=1)] = 90
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images a step, over all devices together."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    devices: str = "auto"
    """"auto", "cpu", "cpu:0,1", "gpu:0,1,2,3": the ctx list."""
    precision: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    """What convolutions and dense layers compute in; "auto" is the fastest here that costs no accuracy."""
    compile: bool = False
    """Whether the pytorch engine compiles its step (torch.compile); Gluon always compiles its own way."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Parts a batch is computed in, one after the other, their gradients added: less memory, the same step."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights, which is then what is scored and kept; 0 is off."""
    input: InputRecipe = InputRecipe()
    augmentation: AugmentationRecipe = AugmentationRecipe()
    initial: InitialRecipe = InitialRecipe()
    transfer: TransferRecipe = TransferRecipe()
    loss: LossRecipe = LossRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    stopping: StoppingRecipe = StoppingRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    log: LogRecipe = LogRecipe()
    loader: LoaderRecipe = LoaderRecipe()

    @model_validator(mode="after")
    def _check_mixing(self) -> Recipe:
        if not self.augmentation.mixes:
            return self
        if self.loss.kind == "hinge":
            raise ValueError("loss.kind: hinge looks at one class an image, and augmentation.mixup and cutmix make two")
        if self.batch_size % 2:
            raise ValueError(f"batch_size: must be even where images are mixed in pairs, found {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Recipe:
        if self.schedule.drops and self.schedule.drops[-1] >= self.epochs:
            drops = list(self.schedule.drops)
            raise ValueError(f"schedule.drops: must be below epochs, {self.epochs}, to have an effect; found {drops}")
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(f"schedule.warmup_epochs: exceeds epochs, {self.epochs}")
        return self


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file and lay `overrides` (dotted key -> value) over it.

    Raises BadRecipe, one line, for a missing file, broken TOML, an unknown key (with the nearest one), a wrong type.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadRecipe("no such recipe file", where=path) from error
    except IsADirectoryError as error:
        advice = "train RECIPE.toml --run FOLDER --resume latest goes on with a run"
        raise BadRecipe("a folder, not a recipe file", where=path, advice=advice) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadRecipe(f"not a readable TOML file ({error})", where=path) from error
    for key, value in (overrides or {}).items():
        _put(values, key, value)
    return _validated(values, str(path), overrides or {})


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Turn `key=value` words into dotted keys and values; a value is TOML, or else plain text."""
    overrides = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise BadRecipe("not an override", where=word, expected="key=value, as in epochs=20")
        overrides[key.strip()] = _literal(text.strip())
    return overrides


def recipe_text(recipe: Recipe) -> str:
    """The whole recipe as TOML, defaults included; reads back equal."""
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def option_names() -> list[str]:
    """Every recipe key, dotted."""
    return list(_names(Recipe, ""))


def options(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Every recipe key, dotted, with its value."""
    for name in option_names():
        value: Any = recipe
        for word in name.split("."):
            value = getattr(value, word)
        yield name, value


def _literal(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise BadRecipe("not a section", where=key, advice=f"known keys: {', '.join(option_names())}")
    place[last] = value


def _validated(values: dict[str, Any], where: str, overrides: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(_with_tuples(values))
    except ValidationError as error:
        words = [str(word) for word in error.errors()[0]["loc"]]
        beginnings = [".".join(words[:length]) for length in range(1, len(words) + 1)]
        given = any(key in beginnings or key.startswith(f"{'.'.join(words)}.") for key in overrides)
        raise recipe_fault(error, option_names(), "command line" if given else where) from error


def _with_tuples(value: Any) -> Any:
    # Strict models want tuples where TOML has arrays.
    if isinstance(value, dict):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(_with_tuples(inner) for inner in value) if isinstance(value, list) else value


def _names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _names(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
