"""Sizes of stored images, from their headers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.pictures.data import HEAD_BYTES, SPLIT_COLOURS, Sizes, bins_of, draw_sizes, read_sizes
from imagenet_pipeline.records.image import decode_rgb
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import MAGIC_BYTES, frame, pack, whole_frame_head


def test_the_sizes_are_those_of_the_decoded_images(data_set: Path) -> None:
    told: list[tuple[int, int]] = []
    sizes = read_sizes(data_set, lambda done, total: told.append((done, total)))
    for split, each in sizes.items():
        with RecordSet.open(data_set, split) as records:
            stored = [records.read(position).image for position in range(len(records))]
        decoded = [decode_rgb(image).shape for image in stored]
        assert each.heights.tolist() == [shape[0] for shape in decoded]
        assert each.widths.tolist() == [shape[1] for shape in decoded]
        assert each.bytes.tolist() == [len(image) for image in stored]
        assert each.unreadable == 0
    assert told[0] == (0, 30)
    assert told[-1][0] == 24


def jpeg(comment_bytes: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "JPEG", comment=b"x" * comment_bytes)
    return stream.getvalue()


@pytest.mark.parametrize("image", [jpeg(0), jpeg(HEAD_BYTES), b"", b"abc" + MAGIC_BYTES * 3, MAGIC_BYTES + b"x"])
@pytest.mark.parametrize("labels", [(1.0,), (1.0, 2.0, 3.0)])
def test_the_head_of_an_image_is_its_beginning(tmp_path: Path, image: bytes, labels: tuple[float, ...]) -> None:
    (tmp_path / "a.rec").write_bytes(b"".join(frame(pack(labels, number, image)) for number in range(2)))
    with RecordSet.open(tmp_path / "a.rec") as records:
        for position in range(2):
            head, size_bytes = records.image_head(position, 100)
            assert size_bytes == len(image)
            assert image.startswith(head)
            assert len(head) >= min(len(image), 100 - 48)


def test_nothing_is_told_of_a_frame_that_is_none() -> None:
    whole = frame(pack((1.0,), 0, b"image"))
    assert whole_frame_head(whole) == (32, 37)
    assert whole_frame_head(whole[:20]) is None
    assert whole_frame_head(b"x" * 40) is None
    assert whole_frame_head(whole[:8] + b"\xff" * 4 + whole[12:]) is None  # more labels than there is room for


def test_a_long_header_is_read_all_the_same(tmp_path: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[int] = []

    def short(self: RecordSet, position: int, limit_bytes: int) -> tuple[bytes, int]:
        image = self.read(position).image
        heads.append(limit_bytes)
        return image[:10], len(image)

    expected = read_sizes(data_set, lambda *_: None)["val"]
    monkeypatch.setattr(RecordSet, "image_head", short)
    found = read_sizes(data_set, lambda *_: None)["val"]
    assert found.widths.tolist() == expected.widths.tolist()
    assert set(heads) == {HEAD_BYTES}


@pytest.mark.parametrize("make", [lambda random: random.integers(20, 900, 50), lambda random: np.full(50, 256)])
def test_any_sizes_are_drawn(tmp_path: Path, make: Callable[[np.random.Generator], np.ndarray]) -> None:
    random = np.random.default_rng(0)
    sizes = {split: Sizes(make(random), make(random), make(random) * 50, 3) for split in ("train", "test")}
    draw_sizes(tmp_path, sizes, tmp_path / "sizes.png")
    assert cv2.imread(str(tmp_path / "sizes.png")).shape[1] > 1400


def test_splits_of_one_size_are_all_seen(tmp_path: Path) -> None:
    """Every panel, the key below left aside, has something in the colour of each."""
    same = np.full(50, 256)
    sizes = {split: Sizes(same, same, same * 50, 0) for split in SPLIT_COLOURS}
    draw_sizes(tmp_path, sizes, tmp_path / "sizes.png")
    pixels = cv2.cvtColor(cv2.imread(str(tmp_path / "sizes.png")), cv2.COLOR_BGR2HSV)
    for panel in (one for half in np.array_split(pixels[:-60], 2) for one in np.array_split(half, 2, axis=1)):
        for colour in SPLIT_COLOURS.values():
            paint = np.uint8([[[int(colour[place : place + 2], 16) for place in (5, 3, 1)]]])
            hue = int(cv2.cvtColor(paint, cv2.COLOR_BGR2HSV)[0, 0, 0])
            near = np.abs(panel[..., 0].astype(int) - hue) < 8
            assert np.count_nonzero(near & (panel[..., 1] > 40)) > 8


def test_without_an_image_there_is_nothing_to_draw(tmp_path: Path) -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(BadInput, match="no image whose header can be read"):
        draw_sizes(tmp_path, {"train": Sizes(none, none, none, 3)}, tmp_path / "sizes.png")


@pytest.mark.parametrize("images", [1, 2, 30, 1000, 50_000])
@pytest.mark.parametrize("spread", [0, 1, 7, 3000])
def test_bins_suit_the_number_of_images(images: int, spread: int) -> None:
    """All images are in them, few where there are few, and each of whole numbers holds equally many."""
    values = np.random.default_rng(0).integers(200, 201 + spread, images)
    for whole in (True, False):
        bins = bins_of(values, images, whole)
        assert np.histogram(values, bins)[0].sum() == images
        assert 1 <= len(bins) - 1 <= max(8, min(41, 3 + 2 * images ** (1 / 3)))
        assert np.allclose(np.diff(bins), bins[1] - bins[0])
    assert float(np.diff(bins_of(values, images, True))[0]).is_integer()
