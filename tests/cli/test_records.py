"""The verb verify: what it says it looked at, and how much it says of what is wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.records.recordio import frame

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """45 records of others whose images are none, and three that are too short."""
    path = tmp_path / "broken.rec"
    records = [struct.pack("<IfQQ", 0, 1.0, number, 0) + b"no image" for number in range(45)]
    path.write_bytes(b"".join(map(frame, [*records, *[b"short"] * 3])))
    return path


def test_no_more_than_twenty_lines_of_a_kind_are_said(call: Call, broken: Path) -> None:
    code, out, err = call("verify", broken)
    lines = out.splitlines()
    assert (code, err, len(lines)) == (1, "", 20 + 1 + 3 + 1)
    assert lines[19].startswith(f"{broken}, record 19, offset 760: image cannot be decoded")
    assert lines[20] == "... and 25 more like that"
    assert all("record too short" in line for line in lines[21:24])
    assert "48 wrong: 48 records, 45 without a checksum, 45 images decoded" in lines[24]
    code, out, _ = call("verify", broken, "--json")
    assert (code, len(json.loads(out)["problems"])) == (1, 48)


def test_frames_alone_are_looked_at_where_that_is_asked_for(call: Call, broken: Path) -> None:
    code, out, _ = call("verify", broken, "--no-decode")
    assert (code, len(out.splitlines())) == (1, 4)
    assert "3 wrong: 48 records, 45 without a checksum, no image decoded, the frames alone" in out


def test_what_is_no_record_file_is_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(b"hello world")
    code, out, err = call("verify", tmp_path / "a.rec")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "not a record file; expected a file that starts with bytes 0a23d7ce; found 68656c6c" in err
    (tmp_path / "a.rec").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    code, out, err = call("verify", tmp_path / "a.rec")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`" in err
    (tmp_path / "a.rec").write_bytes(b"")
    code, out, _ = call("verify", tmp_path / "a.rec")
    assert code == 1
    assert "holds no record" in out


def test_export_records_says_what_it_wrote(call: Call, data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, err = call("export-records", data_set, "--format", "webdataset", "--out", out, "--split", "val")
    assert (code, err) == (0, "")
    assert said == f"{out}: 6 val records, format webdataset\nfiles: classes.txt, val-000000.tar\n"
    code, said, err = call("export-records", data_set, "--format", "webdataset", "--out", out)
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert "is there already and is kept; give another --out, or remove it" in err
    code, said, _ = call("export-records", data_set, "--format", "rec", "--out", tmp_path / "rec", "--json")
    assert (code, json.loads(said)["records"]) == (0, {"train": 18, "val": 6, "test": 6})
    assert "imagenet-pipeline export-records" in call("export-records", "--help")[1]


def test_the_mean_image_is_written_beside_the_records(call: Call, data_set: Path, tmp_path: Path) -> None:
    place = tmp_path / "set"
    shutil.copytree(data_set, place)
    code, said, err = call("mean-image", place, "--size", 8)
    assert (code, err) == (0, "")
    assert said.startswith(f"{place}/mean.npy: 3x8x8, the mean of 18 training images; R, G, B ")
    code, said, _ = call("mean-image", place, "--size", 6, "--crop-fraction", 1, "--json")
    assert json.loads(said)["shape"] == [3, 6, 6]
    assert np.load(place / "mean.npy").shape == (3, 6, 6)
    assert json.loads((place / "mean_image.json").read_text())["size"] == [6, 6]
