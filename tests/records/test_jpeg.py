"""A JPEG is bounded by its markers before it is decoded; lost parts are told from harmless oddities."""

from __future__ import annotations

import contextlib
import io
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import jpeg
from imagenet_pipeline.records.image import Rejected, decode_rgb, read_header
from imagenet_pipeline.records.prepare import prepare

END = b"\xff\xd9"


def photo(mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    smooth = Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC).convert(mode)
    smooth.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def segment(marker: int, content: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(content)) + content


def first_scan(data: bytes) -> int:
    return data.index(b"\xff\xda")


def grey_frame(marker: int, width: int, height: int) -> bytes:
    """A JPEG up to its first scan, one component, with all the tables a progressive one needs."""
    tables = [segment(0xC4, bytes([table, 1] + [0] * 15 + [symbol])) for table, symbol in ((0, 0), (0x10, 0xE0))]
    frame = segment(marker, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0]))
    return b"".join((jpeg.START, segment(0xDB, b"\0" + b"\x01" * 64), frame, *tables))


def scan(start: int, end: int, high: int = 0, low: int = 0) -> bytes:
    return segment(0xDA, bytes([1, 1, 0, start, end, high << 4 | low]))


def many_scans(width: int, height: int, scans: int, marker: int = 0xC2) -> bytes:
    """Scans without content: decoders fill them in, block by block."""
    return grey_frame(marker, width, height) + scan(0, 0) + b"\0" + scan(1, 63, 1, 0) * scans + END


@pytest.mark.parametrize(
    "data",
    [
        many_scans(7000, 7000, 100),
        many_scans(16, 16, 1000),
        many_scans(4000, 4000, 40, marker=0xCA),
        many_scans(7000, 7000, 100).replace(b"\xff\xda", b"\0\xff\xff\xda"),
        jpeg.START + b"\x01\xff\x02" + many_scans(7000, 7000, 100)[2:],
        jpeg.START + segment(0xFE) * 20_000 + photo()[2:],
        jpeg.START + b"\xff" * 10**6 + photo()[2:],
        jpeg.START + bytes(10**6) + photo()[2:],
    ],
    ids=["scans", "tiny scans", "arithmetic", "garbage between", "garbage before", "segments", "fill", "zeros"],
)  # fmt: skip
def test_what_would_take_too_long_is_refused_at_once(data: bytes) -> None:
    start = time.perf_counter()
    for read in (read_header, decode_rgb, lambda it: prepare(it, 256, 95, False)):
        with pytest.raises((Rejected, BadInput), match=r"scans over .* too long|before the picture"):
            read(data)
    assert time.perf_counter() - start < 0.5


def test_the_usual_scans_of_the_largest_photo_are_not_too_many() -> None:
    of_three = segment(0xDA, bytes([3, 1, 1, 2, 1, 3, 1, 0, 0, 0]))
    usual = of_three + scan(1, 63) * 8 + of_three
    frame = segment(0xC2, struct.pack(">BHHB", 8, 7070, 7070, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]))
    assert jpeg.excess(jpeg.START + frame + usual, None) == ""
    assert "too long" in jpeg.excess(jpeg.START + frame + usual * 4, None)


def test_the_largest_file_is_looked_through_in_a_moment() -> None:
    data = many_scans(64, 64, 9) + np.random.default_rng(0).bytes(60 * 2**20)
    start = time.perf_counter()
    assert jpeg.excess(data, jpeg.read_head(data)) == ""
    assert time.perf_counter() - start < 0.5


def test_a_sequential_picture_may_not_have_many_scans_either() -> None:
    data = photo()
    at = first_scan(data)
    separate = data[:at] + scan(0, 63) + data[at + 14 :]  # of one component, so that others may follow
    assert jpeg.excess(separate, jpeg.read_head(separate)) == ""
    hostile = separate.removesuffix(END) + scan(0, 63) * 600 + END
    assert "too long" in jpeg.excess(hostile, jpeg.read_head(hostile))


