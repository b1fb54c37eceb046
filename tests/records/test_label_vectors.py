"""Labels that are not one class, from a list to records and batches: several classes an image, or numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.config import Augmentation
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.record_builders import listing
from imagenet_pipeline.records import lists
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import ClassTable, LabelKind, require_same
from imagenet_pipeline.records.inspect import inspect
from imagenet_pipeline.records.manifest import Manifest, read_data_set
from imagenet_pipeline.records.plan import Images, Plan
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import frame, pack
from imagenet_pipeline.records.verify import verify

COUNT = 12
TAGS = np.random.default_rng(3).integers(0, 2, (COUNT, 3)).astype(np.float32)
AMOUNTS = np.random.default_rng(4).standard_normal((COUNT, 1)).astype(np.float32)
KINDS: dict[LabelKind, np.ndarray[Any, Any]] = {"classes": TAGS, "number": AMOUNTS}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, and their labels in a list of each kind."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), 20 * number, np.uint8))
    for kind, labels in KINDS.items():
        lists.write_list(folder / f"{kind}.lst", range(COUNT), labels.tolist(), [f"{n}.png" for n in range(COUNT)])
    return folder


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[LabelKind, Path]:
    """A data set of each kind, an image in four for val."""
    made = {}
    for kind in KINDS:
        plan = listing.plan(root / f"{kind}.lst", root, val_fraction=0.25, label_kind=kind)
        made[kind] = tmp_path_factory.mktemp("set") / kind
        build(plan, made[kind], BuildOptions(resize=0, workers=1))
    return made


def labels_in_order(folder: Path, split: str, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The labels of a split's photos, as they were listed."""
    rows = [int(Path(row.path).stem) for row in lists.read_list(folder / f"{split}.lst")]
    found: np.ndarray[Any, Any] = labels[rows]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_records_have_the_labels_of_the_list(built: dict[LabelKind, Path], kind: LabelKind) -> None:
    folder, labels = built[kind], KINDS[kind]
    assert Manifest.read(folder).label_kind == read_data_set(folder).classes.label_kind == kind
    assert verify(folder).whole
    for split, count in (("train", 9), ("val", 3)):
        with RecordSet.open(folder, split) as records:
            found = np.array([records.read(position).labels for position in range(len(records))], np.float32)
        np.testing.assert_array_equal(found, labels_in_order(folder, split, labels))
        assert len(found) == count


def test_a_line_is_as_long_as_its_vector(root: Path, tmp_path: Path) -> None:
    vectors = np.random.default_rng(5).standard_normal((COUNT, 700)).astype(np.float32)
    ids = tuple(map(str, range(700)))
    images = Images([f"{number}.png" for number in range(COUNT)], vectors)
    plan = Plan(root, {"train": images}, ClassTable("list", ids, ids, "number"))
    build(plan, tmp_path, BuildOptions(resize=0, workers=1))
    assert verify(tmp_path).whole
    found = np.array([row.labels for row in lists.read_list(tmp_path / "train.lst")], np.float32)
    np.testing.assert_array_equal(found, vectors)


def test_the_iterator_of_mxnet_reads_the_vectors(built: dict[LabelKind, Path], mx: Any) -> None:
    for kind, labels in KINDS.items():
        width = labels.shape[1]
        batch = next(
            mx.io.ImageRecordIter(
                path_imgrec=str(built[kind] / "val.rec"), data_shape=(3, 8, 8), batch_size=3, label_width=width
            )
        )
        found = batch.label[0].asnumpy().reshape(3, width)
        np.testing.assert_array_equal(found, labels_in_order(built[kind], "val", labels))


