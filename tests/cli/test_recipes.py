"""The verbs recipes and recipe, and a shipped recipe's name where a recipe file is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_pipeline.config import find_recipe, load_recipe
from imagenet_pipeline.config.shipped import read_shipped, shipped_paths
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.script_recipe import recipe_of_command
from imagenet_pipeline.training.resume import run_name

Call = Callable[..., tuple[int, str, str]]
CONFIG = Path(__file__).resolve().parents[2] / "config"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_of_the_repository_is_listed_and_read(call: Call) -> None:
    listed = json.loads(call("recipes", "--json")[1])["recipes"]
    assert [one["name"] for one in listed] == sorted(
        path.relative_to(CONFIG).with_suffix("").as_posix()
        for path in CONFIG.rglob("*.toml")
        if path.parent.name != "networks"
    )
    for one in listed:
        recipe = load_recipe(one["name"])
        assert (recipe.network, recipe.records) == (one["network"], one["records"])
    lines = call("recipes")[1].splitlines()
    assert len(lines) == 1 + len(listed)
    assert next(line for line in lines if line.startswith("demo ")).endswith("Handwritten digits, the embedded data")


def test_et_al_ends_no_sentence() -> None:
    assert read_shipped("imagenet/resnet50").summary.endswith(
        "the plain 90-epoch recipe of Goyal et al. 2017 (arXiv 1706.02677)"
    )


def test_one_is_printed_as_it_is_written(call: Call) -> None:
    text = (CONFIG / "imagenet" / "resnet50.toml").read_text()
    assert call("recipes", "imagenet/resnet50") == (0, text, "")
    assert json.loads(call("recipes", "imagenet/resnet50", "--json")[1])["text"] == text


def test_a_copy_is_the_file_and_takes_nothing_away(call: Call, elsewhere: Path) -> None:
    said = "imagenet/resnet50: written to imagenet-resnet50.toml\n"
    assert call("recipes", "--copy", "imagenet/resnet50") == (0, said, "")
    copied = elsewhere / "imagenet-resnet50.toml"
    assert copied.read_bytes() == (CONFIG / "imagenet" / "resnet50.toml").read_bytes()
    copied.write_text("mine")
    code, _, told = call("recipes", "--copy", "imagenet/resnet50")
    assert (code, copied.read_text()) == (2, "mine")
    assert "the file exists already and is kept" in told
    other = json.loads(call("recipes", "demo", "--out", "new/mine.toml", "--json")[1])
    assert other == {"name": "demo", "written": "new/mine.toml"}
    assert load_recipe("new/mine.toml") == load_recipe("demo")


def test_a_file_that_exists_wins_and_a_folder_of_photos_does_not(elsewhere: Path) -> None:
    shipped = shipped_paths()["photos"]
    (elsewhere / "photos").mkdir()
    assert find_recipe("photos") == shipped
    (elsewhere / "photos" / "recipe.toml").write_text("a run's")
    assert find_recipe("photos") == Path("photos")
    (elsewhere / "demo").write_text("a file's")
    assert find_recipe("demo") == Path("demo")


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("imagenet/resnet5", "did you mean imagenet/resnet50"),
        ("config/demo.toml", "did you mean demo?"),
        ("here/cat.toml", "did you mean here/cats.toml"),
        ("nothing_like_it", "`recipes` lists those that are shipped"),
    ],
)
def test_a_name_that_is_not_there_gets_the_nearest(elsewhere: Path, given: str, advice: str) -> None:
    (elsewhere / "here").mkdir()
    (elsewhere / "here" / "cats.toml").touch()
    with pytest.raises(BadRecipe, match="no such recipe file") as caught:
        load_recipe(given)
    assert advice in str(caught.value)


@pytest.mark.parametrize("verb", [["train"], ["find-rate"], ["benchmark", "step"]])
def test_the_verbs_take_a_name(call: Call, verb: list[str]) -> None:
    told = "error: output/digits: no data set here; expected a folder with manifest.json, made by `build`\n"
    assert call(*verb, "demo") == (3, "", told)


def test_a_run_of_a_name_is_called_as_that_of_the_path() -> None:
    assert run_name(find_recipe("imagenet/resnet50")) == run_name(Path("config/imagenet/resnet50.toml"))
    assert run_name(find_recipe("demo")) == "demo"


def test_an_installed_recipe_names_its_run_alike(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = elsewhere / "site-packages" / "imagenet_pipeline" / "recipes" / "imagenet" / "resnet50.toml"
    monkeypatch.setattr("imagenet_pipeline.config.shipped.shipped_paths", lambda: {"imagenet/resnet50": installed})
    assert run_name(installed) == "imagenet-resnet50"


def test_copying_without_a_name_and_an_unknown_name_are_told(call: Call) -> None:
    assert "expected the name of a recipe" in call("recipes", "--copy")[2]
    code, _, told = call("recipes", "imagenet/resnet")
    assert code == 2
    assert "no such shipped recipe; did you mean imagenet/resnet" in told


def test_a_command_of_mxnet_s_becomes_a_recipe_that_train_reads(call: Call, elsewhere: Path) -> None:
    command = "python train_imagenet.py --model resnet50_v1b --num-epochs 120 --mode hybrid"
    code, said, err = call("recipe", "--from", command, "--records", "data", "--out", "mine.toml")
    assert (code, err) == (0, "")
    assert said.splitlines() == [
        "mine.toml: resnet50, 120 epochs, as GluonCV's train_imagenet.py has it",
        "- --mode hybrid: each engine compiles its step by itself",
    ]
    assert load_recipe("mine.toml") == recipe_of_command(command, "data").recipe
    code, _, err = call("recipe", "--from", command, "--out", "mine.toml")
    assert (code, err.count("\n")) == (2, 1)
    assert "the file exists already and is kept" in err
    text = recipe_of_command(command).text
    assert call("recipe", "--from", command) == (0, text, "")
    answer = json.loads(call("recipe", "--from", command, "--json")[1])
    assert (answer["recipe"]["network"], answer["text"], answer["written"]) == ("resnet50", text, None)
