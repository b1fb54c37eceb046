"""A small single-shot detector (SSD, Liu et al. 2016) trained on records with vector labels, on PyTorch.

Labels are those that im2rec packs for detection: the length of the header, that of an object (5), the rest of the
header, then for each object its class and its box, (left, top, right, bottom) as shares of the image.

    python -m imagenet_pipeline.extras.scenes output/scenes
    python -m imagenet_pipeline.extras.detection output/scenes output/ssd --epochs 20
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import save
from torch import nn

from imagenet_pipeline import files
from imagenet_pipeline.drawing import COLOURS, contact_sheet, tile, write_png
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.extras import execute, make_folder
from imagenet_pipeline.extras.boxes import (
    Boxes,
    Detection,
    mean_average_precision,
    multibox_detection,
    multibox_prior,
    multibox_target,
)
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records import recordio
from imagenet_pipeline.records.image import decode_rgb
from imagenet_pipeline.records.reader import RecordSet

SIDE = 96
"""Side of the network's input, pixels."""
OBJECT_LABELS = 5
SIZES = ((0.2, 0.27), (0.37, 0.45), (0.6, 0.75))
RATIOS = (1.0, 2.0, 0.5)
NEGATIVES = 3
"""Background anchors that count for each anchor with an object: those of the highest loss (hard negative mining)."""
MEAN, DEVIATION = 127.5, 64.0

log = logging.getLogger("imagenet_pipeline")


class Scene(NamedTuple):
    """An image with its objects, [n, 5]: class and box."""

    image: Pixels
    objects: NDArray[np.float64]


def read_scenes(path: Path) -> list[Scene]:
    """All records of a file for detection, brought to SIDE; boxes that reach beyond their image are cut to it.

    Raises BadInput for labels of another form, and for an image that cannot be decoded.
    """
    with RecordSet.open(path) as records:
        labelled = [_scene(records.read(position), f"{path}, record {position}") for position in range(len(records))]
    if cut := sum(int((np.abs(scene.objects[:, 1:] - 0.5) > 0.500001).any(1).sum()) for scene in labelled):
        log.warning("warning: %s: boxes that reach beyond their image, and are cut to it: %d", path, cut)
    for scene in labelled:
        np.clip(scene.objects[:, 1:], 0, 1, out=scene.objects[:, 1:])
    return labelled


def _scene(record: recordio.ImageRecord, where: str) -> Scene:
    labels = np.array(record.labels, np.float64)
    header, width = labels[:2].astype(int) if len(labels) > 1 and np.isfinite(labels).all() else (0, 0)
    if header < 2 or width < OBJECT_LABELS or (len(labels) - header) % width:
        expected = "length of the header, length of an object, ..., class, left, top, right, bottom"
        raise BadInput("not the labels of a detector", where=where, expected=expected, found=record.labels[:8])
    objects = labels[header:].reshape(-1, width)[:, :OBJECT_LABELS].copy()
    numbers, boxes = objects[:, 0], np.clip(objects[:, 1:], 0, 1)
    if (numbers < 0).any() or (numbers % 1).any() or (boxes[:, :2] >= boxes[:, 2:]).any():
        expected = "a class from 0, and left < right, top < bottom as shares of the image"
        raise BadInput("an object has no box in the image", where=where, expected=expected, found=objects.round(3)[:2])
    try:
        pixels = decode_rgb(record.image)
    except BadInput as error:
        raise error.replaced(where=where) from error
    return Scene(np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8), objects)


