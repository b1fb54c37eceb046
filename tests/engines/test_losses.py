"""Losses and hits of both engines against NumPy statements and torch.nn.functional."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as pytorch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    hamming_loss,
    hinge_loss,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
)

from imagenet_pipeline.config import LossRecipe, log_odds
from imagenet_pipeline.engines import Totals, is_installed
from imagenet_pipeline.engines.pytorch import losses as pytorch_losses
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.records.classes import ClassTable, LabelKind
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
    "wide hinge": LossRecipe(kind="hinge", margin=2.5),
    "focal": LossRecipe(kind="focal"),
    "smoothed focal": LossRecipe(kind="focal", gamma=0.5, label_smoothing=0.1),
    "binary": LossRecipe(kind="binary_cross_entropy"),
    "low binary": LossRecipe(kind="binary_cross_entropy", threshold=0.2, label_smoothing=0.1),
}


def put(engine: str, array: Array) -> Any:
    """On the engine's device, in the type the engine gives it; float64 stays."""
    if engine == "pytorch":
        return torch.from_numpy(array)
    return mx.nd.array(array, dtype="int32" if array.dtype == np.int64 else array.dtype)


def taken(array: Any) -> Array:
    found: Array = array.detach().numpy() if isinstance(array, torch.Tensor) else array.asnumpy()
    return found


def found_losses(
    engine: str, logits: Array, targets: Array, loss: LossRecipe, training: bool, label_kind: LabelKind = "class"
) -> tuple[Array, Array]:
    """Losses [n], and the gradient of their sum with regard to the logits."""
    scores = put(engine, logits)
    if engine == "pytorch":
        scores.requires_grad_()
        losses = pytorch_losses.losses_of(scores, put(engine, targets), loss, training, label_kind)
        losses.sum().backward()
    else:
        scores.attach_grad()
        with mx.autograd.record():
            losses = gluon_losses.losses_of(scores, put(engine, targets), loss, training, label_kind)
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
        margins = np.where(shares == 1, 0, logits - own + loss.margin)
        counted = (margins > 0) * 1.0
        return np.maximum(margins, 0).sum(1), counted - shares * counted.sum(1, keepdims=True)
    e = loss.label_smoothing if training else 0.0
    shares = (1 - e) * shares + e / classes
    if loss.kind == "focal":
        return wanted_focal(logits, shares, loss.gamma)
    if loss.kind == "binary_cross_entropy":
        logits = logits + np.array([0, np.log(loss.threshold / (1 - loss.threshold))])
    return -(shares * np.log(softmax(logits))).sum(1), softmax(logits) - shares


def wanted_focal(logits: Array, shares: Array, gamma: float) -> tuple[Array, Array]:
    p = softmax(logits)
    # By p_j, and from there by the logits.
    slopes = shares * (gamma * (1 - p) ** (gamma - 1) * np.log(p) - (1 - p) ** gamma / p)
    return -(shares * (1 - p) ** gamma * np.log(p)).sum(1), p * (slopes - (slopes * p).sum(1, keepdims=True))


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
    logits, labels, shares = example(seed, images, 2 if "binary" in name else classes)
    for targets in (labels, shares):
        if "hinge" in name and targets is shares:
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


