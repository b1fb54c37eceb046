"""What a second thread gives our loader, what holds it back, and what will on more processors.

    python benchmarks/loader_scaling.py [--threads 1 2] [--processes 2 4] [--records 1000] [--rounds 8] [--json]

The records and the work are those of benchmarks/loader.py (256 px). Ours and thirty plain lines, each with our crop
decoder and with whole photos, take turns on each number of threads; then ours in several processes of a thread each, at
once, which share no lock. A busy machine moves all of these: compare within a run, best to best.

Python's lock: processor time an image outside of the calls that let it go, in a lone thread, the fastest tenth of the
batches (on a busy machine the others find cold caches). So many images a second are the most that a process can give,
however many threads it has; on that many processors, processes of their own (torchrun, cluster) go on from there.

Sleeping: the loader with a decoder that sleeps for as long as decoding and resampling take, so that a few processors
show what 16 threads lose by waiting for the lock: images/s of 16 threads to 16 times those of a thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import google_crc32c
import loader as comparison
import numpy as np
import simplejpeg

from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.processes import available_processors, processor_name
from imagenet_pipeline.records import image
from imagenet_pipeline.records.reader import RecordSet

PAIRS = {"ours": "plain-crop", "ours-whole": "plain"}
"""Ours, and the thirty lines with the same decoder."""
LETTING_GO = [
    (os, "pread"),
    (google_crc32c, "value"),
    (google_crc32c, "extend"),
    (simplejpeg, "decode_jpeg"),
    (cv2, "resize"),
    (cv2, "flip"),
]
"""Calls in the loader that let Python's lock go, beside the crop decoder's."""
SIZE, BATCH_SIZE = 224, 64
"""As in benchmarks/peers/serve.py."""
MANY = 16


def main() -> None:
    arguments = parse()
    names = [name for pair in PAIRS.items() for name in pair]
    pythons = {name: Path(sys.executable) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "photos.rec"
        comparison.write_records(arguments.photos, 256, arguments.records, records)
        rows = comparison.measure(pythons, records, arguments.threads, arguments.rounds)
        speeds = {name: {row.threads: row.best for row in rows if row.peer == name} for name in names}
        used = {name: {row.threads: min(row.image_seconds) for row in rows if row.peer == name} for name in names}
        result = {
            "processor": processor_name(),
            "processors": available_processors(),
            "records": arguments.records,
            "rounds": arguments.rounds,
            "images_per_second": speeds,
            "processor_seconds_an_image": used,
            "processes": {count: of_processes(records, count, arguments.rounds) for count in arguments.processes},
            "sleeping": {count: sleeping(records, count, arguments.rounds) for count in (1, MANY)},
            "lock_seconds_an_image": {name: lock_seconds(records, whole=name == "ours-whole") for name in PAIRS},
        }
    print(json.dumps(result, indent=1) if arguments.json else table(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, nargs="+", default=[comparison.PHOTOS], help="tars of photos")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4], help="of a thread each")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def of_processes(records: Path, count: int, rounds: int) -> float:
    """Images a second of all processes together that run at once, the best round."""
    with ExitStack() as ending:
        peers = []
        for number in range(count):
            complaints = records.with_suffix(f".process-{number}.err")
            peers.append(comparison.Peer("ours", Path(sys.executable), records, 1, complaints))
            ending.callback(peers[-1].close)
        with ThreadPoolExecutor(count) as pool:
            for _ in range(rounds):
                list(pool.map(comparison.Peer.round, peers))
    return max(map(sum, zip(*(peer.measured.images_per_second for peer in peers), strict=True)))


def lock_seconds(records: Path, whole: bool) -> float:
    """Seconds an image in which the loader holds Python's lock."""
    timed = _Timed()
    with ExitStack() as ending:
        for module, name in LETTING_GO:
            ending.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, timed.of(getattr(module, name)))
        decoder = image.jpeg_crop
        ending.callback(setattr, image, "jpeg_crop", decoder)
        image.jpeg_crop = None if whole or decoder is None else timed.module(decoder)
        with RecordSet.open(records) as found:
            loader = Loader(found, SIZE, BATCH_SIZE, threads=0)
            found = sorted(seconds for epoch in range(5) for seconds in _batches(loader, epoch, timed))
            return found[len(found) // 10]


def sleeping(records: Path, threads: int, rounds: int) -> float:
    """Images a second where decoding an image is half a millisecond of sleep, the best epoch."""
    names = [(cv2, "resize"), (cv2, "flip"), (image, "_decoded_part")]
    with ExitStack() as ending:
        for module, name in names:
            ending.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, lambda *_, **__: None)
        part = np.empty((SIZE, SIZE, 3), np.uint8)
        image._decoded_part = lambda *_: time.sleep(5e-4) or part  # type: ignore[func-returns-value]
        found = ending.enter_context(RecordSet.open(records))
        loader = Loader(found, SIZE, BATCH_SIZE, threads, prefetch=8)
        speeds = []
        for epoch in range(rounds + 1):
            started = time.perf_counter()
            images = sum(len(batch.labels) for batch in loader.training(1, epoch))
            speeds.append(images / (time.perf_counter() - started))
        return max(speeds[1:])


