"""One process of a small MXNet cluster on this machine; run as a script by test_distributed.py, its role in DMLC_ROLE.

cluster_harness.py RECIPE FOLDER     workers leave what they found in FOLDER/RANK.npz and FOLDER/RANK.json
cluster_harness.py die FOLDER        worker 1 kills itself between two steps; the others must not wait for it
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe, Recipe
from imagenet_pipeline.engines import Blueprint
from imagenet_pipeline.engines.gluon.membership import taking_part
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Activation, BatchNorm, Conv, Dense, Dropout, Flatten, Sequential, stack

BATCH, STEPS, SIDE, CLASSES = 12, 4, 8, 5
PLAIN = stack(conv=Conv(4, 3), relu=Activation("relu"), flatten=Flatten(), head=Dense(CLASSES))
NORMALISED = stack(conv=Conv(4, 3), norm=BatchNorm(momentum=0.5), flatten=Flatten(), head=Dense(CLASSES))
THINNED = stack(flatten=Flatten(), drop=Dropout(0.5), head=Dense(CLASSES))
CASES = {
    "float64": (PLAIN, "cpu", "float64"),
    "float64, two contexts": (PLAIN, "cpu:0,1", "float64"),
    "float32": (PLAIN, "cpu", "float32"),
    "float32, two contexts": (PLAIN, "cpu:0,1", "float32"),
    "batch normalisation": (NORMALISED, "cpu", "float64"),
}


def numbers_of(rank: int) -> np.ndarray[Any, Any]:
    """Numbers whose sums float32 cannot hold, nor any other order of adding gives in float64."""
    return np.array([2.0**52 - 7 + rank, 1 / 3 + rank, [1e16, 1.0, -1e16][rank % 3], 1e300, 5e-324, -0.0])


def batch_of(step: int) -> tuple[Any, Any]:
    """The images [BATCH, SIDE, SIDE, 3] and labels of all ranks together."""
    random = np.random.default_rng(step)
    return random.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8), random.integers(0, CLASSES, BATCH)


def engine_of(network: Sequential, devices: str, precision: str) -> Any:
    """A Gluon engine; also of a process that is alone."""
    from imagenet_pipeline.engines.gluon.engine import GluonEngine

    mean, std = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
    optimizer = OptimizerRecipe(clip_norm=2.0)
    recipe = Recipe(network="", records="", devices=devices, precision=precision, optimizer=optimizer)
    blueprint = Blueprint(network, SIDE, mean, std, recipe)
    return GluonEngine(blueprint, initial_values(network, blueprint.input_shape, "msra", 1))


def stepped(engine: Any) -> Any:
    """The same engine after STEPS steps on its own rows of every batch."""
    for step in range(STEPS):
        images, labels = batch_of(step)
        rows = np.array_split(np.arange(BATCH), engine.ranks)[engine.rank]
        engine.train_batch(images[rows], labels[rows], 0.05 / (1 + step), seed=step)
    return engine


def stepped_alike(engine: Any) -> Any:
    """The same engine after a step in which all ranks have the same images: they differ in dropout alone."""
    engine.train_batch(*batch_of(0), 0.05, seed=7)
    return engine


def work(recipe: Path, folder: Path) -> None:
    from imagenet_pipeline.config import load_recipe
    from imagenet_pipeline.evaluation.evaluate import evaluate
    from imagenet_pipeline.training.benchmark import measure_steps
    from imagenet_pipeline.training.loop import train
    from imagenet_pipeline.training.lr_finder import find_rate
    from imagenet_pipeline.training.resume import open_run

    found, told = {}, {}
    for case, (network, devices, precision) in CASES.items():
        engine = stepped(engine_of(network, devices, precision))
        found |= {f"{case}/{name}": value for name, value in engine.values().items()}
        found[f"{case}/losses"] = engine.sum_over_ranks(engine.totals().step_losses)
    thinned = stepped_alike(engine_of(THINNED, "cpu", "float64")).values()
    found |= {f"dropout/{name}": value for name, value in thinned.items()}
    found["sums"] = engine.sum_over_ranks(numbers_of(engine.rank))
    found["no sums"] = engine.sum_over_ranks(np.zeros(0))
    for role in ("scheduler", "server"):
        os.kill(int((folder / role).read_text()), signal.SIGTERM)  # theirs to leave to the workers
    run = open_run(recipe, {}, folder / "run")
    told["leads"] = run.leads
    told["trained"] = dataclasses.asdict(train(run))
    told["scored"] = dataclasses.asdict(evaluate(folder / "run", "latest"))
    told["ranks"] = engine.ranks
    curve = find_rate(load_recipe(recipe), 1e-4, 1.0, 20, lambda *_: None)
    told["searched"] = None if curve is None else curve.losses.tolist()
    speed = measure_steps(load_recipe(recipe), 2, 1, True, lambda *_: None)
    told["measured"] = None if speed is None else [speed.processes, speed.batch_size]
    np.savez(folder / f"{engine.rank}.npz", **found)
    (folder / f"{engine.rank}.json").write_text(json.dumps(told, default=str))


def die() -> None:
    engine = stepped(engine_of(PLAIN, "cpu", "float32"))
    if engine.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    stepped(engine)
    engine.totals()
    raise RuntimeError("went on without worker 1")


def main() -> None:
    (Path(sys.argv[2]) / os.environ["DMLC_ROLE"]).write_text(str(os.getpid()))
    with taking_part():
        if sys.argv[1] == "die":
            die()
        else:
            work(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
