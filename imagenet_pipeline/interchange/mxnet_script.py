"""The scripts of MXNet 1.9.1's example/image-classification, their flags and their recipe (common/fit.py, data.py)."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from imagenet_pipeline.errors import BadRecipe, did_you_mean
from imagenet_pipeline.interchange.script_flags import (
    INTEGER,
    NUMBER,
    TRIPLE,
    WORD,
    Arguments,
    Flag,
    Kind,
    precision,
    steps,
)

_SHOWN = "rank-1, rank-5 and loss are always reported"
_MEASURED = "`benchmark loader` and `benchmark step` measure speed"
_NO_COMPRESSION = "gradients are not compressed"
_LARGE_BATCH = "read with --optimizer lbsgd alone, by MXNet too"


def _whole(text: str) -> int:
    """A whole number that may be written 0.0, as flags of 0 and 1 are now and then."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


SIGN = Kind(_whole, "0 or 1")

FLAGS = {
    "network": Flag(WORD),
    "num-layers": Flag(INTEGER),
    "gpus": Flag(WORD, ""),
    "kv-store": Flag(WORD, "device"),
    "num-epochs": Flag(INTEGER, 100),
    "lr": Flag(NUMBER, 0.1),
    "lr-factor": Flag(NUMBER, 0.1),
    "lr-step-epochs": Flag(WORD, ""),
    "initializer": Flag(WORD, "default"),
    "optimizer": Flag(WORD, "sgd"),
    "mom": Flag(NUMBER, 0.9),
    "wd": Flag(NUMBER, 1e-4),
    "batch-size": Flag(INTEGER, 128),
    "disp-batches": Flag(INTEGER, 20, "the bar shows every step"),
    "model-prefix": Flag(
        WORD, None, "`train RECIPE --run FOLDER` says where; `export --format mxnet` writes such files"
    ),
    "save-period": Flag(INTEGER, 1, "every epoch is a checkpoint; checkpoint.keep says how many stay"),
    "monitor": Flag(INTEGER, 0, "nothing prints the arrays of a step"),
    "load-epoch": Flag(
        INTEGER, None, "`import` makes a run of a checkpoint, to go on with `train RUN --resume latest`"
    ),
    "top-k": Flag(INTEGER, 0, _SHOWN),
    "loss": Flag(WORD, "", _SHOWN),
    "test-io": Flag(INTEGER, 0, _MEASURED),
    "dtype": Flag(WORD, "float32"),
    "gc-type": Flag(WORD, "none", _NO_COMPRESSION),
    "gc-threshold": Flag(NUMBER, 0.5, _NO_COMPRESSION),
    "macrobatch-size": Flag(INTEGER, 0),
    "warmup-epochs": Flag(INTEGER, 5),
    "warmup-strategy": Flag(WORD, "linear"),
    "profile-worker-suffix": Flag(WORD, "", _MEASURED),
    "profile-server-suffix": Flag(WORD, "", _MEASURED),
    "use-imagenet-data-augmentation": Flag(SIGN, 0),
    "data-train": Flag(WORD),
    "data-train-idx": Flag(WORD, "", "an .idx beside its .rec is found"),
    "data-val": Flag(WORD),
    "data-val-idx": Flag(WORD, "", "an .idx beside its .rec is found"),
    "rgb-mean": Flag(TRIPLE, [123.68, 116.779, 103.939]),
    "rgb-std": Flag(TRIPLE, [1.0, 1.0, 1.0]),
    "pad-size": Flag(INTEGER, 0),
    "fill-value": Flag(INTEGER, 127),
    "image-shape": Flag(Kind(lambda text: [int(word) for word in text.split(",")], "3,HEIGHT,WIDTH"), [3, 224, 224]),
    "num-classes": Flag(INTEGER, None, "the records say how many there are"),
    "num-examples": Flag(INTEGER, None, "the records say how many there are"),
    "data-nthreads": Flag(INTEGER),
    "benchmark": Flag(INTEGER, 0, _MEASURED),
    "random-crop": Flag(SIGN, 0),
    "random-mirror": Flag(SIGN, 0),
    "max-random-h": Flag(INTEGER, 0),
    "max-random-s": Flag(INTEGER, 0, "augmentation.saturation is the nearest, a factor"),
    "max-random-l": Flag(INTEGER, 0, "augmentation.brightness is the nearest, a factor"),
    "min-random-aspect-ratio": Flag(NUMBER),
    "max-random-aspect-ratio": Flag(NUMBER, 0.0),
    "max-random-rotate-angle": Flag(INTEGER, 0),
    "max-random-shear-ratio": Flag(NUMBER, 0.0),
    "max-random-scale": Flag(NUMBER, 1.0),
    "min-random-scale": Flag(NUMBER, 1.0),
    "max-random-area": Flag(NUMBER, 1.0),
    "min-random-area": Flag(NUMBER, 1.0),
    "min-crop-size": Flag(INTEGER, -1, 'augmentation.crop = "resized" with an area is the nearest'),
    "max-crop-size": Flag(INTEGER, -1, 'augmentation.crop = "resized" with an area is the nearest'),
    "brightness": Flag(NUMBER, 0.0),
    "contrast": Flag(NUMBER, 0.0),
    "saturation": Flag(NUMBER, 0.0),
    "pca-noise": Flag(NUMBER, 0.0),
    "random-resized-crop": Flag(SIGN, 0),
    "pretrained-model": Flag(WORD),
    "layer-before-fullc": Flag(WORD, None, "initial.new_head draws the last layer anew, whatever is before it"),
}
SCRIPTS: dict[str, dict[str, Any]] = {
    "train_imagenet.py": {"network": "resnet", "num-layers": 50, "num-epochs": 80, "lr-step-epochs": "30,60"},
    "train_cifar10.py": {
        "network": "resnet", "num-layers": 110, "num-epochs": 300, "lr": 0.05, "lr-step-epochs": "200,250",
        "image-shape": [3, 28, 28], "pad-size": 4,
        "data-train": "data/cifar10_train.rec", "data-val": "data/cifar10_val.rec",
    },
    "fine-tune.py": {
        "num-epochs": 30, "lr": 0.01, "lr-step-epochs": "20", "wd": 0.0, "mom": 0.0,
        "random-crop": 1, "random-mirror": 1,
    },
}  # fmt: skip
"""The scripts, and their own defaults of the flags."""
PRETRAINED = "output/runs/pretrained"

