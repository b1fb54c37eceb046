"""Generative adversarial networks (Goodfellow et al. 2014) and DCGAN (Radford et al. 2016) on records, on PyTorch.

Generator and discriminator are networks in our vocabulary (transposed convolutions, batch normalisation, leaky ReLU);
the discriminator has a single logit. The generator takes the non-saturating loss.

    python -m imagenet_pipeline.extras.gan output/digits output/gan --epochs 30
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save

from imagenet_pipeline import files
from imagenet_pipeline.config import Augmentation
from imagenet_pipeline.drawing import contact_sheet, write_png
from imagenet_pipeline.engines.pytorch.network import build
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.extras import execute, make_folder
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Flatten,
    Layer,
    Sequential,
    stack,
)
from imagenet_pipeline.networks.shapes import Shape, parameters
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet

LATENT = (64, 1, 1)
"""Shape of what a generator makes a sample of: numbers drawn from a normal distribution."""
LEAK = 0.2
DEVIATION = 0.02
"""Standard deviation of the weights at the start, as in the DCGAN paper."""
SHEET = 64


def dcgan_generator(side: int, channels: int = 3, width: int = 32) -> Sequential:
    """LATENT numbers to images in -1..1, doubled in size by each transposed convolution from 4 pixels on.

    Raises BadRecipe for a side that is not 4 times a power of 2.
    """
    doublings = _doublings(side)
    first = width * 2 ** (doublings - 1)
    items: dict[str, Layer] = {
        "project": ConvTranspose(first, 4, bias=False),
        "norm0": BatchNorm(),
        "relu0": Activation("relu"),
    }
    for number in range(1, doublings):
        items[f"up{number}"] = ConvTranspose(first // 2**number, 4, stride=2, pad=1, bias=False)
        items[f"norm{number}"] = BatchNorm()
        items[f"relu{number}"] = Activation("relu")
    return stack(**items, up=ConvTranspose(channels, 4, stride=2, pad=1), tanh=Activation("tanh"))


def dcgan_discriminator(side: int, width: int = 32) -> Sequential:
    """Images to a logit: that of being real."""
    items: dict[str, Layer] = {}
    for number in range(_doublings(side)):
        items[f"conv{number}"] = Conv(width * 2**number, 4, stride=2, pad=1, bias=number == 0)
        if number:
            items[f"norm{number}"] = BatchNorm()
        items[f"leaky{number}"] = Activation("leaky", LEAK)
    return stack(**items, flatten=Flatten(), logit=Dense(1))


def _doublings(side: int) -> int:
    doublings = side.bit_length() - 3
    if side < 8 or side != 4 * 2**doublings:
        what, expected = "the side of the images cannot be made by doubling", "8, 16, 32, 64, ..."
        raise BadRecipe(what, where="--size", expected=expected, found=side)
    return doublings


def plane_generator(width: int = 64) -> Sequential:
    """LATENT numbers to points of a plane: two hidden layers."""
    relu = Activation("relu")
    return stack(flatten=Flatten(), dense1=Dense(width), relu1=relu, dense2=Dense(width), relu2=relu, points=Dense(2))


def plane_discriminator(width: int = 64) -> Sequential:
    """Points of a plane to a logit."""
    leaky = Activation("leaky", LEAK)
    return stack(
        flatten=Flatten(), dense1=Dense(width), leaky1=leaky, dense2=Dense(width), leaky2=leaky, logit=Dense(1)
    )


class Player:
    """A network with its parameters and its optimizer (Adam)."""

    def __init__(self, network: Sequential, input_shape: Shape, seed: int, rate: float, normal: bool) -> None:
        drawn = initial_values(network, input_shape, "xavier", seed)
        known = parameters(network, input_shape)
        random = torch.Generator().manual_seed(seed)
        self.tensors = {}
        for name, value in drawn.items():
            tensor = torch.from_numpy(value.copy())
            if normal and known[name].role == "weight":
                tensor = DEVIATION * torch.randn(tensor.shape, generator=random)
            self.tensors[name] = tensor.requires_grad_(known[name].trainable)
        self._module = build(network, self.tensors)
        trained = [tensor for tensor in self.tensors.values() if tensor.requires_grad]
        self._rule = torch.optim.Adam(trained, lr=rate, betas=(0.5, 0.999))

    def __call__(self, inputs: Any, training: bool = True) -> Any:
        self._module.train(training)
        return self._module(inputs)[0]

    def step(self, loss: Any) -> None:
        """Go a step down the gradient of a loss."""
        self._rule.zero_grad(set_to_none=True)
        loss.backward()
        self._rule.step()


@dataclass
class Game:
    """A generator and a discriminator, one against the other; `losses` has those of both of each step."""

    generator: Player
    discriminator: Player
    seed: int

    def __post_init__(self) -> None:
        self._random = torch.Generator().manual_seed(self.seed)
        self.losses: list[tuple[float, float]] = []

    def sample(self, count: int) -> Any:
        """New samples, by running statistics, the same for the same count."""
        latent = torch.randn(count, *LATENT, generator=torch.Generator().manual_seed(self.seed + 1))
        with torch.no_grad():
            return self.generator(latent, training=False)

    def step(self, real: Any) -> None:
        """Train the discriminator on real samples and made ones, then the generator on others."""
        made = self.generator(self._latent(len(real)))
        own = _judged(self.discriminator(real), 1) + _judged(self.discriminator(made.detach()), 0)
        self.discriminator.step(own)
        fooled = _judged(self.discriminator(self.generator(self._latent(len(real)))), 1)
        self.generator.step(fooled)
        self.losses.append((float(fooled.detach()), float(own.detach())))

    def _latent(self, count: int) -> Any:
        return torch.randn(count, *LATENT, generator=self._random)


def _judged(logits: Any, truth: int) -> Any:
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))


def plane_game(seed: int = 0) -> Game:
    """A game whose samples are points of a plane; the discriminator learns faster, which keeps it from going round."""
    generator = Player(plane_generator(), LATENT, seed, 5e-4, normal=False)
    return Game(generator, Player(plane_discriminator(), (2, 1, 1), seed + 1, 2e-3, normal=False), seed)


def image_game(side: int, seed: int = 0) -> Game:
    """A game whose samples are images (DCGAN)."""
    generator = Player(dcgan_generator(side), LATENT, seed, 2e-4, normal=True)
    return Game(generator, Player(dcgan_discriminator(side), (3, side, side), seed + 1, 2e-4, normal=True), seed)


def energy_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The energy distance of two samples [n, k] (Szekely & Rizzo 2013): 0 for the same distribution alone."""

    def apart(one_way: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        return float(np.sqrt(np.maximum(_squared_distances(one_way, other), 0)).mean())

    return 2 * apart(first, second) - apart(first, first) - apart(second, second)


def _squared_distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    products: NDArray[np.float64] = first @ second.T
    squares: NDArray[np.float64] = (first**2).sum(1)[:, None] + (second**2).sum(1)
    return squares - 2 * products


def real_images(data: Path, side: int, batch_size: int, epochs: int, seed: int) -> Iterator[Any]:
    """Batches of the training images, [n, 3, side, side] in -1..1, in a new order in each epoch."""
    centre = Augmentation(crop="centre", flip=0.0)
    found = read_data_set(data)
    with RecordSet.of(found, "train") as records:
        loader = Loader(
            records, side, batch_size, classes=len(found.classes), label_kind=found.classes.label_kind
        )  # whose labels it does not look at
        for epoch in range(epochs):
            with loader.training(seed, epoch, centre) as batches:
                for batch in batches:
                    yield torch.from_numpy(batch.images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def play(game: Game, batches: Iterable[Any], steps: int) -> None:
    """Take a step on each batch."""
    with Bar("gan", "steps") as bar:
        for step, real in enumerate(batches, 1):
            game.step(real)
            bar.show(step, steps, ["loss {:.3f} / {:.3f}".format(*game.losses[-1])])


def sheet_of(images: Any) -> Image.Image:
    """Images [n, 3, side, side] in -1..1 on a sheet."""
    levels = ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    times = max(1, 64 // levels.shape[1])
    tiles = [Image.fromarray(np.repeat(np.repeat(image, times, 0), times, 1)) for image in levels]
    return contact_sheet(tiles, 8, "")


def main(
    data: Annotated[Path, typer.Argument(help="Folder of a data set, as `build` made it.")],
    out: Annotated[Path, typer.Argument(help="Folder for the pictures and the generator's weights.")],
    size: Annotated[int, typer.Option(help="Side of the images, 8, 16, 32, ...")] = 32,
    epochs: Annotated[int, typer.Option(min=1)] = 30,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a DCGAN on the training images of a data set, and draw what it makes."""
    game = image_game(size, seed)
    images = read_data_set(data).counts.get("train", 0)
    make_folder(out)
    play(game, real_images(data, size, batch_size, epochs, seed), epochs * (images // batch_size))
    weights = {name: tensor.detach() for name, tensor in game.generator.tensors.items()}
    files.write_whole(out / "generator.safetensors", save(weights))
    write_png(sheet_of(game.sample(SHEET)), out / "made.png")
    files.write_json(out / "losses.json", game.losses)
    print(f"{out / 'made.png'}: {SHEET} images after {len(game.losses):,} steps")


if __name__ == "__main__":
    execute(main)
