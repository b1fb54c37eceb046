"""Curves: a readable picture from any journal, across restarts and of several runs."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.training import curves
from imagenet_pipeline.training.curves import COLOURS, draw_curves, is_ruled, separate_curves, spans_decades
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


def test_a_picture_of_the_future_is_drawn_anew(tmp_path: Path) -> None:
    """As where the clock went back."""
    run = journalled(tmp_path / "run", 2)
    draw_curves([run], run / "curves.png")
    later = time.time() + 10**6
    os.utime(run / "curves.png", (later, later))
    assert draw_curves([run], run / "curves.png", at_most_every_seconds=30)
    assert (run / "curves.png").stat().st_mtime < later


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
    with pytest.raises(BadInput, match=r"notes\.txt: not an MXNet training log"):
        draw_curves([run, tmp_path / "notes.txt"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn from here on."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *words: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def key(legend: Legend | None) -> list[str]:
    return [text.get_text().strip() for text in legend.get_texts()] if legend else []


def test_the_key_names_restarts_and_earlier_branches_where_there_are_any(tmp_path: Path, drawn: list[Figure]) -> None:
    plain, left = journalled(tmp_path / "plain", 3), journalled(tmp_path / "left", 5, 2)
    at_end = journalled(tmp_path / "at_end", 4, 4)
    for runs in ([plain], [at_end], [left], [plain, at_end], [plain, left]):
        draw_curves(runs, tmp_path / "curves.png")
    alone, together = drawn[:3], drawn[3:]
    common = ["train", "validation"]
    for figure, more in zip(alone, ([], ["restart"], ["earlier branch", "restart"]), strict=True):
        assert [key(axes.get_legend()) for axes in figure.axes] == [[*common, *more]] * 2
    assert key(together[0].legends[0]) == ["plain", "at_end", *common, "restart"]
    assert key(together[1].legends[0]) == ["plain", "left", *common, "earlier branch", "restart"]


def test_curves_come_in_the_order_given(tmp_path: Path, drawn: list[Figure]) -> None:
    run = journalled(tmp_path / "run1", 3)
    logs = [tmp_path / f"training_{first}.log" for first in (0, 2)]
    for first, log in zip((0, 2), logs, strict=True):
        log.write_text("\n".join(f"Epoch[{first + n}] Validation-accuracy=0.{first + n + 1}" for n in range(4)))
    for paths in ([logs[0], run], [run, logs[0]], [logs[0], run, logs[1]], [logs[0], logs[0], run]):
        draw_curves(paths, tmp_path / "curves.png")
    names = [[name for name in key(figure.legends[0]) if name[-1].isdigit()] for figure in drawn]
    folder = tmp_path.name
    twice = f"{folder}/training_0"
    assert names == [["training_0", "run1"], ["run1", "training_0"], ["training_0", "run1"], [twice, twice, "run1"]]
    for number, colour in enumerate(COLOURS[:2]):
        (line,) = [line for line in drawn[number].axes[-1].lines if len(np.atleast_1d(line.get_xdata())) == 4]
        assert line.get_color() == colour


def test_loss_and_rank1_apart(tmp_path: Path) -> None:
    pictures = separate_curves(journalled(tmp_path / "run", 4, 2))
    assert list(pictures) == ["loss", "rank-1"]
    loss, rank1 = (cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) for one in pictures.values())
    assert loss.shape == rank1.shape == (462, 605, 3)
    assert (loss != rank1).any()
    with pytest.raises(BadRecipe, match="there is no run here"):
        separate_curves(tmp_path)


def rows(run: Path, losses: list[float], ranks: list[float], rates: list[float]) -> Path:
    run.mkdir()
    journal = Journal(run)
    journal.write("start", overrides={})
    for epoch, (loss, rank, rate) in enumerate(zip(losses, ranks, rates, strict=True), 1):
        journal.write("epoch", epoch=epoch, learning_rate=rate, train_loss=loss, train_rank1=rank)
    return run


EPOCHS = np.arange(1, 21)


@pytest.mark.parametrize(
    ("losses", "ranks"),
    [
        (3 * 0.6**EPOCHS, 90 - 80 * 0.7**EPOCHS),
        (EPOCHS / 10.0, 90.0 - EPOCHS),
        (np.where(EPOCHS % 2, 0.1, 2.0), np.where(EPOCHS % 2, 10.0, 90.0)),
    ],
)
def test_no_curve_goes_through_the_key(
    tmp_path: Path, drawn: list[Figure], losses: np.ndarray, ranks: np.ndarray
) -> None:
    run = rows(tmp_path / "run", losses.tolist(), ranks.tolist(), [0.1] * 20)
    draw_curves([run], tmp_path / "curves.png")
    for axes in (drawn[0].axes[0], drawn[0].axes[-1]):
        legend = axes.get_legend()
        assert legend is not None
        box = legend.get_window_extent()
        points = axes.transData.transform(axes.lines[0].get_xydata())
        between = np.concatenate([np.linspace(a, b, 50) for a, b in itertools.pairwise(points)])
        assert not any(box.contains(x, y) for x, y in between)


def test_an_axis_is_logarithmic_where_few_values_take_it_all() -> None:
    assert is_ruled([80.0, 2.0, 1.9, 1.8, 1.7])
    assert is_ruled([2.0, 1.9, 60.0, 1.8, 1.7])
    assert not is_ruled([2.0, 1.6, 1.2, 1.0, 0.9])
    assert not is_ruled([80.0, 2.0, 0.0, 1.8, 1.7])
    assert not is_ruled([])
    cosine = [0.05 * (1 + np.cos(np.pi * part / 30)) for part in range(30)]
    assert not spans_decades(cosine)
    assert spans_decades([0.1] * 3 + [0.01] * 3 + [0.001] * 3)
    assert not spans_decades([])


def test_the_rate_has_a_panel_and_chance_a_line(
    tmp_path: Path, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "_classes", lambda _: 10)
    run = rows(tmp_path / "run", [80.0, 2.0, 1.9, 1.8], [20.0, 40.0, 60.0, 70.0], [0.1, 0.1, 0.01, 0.001])
    draw_curves([run], tmp_path / "curves.png")
    loss, rate, rank1 = drawn[0].axes
    assert [axes.get_yscale() for axes in (loss, rate, rank1)] == ["log", "log", "linear"]
    assert [text.get_text() for text in rank1.texts] == ["chance 10 %"]
    assert list(separate_curves(run)) == ["loss and learning rate", "rank-1"]
    far = rows(tmp_path / "far", [1.0] * 3, [97.0, 98.0, 99.0], [0.1] * 3)
    draw_curves([far], tmp_path / "far.png")
    assert not drawn[-1].axes[-1].texts  # it would flatten the curve


def test_a_log_without_a_loss_has_no_panel_for_it(tmp_path: Path, drawn: list[Figure]) -> None:
    log = tmp_path / "training_0.log"
    log.write_text("\n".join(f"Epoch[{epoch}] Validation-accuracy=0.{epoch + 1}" for epoch in range(4)))
    draw_curves([log], tmp_path / "curves.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["rank-1, %"]


def test_more_runs_than_colours_are_told_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = [journalled(tmp_path / f"run{number}", 3) for number in range(len(COLOURS) + 3)]
    draw_curves(runs, tmp_path / "curves.png")
    for axes in drawn[0].axes:
        assert len({tuple(np.atleast_1d(line.get_color())) for line in axes.lines}) == len(axes.lines) == len(runs)


def test_a_run_that_was_resumed_before_any_epoch_has_its_restart_drawn(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    (tmp_path / "run").mkdir()
    journal.write("start")
    journal.write("resume", epoch=0, step=3)
    assert draw_curves([tmp_path / "run"], tmp_path / "curves.png")
