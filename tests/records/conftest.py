"""Small made-up photos and data sets built from them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.plan import Images, Plan

CLASSES = ClassTable("folder", ("cat", "dog", "emu"), ("Cat", "Dog", "Emu"))


class Inline(Executor):
    """Runs each task at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture
def inline() -> Executor:
    return Inline()


@pytest.fixture
def build_killed(monkeypatch: pytest.MonkeyPatch, inline: Executor) -> Callable[[Plan, Path, BuildOptions], None]:
    """Builds that are killed when all shards are made and nothing beside them is written."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    def build_and_kill(plan: Plan, out: Path, options: BuildOptions) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("imagenet_pipeline.records.finish.write_data_set", fail)
            with pytest.raises(KeyboardInterrupt):
                build(plan, out, options, executor=inline)

    return build_and_kill


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 smooth colour JPEGs of several sizes, 0.jpg .. 29.jpg."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(7)
    for i in range(30):
        height, width = (int(side) for side in generator.integers(20, 90, 2))
        noise = generator.integers(0, 256, (5, 5, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), cv2.resize(noise, (width, height)))
    return folder


@pytest.fixture(scope="session")
def small_plan(photos: Path) -> Plan:
    """18 train, 6 val and 6 test images of three classes."""
    rows = np.arange(30)
    cuts = {"train": rows[:18], "val": rows[18:24], "test": rows[24:]}
    splits = {name: Images([f"{i}.jpg" for i in cut], cut % 3) for name, cut in cuts.items()}
    return Plan(photos, splits, CLASSES, {"builder": "test"})


@pytest.fixture(scope="session")
def data_set(small_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_plan` built with short edge 32 into two train shards; not to be changed."""
    out = tmp_path_factory.mktemp("data") / "set"
    build(small_plan, out, BuildOptions(resize=32, shards=2, workers=1), executor=Inline())
    return out
