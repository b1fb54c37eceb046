"""How a class's score depends on what one layer gives, in PyTorch; `gluon_gradients` states the same for MXNet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imagenet_pipeline.engines import Array, find_layer, not_scored
from imagenet_pipeline.engines.pytorch.runtime import torch


@contextmanager
def watched_layer(layers: Mapping[str, Any], path: str) -> Iterator[list[Any]]:
    """While this lasts what the layer gives is noted, as a beginning that gradients go back to and no further.

    Raises BadRecipe for a layer there is not.
    """
    outputs: list[Any] = []

    def begin_anew(module: Any, inputs: Any, output: Any) -> Any:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = find_layer(layers, path).register_forward_hook(begin_anew)
    try:
        yield outputs
    finally:
        handle.remove()


def gradients_of(scores: Any, classes: Any, outputs: list[Any], path: str) -> tuple[Array, Array]:
    """The layer's noted output, and the gradient by it of each image's score [n, classes] for its class.

    Raises BadRecipe where the layer was not run.
    """
    if not outputs:
        raise not_scored(path)
    chosen = scores.gather(1, classes.unsqueeze(1)).sum()
    (gradients,) = torch.autograd.grad(chosen, outputs[0])
    return _on_host(outputs[0], scores.dtype), _on_host(gradients, scores.dtype)


def _on_host(tensor: Any, dtype: Any) -> Array:
    array: Array = tensor.detach().to(dtype).contiguous().cpu().numpy()
    return array
