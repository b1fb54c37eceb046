"""Starting: the processor time of each verb on next to no data, on both engines, in this checkout and in others.

    python benchmarks/start.py [--others CHECKOUT ...] [--rounds N] [--only WORD ...]
    python benchmarks/start.py --first

240 drawn photos, ResNet-18-D at 64 px in float32, one thread: what is timed is imports, opening, and a few steps.
User and system seconds of the process, the best of the rounds; the checkouts take turns. Five minutes a checkout.

--first: until a command has printed anything, the seconds on the clock and those of the processor (where many jobs
share the machine the clock says little), the best of the rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
ENGINES = ("pytorch", "gluon")
RECIPE = """network = "resnet18_d"
records = "{records}"
devices = "cpu"
precision = "float32"
epochs = 1
batch_size = 32
[input]
size = 64
[optimizer]
learning_rate = 0.01
"""


def draw_photos(folder: Path) -> None:
    random = np.random.default_rng(1)
    for split in ("train", "val"):
        for name in "abcd":
            (folder / split / name).mkdir(parents=True)
            for number in range(30):
                noise = random.integers(0, 256, (12, 16, 3)).astype(np.uint8)
                cv2.imwrite(str(folder / split / name / f"{number}.jpg"), cv2.resize(noise, (200, 150)))


def seconds(words: list[str], checkout: Path) -> float:
    """Processor seconds of a command; ends the program where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "imagenet_pipeline", *words]
    # `python -m` looks in the working folder first.
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_output(words: list[str], checkout: Path) -> tuple[float, float]:
    """Seconds until a command prints anything, on stdout or stderr: on the clock, and of the processor."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "imagenet_pipeline", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=checkout
    ) as process:
        output = process.stdout or sys.exit("no output")
        os.read(output.fileno(), 1)
        seconds = time.perf_counter() - started
        # 14 and 15 of `man 5 proc_pid_stat`, counted behind the name, which may hold anything.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        output.read()
    if process.returncode:
        sys.exit(f"{' '.join(words)}: ended with {process.returncode}")
    return seconds, ticks / os.sysconf("SC_CLK_TCK")


def others(place: Path) -> dict[str, list[str]]:
    """Commands of which only the first output is timed."""
    run, recipe, new, data = f"{place}/run-pytorch", f"{place}/recipe.toml", f"{place}/new", f"{place}/data"
    return {
        "--version": ["--version"],
        "start": ["start", f"{place}/photos", "--out", new],
        "doctor": ["doctor"],
        "recipes": ["recipes"],
        "recipe": ["recipe", "--from", "python train_imagenet.py --model resnet50_v1b --num-gpus 4"],
        "fetch": ["fetch"],
        "mean-image": ["mean-image", data, "--size", "64"],
        "picture classes": ["picture", "classes", data, "--out", f"{new}/classes.png"],
        "picture sizes": ["picture", "sizes", data, "--out", f"{new}/sizes.png"],
        "picture filters": ["picture", "filters", run, "--out", f"{new}/filters.png"],
        "picture augmentation": ["picture", "augmentation", recipe, "--out", f"{new}/draws.png"],
        "diagnose": ["diagnose", run],
        "baseline": ["baseline", data, "--out", f"{new}/baseline"],
        "features": ["features", run, "--layer", "pool", "--out", f"{new}/features.npz"],
        "export": ["export", run, "--format", "onnx", "--out", f"{new}/exported"],
        "export-records": ["export-records", data, "--format", "tar", "--out", f"{new}/tars"],
        "find-rate": ["find-rate", recipe, "--steps", "5"],
        "benchmark loader": ["benchmark", "loader", data, "--size", "64"],
        "benchmark step": ["benchmark", "step", recipe, "--steps", "2", "--rounds", "1"],
    }


def measure_first(place: Path, rounds: int, only: list[str]) -> None:
    """Print the table of --first."""
    print("| command | seconds to the first output | of the processor |\n|---|---|---|")
    for name, words in {**commands(place), **others(place)}.items():
        if not only or any(word in name for word in only):
            times = []
            for _ in range(rounds):
                (place / "new").mkdir()
                times.append(first_output(words, REPOSITORY))
                shutil.rmtree(place / "new")
            clock, processor = map(min, zip(*times, strict=True))
            print(f"| {name} | {clock:.2f} | {processor:.2f} |", flush=True)


def commands(place: Path) -> dict[str, list[str]]:
    """What is timed, by name; what is written goes to `place`/new."""
    new, photo = place / "new", place / "photos/val/a/0.jpg"
    found = {
        "--help": ["--help"],
        "train --help": ["train", "--help"],
        "build": ["build", "folder", "--root", f"{place}/photos", "--out", f"{new}/data", "--workers", "1"],
        "verify": ["verify", f"{place}/data"],
        "inspect": ["inspect", f"{place}/data"],
        "networks": ["networks"],
        "keys": ["keys"],
        "plot": ["plot", f"{place}/run-pytorch", "--out", f"{new}/curves.png"],
        "picture network": ["picture", "network", "resnet18", "--out", f"{new}/network.png"],
    }
    for engine in ENGINES:
        run = f"{place}/run-{engine}"
        found |= {
            f"predict, {engine}": ["predict", run, str(photo)],
            f"evaluate, {engine}": ["evaluate", run, "--split", "val", "--report", f"{new}/report.html"],
            f"train, {engine}": ["train", f"{place}/recipe.toml", "--run", f"{new}/run", f"engine={engine}"],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="checkouts to compare with, first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", action="store_true", help="time the first output")
    parser.add_argument("--only", nargs="*", default=[], help="words, of which a command's name has one")
    given = parser.parse_args()
    checkouts = [*(path.resolve() for path in given.others), REPOSITORY]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        draw_photos(place / "photos")
        (place / "recipe.toml").write_text(RECIPE.format(records=place / "data"))
        seconds(["build", "folder", "--root", f"{place}/photos", "--out", f"{place}/data"], REPOSITORY)
        for engine in ENGINES:
            run = ["--run", f"{place}/run-{engine}", f"engine={engine}"]
            seconds(["train", f"{place}/recipe.toml", *run], REPOSITORY)
        if given.first:
            measure_first(place, given.rounds, given.only)
            return
        found: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in checkouts])
        for _ in range(given.rounds):
            for name, words in commands(place).items():
                for number, checkout in enumerate(checkouts):
                    if not given.only or any(word in name for word in given.only):
                        (place / "new").mkdir()
                        found[name][number].append(seconds(words, checkout))
                        shutil.rmtree(place / "new")
    print(f"| command | {' | '.join(path.name for path in checkouts)} |\n|---|{'---|' * len(checkouts)}")
    for name, times in found.items():
        print(f"| {name} | {' | '.join(f'{min(own):.2f}' for own in times)} |")


if __name__ == "__main__":
    main()
