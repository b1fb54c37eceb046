"""What reaches the terminal."""

from __future__ import annotations

import pytest

from imagenet_pipeline.cli.output import say, say_table, shown_width


def test_nothing_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say("dog, ü \x1b[2J\r\nb\udcff")
    say_table(["class", "hits"], [["a\x1b[2J", 3]])
    assert capsys.readouterr().out.splitlines() == [
        "dog, ü \\x1b[2J\\r\\nb\\udcff",
        "class     hits",
        "a\\x1b[2J     3",
    ]


@pytest.mark.parametrize(
    ("text", "columns"),
    [("dog", 3), ("犬", 2), ("\uff44\uff4f\uff47", 6), ("e\u0301", 1), ("🐕", 2), ("❤\ufe0f", 1), ("नी", 2), ("", 0)],
)
def test_the_width_of_a_text_is_that_on_a_terminal(text: str, columns: int) -> None:
    assert shown_width(text) == columns


def test_columns_begin_at_the_same_place_whatever_the_letters(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(["class", "hits"], [["犬 🐕", 3], ["cafe\u0301", 12], ["a\x1b[2J", 1_000], ["plain", 4]])
    assert {shown_width(line) for line in capsys.readouterr().out.splitlines()} == {len("a\\x1b[2J") + 2 + 4}
