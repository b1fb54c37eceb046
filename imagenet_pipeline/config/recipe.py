"""A recipe, all its keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from imagenet_pipeline.config.images import AugmentationRecipe, InputRecipe
from imagenet_pipeline.config.section import NotNegative, Positive, Section, looks_like_0_to_1
from imagenet_pipeline.config.update import LossRecipe, OptimizerRecipe, ScheduleRecipe


class InitialRecipe(Section):
    """Initial values of the weights; `networks/initial.py` defines each kind."""

    kind: Literal["xavier", "msra", "he", "lecun", "sparse"] = "msra"
    """Distribution that weights are drawn from."""
    weights: str = ""
    """What to start from instead of drawing: a file (safetensors or MXNet .params), or a run (its best checkpoint)."""
    new_head: bool = False
    """Whether the layers whose shape depends on the number of classes are drawn anew, not taken from `weights`."""
    mean: tuple[float, ...] = ()
    """What the network's input has subtracted, [R, G, B] in 0..255; [] as `weights` say, or else the records."""
    std: tuple[Positive, ...] = ()
    """What it is divided by, [R, G, B] in 0..255; goes with `mean`."""
    zero_last_scale: bool = False
    """Start the last normalisation of every residual body at scale 0 (Goyal et al. 2017, section 5.1)."""

    @model_validator(mode="after")
    def _check_head(self) -> InitialRecipe:
        if self.new_head and not self.weights:
            raise ValueError("new_head: has no effect without weights")
        if self.zero_last_scale and self.weights:
            raise ValueError("zero_last_scale: has no effect with weights, whose scales count")
        return self

    @model_validator(mode="after")
    def _check_normalisation(self) -> InitialRecipe:
        for key, other in (("mean", "std"), ("std", "mean")):
            numbers = getattr(self, key)
            if bool(numbers) != bool(getattr(self, other)) and numbers:
                raise ValueError(f"{key}: goes with {other}, give both or neither")
            if numbers and len(numbers) != 3:
                raise ValueError(f"{key}: must be three numbers, [R, G, B], or []; found {list(numbers)}")
            if any(abs(number) > 1e30 for number in numbers):
                raise ValueError(f"{key}: must be in 0..255, found {list(numbers)}")
        if self.std and min(self.std) < 1e-6:
            raise ValueError(f"std: must be 1e-6 or above, found {list(self.std)}")
        if self.std and looks_like_0_to_1(self.mean, self.std):
            times = [[round(255 * number, 3) for number in numbers] for numbers in (self.mean, self.std)]
            raise ValueError(f"mean: looks like the scale 0..1, must be in 0..255: mean={times[0]} std={times[1]}")
        return self


class TransferRecipe(Section):
    """Which layers of a network that starts from `initial.weights` move, and how fast.

    Keys are layers as `networks NAME` shows them, or their beginnings: `stage1` means all of that stage.
    """

    frozen: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Layer -> epochs for which its weights and running statistics stay as they are."""
    rates: dict[str, Positive] = Field(default_factory=dict)
    """Layer -> factor of the learning rate; of several that fit the longest name counts."""


class StoppingRecipe(Section):
    """When to end before the last epoch."""

    patience_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better validation rank-1 after which the run ends; 0 is never."""


class CheckpointRecipe(Section):
    keep: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """How many of the latest checkpoints to keep, so that a run can go back to them; the best is always kept."""
    every_steps: Annotated[int, Field(ge=0)] = 0
    """Also save inside an epoch, every so many steps of the run; 0 is off."""
    every_minutes: NotNegative = 15.0
    """Also save inside an epoch, this long after the last checkpoint; 0 is off."""


class LogRecipe(Section):
    tensorboard: bool = False
    """Whether to write RUN/tensorboard beside history.csv and the journal."""


class LoaderRecipe(Section):
    threads: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = "auto"
    """Decoding threads; 0 decodes in the training thread; "auto" is one a processor."""
    prefetch: Annotated[int, Field(ge=1, le=64)] = 4
    """Batches prepared ahead."""


def fitted_drops(drops: Sequence[int], epochs: int, meant_for: int = 0) -> list[int]:
    """The drops of a run of `meant_for` epochs in one of `epochs`: in proportion, rising, each with an effect.

    Where that is not known, or itself too short for them, the last stretch is taken to be as long as the one before.
    """
    if meant_for <= drops[-1]:
        meant_for = 2 * drops[-1] - (drops[-2] if len(drops) > 1 else 0)
    # Rounded in whole numbers: a recipe may hold some that no float can.
    moved = {(2 * drop * epochs + meant_for) // (2 * meant_for) for drop in drops}
    return sorted({min(max(1, drop), epochs - 1) for drop in moved}) if epochs > 1 else []


class Recipe(Section):
    """One training run, from its seed to its last epoch."""

    network: str
    """A name that `networks` lists, or gluoncv:NAME, or timm:NAME."""
    records: str
    """Folder of the data set, as `build` made it."""
    engine: Literal["gluon", "pytorch"] = "gluon"
    """MXNet/Gluon or PyTorch."""
    epochs: Annotated[int, Field(ge=1)] = 90
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images a step, over all devices together."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Of everything drawn: weights, order of images, augmentation, dropout."""
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
    def _check_schedule(self, info: ValidationInfo) -> Recipe:
        drops = self.schedule.drops
        if drops and drops[-1] >= self.epochs:
            fitted = fitted_drops(drops, self.epochs, (info.context or {}).get("epochs", 0))
            advice = (
                f"schedule.drops={json.dumps(fitted)} keeps their proportion" if fitted else "no drop fits one epoch"
            )
            raise ValueError(
                f"schedule.drops: must be below epochs, {self.epochs}, to have an effect; found {list(drops)}; {advice}"
            )
        if self.schedule.warmup_epochs > self.epochs:
            warmup = self.schedule.warmup_epochs
            raise ValueError(
                f"schedule.warmup_epochs: must not exceed epochs, {self.epochs}; found {warmup:g} (0 is no warm-up)"
            )
        return self
