"""Generators learn a distribution: points on a ring by their energy distance, digits by the same on pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import imagenet_pipeline as ip
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.extras import gan
from imagenet_pipeline.networks.shapes import output_shape


def cloud(count: int, seed: int) -> np.ndarray[Any, Any]:
    """A long, tilted cloud of points."""
    return np.random.default_rng(seed).normal(size=(count, 2)) @ [[1.5, 1.0], [-0.1, 0.4]] + [2.0, -1.0]


def test_a_distribution_in_the_plane_is_matched() -> None:
    game, unseen = gan.plane_game(), cloud(1000, 1)
    before = gan.energy_distance(game.sample(1000).double().numpy(), unseen)
    batches = [torch.from_numpy(cloud(128, seed)).float() for seed in range(100, 600)]
    gan.play(game, batches, len(batches))
    made = game.sample(1000).double().numpy()
    assert gan.energy_distance(made, unseen) < 0.05 * before
    np.testing.assert_allclose(made.mean(axis=0), unseen.mean(axis=0), atol=0.3)
    np.testing.assert_allclose(np.cov(made.T), np.cov(unseen.T), atol=0.7)


def test_digits_are_drawn_from_records(digits_records: Path) -> None:
    game = gan.image_game(8)
    real = torch.cat(list(gan.real_images(digits_records, 8, 299, 1, 0)))[:500].flatten(1).double().numpy()
    before = gan.energy_distance(game.sample(300).flatten(1).double().numpy(), real)
    batches = gan.real_images(digits_records, 8, 64, 8, 0)
    gan.play(game, batches, 8 * 18)
    after = gan.energy_distance(game.sample(300).flatten(1).double().numpy(), real)
    assert after < 0.4 * before
    assert np.asarray(gan.sheet_of(game.sample(16))).std() > 20


@pytest.mark.parametrize("side", [8, 32, 64])
def test_generator_and_discriminator_fit_each_other(side: int) -> None:
    assert output_shape(gan.dcgan_generator(side), gan.LATENT) == (3, side, side)
    assert output_shape(gan.dcgan_discriminator(side), (3, side, side)) == (1,)


def test_a_side_that_doubling_does_not_make_is_a_line() -> None:
    with pytest.raises(BadRecipe, match="doubling"):
        gan.dcgan_generator(28)


def test_images_whose_labels_are_numbers_will_do(tmp_path: Path) -> None:
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((9, 12, 3), 20 * number, np.uint8))
    table = "\n".join(["image,age", *(f"{number}.png,{number + 0.5}" for number in range(4))])
    (tmp_path / "ages.csv").write_text(table)
    ip.build(
        "csv", out=tmp_path / "set", csv_file=tmp_path / "ages.csv", root=tmp_path, image_column="image",
        label_column="age", regression=True, val_fraction=0.0, workers=1,
    )  # fmt: skip
    (batch,) = gan.real_images(tmp_path / "set", 8, 4, 1, 0)
    assert batch.shape == (4, 3, 8, 8)
