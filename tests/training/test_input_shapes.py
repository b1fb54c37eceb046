"""LeNet on photos in grey, 28 x 20 pixels: trained, broken off and resumed, scored, exported and brought back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.config import Recipe, load_recipe, load_run_recipe
from imagenet_pipeline.engines import Blueprint, create_engine, is_installed
from imagenet_pipeline.errors import BadRecipe, PipelineError
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.evaluation.predict import open_classifier
from imagenet_pipeline.interchange.export import TrainedNetwork, export
from imagenet_pipeline.interchange.frozen import Imported
from imagenet_pipeline.interchange.mxnet_import import import_mxnet
from imagenet_pipeline.interchange.onnx_import import import_onnx
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layer_file import NetworkFile, network_text, read_network
from imagenet_pipeline.networks.layers import Activation, Conv, Dense, Flatten, Pool, stack
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint
from imagenet_pipeline.training.data import input_statistics
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run

SHAPE = (1, 28, 20)
GREY: dict[str, Any] = {
    "input.channels": 1, "input.height": 28, "input.width": 20, "epochs": 2, "batch_size": 10,
    "schedule.kind": "constant",
}  # fmt: skip
ENGINES = [pytest.param(name, marks=pytest.mark.skipif(not is_installed(name), reason=f"no {name} here"))
           for name in ("gluon", "pytorch")]  # fmt: skip


@pytest.fixture(scope="session")
def grey_recipe(recipe: Path, photo_records: Path) -> Recipe:
    """Grey, oblong, 3 steps an epoch."""
    return load_recipe(recipe, {**GREY, "records": str(photo_records)})


def go(recipe: Recipe, folder: Path, resume: str | None = None, **overrides: Any) -> Any:
    return train(open_run(recipe, overrides, folder, resume))


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "epoch-0002" / "weights.safetensors").read_bytes()


@pytest.fixture(scope="session")
def run_of(grey_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`run_of("gluon")`: two epochs of that engine."""
    runs: dict[str, Path] = {}

    def trained(engine: str) -> Path:
        if engine not in runs:
            runs[engine] = tmp_path_factory.mktemp("grey") / engine
            go(grey_recipe, runs[engine], engine=engine)
        return runs[engine]

    return trained


