"""Recipe keys of images: how large they are, and what is changed in training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imagenet_pipeline.config.section import Fraction, NotNegative, Range, Section


class InputRecipe(Section):
    """What the network sees."""

    size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Side of the square input, pixels."""
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation looks at the centre square of this fraction of the shorter edge."""
    evaluation_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side of the input in evaluation, pixels; 0 is `size` (larger suits networks trained on crops: Touvron 2019)."""
    start_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side in the first epochs, pixels; 0 is `size`. `training/sizes.py` says how it grows."""
    grow_epochs: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """From which epoch on `start_size` grows, and from which it is `size`."""

    @property
    def scored_size(self) -> int:
        """Side of the input in evaluation, pixels."""
        return self.evaluation_size or self.size

    @model_validator(mode="after")
    def _check_growth(self) -> InputRecipe:
        if self.start_size > self.size:
            raise ValueError(f"start_size: exceeds size, {self.size}")
        if self.grow_epochs[0] > self.grow_epochs[1]:
            raise ValueError(
                f"grow_epochs: the first, {self.grow_epochs[0]}, exceeds the second, {self.grow_epochs[1]}"
            )
        if bool(self.start_size) != bool(self.grow_epochs[1]):
            raise ValueError("start_size: goes with grow_epochs, give both or neither")
        return self


class AugmentationRecipe(Section):
    """Random changes to a training image; `loading/augment.py` defines each."""

    crop: Literal["resized", "random", "centre"] = "resized"
    """A random share and shape of the image ("resized"), a window of the input's size, or the largest square."""
    area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Smallest and largest share of the image that crop "resized" takes."""
    aspect: Range = (3 / 4, 4 / 3)
    """Width over height of what crop "resized" takes, from and to."""
    flip: Fraction = 0.5
    """Probability of mirroring left to right."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turn by up to this much either way."""
    shear: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Move rows sideways by up to this much of their height, either way."""
    zoom: Range = (1.0, 1.0)
    """Enlargement about the centre, from and to."""
    shift: Fraction = 0.0
    """Move by up to this share of the side, in each direction."""
    pad: Annotated[int, Field(ge=0, le=1024)] = 0
    """Pixels the image is widened by on each side before it is cropped."""
    brightness: Fraction = 0.0
    """Factor from 1 - x to 1 + x."""
    contrast: Fraction = 0.0
    """Factor from 1 - x to 1 + x."""
    saturation: Fraction = 0.0
    """Factor from 1 - x to 1 + x."""
    lighting: NotNegative = 0.0
    """Standard deviation of AlexNet's colour noise; 0.1 in its paper (Krizhevsky et al. 2012)."""
    fill: Annotated[int, Field(ge=0, le=255)] = 128
    """Grey of what comes into view from outside the image."""
    policy: Literal["none", "rand_augment", "trivial_augment"] = "none"
    """Random changes out of a published list (Cubuk et al. 2020; Mueller & Hutter 2021); `loading/auto_augment.py`."""
    policy_changes: Annotated[int, Field(ge=1, le=4)] = 2
    """How many changes rand_augment makes to an image."""
    policy_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """How strong rand_augment's are, of 30."""
    erasing: Fraction = 0.0
    """Probability of a random rectangle of noise (Zhong et al. 2020)."""
    mixup: NotNegative = 0.0
    """Alpha of mixup (Zhang et al. 2018); 0 is off. With cutmix too, each image gets one of the two by chance."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix (Yun et al. 2019); 0 is off."""

    @property
    def mixes(self) -> bool:
        """Whether training labels become shares of classes."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _check_ranges(self) -> AugmentationRecipe:
        for name in ("area", "aspect", "zoom"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first number, {low}, exceeds the second, {high}")
        if self.area[1] == 0:
            raise ValueError("area: the largest area is 0")
        return self

    @model_validator(mode="after")
    def _check_policy(self) -> AugmentationRecipe:
        for key in ("policy_changes", "policy_magnitude"):
            if self.policy != "rand_augment" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f'{key}: has no effect on policy "{self.policy}", only on "rand_augment"')
        return self
