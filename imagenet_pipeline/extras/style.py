"""Neural style transfer (Gatys, Ecker & Bethge 2016, "Image style transfer using convolutional neural networks").

An image is found whose features in a network of ours are those of the content, their correlations (Gram matrices)
those of the style, and whose neighbouring pixels differ little (total variation). The network is that of a run: one
trained here, or one that `import` made of public weights, as VGG-19.

    python -m imagenet_pipeline.extras.style output/runs/vgg19 photo.jpg painting.jpg --out styled.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from PIL import Image

from imagenet_pipeline import files
from imagenet_pipeline.drawing import require_png, write_png
from imagenet_pipeline.engines.pytorch.network import build
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.evaluation.features import own_network
from imagenet_pipeline.evaluation.predict import read_naming_damage
from imagenet_pipeline.extras import execute
from imagenet_pipeline.loading.transforms import GREY, Pixels
from imagenet_pipeline.networks.layers import Activation, Dense, Flatten, GlobalAveragePool, Sequential, walk
from imagenet_pipeline.networks.shapes import parameters
from imagenet_pipeline.networks.subnetwork import until
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.image import Rejected, average_areas

STYLE_LAYERS = 5
"""Number of activations where none are named, at even distances; the last but one is that of the content."""


@dataclass(frozen=True)
class Losses:
    """The three parts of the loss, each times its weight."""

    content: float
    style: float
    variation: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.content + self.style + self.variation


@dataclass(frozen=True)
class Weights:
    """Factors of the three parts."""

    content: float = 1.0
    style: float = 1e3
    variation: float = 1e-2


class Features:
    """Outputs of some layers of a network for an image [1, 3, height, width] in 0..255, or for its grey."""

    def __init__(
        self, network: Sequential, values: Mapping[str, Any], mean: Sequence[float], std: Sequence[float],
        paths: Sequence[str],
    ) -> None:  # fmt: skip
        order = [path for path, _ in walk(network)]
        for path in paths:
            until(network, path)  # which knows the nearest names
        last = max(paths, key=order.index)
        tensors = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in values.items()}
        self._network, self._tensors = until(network, last), tensors
        self._module = build(self._network, tensors).eval()
        self._mean, self._std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (mean, std))
        self._grey = torch.from_numpy(GREY).float().view(1, -1, 1, 1) if len(mean) == 1 else None
        self._found: dict[str, Any] = {}
        for path in paths:
            self._module.layers[path].register_forward_hook(partial(self._keep, path))

    def require_taken(self, image: Any) -> None:
        """Raise BadRecipe for an image of a size that the network does not take."""
        advice = "take a run whose network takes images of any size, or layers before its dense ones"
        try:
            declared = parameters(self._network, (self._mean.numel(), *image.shape[2:]))
        except BadRecipe as error:
            raise error.replaced(advice=advice) from error
        for name, parameter in declared.items():
            if parameter.shape != tuple(self._tensors[name].shape):
                raise BadRecipe("the network takes no image of {3}x{2}".format(*image.shape), where=name, advice=advice)

    def __call__(self, image: Any) -> dict[str, Any]:
        seen = image if self._grey is None else (image * self._grey).sum(1, keepdim=True)
        self._module((seen - self._mean) / self._std)
        return dict(self._found)

    def _keep(self, path: str, module: Any, inputs: Any, output: Any) -> None:
        self._found[path] = output


def gram(features: Any) -> Any:
    """The Gram matrix of features [1, channels, height, width]: products, their mean over positions."""
    flat = features.flatten(2)[0]
    return flat @ flat.T / flat.shape[1]


def total_variation(image: Any) -> Any:
    """The mean absolute difference of neighbouring pixels, down and across."""
    return (image[..., 1:, :] - image[..., :-1, :]).abs().mean() + (image[..., 1:] - image[..., :-1]).abs().mean()


class StyleLoss:
    """The loss of an image, for a content and a style."""

    def __init__(
        self, features: Features, content: Any, style: Any, content_layer: str, style_layers: Sequence[str],
        weights: Weights,
    ) -> None:  # fmt: skip
        self._features, self._weights, self._content_layer = features, weights, content_layer
        for shown in (content, style):
            features.require_taken(shown)
        with torch.no_grad():
            self._content = features(content)[content_layer]
            found = features(style)
            for path in style_layers:
                if found[path].dim() != 4:
                    what, advice = "a layer's style is that of a map, and its output is a vector", "take one before it"
                    raise BadRecipe(what, where=f"layer {path}", advice=advice)
            self._grams = {path: gram(found[path]) for path in style_layers}

    def __call__(self, image: Any) -> tuple[Any, Losses]:
        """The loss as a tensor, and its parts.

        Those of content and style are relative: 1 where features, or Gram matrices, are 0.
        """
        found = self._features(image)
        content = _relative(found[self._content_layer], self._content)
        style = sum(_relative(gram(found[path]), wanted) for path, wanted in self._grams.items()) / len(self._grams)
        parts = [
            self._weights.content * content,
            self._weights.style * style,
            self._weights.variation * total_variation(image),
        ]
        return sum(parts), Losses(*(float(part.detach()) for part in parts))


def _relative(found: Any, wanted: Any) -> Any:
    return (found - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)


def transfer(loss: StyleLoss, start: Any, steps: int, optimizer: str = "lbfgs") -> tuple[Any, list[Losses]]:
    """Change an image [1, 3, height, width], 0..255, step by step; gives the last and the losses before each step."""
    image = start.clone(memory_format=torch.contiguous_format).requires_grad_()  # which L-BFGS asks for
    rules = {
        "lbfgs": lambda: torch.optim.LBFGS(
            [image], lr=1.0, max_iter=1, max_eval=20, history_size=20, line_search_fn="strong_wolfe"
        ),
        "adam": lambda: torch.optim.Adam([image], lr=3.0),
    }
    if optimizer not in rules:
        raise BadRecipe("no such optimizer", where="--optimizer", expected=" or ".join(rules), found=optimizer)
    rule, history = rules[optimizer](), []

    def evaluate() -> Any:
        rule.zero_grad()
        value, parts = loss(image)
        value.backward()
        latest.append(parts)
        return value

    with Bar("style", "steps") as bar:
        for step in range(steps):
            latest: list[Losses] = []
            rule.step(evaluate)
            history.append(latest[0])
            with torch.no_grad():
                image.clamp_(0, 255)
            bar.show(step + 1, steps, [f"loss {latest[0].total:.4g}"])
    return image.detach(), history


def default_layers(network: Sequential) -> list[str]:
    """Activations at even distances, those behind the last map, as of dense layers, left out.

    Raises BadRecipe where none is left.
    """
    maps = list(takewhile(lambda item: not isinstance(item[1], Flatten | Dense | GlobalAveragePool), walk(network)))
    found = [path for path, layer in maps if isinstance(layer, Activation)]
    if not found:
        raise BadRecipe("the network has no activation of a map", where="--style-layers", advice="name other layers")
    return [found[at] for at in np.unique(np.linspace(0, len(found) - 1, STYLE_LAYERS).round().astype(int))]


def read_image(path: Path, side: int) -> Pixels:
    """A photo whose longer edge has `side` pixels. Raises BadInput where it cannot be read."""
    try:
        pixels = read_naming_damage(path).whole()
    except Rejected as reason:
        raise BadInput(f"the picture cannot be used ({reason})", where=path) from reason
    scale = side / max(pixels.shape[:2])
    height, width = (max(1, round(scale * edge)) for edge in pixels.shape[:2])
    if scale < 1:
        return average_areas(np.ascontiguousarray(pixels), np.empty((height, width, 3), np.uint8))
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def as_tensor(pixels: Pixels) -> Any:
    """An image [height, width, 3] as [1, 3, height, width]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()


