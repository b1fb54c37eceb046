"""A training that MXNet's Module or Gluon's Trainer broke off goes on here: its weights, its momentum, its losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.config import load_run_recipe
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint
from imagenet_pipeline.training.engine_setup import resumed_engine

RATE, MOMENTUM, DECAY, BATCH, STEPS = 0.05, 0.9, 1e-2, 16, 10
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
SETTINGS = (f"optimizer.learning_rate={RATE}", f"optimizer.momentum={MOMENTUM}", f"optimizer.weight_decay={DECAY}")


def batches(count: int) -> list[tuple[Any, Any]]:
    random = np.random.default_rng(3)
    return [
        (random.integers(0, 256, (BATCH, 28, 28, 3), np.uint8), random.integers(0, 10, BATCH)) for _ in range(count)
    ]


def for_mxnet(mx: Any, batch: tuple[Any, Any]) -> Any:
    images = (batch[0].astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    return mx.io.DataBatch([mx.nd.array(images.transpose(0, 3, 1, 2))], [mx.nd.array(batch[1])])


def symbol(mx: Any) -> Any:
    """A small net that branches, of no catalogue: convolutions, normalisation with a scale, a PReLU, two dense layers."""
    x = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=8, kernel=(3, 3), stride=(2, 2), name="conv1")
    x = mx.sym.Activation(mx.sym.BatchNorm(x, fix_gamma=False, eps=1e-3, name="norm1"), act_type="relu")
    y = mx.sym.Convolution(x, num_filter=8, kernel=(3, 3), pad=(1, 1), no_bias=True, name="conv2")
    x = mx.sym.LeakyReLU(x + y, act_type="prelu", name="relu2")
    x = mx.sym.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max")
    x = mx.sym.FullyConnected(mx.sym.Flatten(x), num_hidden=16, name="fc1")
    x = mx.sym.FullyConnected(mx.sym.Activation(x, act_type="tanh"), num_hidden=10, name="fc2")
    return mx.sym.SoftmaxOutput(x, name="softmax")


def module(mx: Any, devices: int = 1) -> Any:
    mx.random.seed(1)
    np.random.seed(1)
    made = mx.mod.Module(symbol(mx), context=[mx.cpu(number) for number in range(devices)])
    made.bind([("data", (BATCH, 3, 28, 28))], [("softmax_label", (BATCH,))])
    made.init_params(mx.init.Xavier())
    settings = {"learning_rate": RATE, "momentum": MOMENTUM, "wd": DECAY}
    made.init_optimizer(kvstore="local", optimizer="sgd", optimizer_params=settings)
    return made


def losses(mx: Any, made: Any, given: list[tuple[Any, Any]]) -> list[float]:
    """Train on batches; the mean loss of each before its update."""
    found = []
    for batch in given:
        made.forward_backward(for_mxnet(mx, batch))
        scores = made.get_outputs()[0].asnumpy().astype(np.float64)
        found.append(float(-np.log(scores[np.arange(BATCH), batch[1]]).mean()))
        made.update()
    return found


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def words(prefix: Path, out: Path) -> list[object]:
    normalisation = ("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)))
    files = (
        "--symbol",
        f"{prefix}-symbol.json",
        "--params",
        f"{prefix}-0005.params",
        "--states",
        f"{prefix}-0005.states",
    )
    return ["import", *files, *normalisation, "--out", out]


@pytest.fixture(scope="module")
def broken_off(mx: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """The prefix of a checkpoint of epoch 5 that Module saved, and its next losses."""
    prefix = tmp_path_factory.mktemp("module") / "net"
    made, given = module(mx), batches(2 * STEPS)
    losses(mx, made, given[:STEPS])
    made.save_checkpoint(str(prefix), 5, save_optimizer_states=True)
    return prefix, losses(mx, made, given[STEPS:])


@pytest.mark.parametrize("engine", ["pytorch", "gluon"])
def test_its_next_ten_losses_are_mxnets(broken_off: tuple[Path, list[float]], engine: str, tmp_path: Path) -> None:
    prefix, expected = broken_off
    assert call(*words(prefix, tmp_path / "run"), *SETTINGS, f"batch_size={BATCH}") == 0
    start = load_checkpoint(find_checkpoint(tmp_path / "run", "latest"))
    assert (start.state.epoch, start.folder.name) == (5, "epoch-0005")
    recipe = load_run_recipe(tmp_path / "run", {"precision": "float32", "devices": "cpu", "engine": engine})
    assert (recipe.epochs, recipe.schedule.kind, recipe.optimizer.decay_all) == (15, "constant", "scales")
    made = resumed_engine(recipe, start.state, start.trained, start.optimizer_state)
    for number, batch in enumerate(batches(2 * STEPS)[STEPS:]):
        made.train_batch(*batch, RATE, number)
    found = made.totals().step_losses / BATCH
    print(np.abs(found / expected - 1))
    assert np.allclose(found, expected, rtol=1e-5, atol=0)
