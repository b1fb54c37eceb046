"""The images of one training batch: random changes that follow from their positions, then pairs mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.augment import COLUMNS, Augmentation, Draw, training_transform
from imagenet_pipeline.loading.auto_augment import POLICY_COLUMNS, Change, policy_changes
from imagenet_pipeline.loading.mixup import MIXING_COLUMNS, Mix, mix_pair, mixed_target, mixtures
from imagenet_pipeline.loading.order import SECOND_UNIFORMS, uniforms
from imagenet_pipeline.loading.random_erasing import ERASING_COLUMNS, Erasure, erasures
from imagenet_pipeline.loading.transforms import Pixels

_POLICY = slice(0, POLICY_COLUMNS)
_ERASING = slice(16, 16 + ERASING_COLUMNS)
_MIXING = slice(40, 40 + MIXING_COLUMNS)
SECOND_COLUMNS = 64
"""Uniform numbers for each image from the second stream, used or not; 44 to 63 are free."""


class Plan(NamedTuple):
    """What happens to one training image."""

    draw: Draw
    changes: Sequence[Change] = ()
    erasure: Erasure | None = None
    mix: Mix | None = None


class TrainingImages:
    """Writes the images of consecutive positions of an epoch into the rows of `images` [n, S, S, 3].

    `labels` [n] are there when rows are finished; `targets` [n, classes] are written then. Positions that are
    mixed begin and end with a pair.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        seed: int,
        epoch: int,
        positions: range,
        images: Pixels,
        labels: NDArray[np.int64],
        targets: NDArray[np.float32] | None,
    ) -> None:
        self._augmentation = augmentation
        self._images, self._labels, self._targets = images, labels, targets
        self._plans = training_plans(augmentation, seed, epoch, positions, images.shape[1])

    def write(self, image: Pixels, place: int) -> None:
        """Change an image [H, W, 3] and put it into its row."""
        plan = self._plans[place]
        training_transform(image, self._augmentation, plan.draw, self._images[place], plan.changes, plan.erasure)

    def finish(self, places: range) -> None:
        """Mix the pairs in these rows, which are written."""
        if self._targets is None:
            return
        for first, second in zip(places[::2], places[1::2], strict=True):
            mixed = self._plans[first].mix, self._plans[second].mix
            if mixed[0] and mixed[1]:
                mix_pair(self._images[first], self._images[second], mixed[0], mixed[1])
                labels = int(self._labels[first]), int(self._labels[second])
                mixed_target(self._targets[first], *labels, mixed[0])
                mixed_target(self._targets[second], *labels[::-1], mixed[1])


def require_fit(augmentation: Augmentation, batch_size: int, ranks: int, classes: int | None) -> None:
    """Raise BadRecipe for a batch the ranks cannot share evenly, and mixing of an unknown number of classes."""
    evenly = 2 * ranks if augmentation.mixes else ranks
    if batch_size % evenly:
        pairs = ", in pairs of images that are mixed" if augmentation.mixes else ""
        raise BadRecipe(
            f"a batch does not divide among {ranks} processes{pairs}",
            expected=f"a batch_size that is a multiple of {evenly}",
            found=batch_size,
        )
    if augmentation.mixes and classes is None:
        raise BadRecipe("mixing needs the number of classes", where="loader", expected="classes", found=None)


def training_plans(augmentation: Augmentation, seed: int, epoch: int, positions: range, size: int) -> list[Plan]:
    """What happens to the images of consecutive positions of an epoch, `size` x `size` in the end."""
    draws = augmentation.draws(uniforms(seed, epoch, positions, COLUMNS))
    if not augmentation.draws_more:
        return [Plan(draw) for draw in draws]
    numbers = uniforms(seed, epoch, positions, SECOND_COLUMNS, SECOND_UNIFORMS)
    return [
        Plan(*choices)
        for choices in zip(
            draws,
            policy_changes(
                augmentation.policy,
                augmentation.policy_changes,
                augmentation.policy_magnitude,
                numbers[:, _POLICY],
                size,
            ),
            erasures(augmentation.erasing, numbers[:, _ERASING]),
            mixtures(augmentation.mixup, augmentation.cutmix, numbers[:, _MIXING], size),
            strict=True,
        )
    ]
