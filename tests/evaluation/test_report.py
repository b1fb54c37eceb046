"""The report of an evaluation: the same figures in three forms, whatever its names hold."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.cli.evaluate import _say
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.evaluation.compare import examine
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.evaluation.real_labels import RealLabels
from imagenet_pipeline.evaluation.report import require_page, write_report
from imagenet_pipeline.evaluation.report_tables import certainty, class_table, confused_table, plain
from imagenet_pipeline.evaluation.results import Findings, findings_of, worst_mistakes
from imagenet_pipeline.evaluation.scoring import Outcomes
from imagenet_pipeline.files import sha256_of
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.reader import RecordSet

ODD = ("<script>alert(1)</script>", "a|b", "x\n# y", "*bold*\\", "`tick`", 'ünï & [l](z)" onmouseover="x')
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser makes of a page: its elements, closed in order, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("reported") / "run")


@pytest.fixture(scope="module")
def findings(run: Path) -> Findings:
    return findings_of(examine([run]))


def written(findings: Findings, folder: Path) -> tuple[Page, str, dict[str, Any]]:
    page = write_report(findings, folder / "report.html")
    told = json.loads(page.with_suffix(".json").read_text())
    return Page(page.read_text()), page.with_suffix(".md").read_text(), told


def test_the_three_forms_have_the_same_figures(run: Path, findings: Findings, tmp_path: Path) -> None:
    page, markdown, told = written(findings, tmp_path)
    figure = evaluate(run)
    assert told["rank1_hits"] == figure.rank1_hits
    for words in (page.words, markdown.replace("\\", "")):
        for shown in (
            f"{figure.rank1:.2f} %", f"{figure.rank5:.2f} %", f"{figure.loss:.4f}", f"{figure.rank1_hits} of 12",
            f"{100 * told['calibration_error']:.2f} %", f"{told['rank1_interval'][0]:.1f}", figure.weights_digest,
            figure.data_digest, sha256_of(run / "recipe.toml"), "numpy", "centre crop",
            certainty(told["worst_mistakes"][0]["probability"]),
        ):  # fmt: skip
            assert shown in words.replace("\xa0", " ")
    assert 'network = "lenet"' in page.words
    assert not set(page.elements) & {"script", "link", "iframe"}
    assert all(source.startswith("data:image/") for source in page.sources)


@pytest.mark.parametrize("classes", [5, 6])
def test_chance_stands_beside_rank1_and_rank5_where_it_says_something(
    findings: Findings, tmp_path: Path, classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    examination = findings.examination
    scored = replace(examination.result, scored_classes=classes)
    few = replace(findings, examination=replace(examination, result=scored))
    page, markdown, told = written(few, tmp_path)
    assert told["rank1_chance"] == 100 / classes
    assert "rank5" in told
    assert "rank5_interval" in told
    _say(few, None)
    said = capsys.readouterr().out
    assert f"; chance: {20 if classes == 5 else 16.7} %)\n" in said
    assert ("rank-5" in said) is (classes > 5)
    for words in (page.words, markdown):
        assert f"of 12; chance: {20 if classes == 5 else 16.7} %" in words.replace("\xa0", " ")
        assert ("rank-5" in words) is (classes > 5)


def test_the_json_is_what_the_outcomes_say(findings: Findings, tmp_path: Path) -> None:
    told = written(findings, tmp_path)[2]
    outcomes = findings.examination.outcomes
    wrong = np.flatnonzero(outcomes.top[:, 0] != outcomes.labels)
    assert [one["position"] for one in told["worst_mistakes"]] == sorted(wrong, key=lambda at: -outcomes.confidence[at])
    assert [one["images"] for one in told["per_class"]] == [2] * 6
    pairs = zip(*(told["confusion"][name] for name in ("images", "predicted", "true")), strict=True)
    counts = {(true, predicted): images for images, predicted, true in pairs}
    for label, guess in zip(outcomes.labels.tolist(), outcomes.top[:, 0].tolist(), strict=True):
        counts[label, guess] -= 1
    assert set(counts.values()) == {0}
    assert told["most_confused"][0]["images"] == max(one["images"] for one in told["most_confused"])


def test_the_thumbnails_are_the_records_themselves(findings: Findings, tmp_path: Path, photo_records: Path) -> None:
    page, _, told = written(findings, tmp_path)
    pictures = [source for source in page.sources if source.startswith("data:image/png")]
    assert len(pictures) == len(told["worst_mistakes"]) > 0
    with RecordSet.open(photo_records, "test") as records:
        for picture, mistake in zip(pictures, told["worst_mistakes"], strict=True):
            shown = cv2.imdecode(np.frombuffer(base64.b64decode(picture.partition(",")[2]), np.uint8), 1)
            record = records.read(mistake["position"])
            assert record.number == mistake["number"]
            np.testing.assert_array_equal(shown, cv2.imdecode(np.frombuffer(record.image, np.uint8), 1))


def test_names_are_shown_never_obeyed(findings: Findings, tmp_path: Path) -> None:
    table = ClassTable("list", findings.examination.table.ids, ODD)
    odd = replace(findings, examination=replace(findings.examination, table=table, notes=[ODD[0]]))
    page, markdown, _ = written(odd, tmp_path)
    assert "script" not in page.elements
    assert page.attributes == written(findings, tmp_path)[0].attributes
    assert ODD[0] in page.words
    assert "<script" not in markdown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in markdown
    for line in markdown.splitlines():
        if line.startswith("|"):
            bars = len(re.findall(r"(?<!\\)\|", line.replace("\\\\", "")))
            assert bars in (3, 5, 6, 7), line
        assert not line.startswith("# y")


@pytest.mark.parametrize("name", ODD)
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    rendered = reader.render(f"| a | b |\n| --- | --- |\n| {plain(name)} | 2 |\n")
    cells = re.findall(r"<td>(.*?)</td>", rendered)
    assert len(cells) == 2
    assert Page(cells[0]).words == name.replace("\n", "\\n")


def test_several_are_shown_side_by_side(
    make_run: Callable[..., Path], run: Path, tmp_path: Path, findings: Findings
) -> None:
    other = make_run(tmp_path / "other", seed=4, engine="auto")
    several = findings_of(examine([run, other]))
    page, markdown, told = written(several, tmp_path)
    assert "2 runs together on 12 test images" in page.words
    alone = [findings.figures, findings_of(examine([other])).figures]
    assert [member["rank1_interval"] for member in told["members"]] == [list(one.rank1.interval) for one in alone]
    gap = told["members"][1]["difference_to_first"]
    assert gap["rank1"] == pytest.approx(alone[1].rank1.percent - alone[0].rank1.percent)
    assert "difference_to_first" not in told["members"][0]
    assert told["difference_to_first"]["rank1"] == pytest.approx(told["rank1"] - alone[0].rank1.percent)
    for words in (page.words.replace("\xa0", " "), markdown.replace("\\", "")):
        assert f"{gap['rank1']:+.2f} ({gap['rank1_interval'][0]:+.2f} to" in words
        assert str(other) in words
        for place in (run, other):
            assert words.count(f"What the figures of epoch-0001 of {place.name} depend on") == 1


def test_real_labels_stand_beside_the_others(findings: Findings, tmp_path: Path) -> None:
    examination = findings.examination
    first = examination.outcomes.top[:, 0].tolist()
    valid = {n: frozenset({first[at]} if at else set()) for at, n in enumerate(examination.outcomes.numbers.tolist())}
    real = findings_of(replace(examination, real=RealLabels(Path("real.json"), valid)))
    page, markdown, told = written(real, tmp_path)
    assert told["real"] == {"hits": 11, "images": 11, "percent": 100.0, "interval": told["real"]["interval"]}
    assert "ReaL rank-1" in page.words
    assert "ReaL rank-1 | 100.00 %" in markdown
    assert "11 of 11" in page.words


def test_two_classes_of_one_name_are_told_apart_by_their_ids(findings: Findings) -> None:
    table = ClassTable("list", tuple("abcdef"), ("crane", "crane", "kite_hawk", "x", "y", "z"))
    found = replace(findings, examination=replace(findings.examination, table=table))
    assert [found.class_name(label) for label in range(4)] == ["crane (a)", "crane (b)", "kite hawk", "x"]


def many(classes: int, images: int) -> Outcomes:
    random = np.random.default_rng(0)
    top = np.array([random.permutation(classes)[:5] for _ in range(images)])
    return Outcomes(np.arange(images), random.integers(0, classes, images), top, random.random(images), np.ones(images))


def test_many_classes_have_no_square_but_their_weakest(findings: Findings, tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(1000))
    outcomes = many(1000, 4000)
    whole = replace(findings.examination, table=ClassTable("list", names, names), outcomes=outcomes, own=[outcomes])
    found = replace(findings_of(whole), mistakes=findings.mistakes)
    page, markdown, told = written(found, tmp_path)
    assert "Confusions" not in page.words
    assert len(class_table(found).rows) == 15
    assert len(confused_table(found).rows) == 15
    assert len(told["per_class"]) == 1000
    assert "The 15 weakest of" in markdown


def test_worst_mistakes_are_the_surest_and_bounded() -> None:
    outcomes = many(10, 500)
    found = worst_mistakes(outcomes, 24)
    wrong = outcomes.confidence[~outcomes.rank1_right]
    assert [one.probability for one in found] == sorted(wrong.tolist(), reverse=True)[:24]
    assert all(outcomes.labels[one.position] == one.label != one.predicted for one in found)


def test_who_makes_no_mistake_has_none_to_show(findings: Findings, tmp_path: Path) -> None:
    outcomes = findings.examination.outcomes
    perfect = replace(outcomes, labels=outcomes.top[:, 0].copy())
    page, markdown, told = written(
        findings_of(replace(findings.examination, outcomes=perfect, own=[perfect])), tmp_path
    )
    assert "There is none." in page.words
    assert "Surest mistakes" not in markdown
    assert told["worst_mistakes"] == told["most_confused"] == []


def test_a_certainty_is_never_rounded_to_one() -> None:
    assert [certainty(one) for one in (0.5, 0.9994, 0.99996, 1.0)] == ["50.0 %", "99.9 %", "> 99.9 %", "100.0 %"]


def test_a_report_is_written_over_an_earlier_one_and_over_nothing_else(findings: Findings, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    require_page(page)
    write_report(findings, page)
    require_page(page)
    for name in ("other.json", "other.md", "other.html"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(BadRecipe, match=f"{name}: the file exists already and is not an earlier report"):
            require_page(tmp_path / "other.html")
        (tmp_path / name).unlink()


def test_a_page_of_another_ending_and_a_damaged_record_are_one_line(
    findings: Findings, tmp_path: Path, photo_records: Path
) -> None:
    with pytest.raises(BadRecipe, match=r"the report is written as HTML; expected a name that ends in \.html"):
        require_page(tmp_path / "report.json")
    broken = tmp_path / "broken"
    shutil.copytree(photo_records, broken)
    content = bytearray((broken / "test.rec").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "test.rec").write_bytes(content)
    with pytest.raises(Damaged, match=r"test\.rec, record \d+, offset \d+"):
        examine([Path(findings.examination.evaluations[0].run)], records=broken)
