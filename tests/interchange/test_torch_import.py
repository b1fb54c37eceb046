"""torchvision's and timm's names: recognised, refused where unclear, and what their weights were fed with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from imagenet_pipeline.cli import main
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange import public_weights
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.interchange.public_weights import PUBLIC_WEIGHTS, PublicWeights
from imagenet_pipeline.interchange.torch_import import import_torch
from imagenet_pipeline.interchange.torch_names import HALF, IMAGENET, NAMINGS, their_names, their_shape
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.shapes import parameters
from imagenet_pipeline.training.resume import open_run

Arrays = dict[str, np.ndarray[Any, Any]]
LISTS = [
    line.split() for line in (Path(__file__).parent / "torch_names.txt").read_text().splitlines() if line[:1] != "#"
]


@pytest.mark.parametrize(("name", "count", "digest"), LISTS, ids=[row[0] for row in LISTS])
def test_names_and_shapes_are_those_of_the_zoo(name: str, count: str, digest: str) -> None:
    entry = catalog.entry(name)
    declared = parameters(entry.build(1000), (3, entry.input_size, entry.input_size))
    theirs = their_names(name, declared)
    shapes = {theirs[key]: their_shape(name, theirs[key], parameter.shape) for key, parameter in declared.items()}
    lines = sorted(f"{key} {shape}\n" for key, shape in shapes.items())
    assert (str(len(lines)), hashlib.sha256("".join(lines).encode()).hexdigest()[:16]) == (count, digest)


def test_every_network_with_names_is_on_the_list() -> None:
    assert [row[0] for row in LISTS] == list(NAMINGS)
    assert {entry.network for entry in PUBLIC_WEIGHTS} <= set(NAMINGS)


def values_of(name: str, classes: int = 3) -> tuple[Arrays, dict[str, str]]:
    """Drawn values of a network by our names, and the zoo's name of each."""
    entry = catalog.entry(name)
    values = initial_values(entry.build(classes), (3, entry.input_size, entry.input_size), "he", 1)
    return values, their_names(name, values)


@pytest.fixture(scope="module")
def squeezed() -> tuple[Arrays, Arrays]:
    """Values of squeezenet1_1, the smallest, by our names and by torchvision's."""
    values, theirs = values_of("squeezenet1_1")
    return values, {theirs[name]: value for name, value in values.items()}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Arrays], Path]:
    def save(arrays: Arrays) -> Path:
        save_file(arrays, tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors"

    return save


Saved = Callable[[Arrays], Path]


def test_a_file_is_recognised_by_its_names(saved: Saved, squeezed: tuple[Arrays, Arrays]) -> None:
    values, theirs = squeezed
    imported = import_torch(saved(theirs))
    assert (imported.network, imported.classes, imported.input_size) == ("squeezenet1_1", 3, 224)
    assert (imported.normalisation, imported.crop_fraction) == (IMAGENET, 0.875)
    assert imported.normalisation_from == "torchvision, as is usual for its squeezenet1_1"
    assert list(imported.values) == list(values)
    for name, value in values.items():
        np.testing.assert_array_equal(imported.values[name], value)


def test_auxiliary_classifiers_come_along_or_not(saved: Saved) -> None:
    values, theirs = values_of("googlenet_bn")
    arrays = {theirs[name]: np.asarray(value, np.float16) for name, value in values.items()}
    imported = import_torch(saved(arrays))
    assert imported.values.keys() == values.keys()
    assert imported.normalisation == HALF
    without = {name: array for name, array in arrays.items() if not name.startswith("aux")}
    assert import_torch(saved(without)).values.keys() == {name for name in values if "auxiliary" not in name}
    with pytest.raises(BadInput, match=r"named like no network"):
        import_torch(saved({name: array for name, array in arrays.items() if not name.startswith("aux1")}))


@pytest.mark.parametrize("name", ["resnext50_32x4d", "convnext_tiny", "vit_small_patch16_224"])
def test_shapes_tell_kin_apart_and_axes_of_length_1_are_taken_off(saved: Saved, name: str) -> None:
    """A ResNeXt has the names of a ResNet; layer scales and positions have more axes in their zoos than here."""
    entry = catalog.entry(name)
    declared = parameters(entry.build(3), (3, entry.input_size, entry.input_size))
    theirs = their_names(name, declared)
    shapes = {key: their_shape(name, theirs[key], parameter.shape) for key, parameter in declared.items()}
    arrays = {
        theirs[key]: np.full(shape, number % 100, np.float16) for number, (key, shape) in enumerate(shapes.items())
    }
    imported = import_torch(saved(arrays))
    assert (imported.network, imported.classes) == (name, 3)
    for number, (key, parameter) in enumerate(declared.items()):
        assert (imported.values[key].shape, imported.values[key].flat[-1]) == (parameter.shape, number % 100)
    if name == "vit_small_patch16_224":
        with pytest.raises(BadInput, match=r"tokens\.token\.value has shape \(2, 1, 384\), not \(1, 384\)"):
            import_torch(saved({**arrays, "cls_token": np.ones((2, 1, 384), np.float16)}))


def test_the_old_spelling_of_densenet_is_known(saved: Saved) -> None:
    values, theirs = values_of("densenet121")
    arrays = {theirs[name]: np.asarray(value, np.float16) for name, value in values.items()}
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): array for name, array in arrays.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert import_torch(saved(old)).values.keys() == values.keys()


