"""The class table: which label number means which class, or what the numbers of a label vector mean."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, counted

WNID = re.compile(r"n\d{8}")
"""A WordNet id, by which ImageNet's classes go."""
NUMBERED = "numbered"
"""Class order where nobody named the classes: of a network imported so, and of a lone record file."""
LabelKind = Literal["class", "classes", "number"]
"""The label of a record: one of the classes, by its number; any of them, 0 or 1 for each; or no class but numbers."""


@dataclass(frozen=True)
class ClassTable:
    """Label i is `ids[i]` (a WordNet id, a folder name, ...), called `names[i]` for people.

    `order` says how the labels were numbered: `wnid` (sorted), `devkit`, `folder`, `list`, ...
    Of another `label_kind` than "class" a record has a vector of labels: entry i is 1 where the record shows class
    `ids[i]`, or it is the number called `ids[i]`. A network has an output for each of them, always.
    """

    order: str
    ids: tuple[str, ...]
    names: tuple[str, ...]
    label_kind: LabelKind = "class"

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names) or len(set(self.ids)) != len(self.ids):
            raise BadInput("a class table needs distinct ids, and a name for each", found=self.order)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def label_width(self) -> int:
        """Number of labels of a record."""
        return 1 if self.label_kind == "class" else len(self)

    @property
    def digest(self) -> str:
        """SHA-256 of order, ids and names."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The table as `classes.json` holds it."""
        kind = {} if self.label_kind == "class" else {"label_kind": self.label_kind}
        return {"order": self.order, "ids": list(self.ids), "names": list(self.names), **kind}

    @classmethod
    def from_json(cls, value: Any, where: object = None) -> ClassTable:
        """The inverse of `as_json`. Raises Damaged when `value` has another shape."""
        try:
            order, ids, names = value["order"], value["ids"], value["names"]
            kind = value.get("label_kind", "class")
            whole = isinstance(order, str) and all(isinstance(column, list) for column in (ids, names))
            whole = whole and all(isinstance(text, str) for text in (*ids, *names))
            whole = whole and kind in get_args(LabelKind)
        except (AttributeError, KeyError, TypeError):
            whole = False
        if not whole:
            raise Damaged("not a class table", where=where, expected="order, ids and names")
        return cls(order, tuple(ids), tuple(names), kind)

    def write(self, path: Path) -> None:
        """Write `classes.json`."""
        files.write_json(path, self.as_json())

    @classmethod
    def read(cls, path: Path) -> ClassTable:
        """Read `classes.json`. Raises Damaged."""
        return cls.from_json(files.read_json(path), where=path)


def require_one_class(table: ClassTable, where: object, for_what: str) -> None:
    """Raise BadInput for records whose labels are not one class each, which something is not for."""
    if table.label_kind != "class":
        has = "several classes" if table.label_kind == "classes" else "numbers"
        raise BadInput(f"{for_what} takes records of one class each", where=where, found=f"labels that are {has}")


def require_same(first: ClassTable, second: ClassTable, where: object) -> None:
    """Raise BadInput, naming the first difference, unless both tables number the same classes alike."""
    if first.label_kind != second.label_kind:
        raise BadInput("labels of another kind", where=where, expected=first.label_kind, found=second.label_kind)
    if first.ids == second.ids:
        return
    if len(first) != len(second):
        difference = (counted(len(first), "class"), counted(len(second), "class"))
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
