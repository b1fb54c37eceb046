"""Serving: photos of phone size to POST /predict, one after another, 200 at once, and 200 at once with a SIGTERM.

    python benchmarks/serving.py TAR [--engines pytorch gluon onnx] [--photos 40] [--at-once 200] [--network resnet18]

TAR holds photos (imagenet_samples_300.tar of the shared data); they are enlarged to 4,000 x 3,000 with a camera's noise
and stored at quality 92. The network has drawn weights, 1,000 classes, 224 px. The server is a process of its own; its
peak memory is the system's (VmHWM), begun anew before each part. Lost is what was sent whole and got no answer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from imagenet_pipeline.config import InputRecipe, Recipe, recipe_text
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.training.checkpoint import State, save_checkpoint

WIDTH, HEIGHT, SIZE, CLASSES = 4000, 3000, 224, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tar", type=Path)
    parser.add_argument("--engines", nargs="+", default=["pytorch", "gluon", "onnx"])
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--network", default="resnet18")
    arguments = parser.parse_args()
    photos = phone_photos(arguments.tar, arguments.photos)
    megabytes = statistics.mean(map(len, photos)) / 1e6
    say(f"{len(photos)} photos of {WIDTH} x {HEIGHT}, on average {megabytes:.1f} MB; {arguments.network} at {SIZE} px")
    for engine in arguments.engines:
        with tempfile.TemporaryDirectory() as folder:
            measure(served_path(Path(folder), arguments.network, engine), engine, photos, arguments.at_once)


def phone_photos(tar: Path, count: int) -> list[bytes]:
    """Photos of the archive as a phone would have taken them."""
    random, photos = np.random.default_rng(1), []
    with tarfile.open(tar) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            pixels = cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_COLOR) if stream else None
            if pixels is None:
                continue
            large = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            noise = random.integers(-6, 7, large.shape, np.int16)
            noisy = np.clip(large + noise, 0, 255).astype(np.uint8)
            photos.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
            if len(photos) == count:
                break
    return photos


def served_path(folder: Path, network: str, engine: str) -> Path:
    """A run of drawn weights, or its ONNX file."""
    ids = tuple(f"n{number:08d}" for number in range(CLASSES))
    recipe = Recipe(
        network=network, records="nowhere", engine="pytorch" if engine == "onnx" else engine, devices="cpu",
        precision="float32", batch_size=32, input=InputRecipe(size=SIZE),
    )  # fmt: skip
    run = folder / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(recipe_text(recipe))
    values = initial_values(catalog.entry(network).build(CLASSES), (3, SIZE, SIZE), "he", 1)
    normalisation = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
    state = State(
        1,
        1,
        network,
        SIZE,
        ids,
        ids,
        "wnid",
        *normalisation,
        "0" * 64,
        recipe.engine,
        {},
        {"validation_rank1": 1.0},
        {},
    )
    save_checkpoint(run, state, values, {})
    if engine != "onnx":
        return run
    words = ["export", str(run), "--format", "onnx", "--out", str(folder / "net")]
    subprocess.run([sys.executable, "-m", "imagenet_pipeline", *words], check=True, stdout=subprocess.DEVNULL)
    return folder / "net.onnx"


@dataclass
class Server:
    """A server in a process of its own."""

    path: Path
    process: subprocess.Popen[str] = field(init=False)
    port: int = field(init=False)

    def __post_init__(self) -> None:
        words = [sys.executable, "-m", "imagenet_pipeline", "serve", str(self.path), "--port", "0"]
        began = time.monotonic()
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.port = int(self._line().split("/")[2].rpartition(":")[2])
        bound = time.monotonic() - began
        ready = self._line()
        say(f"  address after {bound:.2f} s, {ready}")

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def memory(self, name: str) -> float:
        """VmRSS or VmHWM in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def ask(self, photo: bytes) -> tuple[str, Any]:
        """The status of a photo's answer and the answer; "refused" where no connection came about, or "lost"."""
        sent = False
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.connect()
            connection.request("POST", "/predict", photo, {"Content-Type": "image/jpeg"})
            sent = True
            answer = connection.getresponse()
            body = answer.read()
            return str(answer.status), json.loads(body) if answer.status in (200, 503) else body
        except OSError as error:
            return "lost" if sent else f"refused ({type(error).__name__})", None
        finally:
            connection.close()


def measure(path: Path, engine: str, photos: Sequence[bytes], at_once: int) -> None:
    say(f"{engine}:")
    server = Server(path)
    ask(server, photos[:2], 1)
    say(f"  memory when ready {server.memory('VmRSS'):.0f} MB")
    server.forget_peak()
    alone, seconds, waits = ask(server, photos, 1)
    single = len(photos) / seconds
    say(f"  one after another: {len(photos)} photos, {single:.1f}/s, median {1000 * statistics.median(waits):.0f} ms, "
        f"peak {server.memory('VmHWM'):.0f} MB")  # fmt: skip
    many = [photos[number % len(photos)] for number in range(at_once)]
    for part in range(2):
        server.forget_peak()
        answers, seconds, waits = ask(server, many, at_once)
        rate, peak = at_once / seconds, server.memory("VmHWM")
        far = max(difference(alone[number % len(photos)], answer) for number, answer in enumerate(answers))
        counted = dict(Counter(status for status, _ in answers))
        say(f"  {at_once} at once ({part + 1}): {rate:.1f}/s, {rate / single:.2f} times, {counted}, slowest "
            f"{max(waits):.1f} s, peak {peak:.0f} MB, furthest from alone {far:.1e}")  # fmt: skip
    threading.Timer(2.0, server.process.send_signal, [signal.SIGTERM]).start()
    answers, _, _ = ask(server, many, at_once)
    say(f"  SIGTERM after 2 s: {dict(Counter(status for status, _ in answers))}, exit code {server.process.wait(60)}")


def ask(server: Server, photos: Sequence[bytes], at_once: int) -> tuple[list[tuple[str, Any]], float, list[float]]:
    """The answers, the seconds of all together and of each."""
    waits: list[float] = []

    def timed(photo: bytes) -> tuple[str, Any]:
        began = time.monotonic()
        answer = server.ask(photo)
        waits.append(time.monotonic() - began)
        return answer

    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(timed, photos))
    return answers, time.monotonic() - began, waits


def difference(one: tuple[str, Any], other: tuple[str, Any]) -> float:
    """The largest difference of a probability, among the classes that both name."""
    shares = [
        {choice["class"]: choice["probability"] for choice in answer["predictions"]} for _, answer in (one, other)
    ]
    return max(abs(shares[0][name] - shares[1][name]) for name in shares[0].keys() & shares[1].keys())


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
