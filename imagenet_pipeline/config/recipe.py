"""A recipe, all its keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imagenet_pipeline.config.images import AugmentationRecipe, InputRecipe
from imagenet_pipeline.config.section import NotNegative, Positive, Section
from imagenet_pipeline.config.update import LossRecipe, OptimizerRecipe, ScheduleRecipe


class InitialRecipe(Section):
    """Initial values of the weights; `networks/initial.py` defines each kind."""

    kind: Literal["xavier", "msra", "he", "lecun", "sparse"] = "msra"
    """Distribution that weights are drawn from."""
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
    def _check_schedule(self) -> Recipe:
        if self.schedule.drops and self.schedule.drops[-1] >= self.epochs:
            drops = list(self.schedule.drops)
            raise ValueError(f"schedule.drops: must be below epochs, {self.epochs}, to have an effect; found {drops}")
        return self
