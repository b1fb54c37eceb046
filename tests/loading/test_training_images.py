from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.config import Augmentation
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.augment import COLUMNS, SECOND_COLUMNS, draw_choices, training_box, training_draws
from imagenet_pipeline.loading.loader import Batch, Loader
from imagenet_pipeline.loading.mixup import MIXING_COLUMNS, mixtures
from imagenet_pipeline.loading.order import SECOND_UNIFORMS, WHOLE, Share, uniforms
from imagenet_pipeline.loading.random_erasing import erased_box
from imagenet_pipeline.records.recordio import ImageRecord

CLASSES = 7
SIZE = 24
FEATURES = {
    "rand_augment": Augmentation(policy="rand_augment", policy_changes=3, policy_magnitude=15),
    "trivial_augment": Augmentation(policy="trivial_augment", pad=3, crop="random"),
    "auto_augment": Augmentation(policy="auto_augment", fill="nearest", rotation_degrees=20),
    "aug_mix": Augmentation(policy="aug_mix", policy_magnitude=12, fill="nearest"),
    "three_augment": Augmentation(policy="three_augment", flip_vertical=0.5, hue=0.2),
    "erasing": Augmentation(erasing=0.5),
    "mixup": Augmentation(mixup=0.4),
    "cutmix": Augmentation(cutmix=1.0),
    "all": Augmentation(policy="trivial_augment", contrast=0.3, rotation_degrees=9, erasing=0.3, mixup=0.2, cutmix=1.0),
}
# Taken before the first of the features above was written. Windows are copied, not resampled: the hash holds on
# every machine.
GOLDEN_BOXES = "128e66fa8099a1dc"
GOLDEN_CHOICES = "31a6c6e569d821bc"
GOLDEN_WINDOWS = "815e87e207b8b739"
# Taken with the first of what came later.
GOLDEN_LATER = "f197626b8ff2ac9f"


class Photos:
    """Records in memory, losslessly; the numbers are 100 more than the positions."""

    name = "photos"

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(count)
        shapes = [(20 + at % 23, 45 - at % 17) for at in range(count)]
        pixels = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
        self.records = [
            ImageRecord((float(at % CLASSES),), 100 + at, cv2.imencode(".png", image)[1].tobytes(), True)
            for at, image in enumerate(pixels)
        ]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, position: int) -> ImageRecord:
        return self.records[position]

    def location(self, position: int) -> tuple[Path, int, int]:
        return Path("photos.rec"), position, 0


def loader(
    batch_size: int = 8, threads: int = 0, share: Share = WHOLE, count: int = 41, size: int = SIZE, **more: Any
) -> Loader:
    return Loader(Photos(count), size, batch_size, threads, prefetch=2, classes=CLASSES, share=share, **more)


def rows(augmentation: Augmentation, loader: Loader, start_step: int = 0) -> list[bytes]:
    """Every image of an epoch with all that belongs to it."""
    with loader.training(5, 2, augmentation, start_step) as batches:
        return [row for batch in batches for row in rows_of(batch)]


def rows_of(batch: Batch) -> list[bytes]:
    parts = [batch.images, batch.labels, batch.records]
    if batch.targets is not None:
        parts.append(batch.targets)
    return [b"".join(part[at].tobytes() for part in parts) for at in range(len(batch.labels))]


