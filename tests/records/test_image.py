"""Each image is used as it is meant or refused with a reason, and limits hold before decoding."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.image import (
    Rejected,
    decode_rgb,
    encode_jpeg,
    read_header,
    shrink,
    turn,
)
from imagenet_pipeline.records.prepare import prepare


def encoded(kind: str, mode: str, size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes whose header claims any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L")])
def test_a_plain_jpeg_that_is_small_enough_keeps_its_bytes(kind: str, mode: str) -> None:
    data = encoded(kind, mode)
    for resize in (0, 30, 100):
        prepared = prepare(data, resize, 95, pass_through=False)
        assert (prepared.data, prepared.actions) == (data, ("kept",))
        assert np.array_equal(prepared.pixels, decode_rgb(data))


def test_a_larger_one_is_shrunk_and_keeps_its_aspect() -> None:
    prepared = prepare(encoded("JPEG", "RGB", (400, 300)), 32, 95, pass_through=False)
    assert prepared.actions == ("resized",)
    assert decode_rgb(prepared.data).shape == (32, 43, 3)
    kept = prepare(encoded("JPEG", "RGB", (400, 300)), 32, 95, pass_through=True)
    assert kept.actions == ("kept",)
    converted = prepare(encoded("JPEG", "CMYK", (400, 300)), 32, 95, pass_through=True)
    assert (converted.actions, converted.pixels.shape) == (("cmyk",), (300, 400, 3))


@pytest.mark.parametrize(
    ("kind", "mode", "actions"),
    [
        ("JPEG", "CMYK", ("cmyk",)),
        ("PNG", "RGB", ("png",)),
        ("PNG", "RGBA", ("png", "alpha")),
        ("PNG", "LA", ("png", "alpha")),
        ("PNG", "P", ("png", "palette")),
        ("PNG", "1", ("png", "bilevel")),
        ("PNG", "I;16", ("png", "16-bit")),
        ("BMP", "RGB", ("bmp",)),
        ("WEBP", "RGB", ("webp",)),
        ("TIFF", "RGB", ("tiff",)),
        ("PPM", "L", ("ppm",)),
    ],
)
def test_other_kinds_are_converted_and_named(kind: str, mode: str, actions: tuple[str, ...]) -> None:
    data = encoded(kind, mode)
    prepared = prepare(data, 0, 95, pass_through=False)
    assert prepared.actions == actions
    assert decode_rgb(prepared.data).shape == (30, 40, 3)
    if mode not in ("I;16", "RGBA", "LA"):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
        assert np.abs(decode_rgb(data) - expected).max() <= (3 if kind == "WEBP" else 2)


def test_a_plain_png_is_passed_through_and_others_are_not() -> None:
    assert prepare(encoded("PNG", "RGB"), 0, 95, pass_through=True).actions == ("kept",)
    for mode in ("RGBA", "P", "I;16"):
        assert prepare(encoded("PNG", mode), 0, 95, pass_through=True).actions != ("kept",)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_are_done_as_pillow_does_them(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("PNG", "RGB", exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(turn(decode_rgb(data), orientation), turned)
    assert ("exif-turned" in prepare(data, 0, 95, False).actions) == (orientation != 1)


def test_shrinking_a_sliver_keeps_it_at_least_as_wide_as_asked() -> None:
    assert shrink(np.zeros((40, 4000, 3), np.uint8), 10).shape == (10, 1000, 3)
    assert min(shrink(np.zeros((301, 300, 3), np.uint8), 299).shape[:2]) == 299


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not an image"),
        (b"<!DOCTYPE html><html></html>", "text"),
        (b" \n<svg xmlns='http://www.w3.org/2000/svg'/>", "text"),
        (encoded("GIF", "P"), "GIF"),
        (huge_png(65_500, 65_500), "pixels"),
        (huge_png(16_385, 1), "side"),
        (huge_png(16_000, 16_000), "pixels"),
        (huge_png(8_000, 8_000), "more than 50,000,000"),
        (huge_png(100, 100), "truncated or damaged"),
        (encoded("JPEG", "RGB")[:-40], "truncated"),
        (encoded("PNG", "RGB")[:-400], "truncated"),
        (b"\0" * (64 * 2**20 + 1), "more than 67,108,864"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        prepare(data, 256, 95, pass_through=False)


def test_undecodable_bytes_are_bad_input() -> None:
    for data in (b"", b"hello", encoded("JPEG", "RGB")[:-40]):
        with pytest.raises(BadInput):
            decode_rgb(data)


def test_the_two_decoders_give_equal_pixels(unpacked: Callable[[str], Path]) -> None:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    archives = ("imagenet_samples_300.tar", "odd_images_shared.tar.xz")
    files = [path for name in archives for path in sorted(unpacked(name).rglob("*")) if path.is_file()]
    compared = 0
    for path in files[:100] + files[300:]:
        data = path.read_bytes()
        try:
            fast = simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            continue
        slow = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "RGB", "Gray"):
            assert np.array_equal(fast, slow), path
            compared += 1
    assert compared > 120


def test_a_damaged_tiff_is_refused_or_kept() -> None:
    data = encoded("TIFF", "RGB", (400, 300), compression="tiff_lzw")
    half = len(data) // 2
    damaged = data[:half] + bytes(4096) + data[half + 4096 :]
    assert prepare(data, 0, 95, False).actions == ("tiff",)
    with pytest.raises(Rejected, match="damaged: TIFF decoder error"):
        prepare(damaged, 0, 95, False)
    assert prepare(damaged, 0, 95, False, keep_damaged=True).actions == ("tiff", "damaged")


def test_real_odd_images(unpacked: Callable[[str], Path]) -> None:
    actions: dict[str, tuple[str, ...] | str] = {}
    for path in sorted(unpacked("odd_images_shared.tar.xz").rglob("*.*")):
        try:
            actions[path.name] = prepare(path.read_bytes(), 256, 95, pass_through=False).actions
        except Rejected as reason:
            actions[path.name] = str(reason)
    assert actions["n02105855_2933.JPEG"] == ("png", "alpha")
    assert actions["pil_sample_cmyk.jpg"] == ("cmyk",)
    assert actions["monkey16.png"] == ("png", "16-bit")
    assert actions["hopper_orientation_6.jpg"] == ("exif-turned",)
    assert actions["testimgari.jpg"] == ("unusual-jpeg",)
    refused = {name for name, action in actions.items() if isinstance(action, str)}
    assert {"truncated_jpeg.jpg", "truncated_image.png", "ultrahdr.jpg", "decompression_bomb.ico"} <= refused
    assert "extraneous bytes before marker 0xd0" in actions["hopper_bad_exif.jpg"]
    assert not {"junk_jpeg_header.jpg", "icc-after-SOF.jpg", "truncated_app14.jpg", "multiple_exif.jpg"} & refused
    assert len(refused) == 15


def test_encoding_and_header() -> None:
    data = encode_jpeg(np.zeros((3, 5, 3), np.uint8), 90)
    header = read_header(data)
    assert (header.format, header.width, header.height, header.orientation, header.traits) == ("JPEG", 5, 3, 1, ())


def test_threads_that_read_headers_leave_the_warning_filters_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    data, open_image = encoded("PNG", "RGB"), Image.open

    def slow(*arguments: object) -> object:
        time.sleep(0.02)
        return open_image(*arguments)

    monkeypatch.setattr(Image, "open", slow)
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(read_header, data)
            time.sleep(0.005)  # so that each begins within the one before
    assert list(warnings.filters) == before
