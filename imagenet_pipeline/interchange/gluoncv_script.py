"""GluonCV's scripts/classification: imagenet/train_imagenet.py (at 5677756), cifar/train_cifar10.py (at 1daae5e).

Their flags, and their recipes.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from imagenet_pipeline.errors import BadRecipe, did_you_mean
from imagenet_pipeline.interchange.script_flags import (
    INTEGER,
    INTEGERS,
    NUMBER,
    SWITCH,
    TRIPLE,
    WORD,
    Arguments,
    Flag,
    precision,
    steps,
)

TITLE = "GluonCV's train_imagenet.py"
CIFAR_TITLE = "GluonCV's train_cifar10.py"
_DATA = "~/.mxnet/datasets/imagenet/"
_GO_ON = "`import` makes a run of a checkpoint, which `train RUN --resume latest` goes on with"
_DISTILLATION = "there is no distillation"

FLAGS = {
    "data-backend": Flag(WORD, "mxnet", "images are always decoded by our own loader, on processors"),
    "data-dir": Flag(WORD, _DATA),
    "rec-train": Flag(WORD, _DATA + "rec/train.rec"),
    "rec-train-idx": Flag(WORD, None, "an .idx beside its .rec is found"),
    "rec-val": Flag(WORD, _DATA + "rec/val.rec"),
    "rec-val-idx": Flag(WORD, None, "an .idx beside its .rec is found"),
    "use-rec": Flag(SWITCH, False),
    "batch-size": Flag(INTEGER, 32),
    "dtype": Flag(WORD, "float32"),
    "num-gpus": Flag(INTEGER, 0),
    "num-data-workers": Flag(INTEGER),
    "num-epochs": Flag(INTEGER, 3),
    "lr": Flag(NUMBER, 0.1),
    "momentum": Flag(NUMBER, 0.9),
    "wd": Flag(NUMBER, 1e-4),
    "lr-mode": Flag(WORD, "step"),
    "lr-decay": Flag(NUMBER, 0.1),
    "lr-decay-period": Flag(INTEGER, 0),
    "lr-decay-epoch": Flag(INTEGERS, [40, 60]),
    "warmup-lr": Flag(NUMBER, 0.0, "the script does not read it: both rise from 0"),
    "warmup-epochs": Flag(INTEGER, 0),
    "last-gamma": Flag(SWITCH, False),
    "mode": Flag(WORD, None, "each engine compiles its step by itself"),
    "model": Flag(WORD),
    "network": Flag(WORD),
    "input-size": Flag(INTEGER, 224),
    "crop-ratio": Flag(NUMBER, 0.875),
    "use-pretrained": Flag(SWITCH, False, "nothing is downloaded; initial.weights=FILE takes a file you have"),
    "use-se": Flag(SWITCH, False),
    "mixup": Flag(SWITCH, False),
    "mixup-alpha": Flag(NUMBER, 0.2),
    "mixup-off-epoch": Flag(INTEGER, 0),
    "label-smoothing": Flag(SWITCH, False),
    "no-wd": Flag(SWITCH, False),
    "teacher": Flag(WORD, None, _DISTILLATION),
    "temperature": Flag(NUMBER, 20.0, _DISTILLATION),
    "hard-weight": Flag(NUMBER, 0.5, _DISTILLATION),
    "batch-norm": Flag(SWITCH, False),
    "save-frequency": Flag(INTEGER, 10, "every epoch is a checkpoint; checkpoint.keep says how many stay"),
    "save-dir": Flag(WORD, "params", "`train RECIPE --run FOLDER` says where the run goes"),
    "resume-epoch": Flag(INTEGER, 0, _GO_ON),
    "resume-params": Flag(WORD, "", _GO_ON),
    "resume-states": Flag(WORD, "", _GO_ON),
    "log-interval": Flag(INTEGER, 50, "the bar shows every step"),
    "logging-file": Flag(WORD, None, "the run keeps a journal and history.csv"),
    "use-gn": Flag(SWITCH, False, "no network here has group normalisation"),
    "rgb-mean": Flag(TRIPLE, [123.68, 116.779, 103.939]),
    "rgb-std": Flag(TRIPLE, [58.393, 57.12, 57.375]),
    "num-training-samples": Flag(INTEGER, 1281167, "the records say how many there are"),
}
CIFAR_FLAGS = {
    **{
        name: FLAGS[name]
        for name in ("batch-size", "num-gpus", "model", "num-data-workers", "num-epochs", "lr", "momentum", "wd",
                     "lr-decay", "lr-decay-epoch", "mode", "save-dir")
    },
    "lr-decay-period": Flag(INTEGER, 0, "the script does not read it"),
    "drop-rate": Flag(NUMBER, 0.0, "GluonCV's wide residual networks are built here without dropout"),
    "save-period": Flag(INTEGER, 10, "every epoch is a checkpoint; checkpoint.keep says how many stay"),
    "resume-from": Flag(WORD, None, "`import --params FILE --network NAME` makes a run of it for initial.weights"),
    "save-plot-dir": Flag(WORD, ".", "the run has its curves.png"),
}  # fmt: skip
SHORT = {"-j": "num-data-workers"}
_CIFAR_MEAN = [125.307, 122.961, 113.8575]
_CIFAR_STD = [51.5865, 50.847, 51.255]
"""0.4914, 0.4822, 0.4465 and 0.2023, 0.1994, 0.2010 in the script."""

LARGEST_COUNT = 1024
"""Most devices, and most drops of the rate."""
_OURS = {
    "alexnet": "alexnet_one_tower",
    "inceptionv3": "inception_v3",
    "squeezenet1.0": "squeezenet1_0",
    "squeezenet1.1": "squeezenet1_1",
    **{name: name for name in ("densenet121", "densenet161", "densenet169", "densenet201")},
    **{f"vgg{depth}{norm}": f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    **{f"resnet{depth}_v1": f"resnet{depth}" for depth in (18, 34)},
    **{f"resnet{depth}_v1": f"resnet{depth}_v1" for depth in (50, 101, 152)},
    **{f"resnet{depth}_v1b": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"resnet{depth}_v1d": f"resnet{depth}_d" for depth in (50, 101, 152)},
    **{f"resnet{depth}_v2": f"resnet{depth}_v2" for depth in (18, 34, 50, 101, 152)},
}
"""GluonCV's names of networks that our catalogue has, too."""
_FAMILIES = re.compile(
    r"(alexnet|cifar_|darknet|densenet|dla|googlenet|hrnet|inceptionv3|mobilenet|nasnet|residualattentionnet|resnest|"
    r"resnet|resnext|se_|senet|shufflenet|squeezenet|vgg|xception)[a-z0-9_.]*"
)
"""Names of GluonCV's classifiers."""


