"""FER2013's CSV of faces, with its own labels or those of FER+, into a plan.

The CSV (Goodfellow et al. 2013, "Challenges in Representation Learning", arXiv 1307.0414) has a row a face: emotion
0..6, 48 x 48 grey values 0..255, row by row, and Usage; Kaggle's icml_face_data.csv is the same with its columns in
another order and blanks before their names. FER+ (Barsoum et al. 2016, arXiv 1608.01041) has ten votes for
each of its rows: https://github.com/microsoft/FERPlus.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records import image
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.plan import Images, Plan

from .csv_rows import Row, line_of, rows_of

FACES = "faces"
SIDE_PIXELS = 48
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SPLITS = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
SWAPPED = {"Training": "train", "PrivateTest": "val", "PublicTest": "test"}
"""The book's use of the two held-out parts."""
VOTED = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
NO_EMOTION = ("unknown", "NF")

_COLUMNS = ("emotion", "pixels", "Usage")
_ROW = "csv_row"
_USAGES = {usage.casefold(): usage for usage in SPLITS}
_SOURCE = "source.json"
_WHOLE = "FER+ goes with the whole fer2013.csv of 35,887 rows"
_NO_USAGE = (
    "Kaggle's train.csv and test.csv do not say what a face is for: "
    "fer2013.csv or icml_face_data.csv of the same challenge does"
)
_WHOLE_NUMBER = re.compile(r"(\d{1,9})(\.0*)?", re.ASCII)

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class Faces:
    """The rows of the CSV in its order: grey bytes, emotions 0..6, and what each is for."""

    pixels: list[bytes]
    emotions: NDArray[np.int64]
    usages: list[str]

    def names(self) -> list[str]:
        """The path each is written to, "Training/00000.png"."""
        return [f"{usage}/{row:05d}.png" for row, usage in enumerate(self.usages)]


def plan(
    csv_file: Annotated[Path, "--csv", "fer2013.csv or icml_face_data.csv: emotion, pixels, Usage; .xz and .gz too."],
    out: Path,
    classes: Annotated[Literal[6, 7], "7, or 6 with disgust, which is rare, merged into angry."] = 7,
    swapped: Annotated[bool, "--swapped", "PrivateTest as val, PublicTest as test: the book."] = False,
    votes: Annotated[Path | None, "--ferplus", "FER+'s votes, fer2013new.csv: its 8 classes instead."] = None,
) -> Plan:
    """Build the faces of FER2013: Training, PublicTest and PrivateTest become train, val and test, without loss.

    They are written as PNGs into `faces` beside the records, unless they are there. With FER+ the label of a face is
    what most of its votes are for; faces without such a majority, or with one for no emotion or no face, are left out.

    \b
    Examples:
      imagenet-pipeline build fer2013 --csv fer2013.csv --out output/fer2013
      imagenet-pipeline build fer2013 --csv fer2013.csv --ferplus fer2013new.csv --out output/ferplus

    Raises BadInput naming the row that is malformed, or where votes and faces are not of the same file; BadRecipe for
    6 classes of FER+.
    """
    if votes is not None and classes != len(EMOTIONS):
        expected = "nothing with --ferplus, which has 8"
        raise BadRecipe("unknown number of classes", where="--classes", expected=expected, found=classes)
    faces = read_faces(csv_file)
    if votes is None:
        table, labels = _own_labels(faces, classes)
    else:
        table, labels = ClassTable("ferplus", VOTED, VOTED), majority_labels(votes, faces)
        log.info("%s: %d of %d faces have no majority for an emotion", votes, int((labels < 0).sum()), len(labels))
    _write_faces(faces, Path(csv_file), Path(out) / FACES)
    return Plan(
        root=Path(out) / FACES,
        splits=_splits(faces, labels, SWAPPED if swapped else SPLITS),
        classes=table,
        source={"builder": "fer2013", "swapped": swapped, "votes": votes is not None},
    )


def read_faces(csv_file: Path) -> Faces:
    """Read the CSV, which may be packed (.xz, .gz). Raises BadInput naming the row."""
    pixels, emotions, usages = [], [], []
    for where, row in _rows(csv_file, _COLUMNS):
        pixels.append(_grey(row["pixels"], where))
        emotions.append(_whole(row["emotion"], len(EMOTIONS) - 1, "emotion", where))
        usages.append(_usage(row["Usage"], where))
    if not pixels:
        raise BadInput("the file has no faces", where=csv_file, expected="a row a face")
    return Faces(pixels, np.array(emotions, np.int64), usages)


def majority_labels(votes: Path, faces: Faces) -> NDArray[np.int64]:
    """For each face the class most of its FER+ votes are for, -1 where there is none.

    As FER+'s authors count in their mode "majority": single votes are dropped, and more than half of the rest must
    agree. Raises BadInput as `read_votes` does.
    """
    counts = read_votes(votes, faces)
    counts[counts == 1] = 0
    winner = counts.argmax(axis=1)
    clear = 2 * counts.max(axis=1) > counts.sum(axis=1)
    return np.where(clear & (winner < len(VOTED)), winner, -1).astype(np.int64)


