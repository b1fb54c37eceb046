"""The verb doctor: this machine and this installation, fit to be pasted into a report."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from imagenet_pipeline import __version__
from imagenet_pipeline.cli.output import Json, announce, say, say_json
from imagenet_pipeline.errors import Negative, counted

PACKAGE = "imagenet-pipeline"
_ENGINES = {"gluon": ("mxnet", "mxnet-cu112"), "pytorch": ("torch",)}
"""Engines, and the distributions that bring their frameworks."""
_OTHERS = ("numpy", "opencv-python-headless", "pillow", "simplejpeg", "scikit-learn", "scipy", "pydantic", "typer")
_NOT_FOR_USERS = ("docs", "test", "gluon-cu112")
"""Extras that nobody misses: those of developers, and another build of an engine."""
_PROBE = """
import importlib, sys
runtime = importlib.import_module(f"imagenet_pipeline.engines.{sys.argv[1]}.runtime")
print(int(runtime.gpu_count()))
"""
_PROBE_SECONDS = 60.0
_WRITTEN_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class EngineFound:
    """An engine: the version installed, the GPUs it can use, and why it cannot be used, where it cannot."""

    name: str
    version: str | None
    gpus: int
    trouble: str


def doctor(as_json: Json = False) -> None:
    """Say what this machine and this installation have, and what is missing.

    Versions, engines and the devices they can use, processors, memory and the quotas on them, OpenCV and libjpeg, the
    compiled parts, the disk under this folder, optional packages. The exit code is 1 where no engine can be used.

    \b
    Examples:
      imagenet-pipeline doctor
      imagenet-pipeline doctor --json > report.json
    """
    announce("doctor: importing the engines, each in a process of its own")
    engines = _engines_found()
    found = _found(engines)
    if as_json:
        say_json(found)
    else:
        for name, words in _lines(found):
            say(f"{name:<13} {words}")
    if not any(engine.version and not engine.trouble for engine in engines):
        raise Negative


def engine_versions() -> dict[str, str | None]:
    """The version of each engine's framework, which is not imported; None where it is not installed."""
    return {engine: _version(*names) for engine, names in _ENGINES.items()}


def _found(engines: list[EngineFound]) -> dict[str, Any]:
    from imagenet_pipeline.processes import available_memory_bytes, available_processors, memory_bytes, processor_name
    from imagenet_pipeline.processes import quotas as quotas_of
    from imagenet_pipeline.records import image

    quota_processors, quota_memory_bytes = quotas_of()
    crop_decoder = image.crop_decoder()
    return {
        "imagenet_pipeline": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor_name(),
        "processors": available_processors(),
        "processors_of_machine": os.cpu_count(),
        "processors_quota": quota_processors,
        "memory_bytes": memory_bytes(),
        "memory_available_bytes": available_memory_bytes(),
        "memory_quota_bytes": quota_memory_bytes,
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
        **{engine.name: engine.version for engine in engines},
        "engines": [dataclasses.asdict(engine) for engine in engines],
        "crop_decoder": crop_decoder,
        "compiled": {"jpeg_crop": crop_decoder is not None, "area_average": image.average is not None},
        "libjpeg": _libjpeg_versions(crop_decoder),
        "packages": {name: _version(name, name.removesuffix("-headless")) for name in _OTHERS},
        "extras": _extras(),
        "disk": _disk(Path()),
    }


