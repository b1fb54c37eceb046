"""Our loader against MXNet's ImageRecordIter, on the same records, in one run.

    python benchmarks/loader.py [--photos TAR] [--threads 1 2] [--records 3000] [--json]

Records: the photos at 256 pixels short edge, JPEG quality 95, listed several times over. Work: random-resized crop
to 224 and flip. Each loader runs in a process of its own, a warm epoch first, then the best of several.
Ours delivers uint8 (it normalises on the device); ImageRecordIter's default is float32, ImageRecordUInt8Iter is
shown beside it. MXNet takes at most half of the processors for decoding, however many threads are asked for.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.records.image import prepare
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import frame, pack
from imagenet_pipeline.training.benchmark import measure
from imagenet_pipeline.training.resume import processor_name

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet_samples_300.tar"
BATCH_SIZE = 64
SIZE = 224


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        path = write_records(arguments.photos, arguments.records, Path(folder) / "photos.rec")
        rows = [
            {"threads": threads, **{name: alone(run, path, threads, arguments.epochs) for name, run in LOADERS.items()}}
            for threads in arguments.threads
        ]
    result = {
        "processor": processor_name(),
        "processors": available_processors(),
        "records": arguments.records,
        "epochs": arguments.epochs,
        "images_per_second": rows,
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if arguments.json else table(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="tar of photos")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=5, help="measured; the best counts")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def write_records(photos: Path, count: int, path: Path) -> Path:
    """Write `count` records and their index, going through the photos again and again."""
    with tarfile.open(photos) as tar:
        files = [tar.extractfile(member) for member in tar if member.isfile()]
        images = [prepare(file.read(), 256, 95, pass_through=False).data for file in files if file is not None]
    with path.open("wb") as records, path.with_suffix(".idx").open("w") as index:
        for number in range(count):
            index.write(f"{number}\t{records.tell()}\n")
            at = number % len(images)
            records.write(frame(pack([float(at)], number, images[at])))
    return path


def alone(run: Callable[[Path, int, int], float], path: Path, threads: int, epochs: int) -> float:
    """Images a second by a loader, in a fresh process, so that none meets the threads another left behind."""
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return round(pool.submit(run, path, threads, epochs).result(), 1)


def run_ours(path: Path, threads: int, epochs: int) -> float:
    with RecordSet.open(path) as records:
        return measure(records, SIZE, threads, BATCH_SIZE, epochs=epochs).images_per_second


def run_mxnet_float(path: Path, threads: int, epochs: int) -> float:
    return run_mxnet("ImageRecordIter", path, threads, epochs)


def run_mxnet_uint8(path: Path, threads: int, epochs: int) -> float:
    return run_mxnet("ImageRecordUInt8Iter", path, threads, epochs)


def run_mxnet(kind: str, path: Path, threads: int, epochs: int) -> float:
    from imagenet_pipeline.engines.gluon.runtime import import_mxnet

    batches = getattr(import_mxnet().io, kind)(
        path_imgrec=str(path),
        path_imgidx=str(path.with_suffix(".idx")),
        data_shape=(3, SIZE, SIZE),
        batch_size=BATCH_SIZE,
        shuffle=True,
        random_resized_crop=True,
        min_random_area=0.08,
        max_random_area=1.0,
        min_aspect_ratio=3 / 4,
        max_aspect_ratio=4 / 3,
        rand_mirror=True,
        preprocess_threads=threads,
        verbose=False,
    )
    return max([epoch_speed(batches) for _ in range(epochs + 1)][1:])


def epoch_speed(batches: Any) -> float:
    batches.reset()
    started = time.perf_counter()
    images = 0
    for batch in batches:
        batch.data[0].wait_to_read()
        images += BATCH_SIZE
    return images / (time.perf_counter() - started)


LOADERS = {"ours": run_ours, "ImageRecordIter": run_mxnet_float, "ImageRecordUInt8Iter": run_mxnet_uint8}


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['processor']}, {result['processors']} processors; n = {result['records']} records, "
        f"best of {result['epochs']} epochs; images/s",
        "",
        "| threads | ours | ImageRecordIter (float32) | ratio | ImageRecordUInt8Iter | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["images_per_second"]:
        ours, as_float, as_uint8 = (row[name] for name in LOADERS)
        lines.append(
            f"| {row['threads']} | {ours:,.0f} | {as_float:,.0f} | {ours / as_float:.2f} "
            f"| {as_uint8:,.0f} | {ours / as_uint8:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
