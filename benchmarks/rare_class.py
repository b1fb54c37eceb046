"""What class weights, a balanced order and focal loss do for a class of which there are ten times fewer photos.

    python benchmarks/rare_class.py PHOTOS OUT [--classes n03394916 n03425413] [--seeds 1 2 3] [--engine pytorch]

PHOTOS/train and PHOTOS/val have a folder for each class. 400 training photos of the first class and 40 of the second
become records, and 100 of each to test on; LeNet at 32 pixels learns them for 15 epochs with one output and binary
cross-entropy. The recall of each class on the test photos, after the last epoch, and their mean, in percent.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

import imagenet_pipeline as ip
from imagenet_pipeline.evaluation.evaluate import candidate_of, open_checkpoint, score_candidates

FREQUENT, RARE, TESTED = 400, 40, 100
ROWS: dict[str, dict[str, object]] = {
    "as they are": {},
    "loss.class_weights=balanced": {"loss.class_weights": "balanced"},
    "loader.order=balanced": {"loader.order": "balanced"},
    "loss.threshold=0.1": {"loss.threshold": 0.1},
    "loss.kind=focal": {"loss.kind": "focal"},
}
KEYS: dict[str, object] = {
    "network": "lenet", "epochs": 15, "batch_size": 40, "devices": "cpu", "precision": "float32", "input.size": 32,
    "input.crop_fraction": 0.875, "augmentation.area": [0.5, 1.0], "augmentation.flip": 0.5,
    "optimizer.learning_rate": 0.02, "loss.kind": "binary_cross_entropy", "checkpoint.keep": 1,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path, help="folder for the photos' links, the records and the runs")
    parser.add_argument("--classes", nargs=2, default=["n03394916", "n03425413"], help="the frequent and the rare one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--engine", default="pytorch")
    arguments = parser.parse_args()
    records = build(arguments.photos, arguments.out, arguments.classes)
    for name, keys in ROWS.items():
        found = [recalls(arguments, records, seed, name, keys) for seed in arguments.seeds]
        frequent, rare = (statistics.mean(column) for column in zip(*found, strict=True))
        each = ", ".join(f"{own:.0f}" for _, own in found)
        sys.stdout.write(f"| {name} | {frequent:.1f} | {rare:.1f} ({each}) | {(frequent + rare) / 2:.1f} |\n")
        sys.stdout.flush()


def build(photos: Path, out: Path, classes: list[str]) -> Path:
    """Records of both classes; the folders' names keep the frequent one first."""
    for split, counts in (("train", (FREQUENT, RARE)), ("val", (TESTED, TESTED))):
        for name, label, count in zip(("frequent", "rare"), classes, counts, strict=True):
            folder = out / "photos" / ("test" if split == "val" else split) / name
            folder.mkdir(parents=True, exist_ok=True)
            for photo in sorted((photos / split / label).iterdir())[:count]:
                link = folder / photo.name
                if not link.exists():
                    link.symlink_to(photo.resolve())
    ip.build("folder", out=out / "records", root=out / "photos", resize=40)
    return out / "records"


def recalls(
    arguments: argparse.Namespace, records: Path, seed: int, name: str, keys: dict[str, object]
) -> tuple[float, float]:
    """Percent of the frequent class's and of the rare class's test photos that a run gets right."""
    run = arguments.out / "runs" / f"{name.replace('=', '-')}-{seed}"
    if not (run / "checkpoints").exists():
        own = {**KEYS, "records": str(records), "engine": arguments.engine, "seed": seed, **keys}
        ip.train("demo", run=run, options=own)
    opened = open_checkpoint(run, "latest", {})
    (outcomes,) = score_candidates([candidate_of(run, opened, "test", None)], "test", 1).outcomes
    right = [100 * float(np.mean(outcomes.rank1_right[outcomes.labels == label])) for label in (0, 1)]
    return right[0], right[1]


if __name__ == "__main__":
    main()