_EVALUATION = (
    "evaluation: MXNet scored the middle of an image as it is stored, a window of the input's size;"
    " crop_fraction 0.875 is that of 224 in 256"
)
_DEPTHS = (18, 34, 50, 101, 152)
_EPSILON = "its normalisation has an epsilon of 1e-5, theirs 2e-5"
_NEAREST: dict[str, dict[int | None, tuple[str, str]]] = {
    "resnet": {
        **{depth: (f"resnet{depth}_v2", _EPSILON) for depth in _DEPTHS},
        **{depth: (f"resnet{depth}_v2", f"{_EPSILON}, and a projection in the first unit") for depth in (18, 34)},
        50: ("resnet50_book", ""),
    },
    "resnet-v1": {
        **{depth: (f"resnet{depth}_v1", _EPSILON) for depth in _DEPTHS},
        **{depth: (f"resnet{depth}", f"{_EPSILON}, and a projection in the first unit") for depth in (18, 34)},
    },
    "vgg": {depth: (f"vgg{depth}", "") for depth in (11, 13, 16, 19)},
    "resnext": {depth: (f"gluoncv:resnext{depth}_32x4d", f"GluonCV's; {_EPSILON}") for depth in (50, 101)},
    "alexnet": {None: ("alexnet", "its convolutions 2, 4 and 5 have two groups, theirs one")},
    "googlenet": {None: ("googlenet", "it is trained with two auxiliary heads, theirs without")},
    "inception-v3": {None: ("inception_v3", "it is trained with its auxiliary head, theirs without")},
    "lenet": {None: ("lenet", "it has ReLU, theirs tanh")},
    "mobilenet": {None: ("gluoncv:mobilenet1.0", "GluonCV's, with trained scales; theirs are held at 1")},
    "mobilenetv2": {None: ("gluoncv:mobilenetv2_1.0", "GluonCV's")},
}
"""Networks of the example by their layers (None: any number): ours, and how they differ."""
_CIFAR_DEPTHS = (20, 56, 110)
_PLAIN = ("vgg", "alexnet", "googlenet", "lenet")
"""Networks without normalisation."""
_INITIALIZERS = {"xavier": "xavier", "msra": "msra"}
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd"}, "nag": {"name": "sgd", "nesterov": True}, "lbsgd": {"name": "sgd"},
    "adam": {"name": "adam"}, "adamax": {"name": "adamax"}, "nadam": {"name": "nadam"}, "rmsprop": {"name": "rmsprop"},
    "adagrad": {"name": "adagrad", "epsilon": 1e-7}, "adadelta": {"name": "adadelta", "epsilon": 1e-5},
    "lamb": {"name": "lamb", "epsilon": 1e-6}, "lars": {"name": "lars", "momentum": 0.0},
}  # fmt: skip
"""MXNet's rules with MXNet's own defaults, where ours differ."""


