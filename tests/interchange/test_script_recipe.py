"""Command lines of MXNet's training scripts, read as recipes."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import read_recipe
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange import gluoncv_script, mxnet_script
from imagenet_pipeline.interchange.script_flags import SWITCH, Flag, read_commands
from imagenet_pipeline.interchange.script_recipe import ScriptRecipe, recipe_of_command
from imagenet_pipeline.networks import catalog

GLUONCV = "python train_imagenet.py --model resnet50_v1b"
FULL = (
    "CUDA_VISIBLE_DEVICES=0,1,2,3 python3 -u train_imagenet.py --model resnet50_v1b \\\n --batch-size 64 --num-gpus 4"
    " --lr 0.4 --lr-mode cosine --num-epochs 120 --warmup-epochs 5 --use-rec --rec-train ~/rec/train.rec"
    " --rec-val '/my data/val.rec' --mixup --label-smoothing --no-wd --last-gamma --dtype float16 --mode hybrid -j60"
    " 2>&1 | tee train.log"
)


def keys(recipe: ScriptRecipe) -> dict[str, Any]:
    """The keys that the text writes, dotted."""
    found = {}
    for key, value in tomllib.loads(recipe.text).items():
        found |= (
            {f"{key}.{inner}": content for inner, content in value.items()} if isinstance(value, dict) else {key: value}
        )
    return found


def test_gluoncv_s_published_command_becomes_its_recipe() -> None:
    recipe = recipe_of_command(FULL)
    assert keys(recipe) == {
        "network": "resnet50", "records": "output/imagenet", "epochs": 120, "batch_size": 256,
        "devices": "gpu:0,1,2,3", "engine": "pytorch", "precision": "float16", "loader.threads": 60,
        "loss.label_smoothing": 0.1,
        "augmentation.brightness": 0.4, "augmentation.contrast": 0.4, "augmentation.saturation": 0.4,
        "augmentation.lighting": 0.1, "augmentation.mixup": 0.2, "initial.zero_last_scale": True,
        "initial.mean": [123.68, 116.779, 103.939], "initial.std": [58.393, 57.12, 57.375],
        "optimizer.name": "sgd", "optimizer.learning_rate": 0.4, "optimizer.momentum": 0.9,
        "optimizer.nesterov": True, "optimizer.weight_decay": 1e-4, "optimizer.decay_all": False,
        "schedule.kind": "cosine", "schedule.warmup_epochs": 5.0,
    }  # fmt: skip
    build = "imagenet-pipeline build records --train ~/rec/train.rec --val '/my data/val.rec' --out output/imagenet"
    assert f"# - first: {build}\n" in recipe.text
    assert "# - --mode hybrid: each engine compiles its step by itself\n" in recipe.text


def test_float16_stays_where_it_is_possible() -> None:
    recipe = recipe_of_command("python train_imagenet.py --model mobilenet1.0 --dtype float16")
    assert (recipe.recipe.engine, recipe.recipe.precision) == ("auto", "float32")
    assert "--dtype float16: GluonCV's networks compute in float32 here" in recipe.notes


def test_what_is_not_given_has_the_script_s_defaults() -> None:
    recipe = recipe_of_command(GLUONCV, records="mine").recipe
    assert (recipe.epochs, recipe.batch_size, recipe.devices, recipe.records) == (3, 32, "cpu", "mine")
    assert (recipe.schedule.kind, recipe.augmentation.crop, recipe.augmentation.flip) == ("constant", "resized", 0.5)
    recipe = recipe_of_command(f"{GLUONCV} --num-epochs 120").recipe
    assert (recipe.schedule.kind, recipe.schedule.drops, recipe.schedule.factor) == ("steps", (40, 60), 0.1)
    recipe = recipe_of_command("python train_imagenet.py --gpus 0,2").recipe
    assert (recipe.network, recipe.epochs, recipe.batch_size) == ("resnet50_book", 80, 128)
    assert (recipe.devices, recipe.schedule.drops, recipe.initial.std) == ("gpu:0,2", (30, 60), (1.0, 1.0, 1.0))
    assert (recipe.augmentation.crop, recipe.augmentation.flip, recipe.optimizer.nesterov) == ("centre", 0.0, False)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--lr-mode poly --warmup-epochs 2", {"kind": "polynomial", "power": 2.0, "warmup_epochs": 2.0}),
        ("--lr-mode linear", {"kind": "polynomial", "power": 1.0}),
        ("--lr-decay-period 2 --num-epochs 7 --lr-decay 0.5", {"kind": "steps", "drops": (2, 4, 6), "factor": 0.5}),
        ("--lr-decay-epoch 30,60,90 --num-epochs 70", {"kind": "steps", "drops": (30, 60)}),
        ("--lr-mode constant", {"kind": "constant"}),
    ],
)
def test_the_schedules_of_gluoncv(flags: str, expected: dict[str, Any]) -> None:
    schedule = recipe_of_command(f"{GLUONCV} --num-epochs 120 {flags}").recipe.schedule
    assert {key: getattr(schedule, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("off", "alpha", "epochs"), [("", 0.2, 0), ("--mixup-off-epoch 20", 0.2, 100), ("--mixup-off-epoch 120", 0.0, 0)]
)
def test_the_end_of_gluoncv_s_mixup(off: str, alpha: float, epochs: int) -> None:
    """Its --mixup-off-epoch counts the last epochs."""
    recipe = recipe_of_command(f"{GLUONCV} --num-epochs 120 --mixup {off}").recipe
    assert (recipe.augmentation.mixup, recipe.augmentation.mix_epochs) == (alpha, epochs)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--network vgg --num-layers 16", {"network": "vgg16", "optimizer.decay_all": False, "initial.kind": "xavier"}),
        ("--network resnet-v1 --num-layers 101", {"network": "resnet101_v1", "initial.kind": "he"}),
        ("--optimizer adam --lr 0.001", {"optimizer.name": "adam", "optimizer.learning_rate": 0.001}),
        ("--optimizer nag --mom 0", {"optimizer.name": "sgd", "optimizer.momentum": 0.0}),
        ("--lr-step-epochs pow2", {"schedule.kind": "polynomial", "schedule.power": 2.0}),
        ("--lr-factor 1", {"schedule.kind": "constant"}),
        ("--image-shape 3,299,299 --network inception-v3", {"network": "inception_v3", "input.size": 299}),
        ("--random-crop 1 --random-mirror 1 --pad-size 4", {"augmentation.crop": "random", "augmentation.pad": 4}),
        (
            "--random-resized-crop 1 --min-random-area 0.25 --max-random-aspect-ratio 0.25",
            {"augmentation.area": [0.25, 1.0], "augmentation.aspect": [0.75, 1.25]},
        ),
        ("--max-random-h 36", {"augmentation.hue": 0.2}),
        ("--max-random-h 255", {"augmentation.hue": 0.5}),
        ("--use-imagenet-data-augmentation 1", {"augmentation.brightness": 0.4, "augmentation.lighting": 0.1}),
        (
            "--optimizer lbsgd --macrobatch-size 1000 --batch-size 256 --warmup-epochs 2",
            {
                "batch_size": 1024,
                "accumulation": 4,
                "optimizer.reference_batch_size": 256,
                "schedule.warmup_epochs": 2.0,
            },
        ),
    ],
)
def test_flags_of_mxnet_s_example(flags: str, expected: dict[str, Any]) -> None:
    found = keys(recipe_of_command(f"python train_imagenet.py --gpus 0 {flags}"))
    assert {key: found.get(key) for key in expected} == expected


# Out of public repositories, as they stand there.
STRANGERS = {
    """../../tools/launch.py -n 16 -H $DEEPLEARNING_WORKERS_PATH python train_imagenet.py --network resnet \\
