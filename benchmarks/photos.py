"""What config/photos.toml learns from 240 photos, the README's own path on known ones, in one table.

    python benchmarks/photos.py DATA OUT [KEY=VALUE ...] [--seeds 1 2 3] [--classes 5] [--photos 60] [--json]

DATA holds imagenette224_6000.tar. Of the first classes, 60 photos each of those for training are drawn (always the
same) and laid out as photos/CLASS/...; `build folder` cuts a tenth each out for validation and test. Every seed trains
once and scores its best checkpoint, as `evaluate` does, on the test photos and on all photos of these classes that are
for validation, which nobody drew from. 30 test photos are few: a rank-1 of 60 % has a 95 % interval of 42 to 75.
Everything lies below OUT; a run that is finished there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parent.parent / "config" / "photos.toml"
ARCHIVE = "imagenette224_6000.tar"
COLUMNS = {"test": "test %", "held_out": "held out %", "seconds": "seconds", "processor_seconds": "processor s"}
UNCUT = ("--val-fraction", 0, "--test-fraction", 0)
# Python before 3.11.4 unpacks without a filter; the archive is our own.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def main() -> None:
    arguments = parse()
    own, held_out = records(arguments)
    rows = [of_seed(seed, own, held_out, arguments) for seed in arguments.seeds]
    sys.stdout.write(json.dumps(rows, indent=1) + "\n" if arguments.json else table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the archive")
    parser.add_argument("out", type=Path, help="folder for photos, records and runs")
    parser.add_argument("overrides", nargs="*", default=[], help="recipe keys for all runs, as engine=pytorch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--classes", type=int, default=5, help="the first so many of the ten")
    parser.add_argument("--photos", type=int, default=60, help="of each class, before the cuts")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def records(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The records of the photos drawn, and those of all validation photos of the same classes."""
    source = arguments.out / "imagenette224"
    if not source.exists():
        with tarfile.open(arguments.data / ARCHIVE) as archive:
            archive.extractall(arguments.out, **SAFELY)
    classes = sorted(folder.name for folder in (source / "train").iterdir())[: arguments.classes]
    draw = random.Random(1)
    photos = {name: draw.sample(sorted((source / "train" / name).iterdir()), arguments.photos) for name in classes}
    held_out = {name: sorted((source / "val" / name).iterdir()) for name in classes}
    return build("photos", photos, arguments.out), build("held-out", held_out, arguments.out, *UNCUT)


def build(name: str, photos: dict[str, list[Path]], out: Path, *words: object) -> Path:
    """Records of photos laid out in class folders."""
    made = out / f"{name}-records"
    if not (made / "manifest.json").exists():
        shutil.rmtree(out / name, ignore_errors=True)
        for folder, files in photos.items():
            (out / name / folder).mkdir(parents=True)
            for file in files:
                (out / name / folder / file.name).hardlink_to(file)
        call("build", "folder", "--root", out / name, "--out", made, *words)
    return made


def of_seed(seed: int, own: Path, held_out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rank-1 in percent on the test photos and on those held out, and what `train` took from start to end."""
    run = arguments.out / f"run-{seed}"
    measured = run.with_suffix(".json")
    if not measured.exists():
        shutil.rmtree(run, ignore_errors=True)
        started, before = time.monotonic(), processor_seconds()
        call("train", RECIPE, f"records={own}", f"seed={seed}", *arguments.overrides, "--run", run)
        took = {"seconds": time.monotonic() - started, "processor_seconds": processor_seconds() - before}
        measured.write_text(json.dumps(took))
    figures = {"test": score(run, "test"), "held_out": score(run, "train", "--records", held_out)}
    return {"seed": seed, **figures, **json.loads(measured.read_text())}


def processor_seconds() -> float:
    """Of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def score(run: Path, split: str, *words: object) -> float:
    return float(json.loads(call("evaluate", run, "--split", split, *words, "--json"))["rank1"])


def call(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "imagenet_pipeline", *map(str, words)], check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode()


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'seed':>6}" + "".join(f"{name:>14}" for name in COLUMNS.values())]
    lines += [f"{row['seed']:>6}" + "".join(f"{row[key]:14.1f}" for key in COLUMNS) for row in rows]
    lines.append(f"{'mean':>6}" + "".join(f"{statistics.mean(row[key] for row in rows):14.1f}" for key in COLUMNS))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
