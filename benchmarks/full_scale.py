"""A data set of as many records as ImageNet has, of tiny photos: seconds and memory to open, look into and verify it.

    python benchmarks/full_scale.py --scratch /tmp/full-scale

writes 1,281,167 records of 16 pixels in 157 shards (1.1 GB, about two minutes, left there for the next time with
--keep), then measures each in a process of its own: seconds, and peak memory, beyond those of the imports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.records import lists
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image import encode_jpeg
from imagenet_pipeline.records.manifest import Manifest, Shard, Split
from imagenet_pipeline.records.recordio import frame, pack

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES, VALIDATION, CLASSES, SHARD = 1_281_167, 50_000, 1000, 8192
MEASURES = {
    "first batch of 64, 224 px": (
        "from imagenet_pipeline import api; import imagenet_pipeline.loading.loader, imagenet_pipeline.records.reader",
        "next(api.loader(FOLDER, 'train', size=224, batch_size=64).training(0, 0))",
    ),
    "inspect": (
        "from imagenet_pipeline.records.inspect import inspect",
        "inspect(FOLDER)",
    ),
    "picture classes": (
        "from imagenet_pipeline.pictures.data import draw_classes, Figure; Figure().subplots()",
        "draw_classes(FOLDER, FOLDER.parent / 'classes.png')",
    ),
    "verify": (
        "from imagenet_pipeline.records.verify import verify",
        "assert verify(FOLDER).whole",
    ),
}
"""Imports and, for FOLDER, the work."""
PROBE = """
import json, os, time
from pathlib import Path
FOLDER = Path({folder!r})
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
if __name__ == "__main__":
    {imports}
    before, started, worked = peak(), time.perf_counter(), sum(os.times()[:4])
    {work}
    seconds, worked = time.perf_counter() - started, sum(os.times()[:4]) - worked
    print(json.dumps([seconds, worked, peak() - before]))
"""


def write_data_set(out: Path, images: int) -> None:
    """Write a data set of `images` training records, and 50,000 of validation where there are so many to train on."""
    generator = np.random.default_rng(15)
    photos = [encode_jpeg(generator.integers(0, 256, (16, 16, 3)).astype(np.uint8), 50) for _ in range(64)]
    out.mkdir(parents=True)
    counts = {"train": images, "val": min(VALIDATION, images // 8)}
    splits = {split: _write_split(out, split, count, photos, generator) for split, count in counts.items()}
    names = tuple(f"n{label:08}" for label in range(CLASSES))
    table = ClassTable("folder", names, names)
    table.write(out / "classes.json")
    files.write_json(out / "mean.json", {key: dict.fromkeys("RGB", 127.5) for key in ("mean", "std")} | {"pixels": 1})
    files.write_whole(out / "rejects.csv", "split,path,reason\n")
    written = ["classes.json", "mean.json", "rejects.csv", *(f"{split}.lst" for split in splits)]
    Manifest(
        plan="0" * 64, source={}, options={}, versions={}, classes=CLASSES, class_table=table.digest, splits=splits,
        files={name: files.sha256_of(out / name) for name in written},
    ).write(out)  # fmt: skip


def _write_split(out: Path, split: str, count: int, photos: list[bytes], generator: np.random.Generator) -> Split:
    labels = generator.integers(0, CLASSES, count).tolist()
    lists.write_list(
        out / f"{split}.lst", range(count), labels,
        [f"{split}/n{label:08}/n{label:08}_{number}.JPEG" for number, label in enumerate(labels)],
    )  # fmt: skip
    starts = range(0, count, SHARD)
    shards = []
    for number, start in enumerate(starts):
        path = out / f"{split}-{number:05}-of-{len(starts):05}.rec"
        numbers = range(start, min(start + SHARD, count))
        records = [frame(pack((labels[n],), n, photos[n % len(photos)])) for n in numbers]
        offsets = np.cumsum([0, *map(len, records)])
        path.write_bytes(b"".join(records))
        index = path.with_suffix(".idx")
        index.write_text("".join(f"{n}\t{offset}\n" for n, offset in zip(numbers, offsets, strict=False)))
        digests = {"sha256": files.sha256_of(path), "index_sha256": files.sha256_of(index)}
        shards.append(Shard(file=path.name, records=len(records), bytes=int(offsets[-1]), **digests))
    return Split(records=count, rejected=0, shards=shards, actions={})


def measure(folder: Path, name: str) -> tuple[float, float, float, float]:
    """Seconds, processor seconds, peak memory beyond the imports and that of the largest worker process, MB."""
    imports, work = MEASURES[name]
    script = folder.parent / "probe.py"  # a file, which worker processes can be spawned from
    script.write_text(PROBE.format(folder=str(folder), imports=imports, work=work))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    largest = 0.0
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            time.sleep(0.05)
            largest = max([largest, *map(_peak_megabytes, _children(process.pid))])
        assert process.returncode == 0
        assert process.stdout
        seconds, worked, memory = json.loads(process.stdout.read().splitlines()[-1])
    return seconds, worked, memory, largest


def _children(process: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return []


def _peak_megabytes(process: str) -> float:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    return 0.0


def main() -> None:
    """Write the data set where it is not there, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(MEASURES), nargs="+", default=list(MEASURES))
    parser.add_argument("--keep", action="store_true", help="leave the data set there")
    asked = parser.parse_args()
    folder = asked.scratch / f"records-{asked.images}"
    if not (folder / "manifest.json").exists():
        write_data_set(folder, asked.images)
    print("| what | seconds, best (median) | processor seconds | memory beyond imports, MB | largest worker, MB |")
    print("|---|---|---|---|---|", flush=True)
    for name in asked.only:
        rounds = [measure(folder, name) for _ in range(asked.rounds)]
        seconds, worked, memory, workers = zip(*rounds, strict=True)
        times = f"{min(seconds):.2f} ({np.median(seconds):.2f}) | {min(worked):.2f}"
        print(f"| {name} | {times} | {max(memory):.0f} | {max(workers):.0f} |", flush=True)
    if not asked.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
