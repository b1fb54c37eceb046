"""FFCV's Loader on a .beton with the very JPEG bytes of the records, written here where it is missing."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import serve
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image


class Photos:
    """Place of each JPEG, as FFCV's writer asks for it: (file, start, stop), and a label."""

    def __init__(self, records: Path) -> None:
        self._records = records
        self._places = serve.extents(records)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> tuple[tuple[Path, int, int], int]:
        return (self._records, *self._places[number]), number


def encode(field: Any, destination: Any, place: tuple[Path, int, int], malloc: Any) -> None:
    """Store a JPEG as it is; FFCV's own encodes pixels anew."""
    records, start, stop = place
    with records.open("rb") as file:
        file.seek(start)
        jpeg = file.read(stop - start)
    with Image.open(io.BytesIO(jpeg)) as image:
        destination["width"], destination["height"] = image.size
    destination["mode"] = IMAGE_MODES["jpg"]
    destination["data_ptr"], storage = malloc(len(jpeg))
    storage[:] = np.frombuffer(jpeg, np.uint8)


def main() -> None:
    path, threads, _ = serve.arguments()
    beton = path.with_suffix(".beton")
    if not beton.exists():
        part = beton.with_suffix(".part")
        RGBImageField.encode = encode
        fields = {"image": RGBImageField("jpg"), "label": IntField()}
        DatasetWriter(str(part), fields, num_workers=2).from_indexed_dataset(Photos(path))
        os.replace(part, beton)
    crop = RandomResizedCropRGBImageDecoder((serve.SIZE, serve.SIZE), serve.AREA, serve.ASPECT)
    loader = Loader(
        str(beton),
        batch_size=serve.BATCH_SIZE,
        num_workers=threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": [crop, RandomHorizontalFlip(), ToTensor()], "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )

    def epoch() -> Iterator[Any]:
        for images, _ in loader:
            yield images.numpy()

    serve.serve(epoch)


if __name__ == "__main__":
    main()
