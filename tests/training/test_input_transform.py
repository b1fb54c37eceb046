"""Input transforms: fitted as written, layers like others, left alone by training, kept and exported."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.config import InputRecipe, Recipe, load_recipe
from imagenet_pipeline.engines import FRAMEWORKS, Blueprint, create_engine, is_installed
from imagenet_pipeline.engines.zoos import network_of
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.interchange.export import TrainedNetwork, export
from imagenet_pipeline.interchange.int8 import quantise
from imagenet_pipeline.interchange.onnx_import import import_onnx
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layer_file import NetworkFile, network_text, read_network
from imagenet_pipeline.networks.layers import Activation, Conv, Dense, Flatten, Sequential, stack
from imagenet_pipeline.networks.shapes import parameters
from imagenet_pipeline.record_builders import folder
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.verify import verify
from imagenet_pipeline.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from imagenet_pipeline.training.engine_setup import new_engine
from imagenet_pipeline.training.input_transform import fitted, values_of, whitening, with_transform
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.mean_image import write_mean_image
from imagenet_pipeline.training.pixel_moments import Moments, fitted_on, fitting_batches
from imagenet_pipeline.training.resume import open_run

SIDE, IMAGES = 4, 300
SHAPE = (3, SIDE, SIDE)
NEARLY_0 = 1e-9
SCALE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
ENGINES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in FRAMEWORKS]


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 training and 10 validation images of two brightnesses, noise of 8 pixels a side.

    Twice the side of what is fitted on: a JPEG has colours at every other pixel alone.
    """
    root, out = tmp_path_factory.mktemp("colours"), tmp_path_factory.mktemp("records")
    random = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 10)):
        for number in range(count):
            place = root / split / f"class{number % 2}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            noise = random.integers(0, 160, (2 * SIDE, 2 * SIDE, 3)) + 60 * (number % 2)
            cv2.imwrite(str(place), noise.astype(np.uint8))
    build(folder.plan(root), out, BuildOptions(resize=0, workers=1))
    return out


@pytest.fixture
def recipe(colours: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """`recipe(epochs=2, **{"input.transform": "zca"})`: a small network of its own file on these images."""
    convolution = stack(conv=Conv(4, 3, pad=1), relu=Activation("relu"), flatten=Flatten(), classifier=Dense(2))
    dense = stack(flatten=Flatten(), hidden=Dense(8), relu=Activation("relu"), classifier=Dense(2))
    network = tmp_path / "mine.json"

    def make(**given: Any) -> Recipe:
        layers = dense if given.get("input.transform") == "pca" else convolution
        network.write_text(network_text(NetworkFile("mine", SIDE, layers)))
        text = (
            f'network = "{network}"\nrecords = "{colours}"\nepochs = 2\nbatch_size = 50\ndevices = "cpu"\n'
            f'[input]\nsize = {SIDE}\ncrop_fraction = 1.0\n[augmentation]\ncrop = "centre"\n'
            "[loader]\nthreads = 0\n[optimizer]\nlearning_rate = 0.02\n"
        )
        (tmp_path / "small.toml").write_text(text)
        return load_recipe(tmp_path / "small.toml", given)

    return make


def trained(recipe: Recipe, run: Path, resume: str | None = None) -> Checkpoint:
    train(open_run(recipe, {}, run, resume))
    return load_checkpoint(find_checkpoint(run, "latest"))


def images_fitted_on(recipe: Recipe) -> Any:
    return np.concatenate([batch.copy() for batch in fitting_batches(recipe, read_data_set(recipe.records), SHAPE)])


def pixels_of(images: Any, normalisation: Any = SCALE) -> Any:
    mean, std = (np.array(numbers)[:, None, None] for numbers in normalisation)
    return ((images.transpose(0, 3, 1, 2) - mean) / std).reshape(len(images), -1)


@settings(max_examples=40)
@given(st.integers(2, 8), st.integers(12, 40), st.integers(0, 2**32 - 1), st.sampled_from([NEARLY_0, 0.01, 3.0]))
def test_whitening_is_that_of_scikit_learn_and_numpy(numbers: int, count: int, seed: int, epsilon: float) -> None:
    from sklearn.decomposition import PCA

    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, numbers)) @ random.normal(size=(numbers, numbers))
    centred, covariance = vectors - vectors.mean(0), np.cov(vectors.T)
    components = int(random.integers(1, numbers + 1))
    theirs = PCA(components, whiten=True, svd_solver="full").fit(vectors)
    scale = np.sqrt(theirs.explained_variance_ / (theirs.explained_variance_ + epsilon))
    ours = centred @ whitening(covariance, epsilon, components).T
    np.testing.assert_allclose(ours, theirs.transform(vectors) * scale, atol=1e-5)
    matrix = whitening(covariance, epsilon)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6 * np.abs(matrix).max())
    np.testing.assert_allclose(matrix @ matrix @ (covariance + epsilon * np.eye(numbers)), np.eye(numbers), atol=1e-4)


