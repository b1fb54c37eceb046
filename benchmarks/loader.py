"""Our loader against its peers, on the same JPEG bytes, taking turns in one run: images/s and processor time.

    bash benchmarks/loaders.sh [...]               makes the peers' environments first, then runs this
    python benchmarks/loader.py [--peers ours ffcv dali ...] [--photos TAR ...] [--records 1000] [--threads 1 2]
                                [--pixels 256 0] [--rounds 8] [--json]

Records: photos as `build` stores them at --pixels short edge, quality 95 (0: the originals' bytes), listed until there
are --records of them. Work: random-resized crop to 224 and flip, uint8 unless said. Each peer is a process of its own
(benchmarks/peers/) for each number of threads; all of them stay, each does an epoch when it is its turn, one after the
other, and the first, unmeasured, compiles and warms up. Processor time is that of the process and its children over
a round; a busy machine moves it less than images/s. A peer whose environment is not there (benchmarks/environments.py
makes it) is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Any

import environments

from imagenet_pipeline.processes import available_processors, processor_name
from imagenet_pipeline.records.prepare import prepare
from imagenet_pipeline.records.recordio import frame, pack

REPOSITORY = Path(__file__).resolve().parents[1]
PHOTOS = REPOSITORY.parent / "shared" / "data" / "imagenet_samples_300.tar"
SCRIPTS = REPOSITORY / "benchmarks" / "peers"
IDLE_LIMIT = 0.02
"""Share of a processor that a peer may use while others have their turns."""


@dataclass(frozen=True)
class Contestant:
    """A loader: what it is called in the table, its script and option, and its environment, "" for this one."""

    title: str
    script: str
    option: str = ""
    environment: str = ""


PEERS = {
    "ours": Contestant("ours", "ours"),
    "ours-whole": Contestant("ours, photos decoded whole", "ours", "whole"),
    "ffcv": Contestant("FFCV, the same JPEG bytes", "with_ffcv", environment="ffcv"),
    "dali": Contestant("DALI on the CPU, crop decode", "with_dali", environment="dali"),
    "dali-antialias": Contestant("the same with antialiasing", "with_dali", "antialias", "dali"),
    "mxnet": Contestant("MXNet ImageRecordIter, float32", "with_mxnet", environment="mxnet"),
    "mxnet-uint8": Contestant("MXNet ImageRecordUInt8Iter", "with_mxnet", "uint8", "mxnet"),
    "torch": Contestant("torch DataLoader, Pillow", "with_torch", environment="torch"),
    "plain": Contestant("30 lines: threads, simplejpeg, OpenCV", "plain"),
    "plain-crop": Contestant("30 lines around our crop decoder", "plain", "crop"),
}


@dataclass
class Measured:
    """Rounds of a peer on a number of threads."""

    peer: str
    threads: int
    images_per_second: list[float] = field(default_factory=list)
    """Of each round."""
    image_seconds: list[float] = field(default_factory=list)
    """Processor time an image, of each round."""
    idle_share: float = 0.0
    """Of a processor, used while others had their turns."""
    batch: dict[str, Any] = field(default_factory=dict)
    """Shape, type and mean of the last batch."""

    @property
    def best(self) -> float:
        return max(self.images_per_second)

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)

    @property
    def image_microseconds(self) -> float:
        """Processor time an image, the median."""
        return 1e6 * statistics.median(self.image_seconds)


def main() -> None:
    arguments = parse()
    pythons = {name: python for name in arguments.peers if (python := python_of(name))}
    for name in arguments.peers:
        if name not in pythons:
            say(f"{name} is left out: no environment; bash benchmarks/loaders.sh makes it, or says what is missing")
    result = {
        "processor": processor_name(),
        "processors": available_processors(),
        "load_before": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "records": arguments.records,
        "rounds": arguments.rounds,
        "tables": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for pixels in arguments.pixels:
            records = Path(folder) / f"photos-{pixels}.rec"
            write_records(arguments.photos, pixels, arguments.records, records)
            rows = measure(pythons, records, arguments.threads, arguments.rounds)
            result["tables"].append({"pixels": pixels, "rows": [asdict(row) for row in rows]})
            if not arguments.json:
                print(table(result, pixels, rows))
    if arguments.json:
        print(json.dumps(result, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--photos", type=Path, nargs="+", default=[PHOTOS], help="tars of photos")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 0], help="short edge; 0 for the originals")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def python_of(name: str) -> Path | None:
    environment = PEERS[name].environment
    return environments.interpreter(environment) if environment else Path(sys.executable)


def write_records(tars: list[Path], pixels: int, count: int, path: Path) -> None:
    """Write `count` records and their index, going through the photos again and again."""
    say(f"writing {count} records of {name_of(pixels)} ...")
    images = [prepare(photo, pixels, 95, pass_through=False).data for photo in islice(photos(tars), count)]
    with path.open("wb") as records, path.with_suffix(".idx").open("w") as index:
        for number, image in enumerate(islice(cycle(images), count)):
            index.write(f"{number}\t{records.tell()}\n")
            records.write(frame(pack([float(number % len(images))], number, image)))


def photos(tars: list[Path]) -> Iterator[bytes]:
    for path in tars:
        with tarfile.open(path) as tar:
            yield from (file.read() for member in tar if (file := tar.extractfile(member)) is not None)


def name_of(pixels: int) -> str:
    return f"{pixels} px" if pixels else "the originals"


class Peer:
    """A process of a loader, which sleeps but for its rounds."""

    def __init__(self, name: str, python: Path, records: Path, threads: int, complaints: Path) -> None:
        contestant = PEERS[name]
        self.measured = Measured(name, threads)
        self._complaints = complaints
        command = [str(python), str(SCRIPTS / f"{contestant.script}.py"), str(records), str(threads)]
        # A user's limit on OpenMP is no peer's own; only ours need the package.
        environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "PYTHONPATH")}
        if not contestant.environment:
            environment["PYTHONPATH"] = str(REPOSITORY)
        with complaints.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, *filter(None, [contestant.option])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        self._answer()  # of the epoch before all rounds
        self._rested_at, self._rested_used = time.perf_counter(), self._used()
        self._idle_seconds = self._idle_used = 0.0

    def round(self) -> None:
        """Let it do an epoch, and note its figures."""
        before, measured = self._used(), self.measured
        self._idle_seconds += time.perf_counter() - self._rested_at
        self._idle_used += before - self._rested_used
        print(file=self._pipe(self._process.stdin), flush=True)
        answer = self._answer()
        self._rested_at, self._rested_used = time.perf_counter(), self._used()
        measured.image_seconds.append((self._rested_used - before) / answer["images"])
        measured.images_per_second.append(answer["images"] / answer["seconds"])
        measured.idle_share = self._idle_used / self._idle_seconds
        measured.batch = {key: answer[key] for key in ("shape", "type", "mean")}

    def close(self) -> None:
        """End it: its input ends."""
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._pipe(self._process.stdout).close()

    def _answer(self) -> Any:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            last = (self._complaints.read_text().strip().splitlines() or ["no word"])[-1]
            raise SystemExit(f"{self.measured.peer}, {self.measured.threads} threads, has ended: {last}")
        return json.loads(line)

    def _used(self) -> float:
        return sum(map(_processor_seconds, _family(self._process.pid)))

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def _family(process: int) -> Iterator[int]:
    """A process and those it started."""
    yield process
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in path.read_text().split():
            yield from _family(int(child))


def _processor_seconds(process: int) -> float:
    """User and system time of a process, and of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measure(pythons: dict[str, Path], records: Path, threads: list[int], rounds: int) -> list[Measured]:
    """Let all peers take turns; every one on each number of threads."""
    with ExitStack() as ending:
        peers = []
        for name, python in pythons.items():
            for count in threads:
                say(f"starting {name}, {count} thread{'s' if count > 1 else ''} ...")
                peers.append(Peer(name, python, records, count, records.with_suffix(f".{name}-{count}.err")))
                ending.callback(peers[-1].close)
        for number in range(rounds):
            for peer in peers:
                peer.round()
            say(f"round {number + 1} of {rounds} done")
    measured = [peer.measured for peer in peers]
    for row in measured:
        if row.idle_share > IDLE_LIMIT:
            say(f"{row.peer}, {row.threads} threads, used {row.idle_share:.0%} of a processor out of its turns")
    return measured


