"""How many of GluonCV's classifiers `import` takes: each exported with drawn values, imported, and compared.

    python benchmarks/imports.py [NAME ...] > table.md

A line for each network: its name, what it came in as (a family of the catalogue, or "graph"), and the largest
difference of PyTorch's logits from MXNet's for one image, relative to the largest logit, in float32 and in float64.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
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

CLASSES = 10
SIZES = {"cifar": 32, "inception": 299, "nasnet": 224, "xception": 299}


def size_of(name: str) -> int:
    return next((size for start, size in SIZES.items() if name.startswith(start)), 224)


def drawn(shape: tuple[int, ...], name: str, random: np.random.Generator) -> Any:
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape)
    spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return random.normal(0, spread, shape) + name.endswith("gamma")


def exported(name: str, size: int, folder: Path) -> Any:
    network = zoo.build(ZooNetwork("gluoncv", name, CLASSES), (3, size, size))
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
    size = size_of(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            exported(name, size, folder)
        except Exception as error:
            return f"| {name} | does not build here: {str(error).splitlines()[0][:80]} | | |"
        try:
            imported = import_mxnet(folder / "zoo-symbol.json", folder / "zoo-0000.params", None, None)
            size = imported.input_size
        except PipelineError as error:
            return f"| {name} | refused: {str(error)[-160:]} | | |"
        found = differences(imported, size, folder)
    family = imported.network if imported.layers is None else "graph"
    return f"| {name} | {family} | {found['float32']:.0e} | {found['float64']:.0e} |"


def main() -> None:
    # MXNet 1.9.1's fusion of convolutions with their normalisations changes what pre-activation networks compute.
    os.environ["MXNET_SUBGRAPH_BACKEND"] = "NONE"
    names = sys.argv[1:] or zoo.names()
    print("| network | came in as | float32 | float64 |\n|---|---|---|---|", flush=True)
    for name in names:
        start = time.monotonic()
        print(line(name), flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
