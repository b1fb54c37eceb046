"""Boxes and bars: one for each face, as long as its probability, at every size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from imagenet_pipeline.evaluation.predict import Choice
from imagenet_pipeline.faces.drawing import BOX_COLOUR, ENLARGED_PIXELS, SMALL_PICTURE_PIXELS, draw_faces, draw_picture
from imagenet_pipeline.faces.emotions import Face
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import Box


def face(left: int, top: int, side: int, probability: float = 0.75, name: str = "happy") -> Face:
    others = tuple(Choice(str(n), f"class {n}", (1 - probability) / 6) for n in range(6))
    return Face(Box(left, top, side, side), (Choice(name, name, probability), *others))


def boxes_drawn(pixels: Pixels) -> list[tuple[int, int, int, int]]:
    mask = (pixels == BOX_COLOUR).all(axis=2).astype(np.uint8)
    count, _, figures, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return sorted((int(x), int(y), int(w), int(h)) for x, y, w, h, _ in figures[1:count])


@pytest.mark.parametrize(("width", "height"), [(320, 240), (640, 480), (1080, 1920), (2600, 1950)])
@pytest.mark.parametrize("across", [0, 1, 2, 3])
def test_every_face_has_its_box_and_no_other_is_there(width: int, height: int, across: int) -> None:
    side = width // (2 * max(across, 1) + 1)
    faces = [face(side * (2 * n + 1), height // 3, min(side, height // 2)) for n in range(across)]
    drawn = draw_faces(np.full((height, width, 3), 90, np.uint8), faces)
    assert boxes_drawn(drawn) == sorted(one.box for one in faces)


def test_the_picture_itself_is_left_alone() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    before = picture.copy()
    assert not np.array_equal(draw_faces(picture, [face(50, 50, 80)]), picture)
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(draw_faces(picture, []), picture)


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 0.99, 1.0])
def test_the_bar_fills_its_probability_of_the_label(probability: float) -> None:
    drawn = draw_faces(np.full((400, 600, 3), 90, np.uint8), [face(200, 150, 150, probability)], panels=False)
    line = drawn[148, 200:350]  # below the letters of the label, which is as wide as the face and sits on its box
    filled = (line == line[0]).all(axis=1).sum() if probability else 0
    assert filled == round(150 * probability)
    assert (drawn[148, :200] == 90).all()
    assert (drawn[148, 350:] == 90).all()


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (48, 48), (30, 2000), (2000, 30)])
@pytest.mark.parametrize("corner", [(0, 0), (1, 1)])
def test_faces_at_the_very_edge_of_pictures_of_any_size_can_be_drawn(
    size: tuple[int, int], corner: tuple[int, int]
) -> None:
    height, width = size
    side = min(size)
    box = face((width - side) * corner[0], (height - side) * corner[1], side)
    assert draw_faces(np.zeros((height, width, 3), np.uint8), [box, box]).shape == (height, width, 3)


def test_a_small_picture_is_enlarged_with_its_boxes() -> None:
    drawn = draw_picture(np.full((100, 150, 3), 90, np.uint8), [face(60, 50, 40)])
    assert drawn.shape == (300, 450, 3)
    assert boxes_drawn(drawn) == [(180, 150, 120, 120)]
    large = np.full((SMALL_PICTURE_PIXELS, 300, 3), 90, np.uint8)
    assert draw_picture(large, []).shape == large.shape


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((1, 16384), (1, 16384)),
        ((10, 3000), (10, 3000)),
        ((400, 1), (4000, 10)),
        ((10, 1999), (20, 3998)),
        ((48, 48), (240, 240)),
    ],
)
def test_a_thin_picture_is_not_enlarged_beyond_a_screen(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert max(drawn) <= max(ENLARGED_PIXELS, *size)
    assert draw_picture(np.zeros((*size, 3), np.uint8), []).shape == (*drawn, 3)


@pytest.mark.parametrize("name", ["<b>&amp;", "犬", "\x1b[31m", "a" * 300, "", "glücklich"])
def test_odd_names_can_be_drawn(name: str) -> None:
    drawn = draw_faces(np.full((300, 400, 3), 90, np.uint8), [face(100, 100, 90, name=name)])
    assert len(boxes_drawn(drawn)) == 1
