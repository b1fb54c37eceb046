"""Training images a second by the number of computing and of loading threads, against steps on one batch in memory.

    python benchmarks/threads.py [--photos TAR] [--engines pytorch gluon] [--cases tiny small middle large]
        [--computing 1 2] [--loading 0 1 2] [--prefetch 4] [--seconds 4] [--rounds 5] [--json]

Each case is a network, the side of its images and its batch, from one that the loader bounds to one that computing
bounds. Records: photos at 256 pixels short edge, JPEG quality 95, listed ten times over; random-resized crop and flip.
OpenMP reads its settings when it starts, so each engine has a process for each number of computing threads; they take
turns, one setting after the other, and in the next round again, while the others sleep. "synthetic" trains one batch in
memory. The best round counts; "processor" is processor time of all threads, waiting in a loop included.

`--environment NAME=VALUE` adds the same settings once more in processes with that variable (GOMP_SPINCOUNT=1000).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from imagenet_pipeline import api
from imagenet_pipeline.processes import available_processors, processor_name

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet_samples_300.tar"
TIMES = 10
"""Records of each photo."""
CASES: dict[str, tuple[str, int, int]] = {
    "tiny": ("lenet", 28, 64),
    "small": ("resnet18", 64, 32),
    "middle": ("squeezenet1_1", 224, 16),
    "large": ("resnet50", 224, 8),
}
"""Network, side of its images, images a step."""

HEADING = (
    "{processor}, {processors} processors; best of {rounds} rounds\n"
    "case                   engine   computing   loading prefetch  images/s of synthetic processor ms  waiting\n"
)


@dataclass(frozen=True)
class Setting:
    """One row; `loading` is the loader's threads, None for the batch in memory."""

    case: str
    engine: str
    computing: int
    environment: str
    loading: int | None
    prefetch: int


@dataclass(frozen=True)
class Turn:
    """A measured stretch of training."""

    images: int
    seconds: float
    processor_seconds: float
    wait_seconds: float