--num-layers 152 --data-train ~/data/train --data-val ~/data/val/ --gpus 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 \\
--batch-size 8192 --model ~/data/model/resnet152 --num-epochs 1 --kv-store dist_sync""": ("resnet152_v2", 8192),
    "python train_imagenet.py --gpus '' --network alexnet --batch-size 128 --num-epochs 1 --data-nthreads 40 --lr 0.01"
    " --data-train=/scratch/andpic/imageNet/mxnetRecords/mxdata.rec": ("alexnet", 128),
    """export MXNET_CPU_WORKER_NTHREADS=48
#python fine-tune.py --epochs 3 \\
export MXNET_CUDNN_AUTOTUNE_DEFAULT=0
python2 fine-tune.py --pretrained-model model/resnet-152 \\
    --load-epoch 0 --gpus 0,1,2,3 \\
    --data-train data/scene.rec --model-prefix model/Scence-resnet-152 \\
\t--data-nthreads 48 \\
    --batch-size 16 --num-classes 80 --num-examples 53879
echo done""": ("output/runs/pretrained/network.json", 16),
    "python ~/mxnet/example/image-classification/fine-tune.py --pretrained-model models/resnet-18/resnet-18 --gpus 0"
    " --data-train ../../ifcb_train.rec --data-val ../../ifcb_val.rec --load-epoch 0 --random-crop 0 --random-mirror 0"
    " --num-epochs 10 --rgb-mean 0,0,0 --num-classes 24 --model-prefix models/resnet-18-10/resnet-18-10 --batch-size 32"
    " --num-examples 23624 --layer-before-fullc 'flatten0'": (
        "output/runs/pretrained/network.json",
        32,
    ),
    "$PREFIX python ../source/train_imagenet.py --gpus 0 --batch-size 32 --image-shape 3,299,299 --num-epochs 100"
    " --network inception-v3 --data-train $DATASET_DIR": ("inception_v3", 32),
    "./dist_worker.sh 1 1  python train_imagenet.py --network vgg --num-layers 16 --benchmark 1 --kv-store dist_sync"
    " --batch-size 32 --disp-batches 50 --num-examples 5120 --num-epochs 1 --gpus 0": ("vgg16", 32),
}


@pytest.mark.parametrize(("command", "expected"), STRANGERS.items(), ids=range(len(STRANGERS)))
def test_commands_of_strangers(command: str, expected: tuple[str, int]) -> None:
    read = recipe_of_command(command)
    assert (read.recipe.network, read.recipe.batch_size) == expected


def test_a_script_of_another_name_is_taken_for_the_one_whose_flags_it_has() -> None:
    read = recipe_of_command("python my-tune.py --pretrained-model resnet-50 --num-classes 2")
    assert (read.script, read.recipe.optimizer.weight_decay) == ("MXNet's fine-tune.py", 0.0)
    assert "my-tune.py is taken for MXNet's fine-tune.py" in read.notes
    assert recipe_of_command("python mine.py --model resnet18_v1 --num-gpus 1").script == gluoncv_script.TITLE


@pytest.mark.parametrize("script", ["train_cifar10.py", "mine.py"])
def test_gluoncv_s_script_of_cifar(script: str) -> None:
    read = recipe_of_command(
        f"python {script} --num-epochs 200 --mode hybrid --num-gpus 2 -j 8 --batch-size 64 --wd 0.0001 --lr 0.1"
        " --lr-decay 0.1 --lr-decay-epoch 100,150 --model cifar_resnet110_v1 --drop-rate 0.3 --save-plot-dir plots"
    )
    assert keys(read) == {
        "network": "gluoncv:cifar_resnet110_v1", "records": "output/cifar10", "epochs": 200, "batch_size": 128,
        "devices": "gpu:0,1", "loader.threads": 8, "input.size": 32, "input.crop_fraction": 1.0,
        "augmentation.crop": "random", "augmentation.pad": 4, "augmentation.fill": 0, "initial.kind": "xavier",
        "initial.mean": [125.307, 122.961, 113.8575], "initial.std": [51.5865, 50.847, 51.255],
        "optimizer.name": "sgd", "optimizer.learning_rate": 0.1, "optimizer.momentum": 0.9,
        "optimizer.nesterov": True, "optimizer.weight_decay": 1e-4, "optimizer.decay_all": True,
        "schedule.kind": "steps", "schedule.drops": [100, 150], "schedule.factor": 0.1,
    }  # fmt: skip
    assert read.recipe.augmentation.flip == 0.5
    assert any(note.startswith("--drop-rate 0.3: ") for note in read.notes)
    assert (script == "mine.py") == ("mine.py is taken for GluonCV's train_cifar10.py" in read.notes)


def test_mxnet_s_script_of_cifar_is_another() -> None:
    assert recipe_of_command("python train_cifar10.py --network resnet").script == "MXNet's train_cifar10.py"


def test_fine_tuning_starts_from_the_imported_run() -> None:
    recipe = recipe_of_command(
        "python fine-tune.py --pretrained-model model/imagenet1k-resnet-50 --load-epoch 7 --data-train caltech.rec"
        " --num-classes 256 --layer-before-fullc flatten0"
    )
    found = recipe.recipe
    assert (found.network, found.epochs, found.optimizer.learning_rate) == ("resnet50_book", 30, 0.01)
    assert (found.initial.weights, found.initial.new_head) == (mxnet_script.PRETRAINED, True)
    assert (found.optimizer.momentum, found.optimizer.weight_decay, found.augmentation.crop) == (0.0, 0.0, "random")
    assert any("imagenet1k-resnet-50-0007.params" in note for note in recipe.notes)
    assert any(note.startswith("--num-classes 256: the records say") for note in recipe.notes)


def test_fine_tuning_of_a_network_unlike_ours_takes_the_layers_of_its_files() -> None:
    read = recipe_of_command("python fine-tune.py --pretrained-model m/resnet-18 --load-epoch 0 --rgb-mean 0,0,0")
    assert read.recipe.network == f"{mxnet_script.PRETRAINED}/network.json"
    (first,) = [note for note in read.notes if note.startswith("first: imagenet-pipeline import")]
    assert first.endswith(f"--out {mxnet_script.PRETRAINED} --mean 0,0,0 --std 1,1,1")


def test_module_s_weight_decay_acts_on_weights_and_scales() -> None:
    read = recipe_of_command("python train_imagenet.py --gpus 0 --network resnet --num-layers 50")
    assert read.recipe.optimizer.decay_all == "scales"
    assert not any("decay" in note for note in read.notes)


def test_networks_that_are_named_are_in_the_catalogue() -> None:
    nearest = {ours for depths in mxnet_script._NEAREST.values() for ours, _ in depths.values()}
    found = {*gluoncv_script._OURS.values(), *(name for name in nearest if not name.startswith("gluoncv:"))}
    assert found <= set(catalog.names())


@pytest.mark.parametrize(
    ("model", "network"),
    [
        ("MobileNetV2_1.0", "gluoncv:mobilenetv2_1.0"),
        ("vgg16 --batch-norm", "vgg16_bn"),
        ("resnext50_32x4d --use_se", "gluoncv:se_resnext50_32x4d"),
        ("resnet18_v1", "resnet18"),
    ],
)
def test_other_networks_of_gluoncv(model: str, network: str) -> None:
    assert recipe_of_command(f"python train_imagenet.py --model {model}").recipe.network == network


@pytest.mark.parametrize("flags", [gluoncv_script.FLAGS, gluoncv_script.CIFAR_FLAGS, mxnet_script.FLAGS])
def test_every_flag_is_translated_or_has_a_reason(flags: dict[str, Flag]) -> None:
    translated = Path(gluoncv_script.__file__).read_text() + Path(mxnet_script.__file__).read_text()
    unread = [
        name
        for name, flag in flags.items()
        if not flag.reason and len(re.findall(rf"['\"]{name}['\"]", translated)) < 2
    ]
    assert unread == []


@pytest.mark.parametrize(
    ("command", "script", "flags"),
    [
        ("cd /x && nohup python -u ./a/train.py --lr 1 > log.txt 2>&1 &", "./a/train.py", ("--lr", "1")),
        ("A=b.py python train.py --lr=1 2> log", "train.py", ("--lr=1",)),
        ("python tools/launch.py -n 4 -H hosts python train.py --gpus '0, 1'", "train.py", ("--gpus", "0, 1")),
        ("python train.py \\\r\n  --lr 1; echo done", "train.py", ("--lr", "1")),
    ],
)
def test_shell_around_a_script_is_left_out(command: str, script: str, flags: tuple[str, ...]) -> None:
    read = read_commands(command)[0]
    assert (read.script, read.flags) == (script, flags)
    assert read.several_processes == ("launch.py" in command)


SCRIPT = """#!/bin/bash
set -e
LR=0.4   # don't go above
export MODEL='resnet50_v1b' EPOCHS="120"
EPOCHS=90
MORE="--lr-mode cosine --batch-size ${SIZE}"
SIZE=64
FLAGS="--lr-mode cosine"
FLAGS+=" --batch-size $SIZE"
GPUS=$(nvidia-smi -L | wc -l)
python prepare.py --gpus $GPUS
python train_imagenet.py --model ${MODEL} --lr $LR --num-epochs="$EPOCHS" \\
  $FLAGS --num-gpus 2 --save-dir '$LR'
