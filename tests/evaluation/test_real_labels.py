"""ReaL accuracy against the authors' definition in plain words, on the genuine labels and five published networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from imagenet_pipeline.record_builders.imagenet_devkit import blacklisted_numbers, parse_devkit, validation_labels

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.real_labels import IMAGES, RealLabels, read_real_labels, real_labels, real_rate
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.lists import write_list
from imagenet_pipeline.records.manifest import DataSet

PREDICTIONS = "imagenet_val_top5_5models.npz"
# Percent of the 46,837 images that have a label. timm's results-imagenet-real.csv has 82.960 for torchvision's
# resnet50 and 79.038 for its vgg16.
FIGURES = {"alexnet": 63.06, "vgg16": 79.04, "bninception": 80.46, "resnet50": 82.96, "squeezenet1_1": 65.45}


@pytest.fixture(scope="module")
def meta(unpacked: Callable[[str], Path]) -> Path:
    return unpacked("imagenet_meta.tar.xz") / "imagenet_meta"


@pytest.fixture(scope="module")
def lists(meta: Path) -> list[list[int]]:
    return read_real_labels(meta / "real.json")


@pytest.mark.parametrize("network", FIGURES)
def test_the_five_prediction_files_score_as_the_authors_define_it(
    shared_data: Path, lists: list[list[int]], network: str
) -> None:
    with np.load(shared_data / PREDICTIONS, allow_pickle=False) as predictions:
        first = predictions[network][:, 0].astype(np.int64)
    # A matrix of what each image shows; the mean over the images that show something.
    shows = np.zeros((IMAGES, 1000), bool)
    for image, shown in enumerate(lists):
        shows[image, shown] = True
    counted = shows.any(axis=1)
    right = shows[np.arange(IMAGES), first] & counted
    found = real_rate(first, lists)
    assert (found.images, found.hits) == (counted.sum(), right.sum()) == (46_837, right.sum())
    assert found.percent == pytest.approx(100 * right[counted].mean())
    assert round(found.percent, 2) == FIGURES[network]


def data_set(folder: Path, numbers: list[int]) -> DataSet:
    """A data set of validation images, whose records are numbered 3, 4, 5, ..., as far as ReaL looks at it."""
    names = [f"Data/CLS-LOC/val/ILSVRC2012_val_{number:08d}.JPEG" for number in numbers]
    write_list(folder / "val.lst", range(3, 3 + len(names)), [0] * len(names), names)
    return DataSet(folder, cast("Any", SimpleNamespace(labels=None)), cast("Any", None), (1.0,) * 3, (1.0,) * 3, "x")


@pytest.mark.parametrize("order", ["wnid", "devkit"])
def test_records_have_the_labels_of_their_images_in_the_network_s_own_numbers(
    meta: Path, lists: list[list[int]], tmp_path: Path, order: Any, shared_data: Path
) -> None:
    kit = parse_devkit(meta / "devkit" / "data", order)
    # Any order, and without those that --drop-blacklisted leaves out.
    numbers = np.setdiff1d(np.arange(1, IMAGES + 1), sorted(blacklisted_numbers(kit)))
    numbers = np.random.default_rng(0).permutation(numbers)
    found = real_labels(meta / "real.json", kit.classes, data_set(tmp_path, numbers.tolist()), "val")
    wnids = sorted(kit.classes.ids)
    for record, number in list(enumerate(numbers, 3))[:3000]:
        assert {kit.classes.ids[label] for label in found.valid[record]} == {wnids[one] for one in lists[number - 1]}
    labels = validation_labels(kit)[numbers - 1]
    found.require_agreement(np.arange(3, 3 + len(numbers)), labels)
    with np.load(shared_data / PREDICTIONS, allow_pickle=False) as predictions:
        first = predictions["resnet50"][numbers - 1, 0].astype(np.int64)
    by_number = real_rate(first, [lists[number - 1] for number in numbers])
    place = {wnid: label for label, wnid in enumerate(kit.classes.ids)}
    own = np.array([place[wnids[one]] for one in range(1000)])[first]
    assert found.rate(np.arange(3, 3 + len(numbers)), own) == by_number


def test_images_under_other_numbers_are_found_out(meta: Path, tmp_path: Path) -> None:
    kit = parse_devkit(meta / "devkit" / "data")
    numbers = list(range(1, 2001))
    found = real_labels(meta / "real.json", kit.classes, data_set(tmp_path, numbers[::-1]), "val")
    with pytest.raises(BadInput, match=r"the ReaL labels belong to other images; expected most .* found 0\.\d %"):
        found.require_agreement(np.arange(3, 2003), validation_labels(kit)[:2000])


def test_an_image_without_labels_does_not_count() -> None:
    found = real_rate(np.array([1, 2, 3, 4]), [[1], [], [9, 3], [5]])
    assert (found.hits, found.images) == (2, 3)
    with pytest.raises(BadInput, match="no image has a ReaL label"):
        real_rate(np.array([1]), [[]])
    with pytest.raises(BadInput, match="differ in length; expected 1; found 2"):
        real_rate(np.array([1, 2]), [[1]])
    assert RealLabels(Path("x"), {7: frozenset({2})}).rate(np.array([7]), np.array([2])).percent == 100.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a JSON file; expected the real.json of reassessed-imagenet"),
        ("[" * 100_000, "not a JSON file"),
        ("{}", "not a file of ReaL labels; expected a list of 50,000 lists; found dict"),
        (json.dumps([[1]] * 10), "not a file of ReaL labels; expected a list of 50,000 lists; found 10"),
        (
            json.dumps([[1]] * (IMAGES - 1) + [[1000]]),
            r"the ReaL labels of image 50000 are malformed; .* 0 to 999; found \[1000\]",
        ),
        (json.dumps([[True]] * IMAGES), "the ReaL labels of image 1 are malformed;"),
        (json.dumps(["x"] * IMAGES), "the ReaL labels of image 1 are malformed;"),
    ],
)
def test_another_file_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(BadInput, match=says) as caught:
        read_real_labels(tmp_path / "real.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="cannot be read"):
        read_real_labels(tmp_path / "nowhere.json")


def test_other_networks_and_other_images_have_no_real_labels(meta: Path, tmp_path: Path) -> None:
    few = ClassTable("folder", ("a", "b"), ("a", "b"))
    with pytest.raises(
        BadInput, match="classes are not ImageNet's; expected 1,000 WordNet ids; found 2 classes, a first"
    ):
        real_labels(meta / "real.json", few, data_set(tmp_path, [1]), "val")
    kit = parse_devkit(meta / "devkit" / "data")
    write_list(tmp_path / "val.lst", [4], [0], ["n01440764/n01440764_10026.JPEG"])
    with pytest.raises(BadInput, match="record 4 is no validation image of ImageNet"):
        real_labels(meta / "real.json", kit.classes, data_set_at(tmp_path), "val")
    with pytest.raises(BadInput, match=r"record 3 is no validation image.*00050001"):
        real_labels(meta / "real.json", kit.classes, data_set(tmp_path, [50_001]), "val")


def data_set_at(folder: Path) -> DataSet:
    return DataSet(folder, cast("Any", SimpleNamespace(labels=None)), cast("Any", None), (1.0,) * 3, (1.0,) * 3, "x")