def main(
    run: Annotated[Path, typer.Argument(help="Run folder whose network looks at the images.")],
    content: Annotated[Path, typer.Argument(help="The photo that stays to be seen.")],
    style: Annotated[Path, typer.Argument(help="The picture whose style it takes.")],
    out: Annotated[Path, typer.Option(help="Picture to write, PNG; its losses go beside it as JSON.")],
    side: Annotated[int, typer.Option(min=16, max=2048, help="Longer edge, pixels.")] = 384,
    steps: Annotated[int, typer.Option(min=1)] = 100,
    optimizer: Annotated[str, typer.Option(help="lbfgs or adam.")] = "lbfgs",
    content_layer: Annotated[str | None, typer.Option(help="As `networks NAME` shows it.")] = None,
    style_layers: Annotated[str | None, typer.Option(help="Several with commas between.")] = None,
    style_weight: Annotated[float, typer.Option(min=0)] = 1e3,
    smoothness: Annotated[float, typer.Option(min=0, help="Weight of the total variation.")] = 1e-2,
) -> None:
    """Paint a photo in the style of another picture."""
    require_png(out)
    files.require_separate([out], [content, style])
    _, checkpoint = open_checkpoint(run, "best", {})
    state = checkpoint.state
    network = own_network(state.network, len(state.classes))
    paths = style_layers.split(",") if style_layers else default_layers(network)
    middle = content_layer or paths[-2:][0]
    features = Features(network, checkpoint.weights, state.mean, state.std, list(dict.fromkeys([*paths, middle])))
    photo, painting = as_tensor(read_image(content, side)), as_tensor(read_image(style, side))
    loss = StyleLoss(features, photo, painting, middle, paths, Weights(1.0, style_weight, smoothness))
    image, history = transfer(loss, photo, steps, optimizer)
    write_png(Image.fromarray(image[0].permute(1, 2, 0).round().byte().numpy()), out)
    figures = {"layers": paths, "content_layer": middle, "losses": [vars(losses) for losses in history]}
    files.write_json(out.with_suffix(".json"), figures)
    print(f"{out}: loss {history[0].total:.4g} to {history[-1].total:.4g} in {steps} steps of {optimizer}")


if __name__ == "__main__":
    execute(main)
