"""Starting: what each verb has imported when its work begins."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.cli import SECTIONS
from imagenet_pipeline.cli.output import FIRST_LINES
from imagenet_pipeline.engines import FRAMEWORKS

HEAVY = ("scipy.stats", "sklearn", "pandas", "onnx", "sympy", "torch._dynamo", "matplotlib", "progressbar")
"""Takes half a second or more each, and no verb below needs it to begin; the bar is for terminals."""

PROGRAM = """
import importlib, json, sys
from imagenet_pipeline.cli import main

commands, watched, heavy = json.loads(sys.argv[1])
seen = set()

def watching(method):
    def call(*arguments, **named):
        seen.update(set(heavy) & sys.modules.keys())
        return method(*arguments, **named)
    return call

for module, owner, name in watched:
    held = getattr(importlib.import_module(module), owner)
    setattr(held, name, watching(getattr(held, name)))
found = []
for words in commands:
    seen.clear()
    try:
        main(words)
    except SystemExit as ended:
        if not watched:
            seen.update(set(heavy) & sys.modules.keys())
        found.append([words[0], ended.code, sorted(seen)])
print("\\n" + json.dumps(found))
"""


def imported(commands: Sequence[Sequence[Any]], heavy: Sequence[str], watched: Sequence[Any] = ()) -> list[list[Any]]:
    """Verb, exit code and the `heavy` modules there at its end, or when a `watched` method is called."""
    given = json.dumps([[[str(word) for word in words] for words in commands], watched, heavy])
    done = subprocess.run([sys.executable, "-c", PROGRAM, given], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("engine", FRAMEWORKS)
def test_an_engine_works_before_anything_else_heavy_is_there(
    engine: str,
    class_of: Callable[[str], Any],
    drawn_run: Callable[..., Path],
    data_set: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    run = drawn_run("cat", "dog", "emu", names=("Cat", "Dog", "Emu"), engine=engine)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'network = "lenet"\nrecords = "{data_set}"\nengine = "{engine}"\ndevices = "cpu"\nepochs = 1\nbatch_size = 6\n'
        "[input]\nsize = 28\n[optimizer]\nlearning_rate = 0.01\n"
    )
    kind = class_of(engine)
    commands = [
        ["predict", run, photos / "0.jpg"],
        ["evaluate", run, "--records", data_set, "--split", "val", "--report", tmp_path / "report.html"],
        ["train", recipe, "--run", tmp_path / "run"],
    ]
    others = [framework for other, framework in FRAMEWORKS.items() if other != engine]
    watched = [(kind.__module__, kind.__name__, method) for method in ("issue_logits", "train_batch")]
    found = imported(commands, [*HEAVY, *others], watched)
    assert found == [["predict", 0, []], ["evaluate", 0, []], ["train", 0, []]]


def test_records_need_no_framework_and_no_statistics(data_set: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "photo.jpg").write_bytes((photos / "0.jpg").read_bytes())
    commands = [
        ["build", "folder", "--root", tmp_path / "photos", "--out", tmp_path / "data", "--workers", "1"],
        ["verify", data_set],
        ["inspect", data_set],
        ["networks"],
    ]
    found = imported(commands, [*HEAVY, *FRAMEWORKS.values(), "scipy"])
    assert found == [[words[0], 0, []] for words in commands]


FIRST_WORDS = """
import json, sys
from imagenet_pipeline.cli import build, doctor, main, output, start

def stop(line):
    said.append([line, sorted(set(heavy) & sys.modules.keys())])
    raise SystemExit(0)

commands, heavy = json.loads(sys.argv[1])
said = []
for module in (build, doctor, output, start):
    module.announce = stop
for words in commands:
    before = len(said)
    try:
        main(words)
    except SystemExit:
        if len(said) == before:
            said.append([words[0], ["nothing said"]])
