"""Looking into data sets and lone record files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.inspect import inspect
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import frame, pack
from imagenet_pipeline.records.verify import verify


def test_a_data_set_is_described(data_set: Path) -> None:
    found = inspect(data_set, range(2, 4))
    assert (found.split, found.count, found.classes) == ("train", 18, 3)
    assert found.splits == {"train": 18, "val": 6, "test": 6}
    assert found.class_counts == {"cat": 6, "dog": 6, "emu": 6}
    assert [(r.position, r.number, r.class_name) for r in found.records] == [(2, 2, "Emu"), (3, 3, "Cat")]
    assert min(found.records[0].width, found.records[0].height) <= 32
    assert found.records[1].checked
    assert inspect(data_set, range(4, 99), split="val").records[-1].position == 5


def test_records_of_others_are_described(unpacked: Callable[[str], Path]) -> None:
    folder = unpacked("mxnet_files_shared.tar.xz")
    (vector,) = (path.with_suffix(".rec") for path in folder.rglob("*.idx"))
    found = inspect(vector, range(1))
    assert (found.count, found.classes, found.mean) == (12, None, None)
    assert len(found.records[0].labels) == 9
    assert (found.records[0].checked, found.class_counts) == (False, {})


def test_records_without_an_image_are_shown_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(frame(pack((1.5, 2.0), 3, b"nothing")))
    found = inspect(tmp_path / "a.rec")
    assert (found.records[0].width, found.records[0].labels) == (0, (1.5, 2.0))
    (tmp_path / "none.rec").touch()
    assert inspect(tmp_path / "none.rec").records == []


@pytest.mark.parametrize("chosen", [range(0, 10**11), range(3, 10**11)])
def test_a_range_far_past_the_end_is_cut_at_once(data_set: Path, chosen: range) -> None:
    assert [r.position for r in inspect(data_set, chosen, "val").records] == list(range(6))[chosen.start :]


def test_records_beyond_the_end_are_refused(data_set: Path) -> None:
    with pytest.raises(BadInput, match=r"records 20:30 are outside 0\.\.17"):
        inspect(data_set, range(20, 30))


@pytest.mark.parametrize("ending", ["lst", "idx"])
def test_a_list_or_index_is_no_record_file(data_set: Path, ending: str) -> None:
    for look in (inspect, verify):
        with pytest.raises(BadInput, match=r"not a record file; expected a \.rec file"):
            look(data_set / f"val.{ending}")


def test_classes_are_counted_by_the_list_unless_it_was_changed(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record but those shown is read for it."""
    folder = copytree(data_set, tmp_path / "set")
    counts = inspect(folder).class_counts
    for change in (lambda text: text.replace("\t0\t", "\t1\t"), lambda _: ""):
        path = folder / "train.lst"
        path.write_text(change(path.read_text()))
        assert inspect(folder).class_counts == counts
    monkeypatch.delattr(RecordSet, "first_labels")
    assert inspect(data_set).class_counts == counts == {"cat": 6, "dog": 6, "emu": 6}
