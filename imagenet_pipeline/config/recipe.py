"""A recipe whole: the sections of its other keys, and what fits together."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from imagenet_pipeline.config.input import Augmentation, InputRecipe
from imagenet_pipeline.config.optimization import LossRecipe, OptimizerRecipe, ScheduleRecipe, StoppingRecipe
from imagenet_pipeline.config.section import NotNegative, Positive, Section, looks_like_0_to_1
from imagenet_pipeline.errors import BadRecipe


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
    zero_last_scale: bool | Literal["auto"] = False
    """Start the last normalisation of every residual body at scale 0 (Goyal et al. 2017, section 5.1); "auto" is that
    where the network has such bodies and its values are drawn here."""

    @model_validator(mode="after")
    def _check_head(self) -> InitialRecipe:
        if self.new_head and not self.weights:
            raise ValueError("new_head: has no effect without weights")
        if self.weights and not self.new_head:
            self._require_default(["bias"], "with weights, which have their own, but on a new_head")
        if self.zero_last_scale is True and self.weights:
            raise ValueError('zero_last_scale: has no effect with weights; "auto" or false is right there')
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
    squeeze_excitation: Annotated[int, Field(ge=1, le=1024)] | Literal["own"] = "own"
    """Reduction of a squeeze-and-excitation at the end of every residual body that has none; 16 in its paper."""
    blur_pool: Literal["own", "max", "all"] = "own"
    """"max" blurs where a maximum pools, before pixels are left out (MaxBlurPool); "all" where a convolution does, too,
    the network's first apart, as in Zhang's networks."""
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] | Literal["own"] = "own"
    """Rate at which training leaves out the last residual body of an image; those before it rise to that from 0. With
    0 none is left out, in a ConvNeXt or EfficientNet either."""


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


def require_room_for_repeats(repeats: int, images: int) -> None:
    """Raise BadRecipe where a batch has not two different images, each so many times."""
    if repeats > max(1, images // 2):
        raise BadRecipe(f"must be at most half of batch_size, {images}", where="loader.repeats", found=repeats)


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
        if self.batch_size == "auto":
            return self
        try:
            require_room_for_repeats(self.loader.repeats, self.batch_size)
        except BadRecipe as error:
            raise ValueError(f"loader.repeats: {error.what}; found {error.found}") from error
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