print(json.dumps(said))
"""
"""Runs commands up to their first line, which ends them; prints each line and the `heavy` modules there by then."""


def test_every_verb_speaks_before_it_imports_what_takes_time(tmp_path: Path) -> None:
    recipe, run, file = tmp_path / "recipe.toml", tmp_path, tmp_path / "file.npz"
    recipe.write_text('network = "lenet"\nrecords = "digits"\nepochs = 3\n')
    file.touch()
    out = ("--out", "x.png")
    commands: dict[tuple[object, ...], str] = {
        ("start", tmp_path): f"{tmp_path}: looking at the photos",
        ("verify", run): f"{run}: checking every record",
        ("inspect", run): f"{run}: looking into it",
        ("mean-image", run, "--size", 28): f"{run}: the mean of its training photos at 28 pixels",
        ("networks",): "networks: their parameters and multiply-adds",
        ("find-rate", recipe): f"{recipe}: raising the learning rate from 1e-06 to 10.0 in 100 steps",
        ("train", recipe, "epochs=9", "--run", "new"): f"{recipe}: lenet on digits, 9 epochs",
        (
            "train",
            "demo",
            "engine=gluon",
            "--resume",
            "best",
        ): "demo: going on from its best checkpoint",
        ("plot", run, *out): f"x.png: drawing the curves of {run}",
        ("evaluate", run, "devices=cpu"): f"{run}: scoring the best checkpoint",
        ("diagnose", run): f"{run}: scoring the best checkpoint on every split",
        ("baseline", run): f"{run}: fitting logistic on pixels at 32 pixels",
        ("features", run, "--layer", "a", "--out", "x.npz"): f"{run}: the activations of a",
        ("probe", file): f"{file}: fitting logistic",
        ("predict", run, file, "b", "c", "d"): f"{run}: naming the classes of {file}, b, c and 1 more",
        ("submit", run, run): f"{run}: naming the classes of the pictures in {run}",
        ("emotion", run, "a.jpg"): f"{run}: looking for faces in a.jpg",
        ("import", "--out", "x"): "x: a run of a network trained elsewhere",
        ("export", run, "--format", "onnx", "--out", "x"): f"{run}: writing the best checkpoint as onnx",
        ("export-records", run, "--format", "tar", "--out", "x"): f"{run}: writing its records as tar",
        ("benchmark", "loader", run): f"{run}: measuring the loader at 224 pixels",
        ("benchmark", "step", recipe): f"{recipe}: measuring 5 rounds of 20 steps",
        ("tune", recipe, "loss.gamma=1..3"): f"{recipe}: a search of 20 trials",
        ("average", run, "--last", "2", "--out", "x"): f"x: the mean of checkpoints of {run}",
        ("calibrate", run): f"{run}: fitting the temperature of the best checkpoint on val",
        ("doctor",): "doctor: importing the engines, each in a process of its own",
        ("picture", "network", "lenet", *out): "lenet: drawing its layers",
        ("picture", "filters", run, *out): f"{run}: drawing the filters of the best checkpoint",
        ("picture", "activations", run, "a.jpg", "--layer", "b", *out): f"{run}: drawing what b makes of a.jpg",
        ("picture", "grad-cam", run, file, *out): f"{run}: looking for where it finds a class in {file}",
        ("picture", "augmentation", recipe, *out): f"{recipe}: drawing a training photo 24 times",
        ("picture", "classes", run, *out): f"{run}: counting the images of each class",
        ("picture", "sizes", run, *out): f"{run}: reading the size of every image",
        ("build", "imagenet", "--root", "a", "--out", "x"): "x: planning, by the builder imagenet",
    }
    heavy = [*HEAVY, *FRAMEWORKS.values(), "scipy", "cv2", "numpy", "PIL", "imagenet_pipeline.config"]
    given = json.dumps([[[str(word) for word in words] for words in commands], heavy])
    done = subprocess.run([sys.executable, "-c", FIRST_WORDS, given], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[line, []] for line in commands.values()]
    # Where what is to be read is not there, the error is all that is said.
    absent = [
        ["train", "nowhere.toml"],
        ["evaluate", "nowhere"],
        ["predict", "nowhere", "a.jpg"],
        ["verify", "nowhere"],
    ]
    given = json.dumps([absent, []])
    done = subprocess.run([sys.executable, "-c", FIRST_WORDS, given], check=False, capture_output=True, text=True)
    assert json.loads(done.stdout) == [[words[0], ["nothing said"]] for words in absent]
    assert len(done.stderr.splitlines()) == len(absent)
    spoken = {" ".join(map(str, words)).partition(" /")[0] for words in commands}
    assert [command for command in FIRST_LINES if not any(words.startswith(command) for words in spoken)] == []


def test_help_imports_none_of_what_the_verbs_need() -> None:
    verbs = [verb for section in SECTIONS.values() for verb in section]
    commands = [["--help"], *([verb, "--help"] for verb in verbs if verb != "build"), ["build", "folder", "--help"]]
    heavy = [*HEAVY, *FRAMEWORKS.values(), "scipy", "cv2", "numpy", "PIL"]
    # The options of a builder are its signature, so that its file is read, which knows NumPy.
    expected = [[words[0], 0, ["numpy"] if words[0] == "build" else []] for words in commands]
    assert imported(commands, heavy) == expected
