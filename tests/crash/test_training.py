"""A run may be killed at any moment, again and again: it ends in the bytes of an unbroken one, on the same images.

IMAGENET_PIPELINE_LONG=1 kills each run 30 times.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline import files
from imagenet_pipeline.config import InputRecipe, Recipe
from imagenet_pipeline.record_builders import digits
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.storage import Storage
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run

HARNESS = Path(__file__).with_name("training_harness.py")
REPOSITORY = HARNESS.parent.parent.parent
KILLS = 30 if os.environ.get("IMAGENET_PIPELINE_LONG") == "1" else 3
STEPS = 152 if KILLS > 3 else 19
EVERY_STEPS = 2
RECIPE = """
network = "{network}"
engine = "{engine}"
records = "{records}"
{length}
batch_size = 62
devices = "cpu"
average_decay = 0.9
{head}
[input]
size = 16
[augmentation]
crop = "random"
pad = 2
flip = 0.5
brightness = 0.2
{augmentation}
[optimizer]
name = "{optimizer}"
learning_rate = 0.002
{optimizer_keys}
[schedule]
kind = "cosine"
[checkpoint]
every_steps = {every_steps}
{more}
"""
"""19 steps an epoch of a network with dropout and batch normalisation; "auto" is bfloat16 on PyTorch where it pays."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    build(digits.plan(folder), folder, BuildOptions(resize=0, workers=1))
    return folder


def life(recipe: Path, run: Path, trace: Path, threads: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(HARNESS), str(recipe), str(run), str(trace), str(threads)]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def steps_of(trace: Path) -> list[tuple[int, str]]:
    """(step, records) in the order they were taken; a line the kill tore is no step."""
    content = trace.read_text() if trace.exists() else ""
    lines = content[: content.rfind("\n") + 1].splitlines()
    return [(int(step), numbers) for step, _, numbers in (line.partition(" ") for line in lines)]


def died(process: subprocess.Popen[str], trace: Path, new_steps: int, then_seconds: float) -> bool:
    """Kill the process so long after it has taken that many steps; whether it did not end before by itself."""
    before = len(steps_of(trace))
    while process.poll() is None and len(steps_of(trace)) < before + new_steps:
        time.sleep(0.005)
    time.sleep(then_seconds)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -9), errors
    return process.returncode == -9


MIXING = "mixup = 0.2\ncutmix = 1.0\nmix_epochs = 1\nerasing = 0.25\n"
COLOURS = "hue = 0.1\nflip_vertical = 0.5\nfill = 'nearest'\npolicy = 'aug_mix'"


@pytest.mark.parametrize(
    ("engine", "optimizer", "augmentation", "more", "steps"),
    [("gluon", "sgd", "", "", STEPS), ("pytorch", "adam", MIXING + COLOURS, "[loader]\nrepeats = 3", STEPS + 5)],
)
def test_killed_again_and_again_a_run_ends_in_the_same_bytes(
    engine: str, optimizer: str, augmentation: str, more: str, steps: int, records: Path, tmp_path: Path
) -> None:
    """The second one's end is inside an epoch."""
    keys = {"engine": engine, "optimizer": optimizer, "augmentation": augmentation, "records": records, "more": more}
    require_the_same_end(tmp_path, keys, keys, steps)


@pytest.mark.skipif(KILLS == 3, reason="runs more: IMAGENET_PIPELINE_LONG=1 runs them")
@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
@pytest.mark.parametrize(
    ("optimizer", "keys"),
    [("radam", "lookahead_steps = 3"), ("lion", "sam_radius = 0.05"), ("muon", "clip_share = 0.05")],
)
def test_killed_between_what_a_rule_does_every_few_steps(
    engine: str, optimizer: str, keys: str, records: Path, tmp_path: Path
) -> None:
    """Five times each; with a rate for each layer."""
    more, kills = "[transfer]\nlayer_decay = 0.9\n", 5
    words = {"engine": engine, "optimizer": optimizer, "augmentation": "", "records": records, "more": more}
    require_the_same_end(tmp_path, words, words, 38, kills, keys)


LAYERS = """
[network_options]
width = 0.125
activation = "mish"
squeeze_excitation = 4
blur_pool = "max"
stochastic_depth = 0.5
[loader]
repeats = 2
"""


@pytest.mark.skipif(KILLS == 3, reason="runs more: IMAGENET_PIPELINE_LONG=1 runs them")
@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
@pytest.mark.parametrize("policy", ["auto_augment", "three_augment"])
def test_killed_with_all_ingredients_together(engine: str, policy: str, records: Path, tmp_path: Path) -> None:
    """Five times; a ResNet of today's layers, its residuals left out, in half-batches, that ends in unmixed images.

    PyTorch 2.13 leaves memory as it was in the gradient of a kernel's weights that see padding alone, in bfloat16 on a
    CPU: those of stage 4, whose input is a single pixel.
    """
    mixing = f"policy = '{policy}'\nmixup = 0.2\ncutmix = 1.0\nmix_epochs = 1"
    words = {"engine": engine, "optimizer": "radam", "augmentation": mixing, "records": records}
    words |= {"more": LAYERS, "network": "resnet18", "head": "accumulation = 2\nprecision = 'float32'"}
    require_the_same_end(tmp_path, words, words, 38, 5, "lookahead_steps = 3\nsam_radius = 0.05")


