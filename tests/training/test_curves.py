"""Curves: a readable picture from any journal, across restarts and of several runs."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.training.curves import draw_curves
from imagenet_pipeline.training.journal import Journal


def journalled(run: Path, epochs: int, resumed_at: int | None = None, validated: bool = True) -> Path:
    run.mkdir()
    journal = Journal(run)
    journal.write("start", overrides={})
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "train_loss": 1 / epoch, "train_rank1": 10 * epoch}
        if validated:
            row |= {"validation_loss": 2 / epoch, "validation_rank1": 9 * epoch}
        journal.write("epoch", **row)
    if resumed_at is not None:
        journal.write("resume", epoch=resumed_at)
        journal.write("epoch", epoch=resumed_at + 1, train_loss=0.1, train_rank1=99)
    return run


@pytest.mark.parametrize(
    ("epochs", "resumed_at", "validated"), [(0, None, True), (1, None, False), (4, 2, True), (40, None, True)]
)
def test_a_picture_of_one_run(tmp_path: Path, epochs: int, resumed_at: int | None, validated: bool) -> None:
    run = journalled(tmp_path / "run", epochs, resumed_at, validated)
    assert draw_curves([run], run / "curves.png")
    picture = cv2.imread(str(run / "curves.png"))
    assert picture.shape[1] > 1000
    assert picture.min() < 128 < picture.max()


def test_several_runs_on_one_picture(tmp_path: Path) -> None:
    one, two = journalled(tmp_path / "one", 3), journalled(tmp_path / "two", 5, 2)
    draw_curves([one], tmp_path / "one.png")
    draw_curves([one, two], tmp_path / "both.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "both.png").read_bytes()


def test_a_young_picture_is_left_alone(tmp_path: Path) -> None:
    run, out = journalled(tmp_path / "run", 2), tmp_path / "curves.png"
    assert draw_curves([run], out, at_most_every_seconds=60)
    assert not draw_curves([run], out, at_most_every_seconds=60)
    os.utime(out, (0, 0))
    assert draw_curves([run], out, at_most_every_seconds=60)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="there is no run here"):
        draw_curves([tmp_path], tmp_path / "curves.png")


def test_logs_of_mxnet_and_runs_share_a_picture(tmp_path: Path) -> None:
    run, out = journalled(tmp_path / "run", 3), tmp_path / "both.png"
    for folder in ("alexnet", "vgg"):
        (tmp_path / folder).mkdir()
        lines = [f"Epoch[{epoch}] Validation-accuracy=0.{epoch + 1}" for epoch in range(5)]
        (tmp_path / folder / "training_0.log").write_text("\n".join(lines))
    logs = [tmp_path / folder / "training_0.log" for folder in ("alexnet", "vgg")]
    assert draw_curves([logs[0]], tmp_path / "log.png")
    assert draw_curves([run, *logs], out)
    alone, together = (cv2.imread(str(tmp_path / name)) for name in ("log.png", "both.png"))
    assert together.shape[0] > alone.shape[0]  # the key below

    (tmp_path / "notes.txt").write_text("nothing of the kind")
    with pytest.raises(BadInput, match=r"notes\.txt: no MXNet training log"):
        draw_curves([run, tmp_path / "notes.txt"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
