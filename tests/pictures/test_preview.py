"""One photo many times over: the very images that training would get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.config import Augmentation
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.loading.augment import ImageDraws, training_draws, training_transform
from imagenet_pipeline.loading.mixup import mix_pair
from imagenet_pipeline.pictures.augmentation import draws_of
from imagenet_pipeline.records.image import LazyImage, decode_rgb, encode_jpeg
from imagenet_pipeline.records.recordio import ImageRecord

SIZE, SEED = 24, 5


class Memory:
    """Records of smooth photos, the label of each its number."""

    name = "memory"

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(1)
        self._images = [encode_jpeg(random.integers(0, 255, (40, 50, 3), np.uint8), 90) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, position: int) -> ImageRecord:
        return ImageRecord((float(position),), position, self._images[position], True)

    def location(self, position: int) -> tuple[Path, int, int]:
        return Path("memory.rec"), position, 0


def transformed(records: Memory, record: int, augmentation: Augmentation, plan: ImageDraws) -> np.ndarray:
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    image = decode_rgb(records.read(record).image)
    training_transform(LazyImage.of(image), augmentation, plan.draw, out, plan.changes, plan.erasure)
    return out


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(crop="random", pad=4, rotation_degrees=20, contrast=0.5),
        Augmentation(policy="rand_augment", erasing=0.5),
    ],
)
def test_draws_are_those_of_the_first_positions(augmentation: Augmentation) -> None:
    records = Memory(3)
    shown = draws_of(records, 1, augmentation, SIZE, 11, SEED, classes=3)
    plans = training_draws(augmentation, SEED, 0, range(11), SIZE)
    assert [one.shares for one in shown] == [((1, 1.0),)] * 11
    for one, plan in zip(shown, plans, strict=True):
        np.testing.assert_array_equal(one.image, transformed(records, 1, augmentation, plan))
    assert len({one.image.tobytes() for one in shown}) == 11


@pytest.mark.parametrize("augmentation", [Augmentation(mixup=0.5), Augmentation(cutmix=1.0, mixup=0.2)])
def test_mixtures_are_with_the_records_that_follow(augmentation: Augmentation) -> None:
    records, draws = Memory(4), 7
    shown = draws_of(records, 2, augmentation, SIZE, draws, SEED, classes=4)
    plans = training_draws(augmentation, SEED, 0, range(2 * draws), SIZE)
    for number, one in enumerate(shown):
        partner = [3, 0, 1][number % 3]
        own, other = plans[2 * number], plans[2 * number + 1]
        first, second = transformed(records, 2, augmentation, own), transformed(records, partner, augmentation, other)
        assert own.mix is not None
        assert other.mix is not None
        mix_pair(first, second, own.mix, other.mix)
        np.testing.assert_array_equal(one.image, first)
        assert dict(one.shares).get(2, 0.0) == pytest.approx(own.mix.own, abs=1e-6)
        assert sum(share for _, share in one.shares) == pytest.approx(1)
        assert {label for label, _ in one.shares} <= {2, partner}


def test_mistakes() -> None:
    with pytest.raises(BadInput, match=r"memory: no such record; expected 0\.\.2; found 3"):
        draws_of(Memory(3), 3, Augmentation(), SIZE, 1, SEED, 3)
    with pytest.raises(BadInput, match="no second record"):
        draws_of(Memory(1), 0, Augmentation(mixup=1.0), SIZE, 1, SEED, 1)
