"""A training step through our engines against the same network written by hand in each framework, in one run.

    python benchmarks/step.py [--networks resnet18 resnet50 vgg16] [--batch 16] [--size 224] [--steps 6] [--device cpu]
        [--threads N] [--json]

By hand means: MXNet's model zoo, hybridized (static_alloc, static_shape), with gluon.Trainer; in PyTorch a plain
nn.Module (`benchmarks/plain_torch.py`), channels-last, autocast, torch.optim.SGD. All start from the same uint8 batch
in host memory, normalise it on the device, and take the same SGD step. Steps of "ours" and "by hand" alternate in one
process; each framework has a process of its own. The best step counts. "processor" is the ratio of the least processor
time of a step, by hand to ours: on a busy machine and one thread the steadier figure.

MXNet left to itself takes half of the processors, as hyper-threads; our engine gives it all of them, and so does this
script on both sides. `--threads` with half of them shows MXNet as it comes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe, Recipe
from imagenet_pipeline.engines import Blueprint, Engine, create_engine
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.processes import available_processors, processor_name

CLASSES = 1000
MEAN, STD = (123.68, 116.78, 103.94), (58.39, 57.12, 57.38)
OPTIMIZER = OptimizerRecipe(learning_rate=0.01, momentum=0.9, weight_decay=1e-4)
ZOO_FORM = {"resnet18": "resnet18_v1", "resnet50": "resnet50_v1", "vgg16": "vgg16"}
"""MXNet's zoo's name of each; its ResNet-50 strides in the first 1x1."""
OUR_FORM = {"resnet50": "resnet50_v1"}
"""Our network where it is called otherwise in the form that MXNet's zoo has."""
Step = Callable[[], None]


