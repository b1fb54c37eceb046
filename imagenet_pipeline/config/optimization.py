"""The sections `loss`, `optimizer`, `schedule` and `stopping` of a recipe: what is minimised, how, and how long."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from imagenet_pipeline.config.section import NameOf, NotNegative, Positive, Section
from imagenet_pipeline.optimizers import OPTIMIZERS

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
    """Let weight_decay and l1 act on biases, normalisation and a transformer's positions too, not on Conv and Dense
    weights alone; "scales": on the scales of normalisation, but on no bias, as MXNet's Module does."""
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


def better(figure: str) -> Callable[..., Any]:
    """`min` of a figure that is better lower, `max` of any other."""
    return min if figure in LOWER_IS_BETTER else max


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

    def followed_of(self, label_kind: str) -> str:
        """The figure of labels of this kind: those that are not one class have a loss for a rank-1."""
        return "validation_loss" if label_kind != "class" and self.followed == "validation_rank1" else self.followed

    @model_validator(mode="after")
    def _check_min_delta(self) -> StoppingRecipe:
        if not self.patience_epochs:
            self._require_default(["min_delta"], "without patience_epochs")
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
