"""A table of images and labels becomes a plan, in every form in which programs write one."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imagenet_pipeline as ip
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.record_builders import csv_labels, csv_rows
from imagenet_pipeline.records.image import encode_jpeg
from imagenet_pipeline.records.lists import read_list
from imagenet_pipeline.records.plan import Plan

BREEDS = ("beagle", "pug", "St. Bernard, long-haired")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 photos, 00.jpg to 29.jpg: empty files, as a plan reads no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.jpg").touch()
    return folder


@pytest.fixture
def planned(photos: Path) -> Callable[..., Plan]:
    """`planned(lines)`: the plan of a table of these lines, id and breed its columns."""

    def make(text: str | bytes, name: str = "labels.csv", **options: object) -> Plan:
        path = photos.parent / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        asked = {"image_column": "id", "label_column": "breed", "suffix": ".jpg"} | options
        return csv_labels.plan(path, photos, **asked)  # type: ignore[arg-type]

    return make


def labels_csv(separator: str = ",", end: str = "\n", quote: str = '"') -> str:
    rows = [f"{n:02d}{separator}{quote}{BREEDS[n % 3]}{quote}" for n in range(30)]
    return end.join([f"id{separator}breed", *rows, ""])


def classes_by_path(plan: Plan) -> dict[str, str]:
    rows = [row for images in plan.splits.values() for row in zip(images.paths, images.labels.tolist(), strict=True)]
    return {path: plan.classes.ids[label] for path, label in rows}


EXPECTED = {f"{n:02d}.jpg": BREEDS[n % 3] for n in range(30)}


@pytest.mark.parametrize(
    "text",
    [
        labels_csv(),
        labels_csv(";", "\r\n"),
        labels_csv("\t", quote=""),
        labels_csv("|"),
        "\ufeff" + labels_csv(),
        "\n".join(["Breed, ID ", *(f'"{BREEDS[n % 3]}", {n:02d}' for n in range(30))]),
        labels_csv().replace("00,", "00.jpg,").replace("01,", "01.jpg,"),
    ],
    ids=["commas", "semicolons", "tabs", "bars", "byte order mark", "other order and blanks", "endings of some"],
)  # fmt: skip
def test_tables_of_every_form_say_the_same(text: str, planned: Callable[..., Plan]) -> None:
    plan = planned(text)
    assert classes_by_path(plan) == EXPECTED
    assert plan.classes.ids == tuple(sorted(BREEDS))
    assert plan.counts == {"train": 24, "val": 3, "test": 3}
    assert plan.digest == planned(labels_csv()).digest


def test_a_packed_table_is_read(planned: Callable[..., Plan]) -> None:
    assert classes_by_path(planned(gzip.compress(labels_csv().encode()), "labels.csv.gz")) == EXPECTED


def test_numbers_are_classes_by_value(planned: Callable[..., Plan]) -> None:
    rows = [f"{n:02d},{(10, 9, 2)[n % 3]}{'.0' * (n % 2)}" for n in range(30)]
    plan = planned("\n".join(["id,breed", *rows]))
    assert plan.classes.ids == ("2", "9", "10")
    assert classes_by_path(plan) == {f"{n:02d}.jpg": ("10", "9", "2")[n % 3] for n in range(30)}
    # A zero in front makes a word.
    assert planned("\n".join(["id,breed", *rows]).replace(",9", ",09")).classes.ids[0] == "09"


def test_names_are_those_of_a_file(planned: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("1\tone\n0\tzero\n")
    rows = [f"{n:02d},{n % 2}" for n in range(30)]
    assert planned("\n".join(["id,breed", *rows]), classes=tmp_path / "names.txt").classes.names == ("zero", "one")


def test_a_column_says_the_splits(planned: Callable[..., Plan]) -> None:
    words = ["Train", "training", "val", "TEST"]
    text = "\n".join(["id,breed,set", *(f"{n:02d},{'ab'[n // 4 % 2]},{words[n % 4]}" for n in range(30))])
    plan = planned(text, split_column="set")
    assert plan.counts == {"train": 16, "val": 7, "test": 7}
    assert plan.splits["val"].paths == [f"{n:02d}.jpg" for n in range(2, 30, 4)]
    without_test = planned(text.replace("TEST", "train"), split_column="set", test_fraction=0.25)
    assert without_test.counts == {"train": 17, "val": 7, "test": 6}
    with pytest.raises(BadInput, match="rows are for val: no val split is cut out of train"):
        planned(text, split_column="set", val_fraction=0.1)
    with pytest.raises(BadInput, match=r"line 3: the split is unknown; expected train, val .*; found 'holdout'"):
        planned(text.replace("training", "holdout"), split_column="set")
    with pytest.raises(BadInput, match="no row is for train; found test, val"):
        planned(text.replace("Train", "val").replace("training", "val"), split_column="set")


def test_a_row_given_twice_counts_once(planned: Callable[..., Plan], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert classes_by_path(planned(labels_csv() + "00,beagle\n")) == EXPECTED
    assert "rows that repeat an image, left out: 00.jpg in line 32" in caplog.text


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        ("", {}, "labels.csv: no column id; expected id, breed; found nothing"),
        ("id,breed\n", {}, "labels.csv: the table has no rows"),
        ("id,breeds\n00,pug\n", {}, "no column breed; expected id, breed; found id, breeds; did you mean breeds?"),
        ("id,breed,Breed\n00,pug,pug\n", {}, "labels.csv: two columns are called breed"),
        ("id,breed\n00,pug,3\n", {}, "labels.csv, line 2: the row is malformed; expected 2 fields"),
        ("id,breed\n00,pug\n01,\n", {}, "labels.csv, line 3: the row has no label"),
        ("id,breed\n,pug\n", {}, "labels.csv, line 2: the row has no image"),
        ("id,breed\n00,pug\n01,pug\n", {}, "all rows have one label; expected two or more classes; found pug"),
        ("id,breed\n00,pug\n00,beagle\n", {}, "line 3: the image has two labels; found 00.jpg as 'beagle', and as"),
        ("id,breed\n../00,pug\n", {}, "line 2: the path leads outside the root folder; found ../00.jpg"),
        ("id,breed\na\\00,pug\n", {}, "the path has backslashes"),
        (labels_csv() + "30,pug\n31,pug\n", {}, "2 of 32 images are not there; expected 30.jpg, 31.jpg (2 in all)"),
        (labels_csv(), {"suffix": ""}, "30 of 30 images are not there; expected 00, 01, 02, ... (30 in all); say"),
        (labels_csv(), {"suffix": ".png"}, "say --suffix .jpg"),
        (b"id,breed\n\xff,pug\n", {}, "the file is damaged, or no CSV"),
        (labels_csv().encode("utf-16"), {}, "start byte); save it as CSV in UTF-8"),
        ("id,breed\n00\0,pug\n", {}, "1 of 1 images are not there"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(
    text: str | bytes, options: dict[str, object], line: str, planned: Callable[..., Plan]
) -> None:
    with pytest.raises(BadInput) as raised:
        planned(text, **options)
    assert line in str(raised.value)


FIELDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=8), st.sampled_from(",;\t|"))
def test_quoted_fields_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], separator: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    quoted = [[f'"{field.replace(chr(34), chr(34) * 2)}"' for field in row] for row in rows]
    path.write_text("\n".join(separator.join(row) for row in [["a", "b"], *quoted]), encoding="utf-8")
    assert [(row["a"], row["b"]) for _, row in csv_rows.rows_of(path, ("a", "b"))] == rows


def test_records_are_built_from_the_command_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from imagenet_pipeline.cli import main

    draw = np.random.default_rng(0)
    for photo in photos.iterdir():
        photo.write_bytes(encode_jpeg(draw.integers(0, 256, (8, 8, 3), np.uint8), 90))
    (tmp_path / "labels.csv").write_text(labels_csv())
    words = ["--csv", tmp_path / "labels.csv", "--root", photos, "--image-column", "id", "--label-column", "breed"]
    with pytest.raises(SystemExit) as ended:
        main(["build", "csv", *map(str, words), "--suffix", ".jpg", "--out", str(tmp_path / "out"), "--workers", "1"])
    assert ended.value.code == 0
    assert "24 train, 3 val, 3 test in 3 classes" in capsys.readouterr().out
    names = sorted(BREEDS)
    for row in read_list(tmp_path / "out" / "train.lst"):
        assert names[int(row.labels[0])] == EXPECTED[row.path]
    with pytest.raises(BadInput, match="no such folder"):
        ip.build("csv", csv_file=tmp_path / "labels.csv", root=tmp_path / "no", image_column="id",
                 label_column="breed", out=tmp_path / "other")  # fmt: skip
    assert not (tmp_path / "other").exists()


TAGS = [("cat", "small"), ("dog",), (), ("cat", "dog")]


def rows_by_path(plan: Plan) -> dict[str, list[float]]:
    """The label vector of every image."""
    splits = plan.splits.values()
    return {path: row for images in splits for path, row in zip(images.paths, images.labels.tolist(), strict=True)}


@pytest.mark.parametrize("separator", [" ", "|", ", "])
def test_several_classes_in_a_column(planned: Callable[..., Plan], separator: str) -> None:
    lines = "".join(f'{n:02d};"{separator.join(TAGS[n % 4])}"\n' for n in range(30))
    plan = planned(f"id;breed\n{lines}", label_separator=separator)
    assert (plan.classes.ids, plan.classes.label_kind) == (("cat", "dog", "small"), "classes")
    assert plan.counts == {"train": 24, "val": 3, "test": 3}
    expected = {f"{n:02d}.jpg": [float(name in TAGS[n % 4]) for name in plan.classes.ids] for n in range(30)}
    assert rows_by_path(plan) == expected


def test_a_class_a_column(planned: Callable[..., Plan]) -> None:
    lines = "".join(f"{n:02d},{n % 2},{'yes' if n % 3 else 'No'},{n // 20}.0\n" for n in range(30))
    plan = planned(f"id,odd,other,late\n{lines}", label_column=None, label_columns="odd, other,late")
    assert (plan.classes.ids, plan.classes.label_kind) == (("odd", "other", "late"), "classes")
    assert rows_by_path(plan)["23.jpg"] == [1, 1, 1]
    assert rows_by_path(plan)["06.jpg"] == [0, 0, 0]


def test_numbers(planned: Callable[..., Plan]) -> None:
    lines = "".join(f"{n:02d},{n / 4},-1e{n % 3}\n" for n in range(30))
    plan = planned(f"id,age,depth\n{lines}", label_column=None, label_columns="age,depth", regression=True)
    assert (plan.classes.ids, plan.classes.label_kind) == (("age", "depth"), "number")
    assert rows_by_path(plan)["05.jpg"] == [1.25, -100]
    assert planned(f"id,age,depth\n{lines}", label_column="age", regression=True).classes.ids == ("age",)


def test_a_table_may_have_thousands_of_columns(planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"column {number}" for number in range(9000)]
    lines = [",".join(["id", *names]), *(",".join([f"{n:02d}", *["01"[n % 2]] * 9000]) for n in range(3)), ""]
    plan = planned("\n".join(lines), label_column=None, label_columns=",".join(names), val_fraction=0, test_fraction=0)
    assert plan.splits["train"].labels.sum() == 9000
    monkeypatch.setattr(csv_rows, "_HEADER_LIMIT", 1000)
    with pytest.raises(BadInput, match="the header is too long"):
        planned("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("id,a,b\n00,1,2\n", {"label_columns": "a,b"}, "line 2: b is neither 0 nor 1; found '2'; --regression"),
        ("id,a\n00,1\n01,x\n", {"label_column": "a", "regression": True}, "line 3: a is no number; found 'x'"),
        ("id,a\n00,inf\n", {"label_column": "a", "regression": True}, "a is no number; found 'inf'"),
        ("id,a\n00,1e39\n", {"label_column": "a", "regression": True}, "a is no number; found '1e39'"),
        ("id,a\n00,\n", {"label_column": "a", "label_separator": " "}, "no row has a label"),
        ("id,a\n00,x\n00,y\n", {"label_column": "a", "label_separator": " "}, "two labels.*'y', and as 'x'"),
        ("id,a\n00,1\n", {}, "which column has the labels; expected --label-column or --label-columns"),
        ("id,a\n00,1\n", {"label_column": "a", "label_columns": "a"}, "which column has the labels"),
        ("id,a\n00,1\n", {"label_columns": "a", "label_separator": " "}, "parts the classes of --label-column"),
    ],
)  # fmt: skip
def test_vectors_that_cannot_be_read(
    planned: Callable[..., Plan], text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises((BadInput, BadRecipe), match=message):
        planned(text, **({"label_column": None} | options))
