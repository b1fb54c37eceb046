"""The report in headless Chromium: wide things scroll in their own box, the page does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.evaluation.compare import examine
from imagenet_pipeline.evaluation.report import write_report
from imagenet_pipeline.evaluation.results import findings_of
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.training.curves import draw_curves
from imagenet_pipeline.training.journal import Journal

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (apt-get install chromium)")
NAMES = ("seven", "n" * 150, "seven spotted ladybirds", "flowerpot", "a", "b")


@pytest.fixture(scope="module")
def address(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report on two checkpoints with curves, of classes with names of all lengths."""
    folder = tmp_path_factory.mktemp("widths")
    runs = [make_run(folder / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    for epoch in (1, 2):
        Journal(runs[0]).write("epoch", epoch=epoch, train_loss=1.0 / epoch, train_rank1=50.0 * epoch)
    draw_curves(runs[:1], runs[0] / "curves.png")
    found = examine(runs)
    table = ClassTable("list", found.table.ids, NAMES)
    return write_report(findings_of(replace(found, table=table)), folder / "page.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.mark.parametrize("width", [320, 400, 700, 1200])
def test_nothing_sticks_out_and_words_stay_whole(browser: Any, address: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.locator("section, .note, .curves img, .plot").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().right)"
    )
    assert max(boxes) <= width
    word = "all => all.filter(one => one.textContent === 'flowerpot').map(one => one.clientHeight)"
    assert max(page.locator(".rows td:first-child").evaluate_all(word)) < 40
    tops = page.locator(".curves img").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert len(tops) == 2
    assert (tops[0] < tops[1]) == (width < 1200)
    page.close()
