"""The keys of a recipe, a frozen and strict model a section: types, defaults, meanings, and what fits together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.optimizers import OPTIMIZERS
from imagenet_pipeline.registry import Registry

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Range = tuple[Positive, Positive]
Size = int | tuple[int, int]
"""The same for height and width, or (height, width)."""


def pair(size: Size) -> tuple[int, int]:
    """(height, width) of a Size."""
    return size if isinstance(size, tuple) else (size, size)


def as_size(height: int, width: int) -> Size:
    """The Size of these sides: a single number where they are equal."""
    return height if height == width else (height, width)


def shown_size(size: Size) -> str:
    """A size in pixels for people: 224 of a square, else HEIGHTxWIDTH."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def looks_like_0_to_1(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Tell a normalisation that seems to be meant for images in 0..1, where ours are in 0..255."""
    return max(map(abs, (*mean, *std))) <= 1 and any(mean) and set(std) != {1.0}


def log_odds(probability: float) -> float:
    """The number whose sigmoid is this probability, log(p / (1 - p))."""
    return math.log(probability) - math.log1p(-probability)


class Section(BaseModel):
    """A table of a recipe; the docstring below a key is what `keys` says of it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def _require_default(self, keys: Iterable[str], reason: str) -> None:
        """Raise ValueError at the first of these keys that has another value than its default: it has no effect."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: has no effect {reason}")


@dataclass(frozen=True)
class NameOf:
    """Marks a key whose value is a name of the registry; another is an error as of a `Literal` of its names."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._known, handler(source))

    def _known(self, value: object) -> object:
        if not isinstance(value, str) or value not in self.registry:
            *names, last = map(repr, self.registry.names())
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(names)} or {last}"})
        return value


KEYS_OF_TRANSFORMS = {
    "channels": (),
    "mean_image": ("transform_images",),
    "pixels": ("transform_images", "transform_epsilon"),
    "pca": ("transform_images", "transform_epsilon", "transform_components"),
    "zca": ("transform_images", "transform_epsilon"),
}
"""The keys that each transform of the input reads, beside the size."""


class InputRecipe(Section):
    """The network's input: its size in training and evaluation, pixels."""

    size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Side of the square input, pixels; not read where `height` and `width` are given."""
    height: Annotated[int, Field(ge=0, le=4096)] = 0
    """Height of an input that is no square, pixels; goes with `width`, 0 is `size`."""
    width: Annotated[int, Field(ge=0, le=4096)] = 0
    """Width of an input that is no square, pixels; goes with `height`, 0 is `size`."""
    channels: Literal[1, 3] = 3
    """Channels of the input: 3, RGB, or 1, its grey, 0.299 R + 0.587 G + 0.114 B of each pixel, colour changes made."""
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation looks at this fraction of the largest centred window of the input's shape: of the shorter edge."""
    evaluation_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side of the input in evaluation, pixels; 0 is `size` (larger suits networks trained on crops: Touvron 2019)."""
    start_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side in the first epochs, pixels; 0 is `size`. `training/data.py` says how it grows."""
    grow_epochs: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """Epochs at which `start_size` begins to grow, and has become `size`."""
    transform: Literal["channels", "mean_image", "pixels", "pca", "zca"] = "channels"
    """Input of the network, fitted on the training images: each channel less its mean, by its deviation ("channels");
    less the mean image, too; each pixel by its own deviation; or whitened, to principal components or as an image."""
    transform_images: Annotated[int, Field(ge=0)] = 10_000
    """Training images, drawn by the seed, that `transform` is fitted on; 0 is all of them."""
    transform_epsilon: Positive = 0.01
    """Added to each variance before a division by its root (pixels, pca, zca); that of a channel is 1."""
    transform_components: Annotated[int, Field(ge=0)] = 0
    """Principal components kept by transform "pca", those of the largest variances; 0 is all."""

    @property
    def trained_size(self) -> Size:
        """The input in training, once it has grown, pixels."""
        return as_size(self.height, self.width) if self.height else self.size

    @property
    def scored_size(self) -> Size:
        """The input in evaluation, pixels."""
        return self.evaluation_size or self.trained_size

    @model_validator(mode="after")
    def _check_sides(self) -> InputRecipe:
        for key, other in (("height", "width"), ("width", "height")):
            if getattr(self, key) and not getattr(self, other):
                raise ValueError(f"{key}: goes with {other}, give both or neither")
        if self.height:
            reason = "with height and width: they are sides of a square"
            self._require_default(("evaluation_size", "start_size", "grow_epochs"), reason)
        return self

    @model_validator(mode="after")
    def _check_growth(self) -> InputRecipe:
        if self.start_size > self.size:
            raise ValueError(f"start_size: must not exceed size, {self.size}; found {self.start_size}")
        if self.grow_epochs[0] > self.grow_epochs[1]:
            raise ValueError(
                f"grow_epochs: the first, {self.grow_epochs[0]}, exceeds the second, {self.grow_epochs[1]}"
            )
        if bool(self.start_size) != bool(self.grow_epochs[1]):
            raise ValueError("start_size: goes with grow_epochs, give both or neither")
        return self

    @model_validator(mode="after")
    def _check_transform(self) -> InputRecipe:
        read = KEYS_OF_TRANSFORMS[self.transform]
        unread = [key for key in type(self).model_fields if key.startswith("transform_") and key not in read]
        self._require_default(unread, f'on transform "{self.transform}"')
        if self.transform != "channels":
            self._require_default(
                ("evaluation_size", "start_size"), f'on transform "{self.transform}", which has a number for each pixel'
            )
        return self


