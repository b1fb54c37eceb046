"""The parts a batch is computed in, one after the other, so that it needs less memory."""

from __future__ import annotations

from imagenet_pipeline.engines import Images, Targets
from imagenet_pipeline.errors import BadRecipe


def parts_of(images: Images, labels: Targets, parts: int, devices: int) -> list[tuple[Images, Targets]]:
    """Consecutive pieces of a batch, all of one length, which the devices can share equally.

    Raises BadRecipe where the images do not divide, or are fewer than the devices.
    """
    if len(images) < devices:
        raise BadRecipe("fewer images in a step than devices", expected=devices, found=len(images))
    if parts == 1:
        return [(images, labels)]
    if len(images) % (parts * devices):
        raise BadRecipe(
            f"{len(images)} images of a step do not divide by {parts * devices}, {parts} parts on {devices} device(s)",
            where="accumulation",
            advice="change accumulation, batch_size or devices",
        )
    length = len(images) // parts
    starts = range(0, len(images), length)
    return [(images[first : first + length], labels[first : first + length]) for first in starts]