def _batches(loader: Loader, epoch: int, timed: _Timed) -> list[float]:
    found = []
    with loader.training(1, epoch) as batches:
        before, inside, calls = time.thread_time(), timed.seconds, timed.calls
        for batch in batches:
            used = time.thread_time() - before - (timed.seconds - inside) - (timed.calls - calls) * timed.cost
            found.append(used / len(batch.labels))
            before, inside, calls = time.thread_time(), timed.seconds, timed.calls
    return found


class _Timed:
    """Processor time within some calls, and the number of them."""

    def __init__(self) -> None:
        self.seconds, self.calls, self.cost = 0.0, 0, 0.0
        nothing = self.of(lambda: None)
        costs = []
        for _ in range(200):
            before, inside = time.thread_time(), self.seconds
            for _ in range(50):
                nothing()
            costs.append((time.thread_time() - before - (self.seconds - inside)) / 50)
        self.cost = statistics.median(costs)

    def of(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.thread_time() - started
                self.calls += 1

        return timed

    def module(self, decoder: Any) -> Any:
        calls = {"decode": self.of(decoder.decode), "read_head": decoder.read_head}
        return type("Decoder", (), {name: staticmethod(call) for name, call in calls.items()})


def table(result: dict[str, Any]) -> str:
    speeds, used = result["images_per_second"], result["processor_seconds_an_image"]
    threads = list(next(iter(speeds.values())))
    lines = [
        f"{result['processor']}, {result['processors']} processors, load {os.getloadavg()[0]:.1f}; n = "
        f"{result['records']} records, best of {result['rounds']} rounds, taking turns; images/s",
        "",
        f"| loader | {' | '.join(f'{count} threads | us an image' for count in threads)} | times {threads[0]} |",
        "|---" * (2 * len(threads) + 2) + "|",
    ]
    for name, own in speeds.items():
        cells = " | ".join(f"{own[count]:,.0f} | {1e6 * used[name][count]:.0f}" for count in threads)
        lines.append(f"| {comparison.PEERS[name].title} | {cells} | {own[threads[-1]] / own[threads[0]]:.2f} |")
    lines.append("")
    for name, plain in PAIRS.items():
        ratios = ", ".join(f"{speeds[name][count] / speeds[plain][count]:.2f}" for count in threads)
        lines.append(f"{comparison.PEERS[name].title} to the thirty lines, {threads} threads: {ratios}")
    for count, speed in result["processes"].items():
        lines.append(f"{count} processes of a thread each: {speed:,.0f} images/s")
    alone, many = (result["sleeping"][count] for count in (1, MANY))
    lines.append(
        f"sleeping: {alone:,.0f} images/s a thread, {many:,.0f} of {MANY}, {many / alone / MANY:.2f} of as many"
    )
    for name, held in result["lock_seconds_an_image"].items():
        whole = used[name][threads[0]]
        lines.append(
            f"{comparison.PEERS[name].title}: Python's lock is held {1e6 * held:.0f} us an image, {held / whole:.1%}: "
            f"{MANY} threads give at most {1 / held:,.0f} images/s, {min(MANY, whole / held):.1f} times a thread"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
