"""Names of classes from files of others: one reading for every verb."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import class_names
from imagenet_pipeline.records.class_names import names_of, read_classes
from imagenet_pipeline.records.classes import ClassTable

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a text, or anything else as JSON; its path."""

    def file(content: Any) -> Path:
        path = tmp_path / ("names.txt" if isinstance(content, str) else "names.json")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for every example of a property."""
    return tmp_path_factory.mktemp("names")


def printable_word(text: str) -> bool:
    return text == text.strip() and text.isprintable() and text == unicodedata.normalize("NFC", text)


WORDS = st.text(st.sampled_from("abc \"'\\,:;äßé犬ñ-_.()[]{}#0123"), min_size=1, max_size=12).filter(printable_word)
NAMES = st.lists(WORDS, min_size=2, max_size=6, unique=True)


def wnid(number: int) -> str:
    return f"n{number:08d}"


FORMS: dict[str, Callable[[Sequence[str]], Any]] = {
    "tab": lambda names: "\n".join(f"{wnid(i)}\t{name}" for i, name in enumerate(names)),
    "blank": lambda names: "\r\n".join(f"{wnid(i)} {name}" for i, name in enumerate(names)),
    "number pairs": lambda names: {str(i): [wnid(i), name] for i, name in reversed([*enumerate(names)])},
    "ids": lambda names: {wnid(i): name for i, name in enumerate(names)},
    "ours": lambda names: ClassTable("wnid", tuple(map(wnid, range(len(names)))), tuple(names)).as_json(),
    "card": lambda names: {"classes": FORMS["ours"](names), "written_by": "x"},
}
UNNAMED_FORMS: dict[str, Callable[[Sequence[str]], Any]] = {
    "numbers": lambda names: {str(i): name for i, name in reversed([*enumerate(names)])},
    "name to number": lambda names: {name: i for i, name in reversed([*enumerate(names)])},
    "list": list,
}


@given(NAMES, st.sampled_from(sorted(FORMS)))
def test_ids_and_names_survive_every_form(folder: Path, names: list[str], form: str) -> None:
    content = FORMS[form](names)
    path = folder / ("x.txt" if isinstance(content, str) else "x.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8-sig")
    ids = tuple(map(wnid, range(len(names))))
    assert read_classes(path) == ClassTable("wnid", ids, tuple(names))
    assert names_of(ids[::-1], path) == tuple(names[::-1])


@given(NAMES, st.sampled_from(sorted(UNNAMED_FORMS)))
def test_names_alone_survive_every_form(folder: Path, names: list[str], form: str) -> None:
    path = folder / "x.json"
    path.write_text(json.dumps(UNNAMED_FORMS[form](names)), encoding="utf-8")
    if form == "numbers" or not all(name.isdigit() for name in names):
        assert read_classes(path) == ClassTable("list", tuple(names), tuple(names))
    assume(not set(names) & set(map(str, range(len(names)))))
    assert names_of(names, path) == tuple(names)
    assert names_of([f"folder {i}" for i in range(len(names))], path) == tuple(names)


@given(NAMES)
def test_a_line_is_a_name_with_its_blanks(folder: Path, names: list[str]) -> None:
    assume(not all(any(letter.isdigit() for letter in name.split()[0]) for name in names))
    assume(not names[0].startswith(("{", "[")))
    path = folder / "x.txt"
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    assert read_classes(path).names == tuple(names)
    assert names_of(names, path) == tuple(names)


def test_folders_are_found_by_first_words_too(write: Write) -> None:
    path = write("cat Felis catus\ndog Canis familiaris\nemu Dromaius\n")
    assert names_of(["dog", "cat"], path) == ("Canis familiaris", "Felis catus")
    assert read_classes(path).ids[0] == "cat Felis catus"


def test_folders_are_found_by_number_and_by_name(write: Write) -> None:
    index = {"0": ["n01", "great grey"], "1": ["n02", "great white"], "2": ["n03", "hammerhead"]}
    assert names_of(["1", "0"], write(index)) == ("great white", "great grey")
    assert names_of(["great white"], write(index)) == ("great white",)
    assert names_of(["3", "1"], write({"1": "pink primrose", "2": "orchid", "3": "bells"})) == (
        "bells",
        "pink primrose",
    )


def test_an_umlaut_may_be_written_in_two_ways(write: Write) -> None:
    folders = [unicodedata.normalize("NFD", name) for name in ("Bär", "Möwe")]
    assert names_of(folders, write("Möwe\tgull\nBär\tbear\n")) == ("bear", "gull")


def test_names_without_ids_go_to_the_folders_in_turn_and_this_is_said(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        assert names_of(["a", "b"], write("great grey\ngreat white\n")) == ("great grey", "great white")
    assert "names no folder, so its names go to the sorted folders in turn: a is great grey, b is" in caplog.text
    for content in ("great grey\n", "a\ngreat white\n", "x\tcat\ny\tdog\n", {"n01": "cat", "n02": "dog"}):
        with pytest.raises(BadInput, match="no name for the class"):
            names_of(["a", "b"], write(content))


def test_numbers_say_the_label_wherever_they_stand(write: Write) -> None:
    assert read_classes(write("1 dog\n0 cat\n")).names == ("cat", "dog")
    assert read_classes(write("1\tdog\n0\tcat\n")).ids == ("cat", "dog")


def test_two_classes_of_one_name_are_told_by_number(write: Write) -> None:
    assert read_classes(write("crane\nheron\ncrane\n")) == ClassTable(
        "list", ("0", "1", "2"), ("crane", "heron", "crane")
    )


def test_unsorted_wnids_are_in_the_order_of_the_list(write: Write) -> None:
    ids = ("n01443537", "n01440764")
    assert read_classes(write("n01443537\n\nn01440764\n")) == ClassTable("list", ids, ids)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the file's number of classes is out of range; expected 1.."),
        ({}, "the file's number of classes is out of range"),
        ("n01440764 a\nn01440764 b\n", "a class id is given twice; found 'n01440764'"),
        ("a\tb\nc\n", "a line has no tab, though others have; expected id TAB name; found 'c'"),
        ("cat\x1b[2J\n", "a class name cannot be printed"),
        ("{'0': 'cat'}", "not a JSON file"),
        ([1], "the file names no classes; expected a class a line"),
        ([["n01", "cat"]], "the file names no classes"),
        ({"cat": True}, "the file names no classes"),
        ({"cat": 1.0}, "the file names no classes"),
        ({"n01": ["n01", "cat"]}, "the file names no classes"),
        ({"0": ["n01"]}, "the file names no classes"),
        ({"1": "cat", "2": "dog"}, "not numbered from 0; expected 0..1, once each; found 1..2; subtract one from each"),
        ({"cat": 0, "dog": 9_999_999}, "not numbered from 0; expected 0..1, once each; found 0..9,999,999"),
        ({"cat": 0, "dog": 0}, "a class id is given twice"),
        ({"order": "x", "ids": ["a", "a"], "names": ["b", "c"]}, "distinct ids"),
        ({"order": "x", "ids": "ab", "names": ["b", "c"]}, "not a class table"),
        ({"classes": 3}, "not numbered from 0"),
    ],
)
def test_what_names_no_classes_is_the_users_own_fault(write: Write, content: Any, says: str) -> None:
    path = write(content)
    with pytest.raises(BadInput) as caught:
        read_classes(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_key_given_twice_loses_no_class(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"0": "cat", "0": "dog"}')
    with pytest.raises(BadInput, match="a key is given twice; found '0'"):
        read_classes(tmp_path / "x.json")


def test_what_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "names.csv").write_text("id,name\n")
    (tmp_path / "long").write_text("a\nb\nc\n")
    monkeypatch.setattr(class_names, "CLASSES_LIMIT", 2)
    for name, says in {
        "pipe": "not a regular file", "bytes": "not a readable text file", "names.csv": "CSV", "gone": "No such file",
        "long": "expected 1..2 classes; found 3",
    }.items():  # fmt: skip
        with pytest.raises(BadInput, match=says):
            read_classes(tmp_path / name)
    monkeypatch.setattr(class_names, "FILE_LIMIT_BYTES", 5)
    with pytest.raises(BadInput, match="too large"):
        read_classes(tmp_path / "long")