def test_what_torchvision_undoes_inside_is_a_half_and_a_half() -> None:
    """`transform_input` on pixels normalised with ImageNet's mean and std, as in torchvision's googlenet.py."""
    pixels = np.random.default_rng(1).uniform(0, 255, (5, 3))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    inside = (pixels / 255 - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
    np.testing.assert_allclose((pixels - np.array(HALF[0])) / np.array(HALF[1]), inside, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda arrays: arrays.pop("features.3.squeeze.weight"),
            r"w\.safetensors: named like no network of torchvision's or timm's that is known here; expected "
            r"features\.3\.squeeze\.weight \(1 in all\) too, as squeezenet1_1 has$",
        ),
        (
            lambda arrays: arrays.update({"fc.weight": np.ones(2, np.float32)}),
            r"expected the names of squeezenet1_1 alone; found fc\.weight \(1 in all\)$",
        ),
        (
            lambda arrays: arrays.update({"features.3.squeeze.weight": np.ones((9, 64, 1, 1), np.float32)}),
            r"the weights of .*, named like torchvision's squeezenet1_1, do not fit the network: "
            r"fire2\.squeeze\.weight has shape \(9, 64, 1, 1\), not \(16, 64, 1, 1\)",
        ),
        (
            lambda arrays: arrays.update({"classifier.1.weight": np.ones((0, 512, 1, 1), np.float32)}),
            r"the classifier has no classes",
        ),
    ],
)
def test_what_is_unclear_is_refused(saved: Saved, squeezed: tuple[Arrays, Arrays], change: Any, says: str) -> None:
    arrays = dict(squeezed[1])
    change(arrays)
    with pytest.raises(BadInput, match=says) as caught:
        import_torch(saved(arrays))
    assert str(caught.value).isprintable()


def test_names_of_quite_another_network_are_shown(saved: Saved) -> None:
    with pytest.raises(BadInput, match=r"known here; found blocks\.0\.weight \(1 in all\)$"):
        import_torch(saved({"blocks.0.weight": np.ones(3, np.float32)}))


def test_mxnets_parameters_are_sent_to_their_option(tmp_path: Path) -> None:
    write_params(tmp_path / "net.params", {"arg:conv_weight": np.ones(3, np.float32)})
    with pytest.raises(BadInput, match=r"holds MXNet parameters; .*; --params FILE, with --symbol FILE or --network"):
        import_torch(tmp_path / "net.params")


def test_a_network_that_is_named_must_be_it(saved: Saved, squeezed: tuple[Arrays, Arrays]) -> None:
    path = saved(squeezed[1])
    assert import_torch(path, "squeezenet1_1").network == "squeezenet1_1"
    with pytest.raises(BadInput, match=r"not named like torchvision's squeezenet1_0; expected "):
        import_torch(path, "squeezenet1_0")
    with pytest.raises(
        BadRecipe, match=r"neither torchvision nor timm has weights of resnet50_v1; did you mean resnet50"
    ):
        import_torch(path, "resnet50_v1")
    with pytest.raises(BadRecipe, match=r"the input is too small for squeezenet1_1"):
        import_torch(path, input_size=8)
    assert import_torch(path, input_size=96).input_size == 96


def test_timms_config_says_what_its_weights_were_fed(saved: Saved, squeezed: tuple[Arrays, Arrays]) -> None:
    path = saved(squeezed[1])
    config = path.with_name("config.json")
    fed = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 0.95, "input_size": [3, 224, 224]}
    config.write_text(json.dumps({"architecture": "squeezenet1_1", "pretrained_cfg": fed}))
    imported = import_torch(path)
    assert (imported.normalisation, imported.crop_fraction) == (HALF, 0.95)
    assert imported.normalisation_from == str(config)
    config.write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": fed}))
    assert import_torch(path).normalisation == IMAGENET
    for broken in ({**fed, "mean": [0.5, "x", 1]}, {**fed, "std": [0, 1, 1]}, {**fed, "crop_pct": 2}):
        config.write_text(json.dumps({"architecture": "squeezenet1_1", "pretrained_cfg": broken}))
        with pytest.raises(BadInput, match=re.escape(str(config))):
            import_torch(path)