def read_votes(votes: Path, faces: Faces) -> NDArray[np.int64]:
    """The votes of each face for the emotions of FER+, unknown and no face, [n, 10].

    A column csv_row says which row of FER2013 votes are about, and may leave some out; without it, as in FER+'s own
    file, they are about the next row. Raises BadInput where votes and faces are not of the same file.
    """
    columns = (*VOTED, *NO_EMOTION)
    counts = np.zeros((len(faces.usages), len(columns)), np.int64)
    voted = np.zeros(len(faces.usages), bool)
    numbered = False
    for number, (where, row) in enumerate(_rows(votes, ("Usage", *columns))):
        numbered = _ROW in row
        face = _whole(row[_ROW], 10**6, _ROW, where) if numbered else number
        _require_same_face(faces, face, _usage(row["Usage"], where), where)
        if voted[face]:
            raise BadInput(f"row {face} has votes already", where=where)
        voted[face] = True
        counts[face] = [_whole(row[column], 1000, column, where) for column in columns]
    if not (numbered or voted.all()):
        found = f"{int(voted.sum())} of {len(voted)}"
        raise BadInput(
            "some faces have no votes", where=votes, expected="votes for every row", found=found, advice=_WHOLE
        )
    if not voted.all():
        log.info("%s: %d of %d faces have no votes", votes, int((~voted).sum()), len(voted))
    return counts


def _require_same_face(faces: Faces, face: int, usage: str, where: str) -> None:
    there = faces.usages[face] if face < len(faces.usages) else None
    if there != usage:
        expected = f"{len(faces.usages)} faces" if there is None else repr(there)
        what = f"these votes are about another file: row {face} is {usage!r} here"
        raise BadInput(what, where=where, expected=expected, advice=_WHOLE)


def _own_labels(faces: Faces, classes: Literal[6, 7]) -> tuple[ClassTable, NDArray[np.int64]]:
    if classes == len(EMOTIONS):
        return ClassTable("fer2013", EMOTIONS, EMOTIONS), faces.emotions
    merged = tuple(emotion for emotion in EMOTIONS if emotion != "disgust")
    labels = np.maximum(faces.emotions - 1, 0)
    return ClassTable("fer2013-6", merged, merged), labels


def _splits(faces: Faces, labels: NDArray[np.int64], splits: Mapping[str, str]) -> dict[str, Images]:
    names, usages = faces.names(), np.array(faces.usages)
    chosen = {split: np.flatnonzero((usages == usage) & (labels >= 0)) for usage, split in splits.items()}
    return {split: Images([names[row] for row in rows], labels[rows]) for split, rows in chosen.items()}


def _write_faces(faces: Faces, csv_file: Path, folder: Path) -> None:
    source = {"csv_sha256": files.sha256_of(csv_file)}
    if folder.exists():
        if not (folder / _SOURCE).exists() or files.read_json(folder / _SOURCE) != source:
            raise BadInput("the folder holds faces of another file", where=folder, advice="choose another --out")
        return
    with files.whole_folder(folder) as part, Bar("faces", "images") as bar:
        for usage in set(faces.usages):
            (part / usage).mkdir()
        for done, (name, pixels) in enumerate(zip(faces.names(), faces.pixels, strict=True), 1):
            grey = np.frombuffer(pixels, np.uint8).reshape(SIDE_PIXELS, SIDE_PIXELS)
            (part / name).write_bytes(image.encode_png(grey))
            bar.show(done, len(faces.pixels))
        files.write_json(part / _SOURCE, source)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Each row by column, and where it stands. Raises BadInput for a file that is no such table."""
    try:
        for line, row in rows_of(path, columns, (_ROW,)):
            yield line_of(path, line), row
    except BadInput as error:
        is_kaggles = error.what.startswith("no column") and columns == _COLUMNS and "pixels" in str(error.found)
        raise error.replaced(advice=_NO_USAGE) if is_kaggles else error from error


def _usage(text: str, where: str) -> str:
    usage = _USAGES.get(text.casefold())
    if usage is None:
        raise BadInput("the Usage is unknown", where=where, expected=", ".join(SPLITS), found=repr(text[:40]))
    return usage


def _grey(text: str, where: str) -> bytes:
    try:
        pixels = bytes(map(int, text.split()))
    except ValueError:
        pixels = b""
    if len(pixels) != SIDE_PIXELS**2:
        expected = f"{SIDE_PIXELS**2} numbers from 0 to 255"
        raise BadInput("not the pixels of a face", where=where, expected=expected, found=repr(text[:40]))
    return pixels


def _whole(text: str, largest: int, column: str, where: str) -> int:
    """A whole number 0..largest; "3.0", as pandas writes it after a gap, is 3."""
    match = _WHOLE_NUMBER.fullmatch(text)
    if match is None or int(match[1]) > largest:
        raise BadInput(f"the {column} is out of range", where=where, expected=f"0 to {largest}", found=repr(text[:40]))
    return int(match[1])
