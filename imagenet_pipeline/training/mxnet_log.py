"""Old MXNet training logs, read as the journal of a run.

What was logged, and where each form is from:

- up to MXNet 0.11, one metric a line, FeedForward and Module:
  `Epoch[73] Batch [1000] Speed: 1688.18 samples/sec Train-accuracy=0.589742`, `Epoch[73] Validation-accuracy=0.559794`
  (https://pyimagesearch.com/2017/12/25/plot-accuracy-loss-mxnet/; with `Node[0]` before it in apache/mxnet#3072, and
  with `Iteration[0]` in 2015);
- from 0.12 all of a batch's metrics on one line, without `Train-`:
  `Epoch[3] Batch [500] Speed: 1997.40 samples/sec accuracy=0.013391 top_k_accuracy_5=0.048828 cross-entropy=6.878449`
  (the same page), from 1.3 as `Batch [0-500]` (MXNet 1.9.1, python/mxnet/callback.py); what ends an epoch is as before
  (python/mxnet/module/base_module.py, `fit`);
- GluonCV and Gluon's examples: `[Epoch 0] training: accuracy=0.664033`, `[Epoch 0] validation: err-top1=0.908084
  err-top5=0.771923`, on CIFAR `[Epoch 0] train=0.467608 val=0.558900 loss=1.452417` (github.com/dmlc/web-data,
  gluoncv/logs/classification).

As the blog above does, what an epoch's last batch line says stands in for training figures its end does not give.
What is called accuracy is taken for it: GluonCV's scripts for mixup on CIFAR write an error of regression as `train`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.training.journal import Event

log = logging.getLogger("imagenet_pipeline")

LINE_LIMIT_BYTES = 64 * 1024
"""A longer line, as of a file that is no text, is read in pieces of this."""
# Of several workers that write into one file the first speaks for all.
_OTHER_WORKER = re.compile(r"(?:Node|Rank)\[0*[1-9]")
_EPOCH = re.compile(r"(?:Epoch|Iteration|Iter)\[(\d{1,6})\]|\[Epoch (\d{1,6})[\] ]")
_PAIR = re.compile(r"([A-Za-z][\w-]{0,63})=([-+]?[\w.]{1,32}(?:[-+]\d{1,3})?)")
_QUANTITIES = {
    **dict.fromkeys(("accuracy", "acc", "top1", "acc-top1", "top_k_accuracy_1", "train", "val"), "rank1"),
    **dict.fromkeys(("top_k_accuracy_5", "top5", "acc-top5"), "rank5"),
    **dict.fromkeys(("err-top1", "top1-err"), "error1"),
    **dict.fromkeys(("err-top5", "top5-err"), "error5"),
    **dict.fromkeys(("cross-entropy", "loss", "softmaxcrossentropyloss", "nll-loss"), "loss"),
}
_RANK_OF_ERROR = {"error1": "rank1", "error5": "rank5"}


@dataclass(frozen=True)
class LoggedTraining:
    """One training, out of a log or several."""

    logs: tuple[Path, ...]
    events: tuple[Event, ...]


@dataclass
class _Epoch:
    """Figures logged of an epoch, counted from 0, by the names of the journal's columns, as they were written."""

    number: int
    batch: dict[str, float] = field(default_factory=dict)
    end: dict[str, float] = field(default_factory=dict)
    ended: bool = False

    def note(self, line: str) -> None:
        """Take in a line of its log. Figures of batches after its end are of validation."""
        within = "Batch" in line
        self.ended = self.ended or not within
        if not within:
            self.end.update(_columns(line))
        elif not self.ended and "validation" not in line.lower():
            self.batch.update(_columns(line))

    @property
    def values(self) -> dict[str, float]:
        """The epoch's figures: those of its end, else of its last batches."""
        return {**self.batch, **self.end}

    def row(self, whole: float) -> Event:
        """The journal's line; an accuracy of `whole` is 100 %."""
        row: Event = {"event": "epoch", "epoch": self.number + 1}
        for name, value in self.values.items():
            part, _, quantity = name.partition("_")
            if quantity in _RANK_OF_ERROR:
                row[f"{part}_{_RANK_OF_ERROR[quantity]}"] = 100 * (whole - value) / whole
            else:
                row[name] = value if quantity == "loss" else 100 * value / whole
        return row


