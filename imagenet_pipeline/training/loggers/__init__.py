"""Loggers: what a run tells other programs of itself while it trains (`log.loggers` of the recipe).

Each is a class in a file of its own, or comes from another package, by `register_logger` or as an entry point of the
group `imagenet_pipeline.loggers`. Its package is imported when a run names it, not before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.registry import Registry
from imagenet_pipeline.training.journal import COLUMNS, Event

log = logging.getLogger("imagenet_pipeline")

WHERE = "recipe key 'log.loggers'"
REMEMBERED = "loggers.json"
"""In the run folder: the name under which each service knows the run, for a restart to go on with."""


@dataclass(frozen=True)
class Start:
    """A start of a run, for a logger: the run `folder`, its recipe as dotted `options`, and where it stands.

    The run goes on at `step`; `rows` are the epochs so far of the current branch, as `history.csv` has them.
    """

    folder: Path
    options: Mapping[str, Any]
    step: int = 0
    rows: Sequence[Event] = ()

    def remembered(self, logger: str) -> str | None:
        """The name that a logger gave the run at an earlier start."""
        path = self.folder / REMEMBERED
        return files.read_json(path).get(logger) if path.exists() else None

    def remember(self, logger: str, name: str) -> None:
        """Keep the name under which a logger's service knows the run."""
        path = self.folder / REMEMBERED
        files.write_json(path, {**(files.read_json(path) if path.exists() else {}), logger: name})


class Logger(Protocol):
    """Takes a run's figures. Only rank 0 has loggers; an exception ends the logger, not the run."""

    def add_epoch(self, row: Event) -> None:
        """A row of the history; it is safe in the logger's hands when this returns."""

    def add_reading(self, step: int, loss: float, rate: float) -> None:
        """The mean training loss of the steps since the last reading, and the learning rate of the latest."""

    def add_picture(self, name: str, picture: Path, step: int) -> None:
        """A PNG file that the run drew, as its curves."""

    def close(self) -> None:
        """The run ends, or is stopped and may go on later."""


LoggerFactory = Callable[[Start], Logger]


LOGGERS: Registry[LoggerFactory] = Registry(
    "logger",
    "loggers",
    {},
    kind=Callable,  # type: ignore[arg-type]
    modules={
        "tensorboard": f"{__name__}.tensorboard:TensorBoard",
        "wandb": f"{__name__}.wandb:WeightsAndBiases",
        "mlflow": f"{__name__}.mlflow:MLflow",
    },
)


def register_logger(name: str, factory: LoggerFactory) -> None:
    """Make a logger available as `log.loggers = [name]`: `factory(start)` begins or goes on with a run's log.

        class Lines:
            def __init__(self, start): self.file = open(start.folder / "log.txt", "a")
            def add_epoch(self, row): print(row["epoch"], row["train_loss"], file=self.file, flush=True)
            def add_reading(self, step, loss, rate): pass
            def add_picture(self, name, picture, step): pass
            def close(self): self.file.close()

        register_logger("lines", Lines)

    The same name again replaces it. Raises BadRecipe for the name of a logger that is shipped.
    """
    LOGGERS.register(name, factory)


def require_loggers(names: Iterable[str]) -> None:
    """Raise BadRecipe for a logger that is not there, or whose package cannot be imported."""
    for name in names:
        _factory(name)


def _factory(name: str) -> LoggerFactory:
    try:
        return LOGGERS.get(name, where=WHERE)
    except ImportError as error:
        # The extra that brings a shipped logger's package has the logger's name.
        advice = f"pip install 'imagenet-pipeline[{name}]', or leave the logger out"
        what = f"the logger {name} needs a package that cannot be imported ({error})"
        raise BadRecipe(what, where=WHERE, advice=advice) from error


class Loggers:
    """The loggers of a start of a run, by name. A logger that fails is named once, then left out: training goes on."""

    def __init__(self, loggers: Mapping[str, Logger] | None = None) -> None:
        self._loggers = dict(loggers or {})
        self._failed: dict[str, tuple[Logger, int]] = {}
        self._step = 0

    @classmethod
    def open(cls, names: Iterable[str], start: Start) -> Loggers:
        """Begin, or go on with, the log of a run. Raises BadRecipe, in one line, for a logger that cannot begin."""
        opened: dict[str, Logger] = {}
        for name in dict.fromkeys(names):
            try:
                opened[name] = _factory(name)(start)
            except Exception as error:
                cls(opened).close()
                if isinstance(error, BadRecipe):
                    raise
                what = f"the logger {name} cannot begin ({type(error).__name__}: {error})"
                raise BadRecipe(what, where=WHERE, advice="mend that, or leave the logger out") from error
        return cls(opened)

    def add_epoch(self, row: Event) -> None:
        """Give all of them a row of the history."""
        self._step = row["step"]
        self._each("a row of the history", lambda logger: logger.add_epoch(row))

    def add_reading(self, step: int, loss: float, rate: float) -> None:
        """Give all of them a reading of the training loss."""
        self._step = step
        self._each("a reading", lambda logger: logger.add_reading(step, loss, rate))

    def add_picture(self, name: str, picture: Path, step: int) -> None:
        """Give all of them a PNG file of the run."""
        self._step = step
        self._each("a picture", lambda logger: logger.add_picture(name, picture, step))

    def close(self) -> None:
        """End the log of this start, and say which loggers did not hear all of it."""
        self._each("the end of the run", lambda logger: logger.close())
        self._loggers = {}
        for name, (logger, step) in self._failed.items():
            with suppress(Exception):  # it failed before, which was said; its service should still be let go
                logger.close()
            log.warning("warning: the logger %s heard nothing from step %d on; history.csv has all of it", name, step)

    def _each(self, what: str, tell: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                tell(logger)
            except Exception as error:
                del self._loggers[name]
                self._failed[name] = (logger, self._step)
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                log.warning("warning: the logger %s did not take %s, and is left out now (%s)", name, what, reason)


def figures_of(row: Event) -> dict[str, float]:
    """The columns of a history row by the names that loggers show: `train_loss` is `train/loss`."""
    return {_tag(column): row[column] for column in COLUMNS if column in row and column != "step"}


def reading(loss: float, rate: float) -> dict[str, float]:
    """A reading between epochs by the names that loggers show."""
    return {"steps/loss": loss, "steps/learning_rate": rate}


def _tag(column: str) -> str:
    # What shares a beginning is drawn together.
    beginning, _, rest = column.partition("_")
    return f"{beginning}/{rest}" if beginning in ("train", "validation") else column
