"""Which of a network's classes the records' classes are: by number, by id, or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.numbering import numbering_of, sorted_numbers
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.records.reader import Index
from imagenet_pipeline.training.checkpoint import State
from imagenet_pipeline.training.data import IMPORTED
from imagenet_pipeline.training.imported import numbered_classes

WNIDS = tuple(f"n{number:08d}" for number in range(0, 5000, 5))
FOLDERS = tuple(sorted(map(str, range(1000))))
"""As `build folder` numbers them: 0, 1, 10, 100, 101, ..."""


def table(ids: Sequence[str], order: str = "list") -> ClassTable:
    return ClassTable(order, tuple(ids), tuple(ids))


def state(classes: ClassTable, digest: str = "x") -> State:
    return State(
        0, 0, "lenet", 28, classes.ids, classes.names, classes.order, (1.0,) * 3, (1.0,) * 3, digest, "gluon", {}
    )


def records(classes: ClassTable) -> DataSet:
    return DataSet(Path("records"), cast("object", None), classes, (1.0,) * 3, (1.0,) * 3, "y")  # type: ignore[arg-type]


def lone_file(*labels: int) -> DataSet:
    """A record file by itself, whose classes are called by their labels."""
    none = np.empty(0, np.int64)
    return replace(records(table([*map(str, labels)], "numbered")), samples=Index(none, none, none))


def test_labels_of_a_lone_file_are_classes_of_those_names() -> None:
    found = numbering_of(state(table(["9", "3", "7", "5"])), lone_file(3, 5, 9))
    assert found.relabel.tolist() == [1, 3, 0]
    assert "its labels are taken for the network's classes of those names" in found.note


def test_labels_of_a_lone_file_are_else_the_network_s_numbers() -> None:
    found = numbering_of(state(table(["b", "a", "c"])), lone_file(0, 2))
    assert (found.relabel.tolist(), found.table.ids) == ([0, 2], ("b", "a", "c"))
    assert "taken for the network's numbers, 0 for b; nothing here can check it" in found.note
    # Of all thousand numbers too: whose order they are in, the file does not say.
    kit = [WNIDS[place] for place in np.random.default_rng(0).permutation(1000)]
    assert numbering_of(state(table(kit, "devkit")), lone_file(*range(1000))).relabel.tolist() == [*range(1000)]
    with pytest.raises(BadInput, match=r"expected 0..2; found 1..3; name the classes of its labels: build records"):
        numbering_of(state(table(["b", "a", "c"])), lone_file(1, 3))


def test_the_same_table_changes_nothing() -> None:
    found = numbering_of(state(table(["b", "a", "c"])), records(table(["b", "a", "c"])))
    assert found.relabel.tolist() == [0, 1, 2]
    assert found.note == ""


def test_folders_0_to_999_are_the_classes_by_their_number_not_by_their_place() -> None:
    found = numbering_of(state(table(WNIDS, "wnid")), records(table(FOLDERS, "folder")))
    assert found.relabel.tolist() == [int(folder) for folder in FOLDERS]
    assert found.relabel[:4].tolist() == [0, 1, 10, 100]
    assert found.table.ids == WNIDS
    assert found.note == "records of folders 0 to 999 are ImageNet's classes in the order of WordNet ids"


def test_a_network_in_the_kit_s_order_has_the_numbers_elsewhere() -> None:
    kit = [WNIDS[place] for place in np.random.default_rng(0).permutation(1000)]
    found = numbering_of(state(table(kit, "devkit")), records(table(FOLDERS, "folder")))
    assert [kit[label] for label in found.relabel] == [WNIDS[int(folder)] for folder in FOLDERS]
    assert [WNIDS[number] for number in sorted_numbers(table(kit))] == kit


def test_a_network_whose_classes_nobody_named_has_the_numbers_themselves() -> None:
    found = numbering_of(state(numbered_classes(1000), IMPORTED), records(table(FOLDERS, "folder")))
    assert found.relabel.tolist() == [int(folder) for folder in FOLDERS]


def test_imagenetv2_s_own_list_names_the_folders_so(shared_data: Path, unpacked: object) -> None:
    folder = unpacked("imagenet_meta.tar.xz") / "imagenet_meta"  # type: ignore[operator]
    classes = json.loads((folder / "imagenetv2_class_info.json").read_text())
    wnids = sorted(line.split()[0] for line in (folder / "synset_words.txt").read_text().splitlines())
    found = numbering_of(state(table(wnids, "wnid")), records(table(FOLDERS, "folder")))
    wnid_of_folder = {str(one["cid"]): one["wnid"] for one in classes}
    assert len(wnid_of_folder) == 1000
    assert [wnids[label] for label in found.relabel] == [wnid_of_folder[name] for name in FOLDERS]


def test_some_of_the_classes_are_matched_by_id() -> None:
    found = numbering_of(state(table(["d", "b", "a", "c"])), records(table(["c", "d"])))
    assert found.relabel.tolist() == [3, 0]
    assert found.note == "the records have 2 of the network's 4 classes, matched by class id"


@pytest.mark.parametrize(
    "theirs",
    [
        ["b", "a", "c"],  # the same, numbered otherwise: as in training, not what the network was trained on
        ["a", "x"],
        ["a", "b", "c", "d"],
        FOLDERS,
    ],
)
def test_other_classes_are_refused(theirs: Sequence[str]) -> None:
    with pytest.raises(BadInput, match="records: class tables differ"):
        numbering_of(state(table(["a", "b", "c"])), records(table(theirs)))


def test_folders_0_to_999_are_not_the_classes_of_a_thousand_others() -> None:
    others = [f"person{number}" for number in range(1000)]
    with pytest.raises(BadInput, match="class tables differ"):
        numbering_of(state(table(others)), records(table(FOLDERS)))


def test_a_few_numbered_folders_are_not_matched_with_classes_that_nobody_named() -> None:
    with pytest.raises(BadInput, match="class tables differ"):
        numbering_of(state(numbered_classes(1000), IMPORTED), records(table([*"0123456789"])))
