"""Networks of timm's model zoo: found by name, nothing downloaded.

Their parameters have timm's own names (the keys of its state dict), so that the files published for them fit.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from typing import Any

from imagenet_pipeline.engines import Values
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.engines.zoos import ZooNetwork, not_installed, unknown
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.shapes import Shape

OPERATOR_SET = 17
"""ONNX operator set (2022): has the layer normalisation of today's networks."""


def names() -> list[str]:
    """The classifiers timm has. Raises BadRecipe where it is not installed."""
    known: list[str] = _timm().list_models()
    return known


def build(network: ZooNetwork, input_shape: Shape, seed: int) -> Any:
    """Build the module for an input (channels, height, width), with timm's own initial values drawn from `seed`.

    Raises BadRecipe where timm is missing, has no such network, or cannot build it for these classes and this input.
    """
    timm = _timm()
    # The name of an architecture, perhaps with a tag; what timm would fetch by name (hf-hub:...) is none.
    if not timm.is_model(network.name):
        raise unknown(network, timm.list_models())
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = timm.create_model(network.name, pretrained=False, **options(network, input_shape))
            scores = _scores(module, input_shape)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        what = f"{network} cannot be built for {network.classes} classes and an input of {input_shape} ({reason})"
        raise BadRecipe(what, where="network") from error
    if not isinstance(scores, torch.Tensor) or scores.shape != (2, network.classes):
        raise BadRecipe(f"{network} is no classifier of {network.classes} classes", where="network")
    return module


def shapes(network: ZooNetwork, input_shape: Shape) -> tuple[dict[str, Shape], int]:
    """Every parameter's shape by name, and how many numbers are trained. Raises BadRecipe as `build` does."""
    module = build(network, input_shape, seed=0)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return {name: tuple(tensor.shape) for name, tensor in tensors(module).items()}, trained


def drawn(network: ZooNetwork, input_shape: Shape, seed: int) -> dict[str, Any]:
    """Every initial value by name, as `build` draws them. Raises BadRecipe as `build` does."""
    module = build(network, input_shape, seed)
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors(module).items()}


def options(network: ZooNetwork, input_shape: Shape) -> dict[str, Any]:
    """Arguments of `timm.create_model` beside the name: classes and input."""
    arguments = {"num_classes": network.classes, "in_chans": input_shape[0]}
    fixed = _timm().get_pretrained_cfg(network.name).fixed_input_size
    return {**arguments, "img_size": input_shape[1:]} if fixed else arguments


class Listed(torch.nn.Module):  # type: ignore[misc]
    """A module whose single output comes as a list, as the outputs of our own networks do."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Any) -> list[Any]:
        return [self.module(pixels)]


def tensors(module: Any) -> dict[str, Any]:
    """Every parameter and running statistic by timm's name; counters and tables of indices are none."""
    return {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if tensor.is_floating_point()}


def scoring_module(
    network: ZooNetwork,
    values: Values,
    input_shape: Shape,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Any:
    """The module with these values, ready to score; with a `normalisation` (mean, std) it takes RGB in 0..255.

    Raises BadRecipe as `build` does.
    """
    module = build(network, input_shape, seed=0)
    for name, tensor in tensors(module).items():
        tensor.data.copy_(torch.tensor(values[name]))
    if normalisation is not None:
        module = torch.nn.Sequential(_Normalise(*normalisation), module)
    return module.eval()


def onnx_bytes(network: ZooNetwork, module: Any, input_shape: Shape) -> bytes:
    """A scoring module in ONNX, `images` float32 [n, channels, height, width] to `logits` [n, classes].

    Written by PyTorch's older exporter, which needs nothing besides. Raises BadRecipe where that fails.
    """
    stream = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (torch.zeros(2, *input_shape),),
                stream,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
                opset_version=OPERATOR_SET,
                dynamo=False,
            )
    except (RuntimeError, ModuleNotFoundError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadRecipe(f"PyTorch cannot write {network} as ONNX ({reason})", advice="take --format pytorch") from error
    return stream.getvalue()


class _Normalise(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (mean, std))

    def forward(self, pixels: Any) -> Any:
        return (pixels - self.mean) / self.std


def _scores(module: Any, input_shape: Shape) -> Any:
    module.eval()
    with torch.no_grad():
        scores = module(torch.zeros(2, *input_shape))
    module.train()
    return scores


def _timm() -> Any:
    missing = [name for name in ("timm", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        raise not_installed("timm", missing)
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise BadRecipe(
            f"timm cannot be imported ({error})",
            expected="torch and torchvision of the same release and build",
            advice="bash scripts/install_zoo.sh timm makes an environment that works",
        ) from error
    return timm
