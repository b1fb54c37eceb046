"""Predictions: those of the pictures one by one, in order, whatever lies between; and never many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagenet_pipeline.evaluation import predict as module
from imagenet_pipeline.evaluation.evaluate import Crops
from imagenet_pipeline.evaluation.predict import (
    BATCHES_AHEAD,
    Classifier,
    best_choices,
    open_classifier,
    predict,
    read_picture,
)
from imagenet_pipeline.loading.reduced import upright_image
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image import Rejected

FRAMES = 12


@pytest.fixture(scope="module")
def classifier(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """In float64, five images at once."""
    return open_classifier(make_run(tmp_path_factory.mktemp("predict") / "run"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve pictures of twelve sizes, and among them two that are none."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    paths = [folder / f"{number}.png" for number in range(FRAMES)]
    for number, path in enumerate(paths):
        pixels = random.integers(0, 120, (30 + 7 * number, 90 - 4 * number, 3), np.uint8) + 10 * number
        cv2.imwrite(str(path), pixels.astype(np.uint8))
    (folder / "text.jpg").write_text("<svg/>")
    paths.insert(3, folder / "text.jpg")
    paths.insert(8, folder / "gone.jpg")
    return paths


@pytest.mark.parametrize(("count", "crops"), [(1, 1), (4, 1), (6, 1), (14, 1), (5, 2), (14, 10)])
def test_they_are_those_of_each_picture_alone(
    classifier: Classifier, photos: list[Path], count: int, crops: Crops
) -> None:
    found = list(predict(classifier, photos[:count], top=6, crops=crops))
    assert [one.path for one in found] == photos[:count]
    for one in found:
        if one.path.suffix == ".jpg":
            assert one.reason in ("text (HTML or SVG), not an image", "file is missing")
            assert one.top == ()
            continue
        alone = classifier.probabilities([upright_image(one.path.read_bytes()).whole()], crops)[0]
        told = {choice.class_id: choice.probability for choice in one.top}
        np.testing.assert_allclose([told[name] for name in classifier.classes.ids], alone, rtol=1e-9)
        assert [choice.probability for choice in one.top] == sorted(told.values(), reverse=True)


@given(
    probabilities=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5]), min_size=1, max_size=8),
    top=st.integers(1, 10),
)
def test_the_best_come_first_and_equal_ones_in_the_order_of_classes(probabilities: list[float], top: int) -> None:
    ids = tuple(f"c{label}" for label in range(len(probabilities)))
    chosen = best_choices(np.array(probabilities), ClassTable("folder", ids, ids), top)
    by_hand = sorted(range(len(ids)), key=lambda label: (-probabilities[label], label))[:top]
    assert [one.class_id for one in chosen] == [ids[label] for label in by_hand]


def test_pictures_are_turned_as_their_tag_says(classifier: Classifier, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    turned, upright = predict(classifier, [tmp_path / "turned.png", tmp_path / "upright.png"])
    assert turned.top == upright.top


def test_no_more_than_the_batches_ahead_are_read(
    classifier: Classifier, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def counted(path: Path, damaged: Callable[[str], None], least_edge: int) -> object:
        reads.append(path)
        return read_picture(path, damaged, least_edge)

    monkeypatch.setattr(module, "read_picture", counted)
    many = photos * 8
    together = classifier.images_together()
    found = predict(classifier, many)
    for done, _ in enumerate(found, 1):
        assert len(reads) <= (-(-done // together) + 1 + BATCHES_AHEAD) * together
    assert len(reads) == done == len(many)


def test_threads_end_with_it(classifier: Classifier, photos: list[Path]) -> None:
    found = predict(classifier, photos * 8)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert not [one for one in threading.enumerate() if one.name.startswith("pictures")]


def test_odd_pictures_are_seen_or_told_of(
    classifier: Classifier, unpacked: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = unpacked("odd_images_shared.tar.xz")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = list(predict(classifier, paths))
    assert [one.path for one in found] == paths
    reasons = {one.path.name: one.reason for one in found if one.reason}
    assert "truncated" in reasons["truncated_jpeg.jpg"]
    assert "pixels" in reasons["decompression_bomb.gif"]
    assert "n02105855_2933.JPEG" not in reasons
    [garbled] = [path for path in paths if path.name == "hopper_bad_exif.jpg"]
    told = f"{garbled}: read, but damaged: Corrupt JPEG data: 1214 extraneous bytes before marker 0xd0"
    assert told in caplog.messages
    assert not [line for line in caplog.messages if "hopper.jpg" in line or "truncated_jpeg" in line]
    for one in found:
        assert bool(one.reason) != bool(one.top)
        if one.reason:
            with pytest.raises(Rejected):
                read_picture(one.path)
