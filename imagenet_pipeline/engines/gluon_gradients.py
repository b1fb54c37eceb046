"""How a class's score depends on what one layer gives, in MXNet; `pytorch_gradients` states the same for PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from imagenet_pipeline.engines import Array, Images, Labels, find_layer, not_scored
from imagenet_pipeline.engines.gluon.runtime import mx


def gradients_of(
    network: Any, layers: Mapping[str, Any], path: str, images: Images, classes: Labels, context: Any
) -> tuple[Array, Array]:
    """The output of the layer `path` of a network that is not hybridized, and the gradient by it of the scores.

    Raises BadRecipe for a layer there is not, or that is not run.
    """
    outputs: list[Any] = []

    def begin_anew(block: Any, inputs: Any, output: Any) -> None:
        # On a computed array this forgets how it came about: gradients go back to it and no further.
        output.attach_grad()
        outputs.append(output)

    pixels = mx.nd.array(images, ctx=context, dtype="uint8")
    with ExitStack() as hooks:
        hooks.callback(find_layer(layers, path).register_forward_hook(begin_anew).detach)
        hooks.enter_context(_remembering_maxima(layers.values()))
        with mx.autograd.record(train_mode=False):
            chosen = mx.nd.pick(network(pixels), mx.nd.array(classes, ctx=context, dtype="int32"))
    if not outputs:
        raise not_scored(path)
    (gradients,) = mx.autograd.grad(chosen, outputs[:1], train_mode=False)
    return outputs[0].asnumpy(), gradients.asnumpy()


@contextmanager
def _remembering_maxima(blocks: Any) -> Iterator[None]:
    """Let max pooling, and it alone, run as in training, where its result is the same.

    In scoring oneDNN's float32 kernel does not note where the maxima were, and the gradient is wrong throughout.
    """
    with ExitStack() as hooks:
        for block in blocks:
            if isinstance(block, mx.gluon.nn.MaxPool2D):
                before = block.register_forward_pre_hook(lambda *_: mx.autograd.set_training(True))
                after = block.register_forward_hook(lambda *_: mx.autograd.set_training(False))
                hooks.callback(before.detach)
                hooks.callback(after.detach)
        yield