def known_script(name: str, flags: Collection[str]) -> str:
    """The script of this name, or else that which the names of flags tell."""
    if name in SCRIPTS:
        return name
    return "fine-tune.py" if "pretrained-model" in flags else "train_imagenet.py"


def flags_of(script: str) -> dict[str, Flag]:
    """The flags with the defaults of a script."""
    own = SCRIPTS[script]
    return {name: replace(flag, default=own.get(name, flag.default)) for name, flag in FLAGS.items()}


def translate(arguments: Arguments) -> tuple[dict[str, Any], list[str]]:
    """The keys of the recipe, dotted, and what is assumed or left out."""
    notes: list[str] = []
    side = _side(arguments["image-shape"])
    network = _network(arguments, side, notes)
    keys = {
        "network": network,
        **precision(arguments["dtype"], network, notes),
        "epochs": arguments["num-epochs"],
        "batch_size": arguments["batch-size"],
        "devices": _devices(arguments["gpus"]),
        "input.size": side,
        "input.crop_fraction": 0.875,
        **_augmentation(arguments, notes),
        **_initial(arguments, notes),
        **_optimizer(arguments, notes),
        **_schedule(arguments, notes),
    }
    notes.append(_EVALUATION)
    # As Module does: on no bias; and these have no scales.
    keys["optimizer.decay_all"] = False if network.startswith(_PLAIN) else "scales"
    if arguments["optimizer"].lower() == "lbsgd":
        keys |= _large_batch(arguments, notes)
    elif arguments.given.keys() & {"macrobatch-size", "warmup-epochs", "warmup-strategy"}:
        notes.append(f"--macrobatch-size, --warmup-epochs, --warmup-strategy: {_LARGE_BATCH}")
    if arguments["data-nthreads"] is not None:
        keys["loader.threads"] = arguments["data-nthreads"]
    if "dist" in arguments["kv-store"]:
        notes.append("--kv-store dist: batch_size is that of all machines together, --batch-size that of one")
    return keys, notes


def records_command(arguments: Arguments, records: str) -> str | None:
    """The command that makes the data set from what the script read; None where it does not say."""
    if not arguments["data-train"]:
        return None
    val = f" --val {shlex.quote(arguments['data-val'])}" if arguments["data-val"] else ""
    train = shlex.quote(arguments["data-train"])
    return f"imagenet-pipeline build records --train {train}{val} --out {shlex.quote(records)}"


def _side(shape: list[int]) -> int:
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        expected = "3,SIDE,SIDE: images are squares of three colours"
        raise BadRecipe("no input of ours", where="--image-shape", expected=expected, found=str(shape)[:80])
    return shape[1]


