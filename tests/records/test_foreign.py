"""Record files of other programs by their frames: nothing between records hides one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.records import foreign
from imagenet_pipeline.records.foreign import scan
from imagenet_pipeline.records.recordio import MAGIC_BYTES

Stock = Callable[..., bytes]


@given(
    rows=st.lists(st.tuples(st.integers(-99, 99), st.integers(0, 2**64 - 1), st.binary(max_size=20)), min_size=1),
    gaps=st.lists(st.sampled_from([b"", b"", b"garb", MAGIC_BYTES + b"\xff\xff\xff\x1f", b"\0" * 12]), min_size=1),
)
def test_every_record_is_found_whatever_lies_between(
    stock_record: Stock, tmp_path_factory: pytest.TempPathFactory, rows: list[Any], gaps: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("scanned") / "a.rec"
    images = [b"\xff\xd8" + MAGIC_BYTES * (number % 3) + image for _, number, image in rows]
    frames = [stock_record(label, number, image) for (label, number, _), image in zip(rows, images, strict=True)]
    between = [gaps[i % len(gaps)] for i in range(len(frames))]
    path.write_bytes(b"".join(part for pair in zip(frames, between, strict=True) for part in pair))
    found = scan(path)
    assert found.labels.tolist() == [label for label, _, _ in rows]
    assert found.numbers.tolist() == [number for _, number, _ in rows]
    content = path.read_bytes()
    spans = zip(found.starts.tolist(), found.ends.tolist(), strict=True)
    assert [content[start:end] for start, end in spans] == frames
    assert len(found.damage) == sum(gap != b"" for gap in between)


def test_a_record_at_the_edge_of_a_piece_is_found(
    stock_record: Stock, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path_factory.mktemp("edges") / "a.rec"
    first, last = stock_record(1, 1, b"\xff\xd8"), stock_record(2, 2, b"\xff\xd8")
    monkeypatch.setattr(foreign, "_PIECE_BYTES", 64)
    for gap in range(4, 200, 4):
        path.write_bytes(first + b"x" * gap + last)
        assert scan(path).labels.tolist() == [1, 2]
