"""The gradient of a class's score by what a layer gives: against differences, plain PyTorch, and as in scoring.

Tests that ask for `make_engine` run on each engine, and on two devices where it takes two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.engines import Engine, find_layer
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Concat,
    Constant,
    Conv,
    Dense,
    Dropout,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Graph,
    InstanceNorm,
    Join,
    Pool,
    Residual,
    Sequential,
    Tap,
    stack,
)
from imagenet_pipeline.networks.shapes import parameters
from imagenet_pipeline.networks.subnetwork import until

MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]

NETWORK = stack(
    stem=stack(conv=Conv(6, 3, pad=1), norm=BatchNorm(), elu=Activation("elu", slope=1.0)),
    unit=Residual(stack(conv1=Conv(5, 3, pad=1), tanh=Activation("tanh"), conv2=Conv(6, 1)), stack(conv=Conv(6, 1))),
    tap=Tap(stack(pool=GlobalAveragePool(), flatten=Flatten(), classifier=Dense(7)), 0.3),
    drop=Dropout(0.5),
    mixed=Concat((("one", Conv(3, 1)), ("three", stack(conv=Conv(4, 3, pad=1), sigmoid=Activation("sigmoid"))))),
    graph=Graph(
        (
            ("left", Conv(4, 1)),
            ("right", stack(conv=Conv(4, 3, pad=1), norm=InstanceNorm())),
            ("number", Constant((4, 1, 1))),
            ("sum", Elementwise("add")),
            ("end", Join()),
        ),
        (("",), ("",), (), ("left", "right", "number"), ("sum", "left")),
    ),
    pool=Pool("average", 2, stride=2),
    flatten=Flatten(),
    classifier=Dense(7),
)
BIASED = (
    "stem.conv",
    "unit.conv1",
    "unit.shortcut.conv",
    "mixed.one",
    "mixed.three.conv",
    "graph.left",
    "graph.right.norm",
    "classifier",
)


@pytest.fixture(scope="module", params=["gluon", "gluon on two devices", "pytorch"])
def make_engine(request: pytest.FixtureRequest, make_engine: MakeEngine) -> MakeEngine:
    """The one of conftest.py, of one engine after the other."""
    engine, _, two = request.param.partition(" ")
    return partial(make_engine, engine=engine, devices="cpu:0,1" if two else "cpu")


def values_of(network: Sequential) -> dict[str, Any]:
    """Initial values with every bias and statistic at random; float32 numbers, as MXNet keeps statistics."""
    random, values = np.random.default_rng(3), dict(initial_values(network, (3, 12, 12), "he", 1))
    for name, one in values.items():
        if one.ndim == 1:
            values[name] = random.uniform(0.5, 1.5, one.shape).astype(np.float32)
    return values


@pytest.mark.parametrize("layer", BIASED)
def test_the_sum_over_positions_is_the_difference_that_a_bias_makes(
    make_engine: MakeEngine, make_batch: MakeBatch, layer: str
) -> None:
    images, classes = make_batch(3)
    values, step = values_of(NETWORK), 1e-4
    engine = make_engine(NETWORK, precision="float64", values=values)
    _, gradients = engine.layer_gradients(images, layer, classes)
    found = gradients.reshape(3, gradients.shape[1], -1).sum(2)

    def scores(name: str, index: int, change: float) -> Any:
        moved = values | {name: values[name].astype(np.float64)}
        moved[name][index] += change
        engine.set_values(moved)
        return engine.logits(images)[np.arange(3), classes]

    name = f"{layer}.bias"
    for index in range(found.shape[1]):
        wanted = (scores(name, index, step) - scores(name, index, -step)) / (2 * step)
        np.testing.assert_allclose(found[:, index], wanted, rtol=1e-6, atol=1e-8)


def test_every_position_s_gradient_is_the_one_plain_pytorch_finds(
    make_engine: MakeEngine, make_batch: MakeBatch
) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    images, classes = make_batch(2)
    values = values_of(NETWORK)
    engine = make_engine(NETWORK, precision="float64", values=values)
    activations, gradients = engine.layer_gradients(images, "unit.conv1", classes)
    mean, std = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 61.0, 62.0])
    tensors = {name: torch.tensor(one, dtype=torch.float64) for name, one in values.items()}

    def conv(x: Any, name: str, pad: int = 0) -> Any:
        return functional.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=pad)

    pixels = (torch.tensor(images, dtype=torch.float64) - mean) / std
    norm = [tensors[f"stem.norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    stem = functional.elu(functional.batch_norm(conv(pixels.permute(0, 3, 1, 2), "stem.conv", 1), *norm))
    inner = conv(stem, "unit.conv1", 1).requires_grad_()
    unit = conv(torch.tanh(inner), "unit.conv2") + conv(stem, "unit.shortcut.conv")
    mixed = torch.cat([conv(unit, "mixed.one"), torch.sigmoid(conv(unit, "mixed.three.conv", 1))], 1)
    left, scale = conv(mixed, "graph.left"), [tensors[f"graph.right.norm.{name}"] for name in ("weight", "bias")]
    right = functional.instance_norm(conv(mixed, "graph.right.conv", 1), None, None, *scale, eps=1e-3)
    graph = torch.cat([left + right + tensors["graph.number.value"], left], 1)
    flat = functional.avg_pool2d(graph, 2).flatten(1)
    scores = flat @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    (wanted,) = torch.autograd.grad(scores[torch.arange(2), torch.tensor(classes)].sum(), inner)
    assert gradients.dtype == np.float64
    np.testing.assert_allclose(activations, inner.detach().numpy(), rtol=0, atol=1e-9 * abs(activations).max())
    np.testing.assert_allclose(gradients, wanted.numpy(), rtol=0, atol=1e-9 * abs(gradients).max())


@pytest.mark.parametrize(
    "layer",
    [
        "stem",
        "unit",
        "unit.tanh",
        "mixed",
        "drop",
        "graph.right",
        "graph.sum",
        "graph",
        "graph.end",
        "flatten",
        "classifier",
    ],
)
def test_activations_are_those_of_the_network_cut_there(
    make_engine: MakeEngine, make_batch: MakeBatch, layer: str
) -> None:
    images, classes = make_batch(4)
    values = values_of(NETWORK)
    activations, gradients = make_engine(NETWORK, precision="float64", values=values).layer_gradients(
        images, layer, classes
    )
    cut = until(NETWORK, layer)
    wanted = make_engine(cut, precision="float64", values={name: values[name] for name in parameters(cut, (3, 12, 12))})
    np.testing.assert_allclose(activations, wanted.logits(images), rtol=0, atol=1e-12 * abs(activations).max())
    assert gradients.shape == activations.shape


def test_by_the_scores_themselves_it_is_one_for_the_class(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    images, classes = make_batch(5)
    _, gradients = make_engine(NETWORK).layer_gradients(images, "classifier", classes)
    np.testing.assert_array_equal(gradients, np.eye(7)[classes])


def test_each_image_is_alone_with_its_class(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    images, classes = make_batch(3)
    engine = make_engine(NETWORK, precision="float64", values=values_of(NETWORK))
    together = engine.layer_gradients(images, "unit", classes)
    for index in range(3):
        alone = engine.layer_gradients(images[index : index + 1], "unit", classes[index : index + 1])
        for all_of_them, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(all_of_them[index], one[0], rtol=0, atol=1e-12 * abs(one).max())


def test_training_goes_on_as_if_nobody_had_asked(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    images, labels = make_batch(4)
    asked, other = (make_engine(NETWORK, values=values_of(NETWORK), average_decay=0.9) for _ in range(2))
    for step in range(3):
        for engine in (asked, other):
            engine.train_batch(images, labels, 0.05, step)
        before = asked.layer_gradients(images, "unit.conv1", labels)
        again = asked.layer_gradients(images, "unit.conv1", labels)
        for first, second in zip(before, again, strict=True):
            np.testing.assert_array_equal(first, second)
    assert asked.totals().step_losses.tolist() == other.totals().step_losses.tolist()
    for found, wanted in (
        (asked.values(), other.values()),
        (asked.optimizer_state(), other.optimizer_state()),
        ({"logits": asked.logits(images)}, {"logits": other.logits(images)}),
    ):
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def test_frozen_layers_have_gradients_too(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    images, classes = make_batch(2)
    values = values_of(NETWORK)
    free, frozen = (
        make_engine(NETWORK, precision="float64", values=values, frozen=layers).layer_gradients(
            images, "stem.conv", classes
        )
        for layers in ((), ("stem", "unit", "mixed"))
    )
    for one, other in zip(free, frozen, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * abs(one).max())


def test_a_layer_that_is_not_there_or_not_run_is_one_line(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    images, classes = make_batch(2)
    engine = make_engine(NETWORK)
    with pytest.raises(BadRecipe, match=r"no layer is called 'unit\.conv3'; did you mean unit\.conv"):
        engine.layer_gradients(images, "unit.conv3", classes)
    with pytest.raises(BadRecipe, match=r"layer tap\.pool: scoring does not use this layer; auxiliary classifiers"):
        engine.layer_gradients(images, "tap.pool", classes)
    activations, _ = engine.layer_gradients(images, "unit", classes)
    assert activations.shape == (2, 6, 12, 12)
    assert engine.logits(images).shape == (2, 7)


def test_of_a_zoo_s_network_no_layer_is_known() -> None:
    with pytest.raises(BadRecipe, match="layer layer1: the layers of a zoo's network are not known here"):
        find_layer({}, "layer1")
