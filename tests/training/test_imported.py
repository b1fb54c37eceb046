"""A run made of a network trained elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.interchange.frozen import Imported
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import without_taps
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint
from imagenet_pipeline.training.imported import make_run, normalisation_of, numbered_classes
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run

MEAN, STD = (10.0, 20.0, 30.0), (100.0, 101.0, 102.0)
ORIGIN = {"files": {}, "normalisation_from": "a test"}


def imported(name: str = "lenet", classes: int = 10, size: int = 28, **more: Any) -> Imported:
    network = without_taps(catalog.entry(name).build(classes))
    values = initial_values(network, (3, size, size), "he", 5)
    return Imported(name, classes, size, values, more.pop("normalisation", None), **more)


def test_it_is_evaluated_and_trained_on_like_any_other(digits_records: Path, tmp_path: Path) -> None:
    data, run = read_data_set(digits_records), tmp_path / "run"
    given = imported()
    make_run(run, given, data.classes, (MEAN, STD), data, ORIGIN)
    start = load_checkpoint(find_checkpoint(run, "latest"))
    assert (start.state.epoch, start.state.step, start.state.mean, start.state.std) == (0, 0, MEAN, STD)
    assert all((start.weights[name] == value).all() for name, value in given.values.items())
    assert evaluate(run, split="test").images == 300
    outcome = train(open_run(run / "recipe.toml", {"epochs": 1, "loader.threads": 0}, run, "latest"))
    assert (outcome.epoch, outcome.finished) == (1, True)
    after = load_checkpoint(find_checkpoint(run, "1"))
    assert (after.state.mean, after.state.std) == (MEAN, STD), "it was trained with these, not with the records' own"
    assert not np.array_equal(after.weights["conv1.weight"], start.weights["conv1.weight"])


def test_without_records_any_records_of_its_classes_will_do(digits_records: Path, tmp_path: Path) -> None:
    data, run = read_data_set(digits_records), tmp_path / "run"
    make_run(run, imported(), data.classes, (MEAN, STD), None, ORIGIN)
    nothing = "the recipe names no records; give train records=DIR, or evaluate --records DIR"
    with pytest.raises(BadRecipe, match=nothing):
        evaluate(run)
    with pytest.raises(BadRecipe, match=nothing):
        open_run(run / "recipe.toml", {}, run, "latest")
    assert evaluate(run, records=digits_records).images == 300
    overrides = {"epochs": 1, "records": str(digits_records), "loader.threads": 0}
    assert train(open_run(run / "recipe.toml", overrides, run, "latest")).finished


def test_classes_nobody_named_are_taken_to_be_those_of_the_records(
    digits_records: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, run = read_data_set(digits_records), tmp_path / "run"
    make_run(run, imported(), numbered_classes(10), (MEAN, STD), None, ORIGIN)
    assert data.classes.ids != numbered_classes(10).ids
    with caplog.at_level("INFO"):
        assert evaluate(run, records=digits_records).images == 300
    assert "nothing here can check their order" in caplog.text
    overrides = {"epochs": 1, "records": str(digits_records), "loader.threads": 0}
    assert train(open_run(run / "recipe.toml", overrides, run, "latest")).finished
    assert load_checkpoint(find_checkpoint(run, "1")).state.class_table == data.classes
    make_run(tmp_path / "seven", imported(classes=7), numbered_classes(7), (MEAN, STD), None, ORIGIN)
    with pytest.raises(BadInput, match="class tables differ; expected 7 classes"):
        evaluate(tmp_path / "seven", records=digits_records)


def test_auxiliary_classifiers_start_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "run", imported("googlenet", 3, 96), numbered_classes(3), (MEAN, STD), None, ORIGIN)
    weights = load_checkpoint(find_checkpoint(tmp_path / "run", "latest")).weights
    assert any(name.startswith("auxiliary") for name in weights)


def test_a_folder_in_use_and_a_table_of_another_length_are_refused(digits_records: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected 10 classes; found 7; leave --classes out"):
        make_run(tmp_path / "run", imported(), numbered_classes(7), (MEAN, STD), None, ORIGIN)
    data = read_data_set(digits_records)
    with pytest.raises(BadInput, match=r"without --records .* initial\.weights=.*run initial\.new_head=true$"):
        make_run(tmp_path / "run", imported(classes=7), data.classes, (MEAN, STD), data, ORIGIN)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadRecipe, match="the folder exists already"):
        make_run(tmp_path, imported(), numbered_classes(10), (MEAN, STD), None, ORIGIN)


def test_the_normalisation_is_never_guessed(digits_records: Path) -> None:
    data = read_data_set(digits_records)
    inside = imported(normalisation=(STD, MEAN))
    assert normalisation_of(inside, None, data) == ((STD, MEAN), "the graph")
    assert normalisation_of(imported(), (MEAN, STD), data) == ((MEAN, STD), "the command line")
    assert normalisation_of(imported(), None, data) == ((data.mean, data.std), str(data.folder / "mean.json"))
    with pytest.raises(BadRecipe, match="normalisation of the network's input is unknown"):
        normalisation_of(imported(), None, None)
    with pytest.raises(BadRecipe, match="normalises its input itself"):
        normalisation_of(inside, (MEAN, STD), None)


def test_a_network_of_a_size_no_recipe_allows_is_refused(tmp_path: Path) -> None:
    given = dataclasses.replace(imported(), input_size=5000)
    with pytest.raises(BadRecipe, match=r"the recipe of lenet: recipe key 'size'.*4096; found 5000"):
        make_run(tmp_path / "run", given, numbered_classes(10), (MEAN, STD), None, ORIGIN)
    assert list(tmp_path.iterdir()) == []
