"""Recipe keys of a step: what it lowers, by which rule, at which rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imagenet_pipeline.config.section import NotNegative, Positive, Section


class LossRecipe(Section):
    """What training lowers; `engines/__init__.py` states each kind."""

    kind: Literal["cross_entropy", "hinge"] = "cross_entropy"
    """Of the softmax, or of the margins to the other classes."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes (Szegedy et al. 2016, section 7)."""

    @model_validator(mode="after")
    def _check_smoothing(self) -> LossRecipe:
        if self.kind == "hinge" and self.label_smoothing:
            raise ValueError("label_smoothing: has no effect on hinge, which looks at one class an image")
        return self


KEYS_OF_ALL_OPTIMIZERS = (
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


class OptimizerRecipe(Section):
    """The update rule; `engines/optimizers.py` states each."""

    name: Literal["sgd", "adam", "adamw", "nadam", "rmsprop", "adagrad", "adadelta", "lamb", "lars"] = "sgd"
    """The rule; each reads its own of the keys below."""
    learning_rate: Annotated[float, Field(gt=0, le=1e30)] = 0.1
    """The highest of the schedule; with --resume, the rate of the very next step."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd and lars."""
    nesterov: bool = False
    """Whether sgd looks ahead along its momentum."""
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
        read = (*KEYS_OF_OPTIMIZERS[self.name], *KEYS_OF_ALL_OPTIMIZERS)
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


class ScheduleRecipe(Section):
    """How the learning rate moves; `training/schedule.py` defines each kind."""

    kind: Literal["constant", "steps", "polynomial", "cosine", "one_cycle", "plateau"] = "constant"
    """Its form after the warm-up; each reads its own of the keys below."""
    drops: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs after which the rate falls (kind "steps")."""
    factor: Positive = 0.1
    """What each drop multiplies the rate by (kinds "steps" and "plateau")."""
    power: Positive = 1.0
    """Exponent of kind "polynomial"."""
    warmup_epochs: NotNegative = 0.0
    """Rise at the start, in epochs, at most half of them: a straight line from 0, a cosine of kind "one_cycle"."""
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
