"""Photos that lost part of their picture and kept their end marker are named, and no good one is.

IMAGENET_PIPELINE_LONG=1 looks at all of the shared photos.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.records.image import Rejected
from imagenet_pipeline.records.prepare import prepare

LONG = bool(os.environ.get("IMAGENET_PIPELINE_LONG"))
DAMAGED_PHOTOS = 38 if LONG else 6
GOOD_PHOTOS = {"imagenet_samples_300.tar": 300, **({"imagenette224_6000.tar": 6000} if LONG else {})}
END = b"\xff\xd9"


def damaged_forms(data: bytes, chance: np.random.Generator) -> dict[str, bytes]:
    """Five ways to lose part of the picture and keep both ends of the file."""
    half = len(data) // 2
    return {
        "second_half_zero": data[:half] + bytes(len(data) - half - 2) + END,
        "cut_with_end_marker": data[:half] + END,
        "random_512": data[:half] + chance.bytes(512) + data[half + 512 :],
        "missing_4k": data[: half - 2048] + data[half + 2048 :],
        "zeroed_4k": data[: half - 2048] + bytes(4096) + data[half + 2048 :],
    }


def reason(data: bytes, pass_through: bool = False) -> str:
    """Why an image is refused, empty where it is not."""
    try:
        prepare(data, 256, 95, pass_through)
    except Rejected as error:
        return str(error)
    return ""


def photos(folder: Path, at_least_bytes: int = 0) -> list[Path]:
    return sorted(path for path in folder.rglob("*.JPEG") if path.stat().st_size >= at_least_bytes)


@pytest.mark.parametrize("pass_through", [False, True])
def test_every_damaged_form_of_a_real_photo_is_refused(unpacked: Callable[[str], Path], pass_through: bool) -> None:
    found = photos(unpacked("imagenet_samples_300.tar"), at_least_bytes=16_384)
    chance = np.random.default_rng(0)
    taken = []
    for path in found[:: len(found) // DAMAGED_PHOTOS][:DAMAGED_PHOTOS]:
        for form, data in damaged_forms(path.read_bytes(), chance).items():
            if not (said := reason(data, pass_through)).startswith(("damaged: ", "cannot be decoded")):
                taken.append((path.name, form, said))
    assert taken == []


@pytest.mark.parametrize("archive", GOOD_PHOTOS)
def test_no_good_photo_is_refused(unpacked: Callable[[str], Path], archive: str) -> None:
    found = photos(unpacked(archive))
    assert len(found) == GOOD_PHOTOS[archive]
    refused = {path.name: said for path in found if (said := reason(path.read_bytes()))}
    assert refused == {}
