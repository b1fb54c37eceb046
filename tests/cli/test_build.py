"""The verb build: what a few photos make, and mistakes in its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

Call = Callable[..., tuple[int, str, str]]
LONG = "x" * 300


def write_photos(root: Path, count: int) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(str(root / name / f"{number}.png"), np.full((30, 30, 3), 20 * number % 256, np.uint8))
    return root


def test_fourteen_photos_of_two_classes_make_a_data_set(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos", 7)
    code, out, _ = call("build", "folder", "--root", photos, "--out", tmp_path / "out", "--workers", 1, "--json")
    assert code == 0
    assert json.loads(out)["records"] == {"train": 10, "val": 2, "test": 2}
    monkeypatch.setattr("imagenet_pipeline.records.build.FEWEST_MEAN_IMAGES", 1)
    code, _, _ = call(
        *("build", "folder", "--root", photos, "--out", tmp_path / "sampled", "--workers", 1, "--no-mean")
    )
    statistics = [json.loads((tmp_path / name / "mean.json").read_text()) for name in ("out", "sampled")]
    assert (code, "images" in statistics[0], statistics[1]["images"]) == (0, False, 1)
    assert "(of a sample of 1 image)" in call("inspect", tmp_path / "sampled")[1]
    source = json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]
    assert source["fractions"] == {"val": "one a class", "test": "one a class"}
    words = ("build", "folder", "--root", photos, "--out", tmp_path / "other", "--val-fraction", 0.1)
    code, _, err = call(*words)
    assert (code, err.count("\n")) == (3, 1)
    assert "cannot cut 1 of 14 images" in err


def write_faces(root: Path) -> Path:
    for subject in range(20):
        folder = root / ("happy", "anger")[subject % 2]
        folder.mkdir(parents=True, exist_ok=True)
        for number in (17, 18):
            cv2.imwrite(str(folder / f"S{subject:03d}_001_{number:08d}.png"), np.full((48, 48), subject, np.uint8))
    return root


@pytest.mark.parametrize("builder", ["folder", "list", "ckplus"])
def test_a_damaged_photo_is_refused_or_kept_by_every_builder(builder: str, call: Call, tmp_path: Path) -> None:
    photos = write_faces(tmp_path / "photos") if builder == "ckplus" else write_photos(tmp_path / "photos", 12)
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    good = cv2.imencode(".jpg", cv2.resize(noise, (120, 120), interpolation=cv2.INTER_CUBIC))[1].tobytes()
    damaged = next(photos.rglob("*.png"))
    damaged.write_bytes(good[: len(good) // 2] + b"\xff\xd9")
    words: list[object] = ["build", builder, "--root", photos, "--workers", 1]
    if builder == "list":
        rows = [f"{n}\t0\t{path.relative_to(photos)}\n" for n, path in enumerate(photos.rglob("*.png"))]
        (tmp_path / "all.lst").write_text("".join(rows))
        words += ["--list", tmp_path / "all.lst"]
    code, _, err = call(*words, "--out", tmp_path / "strict")
    assert code == 3
    assert f"{damaged.relative_to(photos)} (damaged: Corrupt JPEG data: premature end" in err
    code, out, _ = call(*words, "--out", tmp_path / "lax", "--keep-damaged")
    assert code == 0
    assert "damaged: 1 stored all the same, as --keep-damaged asks" in out
    assert "--keep-damaged" in call("build", "imagenet", "--help")[1]


@pytest.mark.parametrize(
    "words",
    [
        ("build", "folder", "--root", "photos"),
        ("build", "list", "--list", "all.lst", "--root", "photos", "--val-fraction", 0.3),
        ("build", "imagenet", "--root", "photos"),
        ("build", "ckplus", "--root", "photos"),
        ("build", "digits"),
        ("probe", "f.npz"),
    ],
)
def test_a_seed_that_scikit_learn_cannot_have_is_refused(
    words: tuple[object, ...], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*words, "--out", "out", "--seed", 2**32)
    assert code == 2
    assert "'--seed': Input should be less than or equal to 4294967295" in err


def test_the_largest_seed_builds(call: Call, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 20)
    words = ("build", "folder", "--root", photos, "--out", tmp_path / "out", "--lists-only", "--seed", 2**32 - 1)
    assert call(*words)[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("build", "folder", "--out", "out", "--root", LONG),
        ("build", "ckplus", "--out", "out", "--root", LONG),
        ("verify", LONG),
        ("inspect", LONG),
        ("evaluate", LONG),
        ("verify", "closed/records"),
    ],
)
def test_a_name_that_is_too_long_or_not_to_be_entered_is_one_line(
    words: tuple[str, ...], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("closed").mkdir(mode=0)
    code, out, err = call(*words)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "unexpected" not in err


def test_links_and_folders_are_left_out_when_asked_for(call: Call, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    (photos / "owl").symlink_to(write_photos(tmp_path / "elsewhere", 4) / "cat")
    words = ("build", "folder", "--root", photos, "--json", "--lists-only", "--out")
    answer = json.loads(call(*words, tmp_path / "all")[1])
    assert answer["classes"] == 3
    answer = json.loads(call(*words, tmp_path / "inner", "--no-follow")[1])
    assert answer["classes"] == 2
    code, _, err = call(*words, tmp_path / "fewer", "--leave-out", "owl", "--leave-out", "cat")
    assert (code, err.count("\n")) == (3, 1)
    assert "the folder has a single class; expected two or more class folders; found dog" in err


def test_a_linked_image_elsewhere_is_stored(call: Call, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    other = write_photos(tmp_path / "elsewhere", 1)
    (photos / "cat" / "link.png").symlink_to(other / "dog" / "0.png")
    words = ("build", "folder", "--root", photos, "--out", tmp_path / "out", "--workers", 1, "--json")
    code, out, _ = call(*words)
    assert code == 0
    assert sum(json.loads(out)["records"].values()) == 9


@pytest.mark.parametrize("verb", ["folder", "list"])
@pytest.mark.parametrize("content", ["{}", '{"order": [1]}', "[1]", "\0"])
def test_a_file_that_names_no_classes_is_the_users_own_fault(
    verb: str, content: str, call: Call, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    (tmp_path / "classes.json").write_text(content)
    (tmp_path / "a.lst").write_text("0\t0\tcat/0.png\n1\t1\tdog/0.png\n")
    given = ("--list", tmp_path / "a.lst") if verb == "list" else ()
    words = ("build", verb, *given, "--root", photos, "--classes", tmp_path / "classes.json", "--out", tmp_path / "out")
    code, _, err = call(*words)
    assert (code, err.count("\n")) == (3, 1)
    assert "classes.json" in err


def test_records_of_others_are_trained_on_and_evaluated(
    call: Call, unpacked: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = next(path.parent for path in unpacked("mxnet_files_shared.tar.xz").rglob("val.rec"))
    words = ("--train", folder / "train.rec", "--val", folder / "val.rec", "--out", tmp_path / "set", "--workers", 1)
    code, out, err = call("build", "records", *words)
    assert (code, err) == (0, "")
    assert "1,380 train, 392 val in 20 classes" in out
    keys = (f"records={tmp_path / 'set'}", "network=lenet", "input.size=28", "epochs=1", "loader.threads=0")
    code, out, err = call("train", "demo", "--run", tmp_path / "run", *keys)
    assert code == 0, err
    code, out, _ = call("evaluate", tmp_path / "run", "--json")
    own = json.loads(out)
    code, out, _ = call("evaluate", tmp_path / "run", "--records", folder / "val.rec", "--split", "val", "--json")
    alone = json.loads(out)
    assert (own["images"], own["rank1"] > 20) == (392, True)
    assert {key: alone[key] for key in ("images", "rank1", "rank5", "loss")} == {
        key: own[key] for key in ("images", "rank1", "rank5", "loss")
    }
    code, _, err = call("train", "demo", "--run", tmp_path / "other", f"records={folder / 'train.rec'}")
    assert (code, err.count("\n")) == (3, 1)
    assert f"imagenet-pipeline build records --train {folder / 'train.rec'} --out" in err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "no folder for the data set; expected --out DIR, or --adopt"),
        (("--out", "set"), "no record file is given"),
        (("--train", "no.rec", "--adopt"), "no such record file"),
        (("--train", "no.rec", "--out", "set", "--label-column", "-1"), "label-column"),
    ],
)
def test_words_for_records_that_make_no_sense(
    words: tuple[str, ...], told: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call("build", "records", *words)
    assert code in (2, 3)
    assert told in err
    assert list(tmp_path.iterdir()) == []


def test_records_adopted_lie_where_they_are(call: Call, stock_record: Callable[..., bytes], tmp_path: Path) -> None:
    image = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    frames = [stock_record((5, 6), 0, b""), *(stock_record(label, label, image) for label in (4, 8))]
    (tmp_path / "train.rec").write_bytes(b"".join(frames))
    code, out, _ = call("build", "records", "--train", tmp_path / "train.rec", "--adopt", "--workers", 1)
    assert code == 0
    assert "2 train in 2 classes" in out
    assert "records without an image: 1, left out" in out
    assert (tmp_path / "manifest.json").exists()
    code, out, _ = call("verify", tmp_path)
    assert (code, "2 checksums right" in out) == (0, True)
