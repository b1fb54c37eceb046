"""The mean image of a data set, `mean.npy` beside its records: the `mean_img` that MXNet's and Caffe's users know.

float64 [channels, height, width], RGB in 0..255, of the centre crops of all training images, as evaluation takes them.
`mean_image.json` beside it says of which: size, crop, how many images, and the digests of the records' manifest and of
mean.npy. The manifest itself stays as it is, since runs that have begun know their records by it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.config import InputRecipe, Recipe, Size, pair
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged
from imagenet_pipeline.records.manifest import DataSet, read_data_set
from imagenet_pipeline.training.pixel_moments import fitted_on

log = logging.getLogger("imagenet_pipeline")

FILE, CARD = "mean.npy", "mean_image.json"
_AGAIN = "make it again: imagenet-pipeline mean-image DIR --size SIZE"


@dataclass(frozen=True)
class MeanImage:
    """A mean image [channels, height, width] and its origin: how many images of `records`, cut by `crop_fraction`."""

    path: Path
    pixels: npt.NDArray[np.float64]
    images: int
    crop_fraction: float


def write_mean_image(folder: Path, size: Size, crop_fraction: float = 0.875) -> MeanImage:
    """Compute the mean image of a data set on this machine, of RGB images of `size`, and write it beside the records.

    Raises BadRecipe for an address in object storage, and as `read_data_set` and the loader do.
    """
    data = read_data_set(folder)
    if data.cache is not None:
        what, advice = "a mean image is written beside records on this machine alone", "copy the data set here"
        raise BadRecipe(what, where=folder, advice=advice)
    height, width = pair(size)
    shape = {"size": size} if isinstance(size, int) else {"height": height, "width": width}
    wanted = InputRecipe(crop_fraction=crop_fraction, transform="mean_image", transform_images=0, **shape)  # type: ignore[arg-type]
    moments = fitted_on(Recipe(network="", records=str(folder), input=wanted), data, (3, height, width))
    made = MeanImage(folder / FILE, moments.mean.reshape(3, height, width), moments.count, crop_fraction)
    content = io.BytesIO()
    np.lib.format.write_array(content, made.pixels, allow_pickle=False)  # type: ignore[no-untyped-call]
    files.write_whole(made.path, content.getvalue())
    card = {
        "size": [height, width], "crop_fraction": crop_fraction, "images": made.images,
        "records": data.digest, "sha256": files.sha256_of(made.path),
    }  # fmt: skip
    files.write_json(folder / CARD, card)
    return made


def stored_mean_image(data: DataSet, shape: tuple[int, ...], crop_fraction: float) -> MeanImage | None:
    """The mean image beside a data set's records, where there is one of these records, this shape and this crop.

    Raises Damaged where it is not as it was written.
    """
    path, card_path = data.folder / FILE, data.folder / CARD
    if not card_path.is_file():
        return None
    card = files.read_json(card_path)
    try:
        size, crop, images, records, digest = (
            card[key] for key in ("size", "crop_fraction", "images", "records", "sha256")
        )
        size, images = [int(side) for side in size], int(images)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("not the card of a mean image", where=card_path, advice=_AGAIN) from error
    if [3, *size] != [*shape] or crop != crop_fraction or records != data.digest:
        log.info("%s: the mean image of %s, crop %g, is not taken for %s, crop %g", path,
                 "x".join(map(str, size)), crop, "x".join(map(str, shape)), crop_fraction)  # fmt: skip
        return None
    return MeanImage(path, _read(path, digest, shape), images, crop_fraction)


def _read(path: Path, digest: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    with files.regular_file(path) as (stream, size):
        content = stream.read(size)
    if hashlib.sha256(content).hexdigest() != digest:
        raise Damaged("the mean image has changed since it was written", where=path, advice=_AGAIN)
    try:
        pixels = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Damaged(f"not a NumPy array ({error})", where=path, advice=_AGAIN) from error
    if pixels.shape != shape or pixels.dtype != np.float64 or not np.isfinite(pixels).all():
        expected = f"float64 {shape}, {8 * math.prod(shape):,} bytes"
        raise BadInput("not a mean image", where=path, expected=expected, found=f"{pixels.dtype} {pixels.shape}")
    return np.asarray(pixels)
