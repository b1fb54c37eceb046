"""The words of the recipe key `devices`, the same for every engine.

The parts a batch is computed in, one after the other, so that it needs less memory.
"""

from __future__ import annotations

from imagenet_pipeline.engines import Images, Targets
from imagenet_pipeline.errors import BadRecipe

CPU_CONTEXTS = 64
"""How far the numbers of CPUs go, which are only names: MXNet takes memory in proportion to them."""


def parse_devices(devices: str, gpus: int, expected: str) -> tuple[str, list[str]]:
    """ "cpu" or "gpu", and the numbers as written. Raises BadRecipe for words that mean nothing.

    "auto" is the first of `gpus`, or else the CPU.
    """
    if devices == "auto":
        devices = "gpu" if gpus else "cpu"
    kind, _, numbers = devices.partition(":")
    words = numbers.split(",") if numbers else ["0"]
    if kind not in ("cpu", "gpu") or not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise BadRecipe("cannot be read", where=f"devices = {devices!r}", expected=expected)
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
