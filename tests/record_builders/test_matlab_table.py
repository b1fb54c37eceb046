"""Tables as SciPy and MATLAB write them, and hostile bytes."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagenet_pipeline.record_builders.matlab_table import read_table
from scipy.io import loadmat, savemat

NUMBERS = st.one_of(st.integers(-(2**31), 2**31 - 1), st.floats(allow_nan=False), st.booleans())


def written(rows: list[tuple[object, ...]], compressed: bool) -> bytes:
    table = np.empty((len(rows), 1), dtype=[("a", object), ("long_name", object), ("c", object)])
    for place, row in zip(table, rows, strict=True):
        place[0] = row
    stream = io.BytesIO()
    savemat(stream, {"first": [1.0, 2.0], "synsets": table}, do_compression=compressed)
    return stream.getvalue()


@given(
    st.lists(st.tuples(NUMBERS, st.text(st.characters(max_codepoint=0xD7FF, min_codepoint=1)), NUMBERS), min_size=1),
    st.booleans(),
)
def test_what_scipy_writes_is_read(rows: list[tuple[object, ...]], compressed: bool) -> None:
    fields, found = read_table(written(rows, compressed), "synsets")
    assert fields == ["a", "long_name", "c"]
    assert [(float(a), text or None, float(c)) for a, text, c in rows] == [
        (row["a"], row["long_name"] or None, row["c"]) for row in found
    ]


def test_the_genuine_table_as_scipy_reads_it(unpacked: Callable[[str], Path]) -> None:
    content = (unpacked("imagenet_meta.tar.xz") / "imagenet_meta" / "ILSVRC2012_meta.mat").read_bytes()
    expected = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    fields, found = read_table(content, "synsets")
    assert tuple(fields) == expected.dtype.names
    assert len(found) == 1860
    for column in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "num_train_images"):
        assert [row[column] for row in found] == expected[column].tolist()


@given(st.data(), st.binary(min_size=1, max_size=8), st.booleans(), st.booleans())
def test_hostile_bytes_raise_nothing_else(data: st.DataObject, noise: bytes, cut: bool, compressed: bool) -> None:
    whole = written([(1, "n00000001", 2.5), (2, "n00000002", 3)], compressed)
    at = data.draw(st.integers(0, len(whole) - 1))
    with contextlib.suppress(ValueError, struct.error, zlib.error):
        assert read_table(whole[:at] + noise + (b"" if cut else whole[at + len(noise) :]), "synsets")[0]


def test_a_table_is_not_unpacked_without_limit() -> None:
    bomb = zlib.compress(struct.pack("<II", 14, 2**31) + bytes(2**25))
    content = bytes(124) + b"\0\1IM" + struct.pack("<II", 15, len(bomb)) + bomb
    with pytest.raises(ValueError, match=r"an element of 2,147,483,648 bytes is cut"):
        read_table(content, "synsets")