@settings(max_examples=25)
@given(st.integers(2, 700), st.integers(0, 2**32 - 1), st.lists(st.integers(1, 699), max_size=4))
def test_moments_are_exact_however_the_images_come(count: int, seed: int, cuts: list[int]) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (count, 2, 3, 3), dtype=np.uint8)
    plain = pixels_of(images)
    for kind in ("mean_image", "pixels", "zca"):
        at_once, in_parts = Moments(18, kind), Moments(18, kind)
        at_once.add(images)
        for part in np.split(images, sorted({cut for cut in cuts if cut < count})):
            in_parts.add(part)
        np.testing.assert_allclose(at_once.mean, plain.mean(0), rtol=1e-14)
        assert np.array_equal(at_once.mean, in_parts.mean)
        if kind != "mean_image":
            wanted = np.cov(plain.T) if kind == "zca" else plain.var(0, ddof=1)
            np.testing.assert_allclose(at_once.covariance, wanted, rtol=1e-9, atol=1e-9)
            assert np.array_equal(at_once.covariance, in_parts.covariance)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("transform", ["zca", "pca", "pixels", "mean_image"])
def test_transformed_training_images_are_what_each_transform_promises(
    transform: str, engine: str, recipe: Callable[..., Recipe]
) -> None:
    epsilon = {} if transform == "mean_image" else {"input.transform_epsilon": NEARLY_0}
    wanted = recipe(**{"input.transform": transform, "engine": engine, **epsilon})
    data, images = read_data_set(wanted.records), images_fitted_on(wanted)
    normalisation = (data.mean, data.std)
    for precision, limit in (("float64", 1e-6), ("float32", 1e-3)):
        built, _ = new_engine(wanted.model_copy(update={"precision": precision}), data)
        made, _ = built.layer_gradients(images, "input_transform", np.zeros(len(images), np.int64))
        rows = made.reshape(len(images), -1).astype(np.float64)
        assert np.abs(rows.mean(0)).max() < limit
        if transform in ("zca", "pca"):
            assert np.abs(np.cov(rows.T) - np.eye(rows.shape[1])).max() < limit
        elif transform == "pixels":
            assert np.abs(rows.var(0, ddof=1) - 1).max() < limit
        else:
            normalised = pixels_of(images, normalisation)
            np.testing.assert_allclose(rows, normalised - normalised.mean(0), atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_training_averages_and_a_kill_leave_the_transform_as_it_was_fitted(
    engine: str, recipe: Callable[..., Recipe], tmp_path: Path, asked_after: Any
) -> None:
    given = {"input.transform": "zca", "engine": engine, "precision": "float32", "average_decay": 0.9}
    wanted = recipe(
        **given, **{"optimizer.weight_decay": 0.1, "optimizer.name": "adam", "optimizer.learning_rate": 0.01}
    )
    whole = trained(wanted, tmp_path / "whole")
    with asked_after(3):
        trained(wanted, tmp_path / "stopped")
    # The same recipe again, as a user has it: with the network's own name, and the transform to be fitted.
    again = trained(wanted, tmp_path / "stopped", "latest")
    assert again.weights_digest == whole.weights_digest
    for file in ("optimizer.safetensors", "network.json"):
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    sums = moments(wanted)
    fit = values_of(wanted.input, sums.mean, sums.covariance, (whole.state.mean, whole.state.std), SHAPE)
    assert fit.keys() == {name for name in whole.weights if name.startswith("input_transform")}
    for name, value in fit.items():
        np.testing.assert_array_equal(whole.weights[name], value.astype(np.float32))
        np.testing.assert_array_equal(whole.trained[name], value.astype(np.float32))
        assert not any(key.endswith(name) and not key.startswith(("average", "trained")) for key in whole.optimizer)
    assert read_network(tmp_path / "whole" / "network.json").name == "mine"


def moments(recipe: Recipe) -> Moments:
    return fitted_on(recipe, read_data_set(recipe.records), SHAPE)


def test_the_fit_depends_on_the_seed_and_on_no_thread(recipe: Callable[..., Recipe]) -> None:
    given = {"input.transform": "zca", "input.transform_images": 200}
    drawn = [moments(recipe(**given, **{"loader.threads": threads, "seed": seed}))
             for threads, seed in ((0, 1), (3, 1), (0, 2))]  # fmt: skip
    assert [one.count for one in drawn] == [200, 200, 200]
    assert np.array_equal(drawn[0].covariance, drawn[1].covariance)
    assert not np.array_equal(drawn[0].covariance, drawn[2].covariance)
    assert moments(recipe(**{"input.transform": "zca", "input.transform_images": 0})).count == IMAGES


def test_the_journal_says_what_was_fitted_on(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    wanted = recipe(**{"input.transform": "pixels", "input.transform_images": 100, "epochs": 1})
    trained(wanted, tmp_path / "run")
    start = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])
    assert start["input_transform"] == {"transform": "pixels", "images": 100, "from": f"{wanted.records}, train"}


