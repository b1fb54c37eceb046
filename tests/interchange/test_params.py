"""The .params reader against files MXNet wrote, and against everything that can be wrong with one."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as numpy_strategies
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange import params
from imagenet_pipeline.interchange.params import read_list, read_params, write_list, write_params

MUTATIONS = 1_000_000 if os.environ.get("IMAGENET_PIPELINE_LONG") == "1" else 6_000
STOCK_TYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")
DTYPES = [*STOCK_TYPES, "bool", "int16", "uint16", "uint32", "uint64"]

arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=20),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: numpy_strategies.arrays(dtype, numpy_strategies.array_shapes(max_dims=5, max_side=4, min_side=0))
    ),
    max_size=5,
)


def parse(content: bytes) -> dict[str, np.ndarray]:
    return read_list(io.BytesIO(content), len(content), "x.params")


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def content_of(written: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    write_list(stream, written)
    return stream.getvalue()


@given(arrays)
def test_what_is_written_is_read(written: dict[str, np.ndarray]) -> None:
    assert_equal(parse(content_of(written)), written)


def test_mxnet_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path, mx: Any) -> None:
    random = np.random.default_rng(0)
    written = {f"arg:{kind}": (random.random((2, 3, 1, 4)) * 100).astype(kind) for kind in STOCK_TYPES}
    write_params(tmp_path / "ours.params", written)
    stock = mx.nd.load(str(tmp_path / "ours.params"))
    assert_equal({name: array.asnumpy() for name, array in stock.items()}, written)
    mx.nd.save(str(tmp_path / "stock.params"), stock)
    assert_equal(read_params(tmp_path / "stock.params"), written)
    assert (tmp_path / "ours.params").read_bytes() == (tmp_path / "stock.params").read_bytes()


def test_a_list_without_names(tmp_path: Path, mx: Any) -> None:
    mx.nd.save(str(tmp_path / "list"), [mx.nd.arange(3), mx.nd.ones((2, 2))])
    assert_equal(
        read_params(tmp_path / "list"),
        {"0": np.arange(3, dtype=np.float32), "1": np.ones((2, 2), np.float32)},
    )


def test_the_oldest_form(unpacked: Callable[[str], Path]) -> None:
    path = next(unpacked("mxnet_files_shared.tar.xz").rglob("legacy_ndarray.v0"))
    assert_equal(read_params(path), {str(number): np.arange(128, dtype=np.float32) for number in range(6)})


def one_array(head: bytes, kind: int, numbers: bytes) -> bytes:
    device = struct.pack("<ii", 2, 3)
    return struct.pack("<QQQ", 0x112, 0, 1) + head + device + struct.pack("<i", kind) + numbers + struct.pack("<Q", 0)


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (struct.pack("<III", 2, 1, 2), (1, 2)),
        (struct.pack("<Iiqq", params.V1, 2, 1, 2), (1, 2)),
        (struct.pack("<Iiiqq", params.V2, 0, 2, 1, 2), (1, 2)),
        (struct.pack("<Iiiq", params.V3, 0, 1, 2), (2,)),
    ],
)
def test_every_form_of_an_array(head: bytes, shape: tuple[int, ...]) -> None:
    numbers = np.array([1.5, -2], "<f4")
    assert_equal(parse(one_array(head, 0, numbers.tobytes())), {"0": numbers.reshape(shape)})


def test_one_number_without_axes_is_a_numpy_shape_only() -> None:
    assert parse(one_array(struct.pack("<Iii", params.V3, 0, 0), 6, struct.pack("<q", 7)))["0"] == 7
    with pytest.raises(BadInput, match="before it had any values"):
        parse(one_array(struct.pack("<Iii", params.V2, 0, 0), 6, struct.pack("<q", 7)))


def test_bfloat16_becomes_float32_of_the_same_value() -> None:
    content = one_array(struct.pack("<Iiiq", params.V2, 0, 1, 3), 12, struct.pack("<3H", 0x3F80, 0xC000, 0x7F80))
    assert_equal(parse(content), {"0": np.array([1, -2, np.inf], np.float32)})


V2_HEAD = struct.pack("<Iiiq", params.V2, 0, 1, 2)
GOOD = one_array(V2_HEAD, 0, bytes(8))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file ends before its list does"),
        (b"PK\x03\x04" + bytes(60), "not an MXNet .params file"),
        (GOOD[:-3], "the file ends before its list does"),
        (GOOD[:-9], "larger than the rest"),
        (GOOD + b"\0", "bytes follow the end"),
        (one_array(struct.pack("<Iiiq", params.V2, 1, 1, 2), 0, bytes(8)), "not stored dense"),
        (one_array(struct.pack("<Iiiq", params.V2, 0, 1, -2), 0, bytes(8)), "an impossible shape"),
        (one_array(struct.pack("<Iiiq", params.V2, 0, 1, 2**50), 0, bytes(8)), "larger than the rest of the file"),
        (one_array(struct.pack("<Iiiqq", params.V2, 0, 2, 2**62, 2**62), 0, bytes(8)), "an impossible shape"),
        (one_array(struct.pack("<Iiiqq", params.V2, 0, 2, 0, 2**62), 0, bytes(8)), "an impossible shape"),
        (one_array(struct.pack("<Iii", params.V2, 0, 2**31 - 1), 0, bytes(8)), "an impossible shape"),
        (one_array(struct.pack("<I", 2**32 - 1), 0, bytes(8)), "an impossible shape"),
        (one_array(V2_HEAD, 13, bytes(8)), "unknown number type"),
        (struct.pack("<QQQ", 0x112, 0, 2**63) + GOOD[24:], "more arrays than it has room for"),
        (GOOD[:-8] + struct.pack("<Q", 2**62), "more names than it has room for"),
        (GOOD[:-8] + struct.pack("<QQ", 1, 2**63) + b"a", "name is too long"),
        (GOOD[:-8] + struct.pack("<QQ", 1, 1) + b"\xff", "not UTF-8"),
        (GOOD[:-8] + struct.pack("<QQ", 1, 7) + b"\x1b[2Jabc", "cannot be printed"),
        (GOOD[:-8] + struct.pack("<QQ", 1, 3) + b"a\nb", "cannot be printed"),
        (GOOD[:-8] + struct.pack("<QQBQ", 2, 1, 97, 1), "the file ends before its list does"),
        (GOOD[:-8] + struct.pack("<QQBQB", 2, 1, 97, 1, 98), "does not name each array"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(content: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        parse(content)
    assert "\n" not in str(caught.value)


def test_a_name_that_stands_twice_is_refused() -> None:
    content = content_of({"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)})
    with pytest.raises(BadInput, match="'a'"):
        parse(content[:-1] + b"a")


@pytest.mark.parametrize("array", [np.float32(1), np.zeros(2, np.complex64), np.zeros(2, "U3")])
def test_what_the_form_cannot_hold_is_not_written(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        content_of({"a": np.asarray(array)})


def test_folders_devices_and_absent_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "absent", tmp_path / "pipe"):
        with pytest.raises(BadInput):
            read_params(path)


def damaged(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged copies: cut short, bytes changed, numbers replaced by extreme ones, pieces moved."""
    random = np.random.default_rng(seed)
    extremes = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, params.V1, params.V3, 12, 0x112]
    for number in range(count):
        copy = bytearray(content)
        # Most of a real file is numbers: half of the blows fall where the structure is.
        place = int(random.integers(len(copy) if number % 2 else min(len(copy), 120)))
        match number % 4:
            case 0:
                del copy[place:]
            case 1:
                copy[place] ^= 1 << int(random.integers(8))
            case 2:
                width = 4 + 4 * int(random.integers(2))
                value = extremes[int(random.integers(len(extremes)))] % 2 ** (8 * width)
                copy[place : place + width] = value.to_bytes(width, "little")
            case _:
                other = int(random.integers(len(copy)))
                copy[place : place + 16] = copy[other : other + 16]
        yield bytes(copy)


def test_no_damage_crashes_the_reader_or_fills_the_memory(unpacked: Callable[[str], Path]) -> None:
    old = next(unpacked("mxnet_files_shared.tar.xz").rglob("legacy_ndarray.v0")).read_bytes()
    random = np.random.default_rng(0)
    new = content_of({f"arg:conv{n}_weight": random.standard_normal((2, 3, n)).astype("f4") for n in range(1, 6)})
    refused = tried = 0
    tracemalloc.start()
    try:
        for content in (old, new):
            for broken in damaged(content, MUTATIONS // 2, seed=1):
                tried += 1
                try:
                    parse(broken)
                except BadInput:
                    refused += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused > tried / 4, "the blows must land"
    assert peak < 2**20, "never more than a little beside the file"
