"""Devices of a recipe: their words, the micro-batches in which they compute a batch, and the end of their memory.

The same for every engine.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from imagenet_pipeline.config import Recipe, Size, as_size, pair, require_even_batch
from imagenet_pipeline.engines import FRAMEWORKS, Array, Images, Targets, gpus_seen, is_installed, may_have_gpus
from imagenet_pipeline.errors import BadRecipe, OutOfRoom, counted, is_out_of_memory

log = logging.getLogger("imagenet_pipeline")

CPU_CONTEXTS = 64
"""Highest number of a CPU, which is only a name: MXNet takes memory in proportion to them."""
LIBRARIES = {"gluon": "MXNet", "pytorch": "PyTorch"}
"""Engines, and what their libraries call themselves."""


def parse_devices(devices: str, gpus: int, expected: str) -> tuple[str, list[str]]:
    """Read the recipe's `devices`: "cpu" or "gpu", and the numbers as written. Raises BadRecipe where it means nothing.

    "auto" is the first of `gpus`, or else the CPU; "gpu:all" is all of them.
    """
    if devices == "auto":
        devices = "gpu" if gpus else "cpu"
    kind, colon, numbers = devices.partition(":")
    words = numbers.split(",") if colon else ["0"]
    if devices == "gpu:all":
        words = [str(number) for number in range(max(1, gpus))]
    if kind not in ("cpu", "gpu") or not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise BadRecipe("the list of devices cannot be read", where=f"devices = {devices!r}", expected=expected)
    return kind, words


def first_of(devices: str) -> str:
    """The first of a recipe's `devices`, for work that takes one."""
    return "auto" if devices == "gpu:all" else devices.partition(",")[0]


def require_there(devices: str, words: list[str], count: int, found: str, advice: str = "") -> None:
    """Raise BadRecipe for a number of which there are only `count`; `found` says what there is."""
    missing = [word for word in words if int(word) >= count]
    if missing:
        raise BadRecipe(
            f"no device number {missing[0]}",
            where=f"devices = {devices!r}",
            found=found,
            advice=f"{advice}devices=cpu runs anywhere",
        )


def require_gpus(devices: str, words: list[str], engine: str, gpus: int, why_none: Callable[[], str]) -> None:
    """Raise BadRecipe for a GPU that the engine cannot use, naming the engine that can; `gpus` is what it can use."""
    if all(int(word) < gpus for word in words):
        return
    advice = "devices=gpu:all takes all there are, " if gpus else ""
    for other in FRAMEWORKS:
        if other != engine and is_installed(other) and gpus_seen(other) > max(map(int, words)):
            advice = f"engine={other} can use {counted(gpus_seen(other), 'GPU')} here, "
    if not gpus:
        what = f"there is no GPU that {LIBRARIES[engine]} can use ({why_none()})"
        raise BadRecipe(what, where=f"devices = {devices!r}", advice=f"{advice}devices=cpu runs anywhere")
    require_there(devices, words, gpus, f"{counted(gpus, 'GPU')} that {LIBRARIES[engine]} can use", advice)


@functools.cache
def tell_automatic(engine: str, gpus: int, why_none: Callable[[], str]) -> None:
    """Say, once a process, what `devices = "auto"` leaves idle: other GPUs, or all that the engine cannot use."""
    if gpus > 1:
        log.info("devices=auto: 1 of %s; devices=gpu:all takes them all", counted(gpus, "GPU"))
    elif not gpus and may_have_gpus():
        log.info("devices=auto: the CPU, since %s can use no GPU of this machine (%s)", LIBRARIES[engine], why_none())


def micro_batches(
    images: Images, labels: Targets, parts: int, devices: int, teacher: Array | None = None
) -> list[tuple[Images, Targets, Array | None]]:
    """Consecutive pieces of a batch, equally long, which the devices can share equally.

    Raises BadRecipe where the images do not divide, or are fewer than the devices.
    """
    if len(images) < devices:
        raise BadRecipe("a step has fewer images than there are devices", expected=devices, found=len(images))
    if parts == 1:
        return [(images, labels, teacher)]
    require_even_batch(len(images), parts=parts, devices=devices)
    length = len(images) // parts
    rows = [slice(first, first + length) for first in range(0, len(images), length)]
    return [(images[own], labels[own], None if teacher is None else teacher[own]) for own in rows]


_Engine = TypeVar("_Engine")
_WITH_IMAGES = ("train_batch", "score_batch", "logits", "issue_logits", "layer_gradients")
"""Methods whose first argument are images."""


def naming_memory(engine: type[_Engine]) -> type[_Engine]:
    """The same class of engine, but OutOfRoom, with what to lower, where it runs out of memory, its host's included."""
    for name, method in list(vars(engine).items()):
        # Whoever asks for a `host_array` knows what to lower.
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")) and name != "host_array":
            setattr(engine, name, _guarded(method))
    return engine


@dataclass
class _Demand:
    """Batch an engine was last given to compute. Gluon computes it later, and reports what failed in another call."""

    recipe: Recipe
    images: int = 0
    size: Size = 0
    training: bool = False


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    name = method.__name__

    @functools.wraps(method)
    def guarded(engine: Any, *arguments: Any, **named: Any) -> Any:
        if name == "__init__":
            blueprint = arguments[0] if arguments else named["blueprint"]
            engine.demand = _Demand(blueprint.recipe)
        elif name in _WITH_IMAGES:
            images = arguments[0] if arguments else named["images"]
            engine.demand = _Demand(
                engine.demand.recipe, len(images), as_size(*images.shape[1:3]), name == "train_batch"
            )
        with _naming(engine):
            found = method(engine, *arguments, **named)
        return _guarded_read(engine, found) if name == "issue_logits" else found

    return guarded


def _guarded_read(engine: Any, read: Callable[[], Any]) -> Callable[[], Any]:
    def guarded() -> Any:
        with _naming(engine):
            return read()

    return guarded


@contextmanager
def _naming(engine: Any) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if engine.demand.images and hasattr(engine, "forget_batches"):
            engine.forget_batches()
        raise out_of_memory(engine, engine.demand) from error


def out_of_memory(engine: Any, demand: _Demand) -> OutOfRoom:
    """The error of devices whose memory does not hold a batch, or where there was none yet, the network."""
    names = getattr(engine, "device_names", ())
    where = ", ".join(names) or f"devices = {demand.recipe.devices!r}"
    if getattr(engine, "ranks", 1) > 1:
        where = f"rank {engine.rank}, {where}"
    parts, devices = (demand.recipe.accumulation if demand.training else 1), max(1, len(names))
    held = demand.images // (parts * devices)
    if not held:
        return OutOfRoom("out of memory before the first batch", where=where, advice="take a smaller network")
    each = "each device" if devices > 1 else "the device"
    found = f"{counted(held, 'image')} of {'x'.join(map(str, pair(demand.size)))} pixels on {each}"
    lower = [*(["batch_size"] if held > 1 else []), *(["input.size"] if demand.training else [])]
    advice = [f"lower {' or '.join(lower)}"] if lower else []
    if engine.precision == "float64":
        advice.append("take precision=float32")
    elif engine.name == "pytorch" and engine.precision in ("float32", "tf32"):
        advice.append("take precision=bfloat16")
    finer = range(2 * parts, demand.images // devices + 1)
    more_parts = next((count for count in finer if not demand.images % (count * devices)), None)
    if demand.training and more_parts:
        advice.append(f"keep the batch with accumulation={more_parts}, which computes it in so many parts")
    return OutOfRoom("out of memory", where=where, found=found, advice=", or ".join(advice) or "free some of it")
