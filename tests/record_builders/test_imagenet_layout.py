"""Each form in which people have ImageNet gives the same records."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.record_builders import imagenet, imagenet_layout
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.manifest import Manifest


def records_of(root: Path, out: Path, **wanted: int) -> dict[str, bytes]:
    """The bytes of the records built from a folder of ImageNet."""
    build(imagenet.plan(root, **wanted), out, BuildOptions(workers=1))  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix in (".rec", ".idx")}


def test_every_form_of_the_data_gives_the_same_records(
    full_tree: Path, kaggle: Path, class_folders: Path, archives: Path, tmp_path: Path
) -> None:
    expected = records_of(full_tree, tmp_path / "out", test_images=3)
    assert [*expected] == ["test.idx", "test.rec", "train.idx", "train.rec", "val.idx", "val.rec"]
    for n, root in enumerate((kaggle, kaggle / "ILSVRC", class_folders, archives)):
        assert records_of(root, tmp_path / f"out{n}", test_images=3) == expected


@pytest.mark.parametrize(
    ("form", "name", "classes", "train", "val"),
    [
        (
            "full_tree", "ImageNet with its development kit", "devkit/data/map_clsloc.txt",
            "ImageSets/CLS-LOC/train_cls.txt",
            "ImageSets/CLS-LOC/val.txt and ILSVRC2015_clsloc_validation_ground_truth.txt",
        ),
        (
            "kaggle", "ImageNet as Kaggle hands it out", "LOC_synset_mapping.txt", "ImageSets/CLS-LOC/train_cls.txt",
            "ImageSets/CLS-LOC/val.txt and LOC_val_solution.csv",
        ),
        ("class_folders", "ImageNet in class folders", "train/WNID", "train/WNID", "val/WNID"),
        (
            "archives", "the official archives", "ILSVRC2012_devkit_t12.tar.gz/meta.mat", "ILSVRC2012_img_train.tar",
            "ILSVRC2012_img_val.tar and ILSVRC2012_validation_ground_truth.txt",
        ),
    ],
)  # fmt: skip
def test_log_and_manifest_say_which_kit_it_was(
    form: str,
    name: str,
    classes: str,
    train: str,
    val: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = request.getfixturevalue(form)
    with caplog.at_level(logging.INFO):
        records_of(root, tmp_path / "out", test_images=0)
    assert f": {name}: classes by {classes}; train by {train}; val by {val}" in caplog.text
    kit = Manifest.read(tmp_path / "out").source["kit"]
    assert kit == {"name": name, "classes": classes, "train": train, "val": val}


def test_names_come_from_what_lies_beside(kaggle: Path, class_folders: Path) -> None:
    names = ("name 1, other", "name 2, other", "name 3, other")
    assert imagenet.plan(kaggle, test_images=0).classes.names == names
    assert imagenet.plan(kaggle / "ILSVRC", test_images=0).classes.names == names
    assert imagenet.plan(class_folders, test_images=0).classes.names == ("n00000001", "n00000002", "n00000003")
    shutil.copy(kaggle / "LOC_synset_mapping.txt", class_folders / "synset_words.txt")
    assert imagenet.plan(class_folders, test_images=0).classes.names == names
    (class_folders / "synset_words.txt").write_text("n00000001 one\n")
    with pytest.raises(BadInput, match=r"synset_words.txt: no name for the class 'n00000002'"):
        imagenet.plan(class_folders, test_images=0)


def test_the_official_test_images_are_said_to_be_unused(kaggle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        imagenet.plan(kaggle, test_images=0)
    assert caplog.text.count("CLS-LOC/test is not used, its labels are not public") == 1


@pytest.mark.parametrize("wanted", [{"drop_blacklisted": True}, {"class_order": "devkit"}])
def test_what_needs_a_development_kit_says_so(wanted: dict[str, bool], kaggle: Path, class_folders: Path) -> None:
    for root in (kaggle, class_folders):
        with pytest.raises(BadInput, match="needs a development kit, and there is none; expected devkit/data or"):
            imagenet.plan(root, **wanted)  # type: ignore[arg-type]


def test_a_development_kit_without_a_blacklist_is_said(archives: Path) -> None:
    with pytest.raises(BadInput, match=r"lacks a file; expected .*validation_blacklist.txt"):
        imagenet.plan(archives, drop_blacklisted=True)


def test_sorted_images_with_a_development_kit(full_tree: Path, class_folders: Path) -> None:
    shutil.copytree(full_tree / "devkit", class_folders / "devkit")
    for order in ("wnid", "devkit"):
        plan = imagenet.plan(class_folders, order, True, test_images=0)  # type: ignore[arg-type]
        expected = imagenet.plan(full_tree, order, True, test_images=0)  # type: ignore[arg-type]
        assert plan.splits["val"].labels.tolist() == expected.splits["val"].labels.tolist()
        assert [Path(p).name for p in plan.splits["val"].paths] == [Path(p).name for p in expected.splits["val"].paths]
        assert plan.classes == expected.classes
    wrong = class_folders / "val" / "n00000001" / "ILSVRC2012_val_00000001.JPEG"
    (class_folders / "val" / "n00000003" / wrong.name).rename(wrong)
    with pytest.raises(
        BadInput, match=r"val_00000001.JPEG: the class differs from that in ILSVRC2015.*expected n00000003"
    ):
        imagenet.plan(class_folders, test_images=0)


def test_a_tree_whose_val_was_sorted_into_classes(full_tree: Path, class_folders: Path, tmp_path: Path) -> None:
    expected = records_of(full_tree, tmp_path / "flat", test_images=3)
    data = full_tree / imagenet_layout.DATA
    shutil.rmtree(data / "val")
    shutil.copytree(class_folders / "val", data / "val")
    assert records_of(full_tree, tmp_path / "sorted", test_images=3) == expected


def test_class_folders_without_lists_in_the_levels_of_the_tree(full_tree: Path, tmp_path: Path) -> None:
    expected = records_of(full_tree, tmp_path / "listed", test_images=3)
    shutil.rmtree(full_tree / "ImageSets")
    assert records_of(full_tree, tmp_path / "folders", test_images=3) == expected


def test_names_without_numbers_are_sorted_by_name(class_folders: Path, full_tree: Path) -> None:
    for n, path in enumerate(sorted((class_folders / "val").rglob("*.JPEG"))):
        path.rename(path.with_name(f"photo{9 - n}.jpg"))
    val = imagenet.plan(class_folders, test_images=0).splits["val"]
    assert [Path(path).name for path in val.paths] == [f"photo{n}.jpg" for n in range(4, 10)]
    shutil.copytree(full_tree / "devkit", class_folders / "devkit")
    assert imagenet.plan(class_folders, test_images=0).splits["val"].paths == val.paths
    with pytest.raises(BadInput, match="the blacklist needs image names with a number"):
        imagenet.plan(class_folders, drop_blacklisted=True)


def test_half_sorted_and_empty_folders_are_refused(class_folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    (class_folders / "val" / "n00000001" / "thumbs.db").touch()
    with caplog.at_level(logging.INFO):
        imagenet.plan(class_folders, test_images=0)
    assert "val: left out, no images or no class folders: n00000001/thumbs.db (1 in all)" in caplog.text
    (class_folders / "val" / "ILSVRC2012_val_00000007.JPEG").touch()
    with pytest.raises(
        BadInput, match=r"images lie beside class folders: half sorted\?; found ILSVRC2012_val_00000007"
    ):
        imagenet.plan(class_folders, test_images=0)
    (class_folders / "train" / "n00000007").mkdir()
    with pytest.raises(BadInput, match="n00000007: the class folder holds no images"):
        imagenet.plan(class_folders, test_images=0)


def test_what_was_looked_for_is_named(class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "photos").mkdir(parents=True)
    with pytest.raises(
        BadInput, match=r"no training images .*train_cls.txt, train/n01440764 .*_img_train.tar; found photos"
    ):
        imagenet.plan(tmp_path / "empty")
    with pytest.raises(BadInput, match="nowhere: no such folder"):
        imagenet.plan(tmp_path / "nowhere")
    shutil.rmtree(class_folders / "val")
    with pytest.raises(BadInput, match=r"no validation images .*found train \(1 in all\)"):
        imagenet.plan(class_folders)
    (class_folders / "val").mkdir()
    (class_folders / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
    with pytest.raises(
        BadInput, match=r"the classes of the validation images are unknown.*devkit/data.*LOC_val_solution.csv"
    ):
        imagenet.plan(class_folders)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("ImageId,PredictionString\n", r"images are missing|does not belong"),
        ("ILSVRC2012_val_00000001,n00000001\nILSVRC2012_val_00000001,n00000001\n", "csv:2: the image is given twice"),
        ("ILSVRC2012_val_00000002,n00000001\n", r"images are missing; expected images 1..1; found 1 of 2..2"),
        ("ILSVRC2012_val_00000001,n00000001\n", r"LOC_val_solution.csv does not belong .*1..1.* found 6 of 1..6"),
        ("ILSVRC2012_val_00000001;n00000001\n", "csv:1: the line is malformed"),
        ("", "file is empty"),
    ],
)
def test_a_bad_solution_is_named(lines: str, message: str, kaggle: Path) -> None:
    (kaggle / "LOC_val_solution.csv").write_text(lines)
    with pytest.raises(BadInput, match=message):
        imagenet.plan(kaggle, test_images=0)
