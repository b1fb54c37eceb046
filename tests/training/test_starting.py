"""What a run starts from: files, runs and checkpoints, with the head they have or a new one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from imagenet_pipeline.config import InitialRecipe, InputRecipe, Recipe
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange.network_symbol import symbol_names
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet, Manifest
from imagenet_pipeline.training.checkpoint import State, save_checkpoint
from imagenet_pipeline.training.starting import first_values

HEADS = {
    "lenet": {"classifier.weight", "classifier.bias"},
    "googlenet": {f"{tap}.{name}" for tap in ("auxiliary4a.classifier", "auxiliary4d.classifier", "classifier")
                  for name in ("weight", "bias")},
    "squeezenet1_1": {"classifier.weight", "classifier.bias"},
}  # fmt: skip


def data_of(classes: int, beginning: str = "class", red: float = 1.0) -> DataSet:
    ids = tuple(f"{beginning}{number}" for number in range(classes))
    manifest = Manifest.model_construct(splits={})
    return DataSet(Path("records"), manifest, ClassTable("list", ids, ids), (red, 2.0, 3.0), (4.0, 5.0, 6.0), "digest")


def recipe_of(network: str, size: int, **initial: Any) -> Recipe:
    return Recipe(network=network, records="", input=InputRecipe(size=size), initial=InitialRecipe(**initial))


def values_of(network: str, size: int, classes: int, seed: int) -> dict[str, Any]:
    return dict(initial_values(catalog.entry(network).build(classes), (3, size, size), "msra", seed))


def save_run(folder: Path, values: dict[str, Any], ranks: tuple[float, ...], network: str = "lenet") -> None:
    """A run with a checkpoint an epoch; epoch n holds `values` times n."""
    table = data_of(7).classes
    for epoch, rank1 in enumerate(ranks, 1):
        state = State(
            epoch, epoch, network, 28, table.ids, table.names, table.order, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0),
            "digest", "gluon", {}, {"validation_rank1": rank1},
        )  # fmt: skip
        save_checkpoint(folder, state, {name: value * np.float32(epoch) for name, value in values.items()}, {})


def start(recipe: Recipe, classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    values, told = first_values(recipe, catalog.build(recipe.network, classes), data_of(classes))
    assert values is not None
    return dict(values), told


def test_without_weights_the_values_are_drawn() -> None:
    values, told = start(recipe_of("lenet", 28), 4)
    assert told == {}
    wanted = values_of("lenet", 28, 4, 42)
    for name, value in wanted.items():
        np.testing.assert_array_equal(values[name], value)


@pytest.mark.parametrize(("network", "size"), [("lenet", 28), ("googlenet", 224), ("squeezenet1_1", 32)])
def test_all_but_the_layers_that_depend_on_the_classes_come_from_the_file(
    network: str, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, drawn = values_of(network, size, 7, 1), values_of(network, size, 4, 42)
    (tmp_path / "w").write_bytes(save(given))
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        values, told = start(recipe_of(network, size, weights=str(tmp_path / "w"), new_head=True), 4)
    assert values.keys() == drawn.keys()
    new = {name for name in drawn if not np.array_equal(values[name], given[name])}
    # A bias starts at 0, here and there.
    assert new | {name for name in HEADS[network] if name.endswith("bias")} == HEADS[network]
    for name in HEADS[network]:
        np.testing.assert_array_equal(values[name], drawn[name])
    layers = {name.rpartition(".")[0] for name in HEADS[network]}
    assert set(told["initial_weights"]["new_layers"]) == layers
    assert all(layer in caplog.text for layer in layers)


def test_a_head_that_would_fit_is_drawn_anew_too(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(save(values_of("lenet", 28, 7, 1)))
    values, _ = start(recipe_of("lenet", 28, weights=str(tmp_path / "w"), new_head=True), 7)
    np.testing.assert_array_equal(values["classifier.weight"], values_of("lenet", 28, 7, 42)["classifier.weight"])


def test_other_classes_without_a_new_head_are_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(save(values_of("lenet", 28, 7, 1)))
    with pytest.raises(BadInput, match=r"expected 4; found 7; initial\.new_head=true starts that layer anew"):
        start(recipe_of("lenet", 28, weights=str(tmp_path / "w")), 4)


def test_an_export_for_mxnet_gets_a_new_head(tmp_path: Path) -> None:
    given = values_of("lenet", 28, 7, 1)
    names = symbol_names(catalog.entry("lenet").build(7), (3, 28, 28))
    write_params(tmp_path / "w.params", {theirs: given[ours] for ours, theirs in names.items()})
    values, _ = start(recipe_of("lenet", 28, weights=str(tmp_path / "w.params"), new_head=True), 4)
    assert values["classifier.weight"].shape[0] == 4
    np.testing.assert_array_equal(values["conv1.weight"], given["conv1.weight"])


def test_a_run_means_its_best_checkpoint_and_a_checkpoint_s_folder_itself(tmp_path: Path) -> None:
    given = values_of("lenet", 28, 7, 1)
    save_run(tmp_path, given, (10.0, 30.0, 20.0))
    for place, epoch in ((tmp_path, 2), (tmp_path / "checkpoints/epoch-0003", 3)):
        for new_head, classes in ((False, 7), (True, 4)):
            values, told = start(recipe_of("lenet", 28, weights=str(place), new_head=new_head), classes)
            np.testing.assert_array_equal(values["conv1.weight"], given["conv1.weight"] * epoch)
            assert told["initial_weights"]["file"].endswith(f"epoch-{epoch:04d}/weights.safetensors")


def test_a_run_that_was_fed_otherwise_or_has_other_classes_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_run(tmp_path, values_of("lenet", 28, 7, 1), (1.0,))
    others = data_of(7, "another", red=1.5)
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        first_values(recipe_of("lenet", 28, weights=str(tmp_path)), catalog.build("lenet", 7), others)
    assert "mean R 1.0, G 2.0, B 3.0; here those of the records count" in caplog.text
    assert "tells other classes apart than the records; initial.new_head=true" in caplog.text
    caplog.clear()
    start(recipe_of("lenet", 28, weights=str(tmp_path)), 7)
    assert caplog.text == ""


def test_what_is_no_start_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"^initial\.weights = .*: a folder that is no run with a checkpoint$"):
        start(recipe_of("lenet", 28, weights=str(tmp_path)), 7)
    save_run(tmp_path, values_of("lenet", 28, 7, 1), (1.0,))
    with pytest.raises(BadInput, match="a checkpoint of another network; expected shallownet; found lenet; take netw"):
        start(recipe_of("shallownet", 28, weights=str(tmp_path), new_head=True), 7)
    assert load((tmp_path / "checkpoints/epoch-0001/weights.safetensors").read_bytes())
