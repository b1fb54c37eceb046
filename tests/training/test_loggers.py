"""What loggers are told of a run: TensorBoard, W&B offline and MLflow on a local store, each read back."""

from __future__ import annotations

import logging
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.config import load_recipe, read_recipe
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training import loggers
from imagenet_pipeline.training.journal import COLUMNS, Event, Journal, branches
from imagenet_pipeline.training.loggers import LOGGERS, Logger, Loggers, Start, register_logger
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run

Points = dict[str, list[tuple[int, Any]]]
"""(step, value) of every tag."""


def row(epoch: int, loss: float) -> dict[str, Any]:
    return {"event": "epoch", "epoch": epoch, "step": 10 * epoch, "learning_rate": 0.5, "train_loss": loss,
            "validation_rank1": 10.0 * epoch}  # fmt: skip


def opened(name: str, run: Path, step: int = 0, rows: tuple[Event, ...] = ()) -> Logger:
    return LOGGERS.get(name)(Start(run, {"epochs": 3, "optimizer.name": "sgd"}, step, rows))


def on_tensorboard(run: Path) -> Points:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    points: Points = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags["scalars"]}
    return points | {tag: [(one.step, one.width) for one in events.Images(tag)] for tag in tags["images"]}


def on_wandb(run: Path) -> Points:
    """The points in the files of W&B's offline runs, one after the other: a log of LevelDB's, of protobuf records."""
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    points: Points = {}
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for record in ended_run(path, records.Record):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for key, value in items.items():
                if "step" in items and key != "step" and not key.startswith("_"):
                    points.setdefault(key, []).append((int(items["step"]), value))
    return points


def ended_run(path: Path, kind: Any) -> list[Any]:
    """The records of a run up to its end, which W&B's own process writes a moment after the run was closed."""
    deadline = time.monotonic() + 30
    while True:
        found = [kind.FromString(content) for content in leveldb_records(path.read_bytes())]
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.05)


