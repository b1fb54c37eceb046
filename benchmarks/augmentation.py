"""Cost of each augmentation: processor time an image of the whole loader, over that of the plain crop and flip.

    python benchmarks/augmentation.py [--photos TAR] [--records 200] [--size 256] [--rounds 7] [--plain]

Records: photos as `build` stores them at 256 px short edge, quality 95, in memory. A round loads an epoch with each
augmentation in turn, in this thread; the best round of each counts, since whatever else runs on the machine only adds.
--plain measures crop and flip alone: for two versions in turn, each with its own PYTHONPATH.
"""

from __future__ import annotations

import argparse
import tarfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from imagenet_pipeline.config import Augmentation
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.records.prepare import prepare
from imagenet_pipeline.records.recordio import ImageRecord

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet_samples_300.tar"
CHANGES: dict[str, dict[str, Any]] = {
    "flip_vertical = 0.5": {"flip_vertical": 0.5},
    "hue = 0.1": {"hue": 0.1},
    "brightness, contrast, saturation = 0.4": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    "rotation_degrees = 15": {"rotation_degrees": 15.0},
    'rotation_degrees = 15, fill = "nearest"': {"rotation_degrees": 15.0, "fill": "nearest"},
    **{f'policy = "{name}"': {"policy": name} for name in (
        "rand_augment", "trivial_augment", "auto_augment", "aug_mix", "three_augment",
    )},
    "erasing = 0.25": {"erasing": 0.25},
    "mixup = 0.2": {"mixup": 0.2},
    "cutmix = 1.0": {"cutmix": 1.0},
}  # fmt: skip


class Photos:
    """Records in memory, of 1,000 classes."""

    name = "photos"

    def __init__(self, tar: Path, count: int) -> None:
        with tarfile.open(tar) as opened:
            files = (file.read() for member in opened if (file := opened.extractfile(member)) is not None)
            photos = [prepare(photo, 256, 95, pass_through=False).data for photo in islice(files, count)]
        self._records = [ImageRecord((float(n),), n, photo, True) for n, photo in enumerate(photos)]

    def __len__(self) -> int:
        return len(self._records)

    def read(self, position: int) -> ImageRecord:
        return self._records[position]

    def location(self, position: int) -> tuple[Path, int, int]:
        return Path("photos.rec"), position, 0


def image_seconds(loader: Loader, epoch: int, augmentation: Augmentation) -> float:
    started = time.process_time()
    images = sum(len(batch.labels) for batch in loader.training(0, epoch, augmentation))
    return (time.process_time() - started) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a tar of photos")
    for name, default in (("records", 200), ("size", 256), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    records = Photos(arguments.photos, arguments.records)
    loader = Loader(records, arguments.size, batch_size=50, threads=0, classes=1000)
    settings = {"crop and flip": {}, **({} if arguments.plain else CHANGES)}
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    for epoch in range(arguments.rounds + 1):  # the first warms up
        for name, changes in settings.items():
            seconds[name].append(image_seconds(loader, epoch, Augmentation(**changes)))
    best = {name: 1e6 * min(each[1:]) for name, each in seconds.items()}
    print(f"{len(records)} photos at {arguments.size} px, best of {arguments.rounds} rounds, processor time an image")
    print("| augmentation | us | more than none, us | times |\n|---|---|---|---|")
    for name, each in best.items():
        none = best["crop and flip"]
        print(f"| {name} | {each:,.0f} | {each - none:,.0f} | {each / none:.2f} |")


if __name__ == "__main__":
    main()
