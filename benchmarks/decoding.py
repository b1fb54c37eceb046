"""Processor time of decoding and shrinking photos in the ways there are, in one table.

    python benchmarks/decoding.py TAR [--photos 100] [--rounds 5] [--json]

TAR holds photos at their original size (imagenet_samples_300.tar of the shared data). Times are microseconds of
processor time a photo, the ways in turn, the best round; so a busy machine moves them little, and ratios less.

- stored: photos of 256 px at qualities 95, 90 and 85, and at 95 with Huffman tables of their own (the same pixels):
  bytes a photo, decoding whole, decoding the box of a random-resized crop.
- originals: random-resized crops of the photos as they are to 224 px: how many are averaged over areas, what that takes
  in OpenCV and compiled, how many are at least twice the input, where libjpeg could halve them.
- phone: photos enlarged to 12 and 48 megapixels, read for a prediction at 224 px: whole and reduced.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Augmentation
from imagenet_pipeline.loading.augment import COLUMNS, draw_choices, evaluation_transform, training_box
from imagenet_pipeline.loading.order import uniforms
from imagenet_pipeline.loading.reduced import average_into, resize_photo_into, upright_image
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import Box, LazyImage, average_areas, calm, decode_rgb, encode_jpeg, shrink

SIZE, CROP_FRACTION = 224, 0.875
LEAST_EDGE = 1024  # as predict's for that size and fraction
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tar", type=Path)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    calm()
    photos = read(arguments.tar, arguments.photos)
    rows = [
        *stored(photos, arguments.rounds),
        *originals(photos, arguments.rounds),
        *phone(photos[:: max(1, len(photos) // 5)][:5], arguments.rounds),
    ]
    for row in rows if not arguments.json else ():
        sys.stdout.write("  ".join(f"{name} {value}" for name, value in row.items()) + "\n")
    if arguments.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")


def read(archive: Path, count: int) -> list[bytes]:
    """The first photos of the archive that are plain colour JPEGs."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isfile() and member.name.lower().endswith((".jpg", ".jpeg"))]
        return [tar.extractfile(member).read() for member in members[:count]]  # type: ignore[union-attr]


def microseconds(ways: dict[str, Callable[[int], object]], count: int, rounds: int) -> dict[str, int]:
    """The processor time of each way, called with 0 to count - 1, a call; the best round; the ways take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            for index in range(count):
                way(index)
            best[name] = min(best[name], (time.process_time() - start) / max(1, count) * 1e6)
    return {name: round(value) for name, value in best.items()}


def boxes_of(images: Sequence[Pixels]) -> list[Box]:
    """A random-resized crop of each image, drawn as the loader does."""
    recipe = Augmentation()
    draws = draw_choices(recipe, uniforms(7, 0, range(len(images)), COLUMNS))
    return [
        training_box(recipe, draw, image.shape[0], image.shape[1], SIZE)
        for draw, image in zip(draws, images, strict=True)
    ]


def stored(photos: Sequence[bytes], rounds: int) -> list[Row]:
    """Photos as a build stores them at 256 px, whole and the box of a crop."""
    small = [shrink(pixels, 256) if min(pixels.shape[:2]) > 256 else pixels for pixels in map(decode_rgb, photos)]
    boxes = boxes_of(small)
    kinds = {f"quality {quality}": [encode_jpeg(pixels, quality) for pixels in small] for quality in (95, 90, 85)}
    kinds["quality 95, its own Huffman tables"] = [with_own_tables(pixels) for pixels in small]
    ways: dict[str, Callable[[int], object]] = {}
    for name, data in kinds.items():
        ways[f"{name}, whole"] = lambda index, data=data: decode_rgb(data[index])
        ways[f"{name}, crop"] = lambda index, data=data: LazyImage(data[index]).crop(boxes[index])
    ways["encoding"] = lambda index: encode_jpeg(small[index], 95)
    ways["encoding, its own Huffman tables"] = lambda index: with_own_tables(small[index])
    times = microseconds(ways, len(small), rounds)
    rows = [{"way": name, "us": value} for name, value in times.items()]
    for row in rows:
        if row["way"].rpartition(", ")[0] in kinds:
            data = kinds[row["way"].rpartition(", ")[0]]
            row["bytes"] = round(sum(map(len, data)) / len(data))
    return rows


def with_own_tables(pixels: Pixels) -> bytes:
    """The JPEG of `encode_jpeg` at quality 95, with Huffman tables made for it."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)[1])