def main() -> None:
    arguments = parse()
    result = {"processor": processor_name(), "processors": available_processors(), "rounds": arguments.rounds}
    rows: list[dict[str, Any]] = []
    if not arguments.json:
        sys.stdout.write(HEADING.format(**result))
    with tempfile.TemporaryDirectory() as folder:
        records = arguments.records or built(arguments.photos, Path(folder))
        for case, engine in itertools.product(arguments.cases, arguments.engines):
            found = measured(case, engine, records, arguments)
            rows += found
            if not arguments.json:
                sys.stdout.write("".join(map(line, found)))
                sys.stdout.flush()
    if arguments.json:
        sys.stdout.write(json.dumps({**result, "rows": rows}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    counts = sorted({1, available_processors()})
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="archive of photos")
    parser.add_argument("--records", type=Path, help="a built data set instead")
    parser.add_argument("--engines", nargs="+", default=["pytorch", "gluon"], choices=["pytorch", "gluon"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--computing", type=int, nargs="+", default=counts, help="computing threads")
    parser.add_argument("--loading", type=int, nargs="+", default=[0, *counts], help="loading threads")
    parser.add_argument("--prefetch", type=int, nargs="+", default=[4], help="batches prepared ahead")
    parser.add_argument("--environment", nargs="+", default=[""], help='NAME=VALUE, or "" for as it is')
    parser.add_argument("--seconds", type=float, default=4.0, help="of each setting in a round, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def built(photos: Path, folder: Path) -> Path:
    """Build records of the photos in the archive, in ten classes."""
    with tarfile.open(photos) as archive:
        archive.extractall(folder / "photos", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    found = sorted(path for path in (folder / "photos").rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    lines = [f"{n}\t{n % 10}\t{path.relative_to(folder / 'photos')}\n" for n, path in enumerate(TIMES * found)]
    (folder / "photos.lst").write_text("".join(lines))
    api.build("list", list_file=folder / "photos.lst", root=folder / "photos", out=folder / "records")
    return folder / "records"


def measured(case: str, engine: str, records: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a setting: the processes take turns, round by round."""
    started = {
        (computing, environment): start(case, engine, computing, environment, records, arguments.seconds)
        for environment in arguments.environment
        for computing in arguments.computing
    }
    fed = [(loading, prefetch) for prefetch in arguments.prefetch for loading in arguments.loading]
    settings = [
        Setting(case, engine, computing, environment, loading, prefetch)
        for computing, environment in started
        for loading, prefetch in [(None, 0), *fed]
    ]
    turns: dict[Setting, list[Turn]] = {setting: [] for setting in settings}
    for _ in range(arguments.rounds):
        for setting in settings:
            _, connection = started[setting.computing, setting.environment]
            connection.send(setting)
            turns[setting].append(connection.recv())
    for process, connection in started.values():
        connection.send(None)
        process.join()
    figures = {setting: best(turns[setting]) for setting in settings}
    still = {
        (each.computing, each.environment): figures[each]["images_per_second"]
        for each in settings
        if each.loading is None
    }
    return [
        {**dataclasses.asdict(each), **row, "ratio": row["images_per_second"] / still[each.computing, each.environment]}
        for each, row in figures.items()
    ]


def best(turns: list[Turn]) -> dict[str, float]:
    """Figures of the fastest turn; of processor time the least."""
    fastest = max(turns, key=lambda turn: turn.images / turn.seconds)
    return {
        "images_per_second": fastest.images / fastest.seconds,
        "processor_ms_an_image": min(1000 * turn.processor_seconds / turn.images for turn in turns),
        "wait_share": fastest.wait_seconds / fastest.seconds,
    }


def start(case: str, engine: str, computing: int, environment: str, records: Path, seconds: float) -> Any:
    """Start a process that measures settings of its own number of computing threads: itself and a connection."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    own = {"OMP_NUM_THREADS": str(computing), **dict([environment.split("=", 1)] if environment else [])}
    before = dict(os.environ)
    os.environ.update(own)
    try:
        process = context.Process(target=serve, args=(case, engine, records, seconds, its), daemon=True)
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    its.close()
    return process, ours


def serve(case: str, engine: str, records: Path, seconds: float, connection: Connection) -> None:
    """Measure the settings that come, each by a Turn, until None comes."""
    from imagenet_pipeline.config import InputRecipe, LoaderRecipe, OptimizerRecipe, Recipe
    from imagenet_pipeline.records.reader import RecordSet
    from imagenet_pipeline.training.data import endless_batches, records_of
    from imagenet_pipeline.training.engine_setup import fresh_engine

    network, size, batch_size = CASES[case]
    recipe = Recipe(
        network=network, records=str(records), engine=engine, devices="cpu", batch_size=batch_size,
        input=InputRecipe(size=size), optimizer=OptimizerRecipe(learning_rate=1e-4),
    )  # fmt: skip
    data = records_of(recipe)
    trained = fresh_engine(recipe, data)

    def run(batches: Iterable[Any], steps: int) -> float:
        waited = 0.0
        for batch in islice(batches, steps):
            trained.train_batch(batch.images, batch.training_targets, 1e-4, 0)
            waited += batch.wait_seconds
        trained.totals()
        return waited

    def turn(batches: Iterable[Any], unmeasured: int, steps: int) -> Turn:
        batches = iter(batches)
        run(batches, unmeasured)
        started, processor = time.perf_counter(), time.process_time()
        waited = run(batches, steps)
        return Turn(steps * batch_size, time.perf_counter() - started, time.process_time() - processor, waited)

    def fed(threads: int, prefetch: int) -> Any:
        loader = LoaderRecipe(threads=threads, prefetch=prefetch)
        return endless_batches(recipe.model_copy(update={"loader": loader}), data, opened)

    with RecordSet.of(data, "train") as opened, closing(fed(0, 1)) as batches:
        first = dataclasses.replace(next(batches), wait_seconds=0.0)
        run(repeat(first), 3)
        steps = max(3, round(3 * seconds / turn(repeat(first), 0, 3).seconds))
        for setting in iter(connection.recv, None):
            if setting.loading is None:
                connection.send(turn(repeat(first), 1, steps))
                continue
            with closing(fed(setting.loading, setting.prefetch)) as batches:
                connection.send(turn(batches, setting.prefetch + 2, steps))


def line(row: dict[str, Any]) -> str:
    network, size, batch_size = CASES[row["case"]]
    loading = "synthetic" if row["loading"] is None else row["loading"]
    return (
        f"{f'{network} {size} x {batch_size}':22} {row['engine']:8} {row['computing']:9} {loading:>9} "
        f"{row['prefetch']:8} {row['images_per_second']:9.1f} {row['ratio']:12.3f} "
        f"{row['processor_ms_an_image']:12.2f} {row['wait_share']:8.1%} {row['environment']}\n"
    )


if __name__ == "__main__":
    main()
