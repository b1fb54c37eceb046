"""Scenarios in which several processes share a PyTorch engine's work, each started as a launcher would start it.

`python rank_processes.py FOLDER SCENARIO:RANKS,RANKS ...` runs each scenario with each number of ranks; every rank
writes what it found to FOLDER/SCENARIO-RANKS-RANK.npz. PyTorch is imported once and the ranks are forked: a test
cannot wait for it a dozen times.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from torch import (
    _dynamo,  # noqa: F401 the first optimizer of a process imports it, which takes a second
    distributed,
)

from imagenet_pipeline.config import InputRecipe, LoaderRecipe, LossRecipe, OptimizerRecipe, Recipe
from imagenet_pipeline.engines import Blueprint, Engine, create_engine
from imagenet_pipeline.errors import BadRecipe, WorkerLost
from imagenet_pipeline.evaluation.scoring import Member, RelabelledSplit, score_split
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Sequential,
    Tap,
    stack,
)
from imagenet_pipeline.processes import this_process
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.benchmark import measure_steps
from imagenet_pipeline.training.lr_finder import find_rate
from imagenet_pipeline.training.metrics import score

Arrays = dict[str, Any]
IMAGES, SIZE, CLASSES = 24, 12, 7
PORT_BYTES = 2
RANK_SECONDS = 150
"""A scenario takes a second or two; a rank that hangs says in which line, and ends, and so does the whole."""
TAPPED = stack(
    conv=Conv(6, 3, pad=1),
    relu=Activation("relu"),
    tap=Tap(stack(pool=GlobalAveragePool(), flatten=Flatten(), dense=Dense(CLASSES)), 0.3),
    conv2=Conv(8, 3, stride=2),
    relu2=Activation("relu"),
    flatten=Flatten(),
    classifier=Dense(CLASSES),
)
NORMALISED = stack(
    conv=Conv(6, 3, pad=1), norm=BatchNorm(momentum=0.5), flatten=Flatten(), classifier=Dense(CLASSES)
)  # fmt: skip
SLENDER = stack(
    first=Conv(8, 7, stride=2, pad=3), point=Conv(6, 1), depth=Conv(6, 3, groups=6, pad=1), norm=BatchNorm(),
    half=Conv(5, 1, stride=2), grey=Conv(1, 1), flatten=Flatten(), classifier=Dense(CLASSES),
)  # fmt: skip
"""Weights whose strides a size of 1 leaves open."""
DROPPING = stack(flatten=Flatten(), drop=Dropout(0.5), classifier=Dense(CLASSES))


def engine_of(
    network: Sequential, seed: int = 1, optimizer: Arrays | None = None, frozen: tuple[str, ...] = (), **named: Any
) -> Engine:
    rule = OptimizerRecipe(**(optimizer or {"momentum": 0.9, "weight_decay": 0.01}))
    recipe = Recipe(network="", records="", optimizer=rule, **{"precision": "float64", **named})
    blueprint = Blueprint(network, SIZE, (120.0, 110.0, 100.0), (60.0, 61.0, 62.0), recipe, frozen)
    return create_engine("pytorch", blueprint, initial_values(network, blueprint.input_shape, "msra", seed))


def steps_of(engine: Engine, count: int) -> Arrays:
    """Steps on this rank's share of random batches; losses over all ranks, and the values after them."""
    random = np.random.default_rng(3)
    for number in range(count):
        images = random.integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
        labels = random.integers(0, CLASSES, IMAGES)
        own = list(Share(engine.rank, engine.ranks).of(range(IMAGES)))
        engine.train_batch(images[own], labels[own], 0.05, seed=number)
    losses = engine.sum_over_ranks(engine.totals().step_losses)
    return {"losses": losses, **engine.values()}


def plain() -> Arrays:
    return steps_of(engine_of(TAPPED), 5)


def accumulated() -> Arrays:
    optimizer = {"name": "adam", "clip_norm": 0.5}
    return steps_of(engine_of(TAPPED, optimizer=optimizer, accumulation=3, average_decay=0.9), 5)


def sharpened() -> Arrays:
    """Two passes a step, both exchanged."""
    optimizer = {"name": "radam", "sam_radius": 0.3, "lookahead_steps": 2, "clip_share": 0.05}
    return steps_of(engine_of(TAPPED, optimizer=optimizer, accumulation=2), 4)


def frozen() -> Arrays:
    """A second engine in the same process, whose first layer stays."""
    engine_of(TAPPED)
    return steps_of(engine_of(TAPPED, frozen=("conv",)), 3)


def compiled() -> Arrays:
    return steps_of(engine_of(TAPPED, compile=True), 3)


def normalised() -> Arrays:
    engine = engine_of(NORMALISED, average_decay=0.5)
    found = steps_of(engine, 1)
    own = engine._tensors["norm.running_mean"].numpy().copy()  # type: ignore[attr-defined]
    averages = {f"average/{name}": value for name, value in engine.averages().items()}
    engine.set_values(engine.values())
    again = {f"again/{name}": value for name, value in engine.values().items()}
    return {**found, **averages, **again, "own": own}


def synchronised() -> Arrays:
    return steps_of(engine_of(NORMALISED, sync_batch_norm=True), 5)


def compressed() -> Arrays:
    engine = engine_of(TAPPED, gradient_compression="bfloat16")
    before = {f"before/{name}": value for name, value in engine.values().items()}
    return steps_of(engine, 5) | before