def read_log(path: Path) -> list[Event]:
    """The events of a log as a journal has them: a start or resumption, then the rows of whole epochs.

    Epochs are counted from 1, accuracies in percent. An epoch that the log breaks off in is left out. Where the
    epoch falls, training was taken up again, and what had come after is left behind. Memory is that of the epochs.
    Raises BadInput for a file that is no such log.
    """
    epochs = list(_epochs(_lines(path)))
    values = [epoch.values for epoch in epochs if epoch.values]
    if not values:
        raise BadInput(
            "not an MXNet training log", where=path, expected='lines such as "Epoch[0] Validation-accuracy=0.5"'
        )
    shares = [value for columns in values for name, value in columns.items() if not name.endswith("loss")]
    # Some scripts of GluonCV log percents.
    whole = 100.0 if max(shares, default=0) > 1 else 1.0
    events: list[Event] = [_beginning(epochs[0].number)]
    for epoch, after in zip(epochs, [*epochs[1:], None], strict=True):
        if epoch.ended or (after and after.number > epoch.number):
            events.append(epoch.row(whole))
        if after and after.number < epoch.number:
            events.append({"event": "resume", "epoch": after.number})
    return events


def join_logs(paths: Sequence[Path]) -> list[LoggedTraining]:
    """The trainings that these logs, given in the order they were written, are of.

    A log that begins with the first epoch is of a new training; any other goes on with the log before it, and what
    it repeats of it is left behind. Raises BadInput as `read_log` does.
    """
    trainings: list[LoggedTraining] = []
    begun_at = 0
    for path in paths:
        events = read_log(path)
        resumed_at = events[0].get("epoch", 0)
        if not trainings or not resumed_at:
            trainings.append(LoggedTraining((path,), tuple(events)))
        else:
            *_, last = trainings
            if resumed_at < begun_at:
                log.info("%s begins before %s: logs count in the order given", path, last.logs[-1])
            trainings[-1] = LoggedTraining((*last.logs, path), (*last.events, *events))
        begun_at = resumed_at
    return trainings


def _beginning(first: int) -> Event:
    return {"event": "resume", "epoch": first} if first else {"event": "start"}


def _lines(path: Path) -> Iterator[str]:
    with files.regular_file(path) as (stream, _):
        while line := stream.readline(LINE_LIMIT_BYTES):
            yield line.decode("utf-8", "replace")


def _epochs(lines: Iterable[str]) -> Iterator[_Epoch]:
    """The epochs in the order of the log; an epoch that is trained again comes again."""
    current: _Epoch | None = None
    for line in lines:
        match = _EPOCH.search(line)
        if match is None or _OTHER_WORKER.search(line):
            continue
        number = int(match[1] or match[2])
        if current is None or number != current.number:
            if current is not None:
                yield current
            current = _Epoch(number)
        current.note(line[match.start() :])
    if current is not None:
        yield current


def _columns(line: str) -> Iterator[tuple[str, float]]:
    """The journal's columns in a line; what is no number or none of ours is left out."""
    validating = "validation" in line.lower()
    for written, digits in _PAIR.findall(line):
        name = written.lower().removeprefix("train-").removeprefix("validation-")
        quantity, value = _QUANTITIES.get(name), _number(digits)
        if quantity is None or value is None:
            continue
        yield f"{'validation' if validating or name == 'val' else 'train'}_{quantity}", value


def _number(digits: str) -> float | None:
    try:
        value = float(digits)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
