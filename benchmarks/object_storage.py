"""Records in object storage beside a local disk: rates cold and warm, and a run that is killed again and again.

    python benchmarks/object_storage.py PHOTOS --scratch /tmp/object-storage

PHOTOS is a folder of classes, of which 1,000 photos become 8 shards. They are put into moto's S3 server on this
machine, which is a Python program: what is slow here is the server. Rates are of reading alone and of decoding into
224 pixels. The run is 2 epochs of a small network through a cache of 3 shards, killed 20 times (SIGKILL), beside the
same order unbroken on the local disk: its weights must be the same. About 8 minutes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from imagenet_pipeline import files
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.loading.order import window_order
from imagenet_pipeline.record_builders import folder as folder_of_classes
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.manifest import DataSet, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.storage import Storage

REPOSITORY = Path(__file__).resolve().parent.parent
HARNESS = REPOSITORY / "tests/crash/training_harness.py"
IMAGES, SHARDS, CACHED, KILLS, PORT = 1000, 8, 3, 20, 5127
RECIPE = """
network = "minivggnet"
engine = "pytorch"
records = "{records}"
epochs = 2
batch_size = 50
devices = "cpu"
precision = "float32"
[input]
size = 32
[optimizer]
learning_rate = 0.01
[checkpoint]
every_steps = {every_steps}
[loader]
window_shards = 1
cache = "{cache}"
cache_gb = {cache_gb}
"""


def built(photos: Path, scratch: Path) -> DataSet:
    """1,000 of the photos in 8 shards, those of each class in turn."""
    chosen, out = scratch / "photos", scratch / "records"
    if not out.exists():
        classes = sorted(path for path in photos.iterdir() if path.is_dir())
        for name in classes:
            for photo in sorted(name.iterdir())[: IMAGES // len(classes)]:
                target = chosen / name.name / photo.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(photo, target)
        plan = folder_of_classes.plan(chosen, val_fraction=0.0, test_fraction=0.0)
        build(plan, out, BuildOptions(resize=0, pass_through=True, workers=2, shards=SHARDS))
    return read_data_set(out)


@contextmanager
def served(data: DataSet) -> Iterator[str]:
    """The address of the data set in a bucket of a server that runs as long as the block."""
    endpoint = f"http://127.0.0.1:{PORT}"
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-c", f"from moto.server import main; main(['-p', '{PORT}'])"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urlopen(Request(f"{endpoint}/photos", method="PUT")).close()
                break
            except OSError:
                time.sleep(0.1)
        storage = Storage("s3://photos/set")
        for path in data.folder.iterdir():
            if path.is_file():
                storage.upload(path, path.name)
        yield "s3://photos/set"
    finally:
        server.kill()
        server.wait()


def read_alone(data: DataSet, window_shards: int) -> float:
    """Records a second of an epoch that are read and checked."""
    with RecordSet.of(data, "train") as records:
        began = time.perf_counter()
        order = window_order(records.sizes, window_shards, 1, 0)
        with records.ahead(order) as passing:
            for position in order:
                passing.read(int(position))
        return len(records) / (time.perf_counter() - began)


def decoded(data: DataSet, window_shards: int) -> float:
    """Images a second of an epoch that are decoded into batches of 224 pixels."""
    with RecordSet.of(data, "train") as records:
        loader = Loader(records, 224, 50, threads=2, window_shards=window_shards)
        began = time.perf_counter()
        with loader.training(1, 1) as batches:
            images = sum(len(batch.labels) for batch in batches)
        return images / (time.perf_counter() - began)


def measure(data: DataSet, address: str, scratch: Path) -> None:
    """Print the rates, each the best of three."""
    whole, small = scratch / "cache-whole", scratch / "cache-small"
    largest = max(shard.bytes for shard in data.manifest.shards)

    def stored(folder: Path, shards: int) -> DataSet:
        return read_data_set(address, str(folder), shards * largest / 1e9)

    def emptied(folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    print(f"{sum(shard.bytes for shard in data.manifest.shards) / 1e6:.0f} MB in {SHARDS} shards, best of 3")
    for name, read in {
        "local disk": lambda: (data, 0),
        "local disk, windows of 1 shard": lambda: (data, 1),
        "S3, cold, cache for all": lambda: (stored(emptied(whole), SHARDS), 0),
        "S3, warm, cache for all": lambda: (stored(whole, SHARDS), 0),
        f"S3, cache of {CACHED} shards, windows of 1": lambda: (stored(emptied(small), CACHED), 1),
    }.items():
        reading, decoding = (max(rate(*read()) for _ in range(3)) for rate in (read_alone, decoded))
        print(f"{name}: {reading:,.0f} records/s read, {decoding:,.0f} images/s decoded", flush=True)


def life(recipe: Path, run: Path, trace: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(HARNESS), *map(str, (recipe, run, trace)), "2"], env=environment)


def steps(trace: Path) -> int:
    return trace.read_bytes().count(b"\n") if trace.exists() else 0


def kill_again_and_again(data: DataSet, address: str, scratch: Path) -> None:
    """Print how the killed run ended, and whether as the unbroken one."""
    largest = max(shard.bytes for shard in data.manifest.shards)
    keys = {"cache": scratch / "cache-run", "cache_gb": CACHED * largest / 1e9}
    for name, records, every_steps in (("unbroken", data.folder, 0), ("killed", address, 1)):
        shutil.rmtree(scratch / name, ignore_errors=True)
        (scratch / f"{name}.trace").unlink(missing_ok=True)
        (scratch / f"{name}.toml").write_text(RECIPE.format(records=records, every_steps=every_steps, **keys))
    shutil.rmtree(scratch / "cache-run", ignore_errors=True)
    words = {name: (scratch / f"{name}.toml", scratch / name, scratch / f"{name}.trace")
             for name in ("unbroken", "killed")}  # fmt: skip
    assert life(*words["unbroken"]).wait() == 0
    moments = random.Random(KILLS)
    for kill in range(KILLS):
        process, wanted = life(*words["killed"]), steps(words["killed"][2]) + moments.choice([0, 1, 2])
        while process.poll() is None and steps(words["killed"][2]) < wanted:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3) if wanted else moments.uniform(0, 5))
        process.kill()
        assert process.wait() == -9, f"done before kill {kill + 1}"
        parts, there = (len(list((scratch / "cache-run").glob(f"*.rec{end}"))) for end in (".part", ""))
        assert there + parts <= CACHED + 1, (there, parts)
    assert life(*words["killed"]).wait() == 0
    digests = {name: files.sha256_of(words[name][1] / "checkpoints/epoch-0002/weights.safetensors") for name in words}
    same = digests["unbroken"] == digests["killed"]
    print(f"{KILLS} kills, {steps(words['killed'][2])} steps taken for 40: {'the same weights' if same else digests}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--scratch", type=Path, required=True)
    arguments = parser.parse_args()
    data = built(arguments.photos, arguments.scratch)
    with served(data) as address:
        measure(data, address, arguments.scratch)
        kill_again_and_again(data, address, arguments.scratch)
