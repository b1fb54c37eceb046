"""What a run starts from: files, runs and checkpoints, with the head they have or a new one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import load, save

from imagenet_pipeline.config import InitialRecipe, InputRecipe, Recipe
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged
from imagenet_pipeline.interchange.export import TrainedNetwork, export
from imagenet_pipeline.interchange.network_symbol import symbol_names
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet, Manifest
from imagenet_pipeline.training.checkpoint import State, save_checkpoint
from imagenet_pipeline.training.engine_setup import Beginning, beginning_of

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
    begun = begin(recipe, data_of(classes))
    assert begun.values is not None
    return dict(begun.values), begun.journal_entry


def begin(recipe: Recipe, data: DataSet) -> Beginning:
    return beginning_of(recipe, catalog.build(recipe.network, len(data.classes)), data)


def test_without_weights_the_values_are_drawn() -> None:
    values, told = start(recipe_of("lenet", 28), 4)
    assert told == {"normalisation": {"mean": [1, 2, 3], "std": [4, 5, 6], "from": "records/mean.json"}}
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


def test_a_run_that_has_other_classes_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_run(tmp_path, values_of("lenet", 28, 7, 1), (1.0,))
    others = data_of(7, "another", red=1.5)
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        begin(recipe_of("lenet", 28, weights=str(tmp_path)), others)
    assert "tells other classes apart than the records; initial.new_head=true" in caplog.text
    caplog.clear()
    start(recipe_of("lenet", 28, weights=str(tmp_path)), 7)
    assert "other classes" not in caplog.text


def test_what_is_no_start_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"^initial\.weights = .*: the folder is not a run with a checkpoint$"):
        start(recipe_of("lenet", 28, weights=str(tmp_path)), 7)
    save_run(tmp_path, values_of("lenet", 28, 7, 1), (1.0,))
    with pytest.raises(
        BadInput, match="the checkpoint is of another network; expected shallownet; found lenet; take netw"
    ):
        start(recipe_of("shallownet", 28, weights=str(tmp_path), new_head=True), 7)
    assert load((tmp_path / "checkpoints/epoch-0001/weights.safetensors").read_bytes())


FED = ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
"""Of `save_run`; the records below have another mean."""
OTHERS = data_of(7, red=1.5)
GIVEN = {"mean": (10.0, 20.0, 30.0), "std": (1.0, 1.0, 1.0)}


def exported(folder: Path, form: Literal["mxnet", "pytorch"], raw: bool) -> Path:
    values = values_of("lenet", 28, 7, 1)
    subject = TrainedNetwork("lenet", 28, OTHERS.classes, *FED, 0.875, values, "digest", "run/checkpoints/epoch-0001")
    return next(path for path in export(subject, form, folder / "net", raw).files if path.suffix in WEIGHTS)


WEIGHTS = (".params", ".safetensors")


@pytest.mark.parametrize("place", ["run", "checkpoint", "link", "file", "copy", "mxnet", "raw mxnet", "raw pytorch"])
@pytest.mark.parametrize("given", [{}, GIVEN], ids=["", "given"])
def test_mean_and_std_travel_with_the_weights_unless_they_are_given(
    place: str, given: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_run(tmp_path, values_of("lenet", 28, 7, 1), (1.0,))
    checkpoint = tmp_path / "checkpoints" / "epoch-0001"
    match place.split():
        case ["run"]:
            path = tmp_path
        case ["checkpoint"]:
            path = checkpoint
        case ["link"]:
            path = tmp_path / "checkpoints" / "best"
            path.symlink_to("epoch-0001")
        case ["file"]:
            path = checkpoint / "weights.safetensors"
        case ["copy"]:
            path = tmp_path / "mine" / "w.safetensors"
            path.parent.mkdir()
            path.write_bytes((checkpoint / "weights.safetensors").read_bytes())
            (path.parent / "state.json").write_bytes((checkpoint / "state.json").read_bytes())
        case [*raw, form]:
            path = exported(tmp_path, form, bool(raw))
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        begun = begin(recipe_of("lenet", 28, weights=str(path), **given), OTHERS)
    wanted = (GIVEN["mean"], GIVEN["std"]) if given else FED
    assert begun.normalisation == wanted
    told = begun.journal_entry["normalisation"]
    assert [told["mean"], told["std"]] == [list(numbers) for numbers in wanted]
    said = "mean 10,20,30 std 1,1,1, from initial.mean and" if given else "mean 1,2,3 std 4,5,6, from "
    assert said in caplog.text
    assert told["from"] in caplog.text


def test_an_export_of_mxnet_has_them_inside_too(tmp_path: Path) -> None:
    path = exported(tmp_path, "mxnet", raw=False).rename(tmp_path / "other.params")
    assert begin(recipe_of("lenet", 28, weights=str(path)), OTHERS).normalisation == FED


@pytest.mark.parametrize("beside", ["nothing", "a card of another file", "a state of another program"])
def test_a_loose_file_gets_those_of_the_records_and_that_is_said(
    beside: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = exported(tmp_path, "pytorch", raw=False)
    path.write_bytes(save(values_of("lenet", 28, 7, 2)))
    if beside != "a card of another file":
        path = path.rename(tmp_path / "w.safetensors")
    if beside == "a state of another program":
        (tmp_path / "state.json").write_text("{}")
    begun = begin(recipe_of("lenet", 28, weights=str(path)), OTHERS)
    assert begun.normalisation == (OTHERS.mean, OTHERS.std)
    assert "nothing says how its input was normalised, so mean and std of the records are taken" in caplog.text
    assert ("not of a checkpoint of ours" in caplog.text) == (beside == "a state of another program")


def test_a_card_or_state_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path, "pytorch", raw=False)
    card = tmp_path / "net.pytorch.json"
    card.write_text(card.read_text().replace(" 4.0,", " 0.0,"))
    with pytest.raises(BadInput, match=r"net\.pytorch\.json: its mean and std are unusable in float32"):
        begin(recipe_of("lenet", 28, weights=str(path)), OTHERS)
    save_run(tmp_path, values_of("lenet", 28, 7, 1), (1.0,))
    state = tmp_path / "checkpoints" / "epoch-0001" / "state.json"
    state.write_text(state.read_text().replace(" 4.0,", " 5.0,"))
    with pytest.raises(Damaged, match=r"state\.json: the file has changed since"):
        begin(recipe_of("lenet", 28, weights=str(state.with_name("weights.safetensors"))), OTHERS)