def test_a_file_of_the_public_list_comes_with_its_crop(
    saved: Saved, squeezed: tuple[Arrays, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(squeezed[1])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    entry = PublicWeights("s", "squeezenet1_1", f"https://host/s-{digest}.pth", digest, 1, None, 1, 1, 0.9)
    monkeypatch.setattr(public_weights, "PUBLIC_WEIGHTS", (entry,))
    imported = import_torch(path)
    assert imported.crop_fraction == 0.9
    assert imported.normalisation_from == f"torchvision 0.28, models/*.py: s-{digest}.pth"


def call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["import", *words])
    captured = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, captured.out, captured.err


@pytest.mark.parametrize("option", ["--torchvision", "--timm"])
def test_the_verb_makes_a_run(
    saved: Saved, squeezed: tuple[Arrays, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    words = [option, str(saved(squeezed[1])), "--out", str(tmp_path / "run")]
    code, out, _ = call(words, capsys)
    assert code == 0
    assert "squeezenet1_1, 3 classes, 224 px, 52 arrays" in out
    assert "from torchvision, as is usual for its squeezenet1_1" in out
    state = json.loads((tmp_path / "run/checkpoints/epoch-0000/state.json").read_text())
    assert (state["mean"], state["crop_fraction"]) == (list(IMAGENET[0]), 0.875)
    more = ["--mean", "0,0,0", "--std", "1,1,1", "--crop-fraction", "0.5", "--json"]
    code, out, _ = call([*words[:3], str(tmp_path / "other"), *more], capsys)
    answer = json.loads(out)
    assert (answer["mean"], answer["normalisation_from"]) == ([0, 0, 0], "the command line")
    state = json.loads((tmp_path / "other/checkpoints/epoch-0000/state.json").read_text())
    assert state["crop_fraction"] == 0.5


@pytest.mark.parametrize("words", [["--params", "p"], ["--symbol", "s", "--params", "p"], ["--onnx", "o"]])
def test_weights_come_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, _, err = call([*words, "--timm", "t", "--out", str(tmp_path / "run")], capsys)
    assert (code, err) == (2, "error: weights of torchvision or timm come alone; leave the other files out\n")


def begun(recipe: Path, folder: Path, **changes: Any) -> Any:
    run = open_run(recipe, {key.replace("__", "."): value for key, value in changes.items()}, folder)
    run.resources.close()
    return run.engine.values()


@pytest.fixture
def recipe(photo_records: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'network = "squeezenet1_1"\nrecords = "{photo_records}"\nepochs = 1\nbatch_size = 5\ndevices = "cpu"\n'
        'precision = "float32"\n[input]\nsize = 32\n[loader]\nthreads = 0\n'
    )
    return path


@pytest.mark.pytorch
def test_training_starts_from_the_file_itself(
    saved: Saved, squeezed: tuple[Arrays, Arrays], recipe: Path, tmp_path: Path
) -> None:
    values, theirs = squeezed
    path = saved(theirs)
    start = {"initial__weights": str(path), "engine": "pytorch"}
    with pytest.raises(BadInput, match=r"another number of classes; expected 6; found 3; initial\.new_head=true"):
        begun(recipe, tmp_path / "other classes", **start)
    found = begun(recipe, tmp_path / "begun", **start, initial__new_head=True)
    for name, value in values.items():
        assert (found[name].shape == value.shape) == (not name.startswith("classifier")), name
        if found[name].shape == value.shape:
            np.testing.assert_array_equal(found[name], value)
    journal = [json.loads(line) for line in (tmp_path / "begun/journal.jsonl").read_text().splitlines()]
    entry = next(event["normalisation"] for event in journal if "normalisation" in event)
    assert entry == {
        "mean": list(IMAGENET[0]), "std": list(IMAGENET[1]), "from": "torchvision, as is usual for its squeezenet1_1",
    }  # fmt: skip
    headless = {name: array for name, array in theirs.items() if not name.startswith("classifier")}
    assert begun(recipe, tmp_path / "headless", **start | {"initial__weights": str(saved(headless))},
                 initial__new_head=True).keys() == values.keys()  # fmt: skip


@pytest.mark.pytorch
def test_a_recipe_of_another_network_is_told_which_it_is(
    saved: Saved, squeezed: tuple[Arrays, Arrays], recipe: Path, tmp_path: Path
) -> None:
    start = {"initial__weights": str(saved(squeezed[1])), "engine": "pytorch"}
    for network in ("squeezenet1_0", "resnet18_v2"):
        with pytest.raises(
            BadInput,
            match=rf"are those of torchvision's squeezenet1_1; expected {network}; take network=squeezenet1_1$",
        ):
            begun(recipe, tmp_path / "run", **start, network=network, initial__new_head=True)
