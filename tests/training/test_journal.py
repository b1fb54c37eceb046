"""The journal: whole lines only, torn ends forgiven, branches told apart."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import Damaged
from imagenet_pipeline.training.journal import COLUMNS, Journal, branches, restarts, write_history


def epoch(number: int, **fields: Any) -> dict[str, Any]:
    return {"event": "epoch", "epoch": number, **fields}


def resume(number: int) -> dict[str, Any]:
    return {"event": "resume", "epoch": number}


def test_events_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert not journal.exists()
    journal.write("start", overrides={"records": "zwei\nZeilen"})
    journal.write("epoch", epoch=1)
    assert journal.exists()
    assert journal.events() == [{"event": "start", "overrides": {"records": "zwei\nZeilen"}}, epoch(1)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_kill_while_writing_costs_at_most_the_line_it_was_writing(tmp_path: Path, data: st.DataObject) -> None:
    """Cut anywhere: whole lines are read, and what is written next is read too."""
    path, journal = tmp_path / "journal.jsonl", Journal(tmp_path)
    path.unlink(missing_ok=True)
    for number in range(1, 4):
        journal.write("epoch", epoch=number)
    content = path.read_bytes()
    length = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:length])
    whole = [epoch(number) for number in range(1, 1 + content[:length].count(b"\n"))]
    assert journal.events() == whole
    journal.write("resume", epoch=0)
    assert journal.events() == [*whole, resume(0)]


@pytest.mark.parametrize("line", [b"{", b"", b"5", b"[]", b"{}", b"\xff", b'{"event": "epo', b"[" * 100_000])
def test_a_damaged_line_inside_is_named(tmp_path: Path, line: bytes) -> None:
    journal = Journal(tmp_path)
    journal.write("start")
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    journal.write("resume", epoch=1)
    with pytest.raises(Damaged, match=r"journal\.jsonl:2: (not a JSON line|the line has changed)"):
        journal.events()


def test_a_changed_figure_is_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write("epoch", epoch=1, train_loss=1.5)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1.5", b"1.4"))
    with pytest.raises(Damaged, match=r"journal\.jsonl:1: the line has changed since it was written"):
        journal.events()


def test_a_new_start_in_the_same_folder_begins_a_new_history() -> None:
    assert branches([epoch(1), epoch(2), {"event": "start"}, epoch(1)])[-1] == [epoch(1)]


def test_a_journal_that_is_not_there_is_damage(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="the journal cannot be read"):
        Journal(tmp_path).events()


def test_a_restart_leaves_the_later_epochs_in_a_branch_of_their_own() -> None:
    events = [{"event": "start"}, epoch(1), epoch(2), epoch(3), resume(1), epoch(2, new=True), {"event": "end"}]
    old, current = branches(events)
    assert old == [epoch(1), epoch(2), epoch(3)]
    assert current == [epoch(1), epoch(2, new=True)]
    assert restarts(events) == [1]


def test_a_restart_at_the_end_is_no_branch() -> None:
    assert branches([epoch(1), resume(1), epoch(2)]) == [[epoch(1), epoch(2)]]


def test_a_restart_of_a_restart() -> None:
    events = [epoch(1), epoch(2), epoch(3), resume(2), epoch(3, b=1), epoch(4), resume(1), epoch(2, c=1)]
    assert branches(events) == [
        [epoch(1), epoch(2), epoch(3)],
        [epoch(1), epoch(2), epoch(3, b=1), epoch(4)],
        [epoch(1), epoch(2, c=1)],
    ]


def test_restarts_are_those_of_the_current_branch_each_once() -> None:
    steps = [epoch(number, step=37 * number) for number in range(1, 9)]
    inside = {"event": "resume", "epoch": 6, "step": 236}
    assert restarts([*steps[:6], inside, inside]) == [pytest.approx(236 / 37)]
    later = {"event": "resume", "epoch": 8, "step": 8 * 37}
    events = [*steps[:6], inside, *steps[6:], later, {"event": "resume", "epoch": 3, "step": 111}]
    assert restarts(events[:-1]) == [pytest.approx(236 / 37), 8]
    assert restarts(events) == [3]
    assert restarts([*events, {"event": "start"}]) == []
    assert restarts([{"event": "resume", "epoch": 0, "step": 5}]) == [0]  # no epoch tells yet how many steps it has


def test_a_run_that_began_again_before_its_first_checkpoint() -> None:
    assert branches([{"event": "start"}, {"event": "start"}, epoch(1)]) == [[epoch(1)]]


def test_the_history_is_the_current_branch(tmp_path: Path) -> None:
    events = [epoch(1, train_loss=2.5), epoch(2), resume(1), epoch(2, train_loss=1.25, step=20, other="x")]
    path = write_history(tmp_path, events)
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["epoch"], row["train_loss"], row["step"]) for row in rows] == [("1", "2.5", ""), ("2", "1.25", "20")]


def lines_of(folder: Path, count: int = 5) -> list[bytes]:
    journal = Journal(folder)
    for number in range(1, count + 1):
        journal.write("epoch", epoch=number, train_loss=1 / number)
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


@given(data=st.data())
def test_lines_gone_doubled_or_in_another_order_are_noticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = lines_of(folder)
        changed = data.draw(st.lists(st.sampled_from(lines), max_size=7))
        (folder / "journal.jsonl").write_bytes(b"".join(changed))
        if changed == lines[: len(changed)]:
            assert len(Journal(folder).events()) == len(changed)
            return
        wrong = next(n for n, line in enumerate(changed) if n >= len(lines) or line != lines[n])
        with pytest.raises(Damaged, match=rf"journal\.jsonl:{wrong + 1}: the line does not follow the line before it"):
            Journal(folder).events()


def test_a_line_put_back_with_its_own_checksum_is_noticed_by_the_next(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    (tmp_path / "x").mkdir()
    elsewhere = Journal(tmp_path / "x")
    elsewhere.write("epoch", epoch=1, train_loss=9.0)
    (tmp_path / "journal.jsonl").write_bytes((tmp_path / "x" / "journal.jsonl").read_bytes() + b"".join(lines[1:]))
    with pytest.raises(Damaged, match=r"journal\.jsonl:2: the line does not follow"):
        Journal(tmp_path).events()


def test_a_journal_of_an_older_version_is_read_and_the_chain_begins_with_the_first_new_line(tmp_path: Path) -> None:
    path, journal = tmp_path / "journal.jsonl", Journal(tmp_path)
    events = [{"event": "start", "overrides": {}}, epoch(1)]
    sums = [f"{google_crc32c.value(json.dumps(event).encode()):08x}" for event in events]
    path.write_text("".join(json.dumps({**e, "crc32c": s}) + "\n" for e, s in zip(events, sums, strict=True)))
    assert journal.events() == events
    journal.write("epoch", epoch=2)
    journal.write("epoch", epoch=3)
    assert journal.events() == [*events, epoch(2), epoch(3)]
    old, last, *new = path.read_bytes().splitlines(keepends=True)
    for lines, number in (([old, *new], 2), ([old, last, new[1]], 3), ([old, last, *new, last], 5)):
        path.write_bytes(b"".join(lines))
        with pytest.raises(Damaged, match=rf"journal\.jsonl:{number}: the line does not follow"):
            journal.events()
