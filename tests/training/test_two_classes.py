"""Runs on records of two uneven classes: a single output, class weights and a balanced order, from start to restart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from imagenet_pipeline.config import LoaderRecipe, LossRecipe, Recipe
from imagenet_pipeline.engines import is_installed
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.networks.head import has_two_scores
from imagenet_pipeline.networks.layer_file import read_network
from imagenet_pipeline.record_builders import digits
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.inspect import labels_of
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.plan import Images, Plan
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import find_checkpoint
from imagenet_pipeline.training.data import class_weights_of, require_fitting_loss, with_window
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run

ENGINES = [name for name in ("gluon", "pytorch") if is_installed(name)]
KEPT = {"train": (70, 10), "val": (12, 12), "test": (12, 12)}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 3, and 8 as class 1, of which there are a seventh as many to train on."""
    folder = tmp_path_factory.mktemp("two")
    plan = digits.plan(folder)
    splits = {}
    for split, images in plan.splits.items():
        rows = np.sort(np.concatenate([np.flatnonzero(images.labels == digit)[:count]
                                       for digit, count in zip((3, 8), KEPT[split], strict=True)]))  # fmt: skip
        splits[split] = Images([images.paths[row] for row in rows], (images.labels[rows] == 8).astype(np.int64))
    two = Plan(plan.root, splits, ClassTable("folder", ("3", "8"), ("three", "eight")))
    build(two, folder / "records", BuildOptions(resize=0, workers=1))
    return folder / "records"


@pytest.fixture
def keys(records: Path) -> dict[str, Any]:
    return {
        "records": str(records), "batch_size": 16, "epochs": 2, "devices": "cpu", "input.size": 16,
        "augmentation.flip": 0.0, "optimizer.learning_rate": 0.02, "loader.threads": 0,
        "loss.kind": "binary_cross_entropy", "loss.threshold": 0.4,
    }  # fmt: skip


def go(folder: Path, keys: dict[str, Any], resume: str | None = None) -> Any:
    return train(open_run(Recipe(network="shallownet", records=""), keys, folder, resume))


def contents(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in find_checkpoint(run, "2").glob("*.safetensors")}


@pytest.mark.parametrize(
    ("engine", "balance"),
    [
        pytest.param("gluon", {"loader.order": "balanced"}, marks=pytest.mark.gluon),
        ("pytorch", {"loss.class_weights": "balanced"}),
    ],
)
def test_a_run_with_one_output_goes_on_in_equal_bytes_and_is_scored_alike_by_each_engine(
    engine: str, balance: dict[str, str], keys: dict[str, Any], tmp_path: Path, killed_at: Any
) -> None:
    keys = {**keys, **balance, "engine": engine, "checkpoint.every_steps": 2, "precision": "float64"}
    assert go(tmp_path / "whole", keys).finished
    with killed_at(3):
        go(tmp_path / "parts", keys)
    assert find_checkpoint(tmp_path / "parts", "latest").name == "epoch-0000-step-00000002"
    assert go(tmp_path / "parts", keys, "latest").finished
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert has_two_scores(read_network(tmp_path / "whole" / "network.json").layers)
    scored = [evaluate(tmp_path / "whole", "latest", "test", overrides={"engine": name}) for name in ENGINES]
    assert {figure.loss_kind for figure in scored} == {"binary_cross_entropy"}
    assert len({figure.rank1_hits for figure in scored}) == 1
    assert scored[-1].loss == pytest.approx(scored[0].loss, rel=1e-9)


def test_balanced_weights_are_scikit_learn_s(records: Path) -> None:
    data = read_data_set(records)
    with RecordSet.of(data, "train") as found:
        labels = labels_of(found, data, "train")
        assert labels.tolist() == found.first_labels().tolist(), "the list is in the records' order"
    wanted = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    weights = class_weights_of(LossRecipe(class_weights="balanced"), data)
    np.testing.assert_allclose(weights, wanted, rtol=1e-14)
    assert class_weights_of(LossRecipe(class_weights=(1.0, 7.0)), data) == (1.0, 7.0)
    assert class_weights_of(LossRecipe(), data) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loss.class_weights": [1, 2, 3]},
            "'loss.class_weights' must have a number for each class; expected 2; found 3",
        ),
        ({"loss.threshold": 1.5}, "'loss.threshold': input should be less than 1; found 1.5"),
        ({"network": "timm:resnet18", "engine": "pytorch"}, "the layers of a zoo's network are not known here"),
    ],
)
def test_a_key_that_does_not_fit_is_a_line_and_leaves_no_run(
    change: dict[str, Any], message: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BadRecipe) as caught:
        go(tmp_path / "run", {**keys, **change})
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_ten_classes_have_no_single_output(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BadRecipe, match=r"binary_cross_entropy of one class a record tells two classes apart; found 10"
    ):
        open_run(recipe, {"loss.kind": "binary_cross_entropy"}, tmp_path)


def test_the_threshold_stays_within_a_run(keys: dict[str, Any], tmp_path: Path, engine: Any) -> None:
    plain = {**keys, "loss.kind": "cross_entropy", "loss.threshold": 0.5, "epochs": 1}
    assert go(tmp_path, plain).finished
    with pytest.raises(BadRecipe, match="recipe key 'network' cannot change within a run"):
        go(tmp_path, keys, "latest")
    with pytest.raises(BadRecipe, match=r"recipe key 'loader.order' cannot change within a run"):
        go(tmp_path, {**plain, "loader.order": "balanced"}, "latest")


def test_a_cache_that_does_not_hold_all_shards_has_no_balanced_order() -> None:
    cache = SimpleNamespace(window_shards=lambda shards, wanted: 2)
    data: Any = SimpleNamespace(cache=cache, manifest=SimpleNamespace(splits={"train": SimpleNamespace(shards=())}))
    recipe = Recipe(network="lenet", records="s3://bucket/x", loader=LoaderRecipe(order="balanced"))
    with pytest.raises(BadRecipe, match=r"loader.order: a balanced order reads from all shards at a time"):
        with_window(recipe, data)


@pytest.mark.parametrize("key", [{"threshold": 0.4}, {"class_weights": "balanced"}, {"label_smoothing": 0.1}])
def test_keys_of_one_class_a_record_are_none_of_several(key: dict[str, Any]) -> None:
    table = ClassTable("list", ("a", "b"), ("a", "b"), label_kind="classes")
    recipe = Recipe(network="lenet", records="x", loss=LossRecipe(kind="binary_cross_entropy", **key))
    with pytest.raises(BadRecipe, match=rf"loss.{next(iter(key))}' is for records with one class each"):
        require_fitting_loss(recipe, cast(Any, SimpleNamespace(classes=table, name="x")))