@pytest.mark.parametrize("engine", ENGINES)
def test_the_losses_of_two_classes_equal_those_of_torch_and_scikit_learn(engine: str) -> None:
    random = np.random.default_rng(3)
    output, labels = random.normal(size=40) * 3, random.integers(0, 2, 40)
    single, truth = torch.tensor(output), torch.tensor(labels, dtype=torch.float64)
    for threshold in (0.5, 0.9):
        binary = LossRecipe(kind="binary_cross_entropy", threshold=threshold)
        scores = np.stack([np.zeros(40), output - log_odds(threshold)], axis=1)
        found = found_losses(engine, scores, labels, binary, False)[0]
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(single, truth, reduction="none").numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)
        assert found.mean() == pytest.approx(log_loss(labels, torch.sigmoid(single).numpy()), rel=1e-12)
        np.testing.assert_array_equal(scores.argmax(1), torch.sigmoid(single).numpy() > threshold)
    scores = np.stack([np.zeros(40), output], axis=1)
    focal = found_losses(engine, scores, labels, LossRecipe(kind="focal", gamma=2.0), False)[0]
    probability = np.where(labels == 1, torch.sigmoid(single), 1 - torch.sigmoid(single))
    np.testing.assert_allclose(focal, -((1 - probability) ** 2) * np.log(probability), rtol=1e-10)
    found = found_losses(engine, scores, labels, LossRecipe(kind="hinge"), True)[0]
    assert found.mean() == pytest.approx(hinge_loss(labels, output), rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_multiply_each_images_loss_and_equal_those_of_torch_and_scikit_learn(engine: str) -> None:
    logits, labels, shares = example(5, images=30)
    weights = np.random.default_rng(5).uniform(0, 3, 7)
    losses = {name: found_losses(engine, logits, labels, LOSSES[name], False)[0] for name in ("plain", "hinge")}
    for name, own in losses.items():
        found = taken(ENGINES[engine].weighted(put(engine, own), put(engine, labels), put(engine, weights)))
        np.testing.assert_allclose(found, own * weights[labels], rtol=1e-12, err_msg=name)
    plain = losses["plain"]
    found = taken(ENGINES[engine].weighted(put(engine, plain), put(engine, labels), put(engine, weights)))
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(weights), reduction="sum"
    )
    assert found.sum() == pytest.approx(wanted.item(), rel=1e-12)
    by_image = weights[labels]
    sklearn_s = log_loss(labels, softmax(logits), sample_weight=by_image, labels=range(7))
    assert found.sum() / by_image.sum() == pytest.approx(sklearn_s, rel=1e-10), "scikit-learn divides by the weights"
    mixed = taken(ENGINES[engine].weighted(put(engine, plain), put(engine, shares), put(engine, weights)))
    np.testing.assert_allclose(mixed, plain * (shares @ weights), rtol=1e-12)
    assert ENGINES[engine].weighted(plain, labels, None) is plain


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
    logits, labels, _ = example(1, images=3, classes=2 if "binary" in name else 4)
    labels[:] = 1
    logits[1, 0] = bad
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


OF_VECTORS = {
    "binary": (LossRecipe(kind="binary_cross_entropy"), "binary_cross_entropy_with_logits", {}),
    "mae": (LossRecipe(kind="mae"), "l1_loss", {}),
    "mse": (LossRecipe(kind="mse"), "mse_loss", {}),
    "huber": (LossRecipe(kind="huber", delta=0.7), "huber_loss", {"delta": 0.7}),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OF_VECTORS)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 6), labels=st.integers(1, 5))
def test_losses_of_label_vectors_are_pytorch_s(engine: str, name: str, seed: int, images: int, labels: int) -> None:
    loss, function, options = OF_VECTORS[name]
    draws = np.random.default_rng(seed)
    logits = 20 * draws.standard_normal((images, labels))
    targets = (
        draws.random((images, labels))
        if loss.kind != "binary_cross_entropy"
        else draws.integers(0, 2, (images, labels))
    )
    scores, wanted = torch.from_numpy(logits.copy()).requires_grad_(), torch.from_numpy(targets.astype(np.float64))
    losses = getattr(torch.nn.functional, function)(scores, wanted, reduction="none", **options).mean(1)
    losses.sum().backward()
    found, gradient = found_losses(engine, logits, targets.astype(np.float64), loss, True, "classes")
    np.testing.assert_allclose(found, taken(losses), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient, scores.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_figures_of_label_vectors_are_those_of_scikit_learn(engine: str) -> None:
    draws = np.random.default_rng(0)
    logits, truths = draws.standard_normal((40, 5)), draws.integers(0, 2, (40, 5)).astype(np.float64)
    truths[:7] = logits[:7] > 0
    losses, metrics = put(engine, np.ones(40)), ENGINES[engine].METRICS
    sums = np.array([taken(metrics["classes"](losses, put(engine, logits), put(engine, truths)))])
    figures = Totals.of(40, sums, "classes").figures(ClassTable("list", tuple("abcde"), tuple("abcde"), "classes"))
    assert figures["exact"] == pytest.approx(100 * accuracy_score(truths, logits > 0))
    assert figures["accuracy"] == pytest.approx(100 * (1 - hamming_loss(truths, logits > 0)))
    sums = np.array([taken(metrics["number"](losses, put(engine, logits), put(engine, truths)))])
    figures = Totals.of(40, sums, "number").figures(ClassTable("list", tuple("abcde"), tuple("abcde"), "number"))
    assert figures["mae"] == pytest.approx(mean_absolute_error(truths, logits))
    assert figures["rmse"] == pytest.approx(mean_squared_error(truths, logits) ** 0.5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_has_no_finite_loss(engine: str, value: float) -> None:
    logits, targets = np.array([[0.5, value], [1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    for loss, _, _ in OF_VECTORS.values():
        found, _ = found_losses(engine, logits, targets, loss, True, "classes")
        assert not np.isfinite(found[0]), loss.kind
        assert np.isfinite(found[1])
