"""Starting: what each verb has imported when its work begins."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

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


def test_help_imports_none_of_what_the_verbs_need() -> None:
    from imagenet_pipeline.cli import app

    verbs = [str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback]
    verbs = [verb.replace("_", "-") for verb in verbs] + [str(group.name) for group in app.registered_groups]
    commands = [["--help"], *([verb, "--help"] for verb in verbs if verb != "build"), ["build", "folder", "--help"]]
    heavy = [*HEAVY, *FRAMEWORKS.values(), "scipy", "cv2", "numpy", "PIL"]
    # The options of a builder are its signature, so that its file is read, which knows NumPy.
    expected = [[words[0], 0, ["numpy"] if words[0] == "build" else []] for words in commands]
    assert imported(commands, heavy) == expected
