"""FER2013's CSV and FER+'s votes into plans and lossless records."""

from __future__ import annotations

import codecs
import csv
import gzip
import lzma
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagenet_pipeline.record_builders.fer2013 import NO_EMOTION, VOTED, Faces

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.record_builders import fer2013
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.image import decode_rgb
from imagenet_pipeline.records.reader import RecordSet

Row = tuple[int, str]
HEADER = "emotion,pixels,Usage"
ROWS: list[Row] = [
    (0, "Training"), (1, "Training"), (6, "Training"), (3, "PublicTest"), (1, "PublicTest"), (5, "PrivateTest"),
]  # fmt: skip


def face(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (48, 48), dtype=np.uint8)


def csv_text(rows: Sequence[Row] = ROWS) -> str:
    lines = [f"{emotion},{' '.join(map(str, face(n).ravel()))},{usage}" for n, (emotion, usage) in enumerate(rows)]
    return "\n".join([HEADER, *lines]) + "\n"


@pytest.fixture
def faces_csv(tmp_path: Path) -> Path:
    path = tmp_path / "fer2013.csv"
    path.write_text(csv_text())
    return path


def votes_csv(path: Path, votes: Sequence[dict[str, int]], usages: Sequence[str], row_column: bool) -> Path:
    columns = [*(["csv_row"] if row_column else []), "Usage", "Image name", *VOTED, *NO_EMOTION]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="0", extrasaction="ignore")
        writer.writeheader()
        for row, (one, usage) in enumerate(zip(votes, usages, strict=True)):
            writer.writerow({"csv_row": row, "Usage": usage, "Image name": "", **one})
    return path


def test_usages_become_splits_in_the_order_of_the_csv(faces_csv: Path, tmp_path: Path) -> None:
    plan = fer2013.plan(faces_csv, tmp_path / "out")
    assert plan.counts == {"train": 3, "val": 2, "test": 1}
    assert plan.classes.ids == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert plan.splits["train"].labels.tolist() == [0, 1, 6]
    assert plan.splits["val"].labels.tolist() == [3, 1]
    swapped = fer2013.plan(faces_csv, tmp_path / "out", swapped=True)
    assert swapped.counts == {"train": 3, "val": 1, "test": 2}
    assert swapped.digest != plan.digest


def test_six_classes_count_disgust_as_anger(faces_csv: Path, tmp_path: Path) -> None:
    plan = fer2013.plan(faces_csv, tmp_path / "out", classes=6)
    assert plan.classes.ids == ("angry", "fear", "happy", "sad", "surprise", "neutral")
    assert plan.splits["train"].labels.tolist() == [0, 0, 5]
    assert plan.splits["val"].labels.tolist() == [2, 0]
    assert plan.splits["test"].labels.tolist() == [4]


