"""What reaches the terminal."""

from __future__ import annotations

import pytest

from imagenet_pipeline.cli.output import say, say_table


def test_nothing_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say("dog, ü \x1b[2J\r\nb\udcff")
    say_table(["class", "hits"], [["a\x1b[2J", 3]])
    assert capsys.readouterr().out.splitlines() == [
        "dog, ü \\x1b[2J\\r\\nb\\udcff",
        "class  hits",
        "a\\x1b[2J     3",
    ]
