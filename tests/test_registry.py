"""Names of other packages: by a call, by an entry point, and those that cannot be had."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from imagenet_pipeline.errors import BadRecipe, did_you_mean
from imagenet_pipeline.registry import Registry


@pytest.fixture
def table() -> Registry[int]:
    return Registry("number", "numbers", {"one": 1}, int)


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with three entry points: one that works, one that fails to import, one of another type."""
    info = tmp_path / "foreign-2.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 2.0\n")
    info.joinpath("entry_points.txt").write_text(
        "[imagenet_pipeline.numbers]\ntwo = foreign:TWO\nbroken = foreign_broken:X\nword = foreign:WORD\n"
    )
    (tmp_path / "foreign.py").write_text("TWO = 2\nWORD = 'two'\n")
    (tmp_path / "foreign_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_call_adds_a_name_and_again_replaces_it(table: Registry[int]) -> None:
    table.register("three", 3)
    table.register("three", 33)
    assert (table.names(), table.get("one"), table.get("three")) == (("one", "three"), 1, 33)
    assert "three" in table
    assert "four" not in table


@pytest.mark.parametrize("name", ["one", "", "a\x1bb"])
def test_a_shipped_or_unprintable_name_is_refused(table: Registry[int], name: str) -> None:
    with pytest.raises(BadRecipe, match="cannot register a number under this name"):
        table.register(name, 7)


def test_an_entry_point_is_found_by_its_name_and_imported_when_asked_for(offered: Path, table: Registry[int]) -> None:
    assert table.names() == ("one", "two", "broken", "word")
    assert table.get("two") == 2


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("broken", "number 'broken' of package foreign 2.0: the entry point 'foreign_broken:X' cannot be imported "
                   r"\(ModuleNotFoundError: No module named 'a_package_that_is_not_there'\); mend that package"),
        ("word", "number 'word' of package foreign 2.0: .* of another type; expected int; found str"),
        ("on", "key: no number is called 'on'; did you mean one"),
        ("xyzxyz", "no number is called 'xyzxyz'; there are one, two, broken, word"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_one_line(offered: Path, table: Registry[int], name: str, line: str) -> None:
    with pytest.raises(BadRecipe, match=line) as caught:
        table.get(name, where="key")
    assert "\n" not in str(caught.value)


def test_entry_points_are_looked_up_when_a_name_is_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(group: str) -> metadata.EntryPoints:
        raise AssertionError(group)

    monkeypatch.setattr(metadata, "entry_points", looked_up)
    assert Registry("number", "numbers", {"one": 1}).get("one") == 1


def test_advice_names_the_nearest() -> None:
    assert did_you_mean("ResNet5", ["resnet50", "vgg16"], "look") == "did you mean resnet50?"
    assert did_you_mean("SiLU", ["swish", "selu"], "look") == "did you mean swish?"
    assert did_you_mean("qqqq", ["resnet50", "vgg16"], "look") == "look"


def test_a_shipped_item_may_be_imported_when_it_is_asked_for() -> None:
    table = Registry("function", "functions", {"len": len}, modules={"loads": "json:loads", "gone": "json:nothing"})
    assert table.names() == ("len", "loads", "gone")
    assert "loads" in table
    assert table.get("loads")("1") == 1  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        table.get("gone")
    with pytest.raises(BadRecipe, match="cannot register"):
        table.register("loads", len)
