"""The names of classes in a file of the user's, in any of the usual forms.

A text has a class a line: `name`, `id<TAB>name`, or `id name`. The last is meant where every first word has a digit
(n01440764, class_3), or is one of the ids asked for. A JSON file has `[name, ...]`, `{id: name}`, `{number: name}`,
`{number: [id, name]}`, `{name: number}`, or is our own classes.json or the card of an export. Ids that are numbers are
the classes' labels, from 0.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, counted, extent, first_few, printable
from imagenet_pipeline.records.classes import WNID, ClassTable

FILE_LIMIT_BYTES = 64 * 2**20
CLASSES_LIMIT = 1_000_000
FORMS = "a class a line (name, id TAB name), or JSON: [name, ...], {number: name}, {number: [id, name]}, {name: number}"

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_LINE_END = re.compile(r"\r\n|\n|\r")

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class _Rows:
    """The classes of a file, in its order: `names`, and, where it has them, `ids` and `labels`."""

    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None
    order: str | None = None


def read_classes(path: Path) -> ClassTable:
    """Read the class table of a file: class i has the number i, or else is the i-th.

    Ids are the file's, or else its names; where two classes share a name, the numbers. Raises BadInput for a file of
    another form, and for a class name that cannot be printed.
    """
    rows = _by_label(_readings(path)[0], path)
    ids = rows.ids or rows.names
    if len(set(ids)) < len(ids):
        log.info("%s: two classes are called %r: the ids are numbers", printable(str(path)), _repeated(ids))
        ids = tuple(map(str, range(len(ids))))
    sorted_wnids = all(map(WNID.fullmatch, ids)) and list(ids) == sorted(ids)
    return ClassTable(rows.order or ("wnid" if sorted_wnids else "list"), ids, rows.names)


def names_of(ids: Sequence[str], path: Path) -> tuple[str, ...]:
    """Look up in a file the names of the classes `ids` (folders); it may have more classes, and in any order.

    A file without those ids that has as many names, and no other ids, gives them in the order of `ids`, which is said
    on the log. Raises BadInput where a class has no name.
    """
    rows, *others = _readings(path)
    wanted = [_folded(name) for name in ids]
    tables = [table for reading in (rows, *others) for table in _tables(reading)]
    for table in tables:
        if all(key in table for key in wanted):
            return tuple(table[key] for key in wanted)
    if len(rows.names) == len(ids) and rows.ids is None and not any(key in table for table in tables for key in wanted):
        names = _by_label(rows, path).names
        pairs = first_few([f"{class_id} is {name}" for class_id, name in zip(ids, names, strict=True)])
        log.info("%s", printable(f"{path}: names no folder, so its names go to the sorted folders in turn: {pairs}"))
        return names
    best = max(tables, key=lambda table: sum(key in table for key in wanted))
    lacking = next(name for name, key in zip(ids, wanted, strict=True) if key not in best)
    found = f"{len(rows.names):,}, the first {(rows.ids or rows.names)[0]!r}"
    expected = f"a line {lacking!r} TAB NAME, or {len(ids):,} names in the order of the folders"
    raise BadInput(f"no name for the class {lacking!r}", where=path, expected=expected, found=found)


def classes_of_labels(labels: Sequence[int], path: Path) -> tuple[ClassTable, list[int]]:
    """Name the classes of records whose labels these are, rising, and say the label of each class.

    A file with numbers has the classes of those numbers; else the i-th of its names is label i where there are enough,
    and of as many names as labels the i-th is the i-th label, which is said on the log. Names without records are
    classes, too. Raises BadInput where a label has no name.
    """
    rows = _readings(path)[0]
    numbers = rows.labels
    if numbers is None and labels[0] >= 0 and labels[-1] < len(rows.names):
        return read_classes(path), list(range(len(rows.names)))
    if numbers is None and len(labels) == len(rows.names):
        pairs = first_few([f"{label} is {name}" for label, name in zip(labels, rows.names, strict=True)])
        log.info("%s", printable(f"{path}: as many names as there are labels, so they go to these in turn: {pairs}"))
        numbers = tuple(labels)
    lacking = sorted(set(labels).difference(range(len(rows.names)) if numbers is None else numbers))
    if lacking or numbers is None:
        expected = f"a line {lacking[0]} TAB NAME, or {len(labels):,} names in the order of the labels"
        found = f"{len(rows.names):,}, the first {(rows.ids or rows.names)[0]!r}"
        raise BadInput(f"no name for the label {lacking[0]}", where=path, expected=expected, found=found)
    if sorted(numbers) == list(range(len(numbers))):
        return read_classes(path), list(range(len(numbers)))
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    ids = tuple((rows.ids or rows.names)[row] for row in order)
    if len(set(ids)) < len(ids):
        ids = tuple(str(numbers[row]) for row in order)
    return ClassTable("list", ids, tuple(rows.names[row] for row in order)), [numbers[row] for row in order]


def read_user_json(path: Path) -> Any:
    """Read a user's JSON file, without its byte order mark. Raises BadInput for other content, or a key given twice."""
    return _parsed(_text(path), path)


def _tables(rows: _Rows) -> list[dict[str, str]]:
    """The names by what a class may be called: its id, its number, or the name itself."""
    numbers = [str(label) for label in rows.labels or ()]
    columns = [column for column in (rows.ids, numbers, rows.names) if column]
    return [dict(zip(map(_folded, column), rows.names, strict=True)) for column in columns]


