from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput, Damaged
from imagenet_pipeline.loading.loader import read_sample
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import frame, pack

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
PNG = cv2.imencode(".png", PIXELS[..., ::-1])[1].tobytes()


def one_record(folder: Path, labels: list[float], number: int, image: bytes, checked: bool = True) -> RecordSet:
    data = bytearray(pack(labels, number, image))
    if not checked:
        data[16:24] = bytes(8)
    path = folder / "one.rec"
    path.write_bytes(frame(bytes(data)))
    path.with_suffix(".idx").write_text(f"{number}\t0\n")
    return RecordSet.open(path)


def test_a_sample_is_rgb_pixels_first_label_and_number(tmp_path: Path) -> None:
    with one_record(tmp_path, [4.0, 0.5], 77, PNG) as records:
        image, label, number = read_sample(records, 0, 5)
    assert np.array_equal(image.whole(), PIXELS)
    assert (label, number) == (4, 77)


def test_a_label_of_another_table_names_the_record(tmp_path: Path) -> None:
    with one_record(tmp_path, [4.0], 77, PNG) as records, pytest.raises(BadInput) as caught:
        read_sample(records, 0, 4)
    assert str(caught.value) == (
        f"{tmp_path}/one.rec, record 0, offset 0: the label is not a class; "
        "expected a whole number from 0 to 3; found 4"
    )


def test_a_damaged_image_is_taken_where_the_build_has_looked_alone(tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", cv2.resize(PIXELS, (200, 200), interpolation=cv2.INTER_CUBIC))[1].tobytes()
    damaged = jpeg[: len(jpeg) // 2] + b"\xff\xd9"
    with one_record(tmp_path, [0.0], 1, damaged) as records:
        assert read_sample(records, 0, None).image.whole().shape == (200, 200, 3)
    with (
        one_record(tmp_path, [0.0], 1, damaged, checked=False) as records,
        pytest.raises(BadInput, match=r"one\.rec, record 0, offset 0: image is damaged \(.*premature end"),
    ):
        read_sample(records, 0, None)
    with one_record(tmp_path, [0.0], 1, jpeg, checked=False) as records:
        assert read_sample(records, 0, None).image.whole().shape == (200, 200, 3)


@pytest.mark.parametrize(("checked", "kind"), [(True, Damaged), (False, BadInput)])
def test_who_is_at_fault_follows_from_the_checksum(
    tmp_path: Path, checked: bool, kind: type[BadInput] | type[Damaged]
) -> None:
    with (
        one_record(tmp_path, [0.0], 1, PNG[:40], checked) as records,
        pytest.raises(kind, match=r"one\.rec, record 0, offset 0: image cannot be decoded"),
    ):
        read_sample(records, 0, None)
