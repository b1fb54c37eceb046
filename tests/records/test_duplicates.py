"""Photos that are there twice: made near duplicates of real photos are found, other photos and mirror images not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from imagenet_pipeline.builders import plan_of
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged
from imagenet_pipeline.records import lists
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.perceptual_hash import DISTANCE, near_pairs, perceptual_hash, require_distance
from imagenet_pipeline.records.twins import FILE, Duplicates, find_duplicates, records_in_train

imagehash = pytest.importorskip("imagehash")


def photo(seed: int, side: int = 96) -> Image.Image:
    """A picture with as much at low frequencies as a photo."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image, quality: int = 90, **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, **more)
    return stream.getvalue()


@pytest.fixture(scope="module")
def photos(unpacked: Callable[[str], Path]) -> list[Path]:
    """Real photos of 25 classes, one each."""
    return sorted(unpacked("imagenet_samples_300.tar").rglob("*.JPEG"))[:25]


def test_the_hash_of_a_small_photo_is_imagehash_s_own() -> None:
    image = Image.open(io.BytesIO(as_jpeg(photo(0))))
    wanted = int(str(imagehash.phash(image)), 16)
    assert perceptual_hash(as_jpeg(photo(0))) == wanted
    assert perceptual_hash(b"no image") is None


def test_a_photo_turned_by_its_tag_is_the_same_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = as_jpeg(photo(1).transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes())
    upright = perceptual_hash(as_jpeg(photo(1)))
    assert upright is not None
    assert (perceptual_hash(lying, upright=True) ^ upright).bit_count() <= 2  # type: ignore[operator]
    assert (perceptual_hash(lying) ^ upright).bit_count() > 10  # type: ignore[operator]


def made(path: Path) -> Iterator[tuple[str, Image.Image, int]]:
    image = Image.open(path).convert("RGB")
    yield "re-encoded", image, 60
    yield "smaller", image.resize((image.width // 3, image.height // 3)), 90
    yield "grey", image.convert("L"), 90
    yield "mirrored", ImageOps.mirror(image), 90


def test_near_duplicates_of_real_photos_are_found_and_nothing_else(photos: list[Path], tmp_path: Path) -> None:
    kinds, paths = ["own"] * len(photos), list(photos)
    for number, path in enumerate(photos):
        for kind, image, quality in made(path):
            kinds.append(kind)
            paths.append(tmp_path / f"{number}-{kind}.jpg")
            paths[-1].write_bytes(as_jpeg(image, quality))
    hashes = np.array([perceptual_hash(path.read_bytes(), upright=True) for path in paths], np.uint64)
    pairs = list(zip(*(column.tolist() for column in near_pairs(hashes, DISTANCE)), strict=True))
    of = [*range(len(photos)), *(number for number in range(len(photos)) for _ in range(4))]
    assert all(of[first] == of[second] for first, second, _ in pairs)
    found = [kinds[second] for first, second, _ in pairs if kinds[first] == "own"]
    assert min(found.count(kind) for kind in ("re-encoded", "smaller", "grey")) >= len(photos) - 1
    assert found.count("mirrored") <= 2


def test_a_distance_that_is_none_and_a_missing_package_are_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRecipe, match="no distance of near duplicates; expected 0 to 10 of 64 bits; found 11"):
        require_distance(11)
    require_distance(DISTANCE)
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(BadRecipe, match=r"ImageHash.*pip install 'imagenet-pipeline\[duplicates\]'"):
        require_distance(DISTANCE)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a photo of train in test, one there under another label, and one twice in train."""
    root, out = tmp_path_factory.mktemp("twice"), tmp_path_factory.mktemp("built") / "records"
    names = {
        f"{split}/{label}/{i}.jpg": 10 * i + len(split)
        for split in ("train", "test")
        for label in "ab"
        for i in range(4)
    }
    pictures = {name: photo(seed + 1000 * ("b" in name)) for name, seed in names.items()}
    pictures["test/a/3.jpg"] = pictures["train/a/2.jpg"].resize((80, 80))
    pictures["test/b/1.jpg"] = pictures["train/a/0.jpg"]
    pictures["train/b/0.jpg"] = pictures["train/b/3.jpg"]
    for name, image in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(as_jpeg(image))
    build(plan_of("folder", out, {"root": root}), out, BuildOptions(workers=1))
    return out


def test_a_data_set_names_its_pairs_within_and_between_splits(twice: Path) -> None:
    shown: list[tuple[int, int]] = []
    found = find_duplicates(twice, progress=lambda done, total: shown.append((done, total)))
    pairs = {(pair.first.photo, pair.second.photo, pair.same_labels) for pair in found.pairs}
    assert {(*sorted((first, second)), same) for first, second, same in pairs} == {
        ("test/a/3.jpg", "train/a/2.jpg", True),
        ("test/b/1.jpg", "train/a/0.jpg", False),
        ("train/b/0.jpg", "train/b/3.jpg", True),
    }
    assert (found.within, found.between) == ({"train": 1, "test": 0}, {"train-test": 2})
    assert (found.in_train, found.different_labels, found.pictures) == ({"test": 2}, 1, 16)
    assert {pair.first.split for pair in found.pairs} == {"train"}
    assert shown[-1] == (16, 16)


def test_labels_that_are_numbers_are_compared_whole(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(as_jpeg(photo(1)))
    lists.write_list(tmp_path / "all.lst", range(3), [[0.2], [0.9], [0.2]], ["a.jpg", "b.jpg", "c.jpg"])
    options = {"list_file": tmp_path / "all.lst", "root": tmp_path, "label_kind": "number", "val_fraction": 0.0}
    build(plan_of("list", tmp_path / "data", options), tmp_path / "data", BuildOptions(workers=1))
    found = find_duplicates(tmp_path / "data", workers=1)
    assert sorted(pair.same_labels for pair in found.pairs) == [False, False, True]
    assert found.different_labels == 2


def test_what_was_found_is_kept_for_these_records_alone(twice: Path) -> None:
    found: Duplicates = find_duplicates(twice)
    data = read_data_set(twice)
    distance, records = records_in_train(data, "test") or (0, np.empty(0))
    in_test = sorted(pair.second.record for pair in found.pairs if pair.second.split == "test")
    assert (distance, records.tolist()) == (4, in_test)
    assert records_in_train(data, "train") is None
    kept = json.loads((twice / FILE).read_text())
    (twice / FILE).write_text(json.dumps(kept | {"records": "0" * 64}))
    assert records_in_train(data, "test") is None
    (twice / FILE).write_text(json.dumps(kept | {"pairs": [{}]}))
    with pytest.raises(Damaged, match="look again: imagenet-pipeline verify"):
        records_in_train(data, "test")
    (twice / FILE).unlink()
    assert records_in_train(data, "test") is None


def test_what_is_no_data_set_here_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no data set here"):
        find_duplicates(tmp_path)
    with pytest.raises(BadRecipe, match="on this machine alone"):
        find_duplicates(Path("s3://bucket/records"))
