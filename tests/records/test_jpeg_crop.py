"""A box decoded alone has the pixels that the whole photo has there, whatever the photo; hostile bytes give those or none."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from imagenet_pipeline.records.image import Box, LazyImage, decode_rgb

jpeg_crop = pytest.importorskip("imagenet_pipeline.records.jpeg_crop", reason="not compiled on this machine")
Pixels = NDArray[np.uint8]


def by_pillow(**options: object) -> Callable[[Pixels], bytes]:
    def encode(pixels: Pixels, mode: str = str(options.pop("mode", "RGB"))) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **{"quality": 95, **options})
        return buffer.getvalue()

    return encode


def by_simplejpeg(subsampling: str) -> Callable[[Pixels], bytes]:
    return lambda pixels: bytes(simplejpeg.encode_jpeg(pixels, 90, "RGB", subsampling))


def with_restarts(pixels: Pixels) -> bytes:
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80, cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1])


def as_if_red_green_blue(pixels: Pixels) -> bytes:
    """Without JFIF and with component ids that say RGB, as some cameras and Adobe write it."""
    data = bytearray(by_pillow(subsampling=0)(pixels))
    at = data.index(b"\xff\xe0")
    del data[at : at + 18]
    frame, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
    for number, name in enumerate(b"RGB"):
        data[frame + 3 * number] = data[scan + 2 * number] = name
    return bytes(data)


def grey_in_fours(pixels: Pixels) -> bytes:
    """Grey that names sampling factors of 2 x 2, which mean nothing."""
    data = bytearray(by_pillow(mode="L")(pixels))
    data[data.index(b"\xff\xc0") + 11] = 0x22
    return bytes(data)


DECODED_ALONE = {
    **{form: by_simplejpeg(form) for form in ("444", "422", "420", "440", "411")},
    "grey": by_pillow(mode="L"),
    "restarts": with_restarts,
    "own Huffman tables": by_pillow(optimize=True),
    "red, green and blue": as_if_red_green_blue,
    "quality 30": by_pillow(quality=30),
    "profile": by_pillow(icc_profile=bytes(30_000), exif=b"Exif\0\0" + bytes(900)),
}
DECODED_WHOLE = {
    "progressive": by_pillow(progressive=True),
    "progressive 444": by_pillow(progressive=True, subsampling=0),
    "grey of 2 x 2": grey_in_fours,
    "CMYK": by_pillow(mode="CMYK"),
}
KINDS = {**DECODED_ALONE, **DECODED_WHOLE}


def noise(height: int, width: int, seed: int = 5) -> Pixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def alone(data: bytes, box: Box) -> Pixels | None:
    out = np.full((box.height, box.width, 3), 77, np.uint8)
    return out if jpeg_crop.decode(data, *box, out) else None


def inside(whole: Pixels, box: Box) -> Pixels:
    return whole[box.top : box.top + box.height, box.left : box.left + box.width]


def spans(length: int) -> Iterator[tuple[int, int]]:
    return ((start, size) for start in range(length) for size in range(1, length - start + 1))


def random_box(numbers: np.random.Generator, height: int, width: int) -> Box:
    box_width, box_height = int(numbers.integers(1, width + 1)), int(numbers.integers(1, height + 1))
    left, top = int(numbers.integers(0, width - box_width + 1)), int(numbers.integers(0, height - box_height + 1))
    return Box(left, top, box_width, box_height)


@pytest.mark.parametrize("kind", DECODED_ALONE)
@pytest.mark.parametrize(("height", "width"), [(37, 50), (48, 33)])
def test_every_span_of_columns_and_of_rows_is_that_of_the_whole(kind: str, height: int, width: int) -> None:
    data = DECODED_ALONE[kind](noise(height, width))
    whole = decode_rgb(data)
    boxes = [Box(left, 9, size, 20) for left, size in spans(width)]
    boxes += [Box(11, top, 15, size) for top, size in spans(height)]
    for box in boxes:
        part = alone(data, box)
        assert part is not None, box
        assert np.array_equal(part, inside(whole, box)), box


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_asked_for_boxes_gives_those_of_the_whole(kind: str) -> None:
    numbers = np.random.default_rng(1)
    data = KINDS[kind](noise(150, 203))
    whole = decode_rgb(data)
    for _ in range(40):
        image = LazyImage(memoryview(data))
        for _ in range(2):
            box = random_box(numbers, 150, 203)
            assert np.array_equal(image.crop(box), inside(whole, box)), box