def test_a_run_begun_with_the_weights_of_another_has_its_transform(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    first = trained(recipe(epochs=1, **{"input.transform": "zca", "input.transform_images": 250}), tmp_path / "first")
    plain = trained(recipe(epochs=1), tmp_path / "plain")
    name = "input_transform.whitened.weight"
    for own in ({"input.transform": "zca"}, {"network": str(tmp_path / "first" / "network.json")}):
        values = begun(recipe(**own, **{"initial.weights": str(tmp_path / "first")}))
        np.testing.assert_array_equal(values[name], first.weights[name])
    values = begun(recipe(**{"input.transform": "zca", "initial.weights": str(tmp_path / "plain")}))
    assert not np.array_equal(values[name].astype(np.float32), first.weights[name])
    assert values.keys() == first.weights.keys()
    np.testing.assert_array_equal(values["conv.weight"], plain.weights["conv.weight"])
    with pytest.raises(BadRecipe, match="begins with the input transform of another run"):
        begun(recipe(network=str(tmp_path / "first" / "network.json")))


def begun(recipe: Recipe) -> Any:
    """The values that a run of this recipe begins with."""
    values = new_engine(recipe, read_data_set(recipe.records))[1].values
    assert values is not None
    return values


def test_a_restart_cannot_change_the_transform(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    given = {"input.transform": "zca", "input.transform_images": 250}
    trained(recipe(**given, epochs=1), tmp_path / "run")
    for key, other in {"transform": "channels", "transform_images": 251, "transform_epsilon": 0.5}.items():
        changed = {} if other == "channels" else given | {f"input.{key}": other}
        with pytest.raises(BadRecipe, match=f"recipe key 'input.{key}'"):
            open_run(recipe(**changed, epochs=3), {}, tmp_path / "run", "latest")


def test_exports_of_a_whitened_run_give_its_scores(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    checkpoint = trained(recipe(**{"input.transform": "zca", "precision": "float32"}), tmp_path / "run")
    state, images = checkpoint.state, np.random.default_rng(2).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    plain = Recipe(network="", records="", devices="cpu", precision="float64")
    blueprint = Blueprint(catalog.build(state.network, 2), SIDE, state.mean, state.std, plain)
    engines = filter(is_installed, FRAMEWORKS)
    wanted = [create_engine(name, blueprint, checkpoint.weights).logits(images) for name in engines]
    np.testing.assert_allclose(wanted[0], wanted[-1], rtol=1e-9)
    scale = state.mean, state.std
    network = TrainedNetwork(state.network, SIDE, state.class_table, *scale, 1.0, checkpoint.weights, "", "run/c/1")
    found = {form: run(export(network, form, tmp_path / f"net_{form.partition('-')[0]}").files, images)
             for form, run in exported_forms().items()}  # fmt: skip
    for form, logits in found.items():
        np.testing.assert_allclose(logits, wanted[0], atol=1e-4, err_msg=form)


def exported_forms() -> dict[str, Callable[[dict[Path, str], Any], Any]]:
    """What runs the files of each format whose program is here."""
    forms: dict[str, Any] = {}
    if is_installed("gluon"):
        forms["mxnet"] = through_mxnet
    if is_installed("pytorch"):
        forms["torchscript"] = through_torchscript
    pytest.importorskip("onnxruntime")
    return forms | {"onnx": through_onnx}


def through_onnx(files: dict[Path, str], images: Any) -> Any:
    from imagenet_pipeline.interchange.onnx_runtime import OnnxScorer

    return OnnxScorer(next(iter(files))).logits(images)


def through_mxnet(files: dict[Path, str], images: Any) -> Any:
    from imagenet_pipeline.engines.gluon.runtime import mx

    symbol, params = map(str, files)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot decide type")
        block = mx.gluon.SymbolBlock.imports(symbol, ["data"], params)
    for name in ("input_transform_mean_value", "input_transform_whitened_weight"):
        attributes = mx.sym.load(symbol).attr_dict()[name]  # by which Module's optimizer goes
        assert (attributes["__lr_mult__"], attributes["__wd_mult__"]) == ("0.0", "0.0")
    return block(mx.nd.array(images.transpose(0, 3, 1, 2))).asnumpy()


def through_torchscript(files: dict[Path, str], images: Any) -> Any:
    from imagenet_pipeline.engines.pytorch.runtime import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(next(iter(files))))
    fixed = [name for name, tensor in module.named_parameters() if not tensor.requires_grad]
    assert fixed == ["input_transform.mean.value", "input_transform.whitened.weight"]
    return module(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))).detach().numpy()