@pytest.mark.skipif(KILLS == 3, reason="a run more: IMAGENET_PIPELINE_LONG=1 runs it")
def test_killed_again_and_again_with_a_cache_of_three_shards(object_store: Any, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    build(digits.plan(sharded), sharded, BuildOptions(resize=0, workers=1, shards=8))
    for path in sharded.iterdir():
        if path.is_file():
            Storage(object_store.url).upload(path, path.name)
    largest = max(shard.bytes for shard in read_data_set(sharded).manifest.shards)
    window = "[loader]\nwindow_shards = 1\n"
    cache = f"cache = '{tmp_path / 'cache'}'\ncache_gb = {3 * largest / 1e9}"
    keys = {"engine": "pytorch", "optimizer": "sgd", "augmentation": ""}
    require_the_same_end(
        tmp_path,
        {**keys, "records": sharded, "more": window},
        {**keys, "records": object_store.url, "more": window + cache},
    )


@pytest.mark.skipif(KILLS == 3, reason="four runs more: IMAGENET_PIPELINE_LONG=1 runs them")
@pytest.mark.parametrize("scores", ["batch", "records"])
@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_killed_again_and_again_a_run_with_a_teacher(engine: str, scores: str, records: Path, tmp_path: Path) -> None:
    """Of the other engine; while it scores the records, too."""
    keys = {"records": str(records), "devices": "cpu", "batch_size": 62, "epochs": 1, "network": "lenet"}
    other = {"gluon": "pytorch", "pytorch": "gluon"}[engine]
    train(open_run(Recipe(**keys, engine=other, input=InputRecipe(size=28)), folder=tmp_path / "teacher"))
    more = f"[distillation]\nteacher = '{tmp_path / 'teacher'}'\nscores = '{scores}'"
    own = {"engine": engine, "optimizer": "sgd", "augmentation": "", "records": records, "more": more}
    require_the_same_end(tmp_path, own, own, 57, wanted_kills=5)


def require_the_same_end(
    tmp_path: Path,
    unbroken: dict[str, Any],
    broken: dict[str, Any],
    steps: int = STEPS,
    wanted_kills: int = KILLS,
    optimizer_keys: str = "",
) -> None:
    """Train two recipes, the second of which is killed again and again, and compare steps and weights."""
    common = {"optimizer_keys": optimizer_keys, "network": "minivggnet", "head": ""}
    recipe, length = tmp_path / "unbroken.toml", f"steps = {steps}" if steps % 19 else f"epochs = {steps // 19}"
    recipe.write_text(RECIPE.format_map({**common, "length": length, "every_steps": 0, **unbroken}))
    process = life(recipe, tmp_path / "unbroken", tmp_path / "unbroken.trace", threads=1)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    recipe = tmp_path / "broken.toml"
    recipe.write_text(RECIPE.format_map({**common, "length": length, "every_steps": EVERY_STEPS, **broken}))

    moments, kills = random.Random(wanted_kills), 0
    run, trace = tmp_path / "broken", tmp_path / "broken.trace"
    while kills < wanted_kills:
        # Some die while they begin; the others after so many steps, and anywhere in the one they are at.
        new_steps = moments.choice([0, 1, 2, 3, 4, 5]) if wanted_kills > 5 else moments.randint(3, 5)
        process = life(recipe, run, trace, threads=kills % 5)
        by_kill = died(process, trace, new_steps, moments.uniform(0, 2.0 if new_steps == 0 else 0.2))
        assert by_kill, "the run was done before it was killed often enough"
        kills += 1
    process = life(recipe, run, trace, threads=moments.randint(0, 4))
    _, errors = process.communicate()
    assert process.returncode == 0, errors

    expected, taken = steps_of(tmp_path / "unbroken.trace"), steps_of(trace)
    assert [step for step, _ in expected] == list(range(steps))
    # What was taken twice, because a kill lost it, was the same both times.
    assert len(taken) > steps
    assert {*taken} == {*expected}
    last = f"epoch-{-(-steps // 19):04d}"
    for name in ("weights.safetensors", "optimizer.safetensors"):
        whole, again = (tmp_path / one / "checkpoints" / last / name for one in ("unbroken", "broken"))
        assert files.sha256_of(whole) == files.sha256_of(again), name
    assert not [path for path in run.rglob("*") if files.PART_MARK in path.name]
