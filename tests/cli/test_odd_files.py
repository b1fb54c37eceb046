"""A pipe, a device or a folder in the place of a file: every verb says so in one line, and waits for nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WORDS = {
    "recipe": "train {odd}",
    "recipe of a picture": "picture augmentation {odd} --out {out}/picture.png",
    "recipe of find-rate": "find-rate {odd}",
    "recipe of benchmark": "benchmark step {odd}",
    "initial weights": "train {trained}/recipe.toml initial.weights={odd} --run {out}/run",
    "records of a recipe": "train {recipe} records={odd} --run {out}/run",
    "records": "verify {odd}",
    "records to inspect": "inspect {odd}",
    "records of benchmark": "benchmark loader {odd} --size 8",
    "records of evaluate": "evaluate {run} --records {odd}",
    "records of features": "features {run} --layer flatten --records {odd} --out {out}/features.npz",
    "records of a picture": "picture sizes {odd} --out {out}/sizes.png",
    "run": "evaluate {odd}",
    "run of export": "export {odd} --format onnx --out {out}/exported",
    "run of predict": "predict {odd} {photo}",
    "picture": "predict {run} {odd}",
    "list of pictures": "predict {run} {odd}.lst",
    "photo": "picture grad-cam {run} {odd} --out {out}/map.png",
    "log": "plot {odd} --out {out}/curves.png",
    "features": "probe {odd}",
    "symbol": "import --symbol {odd} --params {photo} --network lenet --input 28 --out {out}/imported",
    "params": "import --symbol {photo} --params {odd} --network lenet --input 28 --out {out}/imported",
    "faces": "emotion {run} {odd}",
    "fer2013": "build fer2013 --csv {odd} --out {out}/records",
    "votes": "build fer2013 --csv {csv} --ferplus {odd} --out {out}/records",
    "csv": "build csv --csv {odd} --root {photos} --image-column id --label-column breed --out {out}/records",
    "class file of a list": "build list --list {list} --classes {odd} --root {photos} --out {out}/records",
    "list": "build list --list {odd} --root . --out {out}/records",
    "list of val": "build list --list {list} --val-list {odd} --root . --out {out}/records",
    "class file": "build folder --root {photos} --val-fraction 0 --test-fraction 0 --classes {odd} --out {out}/records",
}


class Waits(BaseException):
    """No Exception, which somebody might take for the file's fault."""


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise Waits

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(15)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory, emotion_run: Path, trained_digits: Path) -> dict[str, object]:
    """What stands beside the odd file in a command."""
    import cv2
    import numpy as np
    import torch  # noqa: F401 - which takes its time

    place = tmp_path_factory.mktemp("usual")
    (place / "recipe.toml").write_text(f'network = "lenet"\nrecords = "{place}"\n')
    for name in ("one", "two"):
        (place / "photos" / name).mkdir(parents=True)
        cv2.imwrite(str(place / "photos" / name / "1.png"), np.zeros((48, 48, 3), np.uint8))
    (place / "images.lst").write_text("0\t0\tone/1.png\n")
    (place / "faces.csv").write_text(f"emotion,pixels,Usage\n0,{'0 ' * 2304},Training\n")
    return {
        "csv": place / "faces.csv",
        "recipe": place / "recipe.toml", "photos": place / "photos", "photo": place / "photos" / "one" / "1.png",
        "list": place / "images.lst", "run": emotion_run, "trained": trained_digits,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("place", WORDS)
def test_an_odd_file_is_one_line(
    place: str, kind: str, usual: dict[str, object], tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    odd = tmp_path / "odd"
    for path in (odd, tmp_path / "odd.lst"):
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    code, out, err = call(*(word.format(odd=odd, out=tmp_path, **usual) for word in WORDS[place].split()))
    assert code in (2, 3, 4), err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]
    assert "odd" in out + err