LR=7
"""


def test_a_script_s_own_variables_are_put_in() -> None:
    read = recipe_of_command(SCRIPT)
    found = read.recipe
    assert (found.network, found.epochs, found.batch_size) == ("resnet50", 90, 128)
    assert (found.optimizer.learning_rate, found.schedule.kind) == (0.4, "cosine")
    assert any("this is the recipe of train_imagenet.py, not of prepare.py" in note for note in read.notes)
    assert any(note.startswith("--save-dir $LR: ") for note in read.notes)


def test_mxnet_s_script_with_variables() -> None:
    script = """NET=resnet; DEPTH=50
DATA="/data/with space"
if [ -z "$LR" ]; then LR=0.1; fi
python train_imagenet.py --network $NET --num-layers $DEPTH --data-train "${DATA}/train.rec" --gpus '' """
    read = recipe_of_command(script)
    assert read.recipe.network == "resnet50_book"
    assert any("--train '/data/with space/train.rec'" in note for note in read.notes)
    with pytest.raises(BadRecipe, match="found \\$LR; write the value of the variable"):
        recipe_of_command(f"{script} --lr $LR")


@pytest.mark.parametrize(
    "setting",
    ["LR=$(echo 1)", "LR=`echo 1`", "LR=${1:-1}", "LR=$1", "LR=$OTHER", "false && LR=1", "true || LR=1", "(LR=1)",
     "LR=1\nunset LR", "LR=1; for LR in 2 3; do", "for i in 1 2; do LR=$i; done", "LR=(1 2)", "# LR=1", "LR=1 true",
     "LR=1\nread LR", "X=1 LR=$X"],
)  # fmt: skip
def test_a_variable_whose_value_does_not_stand_there_is_left(setting: str) -> None:
    assert read_commands(f"{setting}\npython train.py --lr $LR")[-1].flags == ("--lr", "$LR")


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)


@given(st.lists(st.tuples(st.sampled_from("ABC"), WORDS), max_size=4), WORDS)
def test_quoted_values_arrive_as_they_are(settings: list[tuple[str, str]], literal: str) -> None:
    lines = [f"{name}={shlex.quote(value)}" for name, value in settings]
    command = f'python train.py --end {shlex.quote(literal)} "$A" "${{B}}" $C'
    values = {"A": "$A", "B": "${B}", "C": "$C", **dict(settings)}
    command_line = read_commands("\n".join([*lines, command]))[-1]
    expected = ["--end", literal, values["A"], values["B"], *values["C"].split()]
    if not {*literal, *"".join(values.values())} & set("();<>|&"):
        assert list(command_line.flags) == expected


def test_values_that_double_are_bounded() -> None:
    doubling = "\n".join(["A=0123456789", *["A=$A$A"] * 60, "python train_imagenet.py --lr $A"])
    for text in (doubling, f"A={'0' * 40_000}\npython train_imagenet.py --lr {'$A' * 20_000}"):
        with pytest.raises(BadRecipe, match="the values of variables make the command too long"):
            recipe_of_command(text)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("", "--from: no training script is named"),
        ("bash run.sh", "found bash run.sh"),
        ("python train_imagenet.py --model 'resnet", "the quotes of the command do not match (no closing quotation)"),
        (f"{GLUONCV} --num-gpu 4 --learning 3", "GluonCV's train_imagenet.py: unknown flag --learning"),
        (f"{GLUONCV} --batchsize 3", "unknown flag --batchsize; did you mean --batch-size"),
        (f"{GLUONCV} --num 3", "--num begins several flags; expected one; found --num-gpus"),
        (f"{GLUONCV} --lr", "--lr: the value is missing; expected a number"),
        (f"{GLUONCV} --lr $LR", "expected a number; found $LR; write the value of the variable"),
        (f"{GLUONCV} --mixup=1", "--mixup: the flag takes no value; found 1"),
        (f"{GLUONCV} extra", "not a flag; expected --name value; found extra"),
        (f"{GLUONCV} --lr nan", "recipe key 'optimizer.learning_rate'"),
        (f"{GLUONCV} --lr-mode cosin", "--lr-mode: no such schedule; expected step, poly, cosine, linear, constant"),
        (f"{GLUONCV} --dtype int8", "recipe key 'precision': no such word"),
        (f"{GLUONCV} --num-gpus {10**9}", "--num-gpus: the number is out of range; expected 0..1024"),
        (f"{GLUONCV} --num-epochs {10**12} --lr-decay-period 1", "--lr-decay-period: too many drops of the rate"),
        (f"{GLUONCV} --num-epochs {'9' * 5000}", "--num-epochs: the value cannot be read"),
        (f"{GLUONCV} --mixup --batch-size 3", "must be even where images are mixed in pairs"),
        ("python train_imagenet.py --model resnet51 --num-gpus 1", "gluoncv:resnet51"),
        ("python train_imagenet.py --model yolo3 --num-gpus 1", "--model: no classifier of GluonCV; found yolo3"),
        ("python train_imagenet.py --num-gpus 4", "no network is named; expected --model NAME"),
        ("python train_imagenet.py --network inception-bn", "import` makes a network of them"),
        ("python train_imagenet.py --network vgg", "--num-layers: no vgg has this number of layers; expected 11, 13"),
        ("python train_imagenet.py --image-shape 1,28,28", "--image-shape: no input of ours; expected 3,SIDE,SIDE"),
        ("python train_imagenet.py --optimizer signum", "--optimizer: no such update rule here; found signum"),
        ("python train_imagenet.py --gpus a", "--gpus: the value cannot be read; expected numbers"),
        ("python train_imagenet.py --lr-step-epochs often", "--lr-step-epochs: the value cannot be read"),
        ("python train_cifar10.py --num-gpus 1 --mode hybrid", "train_cifar10.py: no network is named"),
        ("python train_cifar10.py --model cifar_resnet20_v1 --mixup", "train_cifar10.py: unknown flag --mixup"),
        ("python train_mnist.py --network mlp", "train_mnist.py: MXNet's script of grey 28 px digits has no recipe"),
        ("python fine-tune.py --pretrained-model mine", "the name does not tell which network it is"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(command: str, line: str) -> None:
    try:
        said = recipe_of_command(command).text
    except BadRecipe as error:
        said = str(error)
        assert "\n" not in said
    assert line in said


def names_and_values(flags: dict[str, Flag]) -> st.SearchStrategy[str]:
    values = st.one_of(
        st.integers(-3, 400).map(str),
        st.floats(-1, 2).map(str),
        st.sampled_from(
            ["30,60", "3,224,224", "1,2,3", "resnet", "resnet50_v1b", "float16", "sgd", "cosine", "pow2", "'"]
        ),
        st.text(max_size=6),
    )
    pairs = st.tuples(st.sampled_from(sorted(flags)), values)
    return st.lists(
        pairs.map(lambda pair: f"--{pair[0]}" + ("" if flags[pair[0]].kind is SWITCH else f" {pair[1]}"))
    ).map(" ".join)


@given(
    st.one_of(
        st.text(max_size=60),
        st.text("AB=$'\"{}\\n;& #|()`if", max_size=30).map(lambda text: f"{text}\npython train.py --lr $A"),
        st.text(max_size=30).map(lambda text: f"python train_imagenet.py {text}"),
        names_and_values(gluoncv_script.FLAGS).map(lambda flags: f"{GLUONCV} {flags}"),
        names_and_values(mxnet_script.FLAGS).map(lambda flags: f"python train_imagenet.py --gpus 0 {flags}"),
        names_and_values(gluoncv_script.CIFAR_FLAGS).map(
            lambda flags: f"python train_cifar10.py --model cifar_resnet20_v1 {flags}"
        ),
        names_and_values(mxnet_script.FLAGS).map(lambda flags: f"python fine-tune.py {flags}"),
    )
)
def test_whatever_is_given_is_a_recipe_or_one_line(command: str) -> None:
    try:
        read = recipe_of_command(command)
        said = read.text
    except BadRecipe as error:
        said = str(error)
        assert said.isprintable()
    else:
        assert read_recipe(tomllib.loads(said), "the text") == read.recipe
    said.encode()
