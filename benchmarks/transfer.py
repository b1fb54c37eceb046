"""Does pre-training on many small classes help 50 photos a class? Four ways to learn from few photos, one table.

    python benchmarks/transfer.py DATA OUT [--seeds 1 2 3] [--engine pytorch] [--json]
                                  [--epochs N] [--distil KEY=VALUE ...]

DATA holds tiny32_200x20.tar (200 ImageNet classes, 20 photos each, 32 px) and imagenette224_6000.tar (10 other
ImageNet classes). The network of config/transfer/pretrain.toml learns the 200 classes once. Then each seed draws 50
training photos of each of the 10 classes, and all 1,000 validation photos score: the same network trained on them from
scratch; a probe on the pre-trained features; the pre-trained network with a new head, which learns alone first; the
same with a teacher beside the labels: a network of twice the width that learned the same two sets in the same way,
whose own figure stands before the student's. Everything lies below OUT; what is finished there is not done again.
--epochs shortens every training, to try the script; --distil changes keys of the distilled students.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().parent.parent / "config" / "transfer"
PHOTOS_A_CLASS = 50
COLUMNS = ("from scratch", "features + probe", "fine-tuned", "teacher", "distilled")
WIDER = "network_options.width=2"
"""The teacher: four times the student's parameters and multiply-adds."""
# Python before 3.11.4 unpacks without a filter; the archives are our own.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
Row = tuple[int, Path]
"""A label and the photo it belongs to."""


