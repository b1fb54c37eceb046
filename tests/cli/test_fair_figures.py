"""Near duplicates, a temperature and a subset of the classes, from the command line to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_pipeline.engines import is_installed

pytestmark = pytest.mark.skipif(
    not (is_installed("pytorch") or is_installed("gluon")), reason="needs an engine, which is not in this environment"
)
Call = Callable[..., tuple[int, str, str]]


def test_verify_names_near_duplicates_and_the_report_says_rank_1_without_them(world: Path, call: Call) -> None:
    pytest.importorskip("imagehash")
    code, out, _ = call("verify", world / "digits", "--duplicates")
    assert code == 0
    assert "undamaged: 1,797 records" in out
    assert out.count("\ndistance ") == 20
    assert "more pairs" in out
    assert " pairs of near duplicates (distance <= 4 of 64 bits) among 1,797 photos: " in out
    found = json.loads(call("verify", world / "digits", "--duplicates", "--distance", 2, "--json")[1])["duplicates"]
    assert found["distance"] == 2
    assert len(found["pairs"]) == sum(found["within"].values()) + sum(found["between"].values())
    call("verify", world / "digits", "--duplicates")
    # The copied run's own records are those that were copied.
    scoring = ("evaluate", world / "run", "--records", world / "digits", "--report", world / "twice.html")
    answer = json.loads(call(*scoring, "--json")[1])
    twice, images = answer["in_train"], answer["images"]
    assert 0 < twice["images"] < images
    assert twice["rank1_of_them"]["images"] + twice["rank1_without"]["images"] == images
    assert twice["rank1_of_them"]["hits"] + twice["rank1_without"]["hits"] == answer["rank1_hits"]
    said = f"{twice['images']} of 300 images in train, too, by a perceptual hash (distance <= 4 of 64 bits)"
    assert said in call(*scoring)[1]
    for ending in ("html", "md"):
        assert "without those in train" in (world / f"twice.{ending}").read_text()
    (world / "digits" / "duplicates.json").unlink()


def test_a_distance_of_nothing_and_a_file_by_itself_are_a_line_each(world: Path, call: Call) -> None:
    assert call("verify", world / "digits", "--distance", 3)[::2] == (
        2, "error: --distance: a distance of nothing; it is of near duplicates: add --duplicates\n"
    )  # fmt: skip
    pytest.importorskip("imagehash")
    code, _, err = call("verify", world / "digits" / "train.rec", "--duplicates")
    assert (code, err.count("\n")) == (3, 1)
    code, _, err = call("verify", world / "digits", "--duplicates", "--distance", 11)
    assert (code, err) == (2, "error: no distance of near duplicates; expected 0 to 10 of 64 bits; found 11\n")


def test_a_calibrated_run_says_so_everywhere(world: Path, call: Call, caplog: pytest.LogCaptureFixture) -> None:
    before = json.loads(call("evaluate", world / "run", "--json")[1])
    code, out, _ = call("calibrate", world / "run")
    assert code == 0
    assert "temperature " in out
    fitted = json.loads(call("calibrate", world / "run", "--json")[1])
    assert fitted["loss_after"] <= fitted["loss_before"]
    after = json.loads(call("evaluate", world / "run", "--json")[1])
    assert (after["rank1_hits"], after["rank5_hits"]) == (before["rank1_hits"], before["rank5_hits"])
    assert after["loss"] != before["loss"]
    assert (after["temperature"], after["fitted_here"]) == (pytest.approx(fitted["temperature"]), False)
    assert json.loads(call("evaluate", world / "run", "--split", "val", "--json")[1])["fitted_here"]
    assert "fitted on 300 val images" in (world / "run" / "report-test.html").read_text()
    photo = next((world / "digits" / "ILSVRC2015").rglob("*.JPEG"))
    with caplog.at_level("INFO"):
        _, out, _ = call("predict", world / "run", photo, "--json")
    assert json.loads(out)["temperature"] == after["temperature"]
    said = f"probabilities are those at temperature {after['temperature']:.3f}, fitted on 300 val images"
    assert said in caplog.text
    code, _, err = call("calibrate", world / "run", "--split", "none")
    assert (code, err.count("\n")) == (2, 1)
    Path(fitted["checkpoint"], "temperature.json").unlink()
    assert json.loads(call("evaluate", world / "run", "--json")[1])["temperature"] is None


def test_a_subset_has_a_report_of_its_own(world: Path, call: Call) -> None:
    code, out, _ = call("evaluate", world / "run", "--subset")
    assert code == 0
    assert "report-test-subset.html" in out
