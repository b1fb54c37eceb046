"""Lists: ours, and those of others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import recordio
from imagenet_pipeline.records.lists import LINE_LIMIT_BYTES, Row, _row, read_list, write_list
from imagenet_pipeline.records.recordio import number_columns


def test_a_list_survives_its_file(tmp_path: Path) -> None:
    write_list(tmp_path / "a.lst", [0, 5], [3, 1], ["a b/c.jpg", "ü.jpg"])
    assert (tmp_path / "a.lst").read_text() == "0\t3\ta b/c.jpg\n5\t1\tü.jpg\n"
    assert read_list(tmp_path / "a.lst") == [Row(0, (3.0,), "a b/c.jpg"), Row(5, (1.0,), "ü.jpg")]


def test_a_byte_order_mark_is_no_part_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "a.lst").write_text("0\t3\ta.jpg\r\n", encoding="utf-8-sig", newline="")
    assert read_list(tmp_path / "a.lst") == [Row(0, (3.0,), "a.jpg")]


def test_lists_of_others(unpacked: Callable[[str], Path]) -> None:
    found = {path.parent.name + path.stem: read_list(path) for path in _lists(unpacked)}
    assert sorted(len(rows) for rows in found.values()) == [12, 1000, 10_000]
    assert {len(row.labels) for rows in found.values() for row in rows} == {1, 9}


@pytest.mark.parametrize(
    "line", ["1\t2", "x\t1\tp", "1\ty\tp", "-1\t1\tp", "1\t1\t ", "1 2 p", "1\t2\tp\0q", "1.5\t2\tp"]
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.lst").write_text(f"0\t1\tp\n{line}\n")
    with pytest.raises(BadInput, match=r"a\.lst:2: the line is malformed"):
        read_list(tmp_path / "a.lst")


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_list(tmp_path / "absent.lst")
    os.mkfifo(tmp_path / "pipe.lst")
    with pytest.raises(BadInput, match="not a regular file"):
        read_list(tmp_path / "pipe.lst")
    (tmp_path / "a.lst").write_bytes(b"0\t1\t" + b"p" * LINE_LIMIT_BYTES)
    with pytest.raises(BadInput, match="the line is too long"):
        read_list(tmp_path / "a.lst")


@given(st.binary(max_size=60))
def test_any_line_is_a_row_or_refused(line: bytes) -> None:
    try:
        row = _row(line, Path("x"), 1)
    except BadInput:
        return
    assert row.index >= 0
    assert row.labels
    assert row.path


def _lists(unpacked: Callable[[str], Path]) -> list[Path]:
    return sorted(unpacked("mxnet_files_shared.tar.xz").rglob("*.lst"))


NUMBER = st.integers(0, 10**18 - 1).map(str) | st.sampled_from(
    ["", "0" * 18, "0" * 19, "9" * 19, "-1", "1.0", " 1", "x"]
)
LINE = st.tuples(NUMBER, NUMBER, st.sampled_from(["a.jpg", "b c/ü.jpg"])).map("\t".join) | st.text(
    "0 1\t\ra", max_size=8
)


@given(st.lists(LINE, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 40))
def test_columns_are_those_of_the_rows_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: list[str], ending: str, ended: bool, piece_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "columns.lst"
    path.write_bytes((ending.join(text) + ending * ended).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordio, "PIECE_BYTES", piece_bytes)
        try:
            columns = [tuple(row) for piece in number_columns(path, 3) for row in piece.tolist()]
        except ValueError:
            return
    lines = text if ended or text[-1] else text[:-1]
    assert all(len(line.split("\t")) == 3 for line in lines)
    assert columns == [(int(number), int(label)) for number, label, _ in (line.split("\t") for line in lines)]


def test_a_plain_list_has_its_columns(tmp_path: Path) -> None:
    numbers, labels = [*range(3), 10**18 - 1], [7, 0, 999, 1]
    write_list(tmp_path / "a.lst", numbers, labels, ["a.jpg"] * 4)
    (columns,) = number_columns(tmp_path / "a.lst", 3)
    assert columns.T.tolist() == [numbers, labels]
