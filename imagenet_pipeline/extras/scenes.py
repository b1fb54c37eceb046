"""Scenes to try a detector on: scikit-learn's digits 0 to 2, of different sizes, on coloured noise, with their boxes.

python -m imagenet_pipeline.extras.scenes output/scenes
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from imagenet_pipeline import files
from imagenet_pipeline.extras import execute
from imagenet_pipeline.extras.boxes import overlaps
from imagenet_pipeline.extras.detection import OBJECT_LABELS, SIDE, Scene
from imagenet_pipeline.records import recordio
from imagenet_pipeline.records.image import encode_jpeg

CLASSES = 3


def write_scenes(out: Path, images: int, seed: int = 42) -> None:
    """Write train.rec with so many scenes, and test.rec with a quarter as many, of other digits."""
    digits = load_digits()
    for split, count in (("train", images), ("test", max(1, images // 4))):
        random = np.random.default_rng([seed, split == "test"])
        own = (digits.target < CLASSES) & ((np.arange(len(digits.target)) % 4 == 0) == (split == "test"))
        with files.whole_file(out / f"{split}.rec") as stream:
            for number in range(count):
                scene = drawn_scene(random, digits.images[own], digits.target[own])
                labels = [2, OBJECT_LABELS, *scene.objects.ravel().tolist()]
                stream.write(recordio.frame(recordio.pack(labels, number, encode_jpeg(scene.image, 95))))


def drawn_scene(random: np.random.Generator, images: NDArray[np.float64], labels: NDArray[np.int64]) -> Scene:
    """A scene of one to three digits that do not overlap, out of `images` [n, 8, 8], 0 to 16."""
    canvas = cv2.resize(random.integers(0, 150, (6, 6, 3), np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    boxes: list[list[float]] = []
    for _ in range(random.integers(1, 4)):
        row, side = int(random.integers(len(images))), int(random.integers(20, 49))
        left, top = random.integers(0, SIDE - side, 2).tolist()
        box = [float(edge) / SIDE for edge in (left, top, left + side, top + side)]
        if boxes and overlaps(np.array([box]), np.array(boxes)[:, 1:]).max() > 0:
            continue
        stroke = cv2.resize(images[row] / 16, (side, side), interpolation=cv2.INTER_LINEAR)[..., None]
        part = canvas[top : top + side, left : left + side]
        part[:] = (part * (1 - stroke) + random.integers(180, 256, 3) * stroke).astype(np.uint8)
        boxes.append([float(labels[row]), *box])
    return Scene(np.asarray(canvas, np.uint8), np.array(boxes))


def main(
    out: Annotated[Path, typer.Argument(help="Folder for train.rec and test.rec.")],
    images: Annotated[int, typer.Option(min=1, help="Scenes to train on; a quarter as many to test.")] = 800,
    seed: Annotated[int, typer.Option(min=0)] = 42,
) -> None:
    """Make record files of scenes whose labels are boxes."""
    write_scenes(out, images, seed)
    print(f"{out}: {images:,} scenes to train on, {max(1, images // 4):,} to test")


if __name__ == "__main__":
    execute(main)
