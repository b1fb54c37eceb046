"""The house as benchmarks/house.py sees it: no crumbs, no circles, no file too long."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("house")


def test_the_files_of_this_house_are_in_order(house: ModuleType) -> None:
    assert house.plan_faults() == []


def test_faults_are_found_where_they_are(house: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "imagenet_pipeline"
    package.mkdir()
    (tmp_path / "record_builders").mkdir()
    for name, text in {
        "__init__": "",
        "long": "x = 1\n" * 441,
        "crumb": "x = 1\n",
        "user": "def late():\n    from imagenet_pipeline import crumb\n" + "x = 1\n" * 60,
        "left": "from imagenet_pipeline.right import x\n" + "y = 1\n" * 60,
        "right": "from imagenet_pipeline import left\n" + "x = 1\n" * 60,
        "typed": "if TYPE_CHECKING:\n    from imagenet_pipeline import user\n" + "x = 1\n" * 60,
    }.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "record_builders" / "one.py").write_text("from imagenet_pipeline import typed\n" + "x = 1\n" * 60)
    assert house.plan_faults(tmp_path) == [
        "imagenet_pipeline/long.py: 441 lines, more than 440",
        "imagenet_pipeline/crumb.py: 1 lines, and imagenet_pipeline.user alone imports it",
        "a circle of imports: imagenet_pipeline.left, imagenet_pipeline.right",
    ]
