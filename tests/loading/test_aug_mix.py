"""AugMix against what its authors' code says (google-research/augmix), said again in NumPy, SciPy and Pillow."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import stats
from sklearn.datasets import load_sample_images

from imagenet_pipeline.loading.auto_augment import CHAIN_COLUMNS, Chains, Change, chains_of, mix_chains
from imagenet_pipeline.loading.transforms import Pixels

SIZE = 96
NAMES = {
    "autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y",
}  # fmt: skip


def numbers(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(6).random((count, CHAIN_COLUMNS))


def photo() -> Pixels:
    image: Pixels = cv2.resize(load_sample_images().images[1], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(image, (0, 0), 1.5)


def test_shares_and_lengths_are_the_papers() -> None:
    """Beta(1, 1) for the image, Dirichlet(1, 1, 1) for the chains: each of these is Beta(1, 2) of the rest."""
    drawn = chains_of(9, numbers(6000), SIZE)
    own = np.array([mixed.own for mixed in drawn])
    assert stats.kstest(own, stats.uniform.cdf).pvalue > 0.01
    shares = np.array([[share for share, _ in mixed.chains] for mixed in drawn])
    assert shares.shape == (6000, 3)
    assert shares.sum(axis=1) + own == pytest.approx(np.ones(6000))
    for share in (shares / (1 - own)[:, None]).T:
        assert stats.kstest(share, stats.beta(1, 2).cdf).pvalue > 0.01
    lengths = np.array([[len(changes) for _, changes in mixed.chains] for mixed in drawn])
    assert {*lengths.ravel().tolist()} == {1, 2, 3}
    assert lengths.mean(axis=0) == pytest.approx([2, 2, 2], abs=0.05)


@pytest.mark.parametrize("severity", [1, 3, 10])
def test_strengths_are_the_authors_integers_and_all(severity: int) -> None:
    """Their `sample_level`, `int_parameter` and `float_parameter`, by simulation."""
    drawn = [
        change for mixed in chains_of(3 * severity, numbers(4000), 60) for _, part in mixed.chains for change in part
    ]
    counts = [sum(change.name == name for change in drawn) for name in NAMES]
    assert sum(counts) == len(drawn)
    assert stats.chisquare(counts).pvalue > 0.001
    levels = np.random.default_rng(1).uniform(0.1, severity, 5000)
    signs = np.random.default_rng(2).choice([-1, 1], 5000)
    published = {
        "posterize": 4 - (levels * 4 / 10).astype(int),
        "solarize": 256 - (levels * 256 / 10).astype(int),
        "rotate": signs * (levels * 30 / 10).astype(int),
        "shear_x": signs * levels * 0.3 / 10,
        "shear_y": signs * levels * 0.3 / 10,
        "translate_x": signs * (levels * (60 / 3) / 10).astype(int),
        "translate_y": signs * (levels * (60 / 3) / 10).astype(int),
    }
    for name, expected in published.items():
        found = np.array([change.strength for change in drawn if change.name == name])
        assert stats.ks_2samp(found, expected).pvalue > 0.001, name
        assert name.startswith("shear") or {*found.tolist()} == {*expected.tolist()}


def test_an_image_is_mixed_with_its_chains() -> None:
    """Each chain by Pillow; what it moves by a pixel or less at the edge, where OpenCV blends with the fill, apart."""
    image = photo()
    chains = Chains(0.3, [
        (0.2, [Change("solarize", 200), Change("posterize", 3)]),
        (0.4, [Change("translate_x", 10), Change("equalize", 0)]),
        (0.1, [Change("rotate", 90)]),
    ])  # fmt: skip
    picture = Image.fromarray(image)
    moved = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 10, 0, 1, 0), Image.Resampling.BILINEAR)
    made = [
        ImageOps.posterize(ImageOps.solarize(picture, 200), 3),
        ImageOps.equalize(moved),
        picture.rotate(90, Image.Resampling.BILINEAR),
    ]
    expected = 0.3 * image.astype(np.float64)
    for (share, _), changed in zip(chains.chains, made, strict=True):
        expected += share * np.asarray(changed, np.float64)
    found = image.copy()
    mix_chains(found, chains, 0)
    difference = np.abs(found - expected)
    assert difference.max() <= 1
    assert difference.mean() <= 0.5


def test_chains_that_change_nothing_leave_the_image_and_rows_beside_it() -> None:
    batch = np.stack([photo()] * 3)
    mix_chains(batch[1], Chains(0.25, [(share, [Change("posterize", 8)]) for share in (0.5, 0.0, 0.25)]), 7)
    assert np.array_equal(batch[0], batch[1])
    mix_chains(batch[1], Chains(1e-9, [(1.0, [Change("solarize", 0)]), (0.0, []), (0.0, [])]), "nearest")
    assert np.array_equal(batch[1], 255 - batch[0])
    assert np.array_equal(batch[0], batch[2])
