"""The side of a peer: an epoch whenever a line comes in, its figures a JSON line on the way out.

    PYTHON benchmarks/peers/SCRIPT.py RECORDS.rec THREADS [OPTION]       started by benchmarks/loader.py

Every script reads the same JPEG bytes, out of the .rec file or a file of its own kind written from it, and gives
batches of 64 random-resized crops (8 to 100 % of the area, aspects 3/4 to 4/3) of 224 px, mirrored half of the time.
This module needs NumPy alone: it runs in each peer's own environment.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BATCH_SIZE = 64
SIZE = 224
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)


def arguments() -> tuple[Path, int, str]:
    """The records, the threads, and the option or ""."""
    records, threads, *option = sys.argv[1:]
    return Path(records), int(threads), option[0] if option else ""


def serve(epoch: Callable[[], Iterable[Any]]) -> None:
    """Run an epoch unmeasured, say so, then run another whenever asked, until the input ends.

    `epoch` gives its batches one after the other. A peer's own prints go to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run(epoch)
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(run(epoch)), file=answers, flush=True)


def run(epoch: Callable[[], Iterable[Any]]) -> dict[str, Any]:
    """Images and seconds of an epoch; type, shape and mean of its last batch."""
    started = time.perf_counter()
    images = 0
    for batch in epoch():
        images += len(batch)
    seconds = time.perf_counter() - started
    last = batch.asnumpy() if hasattr(batch, "asnumpy") else batch
    mean = float(last[::4].mean(dtype="float64")) if hasattr(last, "dtype") else 0.0
    return {"images": images, "seconds": seconds, "shape": list(last.shape), "type": str(last.dtype), "mean": mean}


def extents(records: Path) -> list[tuple[int, int]]:
    """Where each JPEG starts and ends in a .rec file of single labels (MXNet's `image_recordio.h`)."""
    data = records.read_bytes()
    found, offset = [], 0
    while offset < len(data):
        _, length = struct.unpack_from("<II", data, offset)
        if length >> 29:
            raise SystemExit(f"{records}, offset {offset}: a split record, which this reader does not know")
        found.append((offset + 32, offset + 8 + length))  # 8 bytes of frame and 24 of record stand before the image
        offset += 8 + length + -length % 4
    return found


def crop_of(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop; all of the image where ten tries find none that fits."""
    for _ in range(10):
        area = random.uniform(*AREA) * width * height
        aspect = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** random.random()
        wide, high = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            return random.randint(0, width - wide), random.randint(0, height - high), wide, high
    return 0, 0, width, height