def main() -> None:
    arguments = parse()
    pretrained, wider = pretrain("pretrained", arguments), pretrain("teacher-pretrained", arguments, WIDER)
    rows = [of_seed(seed, pretrained, wider, arguments) for seed in arguments.seeds]
    sys.stdout.write(json.dumps(rows, indent=1) + "\n" if arguments.json else table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the two archives")
    parser.add_argument("out", type=Path, help="folder for photos, records and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--engine", default="pytorch")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--epochs", type=int, help="epochs of every training [default: the recipes']")
    parser.add_argument("--distil", nargs="+", default=[], metavar="KEY=VALUE", help="keys of the distilled students")
    return parser.parse_args()


def pretrain(run: str, arguments: argparse.Namespace, *keys: str) -> Path:
    """The run on the 200 classes, of the recipe's network or as the keys change it."""
    photos, records = unpacked("tiny32_200x20.tar", arguments), arguments.out / "tiny32"
    classes = sorted(folder.name for folder in (photos / "train").iterdir())
    labels = {name: label for label, name in enumerate(classes)}
    lines = (photos / "val" / "val_annotations.txt").read_text().splitlines()
    class_of_photo = dict(line.split("\t")[:2] for line in lines)
    validation = [
        (labels[class_of_photo[photo.name]], photo) for photo in sorted((photos / "val" / "images").iterdir())
    ]
    training = [
        (labels[name], photo) for name in classes for photo in sorted((photos / "train" / name).rglob("*.JPEG"))
    ]
    random.Random(1).shuffle(training)
    build(records, photos, classes, training, validation, 0)
    return train("pretrain", arguments.out / run, records, arguments, 42, *keys)


def of_seed(seed: int, pretrained: Path, wider: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Validation rank-1 in percent of the four ways, and the teacher's, on a draw of photos."""
    records = few_photos(seed, arguments)
    scratch = train("scratch", arguments.out / f"scratch-{seed}", records, arguments, seed)
    start = f"initial.weights={pretrained}"
    tuned = train("finetune", arguments.out / f"tuned-{seed}", records, arguments, seed, start)
    teacher = train(
        "finetune", arguments.out / f"teacher-{seed}", records, arguments, seed, f"initial.weights={wider}", WIDER
    )
    # Its last epoch: the best was chosen by the photos that score.
    taught = f"distillation.teacher={teacher}:{last_epoch(teacher)}"
    name = "-".join(["distilled", *arguments.distil, str(seed)])
    distilled = train("distil", arguments.out / name, records, arguments, seed, start, taught, *arguments.distil)
    features = arguments.out / f"features-{seed}.npz"
    if not features.exists():
        call("features", pretrained, "--layer", "norm", "--records", records, "--out", features)
    probe = json.loads(call("probe", features, "--seed", seed, "--json"))
    trained = [last_rank1(run) for run in (scratch, tuned, teacher, distilled)]
    figures = (trained[0], probe["splits"]["val"]["rank1"], *trained[1:])
    return {"seed": seed, **dict(zip(COLUMNS, figures, strict=True)), "C": probe["c"]}


def few_photos(seed: int, arguments: argparse.Namespace) -> Path:
    """Records of 50 training photos a class, drawn by the seed, and of all validation photos."""
    photos, records = unpacked("imagenette224_6000.tar", arguments), arguments.out / f"few-{seed}"
    classes = sorted(folder.name for folder in (photos / "train").iterdir())
    draw = random.Random(seed)
    training, validation = [], []
    for label, name in enumerate(classes):
        chosen = draw.sample(sorted((photos / "train" / name).iterdir()), PHOTOS_A_CLASS)
        training += [(label, photo) for photo in chosen]
        validation += [(label, photo) for photo in sorted((photos / "val" / name).iterdir())]
    draw.shuffle(training)
    build(records, photos, classes, training, validation, 96)
    return records


def unpacked(name: str, arguments: argparse.Namespace) -> Path:
    """The folder with train/ and val/ of an archive."""
    folder = arguments.out / "photos" / name.partition(".")[0]
    if not folder.exists():
        with tarfile.open(arguments.data / name) as archive:
            archive.extractall(folder, **SAFELY)
    return next(found.parent for found in sorted(folder.rglob("train")) if found.is_dir())


def build(
    records: Path, photos: Path, classes: list[str], training: list[Row], validation: list[Row], resize: int
) -> None:
    if (records / "manifest.json").exists():
        return
    records.parent.mkdir(parents=True, exist_ok=True)
    lists = []
    for split, rows in (("train", training), ("val", validation)):
        lists.append(records.with_name(f"{records.name}-{split}.lst"))
        lines = (f"{index}\t{label}\t{photo.relative_to(photos)}\n" for index, (label, photo) in enumerate(rows))
        lists[-1].write_text("".join(lines))
    table = records.with_name(f"{records.name}-classes.txt")
    table.write_text("".join(f"{name}\n" for name in classes))
    words = ["--list", lists[0], "--val-list", lists[1], "--root", photos, "--classes", table, "--resize", resize]
    call("build", "list", *words, "--out", records)


def train(recipe: str, run: Path, records: Path, arguments: argparse.Namespace, seed: int, *keys: str) -> Path:
    started = time.monotonic()
    resume = ["--resume", "latest"] if (run / "checkpoints" / "latest").exists() else []
    shorter = [f"epochs={arguments.epochs}"] if arguments.epochs else []
    keys = (f"records={records}", f"seed={seed}", f"engine={arguments.engine}", *shorter, *keys)
    call("train", CONFIG / f"{recipe}.toml", *keys, "--run", run, *resume)
    sys.stderr.write(f"{run}: {time.monotonic() - started:.0f} s\n")
    return run


def call(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "imagenet_pipeline", *map(str, words)], check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode()


def last_rank1(run: Path) -> float:
    """Validation rank-1 after the last epoch: the best epoch's would have been chosen by these very photos."""
    return float(last_state(run)["metrics"]["validation_rank1"])


def last_epoch(run: Path) -> int:
    return int(last_state(run)["epoch"])


def last_state(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((run / "checkpoints" / "latest" / "state.json").read_text())
    return state


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'seed':>6}" + "".join(f"{column:>20}" for column in COLUMNS)]
    lines += [f"{row['seed']:>6}" + "".join(f"{row[column]:20.2f}" for column in COLUMNS) for row in rows]
    for name, figure in (("mean", statistics.mean), ("stdev", statistics.stdev)):
        if len(rows) > 1:
            lines.append(f"{name:>6}" + "".join(f"{figure(row[column] for row in rows):20.2f}" for column in COLUMNS))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
