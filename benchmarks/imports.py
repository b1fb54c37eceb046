"""How many of GluonCV's classifiers `import` takes: each exported with drawn values, imported, and compared.

    python benchmarks/imports.py [NAME ...] > table.md

A line for each network: its name, the side of its input (the smallest of three that it builds for), what it came in as
(a family of the catalogue, or "graph"), and the largest difference of PyTorch's logits from MXNet's for one image,
relative to the largest logit, in float32 and in float64. Each has a process of its own, for five minutes at most.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, create_engine
from imagenet_pipeline.engines.gluon import zoo
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import PipelineError
from imagenet_pipeline.interchange.frozen import Imported
from imagenet_pipeline.interchange.mxnet_import import import_mxnet
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import without_taps

CLASSES, IMAGENET_CLASSES = 10, 1000
SIZES = (32, 96, 224, 299)
LONGEST_SECONDS = 300


def drawn(shape: tuple[int, ...], name: str, random: np.random.Generator) -> Any:
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape)
    spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    # Scales below 1, with which deep residual networks are no chaos: float32's noise does not grow to the logits' size.
    return random.normal(0, spread, shape) + 0.4 * name.endswith("gamma")


def exported(name: str, size: int, folder: Path) -> Any:
    # GluonCV's HRNets have ImageNet's classes, whatever they are asked for.
    classes = IMAGENET_CLASSES if name.startswith("hrnet") else CLASSES
    network = zoo.build(ZooNetwork("gluoncv", name, classes), (3, size, size))
    random = np.random.default_rng(0)
    network.block.initialize()
    for key, parameter in network.parameters.items():
        parameter.set_data(mx.nd.array(drawn(parameter.shape, key, random)))
    network.block.hybridize()
    network.block(mx.nd.zeros((1, 3, size, size)))
    network.block.export(str(folder / "zoo"))
    return network.block


def differences(imported: Imported, size: int, folder: Path) -> dict[str, float]:
    layers = imported.layers
    if layers is None:
        layers = without_taps(catalog.entry(imported.network).build(imported.classes))
    images = np.random.default_rng(1).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    mean, std = (120.0,) * 3, (60.0,) * 3
    pixels = (images.transpose(0, 3, 1, 2) - 120.0) / 60.0
    symbol, arguments, statistics = mx.model.load_checkpoint(str(folder / "zoo"), 0)
    found = {}
    for precision in ("float32", "float64"):
        given, aux = (
            {name: array.astype(precision) for name, array in arrays.items()} for arrays in (arguments, statistics)
        )
        given["data"] = mx.nd.array(pixels, dtype=precision)
        executor = symbol.bind(mx.cpu(), given, aux_states=aux, grad_req="null")
        wanted = executor.forward(is_train=False)[0].asnumpy()
        recipe = Recipe(network="", records="", devices="cpu", precision=precision)
        engine = create_engine("pytorch", Blueprint(layers, size, mean, std, recipe), imported.values)
        found[precision] = float(np.abs(engine.logits(images) - wanted).max() / np.abs(wanted).max())
    return found


def line(name: str) -> str:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for size in SIZES[:1] if name.startswith("cifar") else SIZES[1:]:
            try:
                exported(name, size, folder)
                break
            except Exception as error:
                problem = str(error).splitlines()[0][:80]
        else:
            return f"| {name} | | does not build here: {problem} | | |"
        try:
            imported = import_mxnet(folder / "zoo-symbol.json", folder / "zoo-0000.params", None, size)
        except PipelineError as error:
            return f"| {name} | {size} | refused: {str(error)[-160:]} | | |"
        found = differences(imported, size, folder)
    family = imported.network if imported.layers is None else "graph"
    return f"| {name} | {size} | {family} | {found['float32']:.0e} | {found['float64']:.0e} |"


def main() -> None:
    # MXNet 1.9.1's fusion of convolutions with their normalisations changes what pre-activation networks compute.
    os.environ["MXNET_SUBGRAPH_BACKEND"] = "NONE"
    if len(sys.argv) == 2:
        print(line(sys.argv[1]))
        return
    print("| network | pixels | came in as | float32 | float64 |\n|---|---|---|---|---|", flush=True)
    for name in sys.argv[1:] or zoo.names():
        command = [sys.executable, __file__, name]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_SECONDS)
            print(result.stdout.strip() or f"| {name} | | {result.stderr.splitlines()[-1:]} | | |", flush=True)
        except subprocess.TimeoutExpired:
            print(f"| {name} | | not finished in {LONGEST_SECONDS} s | | |", flush=True)


if __name__ == "__main__":
    main()
