"""The verb evaluate as a user meets it: tables, files, JSON, one-line errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline import files
from imagenet_pipeline.cli.evaluate import _page_name
from imagenet_pipeline.errors import OutOfRoom

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return world / "run"


def answer(told: tuple[int, str, str]) -> dict[str, Any]:
    code, out, _ = told
    assert code == 0
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def test_one_checkpoint_is_told_with_intervals(call: Call, run: Path) -> None:
    told = answer(call("evaluate", run, "--json"))
    assert Path(told["report"]) == run / "report-test.html"
    code, out, _ = call("evaluate", run)
    assert code == 0
    lines = out.splitlines()
    low, high = told["rank1_interval"]
    assert low < told["rank1"] < high
    hits = f"{told['rank1_hits']} of 300"
    assert f"rank-1  {told['rank1']:.2f} %  ({hits}; 95 %: {low:.2f} to {high:.2f}; chance: 10 %)" in lines
    assert f"ECE     {100 * told['calibration_error']:.2f} %  (expected calibration error)" in lines
    assert lines[-1] == f"report: {run / 'report-test.html'}"


def test_the_json_file_is_what_json_prints(call: Call, run: Path, tmp_path: Path) -> None:
    told = answer(call("evaluate", run, "--split", "val", "--report", tmp_path / "page.html", "--json"))
    file = json.loads((tmp_path / "page.json").read_text())
    changing = {"report", "images_per_second"}
    assert {key: told[key] for key in told if key not in changing} == {
        key: file[key] for key in file if key not in changing
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "page.json", "page.md"]


def test_checkpoints_are_compared_side_by_side(call: Call, run: Path) -> None:
    told = answer(call("evaluate", run, "--checkpoint", "1, 2, best", "--json"))
    # The best is one of the two.
    assert [member["epoch"] for member in told["members"]] == [1, 2]
    assert Path(told["report"]).name == "report-test-1-2-best.html"
    gap = told["members"][1]["difference_to_first"]
    assert gap["rank1"] == pytest.approx(told["members"][1]["rank1"] - told["members"][0]["rank1"])
    assert gap["gained"] - gap["lost"] == told["members"][1]["rank1_hits"] - told["members"][0]["rank1_hits"]
    code, out, _ = call("evaluate", run, "--checkpoint", "1,2,best")
    assert code == 0
    shared, header, first, second, together, footer, note = out.splitlines()[:7]
    assert shared.startswith(f"of all: run {run}, network lenet, engine ")
    assert header.split()[:3] == ["checkpoint", "rank-1", "%"]
    assert ["epoch-0001" in first, "epoch-0002" in second] == [True, True]
    assert f"{gap['rank1']:+.2f} (" in second
    assert together.startswith("all, probabilities averaged ")
    assert f"{told['rank1']:.2f}" in together
    assert "McNemar" in footer
    best = told["members"][0 if "1 and best are" in note else 1]["checkpoint"]
    assert note.endswith(f"and best are {best}, listed once")
    assert told["notes"] == [note]
    assert "2 checkpoints together: 300 test images, centre crop" in out


def test_without_a_test_split_validation_is_scored(call: Call, run: Path, tmp_path: Path) -> None:
    from imagenet_pipeline.record_builders import digits
    from imagenet_pipeline.records.build import BuildOptions, build

    plan = replace(digits.plan(tmp_path), splits={"val": digits.plan(tmp_path).splits["val"]})
    build(plan, tmp_path / "set", BuildOptions(workers=1))
    told = answer(call("evaluate", run, "--records", tmp_path / "set", "--json"))
    assert told["split"] == "val"
    assert re.fullmatch(r"report-val-on-set-[0-9a-f]{6}\.html", Path(told["report"]).name)
    assert told["rank1_hits"] == answer(call("evaluate", run, "--split", "val", "--json"))["rank1_hits"]


def test_crops_of_no_use_are_told(call: Call, run: Path) -> None:
    _, out, _ = call("evaluate", run, "--crops", 10)
    assert "Trained without mirror images (augmentation.flip = 0), which several crops add" in out
    assert "At a crop_fraction of 1 the five crops of a square image are one" in out
    assert "mirror" not in call("evaluate", run)[1]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--checkpoint", "1,7"], 2, "no checkpoint of epoch 7"),
        (["--checkpoint", "1,,2"], 2, "no checkpoint called ''"),
        (["--report", "page.md"], 2, "page.md: the report is written as HTML; expected a name that ends in .html"),
        (["--real-labels", "nowhere.json"], 3, "the network's classes are not ImageNet's; expected 1,000 WordNet ids"),
        (["--split", "all"], 2, "no split 'all'; expected one of train, val, test"),
        (["--crops", "3"], 2, "--crops: not a number of crops; expected 1, 2 or 10; found 3"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    call: Call, run: Path, words: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = call("evaluate", run, *words)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".html", ".md", ".json"])
def test_a_report_that_cannot_be_written_costs_no_figures_and_can_be_tried_again(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    page, write_whole = tmp_path / "page.html", files.write_whole

    def full(path: Path, content: str, durable: bool = True) -> None:
        if path.suffix == suffix:
            raise OutOfRoom("no room is left", where=path)
        write_whole(path, content, durable)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", full)
        code, out, err = call("evaluate", run, "--report", page, "--json")
    told = json.loads(out)
    assert (code, told["report"], "no room is left" in err) == (5, None, True)
    again = answer(call("evaluate", run, "--report", page, "--json"))
    assert (again["report"], again["rank1_hits"]) == (str(page), told["rank1_hits"])


def test_records_of_the_same_folder_name_have_reports_of_their_own() -> None:
    names = {_page_name([Path("run")], ["best"], "val", 1, Path(f"{place}/set"), None) for place in ("a", "b")}
    names |= {_page_name([Path("run"), *[Path("犬" * 80)] * n], ["best"], "val", 1, None, None) for n in (2, 3)}
    assert len(names) == 4
    assert all(len(name.encode()) <= 255 for name in names)


def test_diagnose_compares_the_splits(call: Call, world: Path, tmp_path: Path) -> None:
    picture = tmp_path / "errors.png"
    code, out, _ = call("diagnose", world / "run", "--train-images", 300, "--out", picture, "--json")
    answer = json.loads(out)
    assert code == 0
    assert [score["split"] for score in answer["scores"]] == ["train", "val", "test"]
    assert 299 <= answer["scores"][0]["rank1"]["images"] <= 400
    assert picture.stat().st_size > 5000
    code, out, _ = call("diagnose", world / "run", "--train-images", 300, "devices=cpu")
    assert (code, "bias: train" in out) == (0, True)
    code, _, err = call("diagnose", world / "run", "--target", 0)
    assert (code, err.count("\n")) == (2, 1)