def _network(arguments: Arguments, side: int, notes: list[str]) -> str:
    name, layers = arguments["network"], arguments["num-layers"]
    if arguments["pretrained-model"] and "network" not in arguments.given:
        name, layers = _pretrained(arguments["pretrained-model"])
    if not name:
        raise BadRecipe("no network is named", where="the command", expected="--network NAME")
    if name == "resnet" and side <= 28 and layers in _CIFAR_DEPTHS:
        notes.append(f"--network resnet at {side} px: GluonCV's is nearest; it has no projection in the first unit")
        return f"gluoncv:cifar_resnet{layers}_v2"
    depths = _NEAREST.get(name)
    found = None if depths is None else depths.get(None) or depths.get(layers)
    if found is None or (name.startswith("resnet") and side <= 32):
        raise _no_network(name, layers, side, depths)
    ours, difference = found
    if arguments["pretrained-model"] and (_EPSILON in difference or ours.startswith("gluoncv:")):
        # The files are imported as the layers they have, which are not quite ours.
        return f"{PRETRAINED}/network.json"
    if difference:
        notes.append(f"--network {name}: {ours} is the nearest; {difference}")
    return ours


def _no_network(name: str, layers: int | None, side: int, depths: Mapping[int | None, object] | None) -> BadRecipe:
    if depths is not None and side > 32:
        expected = ", ".join(str(depth) for depth in sorted(depth for depth in depths if depth is not None))
        return BadRecipe(f"no {name} has this number of layers", where="--num-layers", expected=expected, found=layers)
    advice = did_you_mean(name, _NEAREST, "") if depths is None else ""
    import_it = "save its symbol and parameters in MXNet, and `import` makes a network of them"
    found = f"{name[:80]} of {layers} layers at {side} px" if layers else name[:80]
    what = "no network here is like it"
    return BadRecipe(what, where="--network", found=found, advice="; or ".join(filter(None, (advice, import_it))))


def _pretrained(model: str) -> tuple[str | None, int | None]:
    """The network that a name of the example's model zoo tells, as imagenet1k-resnet-50 does."""
    match = re.search(r"(resnet|resnext|vgg)-?(\d+)", model)
    if match is None:
        what = "the name does not tell which network it is"
        raise BadRecipe(what, where="--pretrained-model", found=model[:80], advice="add --network, and --num-layers")
    return match[1], int(match[2])


def _devices(gpus: str) -> str:
    numbers = gpus.replace(" ", "").strip(",")
    if not re.fullmatch(r"(\d{1,4}(,\d{1,4})*)?", numbers):
        raise BadRecipe("the value cannot be read", where="--gpus", expected="numbers, as 0,1,2,3", found=gpus[:80])
    return f"gpu:{numbers}" if numbers else "cpu"


def _augmentation(arguments: Arguments, notes: list[str]) -> dict[str, Any]:
    get = dict(zip(arguments.flags, map(arguments.__getitem__, arguments.flags), strict=True))
    if get["use-imagenet-data-augmentation"]:
        notes.append("--use-imagenet-data-augmentation: set too late in MXNet's script to count; here it does")
        get |= {"random-resized-crop": 1, "random-mirror": 1, "min-random-area": 0.08}
        get |= {"min-random-aspect-ratio": 3 / 4, "max-random-aspect-ratio": 4 / 3}
        get |= {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "pca-noise": 0.1}
    keys: dict[str, Any] = {
        "augmentation.flip": 0.5 if get["random-mirror"] else 0.0,
        "augmentation.rotation_degrees": float(min(abs(get["max-random-rotate-angle"]), 180)),
        "augmentation.shear": get["max-random-shear-ratio"],
        "augmentation.zoom": [get["min-random-scale"], get["max-random-scale"]],
        "augmentation.pad": get["pad-size"],
        "augmentation.fill": get["fill-value"],
        **{f"augmentation.{name}": get[name] for name in ("brightness", "contrast", "saturation")},
        "augmentation.lighting": get["pca-noise"],
        "augmentation.hue": min(abs(get["max-random-h"]), 90) / 180,
    }
    if get["max-random-h"]:
        notes.append("--max-random-h: MXNet stops hues at either end of its 0..180, here they go round")
    if get["random-resized-crop"]:
        largest = get["max-random-aspect-ratio"]
        smallest = get["min-random-aspect-ratio"]
        aspect = [1 - largest, 1 + largest] if smallest is None else [smallest, largest]
        area = [get["min-random-area"], get["max-random-area"]]
        return {"augmentation.crop": "resized", "augmentation.area": area, "augmentation.aspect": aspect, **keys}
    if get["max-random-aspect-ratio"]:
        notes.append('--max-random-aspect-ratio: of crop "resized" alone (--random-resized-crop)')
    if not get["random-crop"]:
        notes.append("crop \"centre\" is the largest square of an image, MXNet's a window of the input's size")
    return {"augmentation.crop": "random" if get["random-crop"] else "centre", **keys}


