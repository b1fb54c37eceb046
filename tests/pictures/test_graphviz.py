"""Diagrams to files: of a name or a run, drawn where Graphviz is there, one line where it is not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.pictures.graphviz import draw_network, drawn

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed: no program dot")


def test_dot_needs_no_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = draw_network("resnet18", tmp_path / "r.dot")
    assert (made.parameters, made.input_shape, made.classes) == (11_689_512, (3, 224, 224), 1000)
    text = (tmp_path / "r.dot").read_text(encoding="utf-8")
    assert text.startswith("digraph network {")
    assert "11,689,512 parameters" in text
    for kind in ("png", "svg", "pdf"):
        with pytest.raises(BadRecipe, match=rf"a \.{kind} needs the program dot of Graphviz.*apt-get install graphviz"):
            draw_network("resnet18", tmp_path / f"r.{kind}")
    assert {path.name for path in tmp_path.iterdir()} == {"r.dot"}


@needs_graphviz
@pytest.mark.parametrize(
    ("kind", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")]
)
def test_each_kind_is_what_its_name_says(tmp_path: Path, kind: str, begin: bytes) -> None:
    draw_network("lenet", tmp_path / f"l.{kind}")
    assert (tmp_path / f"l.{kind}").read_bytes().startswith(begin)


def test_what_a_box_says_is_explained_as_far_as_it_says_it(tmp_path: Path) -> None:
    for name, full, folded in (("resnet18", False, True), ("resnet18", True, False), ("lenet", False, False)):
        draw_network(name, tmp_path / "n.dot", full=full)
        text = (tmp_path / "n.dot").read_text(encoding="utf-8")
        assert "the shape of its output (channels \u00d7 height \u00d7 width), and below it its parameters" in text
        assert ("two alike in a row" in text) == folded


@needs_graphviz
def test_the_lines_below_the_title_do_not_touch(tmp_path: Path) -> None:
    draw_network("resnet18", tmp_path / "r.svg")
    lines = re.findall(r'y="(-[0-9.]+)"[^>]*font-size="11.00" fill="#66727f"', (tmp_path / "r.svg").read_text())
    heights = [float(line) for line in lines]
    assert len(heights) == 4
    assert all(14 <= lower - upper <= 18 for upper, lower in pairwise(heights))  # points; letters are 11 high


def test_a_run_s_network_has_its_size_and_classes(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "a <b> & run", "lenet", 36)
    made = draw_network(str(run), tmp_path / "l.dot")
    assert (made.network, made.input_shape, made.classes) == ("lenet", (3, 36, 36), 6)
    assert "lenet, epoch-0001 of a &lt;b&gt; &amp; run" in (tmp_path / "l.dot").read_text()
    other = draw_network(str(run), tmp_path / "l.dot", input_size=28, classes=9)
    assert (other.input_shape, other.classes) == ((3, 28, 28), 9)


def test_full_draws_more(tmp_path: Path) -> None:
    sizes = []
    for full in (False, True):
        draw_network("resnet50", tmp_path / "r.dot", full=full)
        sizes.append((tmp_path / "r.dot").read_text().count("[label=<<TABLE"))
    # The image; 53 convolutions, as many normalisations, 49 ReLUs, two poolings, flattening, the classifier; 16 sums.
    assert sizes[1] == 1 + 53 + 53 + 49 + 2 + 1 + 1 + 16
    # The image, stem and end; of each stage its first unit, of five boxes, and one of four for all others.
    assert sizes[0] == 1 + 2 + 2 + 4 * (5 + 4)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("timm:resnet18", "network timm:resnet18: the layers of a zoo's network are not known here"),
        ("gluoncv:resnet18_v1", "the layers of a zoo's network are not known here"),
        ("resnet5", "no network is called 'resnet5'; did you mean resnet50"),
    ],
)
def test_what_is_not_known_is_one_line(tmp_path: Path, name: str, line: str) -> None:
    with pytest.raises(BadRecipe, match=line):
        draw_network(name, tmp_path / "x.dot")


def test_wrong_endings_sizes_and_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        BadRecipe, match=r"x\.gif: the picture's format is unknown; expected a name that ends in \.dot, \.svg"
    ):
        draw_network("lenet", tmp_path / "x.gif")
    with pytest.raises(BadRecipe, match="too small"):
        draw_network("lenet", tmp_path / "x.dot", input_size=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRecipe, match="there is no run here"):
        draw_network(str(tmp_path / "empty"), tmp_path / "x.dot")
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


@needs_graphviz
def test_what_graphviz_complains_about_is_one_line() -> None:
    with pytest.raises(BadInput, match=r"Graphviz could not draw the network .*syntax error") as caught:
        drawn("digraph {", "svg")
    assert "\n" not in str(caught.value)
