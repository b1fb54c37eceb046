"""Networks of GluonCV's model zoo: found by name, shapes finished, nothing downloaded.

Their parameters have the names Gluon's own save_parameters writes ("features.4.0.conv1.weight"), so that the
files GluonCV publishes fit by name.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from imagenet_pipeline.engines.gluon.network import GluonNetwork
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.engines.zoos import ZooNetwork, not_installed, unknown
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.shapes import Shape

_NEEDS = ("gluoncv", "portalocker", "tqdm")
"""Packages that importing the zoo needs; of GluonCV's other requirements the networks need none."""
_FAMILIES = {
    "alexnet", "cifarresnet", "cifarresnext", "cifarwideresnet", "densenet", "dla", "googlenet", "hrnet", "inception",
    "mobilenet", "mobilenetv3", "nasnet", "residual_attentionnet", "resnest", "resnet", "resnetv1b", "resnext", "senet",
    "shufflenet", "squeezenet", "vgg", "xception", "yolo.darknet",
}  # fmt: skip
"""The modules of classifiers; the others hold detectors, segmenters, trackers and video networks."""
_OPTIONS = {"googlenet": {"pretrained_base": False}, "nasnet": {"use_aux": False}}
"""Arguments of a family by which it downloads nothing and has a single output."""


def names() -> list[str]:
    """The classifiers GluonCV has. Raises BadRecipe where it is not installed."""
    return sorted(_classifiers())


def build(network: ZooNetwork, input_shape: Shape) -> GluonNetwork:
    """Build the network for an input (channels, height, width); every parameter has its shape, none a value.

    Raises BadRecipe where GluonCV is missing, has no such classifier or cannot build it for these classes and
    this input.
    """
    classifiers = _classifiers()
    create = classifiers.get(network.name)
    if create is None:
        raise unknown(network, classifiers)
    block = create(pretrained=False, classes=network.classes, **_OPTIONS.get(_family(create), {}))
    parameters = block._collect_params_with_prefix()
    shapes = _infer_shapes(network, block, input_shape)
    for parameter in parameters.values():
        parameter.shape = shapes[parameter.name]
    return GluonNetwork(block, block, parameters)


def shapes(network: ZooNetwork, input_shape: Shape) -> tuple[dict[str, Shape], int]:
    """Every parameter's shape by name, and how many numbers are trained. Raises BadRecipe as `build` does."""
    parameters = build(network, input_shape).parameters
    trained = sum(math.prod(parameter.shape) for parameter in parameters.values() if parameter.grad_req != "null")
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}, trained


def draw(built: GluonNetwork, seed: int) -> dict[str, Any]:
    """The network's own initial values; layers that bring none take MSRAPrelu's, as GluonCV's training script has it
    (He et al. 2015, "Delving Deep into Rectifiers").
    """
    mx.random.seed(seed % 2**31)
    built.block.initialize(mx.init.MSRAPrelu(), ctx=mx.cpu())
    return {name: parameter.data().asnumpy() for name, parameter in built.parameters.items()}


def drawn(network: ZooNetwork, input_shape: Shape, seed: int) -> dict[str, Any]:
    """Every initial value by name, as `draw` has them. Raises BadRecipe as `build` does."""
    return draw(build(network, input_shape), seed)


def symbol(
    network: ZooNetwork, input_shape: Shape, constants: tuple[str, str] | None = None
) -> tuple[str, dict[str, str]]:
    """The network as the text of MXNet's -symbol.json, input `data`, and what each parameter is called in .params.

    With `constants`, the names of two arguments [1, channels, 1, 1], the graph first subtracts the first from its
    input and divides by the other. Raises BadRecipe as `build` does.
    """
    built = build(network, input_shape)
    pixels = mx.sym.var("data")
    if constants is not None:
        mean, deviation = (mx.sym.var(name, shape=(1, input_shape[0], 1, 1)) for name in constants)
        pixels = mx.sym.broadcast_div(mx.sym.broadcast_sub(pixels, mean), deviation)
    scores = built.block(pixels)
    statistics = set(scores.list_auxiliary_states())
    names_of = {ours: parameter.name for ours, parameter in built.parameters.items()}
    text: str = scores.tojson()
    return text, {ours: f"{'aux' if name in statistics else 'arg'}:{name}" for ours, name in names_of.items()}


def own_symbol(name: str, classes: int) -> tuple[str, dict[str, str]]:
    """A network of MXNet's own zoo as the text of a -symbol.json, and its variables by the names that files of
    save_parameters, and of save_params before it, give them. Raises BadRecipe where there is none such.
    """
    try:
        block = mx.gluon.model_zoo.vision.get_model(name, classes=classes)
    except ValueError:
        raise BadRecipe("MXNet's own zoo has no such network", where="network", found=name) from None
    names = {ours: parameter.name for ours, parameter in block._collect_params_with_prefix().items()}
    text: str = block(mx.sym.var("data")).tojson()
    return text, names | {known.removeprefix(block.prefix): known for known in names.values()}


def _infer_shapes(network: ZooNetwork, block: Any, input_shape: Shape) -> dict[str, Shape]:
    """The shape of every parameter, by MXNet's own name, from a pass over the graph with two images."""
    try:
        scores = block(mx.sym.var("data"))
        # Not infer_shape: on failure that prints to stdout.
        arguments, outputs, statistics = scores.infer_shape_partial(data=(2, *input_shape))
    except mx.MXNetError as error:
        reason = str(error).strip().splitlines()[-1].rpartition(": ")[2]
        what = f"{network} cannot be built for {network.classes} classes and an input of {input_shape} ({reason})"
        raise BadRecipe(what, where="network") from error
    if outputs != [(2, network.classes)]:
        raise BadRecipe(
            f"{network} is no classifier of {network.classes} classes",
            where="network",
            expected=f"one output of shape (n, {network.classes})",
            found=", ".join(f"(n, {', '.join(map(str, shape[1:]))})" for shape in outputs),
        )
    names_of = (*scores.list_arguments(), *scores.list_auxiliary_states())
    return dict(zip(names_of, (*arguments, *statistics), strict=True))


def _classifiers() -> dict[str, Any]:
    """GluonCV's functions that make classifiers, by name."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise not_installed("gluoncv", missing)
    with _torch_hidden(), warnings.catch_warnings():
        # distutils is deprecated; GluonCV will not be mended.
        warnings.simplefilter("ignore")
        from gluoncv.model_zoo import model_zoo
    return {name: create for name, create in model_zoo._models.items() if _family(create) in _FAMILIES}


def _family(create: Any) -> str:
    module: str = create.__module__
    return module.removeprefix("gluoncv.model_zoo.")


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """GluonCV looks for PyTorch as it is imported, needs none for these networks, and fails where it finds 2.0 or
    later; a None in sys.modules is how Python says that a module is not there.
    """
    found = sys.modules.get("torch")
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
        if found is not None:
            sys.modules["torch"] = found
