"""Old MXNet logs: every form that was ever written, logs that follow one another, and anything else as a line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.training.journal import Event, branches, restarts
from imagenet_pipeline.training.mxnet_log import join_logs, read_log

Row = tuple[float, float, float, float, float, float]
"""Rank-1, rank-5 (as fractions) and loss, of training and of validation."""
COLUMNS = ("train_rank1", "train_rank5", "train_loss", "validation_rank1", "validation_rank5", "validation_loss")
METRICS = ("accuracy", "top_k_accuracy_5", "cross-entropy")
SPEED = "\tSpeed: 1694.57 samples/sec\t"


def ending(epoch: int, row: Row, training: bool) -> Iterator[str]:
    if training:
        yield from (f"Epoch[{epoch}] Train-{name}={value:f}" for name, value in zip(METRICS, row[:3], strict=True))
    yield f"Epoch[{epoch}] Resetting Data Iterator"
    yield f"Epoch[{epoch}] Time cost=728.322"
    yield 'Saved checkpoint to "imagenet/checkpoints/alexnet-0074.params"'
    yield from (f"Epoch[{epoch}] Validation-{name}={value:f}" for name, value in zip(METRICS, row[3:], strict=True))


def a_metric_a_line(epoch: int, row: Row) -> Iterator[str]:
    """FeedForward up to 0.11, whose epoch ends without training figures."""
    for batch, share in ((500, 0.5), (1000, 1.0)):
        for name, value in zip(METRICS, row[:3], strict=True):
            yield f"Epoch[{epoch}] Batch [{batch}]{SPEED}Train-{name}={share * value:f}"
    yield from ending(epoch, row, training=False)


def a_batch_a_line(epoch: int, row: Row) -> Iterator[str]:
    """Module from 0.12."""
    metrics = "\t".join(f"{name}={0.5 * value:f}" for name, value in zip(METRICS, row[:3], strict=True))
    yield f"Epoch[{epoch}] Batch [500]{SPEED}{metrics}"
    yield from ending(epoch, row, training=True)


def a_range_of_batches(epoch: int, row: Row) -> Iterator[str]:
    """Module from 1.3; batches are watched in validation too."""
    metrics = "\t".join(f"{name}={0.5 * value:f}" for name, value in zip(METRICS, row[:3], strict=True))
    yield f"Epoch[{epoch}] Batch [0-500]{SPEED}{metrics}"
    *lines, last = ending(epoch, row, training=True)
    yield from lines
    yield f"Epoch[{epoch}] Batch [0-20]{SPEED}accuracy=0.999000"
    yield last


def gluoncv(epoch: int, row: Row) -> Iterator[str]:
    yield f"Epoch[{epoch}] Batch [49]{SPEED}accuracy={0.5 * row[0]:f}\tlr=0.003133"
    yield f"[Epoch {epoch}] training: err-top1={1 - row[0]:f} err-top5={1 - row[1]:f}\t loss={row[2]:f}"
    yield f"[Epoch {epoch}] speed: 4456 samples/sec\ttime cost: 297.575884"
    yield f"[Epoch {epoch}] validation: acc-top1={row[3]:f} acc-top5={row[4]:f} loss={row[5]:f}"


FORMS = [a_metric_a_line, a_batch_a_line, a_range_of_batches, gluoncv]
Form = Callable[[int, Row], Iterator[str]]
Fractions = st.floats(0.0, 1.0, width=32)
Rows = st.lists(
    st.tuples(Fractions, Fractions, st.floats(0, 50), Fractions, Fractions, st.floats(0, 50)), min_size=1, max_size=6
)


def written(path: Path, form: Form, rows: list[Row], first: int = 0, beginning: str = "INFO:root:") -> Path:
    lines = [line for number, row in enumerate(rows, first) for line in form(number, row)]
    path.write_text("".join(f"{beginning}{line}\n" for line in lines))
    return path


def figures(events: list[Event]) -> list[list[float]]:
    return [[row[column] for column in COLUMNS] for row in branches(events)[-1]]


def percents(rows: list[Row]) -> list[list[float]]:
    return [[100 * a, 100 * b, c, 100 * d, 100 * e, f] for a, b, c, d, e, f in rows]


def row(rank1: float) -> Row:
    return (rank1, 0.9, 1.5, rank1 - 0.05, 0.85, 1.75)


@pytest.mark.parametrize("beginning", ["INFO:root:", "", "2016-08-19 14:19:43,455 Node[0] ", "(pid=34395) INFO:root:"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path: Path, form: Form, beginning: str) -> None:
    rows = [row(0.2), row(0.4), row(0.5)]
    events = read_log(written(tmp_path / "a.log", form, rows, 3, beginning))
    assert [event["epoch"] for event in events] == [3, 4, 5, 6]
    assert restarts(events) == [3]
    np.testing.assert_allclose(figures(events), percents(rows), atol=1e-4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=Rows, form=st.sampled_from(FORMS), noise=st.lists(st.text(max_size=40), max_size=5))
def test_what_was_written_is_read_whatever_stands_between(
    tmp_path: Path, rows: list[Row], form: Form, noise: list[str]
) -> None:
    path = written(tmp_path / "a.log", form, rows)
    lines = path.read_text().splitlines()
    for number, text in enumerate(noise):
        lines.insert(number * 3, text.replace("Epoch", "").replace("Iter", ""))
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    np.testing.assert_allclose(figures(read_log(path)), percents(rows), atol=1e-4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([b"Epoch[1]", b"[Epoch 2]", b" Batch", b"Train-", b"accuracy=", b"0.5", b"1e999", b"\n"]),
        ),
        max_size=30,
    )
)
def test_no_bytes_crash_it(tmp_path: Path, pieces: list[bytes]) -> None:
    path = tmp_path / "any.log"
    path.write_bytes(b"".join(pieces))
    with contextlib.suppress(BadInput):
        for event in read_log(path):
            assert all(np.isfinite(value) for name, value in event.items() if name != "event")


def test_what_mxnet_itself_writes_is_read(tmp_path: Path) -> None:
    """A Module of MXNet 1.9.1, trained here; what it scored is asked of its own metric as well."""
    mx = pytest.importorskip("imagenet_pipeline.engines.gluon.runtime").mx

    random = np.random.default_rng(0)
    inputs, labels = random.random((64, 5), np.float32), random.integers(0, 3, 64).astype(np.float32)
    data, held_out = (mx.io.NDArrayIter(inputs, labels, 16, label_name="softmax_label") for _ in range(2))
    network = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=3), name="softmax")
    logger = logging.getLogger("mxnet_log_test")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.FileHandler(tmp_path / "training_0.log")
    root = logging.getLogger()
    level, scores = root.level, []
    for one in (logger, root):
        one.addHandler(handler)
    root.setLevel(logging.INFO)  # Speedometer writes to the root, as the book's scripts do
    try:
        module = mx.mod.Module(network, logger=logger)
        module.fit(
            data, held_out, eval_metric=["acc", "ce"], num_epoch=3,
            batch_end_callback=mx.callback.Speedometer(16, 2),
            eval_end_callback=lambda end: scores.append(dict(end.eval_metric.get_name_value())),
        )  # fmt: skip
    finally:
        root.setLevel(level)
        for one in (logger, root):
            one.removeHandler(handler)
        handler.close()
    rows = branches(read_log(tmp_path / "training_0.log"))[-1]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["validation_rank1"] for row in rows] == pytest.approx([100 * s["accuracy"] for s in scores], abs=1e-4)
    assert [row["validation_loss"] for row in rows] == pytest.approx([s["cross-entropy"] for s in scores], abs=1e-5)
    assert all("train_rank1" in row and "train_loss" in row for row in rows)


def test_logs_that_follow_one_another_are_one_training(tmp_path: Path) -> None:
    """The book's way: stop, lower the rate, start again from an earlier epoch."""
    first = written(tmp_path / "training_0.log", a_metric_a_line, [row(0.1 * n) for n in range(1, 6)])
    second = written(tmp_path / "training_3.log", a_range_of_batches, [row(0.7), row(0.8)], 3)
    (training,) = join_logs([first, second])
    events = list(training.events)
    assert training.logs == (first, second)
    assert restarts(events) == [3]
    left_behind, current = branches(events)
    assert [row["epoch"] for row in left_behind] == [1, 2, 3, 4, 5]
    assert [round(row["train_rank1"]) for row in current] == [10, 20, 30, 70, 80]


