"""A record file by itself, read where a data set is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.image import encode_jpeg
from imagenet_pipeline.records.lists import photos_of
from imagenet_pipeline.records.lone import read_records
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet

Stock = Callable[..., bytes]
PHOTO = encode_jpeg(np.full((8, 8, 3), 90, np.uint8), 90)


@pytest.fixture
def faces(stock_record: Stock, tmp_path: Path) -> Path:
    """Labels 7, 3 and 7 after a header without an image."""
    frames = [stock_record((4, 5), 0, b""), *(stock_record(label, 9, PHOTO) for label in (7, 3, 7))]
    (tmp_path / "a.rec").write_bytes(b"".join(frames))
    return tmp_path / "a.rec"


def test_it_is_whatever_split_is_asked_for(faces: Path) -> None:
    data = read_records(faces)
    assert (data.counts, data.count("val"), data.count("train")) == ({"test": 3}, 3, 3)
    assert data.classes.ids == ("3", "7")
    assert data.digest == hashlib.sha256(faces.read_bytes()).hexdigest()
    assert np.isnan([*data.mean, *data.std]).all()
    with RecordSet.of(data, "val") as records:
        assert [records.read(position).labels for position in range(3)] == [(1.0,), (0.0,), (1.0,)]
        assert records.first_labels().tolist() == [1, 0, 1]
        assert not records.read(0).checked
    with pytest.raises(BadInput, match="a record file names no photos"):
        next(photos_of(data, "test"))


def test_a_folder_is_a_data_set_as_ever(data_set: Path) -> None:
    data = read_records(data_set)
    assert data == read_data_set(data_set)
    assert (data.count("val"), data.count("no")) == (6, 0)
    with RecordSet.of(data, "val") as records:
        assert len(records) == 6


def test_to_train_on_it_takes_a_data_set(faces: Path) -> None:
    advice = f"imagenet-pipeline build records --train {faces} --out {faces.parent / 'a-data'}"
    with pytest.raises(BadInput, match=advice):
        read_data_set(faces)
    (faces.parent / "a.zip").write_bytes(b"PK")
    with pytest.raises(BadInput, match="a file, not a data set"):
        read_data_set(faces.parent / "a.zip")


def test_damage_is_an_error_and_no_gap(faces: Path, stock_record: Stock) -> None:
    faces.write_bytes(faces.read_bytes() + b"garbage." + stock_record(3, 1, PHOTO)[:-4])
    with pytest.raises(BadInput, match=r"record 4, offset \d+: no record starts here.*2 such places.*--max-rejects 2"):
        read_records(faces)