def test_transforms_are_layers_that_nothing_trains_and_stand_there_once() -> None:
    lenet = catalog.build("lenet", 10)
    for transform in ("mean_image", "pixels", "zca"):
        made = with_transform(lenet, InputRecipe(size=28, transform=transform), (3, 28, 28))
        own = {name: one for name, one in parameters(made, (3, 28, 28)).items() if name.startswith("input_transform")}
        assert own
        assert not any(one.trainable for one in own.values())
        assert made.items[1:] == lenet.items
        assert with_transform(made, InputRecipe(size=28, transform=transform), (3, 28, 28)) == made
    # A grey input that is not square.
    grey = with_transform(lenet, InputRecipe(size=28, transform="zca"), (1, 28, 32))
    assert parameters(Sequential(grey.items[:1]), (1, 28, 32))["input_transform.whitened.weight"].shape == (896, 896)


@pytest.fixture
def whitened_lenet(tmp_path: Path) -> TrainedNetwork:
    """A whitened network whose file has the name of one of the catalogue, as a run's own has; a grey input."""
    shape, random = (1, 28, 28), np.random.default_rng(0)
    layers = with_transform(catalog.build("lenet", 2), InputRecipe(channels=1, size=28, transform="zca"), shape)
    file = tmp_path / "network.json"
    file.write_text(network_text(NetworkFile("lenet", 28, Sequential(layers.items), 1)))
    values = initial_values(layers, shape, "he", 1)
    values["input_transform.mean.value"] = random.normal(size=shape).astype(np.float32)
    classes = ClassTable("folder", ("a", "b"), ("a", "b"))
    return TrainedNetwork(str(file), 28, classes, (120.0,), (60.0,), 1.0, values, "", "run/checkpoints/1")


