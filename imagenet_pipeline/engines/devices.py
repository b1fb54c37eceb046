"""Devices of a recipe as words, and the micro-batches in which they compute a batch: the same for every engine."""

from __future__ import annotations

from imagenet_pipeline.config import require_even_batch
from imagenet_pipeline.engines import Images, Targets
from imagenet_pipeline.errors import BadRecipe

CPU_CONTEXTS = 64
"""Highest number of a CPU, which is only a name: MXNet takes memory in proportion to them."""


def parse_devices(devices: str, gpus: int, expected: str) -> tuple[str, list[str]]:
    """Read the recipe's `devices`: "cpu" or "gpu", and the numbers as written. Raises BadRecipe where it means nothing.

    "auto" is the first of `gpus`, or else the CPU.
    """
    if devices == "auto":
        devices = "gpu" if gpus else "cpu"
    kind, _, numbers = devices.partition(":")
    words = numbers.split(",") if numbers else ["0"]
    if kind not in ("cpu", "gpu") or not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise BadRecipe("the list of devices cannot be read", where=f"devices = {devices!r}", expected=expected)
    return kind, words


def require_there(devices: str, words: list[str], count: int, found: str) -> None:
    """Raise BadRecipe for a number of which there are only `count`; `found` says what there is."""
    missing = [word for word in words if int(word) >= count]
    if missing:
        raise BadRecipe(
            f"no device number {missing[0]}",
            where=f"devices = {devices!r}",
            found=found,
            advice="devices=cpu runs anywhere",
        )


def micro_batches(images: Images, labels: Targets, parts: int, devices: int) -> list[tuple[Images, Targets]]:
    """Consecutive pieces of a batch, equally long, which the devices can share equally.

    Raises BadRecipe where the images do not divide, or are fewer than the devices.
    """
    if len(images) < devices:
        raise BadRecipe("a step has fewer images than there are devices", expected=devices, found=len(images))
    if parts == 1:
        return [(images, labels)]
    require_even_batch(len(images), parts=parts, devices=devices)
    length = len(images) // parts
    starts = range(0, len(images), length)
    return [(images[first : first + length], labels[first : first + length]) for first in starts]
