"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from their binary files or Python's, into a plan.

https://www.cs.toronto.edu/~kriz/cifar.html has the format: a row is a label byte (two in CIFAR-100, coarse and fine),
then 32 x 32 red values, row by row, the green and the blue. Python's files are pickles of the same rows, which are
taken apart without being executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.pickles import Instance, Maker, instance_of, read_pickle
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.plan import Plan

from .raw_pictures import Pictures, Sources, find_sources, plan_pictures

SIDE_PIXELS = 32
_PIXEL_BYTES = 3 * SIDE_PIXELS**2
_USUAL = "data_batch_1.bin ... and test_batch.bin, train.bin and test.bin, or Python's data_batch_1 or train"


class _Form(NamedTuple):
    """One of the forms: its files, labels a row, and where the names of the classes are."""

    train: re.Pattern[str]
    test: str
    labels: tuple[str, ...]
    classes: tuple[int, ...]
    names: Mapping[str, str]
    """The file of names for each kind of label, or the key in the pickle `names["file"]`."""
    pickled: bool = False


_TEN, _HUNDRED = ("fine",), ("coarse", "fine")
_FORMS = {
    "CIFAR-10": _Form(
        re.compile(r"data_batch_\d\.bin"), "test_batch.bin", _TEN, (10,), {"fine": "batches.meta.txt"}
    ),
    "CIFAR-100": _Form(
        re.compile(r"train\.bin"), "test.bin", _HUNDRED, (20, 100),
        {"fine": "fine_label_names.txt", "coarse": "coarse_label_names.txt"},
    ),
    "CIFAR-10 for Python": _Form(
        re.compile(r"data_batch_\d"), "test_batch", _TEN, (10,),
        {"file": "batches.meta", "fine": "label_names"}, pickled=True,
    ),
    "CIFAR-100 for Python": _Form(
        re.compile("train"), "test", _HUNDRED, (20, 100),
        {"file": "meta", "fine": "fine_label_names", "coarse": "coarse_label_names"}, pickled=True,
    ),
}  # fmt: skip
_NAMES = re.compile(
    "|".join(
        part
        for form in _FORMS.values()
        for part in (form.train.pattern, *map(re.escape, (form.test, *form.names.values())))
    )
)


def plan(
    root: Annotated[Path, "Folder, or archive, of data_batch_1.bin ..., or of CIFAR-100's train.bin and test.bin."],
    out: Path,
    labels: Annotated[Literal["fine", "coarse"], "Of CIFAR-100: its 100 classes, or its 20 of five each."] = "fine",
    val_fraction: float | None = None,
    val_images: Annotated[int | None, "Images to cut out as val, instead of a share."] = None,
    test_fraction: float | None = None,
    test_images: Annotated[int | None, "Images to cut out as test, instead of a share."] = None,
    seed: int = 42,
) -> Plan:
    """Build CIFAR-10 or CIFAR-100, of the binary version or Python's, packed or not, without loss.

    The test batch is test. Val is cut out of train, by default a tenth; so is test where there is one kind of batch
    alone. The pictures are packed as PNGs into `pictures` beside the records, unless they are there.

    \b
    Examples:
      imagenet-pipeline build cifar --root cifar-10-binary.tar.gz --out output/cifar10
      imagenet-pipeline build cifar --root cifar-100-binary --labels coarse --val-images 5000 --out output/cifar20

    Raises BadInput for files that are cut, have other labels, or are of several of the forms.
    """
    sources = find_sources(root, _NAMES, _USUAL)
    form, trains = _form_of(sources)
    if labels not in form.labels:
        raise BadInput(f"there are no {labels} labels", where=root, expected=f"--labels {form.labels[0]}")
    batches = {"train": trains, "test": [form.test] if form.test in sources.places else []}
    batches = {part: names for part, names in batches.items() if names}
    wanted = [name for names in batches.values() for name in names]
    contents = sources.read([*wanted, *(name for name in form.names.values() if name in sources.places)])
    parts = {}
    for part, names in batches.items():
        rows = [_rows(form, contents[name], sources.where(name)) for name in names]
        column = form.labels.index(labels)
        planes = np.concatenate([pixels for pixels, _ in rows]).reshape(-1, 3, SIDE_PIXELS, SIDE_PIXELS)
        numbers = np.concatenate([numbers[:, column] for _, numbers in rows])
        parts[part] = Pictures(planes.transpose(0, 2, 3, 1), numbers)
    if "train" not in parts:
        parts = {"train": parts["test"]}
    table = _table(form, labels, contents, sources)
    cuts = {"val": (val_fraction, val_images), "test": (test_fraction, test_images)}
    return plan_pictures("cifar", parts, table, out, cuts, seed)