def translate(arguments: Arguments) -> tuple[dict[str, Any], list[str]]:
    """The keys of the recipe, dotted, and what is assumed or left out."""
    notes: list[str] = []
    network = _network(arguments, notes)
    keys = {
        "network": network,
        **precision(arguments["dtype"], network, notes),
        "epochs": arguments["num-epochs"],
        **_devices(arguments),
        "input.size": arguments["input-size"],
        "input.crop_fraction": arguments["crop-ratio"] if arguments["crop-ratio"] > 0 else 0.875,
        **{f"augmentation.{name}": 0.4 for name in ("brightness", "contrast", "saturation")},
        "augmentation.lighting": 0.1,
        "initial.kind": "msra",
        "initial.mean": arguments["rgb-mean"],
        "initial.std": arguments["rgb-std"],
        "loss.label_smoothing": 0.1 if arguments["label-smoothing"] else 0.0,
        **_optimizer(arguments),
        "optimizer.decay_all": not arguments["no-wd"],
        **_schedule(arguments, notes),
    }
    if arguments["mixup"]:
        keys |= _mixup(arguments, notes)
    if arguments["last-gamma"]:
        keys |= _zero_last_scale(network, notes)
    if arguments["num-data-workers"] is not None:
        keys["loader.threads"] = arguments["num-data-workers"]
    return keys, notes


def translate_cifar(arguments: Arguments) -> tuple[dict[str, Any], list[str]]:
    """The keys of the recipe of train_cifar10.py, dotted, and what is assumed or left out."""
    if not arguments["model"]:
        raise BadRecipe("no network is named", where=CIFAR_TITLE, expected="--model NAME, as cifar_resnet110_v1")
    notes = [
        "records: the script downloads CIFAR-10; here they are a data set that `build records` makes of MXNet's "
        "cifar10_train.rec and cifar10_val.rec, or `build folder` of its images"
    ]
    keys = {
        "network": _classifier(arguments["model"].lower(), notes),
        "epochs": arguments["num-epochs"],
        **_devices(arguments),
        "input.size": 32,
        "input.crop_fraction": 1.0,
        "augmentation.crop": "random",
        "augmentation.pad": 4,
        "augmentation.fill": 0,
        "augmentation.flip": 0.5,
        "initial.kind": "xavier",
        "initial.mean": _CIFAR_MEAN,
        "initial.std": _CIFAR_STD,
        **_optimizer(arguments),
        "optimizer.decay_all": True,
        **steps(arguments["lr-decay-epoch"], arguments["lr-decay"], arguments["num-epochs"], notes),
    }
    if arguments["num-data-workers"] is not None:
        keys["loader.threads"] = arguments["num-data-workers"]
    return keys, notes