@pytest.mark.parametrize("augmentation", FEATURES.values(), ids=FEATURES)
def test_threads_steps_batches_and_shares_change_no_byte(augmentation: Augmentation) -> None:
    expected = rows(augmentation, loader())
    assert len(expected) == len(set(expected)) == 40
    for threads in range(1, 5):
        assert rows(augmentation, loader(threads=threads)) == expected
    for start_step in (1, 4, 5):
        assert rows(augmentation, loader(), start_step) == expected[8 * start_step :]
    for batch_size in (2, 10, 20):
        assert rows(augmentation, loader(batch_size, 2)) == expected
    for batch_size, ranks in ((4, 2), (20, 2), (20, 5), (40, 4)):
        passes = [rows(augmentation, loader(batch_size, rank % 3, Share(rank, ranks))) for rank in range(ranks)]
        each = batch_size // ranks
        together = [
            row for step in range(40 // batch_size) for one in passes for row in one[step * each : (step + 1) * each]
        ]
        assert together == expected


BALANCED = np.arange(41) % CLASSES


@pytest.mark.parametrize("more", [{"repeats": 3}, {"repeats": 4, "balanced": BALANCED}, {"repeats": 2}])
def test_with_repeats_threads_steps_and_shares_change_no_byte_and_no_two_images_are_alike(more: dict[str, Any]) -> None:
    mixing = FEATURES["all"].model_copy(update={"mixup": 0.0} if more["repeats"] == 2 else {})
    expected = rows(mixing, loader(10, **more))
    assert len(expected) == len({*expected}) == 40
    assert rows(mixing, loader(10, 3, **more)) == expected
    for start_step in (1, 3):
        assert rows(mixing, loader(10, **more), start_step) == expected[10 * start_step :]
    parts = [rows(mixing, loader(20, 0, Share(rank, 5), **more)) for rank in range(5)]
    together = [row for step in range(2) for part in parts for row in part[step * 4 : (step + 1) * 4]]
    assert together == rows(mixing, loader(20, **more))


def test_a_batch_has_each_image_so_often_and_an_epoch_as_many_as_before() -> None:
    seen: list[int] = []
    for epoch in range(3):
        with loader(12, count=36, repeats=3).training(5, epoch) as batches:
            for batch in batches:
                assert {*Counter(batch.records.tolist()).values()} == {3}
                seen += batch.records.tolist()
        assert len(seen) == 36 * (epoch + 1)
    assert sorted(seen) == sorted([*range(100, 136)] * 3)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix", "all"])
def test_behind_mix_epochs_nothing_is_mixed_and_all_else_is_as_it_was(mixing: str) -> None:
    ending = FEATURES[mixing].model_copy(update={"mix_epochs": 3})
    without = FEATURES[mixing].model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    for epoch, expected in ((0, FEATURES[mixing]), (2, FEATURES[mixing]), (3, without), (50, without)):
        passes = [loader().training(5, epoch, augmentation) for augmentation in (ending, expected)]
        found = [[row for batch in batches for row in rows_of(batch)] for batches in passes]
        assert found[0] == found[1]


def test_mixed_images_and_targets_are_the_unmixed_ones_mixed() -> None:
    """Against the plain loader's images, mixed here pair by pair; the partner of 2k is 2k + 1."""
    mixed = Augmentation(mixup=0.4, cutmix=1.0, policy="rand_augment", erasing=0.5)
    with loader().training(5, 2, mixed.model_copy(update={"mixup": 0.0, "cutmix": 0.0})) as batches:
        plain = [(batch.images.copy(), batch.labels.copy()) for batch in batches]
    numbers = uniforms(5, 2, range(40), SECOND_COLUMNS, SECOND_UNIFORMS)[:, 40 : 40 + MIXING_COLUMNS]
    mixes = mixtures(0.4, 1.0, numbers, SIZE)
    assert len({mix.box is None for mix in mixes if mix}) == 2
    with loader().training(5, 2, mixed) as batches:
        for batch, (images, labels) in zip(batches, plain, strict=True):
            assert batch.targets is not None
            assert batch.targets.dtype == np.float32
            assert batch.targets.shape == (8, CLASSES)
            assert np.array_equal(batch.labels, labels)
            for place in range(8):
                mix = mixes[batch.first_position + place]
                assert mix is not None
                own = np.full((SIZE, SIZE, 1), mix.own)
                if mix.box:
                    left, top, width, height = mix.box
                    own = np.ones((SIZE, SIZE, 1))
                    own[top : top + height, left : left + width] = 0
                expected = own * images[place] + (1 - own) * images[place ^ 1]
                assert np.abs(batch.images[place] - expected).max() <= 0.5 + 1e-4
                shares = mix.own * np.eye(CLASSES)[labels[place]] + (1 - mix.own) * np.eye(CLASSES)[labels[place ^ 1]]
                assert batch.targets[place] == pytest.approx(shares, abs=1e-6)
                assert batch.targets[place].sum() == pytest.approx(1, abs=1e-6)


def test_without_mixing_labels_say_it_all() -> None:
    with loader().training(0, 0, FEATURES["erasing"]) as batches:
        assert next(batches).targets is None
    with loader().evaluation() as batches:
        assert next(batches).targets is None


def test_switching_a_feature_on_leaves_the_others_draws_alone() -> None:
    """What erasing and mixing leave of an image is what it was."""
    plain, erased = (
        np.frombuffer(b"".join(row[: SIZE * SIZE * 3] for row in rows(one, loader())), np.uint8)
        for one in (Augmentation(), FEATURES["erasing"])
    )
    share = np.mean(plain != erased)
    assert 0.02 < share < 0.2  # half of the images, 17 % of each
    both = FEATURES["erasing"].model_copy(update={"policy": "rand_augment", "policy_magnitude": 0, "fill": 0})
    untouched = np.frombuffer(b"".join(row[: SIZE * SIZE * 3] for row in rows(both, loader())), np.uint8)
    noise = np.flatnonzero(plain != erased)
    assert np.mean(untouched[noise] == erased[noise]) > 0.9


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 40), st.integers(1, 45), st.integers(1, 5))
def test_evaluation_shares_are_every_record_once_in_order(count: int, batch_size: int, ranks: int) -> None:
    photos = Photos(count)

    def scored(share: Share) -> dict[int, tuple[bytes, int]]:
        with Loader(photos, 4, batch_size, 0, classes=CLASSES, share=share).evaluation() as batches:
            left, seen = len(batches), {}
            for batch in batches:
                assert len(batch.labels) == len(batch.images) > 0
                for at in range(len(batch.labels)):
                    number = int(batch.records[at])
                    assert number not in seen
                    assert number == 100 + batch.first_position + at
                    seen[number] = batch.images[at].tobytes(), int(batch.labels[at])
                left -= 1
            assert left == 0
            return seen

    whole = scored(WHOLE)
    assert list(whole) == list(range(100, 100 + count))
    parts = [scored(Share(rank, ranks)) for rank in range(ranks)]
    assert sum(map(len, parts)) == count
    assert {number: value for part in parts for number, value in part.items()} == whole
    for first in range(0, count, batch_size):
        batch = range(100 + first, 100 + min(first + batch_size, count))
        assert [number for part in parts for number in part if number in batch] == list(batch)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 20))