def test_an_export_comes_back_with_its_transform(whitened_lenet: TrainedNetwork, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    export(whitened_lenet, "onnx", tmp_path / "net")
    imported = import_onnx(tmp_path / "net.onnx")
    assert imported.layers is not None
    own = next(value for name, value in imported.values.items() if name.endswith("input_transform_whitened.weight"))
    np.testing.assert_array_equal(own, whitened_lenet.values["input_transform.whitened.weight"])


def test_int8_leaves_the_transform_in_float32(whitened_lenet: TrainedNetwork, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export(whitened_lenet, "onnx", tmp_path / "net")
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 28, 28)).astype(np.float32)
    quantise(tmp_path / "net.onnx", iter([images]))
    nodes = {node.name: list(node.input) for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert nodes["input_transform.whitened"][1] == "input_transform.whitened.weight"
    assert any("conv1.weight_DequantizeLinear" in name for name in nodes)


def test_what_no_transform_fits_is_refused_in_a_line() -> None:
    lenet = catalog.build("lenet", 10)
    with pytest.raises(
        BadRecipe, match=r"3x224x224 are too many; expected at most 4,096, as of 36x36 pixels; found 150"
    ):
        with_transform(lenet, InputRecipe(transform="zca"), (3, 224, 224))
    with pytest.raises(BadRecipe, match=r"pca gives the network a vector of components, and it takes images.*conv1"):
        with_transform(lenet, InputRecipe(size=28, transform="pca"), (3, 28, 28))
    with pytest.raises(BadRecipe, match=r"no more components than numbers; expected at most 48; found 49"):
        with_transform(lenet, InputRecipe(size=4, transform="pca", transform_components=49), SHAPE)
    with pytest.raises(BadRecipe, match="a zoo's network takes no transform of its input"):
        with_transform(network_of("timm:any", 10), InputRecipe(transform="pixels"), SHAPE)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"transform_images": 5}, 'transform_images: has no effect on transform "channels"'),
        ({"transform": "mean_image", "transform_epsilon": 0.5}, "transform_epsilon: has no effect"),
        ({"transform": "zca", "transform_components": 5}, "transform_components: has no effect"),
        ({"transform": "zca", "evaluation_size": 256}, "evaluation_size: has no effect"),
        ({"transform": "zca", "transform_epsilon": 0.0}, "greater than 0"),
        ({"transform": "whiten"}, "'channels', 'mean_image', 'pixels', 'pca' or 'zca'"),
    ],
)
def test_keys_that_have_no_effect_are_errors(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        InputRecipe(**given)


def test_one_image_has_no_variance(recipe: Callable[..., Recipe]) -> None:
    wanted = recipe(**{"input.transform": "pixels", "input.transform_images": 1})
    data = replace(read_data_set(wanted.records))
    with pytest.raises(BadRecipe, match=r"input\.transform_images: a variance needs two images; found 1"):
        fitted(wanted, data, (data.mean, data.std), SHAPE)


def test_the_mean_image_beside_the_records_is_taken_where_it_fits(
    colours: Path, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    place = tmp_path / "records"
    shutil.copytree(colours, place)
    before = read_data_set(place).digest
    made = write_mean_image(place, SIDE, 1.0)
    data = read_data_set(place)
    assert data.digest == before
    assert not verify(place).problems
    own = recipe(**{"input.transform": "mean_image", "input.transform_images": 0})
    wanted = images_fitted_on(own).mean(0, dtype=np.float64).transpose(2, 0, 1)
    stored = np.load(place / "mean.npy")
    assert stored.dtype == np.float64
    np.testing.assert_allclose(stored, wanted, rtol=1e-14)
    taken = recipe(**{"input.transform": "mean_image", "input.transform_images": 5, "records": str(place)})
    values, entry = fitted(taken, data, SCALE, SHAPE)
    np.testing.assert_array_equal(values["input_transform.mean.value"], stored)
    assert entry["input_transform"] == {"transform": "mean_image", "images": IMAGES, "from": str(made.path)}
    other = recipe(**{"input.transform": "mean_image", "input.crop_fraction": 0.5, "records": str(place)})
    assert "mean.npy" not in fitted(other, data, SCALE, SHAPE)[1]["input_transform"]["from"]
    made.path.write_bytes(made.path.read_bytes()[:-1] + b"!")
    with pytest.raises(Damaged, match=r"mean\.npy: the mean image has changed since it was written; make it again"):
        fitted(taken, data, SCALE, SHAPE)
    card = json.loads((place / "mean_image.json").read_text())
    for key, value in (("size", SIDE), ("size", ["x", 1]), ("images", "many")):
        (place / "mean_image.json").write_text(json.dumps({**card, key: value}))
        with pytest.raises(Damaged, match=r"mean_image\.json: not the card of a mean image"):
            fitted(taken, data, SCALE, SHAPE)