@pytest.fixture
def grey_run(run_of: Callable[[str], Path]) -> Path:
    """The run of whichever engine is here."""
    return run_of("pytorch" if is_installed("pytorch") else "gluon")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_grey_oblong_run_goes_on_to_the_same_bytes(
    engine: str, grey_recipe: Recipe, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    run, broken = run_of(engine), tmp_path / "broken"
    go(grey_recipe, broken, engine=engine, epochs=1)
    go(grey_recipe, broken, "latest", engine=engine, epochs=2)
    assert weights(broken) == weights(run)
    state = load_checkpoint(find_checkpoint(run, "best")).state
    assert state.input_shape == SHAPE
    assert len(state.mean) == len(state.std) == 1
    assert json.loads((run / "checkpoints/epoch-0002/state.json").read_text())["input_size"] == [28, 20]
    assert evaluate(run, split="test").input_size == (28, 20)


def test_both_engines_compute_the_same_logits_and_steps() -> None:
    if not (is_installed("gluon") and is_installed("pytorch")):
        pytest.skip("needs both engines")
    network = catalog.build("lenet", 10)
    values = network.initial_values(SHAPE, "he", 1, False)
    recipe = Recipe(network="lenet", records="", devices="cpu", precision="float64")
    blueprint = Blueprint(network, (28, 20), (100.0,), (50.0,), recipe)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (8, 28, 20, 1), np.uint8), random.integers(0, 10, 8)
    found = []
    for name in ("gluon", "pytorch"):
        engine = create_engine(name, blueprint, values)
        before = engine.logits(images)
        engine.train_batch(images, labels, 0.01, 0)
        found.append((before, engine.logits(images)))
    for ours, theirs in zip(*found, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(ours).max()
    assert found[0][0].dtype == np.float64
    assert np.abs(found[0][0] - found[0][1]).max() > 1e-6


def test_pictures_are_classified_by_their_grey(grey_run: Path, tmp_path: Path) -> None:
    classifier = open_classifier(grey_run, overrides={"precision": "float64"})
    with RecordSet.open(Path(classifier.recipe.records), "test") as records:
        images = [cv2.imdecode(np.frombuffer(records.read(at).image, np.uint8), 1) for at in range(6)]
    rows = classifier.probabilities(images, 10)
    assert rows.shape == (6, 6)
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    # Grey first and smaller then differs by rounding alone.
    assert np.allclose(rows, classifier.probabilities([np.stack([each] * 3, 2) for each in grey], 10), atol=0.02)


def trained_network(run: Path) -> TrainedNetwork:
    checkpoint = load_checkpoint(find_checkpoint(run, "best"))
    state = checkpoint.state
    return TrainedNetwork(
        state.network, state.input_size, state.class_table, state.mean, state.std, state.crop_fraction,
        checkpoint.weights, checkpoint.weights_digest, str(checkpoint.folder),
    )  # fmt: skip


@pytest.fixture
def logits_of(grey_run: Path) -> Callable[[Any], Any]:
    """The logits of a run by its own engine, of images [n, 28, 20, 1]."""
    engine = open_classifier(grey_run, overrides={"precision": "float64"}).engine
    return engine.logits


def images_of(count: int = 5) -> Any:
    return np.random.default_rng(4).integers(0, 256, (count, 28, 20, 1), np.uint8)


def as_read(images: Any) -> Any:
    return images.transpose(0, 3, 1, 2).astype(np.float32)


def assert_near(found: Any, wanted: Any) -> None:
    assert np.abs(found - wanted).max() <= 3e-5 * np.abs(wanted).max()


def test_onnxruntime_gives_our_logits_and_the_file_comes_back(
    grey_run: Path, logits_of: Callable[[Any], Any], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    made = export(trained_network(grey_run), "onnx", tmp_path / "net")
    assert made.content["input"]["shape"] == ["n", *SHAPE]
    assert made.content["input"]["values"] == "grey, 0..255"
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {"images": as_read(images_of())})
    assert_near(found, logits_of(images_of()))
    _assert_back(import_onnx(tmp_path / "net.onnx"), grey_run)


@pytest.mark.parametrize("raw", [False, True])
def test_mxnet_gives_our_logits_and_the_files_come_back(
    raw: bool, grey_run: Path, logits_of: Callable[[Any], Any], tmp_path: Path, request: Any
) -> None:
    trained = trained_network(grey_run)
    export(trained, "mxnet", tmp_path / "net", raw)
    imported = import_mxnet(tmp_path / "net-symbol.json", tmp_path / "net-0000.params")
    _assert_back(imported, grey_run)
    if is_installed("gluon"):
        mx = request.getfixturevalue("mx")
        files = str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it does not know the type of the input
            block, pixels = mx.gluon.SymbolBlock.imports(*files), as_read(images_of())
        pixels = (pixels - trained.mean[0]) / trained.std[0] if raw else pixels
        assert_near(block(mx.nd.array(pixels)).asnumpy(), logits_of(images_of()))


def _assert_back(imported: Imported, run: Path) -> None:
    trained = trained_network(run)
    assert (imported.network, imported.input_shape) == ("lenet", SHAPE)
    assert imported.normalisation is not None
    assert np.allclose(imported.normalisation, (trained.mean, trained.std))
    for name, value in trained.values.items():
        assert np.array_equal(imported.values[name], value)


@pytest.mark.parametrize("form", ["pytorch", "torchscript"])
def test_torch_gives_our_logits(
    form: str, grey_run: Path, logits_of: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    export(trained_network(grey_run), form, tmp_path / "greynet")
    monkeypatch.syspath_prepend(tmp_path)
    if form == "pytorch":
        module = __import__("greynet").load()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(tmp_path / "greynet.pt")
    with torch.no_grad():
        assert_near(module(torch.tensor(as_read(images_of()))).numpy(), logits_of(images_of()))


def test_a_grey_network_of_no_catalogue_comes_back_grey(tmp_path: Path) -> None:
    layers = stack(
        c=Conv(4, 3), a=Activation("relu"), p=Pool("max", (2, 3), (2, 3)), f=Flatten(), d=Dense(7)
    )  # fmt: skip
    file = tmp_path / "mine.json"
    file.write_text(network_text(NetworkFile("mine", (28, 20), layers, channels=1)))
    assert read_network(file) == NetworkFile("mine", (28, 20), layers, channels=1)
    network = catalog.build(str(file), 3)
    values = network.initial_values(SHAPE, "he", 1, False)
    assert values is not None
    table = catalog_table(3)
    trained = TrainedNetwork(str(file), (28, 20), table, (90.0,), (60.0,), 0.9, values, "digest", "here/a/b")
    export(trained, "onnx", tmp_path / "net")
    export(trained, "mxnet", tmp_path / "net")
    sources = (
        import_onnx(tmp_path / "net.onnx"),
        import_mxnet(tmp_path / "net-symbol.json", tmp_path / "net-0000.params"),
    )
    for imported in sources:
        assert imported.input_shape == SHAPE
        assert imported.layers is not None
        assert imported.normalisation == ((90.0,), (60.0,))
        assert imported.class_table == table
        assert sorted(value.shape for value in imported.values.values()) == sorted(v.shape for v in values.values())


def catalog_table(count: int) -> Any:
    from imagenet_pipeline.training.imported import numbered_classes

    return numbered_classes(count)


def test_grey_statistics_are_those_of_the_training_pixels(photo_records: Path, digits_records: Path) -> None:
    data = read_data_set(photo_records)
    (mean, std), origin = input_statistics(data, 1)
    with RecordSet.of(data, "train") as records:
        pixels = [cv2.imdecode(np.frombuffer(records.read(at).image, np.uint8), 0) for at in range(len(records))]
    grey = np.concatenate([image.ravel() for image in pixels]).astype(float)
    assert mean[0] == pytest.approx(grey.mean(), abs=0.5)
    assert std[0] == pytest.approx(grey.std(), rel=0.01)
    assert "the grey of training images" in origin
    digits = read_data_set(digits_records)
    assert input_statistics(digits, 3) == ((digits.mean, digits.std), f"{digits_records}/mean.json")
    (mean, std), origin = input_statistics(digits, 1)
    assert (mean[0], std) == (pytest.approx(digits.mean[0]), digits.std[:1])
    assert "grey" not in origin


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"input.height": 28}, "'input.height': goes with width, give both or neither"),
        ({"input.width": 28}, "'input.width': goes with height"),
        ({"input.channels": 2}, "'input.channels': no such value; expected 1 or 3; found 2"),
        (
            {"input.height": 28, "input.width": 20, "input.evaluation_size": 32},
            "'input.evaluation_size': has no effect",
        ),
        (
            {"input.channels": 1, "initial.mean": [1, 2, 3], "initial.std": [1, 2, 3]},
            "'initial.mean': must be one number",
        ),
        ({"initial.mean": [1.0], "initial.std": [1.0]}, "must be three numbers"),
    ],
)
def test_keys_that_do_not_fit_are_one_line(recipe: Path, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRecipe, match=words):
        load_recipe(recipe, overrides)


