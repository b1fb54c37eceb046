"""Losses and hits of both engines against NumPy statements and torch.nn.functional."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as pytorch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.config import LossRecipe
from imagenet_pipeline.engines import is_installed
from imagenet_pipeline.engines.pytorch import losses as pytorch_losses
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training.metrics import rank_hits, top_classes

Array = np.ndarray[Any, Any]
torch: Any = pytorch
gluon_losses: Any = None
if is_installed("gluon"):
    from imagenet_pipeline.engines.gluon import losses as gluon_losses
    from imagenet_pipeline.engines.gluon.runtime import mx

ENGINES = {"gluon": gluon_losses, "pytorch": pytorch_losses}
LOSSES = {
    "plain": LossRecipe(),
    "smoothed": LossRecipe(label_smoothing=0.1),
    "much smoothed": LossRecipe(label_smoothing=0.9),
    "hinge": LossRecipe(kind="hinge"),
}


def put(engine: str, array: Array) -> Any:
    """On the engine's device, in the type the engine gives it; float64 stays."""
    if engine == "pytorch":
        return torch.from_numpy(array)
    return mx.nd.array(array, dtype="int32" if array.dtype == np.int64 else array.dtype)


def taken(array: Any) -> Array:
    found: Array = array.detach().numpy() if isinstance(array, torch.Tensor) else array.asnumpy()
    return found


def found_losses(engine: str, logits: Array, targets: Array, loss: LossRecipe, training: bool) -> tuple[Array, Array]:
    """Losses [n], and the gradient of their sum with regard to the logits."""
    scores = put(engine, logits)
    if engine == "pytorch":
        scores.requires_grad_()
        losses = pytorch_losses.losses_of(scores, put(engine, targets), loss, training)
        losses.sum().backward()
    else:
        scores.attach_grad()
        with mx.autograd.record():
            losses = gluon_losses.losses_of(scores, put(engine, targets), loss, training)
        losses.backward()
    return taken(losses), taken(scores.grad)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def wanted_losses(logits: Array, targets: Array, loss: LossRecipe, training: bool) -> tuple[Array, Array]:
    classes = logits.shape[1]
    shares = np.eye(classes)[targets] if targets.ndim == 1 else targets
    if loss.kind == "hinge":
        own = (logits * shares).sum(1, keepdims=True)
        margins = np.where(shares == 1, 0, logits - own + 1)
        counted = (margins > 0) * 1.0
        return np.maximum(margins, 0).sum(1), counted - shares * counted.sum(1, keepdims=True)
    e = loss.label_smoothing if training else 0.0
    shares = (1 - e) * shares + e / classes
    return -(shares * np.log(softmax(logits))).sum(1), softmax(logits) - shares


def example(seed: int, images: int = 5, classes: int = 7) -> tuple[Array, Array, Array]:
    """Logits, hard labels, and shares of the classes that add up to 1."""
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(classes), images)
    return random.normal(size=(images, classes)) * 4, random.integers(0, classes, images), shares


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(2, 30))
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_and_their_gradients_are_as_written(
    engine: str, name: str, training: bool, seed: int, images: int, classes: int
) -> None:
    logits, labels, shares = example(seed, images, classes)
    for targets in (labels, shares):
        if name == "hinge" and targets is shares:
            continue
        found = found_losses(engine, logits, targets, LOSSES[name], training)
        for one, wanted in zip(found, wanted_losses(logits, targets, LOSSES[name], training), strict=True):
            np.testing.assert_allclose(one, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_equal_those_of_torch(engine: str, smoothing: float) -> None:
    logits, labels, shares = example(1)
    for targets in (labels, shares):
        wanted = torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(targets), label_smoothing=smoothing, reduction="none"
        )
        found = found_losses(engine, logits, targets, LossRecipe(label_smoothing=smoothing), True)[0]
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-12)
    hinge = torch.nn.functional.multi_margin_loss(torch.tensor(logits), torch.tensor(labels), reduction="none")
    found = found_losses(engine, logits, labels, LOSSES["hinge"], True)[0]
    np.testing.assert_allclose(found, hinge.numpy() * logits.shape[1], rtol=1e-12)  # torch's is the mean over classes


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
def test_hinge_refuses_soft_labels(engine: str, training: bool) -> None:
    logits, _, shares = example(1)
    with pytest.raises(BadRecipe, match=r"loss.kind: the hinge loss takes no soft labels; take cross_entropy"):
        ENGINES[engine].losses_of(put(engine, logits), put(engine, shares), LOSSES["hinge"], training)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_logit_that_is_not_finite_makes_its_images_loss_no_number(
    engine: str, name: str, dtype: type[Any], bad: float
) -> None:
    logits, labels, _ = example(1, images=3, classes=4)
    labels[:] = 1
    logits[1, 2] = bad
    for training in (True, False):
        losses = found_losses(engine, logits.astype(dtype), labels, LOSSES[name], training)[0]
        assert np.isnan(losses).tolist() == [False, True, False]


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 12))
@pytest.mark.parametrize("engine", ENGINES)
def test_hits_are_counted_with_ties_to_the_lower_class(engine: str, seed: int, images: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.integers(0, 3, (images, classes)).astype(np.float32)
    labels = random.integers(0, classes, images)
    shares = random.dirichlet(np.ones(classes), images).astype(np.float32)
    losses = random.normal(size=images).astype(np.float32)
    for targets, truth in ((labels, labels), (shares, shares.argmax(1))):
        metrics = taken(ENGINES[engine].metrics_of(*(put(engine, one) for one in (losses, logits, targets))))
        assert metrics[0] == pytest.approx(losses.sum(), rel=1e-5, abs=1e-5)
        assert (metrics[1], metrics[2]) == rank_hits(top_classes(logits), truth)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_of_equal_largest_shares_is_the_class(engine: str) -> None:
    shares = np.array([[0.1, 0.4, 0.1, 0.4]], np.float32)
    logits = np.array([[0, 1, 0, 0]], np.float32)
    metrics = ENGINES[engine].metrics_of(*(put(engine, one) for one in (np.ones(1, np.float32), logits, shares)))
    assert taken(metrics).tolist() == [1, 1, 1]
