"""A box decoded alone has the pixels that the whole photo has there; hostile bytes give those or none.

IMAGENET_PIPELINE_LONG=1 compares 10,000 boxes of real photos, and mutates a million times under sanitizers.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import image, jpeg
from imagenet_pipeline.records.image import Box, LazyImage, decode_rgb

jpeg_crop = pytest.importorskip("imagenet_pipeline.records.jpeg_crop", reason="not compiled on this machine")
LONG = bool(os.environ.get("IMAGENET_PIPELINE_LONG"))
BOXES = 10_000 if LONG else 200
Pixels = NDArray[np.uint8]


def by_pillow(**options: object) -> Callable[[Pixels], bytes]:
    def encode(pixels: Pixels, mode: str = str(options.pop("mode", "RGB"))) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **{"quality": 95, **options})
        return buffer.getvalue()

    return encode


def by_simplejpeg(subsampling: str) -> Callable[[Pixels], bytes]:
    return lambda pixels: bytes(simplejpeg.encode_jpeg(pixels, 90, "RGB", subsampling))


def with_restarts(pixels: Pixels) -> bytes:
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80, cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1])


def as_if_red_green_blue(pixels: Pixels) -> bytes:
    """Without JFIF and with component ids that say RGB, as some cameras and Adobe write it."""
    data = bytearray(by_pillow(subsampling=0)(pixels))
    at = data.index(b"\xff\xe0")
    del data[at : at + 18]
    frame, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
    for number, name in enumerate(b"RGB"):
        data[frame + 3 * number] = data[scan + 2 * number] = name
    return bytes(data)


def grey_in_fours(pixels: Pixels) -> bytes:
    """Grey that names sampling factors of 2 x 2, which mean nothing."""
    data = bytearray(by_pillow(mode="L")(pixels))
    data[data.index(b"\xff\xc0") + 11] = 0x22
    return bytes(data)


def by_tables_2_and_3(pixels: Pixels) -> bytes:
    """Huffman tables by numbers that baseline has not."""
    data = bytearray(by_pillow()(pixels))
    at = -1
    while (at := data.find(b"\xff\xc4", at + 1)) >= 0:
        data[at + 4] += 2
    scan = data.index(b"\xff\xda") + 5
    for number in range(3):
        data[scan + 1 + 2 * number] += 0x22
    return bytes(data)


DECODED_ALONE = {
    **{form: by_simplejpeg(form) for form in ("444", "422", "420", "440", "411")},
    "grey": by_pillow(mode="L"),
    "restarts": with_restarts,
    "own Huffman tables": by_pillow(optimize=True),
    "red, green and blue": as_if_red_green_blue,
    "tables 2 and 3": by_tables_2_and_3,
    "quality 30": by_pillow(quality=30),
    "quality 100": by_pillow(quality=100, subsampling=0),
    "profile": by_pillow(icc_profile=bytes(30_000), exif=b"Exif\0\0" + bytes(900)),
}
DECODED_WHOLE = {
    "progressive": by_pillow(progressive=True),
    "progressive 444": by_pillow(progressive=True, subsampling=0),
    "grey of 2 x 2": grey_in_fours,
    "CMYK": by_pillow(mode="CMYK"),
}
KINDS = {**DECODED_ALONE, **DECODED_WHOLE}


def noise(height: int, width: int, seed: int = 5) -> Pixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def alone(data: bytes, box: Box) -> Pixels | None:
    out = np.full((box.height, box.width, 3), 77, np.uint8)
    return out if jpeg_crop.decode(data, *box, out) else None


def inside(whole: Pixels, box: Box) -> Pixels:
    return whole[box.top : box.top + box.height, box.left : box.left + box.width]


def spans(length: int) -> Iterator[tuple[int, int]]:
    return ((start, size) for start in range(length) for size in range(1, length - start + 1))


def random_box(numbers: np.random.Generator, height: int, width: int) -> Box:
    box_width, box_height = int(numbers.integers(1, width + 1)), int(numbers.integers(1, height + 1))
    left, top = int(numbers.integers(0, width - box_width + 1)), int(numbers.integers(0, height - box_height + 1))
    return Box(left, top, box_width, box_height)


@pytest.mark.parametrize("kind", DECODED_ALONE)
@pytest.mark.parametrize(("height", "width"), [(37, 50), (48, 33)])
def test_every_span_of_columns_and_of_rows_is_that_of_the_whole(kind: str, height: int, width: int) -> None:
    data = DECODED_ALONE[kind](noise(height, width))
    whole = decode_rgb(data)
    boxes = [Box(left, 9, size, 20) for left, size in spans(width)]
    boxes += [Box(11, top, 15, size) for top, size in spans(height)]
    for box in boxes:
        part = alone(data, box)
        assert part is not None, box
        assert np.array_equal(part, inside(whole, box)), box


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_asked_for_boxes_gives_those_of_the_whole(kind: str) -> None:
    numbers = np.random.default_rng(1)
    data = KINDS[kind](noise(150, 203))
    whole = decode_rgb(data)
    for _ in range(40):
        image = LazyImage(memoryview(data))
        for _ in range(2):
            box = random_box(numbers, 150, 203)
            assert np.array_equal(image.crop(box), inside(whole, box)), box


def test_real_photos_of_all_kinds_give_the_boxes_of_the_whole(unpacked: Callable[[str], Path]) -> None:
    """Long: 10,000 boxes. Photos as they are, and each cut to an odd size and coded anew in a kind, in turn."""
    numbers = np.random.default_rng(2)
    files = sorted(unpacked("imagenet_samples_300.tar").rglob("*.JPEG"))[:BOXES]
    differ, were_alone = [], 0
    for number in range(BOXES):
        data = files[number % len(files)].read_bytes()
        if number % 4:
            kind = list(KINDS)[number // 4 % len(KINDS)]
            box = random_box(numbers, 300, 400)
            data = KINDS[kind](np.ascontiguousarray(decode_rgb(data)[: box.height, : box.width]))
        whole = decode_rgb(data)
        box = random_box(numbers, *whole.shape[:2])
        part = alone(data, box)
        were_alone += part is not None
        if not np.array_equal(LazyImage(data).crop(box), inside(whole, box)):
            differ.append((files[number % len(files)].name, number, box))
    assert differ == []
    assert were_alone > BOXES // 2


@pytest.mark.parametrize("kind", DECODED_WHOLE)
def test_what_is_not_decoded_alone_is_said_to_be_so(kind: str) -> None:
    assert alone(DECODED_WHOLE[kind](noise(40, 40)), Box(0, 0, 8, 8)) is None


@pytest.mark.parametrize("box", [Box(33, 0, 8, 8), Box(0, 33, 8, 8), Box(0, 0, 41, 1), Box(65_000, 1, 8, 8)])
def test_a_box_beyond_the_image_is_not_decoded(box: Box) -> None:
    assert alone(by_pillow()(noise(40, 40)), box) is None


@pytest.mark.parametrize(
    "numbers", [(-1, 0, 8, 8), (0, 0, 0, 8), (0, 0, 8, 7), (0, 0, 2**40, 2**40), (0, 2**63 - 1, 8, 8)]
)
def test_a_box_that_is_none_or_does_not_fit_the_buffer_is_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="buffer of its size"):
        jpeg_crop.decode(by_pillow()(noise(40, 40)), *numbers, bytearray(8 * 8 * 3))
    with pytest.raises((BufferError, TypeError, ValueError)):
        jpeg_crop.decode(by_pillow()(noise(40, 40)), 0, 0, 8, 8, bytes(8 * 8 * 3))


def test_damage_above_or_in_the_box_is_seen_and_below_it_is_not() -> None:
    data = by_pillow()(noise(200, 200))
    cut = data[: len(data) // 2] + b"\xff\xd9"
    above, below = Box(30, 10, 100, 40), Box(10, 150, 100, 40)
    assert alone(cut, below) is None
    assert np.array_equal(LazyImage(cut).crop(below), inside(decode_rgb(cut), below))
    assert np.array_equal(LazyImage(cut).crop(above), inside(decode_rgb(data), above))


def test_restart_markers_may_be_padded_but_not_out_of_turn() -> None:
    data, below = with_restarts(noise(80, 80)), Box(40, 60, 30, 15)
    marker = data.index(b"\xff\xd1")
    padded = data[:marker] + b"\xff\xff" + data[marker:]
    swapped = data[:marker] + b"\xff\xd2" + data[marker + 2 :]
    part = alone(padded, below)
    assert part is not None
    assert np.array_equal(part, inside(decode_rgb(data), below))
    assert alone(swapped, below) is None


def test_data_that_ends_without_a_marker_gives_what_lies_above() -> None:
    data, last_rows = by_pillow()(noise(200, 200)), Box(180, 190, 20, 10)
    whole = decode_rgb(data)
    for size in (len(data) - 2, len(data) - 40):
        part = alone(data[:size], Box(0, 100, 200, 20))
        assert part is not None
        assert np.array_equal(part, inside(whole, Box(0, 100, 200, 20)))
        assert alone(data[:size], last_rows) is None


def test_without_the_compiled_part_pixels_are_the_same_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, box = by_pillow()(noise(60, 70)), Box(20, 30, 31, 17)
    expected = LazyImage(data).crop(box)
    monkeypatch.setattr(image, "jpeg_crop", None)
    image._tell_slower.cache_clear()
    with caplog.at_level("INFO"):
        assert np.array_equal(LazyImage(data).crop(box), expected)
        assert np.array_equal(LazyImage(data).crop(box), expected)
    assert len(caplog.records) == 1
    assert "crop decoder" in caplog.text


FRAMES = st.builds(
    lambda marker, length, rest: bytes((0xFF, marker, 0, length)) + rest,
    st.one_of(st.integers(0xBF, 0xE1), st.sampled_from((0xC0, 0xC2, 0xDA, 0xDA, 0xFE))),
    st.integers(0, 14),
    st.binary(max_size=12),
)
WHOLE_SEGMENTS = st.builds(
    lambda marker, rest: bytes((0xFF, marker, 0, 2 + len(rest))) + rest,
    st.sampled_from((0xC0, 0xC1, 0xC2, 0xC4, 0xDA, 0xDB, 0xE0, 0xFE)),
    st.binary(min_size=0, max_size=10),
)


@given(st.lists(st.one_of(FRAMES, WHOLE_SEGMENTS, WHOLE_SEGMENTS), max_size=6), st.integers(0, 12))
def test_any_sequence_of_segments_has_the_head_that_python_reads(parts: list[bytes], lost_bytes: int) -> None:
    data = jpeg.START + b"".join(parts)
    for cut in (data, data[: len(data) - lost_bytes]):
        assert jpeg_crop.read_head(memoryview(cut)) == jpeg.read_head(cut)


@pytest.mark.parametrize("kind", KINDS)
def test_every_beginning_of_a_photo_has_the_head_that_python_reads(kind: str) -> None:
    data = KINDS[kind](noise(9, 17))
    for size in range(min(len(data), 900)):
        assert jpeg_crop.read_head(data[:size]) == jpeg.read_head(data[:size]), size
    assert jpeg_crop.read_head(data) == jpeg.read_head(data)
    assert jpeg.read_head(data) is not None


def test_as_many_segments_are_passed_as_in_python() -> None:
    photo = by_pillow(mode="L")(noise(9, 17))
    for comments in (jpeg.SEGMENT_LIMIT - 20, *range(jpeg.SEGMENT_LIMIT - 9, jpeg.SEGMENT_LIMIT + 1)):
        data = jpeg.START + b"\xff\xfe\0\2" * comments + photo[2:]
        assert jpeg_crop.read_head(data) == jpeg.read_head(data), comments
    assert jpeg_crop.read_head(data) is None


def test_threads_decode_at_the_same_time() -> None:
    datas = [encode(noise(90, 120, seed)) for seed, encode in enumerate(DECODED_ALONE.values())]
    wholes = [decode_rgb(data) for data in datas]

    def one_thread(seed: int) -> bool:
        numbers = np.random.default_rng(seed)
        boxes = [random_box(numbers, 90, 120) for _ in datas]
        parts = [alone(data, box) for data, box in zip(datas, boxes, strict=True)]
        return all(np.array_equal(part, inside(*there)) for part, *there in zip(parts, wholes, boxes, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one_thread, range(40)))


def test_hostile_bytes_give_the_pixels_of_the_whole_or_its_error() -> None:
    numbers = np.random.default_rng(4)
    seeds = [encode(noise(50, 60)) for encode in KINDS.values()]
    decoded = 0
    for number in range(1200):
        data = mutated(seeds[number % len(seeds)], numbers)
        box = random_box(numbers, 50, 60)
        part = alone(data, box)
        with contextlib.suppress(BadInput):
            whole = decode_rgb(data)
            decoded += part is not None
            assert part is None or np.array_equal(part, inside(whole, box)), number
    assert decoded > 200


def mutated(data: bytes, numbers: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(numbers.integers(1, 4)):
        place = int(numbers.integers(0, len(changed) if numbers.random() < 0.5 else 700)) % len(changed)
        changed[place] = numbers.choice([0, 255, 0x11, 0xD9, changed[place] ^ 1 << int(numbers.integers(8))])
        if numbers.random() < 0.1:
            del changed[place : place + int(numbers.integers(1, 50))]
    return bytes(changed)


@pytest.mark.skipif(not LONG, reason="long: IMAGENET_PIPELINE_LONG=1 runs it")
def test_a_million_mutations_under_sanitizers(tmp_path: Path) -> None:
    """AddressSanitizer and UBSan watch our C; pages without access stand behind input and output of libjpeg."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    library = subprocess.run(["gcc", "-print-file-name=libjpeg.a"], capture_output=True, text=True).stdout.strip()
    if not Path(library).is_file():
        pytest.skip("no libjpeg.a")
    source = Path(__file__).resolve().parent.parent / "hostile" / "jpeg_crop_fuzz.c"
    watched = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-Wl,--wrap=malloc,--wrap=free"]
    subprocess.run(["gcc", "-g", "-O1", *watched, str(source), "-o", str(tmp_path / "fuzz"), library], check=True)
    for kind, encode in KINDS.items():
        (tmp_path / f"{kind}.jpg").write_bytes(encode(noise(61, 83)))
    words = [str(tmp_path / "fuzz"), "1000000", "7", *map(str, sorted(tmp_path.glob("*.jpg")))]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("1000000 mutations")
