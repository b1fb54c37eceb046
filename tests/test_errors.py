"""Errors are one line, carry an exit code, and come home from a worker process."""

from __future__ import annotations

import pickle

import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom, PipelineError, WorkerLost, counted, extent

KINDS = {BadRecipe: 2, BadInput: 3, Damaged: 4, OutOfRoom: 5, WorkerLost: 6}


@pytest.mark.parametrize(("kind", "exit_code"), KINDS.items())
def test_every_kind_has_its_exit_code(kind: type[PipelineError], exit_code: int) -> None:
    assert kind("x").exit_code == exit_code
    assert issubclass(kind, PipelineError)


def test_the_line_says_what_where_expected_found_and_what_to_do() -> None:
    error = BadInput("label out of range", where="a.lst:7", expected="0..9", found=12, advice="mend the list")
    assert str(error) == "a.lst:7: label out of range; expected 0..9; found 12; mend the list"


def test_a_message_is_one_line_whatever_was_found() -> None:
    assert str(BadInput("odd name", found="two\nlines\tand tabs")) == "odd name; found two lines and tabs"


def test_falsy_fields_are_said_too() -> None:
    assert str(BadInput("empty", expected=1, found=0)) == "empty; expected 1; found 0"


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_kind_fields_and_line(kind: type[PipelineError]) -> None:
    error = kind("what", where="where", expected=(1, 2), found="found", advice="advice")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_error_can_be_told_in_part_otherwise() -> None:
    error = Damaged("cut", where="a.rec", expected=9, found=0, advice="build again")
    told = error.replaced(where=None, advice="fetch it")
    assert (type(told), str(told)) == (Damaged, "cut; expected 9; found 0; fetch it")
    assert str(error) == "a.rec: cut; expected 9; found 0; build again"


def test_what_a_file_calls_itself_cannot_move_the_cursor() -> None:
    assert str(BadInput("no class \x1b[2J", found="ü")) == "no class \\x1b[2J; found ü"


def test_numbers_stand_before_the_right_form_of_a_noun() -> None:
    said = [counted(1, "class"), counted(2, "class"), counted(1, "epoch"), counted(0, "epoch"), counted(1000, "image")]
    assert said == ["1 class", "2 classes", "1 epoch", "0 epochs", "1,000 images"]
    assert (extent(4, 4), extent(0, 1000)) == ("4", "0..1,000")
