"""The development kit of 2012, its MATLAB table and its archive."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from imagenet_pipeline.record_builders.imagenet_devkit import CLASSES, parse_devkit, validation_labels

from imagenet_pipeline.errors import BadInput

Bytes = Callable[..., bytes]


def test_the_genuine_tables_of_both_years_give_the_same_classes(
    unpacked: Callable[[str], Path], tmp_path: Path
) -> None:
    meta = unpacked("imagenet_meta.tar.xz") / "imagenet_meta"
    expected = parse_devkit(meta / "devkit" / "data")
    for name, table in (("meta.mat", "ILSVRC2012_meta.mat"), ("meta_clsloc.mat", "devkit/data/meta_clsloc.mat")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes((meta / table).read_bytes())
        found = parse_devkit(folder)
        assert found.source == name
        assert found.classes.ids == expected.classes.ids
        np.testing.assert_array_equal(found.label_of_id, expected.label_of_id)
        assert found.classes.names[0] == "tench, Tinca tinca"


def test_the_packed_kit_of_2012(archives: Path) -> None:
    kit = parse_devkit(archives / "ILSVRC2012_devkit_t12.tar.gz")
    assert kit.classes.ids == ("n00000001", "n00000002", "n00000003")
    assert kit.classes.names[0] == "name 1, other"
    assert validation_labels(kit).tolist() == [2, 0, 1, 1, 0, 2]


def test_a_damaged_packed_kit_is_one_line(archives: Path) -> None:
    path = archives / "ILSVRC2012_devkit_t12.tar.gz"
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:40] + bytes(40) + whole[80:]):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"devkit_t12.tar.gz: (not a development kit|cannot be read)"):
            parse_devkit(path)


def test_a_packed_kit_may_not_be_a_bomb(tar_of: Bytes, tmp_path: Path) -> None:
    path = tmp_path / "devkit.tar.gz"
    path.write_bytes(tar_of({"readme.txt": bytes(2**24 + 1)}, "w:gz"))
    with pytest.raises(BadInput, match=r"too large for a development kit; found readme\.txt"):
        parse_devkit(path)
    path.write_bytes(tar_of({"x/readme.txt": b""}, "w:gz"))
    with pytest.raises(BadInput, match=f"lacks a file; expected {CLASSES}"):
        parse_devkit(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "n00000001", "a", 0), (1, "n00000002", "b", 0)], "the class is given twice"),
        ([(1, "n00000001", "a", 0), (3, "n00000002", "b", 0)], "not 1..N"),
        ([(1, "n01", "a", 0)], "row 1: the synset is malformed"),
        ([("one", "n00000001", "a", 0)], "row 1: the synset is malformed"),
        ([(1, "n00000001", 7, 0)], "row 1: the synset is malformed"),
        ([(1, "n00000001", "a\x1b[2J", 0)], "row 1: the synset is malformed"),
    ],
)
def test_a_bad_table_is_named(rows: list[tuple[object, ...]], message: str, meta_mat: Bytes, tmp_path: Path) -> None:
    (tmp_path / "meta.mat").write_bytes(meta_mat(rows))
    with pytest.raises(BadInput, match=message):
        parse_devkit(tmp_path)


@settings(max_examples=200)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.booleans())
@example(at=160, noise=b"\x00", cut=False)  # a table of no rows
def test_a_hostile_table_raises_nothing_else(
    meta_mat: Bytes, tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("meta")
    whole = meta_mat([(1, "n00000001", "a", 0), (2, "n00000002", "b", 0)])
    at %= len(whole)
    (folder / "meta.mat").write_bytes(whole[:at] + noise + (b"" if cut else whole[at + len(noise) :]))
    with contextlib.suppress(BadInput):
        assert len(parse_devkit(folder).classes)
