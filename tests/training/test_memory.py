"""Memory stays flat over many epochs. IMAGENET_PIPELINE_LONG=1 runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.training import loop
from imagenet_pipeline.training.resume import open_run

EPOCHS = 20
SETTLING = 5
"""Epochs after which everything has been allocated once."""
NOISE_BYTES = 2 * 2**20
"""What allocators keep and give back; one leaked batch of images an epoch would be 2.7 MiB."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(os.environ.get("IMAGENET_PIPELINE_LONG") != "1", reason="long: IMAGENET_PIPELINE_LONG=1 runs it")
@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_memory_stays_flat(engine: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    save = loop.save_epoch

    def measured(*words: Any) -> Any:
        outcome = save(*words)
        sizes.append(resident_bytes())
        return outcome

    monkeypatch.setattr(loop, "save_epoch", measured)
    changes = {"engine": engine, "epochs": EPOCHS, "loader.threads": 2, "checkpoint.keep": 2}
    loop.train(open_run(recipe, changes, tmp_path / "run"))
    megabytes = [round(size / 2**20, 1) for size in sizes]
    assert len(sizes) == EPOCHS
    assert np.mean(sizes[-5:]) - np.mean(sizes[SETTLING : SETTLING + 5]) < NOISE_BYTES, megabytes
    print(f"{engine}: {megabytes} MiB")