def table(result: dict[str, Any], pixels: int, rows: list[Measured]) -> str:
    """A table for people: best and median of the rounds, processor time, how many times as fast ours is."""
    threads = sorted({row.threads for row in rows})
    titles = [f"{count} thread{'s' if count > 1 else ''}" for count in threads]
    heads = ["loader", *titles, "ours is times as fast", "processor time an image, us", "to ours", "batch, its mean"]
    lines = [
        f"{name_of(pixels).capitalize()}: {result['processor']}, {result['processors']} processors, load "
        f"{result['load_before']:.1f} before, {result['date']}; n = {result['records']} records, {result['rounds']} "
        f"rounds in turn; images/s, best (median); the columns after them are of {titles[-1]}",
        "",
        f"| {' | '.join(heads)} |",
        f"{'|---' * len(heads)}|",
    ]
    by_peer = {name: [row for row in rows if row.peer == name] for name in dict.fromkeys(row.peer for row in rows)}
    for name, own in by_peer.items():
        speeds = [f"{row.best:,.0f} ({row.median:,.0f})" for row in own]
        last = own[-1]
        to_ours, faster = comparison(by_peer["ours"][-1], last) if "ours" in by_peer and name != "ours" else ("", "")
        batch = f"{last.batch['type']}, {last.batch['mean']:.0f}"
        cells = [PEERS[name].title, *speeds, faster, f"{last.image_microseconds:,.0f}", to_ours, batch]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def comparison(ours: Measured, other: Measured) -> tuple[str, str]:
    """Processor time of another as a multiple of ours; our images/s as one of its, best and median over the rounds."""
    turns = zip(ours.images_per_second, other.images_per_second, strict=True)
    speed = f"{ours.best / other.best:.2f} ({statistics.median(own / its for own, its in turns):.2f})"
    return f"{other.image_microseconds / ours.image_microseconds:.2f}", speed


if __name__ == "__main__":
    main()
