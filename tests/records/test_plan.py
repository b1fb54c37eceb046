"""Plans refuse what records and lists cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.lists import PATH_LIMIT_BYTES, read_list
from imagenet_pipeline.records.plan import Images, Plan, write_lists

CLASSES = ClassTable("list", ("a", "b"), ("a", "b"))


def plan_of(paths: list[str], labels: list[int]) -> Plan:
    return Plan(Path("root"), {"train": Images(paths, np.array(labels, np.int64))}, CLASSES)


@pytest.mark.parametrize(
    ("paths", "labels", "reason"),
    [
        ([], [], "no images"),
        (["x"], [0, 1], "2 labels"),
        (["x"], [2], "out of range"),
        (["x"], [-1], "out of range"),
        (["x\ty"], [0], "tab"),
        (["x\ny"], [0], "line break"),
        (["x\udcff"], [0], "UTF-8"),
    ],
)
def test_what_cannot_be_stored_is_refused(paths: list[str], labels: list[int], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        plan_of(paths, labels)


def test_the_digest_depends_on_rows_order_and_labels() -> None:
    plans = [plan_of(["x", "y"], [0, 1]), plan_of(["y", "x"], [1, 0]), plan_of(["x", "y"], [0, 0])]
    assert len({plan.digest for plan in plans}) == 3
    assert plans[0].digest == plan_of(["x", "y"], [0, 1]).digest


def test_lists_alone(tmp_path: Path) -> None:
    written = write_lists(plan_of(["x", "y z"], [1, 0]), tmp_path)
    assert [(row.index, row.labels, row.path) for row in read_list(written["train"])] == [
        (0, (1.0,), "x"),
        (1, (0.0,), "y z"),
    ]
    assert ClassTable.read(tmp_path / "classes.json") == CLASSES


def test_an_image_in_two_splits_is_refused() -> None:
    splits = {
        name: Images(paths, np.zeros(2, np.int64)) for name, paths in (("train", ["x", "y"]), ("val", ["z", "y"]))
    }
    with pytest.raises(BadInput, match=r"in train and in val.*found y"):
        Plan(Path("root"), splits, CLASSES)


def test_an_image_may_be_listed_several_times_in_one_split() -> None:
    assert plan_of(["x", "x"], [0, 0]).counts == {"train": 2}


def test_the_data_set_may_not_lie_among_the_images(tmp_path: Path) -> None:
    plan = replace(plan_of(["a/x", "b/x"], [0, 1]), root=tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "link", tmp_path / "absent" / ".."):
        with pytest.raises(BadInput, match="images are"):
            write_lists(plan, out)
    write_lists(plan, tmp_path / "out")
    with pytest.raises(BadInput, match="images are"):
        write_lists(replace(plan, walked=True), tmp_path / "out")


def test_a_path_that_no_list_can_hold_is_refused() -> None:
    for letter, width in (("x", 1), ("\u00fc", 2), ("\U0001f600", 4)):
        path = letter * (PATH_LIMIT_BYTES // width)
        assert plan_of([path], [0]).counts == {"train": 1}
        with pytest.raises(BadInput, match="a path is too long for a list"):
            plan_of([path + "x"], [0])
