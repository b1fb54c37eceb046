"""The perceptual hash of a picture, by which it is found again where it is there twice, or nearly.

The hash is phash of the package ImageHash, 64 bits: the signs, about their median, of the lowest frequencies of the
grey picture at 32 x 32 pixels. Another size, other compression and small changes of colour leave it as it is or change
a few bits; a mirror image, another crop or a turn by more than a few degrees gives another hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

import numpy as np
from PIL import Image

from imagenet_pipeline.errors import BadRecipe, WorkerLost
from imagenet_pipeline.processes import available_processors, local_pool
from imagenet_pipeline.records.image import Rejected, decode_file, turn

Progress = Callable[[int, int], None]
DISTANCE, LARGEST_DISTANCE = 4, 10
"""Bits by which near duplicates may differ: by default, and at most, beyond which it takes hours and finds anything."""
_LEAST_EDGE = 64
"""Pixels that a larger photo keeps along its shorter edge for the hash, which sees 32."""
_FEW = 2000
"""Fewer pictures are hashed sooner than worker processes are started."""


def require_hash() -> Any:
    """The function phash of ImageHash. Raises BadRecipe where that is not installed."""
    try:
        from imagehash import phash
    except ImportError as error:
        advice = "pip install 'imagenet-pipeline[duplicates]'"
        raise BadRecipe(f"near duplicates need the package ImageHash ({error})", advice=advice) from error
    return phash


def perceptual_hash(data: bytes, upright: bool = False) -> int | None:
    """64 bits of an encoded image, `upright` as its EXIF tag says or as it lies; None where it cannot be read."""
    try:
        header, pixels = decode_file(data, least_edge=_LEAST_EDGE)
    except Rejected:
        return None
    if upright:
        pixels = turn(pixels, header.orientation)
    bits = np.packbits(require_hash()(Image.fromarray(pixels)).hash)
    return int.from_bytes(bits.tobytes(), "big")


def require_distance(distance: int) -> None:
    """Raise BadRecipe for a distance that is none, or without ImageHash."""
    require_hash()
    if not 0 <= distance <= LARGEST_DISTANCE:
        raise BadRecipe(
            "no distance of near duplicates", expected=f"0 to {LARGEST_DISTANCE} of 64 bits", found=distance
        )


def mapped(work: Callable[[Any], Any], parts: Sequence[Any], pictures: int, workers: int | None) -> Iterator[Any]:
    """Yield what comes of each part, in order, from several processes where that pays."""
    workers = min(workers or (available_processors() if pictures > _FEW else 1), len(parts))
    if workers <= 1:
        yield from map(work, parts)
        return
    with local_pool(workers) as pool:
        try:
            yield from pool.map(work, parts)
        except BrokenExecutor as error:
            advice = "run the same command again, with fewer workers if memory ran out"
            raise WorkerLost("a worker process died", advice=advice) from error