def _engines_found() -> list[EngineFound]:
    """Import each installed engine in a process of its own, all at once: one that aborts takes nothing along."""
    versions = engine_versions()
    words = [sys.executable, "-c", _PROBE]
    started = {
        name: subprocess.Popen([*words, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, version in versions.items()
        if version
    }
    found = []
    for name, version in versions.items():
        gpus, trouble = _answer(started[name]) if name in started else (0, "")
        found.append(EngineFound(name, version, gpus, trouble))
    return found


def _answer(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        try:
            answer, said = process.communicate(timeout=_PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return 0, f"was not imported within {_PROBE_SECONDS:g} seconds: broken, or the machine is slow"
    if process.returncode:
        last = [line for line in said.splitlines() if line.strip()][-1:] or [f"ended with code {process.returncode}"]
        return 0, f"cannot be imported ({last[0].strip()})"
    return int(answer.split()[-1]), ""


def _version(*distributions: str) -> str | None:
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def _libjpeg_versions(crop_decoder: str | None) -> dict[str, str | None]:
    """The libjpeg-turbo inside each library that decodes photos here."""
    import cv2
    from PIL import features

    inside = re.search(r"^\s*JPEG:\s.*\(ver ([^)]+)\)", cv2.getBuildInformation(), re.M)
    pillow = features.version("libjpeg_turbo")
    return {"opencv": inside and inside[1], "pillow": pillow, "crop decoder": crop_decoder}


def _extras() -> dict[str, list[str]]:
    """The packages of each extra that are not installed, none where all are. Empty where this is no installation."""
    try:
        required = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    missing: dict[str, list[str]] = {}
    for line in required:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        if extra and name and extra[1] not in _NOT_FOR_USERS:
            absent = [] if _version(name[0]) else [name[0]]
            missing[extra[1]] = [*missing.get(extra[1], []), *absent]
    return missing


def _disk(folder: Path) -> dict[str, Any]:
    """Room under a folder, and the rate at which a file there reaches the disk; None where it cannot be written."""
    usage = shutil.disk_usage(folder)
    rate = None
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as stream:
        started = time.perf_counter()
        stream.write(bytes(_WRITTEN_BYTES))
        stream.flush()
        os.fsync(stream.fileno())
        rate = _WRITTEN_BYTES / (time.perf_counter() - started)
    return {"free_bytes": usage.free, "total_bytes": usage.total, "written_bytes_per_second": rate}


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The rows of the text: what, and what is known of it."""
    from imagenet_pipeline.records.image import WITHOUT_CROP_DECODER

    yield "version", f"{found['imagenet_pipeline']}, Python {found['python']}, {found['system']}"
    yield "processor", _processors(found)
    yield "memory", _memory(found)
    if found["threads"]:
        yield "threads", ", ".join(f"{name}={value}" for name, value in found["threads"].items())
    for engine in found["engines"]:
        yield engine["name"], _engine(engine)
    decoder = found["crop_decoder"]
    yield "crop decoder", f"libjpeg-turbo {decoder}" if decoder else WITHOUT_CROP_DECODER
    yield "compiled", ", ".join(f"{name}: {'yes' if there else 'no'}" for name, there in found["compiled"].items())
    yield "libjpeg", ", ".join(f"{version} in {name}" for name, version in found["libjpeg"].items() if version)
    versions = [f"{name} {version or 'missing'}" for name, version in found["packages"].items()]
    yield "packages", ", ".join(versions[:4])
    yield "", ", ".join(versions[4:])
    disk = found["disk"]
    speed = disk["written_bytes_per_second"]
    written = f"writes {speed / 1e6:,.0f} MB/s" if speed else "cannot be written to"
    yield "disk", f"{disk['free_bytes'] / 1e9:,.1f} of {disk['total_bytes'] / 1e9:,.1f} GB free here; {written}"
    there = [extra for extra, missing in found["extras"].items() if not missing]
    yield "extras", ", ".join(there) or "none"
    for extra, missing in found["extras"].items():
        if missing:
            yield "", f"no {', '.join(missing)}: pip install '{PACKAGE}[{extra}]'"


def _processors(found: dict[str, Any]) -> str:
    quota = found["processors_quota"]
    limited = f"; a quota of {quota:g}" if quota is not None else ""
    usable = counted(found["processors"], "processor")
    return f"{found['processor']}, {usable} of {found['processors_of_machine']} usable{limited}"


def _memory(found: dict[str, Any]) -> str:
    def shown(key: str) -> str:
        return f"{found[key] / 2**30:,.1f} GiB" if found[key] else "an unknown amount"

    quota = f"; a quota of {shown('memory_quota_bytes')}" if found["memory_quota_bytes"] else ""
    return f"{shown('memory_available_bytes')} available of {shown('memory_bytes')}{quota}"


def _engine(engine: dict[str, Any]) -> str:
    if not engine["version"]:
        return f"not installed: pip install '{PACKAGE}[{engine['name']}]'"
    devices = counted(engine["gpus"], "GPU") if engine["gpus"] else "no GPU"
    return f"{engine['version']}, {engine['trouble'] or devices}"