def leveldb_records(content: bytes) -> Iterator[bytes]:
    at, parts = 7, b""
    while at + 7 <= len(content):
        length, kind = struct.unpack_from("<HB", content, at + 4)
        if kind == 0:  # the rest of a block of 32 KiB
            at += 32768 - at % 32768
            continue
        if at + 7 + length > len(content):  # it is being written
            return
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a local SQLite store, which runs of this test are logged to."""
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tracking.MlflowClient()


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_tensorboard_shows_the_columns_of_the_history_and_the_readings_between(tmp_path: Path) -> None:
    logger = opened("tensorboard", tmp_path)
    logger.add_reading(4, 0.75, 0.5)
    logger.add_epoch(row(1, 0.5))
    logger.add_epoch(row(2, 0.25))
    assert on_tensorboard(tmp_path)["train/loss"] == [(10, 0.5), (20, 0.25)]
    logger.close()
    assert on_tensorboard(tmp_path) == {
        "steps/loss": [(4, 0.75)],
        "steps/learning_rate": [(4, 0.5)],
        "epoch": [(10, 1), (20, 2)],
        "learning_rate": [(10, 0.5), (20, 0.5)],
        "train/loss": [(10, 0.5), (20, 0.25)],
        "validation/rank1": [(10, 10), (20, 20)],
    }


def test_on_tensorboard_a_branch_left_behind_is_superseded(tmp_path: Path) -> None:
    logger = opened("tensorboard", tmp_path)
    for epoch in (1, 2, 3):
        logger.add_reading(10 * epoch - 5, 9.0, 0.5)
        logger.add_epoch(row(epoch, 1.0))
    logger.close()
    again = opened("tensorboard", tmp_path, step=14, rows=(row(1, 1.0),))
    again.add_epoch(row(2, 2.0))
    again.close()
    assert on_tensorboard(tmp_path)["train/loss"] == [(10, 1.0), (20, 2.0)]
    assert on_tensorboard(tmp_path)["steps/loss"] == [(5, 9.0)]


@pytest.mark.parametrize("rows_before", [0, 1])
def test_tensorboard_makes_good_what_a_kill_or_an_earlier_start_without_it_left_out(
    tmp_path: Path, rows_before: int
) -> None:
    if rows_before:
        logger = opened("tensorboard", tmp_path)
        logger.add_epoch(row(1, 1.0))
        logger.close()
    opened("tensorboard", tmp_path, step=20, rows=(row(1, 1.0), row(2, 2.0))).close()
    assert on_tensorboard(tmp_path)["train/loss"] == [(10, 1.0), (20, 2.0)]


def test_a_run_that_goes_back_shows_its_current_branch_on_tensorboard(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(open_run(recipe, {"log.loggers": ["tensorboard"], "batch_size": 300}, run))
    train(open_run(recipe, {}, run, "2"))
    *_, left, current = branches(Journal(run).events())
    assert [row["epoch"] for row in left] == [row["epoch"] for row in current] == [1, 2, 3, 4]
    found = on_tensorboard(run)
    for column in set(COLUMNS) - {"step"}:
        beginning, _, rest = column.partition("_")
        tag = f"{beginning}/{rest}" if beginning in ("train", "validation") else column
        points = [(row["step"], pytest.approx(row[column])) for row in current]
        assert found[tag] == points, column
    assert found["steps/loss"][-1][0] == current[-1]["step"]
    assert found["curves"] == [(current[-1]["step"], 1210)]


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_offline_has_a_run_of_one_id_with_all_points(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(open_run(recipe, {"log.loggers": ["wandb"], "batch_size": 300, "epochs": 2}, run))
    train(open_run(recipe, {"epochs": 3}, run, "latest"))
    rows = branches(Journal(run).events())[-1]
    found = on_wandb(run)
    losses = [(step, pytest.approx(float(value))) for step, value in dict(found["train/loss"]).items()]
    assert [(row["step"], row["train_loss"]) for row in rows] == losses
    assert [step for step, _ in found["curves/path"]] == [rows[1]["step"], rows[2]["step"]]
    ids = {path.stem.removeprefix("run-") for path in (run / "wandb").glob("offline-run-*/*.wandb")}
    assert ids == {Start(run, {}).remembered("wandb")}
    assert len(list((run / "wandb").glob("offline-run-*"))) == 2


def test_mlflow_has_one_run_with_parameters_points_and_the_curves(
    recipe: Path, tmp_path: Path, mlflow_store: Any
) -> None:
    run = tmp_path / "run"
    train(open_run(recipe, {"log.loggers": ["mlflow"], "batch_size": 300, "epochs": 2}, run))
    train(open_run(recipe, {"epochs": 3}, run, "latest"))
    rows = branches(Journal(run).events())[-1]
    [kept] = mlflow_store.search_runs([mlflow_store.get_experiment_by_name("imagenet-pipeline").experiment_id])
    assert kept.info.run_id == Start(run, {}).remembered("mlflow")
    assert (kept.info.run_name, kept.info.status) == ("run", "FINISHED")
    assert kept.data.params["optimizer.learning_rate"] == "0.05"
    for tag, column in (("train/loss", "train_loss"), ("validation/rank1", "validation_rank1")):
        history = mlflow_store.get_metric_history(kept.info.run_id, tag)
        assert [(one.step, one.value) for one in history] == [(row["step"], row[column]) for row in rows]
    folders = [artifact.path for artifact in mlflow_store.list_artifacts(kept.info.run_id)]
    assert folders == [f"curves-{rows[1]['step']}", f"curves-{rows[2]['step']}"]


class Told:
    """A logger from outside, which keeps what it is told, or refuses it."""

    refuses = ""

    def __init__(self, start: Start) -> None:
        if self.refuses == "begin":
            raise ConnectionError("no server")
        self.start, self.heard = start, []
        type(self).last = self

    def _hear(self, what: str, *arguments: Any) -> None:
        if what == self.refuses:
            raise ConnectionError("the server\nis gone")
        self.heard.append((what, *arguments))

    def add_epoch(self, row: Event) -> None:
        self._hear("epoch", row["epoch"])

    def add_reading(self, step: int, loss: float, rate: float) -> None:
        self._hear("reading", step)

    def add_picture(self, name: str, picture: Path, step: int) -> None:
        assert picture.read_bytes().startswith(b"\x89PNG")
        self._hear("picture", name, step)

    def close(self) -> None:
        self._hear("close")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> type[Told]:
    """A logger registered as "told"."""
    monkeypatch.setattr(LOGGERS, "_items", dict(LOGGERS._items))

    class Own(Told):
        last: Told

    register_logger("told", Own)
    return Own


def test_a_logger_from_outside_hears_all_of_a_run(recipe: Path, tmp_path: Path, told: type[Told]) -> None:
    train(open_run(recipe, {"log.loggers": ["told"], "batch_size": 300, "epochs": 2}, tmp_path / "run"))
    heard = told.last.heard
    assert [one for one in heard if one[0] != "reading"] == [
        ("epoch", 1), ("epoch", 2), ("picture", "curves", 6), ("close",)
    ]  # fmt: skip
    assert told.last.start.options["optimizer.learning_rate"] == 0.05
    assert told.last.start.rows == ()  # as the run stood at its start


def test_a_logger_that_fails_does_not_end_the_run(
    recipe: Path, tmp_path: Path, told: type[Told], caplog: pytest.LogCaptureFixture
) -> None:
    told.refuses = "epoch"
    with caplog.at_level(logging.WARNING, "imagenet_pipeline"):
        outcome = train(open_run(recipe, {"log.loggers": ["told"], "batch_size": 300}, tmp_path / "run"))
    assert outcome.finished
    assert outcome.epoch == 4
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        "warning: the logger told did not take a row of the history, and is left out now "
        "(ConnectionError: the server is gone)",
        "warning: the logger told heard nothing from step 3 on; history.csv has all of it",
    ]


def test_a_logger_that_cannot_begin_is_one_line_before_the_first_step(
    recipe: Path, tmp_path: Path, told: type[Told]
) -> None:
    told.refuses = "begin"
    with pytest.raises(BadRecipe, match=r"'log.loggers': the logger told cannot begin \(ConnectionError: no server\)"):
        open_run(recipe, {"log.loggers": ["told"]}, tmp_path / "run")
    told.refuses = ""
    train(open_run(recipe, {"log.loggers": ["told"], "epochs": 1}, tmp_path / "run"))


def test_where_one_logger_cannot_begin_those_before_it_are_closed(tmp_path: Path, told: type[Told]) -> None:
    def refuse(start: Start) -> Logger:
        raise BadRecipe("no token")

    register_logger("refusing", refuse)
    with pytest.raises(BadRecipe, match=r"^no token$"):
        Loggers.open(["told", "refusing"], Start(tmp_path, {}))
    assert told.last.heard == [("close",)]


def test_an_unknown_logger_is_named_with_those_there_are(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"no logger is called 'tensorbord'; did you mean tensorboard\?"):
        open_run(recipe, {"log.loggers": ["tensorbord"]}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_without_its_package_a_logger_says_what_to_install(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(LOGGERS, "_items", {})
    monkeypatch.delitem(sys.modules, f"{loggers.__name__}.{name}", raising=False)
    for module in [module for module in sys.modules if module.split(".")[0] == name] + [name]:
        monkeypatch.setitem(sys.modules, module, None)
    line = rf"'log.loggers': the logger {name} needs a package.*pip install 'imagenet-pipeline\[{name}\]'"
    with pytest.raises(BadRecipe, match=line):
        open_run(recipe, {"log.loggers": [name]}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_logger_is_imported_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    Loggers.open((), Start(tmp_path, {})).close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("in_file", "changes", "loggers"),
    [
        ("tensorboard = true", {}, ("tensorboard",)),
        ("tensorboard = false", {}, ()),
        ("tensorboard = false", {"log.loggers": ["tensorboard"]}, ("tensorboard",)),
        ("tensorboard = true", {"log.loggers": ["wandb"]}, ("wandb",)),
        ('loggers = ["tensorboard", "wandb"]', {"log.tensorboard": False}, ("wandb",)),
        ('loggers = ["wandb"]', {"log.tensorboard": True}, ("tensorboard", "wandb")),
        ("", {"log.tensorboard": True, "log.loggers": []}, ()),
    ],
)
def test_the_old_key_is_a_logger_in_the_list(
    tmp_path: Path, in_file: str, changes: dict[str, Any], loggers: tuple[str, ...]
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'network = "lenet"\nrecords = "digits"\n[log]\n{in_file}\n')
    assert load_recipe(path, changes).log.loggers == loggers


def test_a_journal_of_an_older_version_is_read(recipe: Path) -> None:
    told = load_recipe(recipe).model_dump(mode="json")
    told["log"] = {"tensorboard": True}
    assert read_recipe(told, "journal").log.loggers == ("tensorboard",)
    assert told["log"] == {"tensorboard": True}
