"""Style transfer on a network of ours: both optimizers bring all its losses down, and the parts are as defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.extras.style import (
    Features,
    StyleLoss,
    Weights,
    as_tensor,
    default_layers,
    gram,
    read_image,
    total_variation,
    transfer,
)
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Activation, Dense, Flatten, Sequential, stack
from imagenet_pipeline.networks.minivggnet import minivggnet

MEAN, STD = (120.0, 115.0, 100.0), (60.0, 58.0, 57.0)


def network() -> Sequential:
    return minivggnet(10)


def features(paths: list[str]) -> Features:
    return Features(network(), initial_values(network(), (3, 32, 32), "he", 0), MEAN, STD, paths)


def image(seed: int) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (1, 3, 40, 48))).float()


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_content_and_style_come_together(optimizer: str) -> None:
    paths = default_layers(network())
    loss = StyleLoss(features(paths), image(0), image(1), paths[-1], paths, Weights(1.0, 10.0, 1e-3))
    found, history = transfer(loss, image(2), 12, optimizer)
    assert history[-1].total < 0.8 * history[0].total
    assert history[-1].content < 0.8 * history[0].content
    assert history[-1].style < 0.7 * history[0].style
    assert found.min() >= 0
    assert found.max() <= 255
    assert found.shape == (1, 3, 40, 48)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_photo_as_it_is_read_begins(optimizer: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), image(0)[0].permute(1, 2, 0).round().byte().numpy())
    start, paths = as_tensor(read_image(photo, 40)), default_layers(network())
    loss = StyleLoss(features(paths), start, image(1), paths[-1], paths, Weights())
    assert transfer(loss, start, 2, optimizer)[0].shape == start.shape


def test_a_network_of_grey_images_looks_at_their_grey() -> None:
    values = initial_values(network(), (1, 32, 32), "he", 0)
    seen = Features(network(), values, (110.0,), (60.0,), ["block1.relu1"])
    grey = (image(0) * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand(1, 3, -1, -1)
    torch.testing.assert_close(seen(image(0))["block1.relu1"], seen(grey)["block1.relu1"], rtol=1e-4, atol=1e-4)


def test_what_a_network_does_not_take_is_a_line() -> None:
    for path, message in (("flatten", "that of a map"), ("dense", "takes no image of 48x40")):
        with pytest.raises(BadRecipe, match=message):
            StyleLoss(features([path]), image(0), image(1), path, [path], Weights())
    with pytest.raises(BadRecipe, match="no activation of a map"):
        default_layers(stack(flatten=Flatten(), dense=Dense(8), relu=Activation("relu"), classifier=Dense(2)))


def test_an_image_has_no_loss_to_itself() -> None:
    paths = default_layers(network())
    loss = StyleLoss(features(paths), image(0), image(0), paths[0], paths, Weights(variation=0.0))
    assert loss(image(0))[1].total == pytest.approx(0, abs=1e-8)


def test_the_parts_are_what_the_paper_says() -> None:
    values = np.random.default_rng(0).normal(size=(1, 3, 4, 5))
    flat = values.reshape(3, -1)
    np.testing.assert_allclose(gram(torch.from_numpy(values)).numpy(), flat @ flat.T / 20)
    variation = np.abs(np.diff(values, axis=2)).mean() + np.abs(np.diff(values, axis=3)).mean()
    assert float(total_variation(torch.from_numpy(values))) == pytest.approx(variation)


def test_a_layer_or_optimizer_that_is_none_is_a_line() -> None:
    with pytest.raises(BadRecipe, match="no layer is called"):
        features(["nowhere"])
    with pytest.raises(BadRecipe, match="--optimizer"):
        transfer(None, image(0), 1, "sgd")  # type: ignore[arg-type]