def test_scans_of_a_thumbnail_or_after_the_end_do_not_count() -> None:
    thumbnail = many_scans(7000, 7000, 100)[:4000]
    data = photo(progressive=True)
    for changed in (data[:2] + segment(0xE1, thumbnail) + data[2:], data + thumbnail):
        assert jpeg.excess(changed, jpeg.read_head(changed)) == ""
        assert np.array_equal(decode_rgb(changed), decode_rgb(data))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_usual_kinds_are_neither_too_slow_nor_damaged(mode: str, options: dict[str, object]) -> None:
    data = photo(mode, **options)
    head = jpeg.read_head(data)
    assert head is not None
    assert (head.width, head.height, head.components) == (160, 120, {"L": 1, "RGB": 3, "CMYK": 4}[mode])
    assert head.single_scan == ("progressive" not in options)
    assert (jpeg.excess(data, head), jpeg.damage(data)) == ("", "")
    assert "damaged" not in prepare(data, 0, 95, False).actions


HARMLESS = {
    "colour profile": segment(0xE2, b"ICC_PROFILE\0\x05\x02" + bytes(40)),
    "stray bytes": b"\0\x01\x02stray",
    "JFIF of its own": segment(0xE0, b"JFIF\0\x07\x07\0\0\x01\0\x01\0\0"),
    "colour transform": segment(0xEE, b"Adobe\0\x64\0\0\0\0\x09"),
}


@pytest.mark.parametrize("oddity", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_harmless_oddities_are_no_damage_and_hide_none(mode: str, oddity: bytes) -> None:
    data = photo(mode)
    scan_at = first_scan(data)
    odd = data[:scan_at] + oddity + data[scan_at:]
    assert "damaged" not in prepare(odd, 0, 95, False).actions
    half = (len(odd) + scan_at) // 2
    with pytest.raises(Rejected, match=r"damaged: .*premature end"):
        prepare(odd[:half] + END, 0, 95, False)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("pass_through", [False, True])
def test_lost_parts_are_refused_or_kept_and_named(mode: str, progressive: bool, pass_through: bool) -> None:
    data = photo(mode, progressive=progressive)
    half = len(data) // 2
    for damaged in (data[:half] + END, data[:half] + bytes(len(data) - half - 2) + END):
        with pytest.raises(Rejected, match=r"^damaged: "):
            prepare(damaged, 64, 95, pass_through)
        kept = prepare(damaged, 64, 95, pass_through, keep_damaged=True)
        assert "damaged" in kept.actions
        assert np.array_equal(decode_rgb(kept.data), kept.pixels)


def test_the_first_picture_of_several_in_one_file_is_looked_at() -> None:
    first, second = Image.open(io.BytesIO(photo())), Image.open(io.BytesIO(photo("L")))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    data = buffer.getvalue()
    assert prepare(data, 0, 95, False).actions == ("mpo",)
    end = data.index(END + jpeg.START)
    with pytest.raises(Rejected, match="damaged"):
        prepare(data[: end // 2] + data[end:], 0, 95, False)


MARKERS = st.builds(segment, st.integers(0xC0, 0xFE), st.binary(max_size=24))


@given(st.lists(st.one_of(MARKERS, st.binary(max_size=9), st.just(photo()[2:]), st.just(END)), max_size=8))
def test_any_sequence_of_markers_is_used_or_refused(parts: list[bytes]) -> None:
    data = jpeg.START + b"".join(parts)
    jpeg.excess(data, jpeg.read_head(data))
    jpeg.damage(data)
    with contextlib.suppress(Rejected):
        assert prepare(data, 0, 95, False).pixels.shape[2] == 3


def test_a_frame_too_short_for_its_size_is_no_head() -> None:
    assert jpeg.read_head(jpeg.START + b"\xff\xc0\0\2\xff\xda\0\0\1") is None
