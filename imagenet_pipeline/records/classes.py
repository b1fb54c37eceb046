"""The class table: which label number means which class."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ClassTable:
    """Label i is `ids[i]` (a WordNet id, a folder name, ...), called `names[i]` for people.

    `order` says how the labels were numbered: `wnid` (sorted), `devkit`, `folder`, `list`, ...
    """

    order: str
    ids: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names) or len(set(self.ids)) != len(self.ids):
            raise BadInput("a class table needs distinct ids and one name for each", found=self.order)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 of order, ids and names."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The table as `classes.json` holds it."""
        return {"order": self.order, "ids": list(self.ids), "names": list(self.names)}

    @classmethod
    def from_json(cls, value: Any, where: object = None) -> ClassTable:
        """The inverse of `as_json`. Raises Damaged when `value` has another shape."""
        try:
            order, ids, names = value["order"], value["ids"], value["names"]
            whole = isinstance(order, str) and all(isinstance(column, list) for column in (ids, names))
            whole = whole and all(isinstance(text, str) for text in (*ids, *names))
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise Damaged("not a class table", where=where, expected="order, ids and names")
        return cls(order, tuple(ids), tuple(names))

    def write(self, path: Path) -> None:
        """Write `classes.json`."""
        files.write_json(path, self.as_json())

    @classmethod
    def read(cls, path: Path) -> ClassTable:
        """Read `classes.json`. Raises Damaged."""
        return cls.from_json(files.read_json(path), where=path)


def require_same(first: ClassTable, second: ClassTable, where: object) -> None:
    """Raise BadInput, naming the first difference, unless both tables number the same classes alike."""
    if first.ids == second.ids:
        return
    if len(first) != len(second):
        difference = (f"{len(first)} classes", f"{len(second)} classes")
    else:
        label = next(i for i, (a, b) in enumerate(zip(first.ids, second.ids, strict=True)) if a != b)
        difference = (f"label {label} = {first.ids[label]}", f"label {label} = {second.ids[label]}")
    raise BadInput(
        "class tables differ",
        where=where,
        expected=f"{difference[0]} (order {first.order})",
        found=f"{difference[1]} (order {second.order})",
        advice="use the records the network was trained on, or rebuild them in that class order",
    )


def read_classes(path: Path) -> ClassTable:
    """A class table from a `classes.json` of ours, from the card of an export, or from a text of one class a line.

    Such a line is the id, a space, the names. Raises BadInput or Damaged where it is none of them, or calls a class
    what cannot be printed.
    """
    try:
        with files.regular_file(path) as (stream, _):
            text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"not a readable text file ({error})", where=path) from error
    if path.suffix == ".json":
        try:
            content = json.loads(text)
            table = content["classes"] if isinstance(content, dict) and "classes" in content else content
            return _printable(ClassTable.from_json(table, where=path), path)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"not a JSON file ({error})", where=path) from error
    rows = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    ids = tuple(first for first, _, _ in rows)
    if len(set(ids)) < len(ids):
        repeated = next(one for one in ids if ids.count(one) > 1)
        raise BadInput("a class id stands twice", where=path, found=repr(repeated))
    sorted_wnids = all(map(_WNID.fullmatch, ids)) and list(ids) == sorted(ids)
    names = tuple(rest.strip() or first for first, _, rest in rows)
    return _printable(ClassTable("wnid" if sorted_wnids else "list", ids, names), path)


def _printable(table: ClassTable, path: Path) -> ClassTable:
    for text in (table.order, *table.ids, *table.names):
        if not text.isprintable():
            raise BadInput("a class is called what cannot be printed", where=path, found=ascii(text[:80]))
    return table
