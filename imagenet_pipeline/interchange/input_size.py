"""Whether a network of the catalogue can have an input of another size than its own."""

from __future__ import annotations

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import Sequential, without_taps
from imagenet_pipeline.networks.shapes import Shape, parameters


def require_input_size(name: str, network: Sequential, size: int, own: int) -> None:
    """Raise BadRecipe where the network `name`, whose weights are for `own` pixels, cannot take `size` pixels."""
    try:
        if _shapes(network, size) == _shapes(network, own):
            return
    except BadRecipe as error:
        if _shapes(network, 2 * own) == _shapes(network, own):
            what = f"too small for {name}"
            raise BadRecipe(what, where=f"--input {size}", expected=error.expected, found=f"{size}x{size}") from None
    what = f"the dense layers of {name} fix its input"
    raise BadRecipe(what, where=f"--input {size}", expected=own, advice="leave --input out")


def _shapes(network: Sequential, size: int) -> list[Shape]:
    return [parameter.shape for parameter in parameters(without_taps(network), (3, size, size)).values()]