@pytest.mark.parametrize("kind", KINDS)
def test_the_vectors_are_the_targets_of_batches(built: dict[LabelKind, Path], kind: LabelKind) -> None:
    width = KINDS[kind].shape[1]
    with RecordSet.open(built[kind], "train") as records:
        loader = Loader(records, 8, 4, threads=0, classes=width, label_kind=kind)
        wanted = labels_in_order(built[kind], "train", KINDS[kind])
        with loader.evaluation() as batches:
            targets = np.concatenate([batch.training_targets.copy() for batch in batches])
        np.testing.assert_array_equal(targets, wanted)
        plain, mixed = (
            [(batch.records.copy(), batch.training_targets.copy()) for batch in loader.training(1, 0, augmentation)]
            for augmentation in (Augmentation(), Augmentation(mixup=0.4))
        )
    for numbers, found in plain:
        np.testing.assert_array_equal(found, wanted[numbers])
    for numbers, found in mixed:
        pairs = wanted[numbers], wanted[numbers][[1, 0, 3, 2]]
        assert (np.minimum(*pairs) - 1e-6 <= found).all()
        assert (found <= np.maximum(*pairs) + 1e-6).all()
    assert any((found != wanted[numbers]).any() for numbers, found in mixed)


def test_a_data_set_of_one_class_each_is_as_it_was(data_set: Path) -> None:
    assert "label_kind" not in (data_set / "manifest.json").read_text() + (data_set / "classes.json").read_text()
    table = ClassTable("list", ("a", "b"), ("a", "b"))
    assert table.as_json() == {"order": "list", "ids": ["a", "b"], "names": ["a", "b"]}
    with pytest.raises(BadInput, match="labels of another kind"):
        require_same(table, ClassTable("list", ("a", "b"), ("a", "b"), "classes"), "here")


def test_what_is_said_of_the_labels(built: dict[LabelKind, Path]) -> None:
    tags = inspect(built["classes"], split="train")
    counts = labels_in_order(built["classes"], "train", TAGS).sum(axis=0).astype(int).tolist()
    assert tags.class_counts == dict(zip("012", counts, strict=True))
    shown = [name for name, label in zip("012", tags.records[0].labels, strict=True) if label]
    assert tags.records[0].class_name == (", ".join(shown) or None)
    amounts = inspect(built["number"], split="train")
    assert amounts.class_counts == {}
    assert amounts.records[0].class_name == f"0 {amounts.records[0].labels[0]:g}"


def test_the_digest_of_a_plan_knows_the_kind(root: Path) -> None:
    images = {"train": Images(["a.png"], np.ones((1, 1), np.float32))}
    plans = [Plan(root, images, ClassTable("list", ("x",), ("x",), kind)) for kind in KINDS]
    assert plans[0].digest != plans[1].digest


@pytest.mark.parametrize(
    ("kind", "lines", "message"),
    [
        ("classes", "0\t1\t0\ta.png\n1\t1\tb.png\n", "another number of labels than .*expected 2; found 1"),
        ("classes", "0\t1\t2\ta.png\n", "a.png, 1: .* a label is not what it should be; expected 0 or 1; found 2"),
        ("number", "0\tnan\ta.png\n", "a label is not what it should be; expected a number; found nan"),
        ("number", "0\t1.5\ta.png\n1\t2.5\ta.png\n", "the image has two labels"),
        ("class", "0\t1.5\ta.png\n", "single whole-number label"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(tmp_path: Path, kind: LabelKind, lines: str, message: str) -> None:
    (tmp_path / "some.lst").write_text(lines)
    with pytest.raises(BadInput, match=message):
        listing.plan(tmp_path / "some.lst", tmp_path, label_kind=kind)


def test_a_record_of_another_kind_is_found(built: dict[LabelKind, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built["classes"], tmp_path / "set"))
    with RecordSet.open(folder, "val") as records:
        image = records.read(0).image
    (folder / "val.rec").write_bytes(b"".join(frame(pack((1.0, 0.5, 0.0), n, image)) for n in range(3)))
    found = " ".join(problem.what for problem in verify(folder).problems)
    assert "labels other than 0 and 1: 3" in found
    with RecordSet("val", [folder / "val.rec"]) as records:
        loader = Loader(records, 8, 1, threads=0, classes=3, label_kind="classes")
        with pytest.raises(BadInput, match="expected 3 labels, each 0 or 1"):
            next(loader.evaluation())
