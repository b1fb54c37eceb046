"""Building records of photos: ours with 1 and 2 workers, MXNet's im2rec.py and FFCV's writer, taking turns in one run.

    python benchmarks/build.py [--photos TAR] [--count 1000] [--copied 20000] [--rounds 5] [--mxnet PYTHON]
                               [--ffcv PYTHON] [--only WORDS ...] [--json]

Shrunk: the photos, listed over and over until there are --count, at 256 pixels short edge and JPEG quality 95. Copied:
--copied of them with their bytes as they are; `plain` is what that takes at least: read, header looked at, framed with
its CRC32C, SHA-256, written, synced. Every contestant has a process of its own each round; seconds count from when its
libraries are imported to when its files are closed, worker processes included; processor seconds likewise. The fastest
round is shown. im2rec.py shrinks bilinearly, which takes a sixth of INTER_AREA's time and aliases; it and FFCV check
nothing of a photo and sync nothing. A peer whose Python is not there (by
default MXNet's is this one; `benchmarks/environments.py` makes others) is left out with a line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from imagenet_pipeline.processes import available_processors

REPOSITORY = Path(__file__).resolve().parent.parent
PHOTOS = REPOSITORY.parent / "shared" / "data" / "imagenet_samples_300.tar"
# Python before 3.11.4 unpacks without a filter; the archive is our own.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

FRAME = """
import multiprocessing, resource, sys, time
from pathlib import Path
{imports}
def processor_seconds():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
if __name__ == "__main__":
    listed, root, out = map(Path, sys.argv[1:4])
    rows = [line.split("\\t") for line in listed.read_text().splitlines()]
    used, began = processor_seconds(), time.perf_counter()
{body}
    multiprocessing.active_children()  # whose processor time counts once they are waited for
    print(time.perf_counter() - began, processor_seconds() - used)
"""
"""A contestant's program: LIST ROOT OUT; prints seconds and processor seconds."""

OURS = (
    "from imagenet_pipeline.record_builders import listing\nfrom imagenet_pipeline.records.build import *",
    "    build(listing.plan(listed, root), out, BuildOptions({options}))",
)
PLAIN = (
    "import hashlib, io, os\nfrom PIL import Image\nfrom imagenet_pipeline.records import recordio",
    """    digest = hashlib.sha256()
    with open(out, "wb") as stream:
        for number, (_, label, name) in enumerate(rows):
            data = (root / name).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                image.size
            framed = recordio.frame(recordio.pack((float(label),), number, data))
            digest.update(framed)
            stream.write(framed)
        stream.flush()
        os.fsync(stream.fileno())""",
)
IM2REC = (
    """import runpy, cv2, numpy
vars(numpy).setdefault("bool", bool)  # which MXNet 1.9.1 still looks for
import mxnet""",
    """    tool = str(Path(mxnet.__file__).parent / "tools" / "im2rec.py")
    prefix = out.with_suffix(".lst")
    prefix.write_bytes(listed.read_bytes())
    sys.argv = [tool, str(prefix), str(root), *"{options}".split()]
    printed, sys.stdout = sys.stdout, sys.stderr
    runpy.run_path(tool, run_name="__main__")
    sys.stdout = printed""",
)
FFCV = (
    """import cv2, numpy
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
class Photos:
    def __init__(self, root, rows):
        self.root, self.rows = root, rows
    def __len__(self):
        return len(self.rows)
    def __getitem__(self, number):
        _, label, name = self.rows[number]
        image = cv2.cvtColor(cv2.imread(str(self.root / name)), cv2.COLOR_BGR2RGB)
        scale = min(1.0, 256 / min(image.shape[:2]))
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA), int(label)""",
    """    fields = {{"image": RGBImageField(write_mode="jpg", jpeg_quality=95), "label": IntField()}}
    DatasetWriter(str(out), fields, num_workers={options}).from_indexed_dataset(Photos(root, rows), chunksize=20)""",
)


class Contestant(NamedTuple):
    """A program, its options and whether it copies photos; `peer` is the Python it needs, ours by default."""

    program: tuple[str, str]
    options: str
    copies: bool = False
    peer: str = "ours"

    def text(self) -> str:
        """The program's text."""
        imports, body = self.program
        return FRAME.format(imports=imports, body=body.format(options=self.options))