def _initial(arguments: Arguments, notes: list[str]) -> dict[str, Any]:
    name, network = arguments["initializer"], arguments["network"] or ""
    kind = _INITIALIZERS.get(name, "xavier" if name == "default" and "vgg" in network else "he")
    if name not in ("default", *_INITIALIZERS) or (name == "default" and network == "alexnet"):
        drawn = "a normal distribution of deviation 0.01" if name == "default" else name
        notes.append(f'--initializer {name}: initial.kind has no {drawn}; "he" is variance 2 / fan-in')
    keys = {"initial.kind": kind, "initial.mean": arguments["rgb-mean"], "initial.std": arguments["rgb-std"]}
    model = arguments["pretrained-model"]
    if not model:
        return keys
    prefix, epoch = shlex.quote(model)[:200], arguments["load-epoch"] or 0
    mean, std = (",".join(f"{number:g}" for number in arguments[flag]) for flag in ("rgb-mean", "rgb-std"))
    notes.append(
        f"first: imagenet-pipeline import --symbol {prefix}-symbol.json --params {prefix}-{epoch:04d}.params"
        f" --out {PRETRAINED} --mean {mean} --std {std}"
    )
    return {**keys, "initial.weights": PRETRAINED, "initial.new_head": True}


def _optimizer(arguments: Arguments, notes: list[str]) -> dict[str, Any]:
    name = arguments["optimizer"].lower()
    if name not in _OPTIMIZERS:
        advice = did_you_mean(name, _OPTIMIZERS, "`keys optimizer.name` lists the rules here")
        raise BadRecipe("no such update rule here", where="--optimizer", found=name[:80], advice=advice)
    own = dict(_OPTIMIZERS[name])
    if own["name"] == "sgd":
        own["momentum"] = arguments["mom"]
        if not own["momentum"]:
            own.pop("nesterov", None)
    elif "mom" in arguments.given:
        notes.append(f"--mom: {name} has no such momentum, in MXNet neither")
    keys = {f"optimizer.{key}": value for key, value in own.items()}
    return {**keys, "optimizer.learning_rate": arguments["lr"], "optimizer.weight_decay": arguments["wd"]}


def _schedule(arguments: Arguments, notes: list[str]) -> dict[str, Any]:
    text, factor = arguments["lr-step-epochs"], arguments["lr-factor"]
    if factor >= 1 or not text:
        return {"schedule.kind": "constant"}
    try:
        if text.startswith("pow"):
            return {"schedule.kind": "polynomial", "schedule.power": float(text.removeprefix("pow").strip("- "))}
        drops = [int(word) for word in text.split(",")]
    except ValueError as error:
        expected = "epochs, as 30,60, or pow2"
        raise BadRecipe(
            "the value cannot be read", where="--lr-step-epochs", expected=expected, found=text[:80]
        ) from error
    return steps(drops, factor, arguments["num-epochs"], notes)


def _large_batch(arguments: Arguments, notes: list[str]) -> dict[str, Any]:
    """The accumulated batch of `lbsgd`, and its rate, which rises in proportion."""
    batch = max(arguments["batch-size"], 1)
    parts = max(1, math.ceil(arguments["macrobatch-size"] / batch))
    if parts == 1:
        return {}
    notes.append("--optimizer lbsgd: its warm-up begins at the rate of one batch, ours at 0")
    return {
        "batch_size": parts * batch,
        "accumulation": parts,
        "optimizer.reference_batch_size": batch,
        "schedule.warmup_epochs": float(arguments["warmup-epochs"]),
    }
