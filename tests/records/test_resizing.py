"""Photos squashed, letterboxed or resized by other filters, and what a data set keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.image import decode_rgb, encode_jpeg, encode_png, shrink
from imagenet_pipeline.records.manifest import Manifest
from imagenet_pipeline.records.prepare import LETTERBOX_GREY, Resizing, prepare
from imagenet_pipeline.records.reader import RecordSet

FILTERS = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
edges, modes = st.integers(1, 90), st.sampled_from(["shorter", "squash", "letterbox"])
filters = st.sampled_from(["area", *FILTERS])


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)


@given(edges, edges, edges, modes, filters)
def test_a_photo_gets_the_size_that_its_mode_says(height: int, width: int, side: int, mode: Any, name: Any) -> None:
    resizing = Resizing(side, mode, name)
    if not resizing.changes(height, width):
        smaller = min(height, width) <= side
        assert (mode == "shorter" and smaller) or (height, width) == (side, side)
        return
    shape = resizing.resized(noise(height, width)).shape[:2]
    if mode == "shorter":
        assert min(shape) == side
        assert abs(max(shape) - side * max(height, width) / min(height, width)) <= 0.5
    else:
        assert shape == (side, side)


@pytest.mark.parametrize("name", list(FILTERS))
def test_a_filter_is_opencvs(name: Any) -> None:
    photo = noise(50, 80)
    assert np.array_equal(
        Resizing(32, "squash", name).resized(photo), cv2.resize(photo, (32, 32), interpolation=FILTERS[name])
    )


def test_areas_are_averaged_where_sides_shrink_and_linear_where_they_grow() -> None:
    photo = noise(64, 96)
    means = photo.reshape(32, 2, 32, 3, 3).mean(axis=(1, 3))
    assert np.abs(Resizing(32, "squash").resized(photo).astype(float) - means).max() <= 0.5
    grown = cv2.resize(photo, (96, 96), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(Resizing(96, "squash").resized(photo), grown)
    assert np.array_equal(Resizing(32).resized(photo), shrink(photo, 32))


def test_a_letterboxed_photo_lies_in_the_middle_of_grey() -> None:
    made = Resizing(40, "letterbox").resized(np.full((20, 80, 3), 7, np.uint8))
    assert (made[15:25] == 7).all()
    assert (made[:15] == LETTERBOX_GREY).all()
    assert (made[25:] == LETTERBOX_GREY).all()


def test_a_square_photo_of_that_side_keeps_its_bytes_and_a_turned_one_is_turned_first() -> None:
    own = encode_jpeg(noise(32, 32), 90)
    assert prepare(own, Resizing(32, "letterbox"), 95, False).data == own
    prepared = prepare(encode_png(np.full((20, 80, 3), 7, np.uint8)), Resizing(32, "squash"), 95, False)
    assert decode_rgb(prepared.data).shape == (32, 32, 3)
    assert prepared.actions == ("png", "resized")


def test_a_data_set_says_how_it_was_resized_where_that_is_not_usual(
    small_plan: Any, tmp_path: Path, inline: Any
) -> None:
    options = BuildOptions(resize=24, resize_mode="letterbox", interpolation="cubic", workers=1)
    build(small_plan, tmp_path / "set", options, executor=inline)
    stored = Manifest.read(tmp_path / "set").options
    assert (stored["resize_mode"], stored["interpolation"]) == ("letterbox", "cubic")
    with RecordSet.open(tmp_path / "set", "train") as records:
        assert {decode_rgb(records.read(at).image).shape for at in range(len(records))} == {(24, 24, 3)}
    assert not {"resize_mode", "interpolation"} & {*BuildOptions(resize=24).stored}
    with pytest.raises(BadInput, match="another data set already"):
        build(small_plan, tmp_path / "set", BuildOptions(resize=24, workers=1), executor=inline)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resize_mode": "squsah"}, "no such resize_mode; expected shorter or squash or letterbox; .*mean squash"),
        ({"interpolation": "lanczos"}, "no such interpolation; expected area or nearest or linear or cubic"),
        ({"resize": 0, "resize_mode": "squash"}, "resize_mode has no effect with resize 0"),
        ({"pass_through": True, "interpolation": "cubic"}, "interpolation has no effect with pass_through"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises((BadInput, BadRecipe), match=words) as caught:
        BuildOptions(**options)
    assert "\n" not in str(caught.value)
