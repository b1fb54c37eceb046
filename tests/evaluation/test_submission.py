"""Submissions: rows and columns as the sample has them, and every difference a line with nothing written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation import submission as submitting
from imagenet_pipeline.evaluation.predict import Choice, Prediction
from imagenet_pipeline.evaluation.submission import (
    Format,
    Submission,
    plan_submission,
    read_sample,
    write_submission,
)
from imagenet_pipeline.records.classes import ClassTable, LabelKind

BREEDS = ClassTable("folder", ("n01", "n02", "n03"), ("beagle", "boxer", "pug"))
PETS = ClassTable("folder", ("cat", "dog"), ("cat", "dog"))


def pictures(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [folder / name for name in names]


def sample(folder: Path, *lines: str) -> submitting.Sample:
    path = folder / "sample.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
    return read_sample(path)


def predicted(path: Path, classes: ClassTable, *probabilities: float) -> Prediction:
    order = np.argsort(probabilities)[::-1]
    return Prediction(path, tuple(Choice(classes.ids[i], classes.names[i], probabilities[i]) for i in order))


def test_probabilities_stand_in_the_sample_s_columns_and_rows(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    example = sample(tmp_path, "key,pug,n01,boxer", "b,0,0,0", "a,0,0,0")
    planned = plan_submission(folder, pictures(folder, "a.jpg", "b.png"), BREEDS, "id-probabilities", example)
    assert planned.header == ("key", "pug", "n01", "boxer")
    assert list(planned.pictures) == ["b", "a"]
    assert planned.cells(predicted(folder / "b.png", BREEDS, 0.125, 0.25, 0.625)) == ["0.625", "0.125", "0.25"]


@pytest.mark.parametrize(
    ("word", "expected"), [("n02", "n02"), ("pug", "boxer"), ("2", "1"), ("whatever", "n02")], ids=str
)
def test_labels_are_written_as_the_sample_writes_them(tmp_path: Path, word: str, expected: str) -> None:
    folder = tmp_path / "test"
    example = sample(tmp_path, "image,breed", f"a.jpg,{word}")
    planned = plan_submission(folder, pictures(folder, "a.jpg"), BREEDS, "id-label", example)
    assert (list(planned.pictures), planned.header) == (["a.jpg"], ("image", "breed"))
    assert planned.cells(predicted(folder / "a.jpg", BREEDS, 0.1, 0.7, 0.2)) == [expected]


def test_of_two_classes_a_single_column_is_the_second(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    example = sample(tmp_path, "id,label", "1,0.5")
    planned = plan_submission(folder, pictures(folder, "1.jpg"), PETS, "id-probabilities", example)
    assert planned.cells(predicted(folder / "1.jpg", PETS, 0.25, 0.75)) == ["0.75"]


def test_without_a_sample_ids_are_numbers_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    planned = plan_submission(folder, pictures(folder, "10.jpg", "9.jpg", "x.jpg"), PETS, "id-probabilities")
    assert list(planned.pictures) == ["9", "10", "x"]
    assert planned.header == ("id", "cat", "dog")


@pytest.mark.parametrize(
    ("form", "lines", "fault"),
    [
        ("id-label", ["id,label", "a,cat", "c,cat"], "no picture for c (1 in all); no id for b (1 in all)"),
        ("id-label", ["id,label", "a,cat"], "no id for b (1 in all)"),
        ("id-probabilities", ["id,cat,dgo", "a,0,0", "b,0,0"], "did you mean dog"),
        ("id-probabilities", ["id,cat,cat", "a,0,0", "b,0,0"], "none for dog"),
        ("id-label", ["id,cat,dog", "a,0,0", "b,0,0"], "id-probabilities"),
    ],
)
def test_what_differs_from_the_sample_is_a_line(tmp_path: Path, form: Format, lines: list[str], fault: str) -> None:
    folder = tmp_path / "test"
    example = sample(tmp_path, *lines)
    with pytest.raises(BadInput) as raised:
        plan_submission(folder, pictures(folder, "a.jpg", "b.jpg"), PETS, form, example)
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"id,label\n", b"id\n1\n", b"id,label\n1,2\n1,3\n", b"id,label\n1\n", b"id,label\n\xff,1\n"]
)
def test_a_sample_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sample.csv"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"sample\.csv"):
        read_sample(path)


def test_two_pictures_of_a_name_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    with pytest.raises(BadInput, match="the same id"):
        plan_submission(folder, pictures(folder, "a.jpg", "a.png"), PETS, "id-label")


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_a_run_without_one_class_a_picture_is_refused(tmp_path: Path, kind: LabelKind) -> None:
    folder, classes = tmp_path / "test", replace(PETS, label_kind=kind)
    with pytest.raises(BadInput, match="`submit` takes a run of one class a picture"):
        plan_submission(folder, pictures(folder, "a.jpg"), classes, "id-probabilities")


def test_a_picture_that_cannot_be_read_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(_: object, paths: Sequence[Path], top: int, crops: int) -> Iterator[Prediction]:
        yield predicted(paths[0], PETS, 0.4, 0.6)
        yield Prediction(paths[1], (), "empty file")

    class Run:
        classes = PETS

    monkeypatch.setattr(submitting, "predict", fake)
    planned = Submission(("id", "label"), {"a": tmp_path / "a.jpg", "b": tmp_path / "b.jpg"}, lambda _: ["dog"])
    with pytest.raises(BadInput, match="empty file"):
        write_submission(Run(), planned, tmp_path / "out.csv")  # type: ignore[arg-type]
    assert not list(tmp_path.glob("out*"))