def slender() -> Arrays:
    """Gradients lie as their weights do, within what the ranks exchange."""
    engine: Any = engine_of(SLENDER, precision="float32", sync_batch_norm=True)
    found = steps_of(engine, 3)
    strides = {name: [tensor.stride(), tensor.grad.stride()] for name, tensor in engine._trained.items()}
    return found | {f"strides/{name}": pair for name, pair in strides.items()}


def dropping() -> Arrays:
    """Equal images on every rank: only dropout can tell their losses apart."""
    engine = engine_of(DROPPING)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    engine.train_batch(images, np.zeros(IMAGES, np.int64), 0.0, seed=5)
    return {"loss": engine.totals().step_losses}


def summed() -> Arrays:
    engine = engine_of(TAPPED)
    numbers = np.array([2.0**53 / engine.ranks - engine.rank, 0.1 * engine.rank, float(engine.rank)])
    return {"sums": engine.sum_over_ranks(numbers), "numbers": numbers, "ranks": [engine.rank, engine.ranks]}


def differing() -> Arrays:
    """The last rank starts from other weights."""
    engine = engine_of(TAPPED, seed=1 + (this_process().rank == this_process().ranks - 1))
    try:
        steps_of(engine, 1)
    except BadRecipe as error:
        return {"error": str(error)}
    return {}


def scoring() -> Arrays:
    """Every record of the split once, and what becomes of each as `evaluate` has it."""
    engine = engine_of(TAPPED)
    relabel = np.arange(10) % CLASSES
    recipe = Recipe(network="lenet", records="unused", batch_size=64)
    source = RelabelledSplit(read_data_set(Path(os.environ["RANK_RECORDS"])), "val", relabel, recipe)
    (outcomes,) = score_split(source, 1, [Member(engine, (SIZE, 0.875), LossRecipe())], CLASSES)
    with RecordSet.open(Path(os.environ["RANK_RECORDS"]), "val") as records:
        loader = Loader(records, SIZE, 64, threads=0, share=Share(engine.rank, engine.ranks))
        with loader.evaluation() as batches:
            seen = [(batch.first_position, batch.records.copy(), batch.labels.copy()) for batch in batches]
        with loader.evaluation() as batches:
            labelled = (type(batch)(batch.images, batch.labels % CLASSES, *_rest(batch)) for batch in batches)
            totals = score(engine, labelled)
    return {
        "records": np.concatenate([records for _, records, _ in seen]),
        "counts": [totals.images, totals.rank1_hits, totals.rank5_hits],
        "loss": totals.loss,
        **{f"outcomes/{name}": column for name, column in vars(outcomes).items()},
    }


def measured() -> Arrays:
    """A search of the rate, and a benchmark; what the ranks but the first are left with."""
    rule = OptimizerRecipe(momentum=0.9)
    recipe = Recipe(
        network="lenet", records=os.environ["RANK_RECORDS"], engine="pytorch", devices="cpu", batch_size=60,
        precision="float64", optimizer=rule, input=InputRecipe(size=28), loader=LoaderRecipe(threads=0),
    )  # fmt: skip
    curve = find_rate(recipe, 1e-4, 1.0, 20, lambda *_: None)
    speed = measure_steps(recipe, 2, 1, True, lambda *_: None)
    if curve is None or speed is None:
        return {"said": [curve is None, speed is None]}
    return {"losses": curve.losses, "suggestion": curve.suggestion, "speed": [speed.processes, speed.batch_size]}


def _rest(batch: Any) -> tuple[Any, ...]:
    return batch.records, batch.first_position, batch.wait_seconds


def lost() -> Arrays:
    """The last rank is killed between two steps; how long the others take to notice, and what they say."""
    engine = engine_of(TAPPED)
    steps_of(engine, 2)
    if engine.rank == engine.ranks - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begun = time.monotonic()
    said = []
    for call in (lambda: steps_of(engine, 3), lambda: engine.sum_over_ranks(np.ones(1))):
        try:
            call()
        except WorkerLost as error:
            said.append(str(error))
    return {"seconds": time.monotonic() - begun, "said": said}


def run_ranks(scenario: str, ranks: int, folder: Path) -> None:
    # Forked before the store has its thread, whose locks of the C library a child would inherit as they are.
    reader, writer = os.pipe()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            _run_rank(scenario, rank, ranks, int.from_bytes(os.read(reader, PORT_BYTES), "big"), folder)
        children.append(child)
    # Kept: the ranks talk with it as long as they live.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(writer, ranks * store.port.to_bytes(PORT_BYTES, "big"))
    os.close(reader)
    os.close(writer)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if codes != [0] * ranks and scenario != "lost":
        sys.exit(f"{scenario} on {ranks} ranks: exit codes {codes}")


def _run_rank(scenario: str, rank: int, ranks: int, port: int, folder: Path) -> None:
    code = 1
    try:
        faulthandler.dump_traceback_later(RANK_SECONDS, exit=True)
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0",
        )  # fmt: skip
        np.savez(folder / f"{scenario}-{ranks}-{rank}.npz", **globals()[scenario]())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for words in sys.argv[2:]:
        name, counts = words.split(":")
        for count in counts.split(","):
            run_ranks(name, int(count), Path(sys.argv[1]))