def _form_of(sources: Sources) -> tuple[_Form, list[str]]:
    """The form that the files have, and the names of the batches for training."""
    found = {}
    for title, form in _FORMS.items():
        trains = [name for name in sources.places if form.train.fullmatch(name)]
        if trains or form.test in sources.places:
            found[title] = (form, sorted(trains))
    if len(found) != 1:
        what = "the files are of several data sets" if found else "there are no batches of pictures"
        shown = ", ".join(found) or ", ".join(sources.places)
        raise BadInput(what, where=sources.root, expected=_USUAL, found=shown)
    form, trains = next(iter(found.values()))
    for number, name in enumerate(trains, 1):
        if name != re.sub(r"_\d", f"_{number}", name):
            raise BadInput("a batch is missing before this one", where=sources.where(name), found=", ".join(trains))
    return form, trains


def _rows(form: _Form, content: bytes, where: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pixels of a batch, uint8 [n, 3072], and its labels [n, kinds]."""
    if form.pickled:
        pixels, labels = _pickled_rows(form, content, where)
    else:
        row_bytes = len(form.labels) + _PIXEL_BYTES
        if not content or len(content) % row_bytes:
            raise BadInput("the file is cut", where=where, expected=f"rows of {row_bytes:,} bytes", found=len(content))
        rows = np.frombuffer(content, np.uint8).reshape(-1, row_bytes)
        pixels, labels = rows[:, len(form.labels) :], rows[:, : len(form.labels)].astype(np.int64)
    wrong = (labels < 0) | (labels >= np.array(form.classes))
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        found = f"{labels[row, column]} in row {row}"
        raise BadInput("a label is out of range", where=where, expected=f"0..{form.classes[column] - 1}", found=found)
    return pixels, labels


def _table(form: _Form, labels: str, contents: Mapping[str, bytes], sources: Sources) -> ClassTable:
    """The classes by the file of their names, or else by number."""
    count = form.classes[form.labels.index(labels)]
    file = form.names.get("file", form.names[labels])
    names = [str(number) for number in range(count)]
    if file in contents:
        if form.pickled:
            listed = _read(contents[file], sources.where(file)).get(form.names[labels])
            names = [_text(name) for name in listed] if isinstance(listed, list) else []
        else:
            names = [line.strip() for line in contents[file].decode("ascii", "replace").splitlines() if line.strip()]
        if len(names) != count or len(set(names)) != count or not all(map(str.isprintable, names)):
            expected = f"the names of {count} classes"
            raise BadInput("the file does not name the classes", where=sources.where(file), expected=expected)
    return ClassTable("list", tuple(names), tuple(names))


_ARRAY, _DTYPE = "numpy.ndarray", "numpy.dtype"
_KNOWN: Mapping[str, Maker | None] = {
    _ARRAY: None,
    _DTYPE: instance_of(_DTYPE),
    "numpy.core.multiarray._reconstruct": instance_of(_ARRAY),
    "numpy._core.multiarray._reconstruct": instance_of(_ARRAY),
    # Python 3 writes bytes so in the protocol of Python 2.
    "_codecs.encode": lambda arguments: arguments[0].encode("latin-1"),
}


def _pickled_rows(form: _Form, content: bytes, where: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _read(content, where)
    data = batch.get("data")
    state = data.state if isinstance(data, Instance) and isinstance(data.state, tuple) and len(data.state) == 5 else ()
    keys = ("labels",) if form.labels == _TEN else ("coarse_labels", "fine_labels")
    columns = [batch.get(key) for key in keys]
    match state:
        case (_, (int(rows), int(width)), Instance(_, (("u1" | b"u1"), *_)), False, bytes() | str() as raw):
            values = raw.encode("latin-1") if isinstance(raw, str) else raw
            whole = rows > 0 and width == _PIXEL_BYTES and len(values) == rows * width
            if whole and all(_are_labels(column, rows) for column in columns):
                return np.frombuffer(values, np.uint8).reshape(rows, width), np.array(columns, np.int64).T
    expected = f"data, uint8 [n, {_PIXEL_BYTES:,}], and n {' and '.join(keys)}"
    raise BadInput("the pickle is no batch of CIFAR", where=where, expected=expected)


def _are_labels(column: object, rows: int) -> bool:
    return isinstance(column, list) and len(column) == rows and all(type(n) is int and 0 <= n < 256 for n in column)


def _read(content: bytes, where: Path) -> dict[str, Any]:
    """The dictionary of a pickle, its keys as texts. Raises BadInput for any other, and for what no batch has."""
    try:
        value, _ = read_pickle(memoryview(content), where, _KNOWN, contents="batch of CIFAR")
    except (AttributeError, IndexError, UnicodeError) as error:  # arguments of _codecs.encode that are none
        raise BadInput("the pickle is damaged", where=where) from error
    if not isinstance(value, dict):
        raise BadInput("the pickle is no batch of CIFAR", where=where, expected="a dictionary")
    return {_text(key): inner for key, inner in value.items()}


def _text(word: object) -> str:
    return word.decode("latin-1") if isinstance(word, bytes) else str(word)
