"""The verbs predict and picture (of data) as a user meets them, on trained digits."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_pipeline.records.reader import RecordSet

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def pictures(world: Path) -> Path:
    """The digits the run was validated on, by label."""
    with RecordSet.open(world / "digits", "val") as records:
        for position in range(len(records)):
            record = records.read(position)
            place = world / "pictures" / f"{record.labels[0]:g}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{position}.jpg").write_bytes(record.image)
    return world / "pictures"


def test_nothing_that_is_read_is_written_over(call: Call, world: Path, tmp_path: Path) -> None:
    picture = shutil.copy(next((world / "pictures").rglob("*.jpg")), tmp_path / "a.png")
    listed = tmp_path / "list.csv.txt"
    listed.write_text(f"{picture}\n")
    content = Path(picture).read_bytes()
    for words in (
        [picture, "--sheet", picture],
        [listed, "--sheet", picture],
        [picture, "--out", picture],
        [listed, "--out", listed],
        [picture, "--out", tmp_path / "b.png", "--sheet", tmp_path / "b.png"],
    ):
        code, _, err = call("predict", world / "run", *words)
        assert (code, err.count("\n")) == (2, 1)
        assert "overwrite" in err or "csv" in err
    assert Path(picture).read_bytes() == content
    assert listed.read_text() == f"{picture}\n"


def test_the_hits_are_those_of_validation_and_text_says_what_json_says(call: Call, world: Path) -> None:
    words = ("predict", world / "run", world / "pictures", "--checkpoint", "latest", "--top", 3)
    code, out, _ = call(*words, "--json")
    answer = json.loads(out)
    assert code == 0
    assert list(answer) == ["run", "checkpoint", "predictions", "unreadable"]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    right = [one["top"][0]["name"] == names[int(Path(one["file"]).parent.name)] for one in answer["predictions"]]
    history = list(csv.DictReader((world / "run" / "history.csv").read_text().splitlines()))
    assert len(right) == 300
    assert 100 * sum(right) / 300 == pytest.approx(float(history[-1]["validation_rank1"]))
    code, out, _ = call(*words)
    lines = out.splitlines()
    assert len(lines) == 4 * 300 + 1
    assert lines[-1] == "300 pictures"
    for number, one in enumerate(answer["predictions"]):
        assert lines[4 * number] == one["file"]
        first = one["top"][0]
        assert lines[4 * number + 1].split() == [
            f"{100 * first['probability']:.2f}",
            "%",
            first["class"],
            first["name"],
        ]


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(call: Call, world: Path, tmp_path: Path) -> None:
    shutil.copy(next((world / "pictures" / "0").iterdir()), tmp_path / "a.jpg")
    (tmp_path / "b\x1b[2J.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:400])
    (tmp_path / "list.txt").write_text("gone.jpg\na.jpg\n")
    words = ("predict", world / "run", tmp_path / "list.txt", tmp_path, "--root", tmp_path, "--top", 1)
    code, out, err = call(*words)
    assert code == 3
    assert err.splitlines()[-1] == "error: 2 of 4 pictures could not be read"
    lines = out.splitlines()
    assert lines[0] == f"{tmp_path}/gone.jpg: not read: file is missing"
    assert [line.endswith("a.jpg") for line in lines[1:3]] == [True, True]
    assert "b\\x1b[2J.jpg: not read: " in lines[3]
    assert lines[4:] == ["4 pictures, 2 not read"]
    code, out, _ = call(*words, "--out", tmp_path / "t.csv")
    assert code == 3
    assert out.splitlines() == [lines[0], lines[3], f"4 pictures, 2 not read: {tmp_path}/t.csv"]
    code, out, _ = call(*words, "--json")
    answer = json.loads(out)
    assert code == 3
    assert [len(answer[key]) for key in ("predictions", "unreadable")] == [2, 2]
    assert answer["unreadable"][0] == {"file": str(tmp_path / "gone.jpg"), "reason": "file is missing"}


def test_pictures_and_a_table_are_written(call: Call, world: Path, tmp_path: Path) -> None:
    where = {"--annotate": tmp_path / "out", "--sheet": tmp_path / "sheet.png", "--out": tmp_path / "table.csv"}
    words = [word for pair in where.items() for word in pair]
    folder = world / "pictures" / "0"
    code, out, _ = call("predict", world / "run", folder, *words, "--crops", 2, "batch_size=7")
    assert code == 0
    given = sorted(path.name for path in folder.iterdir())
    assert out.splitlines() == [
        f"annotated: {tmp_path}/out",
        f"sheet: {tmp_path}/sheet.png, {len(given)} pictures",
        f"{len(given)} pictures: {tmp_path}/table.csv",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == given
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [str(folder / name) for name in given]
    assert all(row["probability_1"] >= row["probability_2"] for row in rows)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run"], 2, "PICTURE"),
        (["run", "devices=cpu"], 2, "no picture is named"),
        (["run", "gone.png"], 3, "gone.png: no such picture"),
        (["run", "s3://bucket/p/"], 3, "s3://bucket/p: pictures are read from this machine alone"),
        (["nowhere", "pictures"], 2, "nowhere"),
        (["run", "pictures", "epochs=3"], 2, "'epochs' does not apply"),
        (["run", "pictures", "--crops", "3"], 2, "1, 2 or 10"),
        (["run", "pictures", "--sheet", "x.jpg"], 2, ".png"),
        (["run", "pictures", "--annotate", "pictures"], 2, "among the originals"),
        (["run", "pictures", "--annotate", "recipe.toml"], 2, "into a folder"),
        (["run", "pictures", "--out", "pred.json"], 2, "a name that ends in .csv"),
        (["run", "pictures", "--checkpoint", "99"], 2, "99"),
    ],
)
def test_a_mistake_is_one_line(
    call: Call, world: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(world)
    if {"--out", "--sheet", "--annotate"} & {*words}:
        monkeypatch.setattr("imagenet_pipeline.evaluation.predict.open_classifier", None)  # refused before
    found, out, err = call("predict", *words)
    assert (found, out) == (code, "")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize("verb", ["predict", "picture augmentation", "picture classes", "picture sizes"])
def test_help_shows_an_example(call: Call, verb: str) -> None:
    code, out, _ = call(*verb.split(), "--help")
    assert code == 0
    assert f"imagenet-pipeline {verb}" in out.replace("\n", " ").partition("Example")[2]


def test_pictures_of_the_data(call: Call, world: Path, tmp_path: Path) -> None:
    code, out, _ = call("picture", "classes", world / "digits", "--out", tmp_path / "c.png", "--json")
    assert code == 0
    assert [sum(each) for each in json.loads(out)["images"].values()] == [1197, 300, 300]
    code, out, _ = call("picture", "sizes", world / "digits", "--out", tmp_path / "s.png", "--json")
    first = json.loads(out)["sizes"][0]
    assert (first["split"], first["quantity"], first["least"], first["most"]) == ("train", "width", 32, 32)
    words = ("picture", "augmentation", world / "run", "augmentation.mixup=0.2", "--record", 5, "--draws", 6)
    assert call(*words, "--out", tmp_path / "a.png")[0] == 0
    for name in "csa":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = call(*words[:3], "--record", 5000, "--out", tmp_path / "x.png")
    assert (code, out) == (3, "")
    assert "no such record" in err


def test_a_submission_has_the_hits_of_validation(call: Call, world: Path, tmp_path: Path) -> None:
    paths = sorted((world / "pictures").rglob("*.jpg"))
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("id,label\n" + "".join(f"{path.stem},seven\n" for path in paths))
    words = (world / "run", world / "pictures", "--checkpoint", "latest", "--sample", sample)
    code, out, _ = call("submit", *words, "--out", tmp_path / "s.csv", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 300)
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    right = [row["label"] == names[int(path.parent.name)] for row, path in zip(rows, paths, strict=True)]
    history = list(csv.DictReader((world / "run" / "history.csv").read_text().splitlines()))
    assert 100 * sum(right) / 300 == pytest.approx(float(history[-1]["validation_rank1"]))
    sample.write_text("id,label\nnowhere,seven\n")
    code, _, err = call("submit", *words, "--out", tmp_path / "t.csv")
    assert (code, err.count("\n"), (tmp_path / "t.csv").exists()) == (3, 1, False)