def test_training_shares_are_every_batch_in_order(each: int, ranks: int, left_over: int) -> None:
    batch_size = each * ranks
    count = batch_size + left_over
    whole = rows(Augmentation(), loader(batch_size, count=count, size=4))
    parts = [rows(Augmentation(), loader(batch_size, 0, Share(rank, ranks), count, 4)) for rank in range(ranks)]
    steps = range(count // batch_size)
    assert [row for step in steps for part in parts for row in part[step * each : (step + 1) * each]] == whole


def test_a_batch_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(BadRecipe, match=r"by the 3 processes that train together; expected a multiple of 3; found 8"):
        loader(8, share=Share(0, 3)).training(0, 0, Augmentation())
    with pytest.raises(BadRecipe, match=r"in pairs.*; expected a multiple of 4; found 6"):
        loader(6, share=Share(0, 2)).training(0, 0, FEATURES["mixup"])
    with pytest.raises(BadRecipe, match="must be even where images are mixed in pairs; found 5"):
        loader(5).training(0, 0, FEATURES["cutmix"])


def test_mixing_needs_the_number_of_classes() -> None:
    with pytest.raises(BadRecipe, match="number of classes"):
        Loader(Photos(8), SIZE, 4, 0).training(0, 0, FEATURES["mixup"])


def test_choices_are_the_same_on_every_machine_and_in_every_release() -> None:
    draws = training_draws(FEATURES["all"], 7, 3, range(500), 224)
    choices = [
        (
            [(change.name, round(change.strength, 9)) for change in draw.changes],
            draw.erasure and erased_box(draw.erasure, 224, 224),
            draw.erasure and draw.erasure.noise,
            draw.mix and draw.mix.box,
        )
        for draw in draws
    ]
    assert hashlib.sha256(repr(choices).encode()).hexdigest().startswith(GOLDEN_CHOICES)


def test_later_choices_are_the_same_on_every_machine_and_in_every_release() -> None:
    choices = []
    for name in ("auto_augment", "aug_mix", "three_augment"):
        for draws in training_draws(FEATURES[name], 7, 3, range(200), 224):
            chains = draws.chains.chains if draws.chains else []
            changes = [*draws.changes, *(change for _, part in chains for change in part)]
            shares = [round(share, 9) for share, _ in chains]
            choices.append((draws.draw.flip_vertical, round(draws.draw.hue, 9), shares))
            choices.append([(change.name, round(change.strength, 9)) for change in changes])
    assert hashlib.sha256(repr(choices).encode()).hexdigest().startswith(GOLDEN_LATER)


def test_older_recipes_keep_every_draw_and_pixel() -> None:
    plain = Augmentation()
    draws = draw_choices(plain, uniforms(7, 3, range(500), COLUMNS))
    boxes = [(*training_box(plain, draw, 375, 500, 224), draw.flip) for draw in draws]
    assert hashlib.sha256(repr(boxes).encode()).hexdigest().startswith(GOLDEN_BOXES)
    windows = rows(Augmentation(crop="random", pad=2), loader(count=43, size=18))
    assert hashlib.sha256(b"".join(windows)).hexdigest().startswith(GOLDEN_WINDOWS)
