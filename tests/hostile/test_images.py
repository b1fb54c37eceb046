"""Damaged and hostile image files, lists and record files: used or refused, nothing else.

IMAGENET_PIPELINE_LONG=1 tries many more mutations.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import PipelineError
from imagenet_pipeline.records import image, shard
from imagenet_pipeline.records.prepare import prepare
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import frame, pack
from imagenet_pipeline.records.verify import verify

MUTATIONS = 5000 if os.environ.get("IMAGENET_PIPELINE_LONG") else 400
SLOWEST_SECONDS = 2.0


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One or more flips, a cut, a hole, a repeat, or trailing garbage."""
    content = bytearray(data)
    kind = chance.randrange(5)
    place = chance.randrange(len(content))
    if kind == 0:
        for _ in range(chance.choice((1, 2, 8))):
            content[chance.randrange(min(len(content), chance.choice((64, 1024, 10**9))))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        content[place : place + 64] = bytes(64)
    elif kind == 3:
        content[place:place] = content[place : place + 200]
    else:
        content += chance.randbytes(50)
    return bytes(content)


@pytest.fixture
def seeds(unpacked: Callable[[str], Path]) -> list[bytes]:
    paths = sorted(unpacked("odd_images_shared.tar.xz").rglob("*.*"))
    return [data for path in paths if len(data := path.read_bytes()) < 60_000]


def test_mutated_images_are_used_or_refused(seeds: list[bytes]) -> None:
    chance = random.Random(2)
    refused = 0
    for _ in range(MUTATIONS):
        data = mutated(chance.choice(seeds), chance)
        start = time.monotonic()
        try:
            prepared = prepare(data, 64, 95, pass_through=bool(chance.randrange(2)))
        except image.Rejected:
            refused += 1
        else:
            assert np.array_equal(image.decode_rgb(prepared.data), prepared.pixels)
        assert time.monotonic() - start < SLOWEST_SECONDS
    assert MUTATIONS * 0.05 < refused < MUTATIONS * 0.8


def test_two_jpegs_in_one_file_are_the_first(seeds: list[bytes]) -> None:
    first, second = (image.encode_jpeg(np.full((20, 20, 3), value, np.uint8), 95) for value in (0, 255))
    assert prepare(first + second, 0, 95, False).pixels.max() < 5


def test_only_regular_files_inside_the_root_are_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "outside.jpg").touch()
    (root / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    with (root / "huge.jpg").open("wb") as stream:
        stream.truncate(10**12)
    expected = {
        "folder": "not a regular file",
        "pipe.jpg": "not a regular file",
        "huge.jpg": "file of 1,000,000,000,000 bytes",
        "link.jpg": "outside",
        "loop.jpg": "cannot be read",
        "../outside.jpg": "outside",
        "absent.jpg": "missing",
        "a" * 5000: "cannot be read",
        "nul\0.jpg": "outside",
    }
    for name, reason in expected.items():
        with pytest.raises(image.Rejected, match=reason):
            shard.read_image_file(root, name, follow_links=False)


FRAMES = st.lists(st.binary(max_size=20).map(lambda data: frame(pack((1.0,), 1, data))), max_size=4).map(b"".join)


@settings(deadline=None)
@given(FRAMES, st.data())
def test_mutated_record_files_raise_only_our_errors(tmp_path_factory, content: bytes, data) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("records") / "a.rec"
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed[: data.draw(st.integers(0, len(changed)))])
    if data.draw(st.booleans()):
        path.with_suffix(".idx").write_bytes(data.draw(st.binary(max_size=30)))
    with contextlib.suppress(PipelineError):
        verify(path)
    with contextlib.suppress(PipelineError), RecordSet.open(path) as records:
        for position in range(len(records)):
            records.read(position)