def test_records_hold_the_very_pixels(faces_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(fer2013.plan(faces_csv, out), out, BuildOptions(resize=0, pass_through=True, workers=1))
    with RecordSet.open(out, "val") as records:
        for position, row in enumerate((3, 4)):
            data = records.read(position).image
            assert data.startswith(b"\x89PNG")
            np.testing.assert_array_equal(decode_rgb(data), np.repeat(face(row)[:, :, None], 3, axis=2))


@pytest.mark.parametrize(("ending", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_packed_csv_is_the_same_csv(ending: str, pack: object, faces_csv: Path, tmp_path: Path) -> None:
    packed = tmp_path / f"fer2013.csv{ending}"
    packed.write_bytes(pack(faces_csv.read_bytes()))  # type: ignore[operator]
    plain, unpacked = fer2013.read_faces(faces_csv), fer2013.read_faces(packed)
    assert plain.pixels == unpacked.pixels
    assert plain.usages == unpacked.usages
    whole = packed.read_bytes()
    for damaged in (whole[:-20], whole[:99] + bytes(200) + whole[299:]):
        packed.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"damaged, or no CSV|cannot be read"):
            fer2013.read_faces(packed)


def test_faces_written_once_are_used_again_and_those_of_another_file_refused(faces_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = fer2013.plan(faces_csv, out)
    stamp = (out / "faces" / "Training" / "00000.png").stat().st_mtime_ns
    assert fer2013.plan(faces_csv, out).digest == first.digest
    assert (out / "faces" / "Training" / "00000.png").stat().st_mtime_ns == stamp
    faces_csv.write_text(csv_text(ROWS[:-1]))
    with pytest.raises(BadInput, match="the folder holds faces of another file"):
        fer2013.plan(faces_csv, out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column emotion"),
        ("a,b\n1,2\n", "no column emotion"),
        (HEADER + "\n", "the file has no faces"),
        (HEADER + "\n7,1 2,Training\n", "line 2: not the pixels of a face"),
        (HEADER + "\n0," + "256 " * 2304 + ",Training\n", "not the pixels of a face"),
        (HEADER + "\n0," + "-1 " * 2304 + ",Training\n", "not the pixels of a face"),
        (HEADER + "\n7," + "1 " * 2304 + ",Training\n", "the emotion is out of range; expected 0 to 6; found '7'"),
        (HEADER + "\n0," + "1 " * 2304 + ",Private\n", "the Usage is unknown"),
        (HEADER + "\n0," + "1 " * 2304 + "\n", "the row is malformed"),
        (HEADER + "\n0," + "1 " * 2304 + ",Training,more\n", "the row is malformed"),
        (HEADER + "\n0," + "1 " * 200_000 + ",Training\n", "damaged, or no CSV"),
        ("\x00\x01", "no column emotion"),
    ],
)
def test_a_malformed_csv_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fer2013.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as error:
        fer2013.read_faces(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def faces_text(columns: str, form: str = "{emotion},{usage},{pixels}") -> str:
    """The faces with other column names, each row written in another form."""
    rows = [
        form.format(emotion=emotion, usage=usage, pixels=" ".join(map(str, face(n).ravel())))
        for n, (emotion, usage) in enumerate(ROWS)
    ]
    return "\n".join([columns, *rows]) + "\n"


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        ("emotion, Usage, pixels", "{emotion},{usage},{pixels}"),  # icml_face_data.csv
        (" emotion ,Usage, pixels ", " {emotion} , {usage}, {pixels} "),
        ("EMOTION,usage,Pixels", "{emotion},{usage},{pixels}"),
        ("emotion;Usage;pixels", "{emotion};{usage};{pixels}"),
        ("emotion\tUsage\tpixels", "{emotion}\t{usage}\t{pixels}"),
        ("emotion,Usage,pixels", "{emotion}.0,{usage},{pixels}"),
        ('"emotion", "Usage", "pixels"', '"{emotion}", "{usage}", "{pixels}"'),
        ("emotion,Usage,pixels,", "{emotion},{usage},{pixels},"),
        ("\ufeffemotion,Usage,pixels\r", "{emotion},{usage},{pixels}\r"),
    ],
)
def test_every_usual_form_of_the_csv_holds_the_same_faces(
    columns: str, form: str, faces_csv: Path, tmp_path: Path
) -> None:
    other = tmp_path / "icml_face_data.csv"
    other.write_text(faces_text(columns, form), newline="")
    expected, found = fer2013.read_faces(faces_csv), fer2013.read_faces(other)
    assert (found.pixels, found.usages) == (expected.pixels, expected.usages)
    assert found.emotions.tolist() == expected.emotions.tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            "emotion,pixels",
            r"no column Usage; expected emotion, pixels, Usage; found emotion, pixels; .*icml_face_data",
        ),
        ("pixels", r"no column emotion; .*found pixels; Kaggle's train.csv and test.csv"),
        ("emotion,pixels,Usage,usage", "two columns are called Usage"),
    ],
)
def test_a_csv_of_other_columns_gets_advice(columns: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(columns + "\n")
    with pytest.raises(BadInput, match=message):
        fer2013.read_faces(path)


@pytest.mark.parametrize("emotion", ["0.5", "1e0", "-0", "7.0", "0x1", ".0", "", "nan", "\u0661"])
def test_an_emotion_is_a_whole_number(emotion: str, tmp_path: Path) -> None:
    path = tmp_path / "fer2013.csv"
    path.write_text(f"{HEADER}\n{emotion},{'1 ' * 2304},Training\n")
    with pytest.raises(BadInput, match="line 2: the emotion is out of range; expected 0 to 6"):
        fer2013.read_faces(path)


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_a_pipe_is_refused_before_it_is_waited_for(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"fer2013.csv{ending}"
    os.mkfifo(path)
    with pytest.raises(BadInput, match="not a regular file"):
        fer2013.read_faces(path)


def test_a_missing_csv_and_one_that_is_no_text_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        fer2013.read_faces(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="damaged, or no CSV"):
        fer2013.read_faces(tmp_path / "binary.csv")


def stated_majority(votes: dict[str, int]) -> str | None:
    """What FER+'s paper and authors say of the mode "majority", stated again."""
    counted = Counter({name: count for name, count in votes.items() if count > 1})
    if not counted:
        return None
    (name, count), *_ = counted.most_common(1)
    return name if count * 2 > sum(counted.values()) and name in VOTED else None


@given(st.lists(st.dictionaries(st.sampled_from([*VOTED, *NO_EMOTION]), st.integers(0, 10)), min_size=1, max_size=8))
def test_the_label_of_a_face_is_what_most_of_its_votes_are_for(
    tmp_path_factory: pytest.TempPathFactory, votes: list[dict[str, int]]
) -> None:
    path = votes_csv(tmp_path_factory.mktemp("votes") / "votes.csv", votes, ["Training"] * len(votes), False)
    faces = Faces([b""] * len(votes), np.zeros(len(votes), np.int64), ["Training"] * len(votes))
    labels = fer2013.majority_labels(path, faces)
    assert [None if label < 0 else VOTED[label] for label in labels] == [stated_majority(one) for one in votes]


def test_files_may_begin_with_a_byte_order_mark(faces_csv: Path, tmp_path: Path) -> None:
    votes = votes_csv(tmp_path / "votes.csv", [{"anger": 10}] * len(ROWS), [usage for _, usage in ROWS], False)
    for path in (faces_csv, votes):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert fer2013.plan(faces_csv, tmp_path / "out", votes=votes).counts == {"train": 3, "val": 2, "test": 1}


@pytest.mark.parametrize("row_column", [True, False])
def test_ferplus_leaves_faces_without_a_majority_out(row_column: bool, faces_csv: Path, tmp_path: Path) -> None:
    votes: list[dict[str, int]] = [
        {"anger": 8, "neutral": 2}, {"NF": 10}, {"contempt": 6, "disgust": 4},
        {"happiness": 10}, {"sadness": 5, "fear": 5}, {"surprise": 9, "unknown": 1},
    ]  # fmt: skip
    path = votes_csv(tmp_path / "votes.csv", votes, [usage for _, usage in ROWS], row_column)
    plan = fer2013.plan(faces_csv, tmp_path / "out", votes=path)
    assert plan.classes.ids == VOTED
    assert plan.counts == {"train": 2, "val": 1, "test": 1}
    assert [VOTED[label] for label in plan.splits["train"].labels] == ["anger", "contempt"]
    assert plan.splits["train"].paths == ["Training/00000.png", "Training/00002.png"]


def test_a_face_without_votes_is_refused_where_rows_are_not_numbered(faces_csv: Path, tmp_path: Path) -> None:
    usages = [usage for _, usage in ROWS]
    fewer = votes_csv(tmp_path / "fewer.csv", [{"fear": 10}] * 4, usages[:4], False)
    with pytest.raises(BadInput, match="some faces have no votes; expected votes for every row; found 4 of 6"):
        fer2013.plan(faces_csv, tmp_path / "out", votes=fewer)
    numbered = votes_csv(tmp_path / "numbered.csv", [{"fear": 10}] * 4, usages[:4], True)
    assert fer2013.plan(faces_csv, tmp_path / "out", votes=numbered).counts == {"train": 3, "val": 1}


def test_a_face_with_votes_twice_is_refused(faces_csv: Path, tmp_path: Path) -> None:
    path = votes_csv(tmp_path / "twice.csv", [{"fear": 10}], ["Training"], True)
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(BadInput, match="line 3: row 0 has votes already"):
        fer2013.plan(faces_csv, tmp_path / "out", votes=path)


def test_votes_about_another_file_are_refused(faces_csv: Path, tmp_path: Path) -> None:
    usages = [usage for _, usage in ROWS]
    longer = votes_csv(tmp_path / "longer.csv", [{"fear": 10}] * 7, [*usages, "Training"], False)
    other = votes_csv(tmp_path / "other.csv", [{"fear": 10}] * 6, usages[::-1], False)
    for path in (longer, other):
        with pytest.raises(BadInput, match="votes are about another file"):
            fer2013.plan(faces_csv, tmp_path / "out", votes=path)
    assert not (tmp_path / "out").exists()


def test_the_shared_faces_and_votes(shared_data: Path, tmp_path: Path) -> None:
    path, votes = shared_data / "fer2013_11.5k.csv.xz", shared_data / "ferplus_votes.csv.xz"
    if not path.is_file() or not votes.is_file():
        pytest.skip(f"no FER2013 in {shared_data}")
    faces = fer2013.read_faces(path)
    assert Counter(faces.usages) == {"Training": 8000, "PublicTest": 3561}
    assert np.bincount(faces.emotions).tolist() == [1538, 186, 1635, 2948, 2000, 1315, 1939]
    # All of FER2013, as the votes' own column of Usage has it: a file of 35,887 rows.
    with lzma.open(votes, "rt", newline="") as file:
        rows = {int(row["csv_row"]): row["Usage"] for row in csv.DictReader(file)}
    usages = [rows.get(row, "Training") for row in range(35887)]
    labels = fer2013.majority_labels(votes, Faces([b""] * 35887, np.zeros(35887, np.int64), usages))
    # Barsoum et al. do not print counts by class; neutral and happiness lead, and most faces have a majority.
    counts = np.bincount(labels[labels >= 0], minlength=len(VOTED))
    assert 31_000 < counts.sum() < 35_000
    assert [VOTED[label] for label in np.argsort(-counts)[:2]] == ["neutral", "happiness"]
    with pytest.raises(BadInput, match="votes are about another file"):
        fer2013.majority_labels(votes, faces)


def test_a_written_face_is_the_row_it_is_called_after(faces_csv: Path, tmp_path: Path) -> None:
    fer2013.plan(faces_csv, tmp_path / "out")
    written = cv2.imread(str(tmp_path / "out" / "faces" / "PublicTest" / "00003.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, face(3))
