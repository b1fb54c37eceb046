"""The development kit, genuine and made up, into plans."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.record_builders import imagenet, imagenet_devkit, imagenet_layout
from imagenet_pipeline.records.plan import write_lists

PUBLISHED = {
    "alexnet": (56.518, 79.070),
    "vgg16": (71.592, 90.382),
    "bninception": (73.524, 91.562),
    "resnet50": (76.130, 92.862),
    "squeezenet1_1": (58.178, 80.624),
}
WITHOUT_BLACKLISTED = {"alexnet": (56.798, 79.317), "vgg16": (71.869, 90.526), "resnet50": (76.407, 92.958)}


def test_labels_follow_the_order_asked_for(tree: Path) -> None:
    plan = imagenet.plan(tree, test_images=0)
    assert plan.classes.ids == ("n00000001", "n00000002", "n00000003")
    assert plan.classes.names == ("name_1", "name_2", "name_3")
    assert plan.splits["val"].labels.tolist() == [2, 0, 1, 1, 0, 2]
    devkit = imagenet.plan(tree, class_order="devkit", test_images=0)
    assert devkit.classes.ids == ("n00000003", "n00000001", "n00000002")
    assert devkit.splits["val"].labels.tolist() == [0, 1, 2, 2, 1, 0]
    for found in (plan, devkit):
        train = found.splits["train"]
        assert [found.classes.ids[label] for label in train.labels] == [path.split("/")[3] for path in train.paths]


def test_the_blacklist_holds_image_numbers(tree: Path) -> None:
    val = imagenet.plan(tree, drop_blacklisted=True, test_images=0).splits["val"]
    assert [path[-13:] for path in val.paths] == [f"{n:08d}.JPEG" for n in (1, 3, 4, 5)]


def test_the_test_cut_is_stratified_seeded_and_disjoint(tree: Path) -> None:
    plans = [imagenet.plan(tree, test_images=3, seed=seed) for seed in (1, 1, 2)]
    assert plans[0].digest == plans[1].digest != plans[2].digest
    train, test = plans[0].splits["train"], plans[0].splits["test"]
    assert np.bincount(train.labels).tolist() == [3, 3, 3]
    assert np.bincount(test.labels).tolist() == [1, 1, 1]
    assert len({*train.paths, *test.paths}) == 12
    assert test.paths == sorted(test.paths)
    for impossible in (2, 11, -1):
        with pytest.raises(BadInput, match=r"cannot cut .* --test-images 0"):
            imagenet.plan(tree, test_images=impossible)


def test_exactly_so_many_of_each_class_are_cut_out(tree: Path) -> None:
    plan = imagenet.plan(tree, test_per_class=3)
    assert np.bincount(plan.splits["test"].labels).tolist() == [3, 3, 3]
    assert np.bincount(plan.splits["train"].labels).tolist() == [1, 1, 1]
    assert plan.source["test_per_class"] == 3
    with pytest.raises(BadInput, match=r"cannot cut 4 images of each class out.*expected 0\.\.3"):
        imagenet.plan(tree, test_per_class=4)
    with pytest.raises(BadRecipe, match="--test-per-class"):
        imagenet.plan(tree, test_images=3, test_per_class=3)


def test_a_class_without_training_images_is_named(tree: Path) -> None:
    path = tree / imagenet_layout.LISTS / "train_cls.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "n00000002/" not in line))
    with pytest.raises(BadInput, match=r"a class has no training images.*found none of n00000002"):
        imagenet.plan(tree, test_images=0)


def test_the_digest_of_a_plan_does_not_depend_on_the_words_about_its_kit(tree: Path) -> None:
    plan = imagenet.plan(tree, test_images=0)
    assert plan.remarks["kit"]["classes"] == "devkit/data/map_clsloc.txt"
    assert replace(plan, remarks={}).digest == plan.digest
    assert "kit" not in plan.source


def test_validation_labels_follow_the_image_number(tree: Path) -> None:
    path = tree / imagenet_layout.LISTS / "val.txt"
    expected = imagenet.plan(tree, test_images=0).splits["val"]
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*rest, first]))
    val = imagenet.plan(tree, test_images=0).splits["val"]
    assert val.paths == expected.paths
    assert val.labels.tolist() == expected.labels.tolist() == [2, 0, 1, 1, 0, 2]


def val_lines(*rows: tuple[int, int]) -> str:
    return "".join(f"ILSVRC2012_val_{name:08d} {number}\n" for name, number in rows)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (val_lines((1, 1), (2, 2), (2, 2), (4, 4), (5, 5), (6, 6)), r"val\.txt:3: the image is given twice"),
        (val_lines((1, 1), (2, 3), (3, 2), (4, 4), (5, 5), (6, 6)), r"val\.txt:2: .*number .*name"),
        (val_lines((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (7, 7)), r"val\.txt: .*1\.\.6.*1\.\.7"),
        (val_lines((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)), r"val\.txt: .*1\.\.6.*0\.\.5"),
    ],
)
def test_validation_images_must_be_numbered_once_each(tree: Path, content: str, reason: str) -> None:
    (tree / imagenet_layout.LISTS / "val.txt").write_text(content)
    with pytest.raises(BadInput, match=reason):
        imagenet.plan(tree, test_images=0)


def test_a_training_image_given_twice_is_refused(tree: Path) -> None:
    path = tree / imagenet_layout.LISTS / "train_cls.txt"
    path.write_text(path.read_text() + "n00000002/n00000002_1 13\n")
    with pytest.raises(BadInput, match=r"train_cls\.txt:13: the image is given twice; found n00000002/n00000002_1"):
        imagenet.plan(tree, test_images=0)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("devkit/data/map_clsloc.txt", "", "empty"),
        ("devkit/data/map_clsloc.txt", "n00000001 1\n", r"map_clsloc\.txt:1: the line is malformed"),
        ("devkit/data/map_clsloc.txt", "n00000001 1 a\nn00000001 2 b\n", ":2: the class is given twice"),
        ("devkit/data/map_clsloc.txt", "n00000001 1 a\nn00000002 3 b\n", "not 1..N"),
        (f"devkit/data/{imagenet_devkit.GROUND_TRUTH}", "1\n2\n3\n3\n2\n", "does not belong"),
        (
            f"devkit/data/{imagenet_devkit.GROUND_TRUTH}",
            "1\n2\n3\n4\n2\n1\n",
            ":4: the label is out of range; expected 1..3; found 4",
        ),
        (f"devkit/data/{imagenet_devkit.GROUND_TRUTH}", "1\n0\n", ":2: the label is out of range"),
        (f"devkit/data/{imagenet_devkit.GROUND_TRUTH}", "1\nx\n", ":2: the line is malformed"),
        (
            "ImageSets/CLS-LOC/train_cls.txt",
            "n00000001/n00000001_1 1\n../../etc/passwd 2\n",
            ":2: the line is malformed",
        ),
        ("ImageSets/CLS-LOC/train_cls.txt", "n00000009/n00000009_1 1\n", "class is not in"),
        ("ImageSets/CLS-LOC/val.txt", "ILSVRC2012_val_1 1\n", ":1: the line is malformed"),
    ],
)
def test_bad_metadata_is_named(tree: Path, file: str, content: str, reason: str) -> None:
    (tree / file).write_text(content)
    with pytest.raises(BadInput, match=reason):
        imagenet.plan(tree)


@pytest.mark.parametrize(
    "file",
    [
        "devkit/data/map_clsloc.txt",
        f"devkit/data/{imagenet_devkit.GROUND_TRUTH}",
        "ImageSets/CLS-LOC/train_cls.txt",
        "ImageSets/CLS-LOC/val.txt",
    ],
)
def test_a_missing_file_is_named(tree: Path, file: str) -> None:
    (tree / file).unlink()
    with pytest.raises(BadInput, match=rf"{tree.name}.*; expected .*{Path(file).name}"):
        imagenet.plan(tree)


def test_an_unknown_class_order_is_refused(tree: Path) -> None:
    with pytest.raises(BadInput, match="wnid or devkit"):
        imagenet.plan(tree, class_order="caffe")  # type: ignore[arg-type]


@pytest.fixture
def devkit(unpacked: Callable[[str], Path]) -> imagenet_devkit.Devkit:
    (folder,) = unpacked("imagenet_meta.tar.xz").rglob("devkit/data")
    return imagenet_devkit.parse_devkit(folder)


def test_the_genuine_kit_agrees_with_caffe(devkit: imagenet_devkit.Devkit) -> None:
    (caffe,) = devkit.folder.parent.parent.glob("caffe_val.txt")
    expected = [int(line.split()[1]) for line in caffe.read_text().splitlines()]
    assert imagenet_devkit.validation_labels(devkit).tolist() == expected
    assert devkit.classes.names[0] == "tench"
    assert imagenet_devkit.parse_devkit(devkit.folder, "devkit").classes.names[0] == "kit_fox"


def test_published_predictions_give_the_published_figures(devkit: imagenet_devkit.Devkit, shared_data: Path) -> None:
    labels = imagenet_devkit.validation_labels(devkit)
    kept = np.ones(len(labels), bool)
    kept[[number - 1 for number in imagenet_devkit.blacklisted_numbers(devkit)]] = False
    assert (len(labels), kept.sum()) == (50_000, 48_238)
    with np.load(shared_data / "imagenet_val_top5_5models.npz") as predictions:
        for name, figures in PUBLISHED.items():
            hits = predictions[name] == labels[:, None]
            found = 100 * hits[:, 0].mean(), 100 * hits.any(axis=1).mean()
            assert tuple(round(float(figure), 3) for figure in found) == figures
            if name in WITHOUT_BLACKLISTED:
                found = 100 * hits[kept, 0].mean(), 100 * hits[kept].any(axis=1).mean()
                assert tuple(round(float(figure), 3) for figure in found) == WITHOUT_BLACKLISTED[name]


def test_full_scale_lists(devkit: imagenet_devkit.Devkit, shared_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC2015"
    meta = devkit.folder.parent.parent
    generator = shared_data.parent / "tools" / "gen_imagesets.py"
    subprocess.run(
        [sys.executable, generator, meta, root / imagenet_layout.LISTS], check=True, stdout=subprocess.DEVNULL
    )
    (root / "devkit").symlink_to(meta / "devkit")
    plan = imagenet.plan(root)
    assert plan.counts == {"train": 1_231_167, "val": 50_000, "test": 50_000}
    written = write_lists(plan, tmp_path)
    assert written["train"].read_bytes().count(b"\n") == 1_231_167
    assert imagenet.plan(root, drop_blacklisted=True).counts["val"] == 48_238