CONTESTANTS = {
    "ours, 1 worker": Contestant(OURS, "workers=1"),
    "ours, 2 workers": Contestant(OURS, "workers=2"),
    "ours, 1 worker, --no-mean": Contestant(OURS, "workers=1, no_mean=True"),
    "ours, 2 workers, --no-mean": Contestant(OURS, "workers=2, no_mean=True"),
    "im2rec.py, 1 process": Contestant(IM2REC, "--resize 256 --quality 95 --num-thread 1", peer="mxnet"),
    "im2rec.py, 2 processes": Contestant(IM2REC, "--resize 256 --quality 95 --num-thread 2", peer="mxnet"),
    "FFCV's writer, 1 worker": Contestant(FFCV, "1", peer="ffcv"),
    "FFCV's writer, 2 workers": Contestant(FFCV, "2", peer="ffcv"),
    "plain copying": Contestant(PLAIN, "", copies=True),
    "ours, 1 worker, --pass-through --no-mean": Contestant(
        OURS, "workers=1, pass_through=True, no_mean=True", copies=True
    ),
    "ours, 2 workers, --pass-through --no-mean": Contestant(
        OURS, "workers=2, pass_through=True, no_mean=True", copies=True
    ),
    "ours, 2 workers, --pass-through": Contestant(OURS, "workers=2, pass_through=True", copies=True),
    "im2rec.py --pass-through, 2 processes": Contestant(IM2REC, "--pass-through --num-thread 2", True, "mxnet"),
}


def main() -> None:
    arguments = parse()
    pythons = {"ours": sys.executable, "mxnet": arguments.mxnet, "ffcv": arguments.ffcv}
    asked = {name: found for name, found in CONTESTANTS.items() if any(word in name for word in arguments.only)}
    there = {name: contestant for name, contestant in asked.items() if shutil.which(pythons[contestant.peer])}
    for name in asked.keys() - there.keys():
        print(f"left out, no Python of its own: {name}", file=sys.stderr)
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in there}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = unpacked(arguments.photos, Path(folder) / "photos")
        lists = {copies: listed(root, arguments.copied if copies else arguments.count) for copies in (False, True)}
        for _ in range(arguments.rounds):
            for name, contestant in there.items():
                run = measured(contestant, pythons[contestant.peer], lists[contestant.copies], root, Path(folder))
                rounds[name].append(run)
    rows = [
        row(name, arguments.copied if there[name].copies else arguments.count, runs) for name, runs in rounds.items()
    ]
    found = {"processors": available_processors(), "rounds": arguments.rounds, "rows": rows}
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if arguments.json else table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="tar of photos")
    parser.add_argument("--count", type=int, default=1000, help="photos to shrink")
    parser.add_argument("--copied", type=int, default=20_000, help="photos to copy; 118 KB each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mxnet", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--ffcv", default="", metavar="PYTHON")
    parser.add_argument("--only", nargs="+", default=[""], help="contestants in whose names one of these words is")
    parser.add_argument("--folder", type=Path, help="where photos and records go [default: TMPDIR]")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **SAFELY)
    return folder


def listed(root: Path, count: int) -> Path:
    """Write a list of so many photos, going through those in `root` again and again; labels 0 to 9."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.JPEG"))
    path = root.with_name(f"{count}.lst")
    path.write_text("".join(f"{i}\t{i % 10}\t{names[i % len(names)]}\n" for i in range(count)))
    return path


def measured(contestant: Contestant, python: str, photos: Path, root: Path, folder: Path) -> tuple[float, float]:
    """Run a contestant; seconds and processor seconds."""
    work = folder / "work"
    work.mkdir()
    program = work / "program.py"
    program.write_text(contestant.text())
    words = [python, str(program), str(photos), str(root), str(work / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contestant.text()}\n{done.stderr}")
    shutil.rmtree(work)
    seconds, processor = done.stdout.split()[-2:]
    return float(seconds), float(processor)


def row(name: str, photos: int, runs: list[tuple[float, float]]) -> dict[str, Any]:
    seconds, processor = min(runs)
    return {
        "contestant": name,
        "photos": photos,
        "seconds": [run[0] for run in runs],
        "photos_per_second": photos / seconds,
        "processor_us_per_photo": 1e6 * processor / photos,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | photos | photos/s | processor time a photo, us |", "|---|---|---|---|"]
    for found in rows:
        numbers = f"{found['photos_per_second']:,.0f} | {found['processor_us_per_photo']:,.0f}"
        lines.append(f"| {found['contestant']} | {found['photos']:,} | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
