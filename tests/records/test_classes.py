"""Class tables: written, read, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.errors import BadInput, Damaged
from imagenet_pipeline.records.classes import ClassTable, require_same

TABLE = ClassTable("wnid", ("n1", "n2"), ("cat", "größter Hund"))


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "classes.json")
    assert ClassTable.read(tmp_path / "classes.json") == TABLE


def test_the_digest_depends_on_everything() -> None:
    others = [ClassTable("devkit", TABLE.ids, TABLE.names), ClassTable("wnid", TABLE.ids, ("cat", "dog"))]
    assert len({table.digest for table in [TABLE, *others]}) == 3


@pytest.mark.parametrize(
    "value", [None, [], {}, {"order": "x", "ids": "ab", "names": ["a", "b"]}, {"order": 1, "ids": [], "names": []}]
)
def test_another_shape_is_damaged(value: Any) -> None:
    with pytest.raises(Damaged, match="not a class table"):
        ClassTable.from_json(value)


def test_ids_must_be_distinct_and_named() -> None:
    for ids, names in ((("a", "a"), ("x", "y")), (("a",), ())):
        with pytest.raises(BadInput):
            ClassTable("list", ids, names)


def test_a_mismatch_names_the_first_difference() -> None:
    require_same(TABLE, ClassTable("devkit", TABLE.ids, ("other", "names")), where="here")
    with pytest.raises(BadInput, match=r"here: .*label 1 = n2 .*label 1 = n3"):
        require_same(TABLE, ClassTable("wnid", ("n1", "n3"), ("a", "b")), where="here")
    with pytest.raises(BadInput, match=r"2 classes .*1 class\b"):
        require_same(TABLE, ClassTable("wnid", ("n1",), ("a",)), where="here")