class SmallSSD(nn.Module):  # type: ignore[misc]
    """Three stages of convolutions to a map of an eighth, a quarter less each of two more; two heads at each map."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.stages = nn.ModuleList(
            [
                nn.Sequential(*_stage(3, 16), *_stage(16, 32), *_stage(32, 64)),
                nn.Sequential(*_stage(64, 64)),
                nn.Sequential(*_stage(64, 64)),
            ]
        )
        anchors = len(SIZES[0]) + len(RATIOS) - 1
        self.classifiers = nn.ModuleList([nn.Conv2d(64, anchors * (1 + classes), 3, padding=1) for _ in self.stages])
        self.boxes = nn.ModuleList([nn.Conv2d(64, anchors * 4, 3, padding=1) for _ in self.stages])

    def forward(self, images: Any) -> tuple[Any, Any]:
        """Class scores [n, anchors, 1 + classes] and offsets [n, anchors, 4] of images [n, 3, SIDE, SIDE]."""
        scores: list[Any] = []
        offsets: list[Any] = []
        for stage, classifier, boxes in zip(self.stages, self.classifiers, self.boxes, strict=True):
            images = stage(images)
            for found, head, width in ((scores, classifier, 1 + self.classes), (offsets, boxes, 4)):
                found.append(head(images).permute(0, 2, 3, 1).reshape(len(images), -1, width))
        return torch.cat(scores, 1), torch.cat(offsets, 1)


def _stage(channels: int, width: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs in (channels, width):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return [*layers, nn.MaxPool2d(2)]


def anchors_of_maps() -> Boxes:
    """The anchors of all maps, in the order of the network's outputs."""
    sides = (SIDE // 8, SIDE // 16, SIDE // 32)
    return np.concatenate([multibox_prior(side, side, sizes, RATIOS) for side, sizes in zip(sides, SIZES, strict=True)])


def detector_loss(scores: Any, offsets: Any, classes: Any, targets: Any) -> Any:
    """Cross-entropy of the objects and of the hardest backgrounds, and smooth L1 of the offsets, an object's mean."""
    losses = nn.functional.cross_entropy(scores.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    there = classes > 0
    hardest = losses.masked_fill(there, -1).sort(1, descending=True).indices.argsort(1)
    negative = (hardest < NEGATIVES * there.sum(1, keepdim=True).clamp(min=1)) & ~there
    distance = nn.functional.smooth_l1_loss(offsets[there], targets[there], reduction="sum")
    return ((losses * (there | negative)).sum() + distance) / there.sum().clamp(min=1)


@dataclass
class Detector:
    """A trained network and its anchors."""

    network: SmallSSD
    anchors: Boxes

    def detect(self, images: Sequence[Pixels], score: float = 0.05) -> list[list[Detection]]:
        """The objects in images of SIDE, best first."""
        self.network.eval()
        with torch.inference_mode():
            scores, offsets = self.network(_tensor(images))
            shares, offsets = scores.softmax(2).double().numpy(), offsets.double().numpy()
        return [
            multibox_detection(*image, self.anchors, score, threshold=0.45)
            for image in zip(shares, offsets, strict=True)
        ]


def train_detector(
    scenes: Sequence[Scene], classes: int, epochs: int = 20, batch_size: int = 32, seed: int = 42
) -> tuple[Detector, list[float]]:
    """Train on scenes; gives the detector and the mean loss of each epoch."""
    torch.manual_seed(seed)
    detector = Detector(SmallSSD(classes), anchors_of_maps())
    targets = [multibox_target(detector.anchors, scene.objects) for scene in scenes]
    images = _tensor([scene.image for scene in scenes])
    labels = torch.from_numpy(np.stack([target.classes for target in targets]))
    offsets = torch.from_numpy(np.stack([target.offsets for target in targets])).float()
    optimizer = torch.optim.AdamW(detector.network.parameters(), lr=2e-3, weight_decay=1e-3)
    steps = epochs * max(1, len(scenes) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    losses = []
    with Bar("train", "epochs") as bar:
        for epoch in range(epochs):
            detector.network.train()
            found = []
            for rows in _batches(len(scenes), batch_size, [seed, epoch]):
                scores, found_offsets = detector.network(images[rows])
                loss = detector_loss(scores, found_offsets, labels[rows], offsets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                found.append(float(loss.detach()))
            losses.append(float(np.mean(found)))
            bar.show(epoch + 1, epochs, [f"loss {losses[-1]:.3f}"])
    return detector, losses


def _batches(count: int, size: int, seed: Sequence[int]) -> Iterator[Any]:
    order = np.random.default_rng(seed).permutation(count)
    size = min(size, count)
    for start in range(0, count - size + 1, size):
        yield torch.from_numpy(order[start : start + size])


def _tensor(images: Sequence[Pixels]) -> Any:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().sub(MEAN).div(DEVIATION)


def draw_boxes(scene: Scene, found: Sequence[Detection], names: Sequence[str], score: float = 0.4) -> Image.Image:
    """A scene with the boxes found, each with its class and score, and the true ones dotted in grey."""
    picture = Image.fromarray(scene.image).resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for box in scene.objects[:, 1:]:
        draw.rectangle([float(edge) for edge in box * 2 * SIDE], outline="#bbbbbb")
    for detection in (detection for detection in found if detection.score >= score):
        colour = COLOURS[detection.class_number % len(COLOURS)]
        left, top, right, bottom = (float(edge) for edge in detection.box * 2 * SIDE)
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        draw.text((left + 3, top + 1), f"{names[detection.class_number]} {detection.score:.2f}", fill="#ffffff")
    return tile(np.asarray(picture), 2 * SIDE, [])


def main(
    data: Annotated[Path, typer.Argument(help="Folder with train.rec and test.rec, whose labels are boxes.")],
    out: Annotated[Path, typer.Argument(help="Folder for the weights, the figures and the picture.")],
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    seed: Annotated[int, typer.Option(min=0)] = 42,
) -> None:
    """Train on train.rec, score test.rec (mAP at an overlap of 0.5) and draw what is found."""
    scenes, unseen = read_scenes(data / "train.rec"), read_scenes(data / "test.rec")
    numbers = [int(number) for scene in (*scenes, *unseen) for number in scene.objects[:, 0]]
    if not scenes or not numbers:
        raise BadInput("nothing to train on: no record has an object", where=data / "train.rec")
    make_folder(out)
    classes = 1 + max(numbers)
    detector, losses = train_detector(scenes, classes, epochs, seed=seed)
    found = detector.detect([scene.image for scene in unseen])
    precision = mean_average_precision(found, [scene.objects for scene in unseen], classes)
    files.write_whole(out / "weights.safetensors", save(detector.network.state_dict()))
    files.write_json(out / "figures.json", {"map": precision, "losses": losses, "scenes": len(unseen)})
    names = list(map(str, range(classes)))
    tiles = [draw_boxes(scene, own, names) for scene, own in zip(unseen[:12], found, strict=False)]
    write_png(
        contact_sheet(tiles, 4, f"mAP {precision:.3f} on {len(unseen)} scenes\nin grey what is there"),
        out / "boxes.png",
    )
    print(f"mAP {precision:.3f} on {len(unseen):,} scenes; {out / 'boxes.png'}")


if __name__ == "__main__":
    execute(main)