def test_a_size_that_does_not_fit_and_weights_of_other_channels_are_refused(
    grey_recipe: Recipe, grey_run: Path, tmp_path: Path
) -> None:
    for number, (overrides, words) in enumerate(
        [
            ({"input.height": 4, "input.width": 28}, "layer conv1: an input of 4x28 is too small"),
            (
                {"initial.weights": str(grey_run), "input.channels": 3},
                "weights are for grey images .* input.channels=1",
            ),
            ({"initial.weights": str(grey_run), "input.width": 28}, "dense1.weight has shape"),
        ]
    ):
        with pytest.raises(PipelineError, match=words):
            open_run(grey_recipe, overrides, tmp_path / str(number), None)
        assert not (tmp_path / str(number)).exists()
    with pytest.raises(BadRecipe, match=r"'input\.width' cannot change within a run"):
        open_run(grey_run / "recipe.toml", {"input.width": 24}, grey_run, "latest")


def test_the_recipe_of_a_square_rgb_run_means_what_it_meant(recipe: Path) -> None:
    shape = load_recipe(recipe).input
    assert (shape.trained_size, shape.scored_size, shape.channels) == (28, 28, 3)
    assert load_recipe(recipe, {"input.height": 30, "input.width": 30}).input.trained_size == 30


def test_a_grey_run_is_made_of_an_export(grey_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(trained_network(grey_run), "onnx", tmp_path / "net")
    with pytest.raises(SystemExit) as ended:
        main(["import", "--onnx", str(tmp_path / "net.onnx"), "--out", str(tmp_path / "back"), "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["input_size"] == [28, 20]
    recipe = load_run_recipe(tmp_path / "back")
    assert (recipe.input.trained_size, recipe.input.channels) == ((28, 20), 1)
    records = load_run_recipe(grey_run).records
    scores = [evaluate(run, split="test", records=Path(records)).rank1_hits for run in (grey_run, tmp_path / "back")]
    assert scores[0] == scores[1]
    with pytest.raises(SystemExit):
        main(["import", "--onnx", str(tmp_path / "net.onnx"), "--out", str(tmp_path / "no"), "input.channels=3"])
    assert "is settled by what is imported" in capsys.readouterr().err
