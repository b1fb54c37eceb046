"""A submission to a competition, as Kaggle takes it: a CSV with a row a picture, its class or its probabilities.

With the competition's sample file (sample_submission.csv) the header, the ids and their order are the sample's, and
what differs is an error before anything is written.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, counted, did_you_mean, first_few
from imagenet_pipeline.evaluation.evaluate import Crops
from imagenet_pipeline.evaluation.predict import Classifier, Prediction, predict
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.classes import ClassTable

log = logging.getLogger("imagenet_pipeline")

Format = Literal["id-label", "id-probabilities"]
Cells = Callable[[Prediction], list[str]]
LONGEST_SAMPLE_BYTES = 2**28
_ID_FORMS: dict[str, Callable[[Path, Path], str]] = {
    "name without ending": lambda path, folder: path.stem,
    "name": lambda path, folder: path.name,
    "path": lambda path, folder: path.relative_to(folder).as_posix(),
}
"""The forms in which a picture's id can be written."""


@dataclass(frozen=True)
class Sample:
    """A competition's sample file: its header, the id of each row, and the words of the column behind it."""

    path: Path
    header: tuple[str, ...]
    ids: tuple[str, ...]
    words: frozenset[str]


def read_sample(path: Path) -> Sample:
    """Read a sample submission. Raises BadInput for a file without ids, with rows of other lengths, or an id twice."""
    with files.regular_file(path) as (stream, size_bytes):
        if size_bytes > LONGEST_SAMPLE_BYTES:
            raise BadInput("too large for a sample", where=path, expected=f"at most {LONGEST_SAMPLE_BYTES:,} bytes")
        content = stream.read()
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot be read as CSV ({error})", where=path) from error
    header, *body = rows or [[]]
    if len(header) < 2 or not body:
        raise BadInput("not a sample submission", where=path, expected="a header, and a row for each id")
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            expected = counted(len(header), "column")
            raise BadInput("a row is cut", where=f"{path}, row {number}", expected=expected, found=len(row))
    ids = tuple(row[0] for row in body)
    if len(set(ids)) < len(ids):
        twice = next(name for number, name in enumerate(ids) if name in ids[:number])
        raise BadInput("an id stands twice", where=path, found=twice)
    return Sample(path, tuple(header), ids, frozenset(row[1] for row in body))


@dataclass(frozen=True)
class Submission:
    """A submission's header, the picture of each id in the order of its rows, and the cells of a prediction."""

    header: tuple[str, ...]
    pictures: dict[str, Path]
    cells: Cells


def plan_submission(
    folder: Path, pictures: Sequence[Path], classes: ClassTable, form: Format, sample: Sample | None = None
) -> Submission:
    """Match pictures and classes to the sample's rows and columns; without a sample ids are names without ending.

    Raises BadInput where ids or columns differ from the sample's, where two pictures have the same id, and for classes
    of which a picture shows several, or numbers.
    """
    if classes.label_kind != "class":
        what = "`submit` takes a run of one class a picture"
        raise BadInput(
            what, found=classes.label_kind, advice="`predict --out FILE.csv` writes what the run says of each"
        )
    by_id = _by_id(folder, pictures, sample)
    if sample is not None:
        by_id = {name: by_id[name] for name in sample.ids}
    if form == "id-label":
        return Submission(*_label_columns(sample, by_id, classes))
    return Submission(*_probability_columns(sample, by_id, classes))


def write_submission(classifier: Classifier, submission: Submission, out: Path, crops: Crops = 1) -> int:
    """Write the submission whole, or nothing: a picture that cannot be read is an error; gives the number of rows."""
    paths = list(submission.pictures.values())
    with files.whole_file(out) as stream, Bar("submit", "pictures") as bar:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(submission.header)
        predictions = predict(classifier, paths, len(classifier.classes), crops)
        for done, row in enumerate(_rows(submission, predictions), 1):
            writer.writerow(row)
            bar.show(done, len(paths))
        text.flush()
        text.detach()
    return len(paths)


