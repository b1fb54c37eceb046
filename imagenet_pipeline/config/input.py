"""The sections `input` and `augmentation` of a recipe: what the network sees."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imagenet_pipeline.config.section import Fraction, NotNegative, Positive, Range, Section, Size, as_size

KEYS_OF_TRANSFORMS = {
    "channels": (),
    "mean_image": ("transform_images",),
    "pixels": ("transform_images", "transform_epsilon"),
    "pca": ("transform_images", "transform_epsilon", "transform_components"),
    "zca": ("transform_images", "transform_epsilon"),
}
"""The keys that each transform of the input reads, beside the size."""


class InputRecipe(Section):
    """The network's input: its size in training and evaluation, pixels."""

    size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Side of the square input, pixels; not read where `height` and `width` are given."""
    height: Annotated[int, Field(ge=0, le=4096)] = 0
    """Height of an input that is no square, pixels; goes with `width`, 0 is `size`."""
    width: Annotated[int, Field(ge=0, le=4096)] = 0
    """Width of an input that is no square, pixels; goes with `height`, 0 is `size`."""
    channels: Literal[1, 3] = 3
    """Channels of the input: 3, RGB, or 1, its grey, 0.299 R + 0.587 G + 0.114 B of each pixel, colour changes made."""
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation looks at this fraction of the largest centred window of the input's shape: of the shorter edge."""
    evaluation_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side of the input in evaluation, pixels; 0 is `size` (larger suits networks trained on crops: Touvron 2019)."""
    start_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Side in the first epochs, pixels; 0 is `size`. `training/data.py` says how it grows."""
    grow_epochs: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """Epochs at which `start_size` begins to grow, and has become `size`."""
    transform: Literal["channels", "mean_image", "pixels", "pca", "zca"] = "channels"
    """Input of the network, fitted on the training images: each channel less its mean, by its deviation ("channels");
    less the mean image, too; each pixel by its own deviation; or whitened, to principal components or as an image."""
    transform_images: Annotated[int, Field(ge=0)] = 10_000
    """Training images, drawn by the seed, that `transform` is fitted on; 0 is all of them."""
    transform_epsilon: Positive = 0.01
    """Added to each variance before a division by its root (pixels, pca, zca); that of a channel is 1."""
    transform_components: Annotated[int, Field(ge=0)] = 0
    """Principal components kept by transform "pca", those of the largest variances; 0 is all."""

    @property
    def trained_size(self) -> Size:
        """The input in training, once it has grown, pixels."""
        return as_size(self.height, self.width) if self.height else self.size

    @property
    def scored_size(self) -> Size:
        """The input in evaluation, pixels."""
        return self.evaluation_size or self.trained_size

    @model_validator(mode="after")
    def _check_sides(self) -> InputRecipe:
        for key, other in (("height", "width"), ("width", "height")):
            if getattr(self, key) and not getattr(self, other):
                raise ValueError(f"{key}: goes with {other}, give both or neither")
        if self.height:
            reason = "with height and width: they are sides of a square"
            self._require_default(("evaluation_size", "start_size", "grow_epochs"), reason)
        return self

    @model_validator(mode="after")
    def _check_growth(self) -> InputRecipe:
        if self.start_size > self.size:
            raise ValueError(f"start_size: must not exceed size, {self.size}; found {self.start_size}")
        if self.grow_epochs[0] > self.grow_epochs[1]:
            raise ValueError(
                f"grow_epochs: the first, {self.grow_epochs[0]}, exceeds the second, {self.grow_epochs[1]}"
            )
        if bool(self.start_size) != bool(self.grow_epochs[1]):
            raise ValueError("start_size: goes with grow_epochs, give both or neither")
        return self

    @model_validator(mode="after")
    def _check_transform(self) -> InputRecipe:
        read = KEYS_OF_TRANSFORMS[self.transform]
        unread = [key for key in type(self).model_fields if key.startswith("transform_") and key not in read]
        self._require_default(unread, f'on transform "{self.transform}"')
        if self.transform != "channels":
            self._require_default(
                ("evaluation_size", "start_size"), f'on transform "{self.transform}", which has a number for each pixel'
            )
        return self


Policy = Literal["none", "rand_augment", "trivial_augment", "auto_augment", "aug_mix", "three_augment"]
Fill = Annotated[int, Field(ge=0, le=255)] | Literal["nearest"]


class Augmentation(Section):
    """Random changes to a training image; all but the crop and the flip are off by default.

    Crop "resized" is that of Szegedy et al. 2015 ("Going deeper with convolutions"), its `aspect`, like `zoom`, even
    in the logarithm; "random" takes the largest window of the input's shape of an image smaller than the input.
    `loading/augment.py` applies them all.
    """

    crop: Literal["resized", "random", "centre"] = "resized"
    """A random share and shape of the image ("resized"), a window of the input's size, or the largest of its
    shape."""
    area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Smallest and largest share of the image that crop "resized" takes."""
    aspect: Range = (3 / 4, 4 / 3)
    """Width over height of what crop "resized" takes, from and to, times that of the input."""
    flip: Fraction = 0.5
    """Probability of mirroring left to right."""
    flip_vertical: Fraction = 0.0
    """Probability of mirroring top to bottom."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turn by up to this much either way."""
    shear: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Move rows sideways by up to this much of their height, either way."""
    zoom: Range = (1.0, 1.0)
    """Enlargement about the centre, from and to."""
    shift: Fraction = 0.0
    """Move by up to this share of the width, and of the height."""
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
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Turn all hues by up to this share of the colour circle, either way (HSV)."""
    fill: Fill = 128
    """Grey of what comes into view from outside the image; "nearest" takes the nearest pixel of its edge."""
    policy: Policy = "none"
    """Random changes out of a published list; `loading/auto_augment.py` says which, and of which papers."""
    policy_changes: Annotated[int, Field(ge=1, le=4)] = 2
    """Changes that rand_augment makes to an image."""
    policy_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of rand_augment's and aug_mix's changes, of 30; 9 is severity 3 of AugMix's 10."""
    erasing: Fraction = 0.0
    """Probability of a random rectangle of noise (Zhong et al. 2020)."""
    mixup: NotNegative = 0.0
    """Alpha of mixup (Zhang et al. 2018); 0 is off. With cutmix too, chance takes either for each image."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix (Yun et al. 2019); 0 is off."""
    mix_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs, from the first, in which mixup and cutmix are on; 0 is all (timm's mixup_off_epoch)."""

    @property
    def mixes(self) -> bool:
        """True where each image becomes a mixture of two, and its label shares of classes."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def recolours(self) -> bool:
        """True where brightness, contrast, saturation or lighting can change."""
        return bool(self.brightness or self.contrast or self.saturation or self.lighting)

    @model_validator(mode="after")
    def _check_ranges(self) -> Augmentation:
        for name in ("area", "aspect", "zoom"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first number, {low}, exceeds the second, {high}")
        if self.area[1] == 0:
            raise ValueError("area: the largest share must be above 0")
        return self

    @model_validator(mode="after")
    def _check_policy(self) -> Augmentation:
        if self.policy != "rand_augment":
            reason = f'on policy "{self.policy}", only on "rand_augment"'
            self._require_default(["policy_changes"], reason)
            if self.policy != "aug_mix":
                self._require_default(["policy_magnitude"], f'{reason} and "aug_mix"')
        if not self.mixes:
            self._require_default(["mix_epochs"], "without mixup or cutmix")
        return self