Policy = Literal["none", "rand_augment", "trivial_augment", "auto_augment", "aug_mix", "three_augment"]
Fill = Annotated[int, Field(ge=0, le=255)] | Literal["nearest"]


class Augmentation(Section):
    """Random changes to a training image; all but the crop and the flip are off by default.

    Crop "resized" is that of Szegedy et al. 2015 ("Going deeper with convolutions"), its `aspect`, like `zoom`, even
    in the logarithm; "random" takes the largest window of the input's shape of an image smaller than the input.
    `loading/augment.py` applies them all.
    """

    crop: Literal["resized", "random", "centre"] = "resized"
    """A random share and shape of the image ("resized"), a window of the input's size, or the largest of its
    shape."""
    area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Smallest and largest share of the image that crop "resized" takes."""
    aspect: Range = (3 / 4, 4 / 3)
    """Width over height of what crop "resized" takes, from and to, times that of the input."""
    flip: Fraction = 0.5
    """Probability of mirroring left to right."""
    flip_vertical: Fraction = 0.0
    """Probability of mirroring top to bottom."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turn by up to this much either way."""
    shear: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Move rows sideways by up to this much of their height, either way."""
    zoom: Range = (1.0, 1.0)
    """Enlargement about the centre, from and to."""
    shift: Fraction = 0.0
    """Move by up to this share of the width, and of the height."""
    pad: Annotated[int, Field(ge=0, le=1024)] = 0
    """Pixels the image is widened by on each side before it is cropped."""
    brightness: Fraction = 0.0
    """Factor from 1 - x to 1 + x."""
    contrast: Fraction = 0.0
    """Factor from 1 - x to 1 + x."""
    saturation: Fraction = 0.0
    """Factor from 1 - x to 1 + x."""
    lighting: NotNegative = 0.0
    """Standard deviation of AlexNet's colour noise; 0.1 in its paper (Krizhevsky et al. 2012)."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Turn all hues by up to this share of the colour circle, either way (HSV)."""
    fill: Fill = 128
    """Grey of what comes into view from outside the image; "nearest" takes the nearest pixel of its edge."""
    policy: Policy = "none"
    """Random changes out of a published list; `loading/auto_augment.py` says which, and of which papers."""
    policy_changes: Annotated[int, Field(ge=1, le=4)] = 2
    """Changes that rand_augment makes to an image."""
    policy_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of rand_augment's and aug_mix's changes, of 30; 9 is severity 3 of AugMix's 10."""
    erasing: Fraction = 0.0
    """Probability of a random rectangle of noise (Zhong et al. 2020)."""
    mixup: NotNegative = 0.0
    """Alpha of mixup (Zhang et al. 2018); 0 is off. With cutmix too, chance takes either for each image."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix (Yun et al. 2019); 0 is off."""
    mix_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs, from the first, in which mixup and cutmix are on; 0 is all (timm's mixup_off_epoch)."""

    @property
    def mixes(self) -> bool:
        """True where each image becomes a mixture of two, and its label shares of classes."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def recolours(self) -> bool:
        """True where brightness, contrast, saturation or lighting can change."""
        return bool(self.brightness or self.contrast or self.saturation or self.lighting)

    @model_validator(mode="after")
    def _check_ranges(self) -> Augmentation:
        for name in ("area", "aspect", "zoom"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first number, {low}, exceeds the second, {high}")
        if self.area[1] == 0:
            raise ValueError("area: the largest share must be above 0")
        return self

    @model_validator(mode="after")
    def _check_policy(self) -> Augmentation:
        if self.policy != "rand_augment":
            reason = f'on policy "{self.policy}", only on "rand_augment"'
            self._require_default(["policy_changes"], reason)
            if self.policy != "aug_mix":
                self._require_default(["policy_magnitude"], f'{reason} and "aug_mix"')
        if not self.mixes:
            self._require_default(["mix_epochs"], "without mixup or cutmix")
        return self


KEYS_OF_LOSSES = {
    "cross_entropy": ("label_smoothing", "class_weights"),
    "binary_cross_entropy": ("label_smoothing", "threshold", "class_weights"),
    "focal": ("label_smoothing", "gamma", "class_weights"),
    "hinge": ("margin", "class_weights"),
    "mae": (),
    "mse": (),
    "huber": ("delta",),
}
"""The keys each kind of loss reads."""


class LossRecipe(Section):
    """The loss; `engines/__init__.py` states each kind."""

    kind: Literal["cross_entropy", "binary_cross_entropy", "focal", "hinge", "mae", "mse", "huber"] = "cross_entropy"
    """Cross-entropy of the softmax, focal or hinge (of margins), of one class an image; binary_cross_entropy: of two
    classes by a single output, or of records with several classes each; of numbers mae (absolute), mse (squared), or
    huber (both) errors."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes (Szegedy et al. 2016, section 7)."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability from which kind "binary_cross_entropy" says the second class; scores are shifted, so that there
    both classes are even."""
    gamma: NotNegative = 2.0
    """Exponent of kind "focal": how much less an image counts, the surer its class (Lin et al. 2017)."""
    margin: Positive = 1.0
    """Lead over every other class that kind "hinge" asks for."""
    delta: Positive = 1.0
    """Error at which kind "huber" goes over from the square to the straight line."""
    class_weights: tuple[NotNegative, ...] | Literal["none", "balanced"] = "none"
    """Factors of the training loss of each class's images: a list, or "balanced", images / (classes * images of it)."""

    @model_validator(mode="after")
    def _check_effect(self) -> LossRecipe:
        read = KEYS_OF_LOSSES[self.kind]
        unread = [key for key in type(self).model_fields if key not in ("kind", *read)]
        self._require_default(unread, f"on {self.kind}{', which reads ' if read else ''}{', '.join(read)}")
        if not isinstance(self.class_weights, str) and not any(self.class_weights):
            raise ValueError("class_weights: one at least must be above 0")
        return self


KEYS_OF_ALL_OPTIMIZERS = (
    "name", "learning_rate", "reference_batch_size", "weight_decay", "decay_all", "l1", "clip_norm", "max_norm",
    "clip_share", "lookahead_steps", "lookahead_share", "sam_radius",
)  # fmt: skip


class OptimizerRecipe(Section):
    """The update rule; `imagenet_pipeline/optimizers.py` states each."""

    name: Annotated[str, NameOf(OPTIMIZERS)] = "sgd"
    """The rule; each reads its own of the keys below."""
    learning_rate: Annotated[float, Field(gt=0, le=1e30)] = 0.1
    """Highest rate of the schedule; with --resume, the rate of the very next step."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the last step kept in the next (sgd, lars, and muon of matrices, 0.95 in its paper)."""
    nesterov: bool = False
    """Let sgd look ahead along its momentum."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean gradient (adam, adamw, adamax, nadam, radam, lamb, muon); lion steps by it."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the mean squared gradient (adam, adamw, nadam, radam, lamb, muon), of adamax that of the largest one, of
    lion that of the mean gradient (0.99 in its paper)."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean squares (rmsprop, adadelta)."""
    epsilon: Positive = 1e-8
    """Added to a denominator, so that it is never 0 (all but sgd and lion)."""
    trust: Positive = 0.001
    """Trust coefficient of lars."""
    weight_decay: NotNegative = 1e-4
    """L2: times the weight, added to the gradient (adamw, radam, lion, muon, lamb: beside it)."""
    l1: NotNegative = 0.0
    """Times the sign of the weight, added to the gradient; with weight_decay this is the elastic net."""
    decay_all: bool | Literal["scales"] = True
    """Let weight_decay and l1 act on biases and normalisation too, not on Conv and Dense weights alone; "scales": on
    the scales of normalisation, but on no bias, as MXNet's Module does."""
    clip_norm: NotNegative = 0.0
    """Longest gradient, all parameters together, before a step; 0 is no limit (Pascanu et al. 2013)."""
    reference_batch_size: Annotated[int, Field(ge=0)] = 0
    """Batch that `learning_rate` is meant for: another batch scales it (Goyal et al. 2017); 0 takes it as it is."""
    max_norm: NotNegative = 0.0
    """Largest norm of the weights of one output (a row of a Conv or Dense weight) after a step; 0 is no limit."""
    clip_share: NotNegative = 0.0
    """Longest gradient of an output, as a share of the norm of its weights, of all layers but the last; 0 is no limit
    (adaptive gradient clipping, Brock et al. 2021: 0.01 for batches of 4096, up to 0.16 for those of 256)."""
    lookahead_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of the rule after which slow weights follow, which the next begin at (Lookahead, Zhang et al. 2019: 5; with
    radam this is Ranger); 0 is off."""
    lookahead_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the way that slow weights go; goes with `lookahead_steps`."""
    sam_radius: NotNegative = 0.0
    """How far up the gradient the weights are whose gradient a step goes by (sharpness-aware minimisation, Foret et al.
    2021: 0.05): two passes a step, twice the time; 0 is off."""

    @model_validator(mode="after")
    def _check_effect(self) -> OptimizerRecipe:
        read = OPTIMIZERS.get(self.name).keys
        unread = [key for key in type(self).model_fields if key not in (*read, *KEYS_OF_ALL_OPTIMIZERS)]
        self._require_default(unread, f"on {self.name}, which reads {', '.join(read)}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum above 0")
        if not self.lookahead_steps:
            self._require_default(["lookahead_share"], "without lookahead_steps")
        return self


KEYS_OF_SCHEDULES = {
    "constant": (),
    "steps": ("drops", "factor"),
    "polynomial": ("power",),
    "exponential": ("factor",),
    "inverse_time": ("decay",),
    "cosine": ("end_share",),
    "flat_cosine": ("flat_share", "end_share"),
    "restarts": ("period_epochs", "period_factor", "end_share"),
    "one_cycle": ("start_share", "end_share"),
    "plateau": ("patience_epochs", "factor", "figure"),
}
"""The keys each kind of schedule reads, beside warmup_epochs."""
Figure = Literal[
    "train_loss", "train_rank1", "train_rank5", "validation_loss", "validation_rank1", "validation_rank5",
    "train_accuracy", "train_exact", "validation_accuracy", "validation_exact",
    "train_mae", "train_rmse", "validation_mae", "validation_rmse",
]  # fmt: skip
"""The figures of history.csv that say how good an epoch is."""
LOWER_IS_BETTER = frozenset(
    f"{part}_{figure}" for part in ("train", "validation") for figure in ("loss", "mae", "rmse")
)
"""Figures that are better lower; the others are better higher."""


class ScheduleRecipe(Section):
    """The course of the learning rate; `training/schedule.py` defines each kind."""

    kind: Literal[
        "constant", "steps", "polynomial", "exponential", "inverse_time", "cosine", "flat_cosine", "restarts",
        "one_cycle", "plateau",
    ] = "constant"  # fmt: skip
    """Form after the warm-up; each reads its own of the keys below."""
    drops: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs after which the rate falls (kind "steps")."""
    factor: Positive = 0.1
    """Factor of the rate at each drop (kinds "steps" and "plateau"), or of each epoch, little by little
    ("exponential")."""
    power: Positive = 1.0
    """Exponent of kind "polynomial"."""
    decay: Positive | Literal["auto"] = "auto"
    """Factor of kind "inverse_time", the rate / (1 + decay * step), as Keras has it; "auto" is the usual
    learning_rate / epochs."""
    warmup_epochs: NotNegative = 0.0
    """Rise at the start, in epochs, at most half of them: a straight line from 0, a cosine of kind "one_cycle"."""
    start_share: Annotated[float, Field(gt=0, le=1)] = 0.04
    """Share of the rate that kind "one_cycle" starts from."""
    end_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the rate that kinds "cosine", "flat_cosine" and "one_cycle" end at, "restarts" each of its periods."""
    flat_share: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Share of the run after its warm-up that kind "flat_cosine" stays at its highest."""
    period_epochs: Positive = 10.0
    """Epochs of the first period of kind "restarts" (Loshchilov & Hutter 2017)."""
    period_factor: Annotated[float, Field(ge=1)] = 2.0
    """Length of each later period of kind "restarts" over that of the one before."""
    patience_epochs: Annotated[int, Field(ge=1)] = 5
    """Epochs without a better `figure` after which kind "plateau" drops the rate."""
    figure: Figure = "validation_loss"
    """Figure of history.csv that kind "plateau" goes by; of a loss lower is better."""

    @model_validator(mode="after")
    def _check_drops(self) -> ScheduleRecipe:
        if list(self.drops) != sorted(set(self.drops)):
            raise ValueError(f"drops: must rise, found {list(self.drops)}")
        if self.kind == "steps" and not self.drops:
            raise ValueError('drops: kind "steps" needs at least one epoch')
        if self.kind in ("plateau", "exponential") and self.factor >= 1:
            raise ValueError(f'factor: of kind "{self.kind}" must be below 1, found {self.factor:g}')
        if self.kind == "one_cycle" and not self.warmup_epochs:
            raise ValueError('warmup_epochs: must be above 0 with kind "one_cycle"')
        return self

    @model_validator(mode="after")
    def _check_effect(self) -> ScheduleRecipe:
        read = (*KEYS_OF_SCHEDULES[self.kind], "warmup_epochs")
        unread = [key for key in type(self).model_fields if key not in ("kind", *read)]
        self._require_default(unread, f'on kind "{self.kind}", which reads {", ".join(read)}')
        return self

    def require_room(self, epochs: float, meant_for: int = 0) -> None:
        """Raise ValueError, naming the key, where a run of so many epochs has no room for the drops or the restarts.

        `meant_for` are the epochs that the drops were written for, where that is known.
        """
        drops = list(self.drops)
        if drops and drops[-1] >= epochs:
            fitted = fitted_drops(drops, math.ceil(epochs), meant_for)
            advice = (
                f"schedule.drops={json.dumps(fitted)} keeps their proportion" if fitted else "no drop fits one epoch"
            )
            raise ValueError(
                f"schedule.drops: must be below epochs, {epochs:g}, to have an effect; found {drops}; {advice}"
            )
        left = epochs - min(self.warmup_epochs, epochs / 2)
        if self.kind == "restarts" and self.period_epochs >= left:
            first = left / (1 + self.period_factor)
            advice = f'schedule.period_epochs={first:g} has two periods, kind "cosine" a single one'
            raise ValueError(
                f"schedule.period_epochs: must be below the {left:g} epochs of the run after its warm-up, for a "
                f"restart to come; found {self.period_epochs:g}; {advice}"
            )


class InitialRecipe(Section):
    """Initial values of the weights; `networks/initial.py` defines each kind."""

    kind: Literal["xavier", "msra", "he", "lecun", "sparse", "gaussian", "truncated_normal"] = "msra"
    """Distribution that weights are drawn from; "gaussian" is the standard normal one, "truncated_normal" that of
    transformers, of deviation 0.02."""
    bias: Annotated[float, Field(ge=-1e30, le=1e30)] = 0.0
    """The value that every bias starts at."""
    weights: str = ""
    """Weights to start from, not drawn: a file (safetensors, .pth, MXNet .params), or a run (its best checkpoint)."""
    new_head: bool = False
    """Draw the layers whose shape depends on the number of classes anew, and do not take them from `weights`; those,
    too, that a network of one's own has behind the layers of `weights`."""
    mean: tuple[float, ...] = ()
    """Mean subtracted from the network's input, [R, G, B] or [grey] in 0..255; [] as `weights` say, or the records."""
    std: tuple[Positive, ...] = ()
    """Standard deviation that the input is divided by, [R, G, B] or [grey] in 0..255; goes with `mean`."""
    zero_last_scale: bool = False
    """Start the last normalisation of every residual body at scale 0 (Goyal et al. 2017, section 5.1)."""

    @model_validator(mode="after")
    def _check_head(self) -> InitialRecipe:
        if self.new_head and not self.weights:
            raise ValueError("new_head: has no effect without weights")
        if self.weights and not self.new_head:
            self._require_default(["bias"], "with weights, which have their own, but on a new_head")
        if self.zero_last_scale and self.weights:
            raise ValueError(
                "zero_last_scale: has no effect with weights; initial.zero_last_scale=false is right there"
            )
        return self

    @model_validator(mode="after")
    def _check_normalisation(self) -> InitialRecipe:
        for key, other in (("mean", "std"), ("std", "mean")):
            numbers = getattr(self, key)
            if bool(numbers) != bool(getattr(self, other)) and numbers:
                raise ValueError(f"{key}: goes with {other}, give both or neither")
            if len(numbers) not in (0, 1, 3) or len(numbers) != len(self.mean):
                raise ValueError(f"{key}: must be three numbers, [R, G, B], or []; found {list(numbers)}")
            if any(abs(number) > 1e30 for number in numbers):
                raise ValueError(f"{key}: must be in 0..255, found {list(numbers)}")
        if self.std and min(self.std) < 1e-6:
            raise ValueError(f"std: must be 1e-6 or above, found {list(self.std)}")
        if self.std and looks_like_0_to_1(self.mean, self.std):
            times = [[round(255 * number, 3) for number in numbers] for numbers in (self.mean, self.std)]
            raise ValueError(f"mean: looks like the scale 0..1, must be in 0..255: mean={times[0]} std={times[1]}")
        return self


class NetworkOptions(Section):
    """Changes to a network, of the catalogue or a file; `networks/rewriting.py` makes them, and refuses what has no
    effect. "own" leaves it as it is.
    """

    dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["own"] = "own"
    """Rate of every Dropout; gives an `mlp:` one behind each activation."""
    activation: Literal[
        "own",
        "relu",
        "leaky",
        "elu",
        "prelu",
        "selu",
        "sigmoid",
        "tanh",
        "gelu",
        "swish",
        "mish",
        "hard_swish",
        "hard_sigmoid",
    ] = "own"
    """Kind of every activation; "swish" is also called SiLU."""
    normalisation: Literal["own", "none", "before", "after", "first"] = "own"
    """Batch normalisation "before" or "after" every activation that follows a Conv or Dense; "first" puts one in front
    of the network, which standardises its input; "none" takes all of them away."""
    width: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Factor of the channels and units of every layer but the scores."""
    depth: Annotated[int, Field(ge=1, le=64)] = 1
    """Times every Conv and Dense that has an activation stands there, the scores' apart."""
    stem: Literal["own", "cifar"] = "own"
    """"cifar" makes a ResNet's or DenseNet's stem one for small images: 3x3, stride 1, no pooling."""
    squeeze_excitation: Annotated[int, Field(ge=0, le=1024)] = 0
    """Reduction of a squeeze-and-excitation at the end of every residual body; 16 in its paper, 0 is none."""
    blur_pool: Literal["own", "max", "all"] = "own"
    """"max" blurs where a maximum pools, before pixels are left out (MaxBlurPool); "all" where a convolution does, too,
    the network's first apart, as in Zhang's networks."""
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Rate at which training leaves out the last residual body of an image; those before it rise to that from 0."""


def network_name(network: object) -> object:
    """A network as a name: that of a table of layers is its JSON."""
    return json.dumps(network, default=str) if isinstance(network, dict) else network


class TransferRecipe(Section):
    """Fine-tuning: layers of a network that starts from `initial.weights` frozen for a while, or trained slower.

    Keys are layers as `networks NAME` shows them, or their beginnings: `stage1` means all of that stage.
    """

    frozen: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Layer -> epochs for which its weights and running statistics stay as they are."""
    rates: dict[str, Positive] = Field(default_factory=dict)
    """Layer -> factor of the learning rate; of several that fit the longest name counts."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each unit, block or other layer to the one before it, the last one's being 1
    (Bao et al. 2022: 0.65 to 0.9); times that of `rates`."""


class DistillationRecipe(Section):
    """Knowledge distillation: a finished run teaches this one; `engines/__init__.py` writes the loss."""

    teacher: str = ""
    """Run that teaches, its best checkpoint, or RUN:EPOCH; "" is none. It must know the records' classes; its network,
    engine, input size and normalisation may be others."""
    kind: Literal["soft", "hard"] = "soft"
    """Aim at the teacher's probabilities ("soft": Hinton et al. 2015) or at its first class ("hard": Touvron et al.
    2021)."""
    temperature: Positive = 4.0
    """Number that kind "soft" divides the logits of both by: the higher, the more the unlikely classes count."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the teacher's part in the loss; the rest is the labels'."""
    scores: Literal["batch", "records"] = "batch"
    """The teacher scores every batch as the student sees it ("batch"), or each record once, before the first step, and
    whatever the student then sees of it ("records"): cheaper, and kept beside the run."""

    @model_validator(mode="after")
    def _check_effect(self) -> DistillationRecipe:
        if not self.teacher:
            self._require_default(("kind", "temperature", "share", "scores"), "without teacher")
        if self.kind == "hard":
            self._require_default(["temperature"], 'on kind "hard"')
        return self


class StoppingRecipe(Section):
    """Early stopping, and the figure that says which epoch is the best."""

    patience_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better `figure` after which the run ends; 0 is never."""
    figure: Literal["auto", Figure] = "auto"
    """Figure of history.csv that says which epoch is best, here and to evaluate and export; of a loss lower is
    better; "auto" is validation_rank1, or validation_loss where labels are not one class."""
    min_delta: NotNegative = 0.0
    """Least difference, in the figure's own unit, by which an epoch is better for `patience_epochs`."""
    restore_best: bool = False
    """Let a run that has ended go back to its best epoch, which is then its latest; later ones are set aside."""

    @property
    def followed(self) -> str:
        """The figure, "auto" settled."""
        return "validation_rank1" if self.figure == "auto" else self.figure

    @model_validator(mode="after")
    def _check_min_delta(self) -> StoppingRecipe:
        if not self.patience_epochs:
            self._require_default(["min_delta"], "without patience_epochs")
        return self


class CheckpointRecipe(Section):
    keep: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """Number of the latest checkpoints to keep, so that a run can go back to them; the best is always kept."""
    every_steps: Annotated[int, Field(ge=0)] = 0
    """Also save inside an epoch, every so many steps of the run; 0 is off."""
    every_minutes: NotNegative = 15.0
    """Also save inside an epoch, so many minutes after the last checkpoint; 0 is off."""


class LogRecipe(Section):
    loggers: tuple[str, ...] = ()
    """Loggers beside history.csv and the journal: "tensorboard" (RUN/tensorboard), "wandb", "mlflow"."""
    pictures: tuple[str, ...] = ()
    """Layers whose weights are drawn while the run trains (RUN/pictures), as `picture filters` draws them."""
    pictures_every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of the run between these pictures; 0 is after every epoch."""


class LoaderRecipe(Section):
    threads: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = "auto"
    """Decoding threads; 0 decodes in the training thread; "auto" is a thread for each processor."""
    prefetch: Annotated[int, Field(ge=1, le=64)] = 4
    """Batches prepared ahead."""
    window_shards: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Shards whose images are shuffled together, 0 for all; "auto" is all, or half of what a smaller cache holds."""
    order: Literal["shuffled", "balanced"] = "shuffled"
    """Training images of an epoch: every one once, or as many, every class as often: a rare one's come again."""
    repeats: Annotated[int, Field(ge=1, le=64)] = 1
    """Times that a batch has each image, changed differently (repeated augmentation, Hoffer et al. 2020). An epoch is
    as long as before; after so many epochs all images have come."""
    cache: str = ""
    """Folder for shards of records in cloud storage; "" is one for each data set in the user's own cache folder."""
    cache_gb: Annotated[float, Field(ge=0)] = 0.0
    """Bound of that folder, GB (10^9 bytes) of shards; 0 is room for all of them."""

    @model_validator(mode="after")
    def _check_order(self) -> LoaderRecipe:
        if self.order == "balanced" and self.window_shards not in (0, "auto"):
            raise ValueError('window_shards: must be 0, for all, where order is "balanced": no window has every class')
        return self


def fitted_drops(drops: Sequence[int], epochs: int, meant_for: int = 0) -> list[int]:
    """Move the drops of a run of `meant_for` epochs to one of `epochs`: in proportion, rising, each with an effect.

    Where `meant_for` is not known, or too short for them, the last stretch is taken to be as long as the last but one.
    """
    if meant_for <= drops[-1]:
        meant_for = 2 * drops[-1] - (drops[-2] if len(drops) > 1 else 0)
    # Rounded in whole numbers: a recipe may hold some that no float can.
    moved = {(2 * drop * epochs + meant_for) // (2 * meant_for) for drop in drops}
    return sorted({min(max(1, drop), epochs - 1) for drop in moved}) if epochs > 1 else []


def require_even_batch(images: int, ranks: int = 1, parts: int = 1, devices: int = 1, mixes: bool = False) -> None:
    """Raise BadRecipe where a batch does not divide into ranks (whole pairs, to mix), micro-batches and devices."""
    if mixes and ranks == 1 and images % 2:
        raise BadRecipe("must be even where images are mixed in pairs", where="batch_size", found=images)
    ways = ranks * (2 if mixes else 1)
    if images % ways:
        pairs = ", in pairs of images that are mixed" if mixes else ""
        what = f"batch_size does not divide by the {ranks} processes that train together{pairs}"
        raise BadRecipe(what, expected=f"a multiple of {ways}", found=images)
    share = images // ranks
    if share % (parts * devices):
        each = f" of a process, batch_size / {ranks}," if ranks > 1 else ""
        what = f"the batch{each} does not divide by accumulation{f' on {devices} devices' if devices > 1 else ''}"
        raise BadRecipe(what, expected=f"a multiple of {parts * devices}", found=share)


class Recipe(Section):
    """One training run, from its seed to its last epoch."""

    network: Annotated[str, BeforeValidator(network_name)]
    """A name that `networks` lists, or gluoncv:NAME, or timm:NAME; a network's file, PATH.toml or PATH.json, or its
    content, a table here; mlp:512,512 is a network of dense layers of so many units."""
    records: str
    """Folder of the data set, as `build` made it, or its address in cloud storage, "s3://bucket/imagenet"."""
    engine: Literal["auto", "gluon", "pytorch"] = "auto"
    """MXNet/Gluon or PyTorch; "auto" is Gluon where it is installed and has the devices, and for good in a run."""
    epochs: Annotated[int, Field(ge=1)] = 90
    """Passes over the training images."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Steps that the run ends after, inside an epoch too, in place of `epochs`; 0 is all of these."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 256
    """Images a step, over all devices together; "auto" finds, as a run begins, the most that fit in memory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of everything drawn: weights, order of images, augmentation, dropout: what makes a run reproducible."""
    devices: str = "auto"
    """"auto", "cpu", "cpu:0,1", "gpu:0,1,2,3", "gpu:all": the ctx list; "auto" is one GPU, or else the CPU."""
    precision: Literal["auto", "float32", "tf32", "float64", "bfloat16", "float16"] = "auto"
    """Number format of convolutions and dense layers; "auto" is the fastest here that costs no accuracy, float32 where
    labels are numbers; "tf32" is float32 whose products GPUs since Ampere round."""
    compile: bool = False
    """Let the pytorch engine compile its step (torch.compile); Gluon always compiles its own way."""
    deterministic: bool = False
    """Make runs on GPUs reproducible to the byte too, as on CPUs they always are; slower, and not of every layer."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches that a batch is computed in, their gradients added: less memory, the same step."""
    gradient_compression: Literal["none", "bfloat16"] = "none"
    """Number format in which the pytorch engine's processes exchange gradients: half the bytes, 8 bits of precision."""
    sync_batch_norm: bool = False
    """Synchronise batch normalisation over all of the pytorch engine's processes, as if one had the whole batch."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights, which is then what is scored and kept; 0 is off."""
    input: InputRecipe = InputRecipe()
    augmentation: Augmentation = Augmentation()
    network_options: NetworkOptions = NetworkOptions()
    initial: InitialRecipe = InitialRecipe()
    transfer: TransferRecipe = TransferRecipe()
    distillation: DistillationRecipe = DistillationRecipe()
    loss: LossRecipe = LossRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    stopping: StoppingRecipe = StoppingRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    log: LogRecipe = LogRecipe()
    loader: LoaderRecipe = LoaderRecipe()

    @property
    def whole_network(self) -> str:
        """The network's name with its options behind it, as `networks.catalog` takes it: "lenet?dropout=0.3"."""
        options = self.network_options.model_dump(exclude_defaults=True)
        words = [f"{key}={value}".removesuffix(".0") for key, value in options.items()]
        return f"{self.network}?{'&'.join(words)}" if words else self.network

    @property
    def images_per_step(self) -> int:
        """The `batch_size`, once it is a number. Raises BadRecipe where it is still to be found."""
        if self.batch_size == "auto":
            what = "only the start of a training finds the batch that fits"
            raise BadRecipe(what, where="batch_size = 'auto'", advice="give a number")
        return self.batch_size

    @model_validator(mode="after")
    def _check_channels(self) -> Recipe:
        given, channels = len(self.initial.mean), self.input.channels
        if given and given != channels:
            words = {1: "one number, [grey],", 3: "three numbers, [R, G, B],"}[channels]
            raise ValueError(f"initial.mean: must be {words} or []; found {list(self.initial.mean)}")
        return self

    @model_validator(mode="after")
    def _check_balance(self) -> Recipe:
        if self.loader.order == self.loss.class_weights == "balanced":
            raise ValueError('loss.class_weights: "balanced" beside loader.order "balanced" would count it twice')
        return self

    @model_validator(mode="after")
    def _check_repeats(self) -> Recipe:
        if self.batch_size != "auto" and self.loader.repeats > max(1, self.batch_size // 2):
            raise ValueError(
                f"loader.repeats: must be at most half of batch_size, {self.batch_size}; found {self.loader.repeats}"
            )
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> Recipe:
        if not self.distillation.teacher:
            return self
        if self.loss.kind not in ("cross_entropy", "focal", "hinge"):
            raise ValueError(f"distillation.teacher: goes with cross_entropy, focal or hinge, not {self.loss.kind}")
        if self.distillation.scores == "records" and self.augmentation.mixes:
            raise ValueError('distillation.scores: must be "batch" where mixup or cutmix mix images of two records')
        if self.distillation.scores == "batch" and self.batch_size == "auto":
            raise ValueError('batch_size: must be a number beside a teacher, whose memory "auto" does not know')
        return self

    @model_validator(mode="after")
    def _check_mixing(self) -> Recipe:
        if not self.augmentation.mixes:
            return self
        if self.loss.kind == "hinge":
            raise ValueError("loss.kind: hinge looks at one class an image, and augmentation.mixup and cutmix make two")
        if self.batch_size == "auto":
            return self
        try:
            require_even_batch(self.batch_size, mixes=True)
        except BadRecipe as error:
            raise ValueError(f"batch_size: {error.what}, found {error.found}") from error
        return self

    @model_validator(mode="after")
    def _check_schedule(self, info: ValidationInfo) -> Recipe:
        if self.steps:
            self._require_default(["epochs"], f"beside steps, {self.steps}, which end the run; give one of the two")
        else:
            self.schedule.require_room(self.epochs, (info.context or {}).get("epochs", 0))
        return self
