"""Digests of what a fixed run makes, to hold two commits against each other: nothing here may change by accident.

    python benchmarks/golden.py PHOTOS OUT > golden.json        (PHOTOS: imagenette's folders train/ and val/)

Digits and 600 imagenette photos are built, trained for a few epochs in float32 on both engines, scored and exported.
Equal on one machine with one number of threads; `diff` the JSON of two commits. About four minutes on two cores.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TRAIN_A_CLASS, VAL_A_CLASS = 50, 10
ENGINES = ("gluon", "pytorch")
DIGITS = ("config/demo.toml", "epochs=3")
PHOTOS = ("config/imagenette/resnet18.toml", "epochs=2", "input.size=64", "batch_size=32", "schedule.warmup_epochs=1")
NOT_THE_RUNS = ("versions", "seconds", "images_per_second", "report", "run", "processor", "threads")
KEPT = "markers.txt"  # knows where and when the photos were


def main() -> None:
    photos, out = Path(sys.argv[1]), Path(sys.argv[2])
    link_photos(photos, out / "photos")
    build("digits", out / "digits")
    build("folder", out / "imagenette", "--root", str(out / "photos"))
    found: dict[str, Any] = {"digits": digests(out / "digits", "*.*"), "imagenette": digests(out / "imagenette", "*.*")}
    for engine in ENGINES:
        for (recipe, *keys), records in ((DIGITS, out / "digits"), (PHOTOS, out / "imagenette")):
            run = out / f"{records.name}-{engine}"
            found[run.name] = trained(recipe, [*keys, f"engine={engine}", f"records={records}"], run)
    json.dump(found, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


def link_photos(photos: Path, out: Path) -> None:
    """The first photos of each class by name, as links."""
    for split, count in (("train", TRAIN_A_CLASS), ("val", VAL_A_CLASS)):
        for folder in sorted((photos / split).iterdir()):
            (out / split / folder.name).mkdir(parents=True, exist_ok=True)
            for photo in sorted(folder.iterdir())[:count]:
                target = out / split / folder.name / photo.name
                if not target.exists():
                    target.hardlink_to(photo)


def build(builder: str, out: Path, *words: str) -> None:
    command("build", builder, *words, "--out", str(out))


def trained(recipe: str, keys: list[str], run: Path) -> dict[str, Any]:
    """Digests of the last checkpoint and of the exports, and the figures of the evaluation."""
    command("train", recipe, *keys, "precision=float32", "--run", str(run))
    report = json.loads(command("evaluate", str(run), "--checkpoint", "latest", "--json"))
    for kind in ("mxnet", "onnx", "pytorch"):
        command("export", str(run), "--checkpoint", "latest", "--format", kind, "--out", str(run / "exported" / kind))
    return {
        "weights": digests(run / "checkpoints" / "latest", "*.safetensors"),
        "exports": digests(run / "exported", "*.[posn]*"),
        "figures": {key: value for key, value in report.items() if key not in NOT_THE_RUNS},
    }


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "imagenet_pipeline", *words], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(pattern))
        if path.name != KEPT
    }


if __name__ == "__main__":
    main()