def _devices(arguments: Arguments) -> dict[str, Any]:
    """The keys of the GPUs; the script's batch is that of one."""
    gpus = arguments["num-gpus"]
    if not 0 <= gpus <= LARGEST_COUNT:
        raise BadRecipe("the number is out of range", where="--num-gpus", expected=f"0..{LARGEST_COUNT}", found=gpus)
    devices = f"gpu:{','.join(map(str, range(gpus)))}" if gpus else "cpu"
    return {"batch_size": arguments["batch-size"] * max(1, gpus), "devices": devices}


def records_command(arguments: Arguments, records: str) -> str:
    """The command that makes the data set from what the script read."""
    if arguments["use-rec"]:
        sources = f"records --train {_path(arguments['rec-train'])} --val {_path(arguments['rec-val'])}"
    else:
        sources = f"imagenet --root {_path(arguments['data-dir'])}"
    return f"imagenet-pipeline build {sources} --out {_path(records)}"


def _path(text: str) -> str:
    """A path as a word of the shell, which is to see its ~ and $."""
    return text if re.fullmatch(r"[\w~$./{}-]+", text) else shlex.quote(text)


def _network(arguments: Arguments, notes: list[str]) -> str:
    name = arguments["model"] or arguments["network"]
    if not name:
        raise BadRecipe("no network is named", where=TITLE, expected="--model NAME")
    if "network" in arguments.given:
        notes.append("--network: GluonCV's own flag is --model")
    name = name.lower()
    if name.startswith("vgg") and arguments["batch-norm"] and not name.endswith("_bn"):
        name += "_bn"
    if name.startswith("resnext") and arguments["use-se"]:
        name = f"se_{name}"
    return _classifier(name, notes)


def _classifier(name: str, notes: list[str]) -> str:
    """Our name of a network of GluonCV's."""
    if name == "inceptionv3":
        notes.append("inception_v3 is trained with its auxiliary head, GluonCV's without")
    if re.fullmatch(r"resnet(50|101|152)_v1", name):
        notes.append(f"{name}: GluonCV's has biases before normalisations, where they have no effect")
    if name in _OURS:
        return _OURS[name]
    if not _FAMILIES.fullmatch(name):
        advice = did_you_mean(name, _OURS, "`networks gluoncv:` lists all")
        raise BadRecipe("no classifier of GluonCV", where="--model", found=name[:80], advice=advice)
    notes.append(f"gluoncv:{name} is GluonCV's own network, and needs it: bash scripts/install_zoo.sh gluoncv")
    return f"gluoncv:{name}"


def _optimizer(arguments: Arguments) -> dict[str, Any]:
    """The script's `nag`."""
    return {
        "optimizer.name": "sgd",
        "optimizer.learning_rate": arguments["lr"],
        "optimizer.momentum": arguments["momentum"],
        "optimizer.nesterov": arguments["momentum"] != 0,
        "optimizer.weight_decay": arguments["wd"],
    }


def _schedule(arguments: Arguments, notes: list[str]) -> dict[str, Any]:
    warmup = {"schedule.warmup_epochs": float(arguments["warmup-epochs"])}
    match arguments["lr-mode"]:
        case "step":
            return {**steps(_drops(arguments), arguments["lr-decay"], arguments["num-epochs"], notes), **warmup}
        case "poly":
            return {"schedule.kind": "polynomial", "schedule.power": 2.0, **warmup}
        case "linear":
            return {"schedule.kind": "polynomial", "schedule.power": 1.0, **warmup}
        case "cosine" | "constant" as kind:
            return {"schedule.kind": kind, **warmup}
        case other:
            known = ("step", "poly", "cosine", "linear", "constant")
            advice = did_you_mean(other, known, "") or None
            raise BadRecipe(
                "no such schedule", where="--lr-mode", expected=", ".join(known), found=other[:80], advice=advice
            )


def _drops(arguments: Arguments) -> list[int]:
    period, epochs = arguments["lr-decay-period"], arguments["num-epochs"]
    if period <= 0:
        return list(arguments["lr-decay-epoch"])
    drops = range(period, epochs, period)
    if len(drops) > LARGEST_COUNT:
        raise BadRecipe("too many drops of the rate", where="--lr-decay-period", found=f"{len(drops):,}")
    return list(drops)


def _mixup(arguments: Arguments, notes: list[str]) -> dict[str, Any]:
    off, epochs = arguments["mixup-off-epoch"], arguments["num-epochs"]
    if off >= epochs:
        notes.append(f"--mixup-off-epoch {off}: no epoch has mixup")
        return {}
    notes.append("mixup: GluonCV draws one share for a batch, here each pair of images has its own")
    return {"augmentation.mixup": arguments["mixup-alpha"], "augmentation.mix_epochs": epochs - off if off > 0 else 0}


def _zero_last_scale(network: str, notes: list[str]) -> dict[str, Any]:
    if re.fullmatch(r"resnet\d+(_v1|_d)?", network):
        return {"initial.zero_last_scale": True}
    notes.append(f"--last-gamma: {network} has no residual body that ends in a normalisation, or draws its own values")
    return {}
