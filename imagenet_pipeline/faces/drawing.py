"""Boxes, emotions and probability bars over a picture, legible at any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from imagenet_pipeline.drawing import lettering
from imagenet_pipeline.evaluation.predict import Choice
from imagenet_pipeline.faces.emotions import Face
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import Box, enlarge

BOX_COLOUR = (0, 229, 160)
"""The colour of every face's box, and of nothing else."""
SMALL_PICTURE_PIXELS = 240
"""Shorter edge below which a picture is drawn enlarged, so that letters do not cover it."""
ENLARGED_PIXELS = 4000
"""Longest edge to which that goes."""
_BAR_COLOUR = (0, 148, 122)
_BACKGROUND = (24, 28, 34)
_INK = (255, 255, 255)
_SMALLEST_LETTERS = 12
_LETTERS_IN_HEIGHT = 36


def draw_faces(image: Pixels, faces: Sequence[Face], letters: int = 0, panels: bool = True) -> Pixels:
    """A copy of an RGB image [H, W, 3] with a box around each face and its emotion on a bar of its probability.

    With `panels` all its emotions are listed beside a face where there is room that covers no other. `letters` is their
    size in pixels, 0 for a 36th of the shorter edge, 12 or more.
    """
    height, width = image.shape[:2]
    letters = letters or max(_SMALLEST_LETTERS, min(height, width) // _LETTERS_IN_HEIGHT)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    taken = [face.box for face in faces]
    for face in faces:
        _outline(draw, face.box, max(2, letters // 6))
    for face in faces:
        label = _label_box(face, letters, width, height, taken)
        taken.append(label)
        _row(draw, label, face.best, letters)
    for face in faces if panels else ():
        panel = _panel_box(face, letters, width, height, taken)
        if panel:
            taken.append(panel)
            _panel(draw, panel, face.choices, letters)
    return np.asarray(picture)


def draw_picture(image: Pixels, faces: Sequence[Face]) -> Pixels:
    """Draw faces as `draw_faces` does; a small picture is enlarged first, by a whole factor."""
    shorter, longer = sorted(image.shape[:2])
    times = min(-(-SMALL_PICTURE_PIXELS // shorter), ENLARGED_PIXELS // longer)
    if times <= 1:
        return draw_faces(image, faces)
    larger = [Face(Box(*(times * value for value in face.box)), face.choices) for face in faces]
    return draw_faces(enlarge(image, times), larger)


def _outline(draw: ImageDraw.ImageDraw, box: Box, thickness: int) -> None:
    corner = box.left + box.width - 1, box.top + box.height - 1
    draw.rectangle((box.left, box.top, *corner), outline=BOX_COLOUR, width=thickness)


def _label_box(face: Face, letters: int, width: int, height: int, taken: Sequence[Box]) -> Box:
    """The box of a label: above the face, or below where another is in the way, kept inside the picture."""
    across, tall = max(face.box.width, _row_width([face.best], letters)), round(1.7 * letters)
    left = max(0, min(face.box.left, width - across))
    below = min(face.box.top + face.box.height, height - tall)
    above = Box(left, max(0, face.box.top - tall), across, tall)
    free = [box for box in (above, Box(left, below, across, tall)) if not _meets(box, taken)]
    return free[0] if free else above


def _panel_box(face: Face, letters: int, width: int, height: int, taken: Sequence[Box]) -> Box | None:
    """The box of a panel: right or left of the face, inside the picture, over nothing else; None without room."""
    across, tall = _row_width(face.choices, letters), round(1.7 * letters) * len(face.choices)
    top = max(0, min(face.box.top, height - tall))
    gap = letters // 2
    for left in (face.box.left + face.box.width + gap, face.box.left - across - gap):
        box = Box(left, top, across, tall)
        if 0 <= left <= width - across and tall <= height and not _meets(box, taken):
            return box
    return None


def _panel(draw: ImageDraw.ImageDraw, box: Box, choices: Sequence[Choice], letters: int) -> None:
    tall = box.height // len(choices)
    for number, choice in enumerate(choices):
        _row(draw, Box(box.left, box.top + number * tall, box.width, tall), choice, letters)


def _row(draw: ImageDraw.ImageDraw, box: Box, choice: Choice, letters: int) -> None:
    """A name on the left and percent on the right, over a bar that fills its probability's share of the row."""
    left, top, right, bottom = box.left, box.top, box.left + box.width, box.top + box.height
    draw.rectangle((left, top, right - 1, bottom - 1), fill=_BACKGROUND)
    filled = round(box.width * choice.probability)
    if filled:
        draw.rectangle((left, top, left + filled - 1, bottom - 1), fill=_BAR_COLOUR)
    middle, edge = (top + bottom) // 2, letters // 2
    name, font = _written(choice, letters)
    draw.text((left + edge, middle), name, font=font, fill=_INK, anchor="lm")
    percent, font = lettering(f"{100 * choice.probability:.0f} %", letters)
    draw.text((right - edge, middle), percent, font=font, fill=_INK, anchor="rm")


def _row_width(choices: Sequence[Choice], letters: int) -> int:
    names = [_written(choice, letters) for choice in choices]
    percent, font = lettering("100 %", letters)
    return round(max(font.getlength(name) for name, font in names) + font.getlength(percent) + 2 * letters)


def _written(choice: Choice, letters: int) -> tuple[str, FreeTypeFont]:
    return lettering(choice.name, letters)


def _meets(box: Box, taken: Sequence[Box]) -> bool:
    return any(
        box.left < other.left + other.width
        and other.left < box.left + box.width
        and box.top < other.top + other.height
        and other.top < box.top + box.height
        for other in taken
    )
