"""The recipe proposed for photos: always one that can be trained, and its reasons beside it."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.records.survey import Survey
from imagenet_pipeline.training import proposal as proposals
from imagenet_pipeline.training.proposal import Weights, propose, weights_at_hand, weights_of

RECORDS = Path("output/photos")


def seen(train: int = 240, smallest: int = 48, edge: int = 224, grey: int = 0) -> Survey:
    """Photos of five classes, the smallest of `smallest` photos."""
    largest = max(smallest, train - 4 * smallest)
    return Survey(
        images={"train": train, "val": 30, "test": 30},
        class_counts={"a": largest, **dict.fromkeys("bcde", smallest)},
        looked_at=300, edges=(edge, edge, edge), size=(edge, edge), formats={"JPEG": 300}, unusable=(), grey=grey,
        repeated=(), seconds=1.0,
    )  # fmt: skip


@given(
    st.integers(2, 10**7), st.integers(1, 1000), st.integers(1, 4000), st.sampled_from([0, 300]), st.booleans(),
    st.sampled_from([None, Weights(Path("output/runs/before"), "resnet50", 1000, 224)]),
)  # fmt: skip
def test_whatever_the_photos_the_recipe_is_one(
    train: int, smallest: int, edge: int, grey: int, on_gpu: bool, weights: Weights | None
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(proposals, "may_have_gpus", lambda: on_gpu)
        made = propose(seen(train, smallest, edge, grey), RECORDS, weights, {})
    recipe = made.recipe
    assert recipe.records == str(RECORDS)
    assert 1 <= recipe.images_per_step <= train
    assert 0 < recipe.schedule.warmup_epochs < recipe.epochs
    assert tomllib.loads(made.text) == made.values
    comment = " ".join(line[2:] for line in made.text.splitlines() if line.startswith("# "))
    assert all(reason in comment for reason in made.reasons)


def test_few_photos_on_a_processor_get_what_the_shipped_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "may_have_gpus", lambda: False)
    shipped = load_recipe("photos", {"records": str(RECORDS)})
    assert propose(seen(), RECORDS, None, {"engine": "auto"}).recipe == shipped


def test_what_is_asked_for_is_put_in_last() -> None:
    made = propose(seen(), RECORDS, None, {"network": "lenet", "input.size": 28, "epochs": 2})
    assert (made.recipe.network, made.recipe.input.size, made.recipe.epochs) == ("lenet", 28, 2)
    assert made.reasons[-1] == "As asked for: network, input.size, epochs."
    with pytest.raises(BadRecipe, match="unknown recipe key"):
        _ = propose(seen(), RECORDS, None, {"optimizer.lr": 1}).recipe


def test_uneven_classes_small_and_grey_photos_have_their_keys() -> None:
    uneven = propose(seen(smallest=5), RECORDS, None, {})
    assert uneven.recipe.loss.class_weights == "balanced"
    assert any("44 times" in reason for reason in uneven.reasons)
    assert propose(seen(edge=28), RECORDS, None, {}).recipe.input.size == 32
    grey = propose(seen(grey=300), RECORDS, None, {}).recipe
    assert (grey.input.channels, grey.augmentation.saturation) == (1, 0.0)


def test_weights_of_many_classes_are_fine_tuned() -> None:
    recipe = propose(seen(), RECORDS, Weights(Path("output/runs/before"), "resnet50", 1000, 224), {}).recipe
    assert (recipe.network, recipe.initial.weights, recipe.initial.new_head) == ("resnet50", "output/runs/before", True)


@pytest.mark.parametrize(
    ("weights", "shape"),
    [
        (("resnet50", 1000, 224), {"size": 128}),
        (("resnet50", 1000, (96, 192)), {"size": 128}),
        (("vgg16", 1000, 224), {"size": 224}),
        (("alexnet_one_tower", 1000, (224, 256)), {"height": 224, "width": 256}),
        (("lenet", 60, 28, 1), {"size": 28, "channels": 1}),
        (("gluoncv:resnet18_v1b", 1000, 224), {"size": 224}),
    ],
)
def test_weights_keep_what_their_shapes_depend_on(
    monkeypatch: pytest.MonkeyPatch, weights: tuple[Any, ...], shape: dict[str, int]
) -> None:
    monkeypatch.setattr(proposals, "may_have_gpus", lambda: False)
    made = propose(seen(), RECORDS, Weights(Path("output/runs/before"), *weights), {})
    assert made.values["input"] == shape
    assert made.recipe.engine != "pytorch" or not weights[0].startswith("gluoncv:")


def test_a_run_that_not_all_photos_suit_is_taken_by_who_asks_alone(
    drawn_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "may_have_gpus", lambda: False)
    run = shutil.copytree(drawn_run(*(f"c{number}" for number in range(50))), tmp_path / "runs/before")
    assert weights_at_hand(tmp_path / "runs", tmp_path) == weights_of(run)
    for unlike in ({"channels": 1}, {"input_size": 224}, {"network": "gluoncv:resnet18_v1b"}, {"network": "nobody's"}):
        monkeypatch.setattr(proposals, "weights_of", lambda _, unlike=unlike: replace(weights_of(run), **unlike))
        assert weights_at_hand(tmp_path / "runs", tmp_path) is None


def test_a_run_of_few_classes_is_no_start_for_others(tmp_path: Path) -> None:
    (tmp_path / "runs/broken").mkdir(parents=True)
    (tmp_path / "runs/broken/recipe.toml").write_text("network = 1")
    assert weights_at_hand(tmp_path / "runs", tmp_path / "runs/mine") is None