def originals(photos: Sequence[bytes], rounds: int) -> list[Row]:
    """Random-resized crops of photos as they are: those averaged over areas, and those that libjpeg could halve."""
    images = [decode_rgb(photo) for photo in photos]
    boxes = boxes_of(images)
    averaged = [index for index, box in enumerate(boxes) if is_averaged(box)]
    halved = [index for index, box in enumerate(boxes) if min(box.width, box.height) >= 2 * SIZE]
    out = np.empty((SIZE, SIZE, 3), np.uint8)

    def part(index: int) -> Pixels:
        box = boxes[averaged[index]]
        return images[averaged[index]][box.top : box.top + box.height, box.left : box.left + box.width]

    def exact(index: int) -> Pixels:
        return average_areas(LazyImage(photos[halved[index]]).crop(boxes[halved[index]]), out).copy()

    def half(index: int) -> Pixels:
        return of_half(photos[halved[index]], boxes[halved[index]], out).copy()

    two_steps = {"in two steps": lambda index: in_two_steps(part(index), out)}
    shrinking: dict[str, Callable[[int], object]] = {
        "INTER_AREA": lambda index: cv2.resize(part(index), (SIZE, SIZE), dst=out, interpolation=cv2.INTER_AREA),
        "compiled": lambda index: average_areas(part(index), out),
        **two_steps,
    }
    rows: list[Row] = [
        {"way": f"averaged, {name}", "us": value, "of": len(averaged)}
        for name, value in microseconds(shrinking, len(averaged), rounds).items()
    ]
    steps = [
        np.abs(in_two_steps(part(i), out).astype(int) - average_areas(part(i), out.copy()))
        for i in range(len(averaged))
    ]
    rows[-1] |= differences(steps)
    decoding = {"twice the input, box decoded": exact, "twice the input, whole decoded at half": half}
    rows += [
        {"way": name, "us": value, "of": len(halved)}
        for name, value in microseconds(decoding, len(halved), rounds).items()
    ]
    if halved:
        rows[-1] |= differences([np.abs(exact(i).astype(int) - half(i)) for i in range(len(halved))])
    return rows


def is_averaged(box: Box) -> bool:
    """True where `resize_into` averages over areas."""
    return box.height > SIZE < box.width and box.height * box.width >= (4 / 3) ** 2 * SIZE * SIZE


def in_two_steps(part: Pixels, out: Pixels) -> Pixels:
    """Interpolated linearly to twice the output, then averaged by two: OpenCV has both in vector instructions."""
    twice = cv2.resize(part, (2 * SIZE, 2 * SIZE), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(twice, (SIZE, SIZE), dst=out, interpolation=cv2.INTER_AREA))


def of_half(photo: bytes, box: Box, out: Pixels) -> Pixels:
    """The crop out of a photo decoded to half of its sides."""
    left, top, width, height = (edge / 2 for edge in box)
    pixels = decode_rgb(photo, None, 2)
    part = pixels[int(top) : math.ceil(top + height), int(left) : math.ceil(left + width)]
    average_into(part, (left % 1, top % 1, width, height), out)
    return out


def differences(found: Sequence[npt.NDArray[np.int_]]) -> Row:
    """The largest and the mean difference, in grey levels."""
    return {
        "most": int(max(one.max() for one in found)),
        "mean": round(float(np.mean([one.mean() for one in found])), 3),
    }


def phone(photos: Sequence[bytes], rounds: int) -> list[Row]:
    """Photos enlarged to a phone's, with a sensor's noise, read for a prediction: whole and reduced."""
    rows: list[Row] = []
    for height, width in ((3024, 4032), (6048, 8064)):
        large = [enlarged(decode_rgb(photo), height, width) for photo in photos]
        ways: dict[str, Callable[[int], object]] = {
            "whole": lambda index, large=large: view(upright_image(large[index])),
            "reduced": lambda index, large=large: view(upright_image(large[index], None, LEAST_EDGE)),
        }
        times = microseconds(ways, len(large), rounds)
        rows += [{"way": f"{height * width // 10**6} megapixels, {name}", "us": value} for name, value in times.items()]
        rows[-1] |= differences([np.abs(ways["whole"](i).astype(int) - ways["reduced"](i)) for i in range(len(large))])  # type: ignore[attr-defined, operator]
    return rows


def enlarged(pixels: Pixels, height: int, width: int) -> bytes:
    """A large photo, its noise of 4 grey levels, at quality 92."""
    large = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = np.empty(large.shape, np.int16)
    cv2.randn(noise, (0, 0, 0), (4, 4, 4))
    return encode_jpeg(np.clip(large + noise, 0, 255).astype(np.uint8), 92)


def view(image: LazyImage) -> Pixels:
    """The crop that a network sees."""
    out = np.empty((1, SIZE, SIZE, 3), np.uint8)
    evaluation_transform(image, CROP_FRACTION, out, resize_photo_into)
    return out


if __name__ == "__main__":
    main()