def _rows(submission: Submission, predictions: Iterator[Prediction]) -> Iterator[list[str]]:
    for name, prediction in zip(submission.pictures, predictions, strict=True):
        if prediction.reason:
            what = f"the picture cannot be read ({prediction.reason}), and a submission needs every row"
            raise BadInput(what, where=prediction.path, advice="mend it; nothing was written")
        yield [name, *submission.cells(prediction)]


def _by_id(folder: Path, pictures: Sequence[Path], sample: Sample | None) -> dict[str, Path]:
    """The pictures by their ids, in the form of which most are the sample's."""
    wanted = frozenset(sample.ids if sample else ())
    forms = {name: [form(path, folder) for path in pictures] for name, form in _ID_FORMS.items()}
    ids = max(forms.values(), key=lambda names: len(wanted.intersection(names)))
    by_id = dict(zip(ids, pictures, strict=True))
    if sample is not None and by_id.keys() != wanted:
        missing, more = [name for name in sample.ids if name not in by_id], [name for name in ids if name not in wanted]
        faults = [f"no picture for {first_few(missing)}"] if missing else []
        faults += [f"no id for {first_few(more)}"] if more else []
        expected = f"the {counted(len(wanted), 'id')} of {sample.path}"
        raise BadInput("the ids differ from the sample's", where=folder, expected=expected, found="; ".join(faults))
    if len(by_id) < len(pictures):
        twice = next(name for number, name in enumerate(ids) if name in ids[:number])
        raise BadInput("two pictures have the same id", where=folder, found=twice, advice="give a --sample")
    return by_id if sample else dict(sorted(by_id.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> tuple[int, str]:
    """Numbers in their own order, then words."""
    return (int(name), name) if name.isascii() and name.isdigit() else (2**63, name)


def _label_columns(
    sample: Sample | None, pictures: dict[str, Path], classes: ClassTable
) -> tuple[tuple[str, ...], dict[str, Path], Cells]:
    if sample is not None and len(sample.header) != 2:
        advice = "--format id-probabilities has a column a class"
        found = first_few(sample.header)
        raise BadInput("the sample has not two columns", where=sample.path, expected=2, found=found, advice=advice)
    words = _label_words(sample, classes)

    def cells(prediction: Prediction) -> list[str]:
        return [words[prediction.top[0].class_id]]

    return sample.header if sample else ("id", "label"), pictures, cells


def _label_words(sample: Sample | None, classes: ClassTable) -> dict[str, str]:
    """The word for each class id: those of the sample's rows, be they ids, names or numbers of classes."""
    numbers = tuple(map(str, range(len(classes))))
    forms = {"ids": classes.ids, "names": classes.names, "numbers": numbers}
    found = next((name for name, words in forms.items() if sample and sample.words.issubset(words)), "ids")
    log.info("labels are the %s of the classes, as %s", found, forms[found][0])
    return dict(zip(classes.ids, forms[found], strict=True))


def _probability_columns(
    sample: Sample | None, pictures: dict[str, Path], classes: ClassTable
) -> tuple[tuple[str, ...], dict[str, Path], Cells]:
    header = sample.header if sample else ("id", *classes.ids)
    if sample is not None and len(header) == 2 and len(classes) == 2:
        chosen = [classes.ids[1]]
        log.info("column %s is the probability of %s", header[1], classes.names[1])
    else:
        chosen = [_class_of(column, classes, sample) for column in header[1:]]
        missing = [name for name in classes.ids if name not in chosen]
        if missing and sample is not None:
            found = f"none for {first_few(missing)}"
            raise BadInput("the sample lacks a column of a class", where=sample.path, found=found)

    def cells(prediction: Prediction) -> list[str]:
        probabilities = {choice.class_id: choice.probability for choice in prediction.top}
        return [f"{probabilities[name]:.9g}" for name in chosen]

    return header, pictures, cells


def _class_of(column: str, classes: ClassTable, sample: Sample | None) -> str:
    for words in (classes.ids, classes.names):
        if column in words:
            return classes.ids[words.index(column)]
    advice = did_you_mean(column, (*classes.ids, *classes.names), f"the run's are {first_few(classes.ids)}")
    where = sample.path if sample else None
    raise BadInput("a column is no class of the run", where=where, found=column, advice=advice)