def _readings(path: Path) -> list[_Rows]:
    """List what a file may mean, the likeliest first."""
    path = Path(path)
    if path.suffix.lower() == ".csv":
        raise BadInput("class names cannot be read from a CSV", where=path, expected=FORMS)
    text = _text(path)
    is_json = path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "["))
    readings = [_rows_of_json(_parsed(text, path), path)] if is_json else _readings_of_text(text, path)
    rows = readings[0]
    if not 0 < len(rows.names) <= CLASSES_LIMIT:
        found = counted(len(rows.names), "class")
        raise BadInput(
            "the file's number of classes is out of range",
            where=path,
            expected=f"1..{CLASSES_LIMIT:,} classes",
            found=found,
        )
    for column in (rows.ids, rows.labels):
        if column and len(set(column)) < len(column):
            raise BadInput("a class id is given twice", where=path, found=repr(_repeated(column)))
    for word in (rows.order or "", *(rows.ids or ()), *rows.names):
        if not word.isprintable():
            raise BadInput("a class name cannot be printed", where=path, found=ascii(word[:80]))
    return readings


def _text(path: Path) -> str:
    with files.regular_file(path) as (stream, size):
        if size > FILE_LIMIT_BYTES:
            raise BadInput(
                "the file is too large", where=path, expected=f"up to {FILE_LIMIT_BYTES:,} bytes", found=f"{size:,}"
            )
        content = stream.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"not a readable text file ({error})", where=path, expected="UTF-8") from error


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _distinct(pairs, path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not a JSON file ({str(error)[:80]})", where=path) from error


def _readings_of_text(text: str, path: Path) -> list[_Rows]:
    lines = tuple(line.strip() for line in _LINE_END.split(text) if line.strip())
    with_tab = [line for line in lines if "\t" in line]
    if with_tab and len(with_tab) < len(lines):
        without = next(line for line in lines if "\t" not in line)
        raise BadInput(
            "a line has no tab, though others have", where=path, expected="id TAB name", found=repr(without[:80])
        )
    halves = [line.partition("\t" if with_tab else " ") for line in lines]
    ids = tuple(first.strip() for first, _, _ in halves)
    pairs = _numbered(ids, tuple(rest.strip() or first for first, (_, _, rest) in zip(ids, halves, strict=True)))
    if with_tab:
        return [pairs]
    if _are_ids(halves):
        return [pairs, _Rows(lines)]
    return [_Rows(lines), pairs] if len(set(ids)) == len(ids) else [_Rows(lines)]


def _are_ids(halves: Sequence[tuple[str, str, str]]) -> bool:
    """Tell whether the first words are ids: WordNet's, or distinct words with a digit before a name on every line."""
    if all(WNID.fullmatch(first) for first, _, _ in halves):
        return True
    return len({first for first, _, _ in halves}) == len(halves) and all(
        rest and any(letter.isdigit() for letter in first) for first, _, rest in halves
    )


def _rows_of_json(content: Any, path: Path) -> _Rows:
    if isinstance(content, dict) and isinstance(content.get("classes"), dict | list):
        content = content["classes"]
    match content:
        case {"order": _, "ids": _, "names": _}:
            return _rows_of_table(content, path)
        case list() if _all(content, str):
            return _Rows(tuple(content))
        case dict() if _all(content.values(), str):
            return _numbered(tuple(content), tuple(content.values()))
        case dict() if _all(content.values(), int):
            return _Rows(tuple(content), None, tuple(content.values()))
        case dict() if all(isinstance(pair, list) and len(pair) == 2 and _all(pair, str) for pair in content.values()):
            if all(map(_NUMBER.fullmatch, content)):
                ids, names = zip(*content.values(), strict=True)
                return _Rows(names, ids, tuple(map(int, content)))
    raise BadInput("the file names no classes", where=path, expected=FORMS, found=json.dumps(content)[:80])


def _rows_of_table(content: Mapping[str, Any], path: Path) -> _Rows:
    try:
        table = ClassTable.from_json(content)
    except (Damaged, BadInput) as error:
        raise BadInput(error.what, where=path, expected=error.expected) from error
    return _Rows(table.names, table.ids, None, table.order)


def _numbered(ids: tuple[str, ...], names: tuple[str, ...]) -> _Rows:
    """Rows whose ids, where all are numbers, are labels."""
    if all(map(_NUMBER.fullmatch, ids)):
        return _Rows(names, None, tuple(map(int, ids)))
    return _Rows(names, ids)


def _by_label(rows: _Rows, path: Path) -> _Rows:
    """The rows in the order of their labels. Raises BadInput where those are not 0..N-1, once each."""
    labels = rows.labels
    if labels is None:
        return rows
    if sorted(labels) != list(range(len(labels))):
        advice = "subtract one from each" if sorted(labels) == list(range(1, len(labels) + 1)) else None
        found = extent(min(labels), max(labels))[:80]
        expected = f"{extent(0, len(labels) - 1)}, once each"
        raise BadInput("the classes are not numbered from 0", where=path, expected=expected, found=found, advice=advice)
    order = sorted(range(len(labels)), key=labels.__getitem__)
    ids = tuple(rows.ids[row] for row in order) if rows.ids else None
    return _Rows(tuple(rows.names[row] for row in order), ids, order=rows.order)


def _all(values: Any, kind: type) -> bool:
    return all(type(value) is kind for value in values)


def _folded(name: str) -> str:
    # macOS writes an umlaut in a file's name as two characters, most editors as a single character.
    return unicodedata.normalize("NFC", name).strip()


def _repeated(ids: Sequence[object]) -> object:
    return next(name for name, count in Counter(ids).items() if count > 1)


def _distinct(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise BadInput("a key is given twice", where=path, found=repr(_repeated([key for key, _ in pairs])))
    return content
