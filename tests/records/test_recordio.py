"""The container and the image record, byte for byte as stock MXNet has them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput, Damaged
from imagenet_pipeline.records.recordio import (
    LABEL_LIMIT,
    MAGIC_BYTES,
    frame,
    next_start,
    pack,
    read_frame,
    skip_frame,
    unpack,
)

PIECES = st.lists(st.one_of(st.just(MAGIC_BYTES), st.binary(max_size=9)), max_size=12)
PAYLOADS = PIECES.map(b"".join)


def awkward_payloads() -> list[bytes]:
    """Lengths 0..9, and the magic first, last, doubled, and at every alignment."""
    lengths = [bytes(range(n)) for n in range(10)]
    shifts = [bytes(n) + MAGIC_BYTES + bytes(m) for n in range(9) for m in range(6)]
    return [*lengths, *shifts, MAGIC_BYTES * 2, MAGIC_BYTES * 3 + b"x", b"ab" + MAGIC_BYTES * 3]


def test_a_plain_frame_has_magic_length_payload_and_pad() -> None:
    assert frame(b"abcde") == bytes.fromhex("0a23d7ce 05000000") + b"abcde\0\0\0"


def test_a_magic_at_an_aligned_offset_splits_the_record() -> None:
    first, last = bytes.fromhex("0a23d7ce 04000020"), bytes.fromhex("0a23d7ce 02000060")
    assert frame(b"abcd" + MAGIC_BYTES + b"ef") == first + b"abcd" + last + b"ef\0\0"


@given(PAYLOADS)
def test_what_is_framed_reads_back(payload: bytes) -> None:
    framed = frame(payload)
    assert len(framed) % 4 == 0
    assert read_frame(framed) == (payload, len(framed))
    assert skip_frame(framed, 0) == len(framed)


@given(PAYLOADS)
def test_out_of_a_memoryview_comes_a_part_of_it_unless_the_record_is_split(payload: bytes) -> None:
    framed = memoryview(frame(payload))
    found, following = read_frame(framed)
    assert (found, following) == (payload, len(framed))
    assert isinstance(found, memoryview) == (framed[7] >> 5 == 0)


def scan(buffer: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and record of every frame."""
    offset = 0
    while offset < len(buffer):
        record, following = read_frame(buffer, offset)
        yield offset, record
        offset = following


@given(st.lists(PAYLOADS, max_size=6))
def test_scanning_gives_every_record_and_its_offset(payloads: list[bytes]) -> None:
    frames = [frame(payload) for payload in payloads]
    offsets = np.cumsum([0, *(len(framed) for framed in frames)])[:-1].tolist()
    buffer = b"".join(frames)
    assert list(scan(buffer)) == list(zip(offsets, payloads, strict=True))
    assert all(next_start(buffer, offset) == offset for offset in offsets)


@given(PAYLOADS, st.integers(min_value=1, max_value=100))
def test_a_cut_frame_is_damaged(payload: bytes, missing: int) -> None:
    framed = frame(payload)
    with pytest.raises(Damaged):
        read_frame(framed[: max(0, len(framed) - missing)])


@given(st.one_of(st.binary(max_size=80), PIECES.map(lambda pieces: MAGIC_BYTES.join([b"", *pieces]))))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    for parse in (lambda: list(scan(data)), lambda: skip_frame(data, 0), lambda: unpack(data)):
        with contextlib.suppress(Damaged):
            parse()


def test_stock_mxnet_reads_ours_and_we_read_stock(tmp_path: Path, mx: Any) -> None:
    payloads = awkward_payloads()
    stock = mx.recordio.MXRecordIO(str(tmp_path / "stock.rec"), "w")
    for payload in payloads:
        stock.write(payload)
    stock.close()
    ours = b"".join(frame(payload) for payload in payloads)
    assert (tmp_path / "stock.rec").read_bytes() == ours
    assert [data for _, data in scan(ours)] == payloads
    reader = mx.recordio.MXRecordIO(str(tmp_path / "stock.rec"), "r")
    assert [reader.read() for _ in payloads] == payloads


def test_ten_thousand_payloads_with_the_magic_inside(tmp_path: Path, mx: Any) -> None:
    generator = np.random.default_rng(3)
    payloads = []
    for _ in range(10_000):
        before, after = (generator.bytes(int(n)) for n in generator.integers(0, 12, 2))
        payloads.append(before + MAGIC_BYTES + after)
    (tmp_path / "ours.rec").write_bytes(b"".join(frame(payload) for payload in payloads))
    reader = mx.recordio.MXRecordIO(str(tmp_path / "ours.rec"), "r")
    assert [reader.read() for _ in payloads] == payloads


@pytest.mark.parametrize("labels", [(3.0,), (1.0, 2.5), (0.5,) * 20])
def test_a_packed_record_unpacks_and_is_checked(labels: tuple[float, ...]) -> None:
    record = unpack(pack(labels, 2**40, b"image"))
    assert (record.labels, record.number, record.image, record.checked) == (labels, 2**40, b"image", True)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=3), st.binary(max_size=60), st.booleans())
def test_a_record_is_the_same_out_of_bytes_and_out_of_a_memoryview(
    labels: list[float], image: bytes, checked: bool
) -> None:
    packed = pack(labels, 5, image, checked)
    record, looked = unpack(packed), unpack(memoryview(packed))
    assert looked == record == (tuple(labels), 5, image, checked)
    assert (record.image, type(looked.image), type(looked.content)) == (image, bytes, memoryview)
    if checked and image:
        with pytest.raises(Damaged, match="checksum"):
            unpack(memoryview(packed[:-1] + bytes([packed[-1] ^ 1])))


@pytest.mark.filterwarnings("ignore:tostring")
@pytest.mark.parametrize("labels", [4.0, [1.0, 2.0, 3.5]])
def test_a_stock_record_is_read_unchecked(labels: float | list[float], mx: Any) -> None:
    header = mx.recordio.IRHeader(0, labels, 7, 0)
    record = unpack(mx.recordio.pack(header, b"image"))
    assert (record.labels, record.number, record.image) == (tuple(np.atleast_1d(labels)), 7, b"image")
    assert not record.checked


def test_stock_mxnet_unpacks_ours(mx: Any) -> None:
    header, image = mx.recordio.unpack(pack((5.0,), 9, b"image"))
    assert (header.label, header.id, image) == (5.0, 9, b"image")
    header, image = mx.recordio.unpack(pack((5.0, 6.0), 9, b"image"))
    assert (header.label.tolist(), image) == ([5.0, 6.0], b"image")


@given(st.binary(min_size=1, max_size=60), st.data())
def test_no_flipped_bit_passes_for_a_checked_record(image: bytes, data: st.DataObject) -> None:
    packed = bytearray(pack((2.0,), 5, image))
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    packed[bit // 8] ^= 1 << bit % 8
    try:
        record = unpack(bytes(packed))
    except Damaged:
        return
    assert not record.checked  # the flip was in the tag


def test_absurd_label_counts_are_refused() -> None:
    for flag in (LABEL_LIMIT + 1, 2**32 - 1, 3):
        with pytest.raises(Damaged, match="labels"):
            unpack(struct.pack("<IfQQ", flag, 0.0, 0, 0) + bytes(8))


def test_a_record_too_long_for_the_format_is_refused() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 2**29

    with pytest.raises(BadInput, match="too long"):
        frame(Long())
    for labels in ((), (0.0,) * (LABEL_LIMIT + 1)):
        with pytest.raises(BadInput, match="labels"):
            pack(labels, 0, b"")