def main() -> None:
    arguments = parse()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    rows = [row for name in arguments.networks for row in measured(name, arguments)]
    result = {
        "processor": processor_name(),
        "threads": arguments.threads,
        "device": arguments.device,
        "batch": arguments.batch,
        "size": arguments.size,
        "steps": arguments.steps,
        "rows": rows,
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if arguments.json else table(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(ZOO_FORM), choices=list(ZOO_FORM))
    parser.add_argument("--engines", nargs="+", default=["gluon", "pytorch"], choices=["gluon", "pytorch"])
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of each")
    parser.add_argument("--device", default="cpu", help="cpu or gpu")
    parser.add_argument("--threads", type=int, default=available_processors(), help="of either framework")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measured(network: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row an engine, each measured in a fresh process."""
    rows = []
    for engine in arguments.engines:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            rows.append(pool.submit(RUNS[engine], network, arguments).result())
    return rows


def run_gluon(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    from imagenet_pipeline.engines.gluon.engine import mx

    images, labels = batch(arguments)
    engine = our_engine("gluon", OUR_FORM.get(name, name), arguments)
    context = mx.gpu() if arguments.device == "gpu" else mx.cpu()
    zoo = getattr(mx.gluon.model_zoo.vision, ZOO_FORM[name])(classes=CLASSES)
    zoo.initialize(mx.init.Xavier(), ctx=context)
    zoo.hybridize(static_alloc=True, static_shape=True)
    options = {"learning_rate": OPTIMIZER.learning_rate, "momentum": OPTIMIZER.momentum, "wd": OPTIMIZER.weight_decay}
    trainer = mx.gluon.Trainer(zoo.collect_params(), "sgd", options)
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    mean, std = (mx.nd.array(each, ctx=context).reshape((1, 3, 1, 1)) for each in (MEAN, STD))

    def by_hand() -> None:
        pixels = mx.nd.array(images, ctx=context, dtype="uint8").transpose((0, 3, 1, 2)).astype("float32")
        with mx.autograd.record():
            loss = loss_of(zoo((pixels - mean) / std), mx.nd.array(labels, ctx=context))
        loss.backward()
        trainer.step(len(labels))
        loss.wait_to_read()
        mx.nd.waitall()

    return row("gluon", name, engine, images, labels, by_hand, arguments.steps)


def run_pytorch(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from plain_torch import NETWORKS

    images, labels = batch(arguments)
    engine = our_engine("pytorch", name, arguments)
    device = torch.device("cuda" if arguments.device == "gpu" else "cpu")
    network = NETWORKS[name](CLASSES).to(device, memory_format=torch.channels_last)
    forward = torch.compile(network) if arguments.compile else network
    options: dict[str, Any] = {
        "lr": OPTIMIZER.learning_rate,
        "momentum": OPTIMIZER.momentum,
        "weight_decay": OPTIMIZER.weight_decay,
    }
    rule = torch.optim.SGD(network.parameters(), **options, fused=True)
    mean, std = (torch.tensor(each, device=device).reshape(1, 3, 1, 1) for each in (MEAN, STD))
    precision = getattr(torch, engine.precision)

    def by_hand() -> None:
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = forward((pixels - mean) / std)
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.from_numpy(labels).to(device))
        rule.zero_grad(set_to_none=True)
        loss.backward()
        rule.step()
        loss.item()

    return row("pytorch", name, engine, images, labels, by_hand, arguments.steps)


RUNS = {"gluon": run_gluon, "pytorch": run_pytorch}


def batch(arguments: argparse.Namespace) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (arguments.batch, arguments.size, arguments.size, 3), dtype=np.uint8)
    return images, random.integers(0, CLASSES, arguments.batch)


def our_engine(engine: str, name: str, arguments: argparse.Namespace) -> Engine:
    network = catalog.build(name, CLASSES)
    compiled = arguments.compile and engine == "pytorch"
    recipe = Recipe(network=name, records="", devices=arguments.device, compile=compiled, optimizer=OPTIMIZER)
    blueprint = Blueprint(network, arguments.size, MEAN, STD, recipe)
    return create_engine(engine, blueprint, initial_values(network, blueprint.input_shape, "he", 1))


def row(
    framework: str, network: str, engine: Engine, images: Any, labels: Any, by_hand: Step, steps: int
) -> dict[str, Any]:
    def ours() -> None:
        engine.train_batch(images, labels, OPTIMIZER.learning_rate, seed=1)
        engine.totals()

    for step in (ours, by_hand, ours, by_hand):
        step()
    times = [(*seconds(ours), *seconds(by_hand)) for _ in range(steps)]
    our_best, our_processor, hand_best, hand_processor = (min(column) for column in zip(*times, strict=True))
    return {
        "network": network,
        "engine": framework,
        "precision": engine.precision,
        "ours_images_per_second": round(len(labels) / our_best, 2),
        "by_hand_images_per_second": round(len(labels) / hand_best, 2),
        "ratio": round(hand_best / our_best, 3),
        "median_ratio": round(statistics.median(hand / our for our, _, hand, _ in times), 3),
        "processor_ratio": round(hand_processor / our_processor, 3),
    }


def seconds(step: Step) -> tuple[float, float]:
    """Wall time of a step, and processor time of all threads, waiting in a loop included."""
    started, processor = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - started, time.process_time() - processor


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['processor']}, {result['threads']} threads, {result['device']}; batch {result['batch']}, "
        f"{result['size']} px, best of {result['steps']} steps",
        f"{'network':10} {'engine':8} {'precision':10} {'ours img/s':>11} {'by hand':>9} {'ratio':>6} {'median':>7} "
        f"{'processor':>9}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['network']:10} {row['engine']:8} {row['precision']:10} {row['ours_images_per_second']:11.2f} "
            f"{row['by_hand_images_per_second']:9.2f} {row['ratio']:6.3f} {row['median_ratio']:7.3f} "
            f"{row['processor_ratio']:9.3f}"
        )
    for network in dict.fromkeys(row["network"] for row in result["rows"]):
        speed = {row["engine"]: row["ours_images_per_second"] for row in result["rows"] if row["network"] == network}
        if len(speed) == 2:
            lines.append(f"{network}: pytorch is {speed['pytorch'] / speed['gluon']:.2f} times gluon")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
