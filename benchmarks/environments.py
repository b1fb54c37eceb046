"""Environments of the peers that the benchmarks compare with, each a venv of its own with pinned versions.

    python benchmarks/environments.py [ffcv dali mxnet torch]      makes those that are missing, prints their Pythons

They lie in `peers/` of the cache (IMAGENET_PIPELINE_CACHE, else ~/.cache/imagenet-pipeline) and are made again when a
pin changes. What a peer needs of the system it does not install: a line names it, and the others go on. Scripts
ask `interpreter("ffcv")` for a peer's Python, to write its files as well as to read them: FFCV's writer is
`ffcv.writer.DatasetWriter` there, MXNet's im2rec.py is `im2rec()`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from imagenet_pipeline.storage import cache_folder

CONSTRAINTS = Path(__file__).resolve().parent / "peers" / "constraints.txt"


@dataclass(frozen=True)
class Environment:
    """Packages of a venv: those with and those without what they require, and Debian packages that pkg-config finds."""

    packages: str
    alone: str
    """Installed without their requirements: DALI's are gigabytes for a GPU, FFCV's are for its examples."""
    imports: str
    """Imported to see that the environment works."""
    system: dict[str, str]
    """Name for pkg-config: the Debian package that has it."""


ENVIRONMENTS = {
    "ffcv": Environment(
        "numpy==1.26.4 numba torch opencv-python-headless pillow tqdm psutil assertpy",
        "ffcv",
        "ffcv.loader",
        {"opencv4": "libopencv-dev", "libturbojpeg": "libturbojpeg0-dev"},
    ),
    "dali": Environment(
        "numpy==1.26.4 astunparse gast six packaging makefun optree nvtx",
        "nvidia-dali-cuda120 nvidia-nvimgcodec-cu12",
        "nvidia.dali",
        {},
    ),
    "mxnet": Environment("numpy==1.23.5 opencv-python-headless mxnet", "", "mxnet", {}),
    "torch": Environment("numpy==1.26.4 torch pillow", "", "torch", {}),
}


def main() -> None:
    for name in sys.argv[1:] or ENVIRONMENTS:
        if python := interpreter(name, make=True):
            print(f"{name}: {python}")


def interpreter(name: str, make: bool = False) -> Path | None:
    """Python of a peer's environment, made first where `make`; None where it is not there or cannot be made."""
    environment = ENVIRONMENTS[name]
    folder = cache_folder() / "peers" / f"{name}-{_digest(environment)}"
    python, done = folder / "bin" / "python", folder / "works"
    if not done.exists() and make and (fault := _make(environment, folder)):
        print(f"{name} is left out: {fault}", file=sys.stderr)
    return python if done.exists() else None


def im2rec(python: Path) -> Path:
    """MXNet's im2rec.py in the environment of `python`."""
    return next(python.parents[1].glob("lib/python*/site-packages/mxnet/tools/im2rec.py"))


def _digest(environment: Environment) -> str:
    text = f"{environment} {sys.version_info[:2]} {CONSTRAINTS.read_text()}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _make(environment: Environment, folder: Path) -> str:
    """Make a venv; its fault in a line, "" where there is none."""
    if lacking := _lacking(environment):
        return f"apt-get install {lacking}"
    print(f"installing {environment.alone or environment.packages} into {folder} ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
    steps = [[sys.executable, "-m", "venv", str(folder)], [*install, *environment.packages.split()]]
    if environment.alone:
        steps.append([*install, "--no-deps", *environment.alone.split()])
    steps.append([str(python), "-c", f"import {environment.imports}"])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            return _reason(done.stderr)
    (folder / "works").touch()
    return ""


def _reason(complaints: str) -> str:
    """The line that says most: pip's last error, else the last."""
    lines = complaints.strip().splitlines() or ["no word"]
    return next((line for line in reversed(lines) if line.lower().lstrip().startswith("error")), lines[-1]).strip()


def _lacking(environment: Environment) -> str:
    """Debian packages that are needed to build it and not there."""
    if not environment.system:
        return ""
    if shutil.which("pkg-config") is None:
        return f"pkg-config g++ {' '.join(environment.system.values())}"
    lacking = [] if shutil.which("g++") else ["g++"]
    for name, package in environment.system.items():
        if subprocess.run(["pkg-config", "--exists", name], check=False).returncode:
            lacking.append(package)
    return " ".join(lacking)


if __name__ == "__main__":
    main()