def test_a_log_from_the_first_epoch_is_a_training_of_its_own(tmp_path: Path) -> None:
    logs = [written(tmp_path / f"{name}.log", gluoncv, [row(0.5)]) for name in "ab"]
    later = written(tmp_path / "c.log", gluoncv, [row(0.6)], 1)
    assert [training.logs for training in join_logs([*logs, later])] == [(logs[0],), (logs[1], later)]


def test_logs_out_of_order_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logs = [written(tmp_path / f"{first}.log", gluoncv, [row(0.5)] * 5, first) for first in (0, 10, 5)]
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        join_logs(logs)
    assert "5.log begins before" in caplog.text


def test_a_restart_within_one_log_leaves_behind_what_it_repeats(tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", gluoncv, [row(0.1), row(0.2), row(0.3)])
    again = written(tmp_path / "b.log", gluoncv, [row(0.6), row(0.7)], 1)
    path.write_text(path.read_text() + again.read_text())
    events = read_log(path)
    assert restarts(events) == [1]
    assert [round(row["train_rank1"]) for row in branches(events)[-1]] == [10, 60, 70]


def test_an_epoch_that_the_log_breaks_off_in_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", a_metric_a_line, [row(0.1), row(0.2)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: lines.index("INFO:root:Epoch[1] Resetting Data Iterator")]))
    assert [row["epoch"] for row in branches(read_log(path))[-1]] == [1]


def test_of_several_workers_the_first_speaks(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"Node[{node}] Epoch[0] Validation-accuracy=0.{5 + node}\n" for node in range(3)))
    assert read_log(path)[-1]["validation_rank1"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[Epoch 0] train=0.467608 val=0.558900 loss=1.452417 time: 16.450441", (46.7608, 55.89, 1.452417)),
        ("Iteration[0] Train-accuracy=0.5\nIteration[0] Validation-accuracy=0.6", (50, 60, None)),
        ("[Epoch 0] Training: accuracy=0.25\n[Epoch 0] Validation: accuracy=0.5", (25, 50, None)),
        ("[Epoch 0] training: accuracy=25.5\n[Epoch 0] validation: acc-top1=50.5 loss=2.0", (25.5, 50.5, None)),
        ("Epoch[0] Train-accuracy=nan\nEpoch[0] Validation-accuracy=0.5", (None, 50, None)),
    ],
)
def test_the_rarer_forms(tmp_path: Path, line: str, expected: tuple[float | None, ...]) -> None:
    (tmp_path / "a.log").write_text(line)
    found = branches(read_log(tmp_path / "a.log"))[-1][-1]
    for name, value in zip(("train_rank1", "validation_rank1", "train_loss"), expected, strict=True):
        assert found.get(name) == (None if value is None else pytest.approx(value))


def test_errors_in_percent_are_ranks_in_percent(tmp_path: Path) -> None:
    log = tmp_path / "percent.log"
    log.write_text(
        "[Epoch 0] training: err-top1=95.5 loss=4.2\n[Epoch 0] validation: err-top1=90.8 err-top5=70.5\n" * 2
    )
    row = read_log(log)[1]
    assert (row["train_rank1"], row["validation_rank1"]) == (pytest.approx(4.5), pytest.approx(9.2))
    assert row["validation_rank5"] == pytest.approx(29.5)


@pytest.mark.parametrize("text", ["", "Epoch 1/10\nloss: 0.5", "Epoch[0] Time cost=5\n", "\0" * 300_000])
def test_another_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.log").write_text(text)
    with pytest.raises(BadInput, match=r"a\.log: not an MXNet training log") as caught:
        read_log(tmp_path / "a.log")
    assert "\n" not in str(caught.value)
