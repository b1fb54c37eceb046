"""Gluon's save_parameters without a graph: MXNet's zoo against our networks, and files that do not fit."""

from __future__ import annotations

import os
import random
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, create_engine
from imagenet_pipeline.engines.zoos import network_of
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange.gluon_import import import_gluon, structural_values
from imagenet_pipeline.interchange.npz import is_npz, read_npz
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.interchange.weights import read_weights, starting_values
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Dense, Flatten, stack, without_taps
from imagenet_pipeline.networks.shapes import parameters

LONG = os.environ.get("IMAGENET_PIPELINE_LONG") == "1"
ZOO = {
    "resnet18_v1": ("resnet18", 64), "resnet50_v1": ("resnet50_v1", 64), "resnet18_v2": ("resnet18_v2", 64),
    "squeezenet1.0": ("squeezenet1_0", 224), "mobilenetv2_0.25": ("mobilenetv2_0.25", 64),
}  # fmt: skip
LONG_ZOO: dict[str, tuple[str, int]] = {
    "resnet34_v1": ("resnet34", 64), "resnet101_v1": ("resnet101_v1", 64), "resnet152_v1": ("resnet152_v1", 64),
    "resnet34_v2": ("resnet34_v2", 64), "resnet50_v2": ("resnet50_v2", 64), "resnet101_v2": ("resnet101_v2", 64),
    "resnet152_v2": ("resnet152_v2", 64), "alexnet": ("alexnet_one_tower", 224), "vgg11": ("vgg11", 224),
    "vgg13": ("vgg13", 224), "vgg16": ("vgg16", 224), "vgg19": ("vgg19", 224), "vgg11_bn": ("vgg11_bn", 224),
    "vgg13_bn": ("vgg13_bn", 224), "vgg16_bn": ("vgg16_bn", 224), "vgg19_bn": ("vgg19_bn", 224),
    "squeezenet1.1": ("squeezenet1_1", 224), "densenet161": ("densenet161", 224), "densenet169": ("densenet169", 224),
    "densenet201": ("densenet201", 224), "inceptionv3": ("inception_v3", 299),
    "densenet121": ("densenet121", 224), "mobilenet1.0": ("mobilenet1.0", 64),
    "mobilenetv2_1.0": ("mobilenetv2_1.0", 64),
}  # fmt: skip
GLUONCV = {"gluoncv:mobilenet0.25": ("mobilenet0.25", 64), "gluoncv:resnet50_v1b": ("resnet50", 64)}
LONG_GLUONCV: dict[str, tuple[str, int]] = {
    "gluoncv:resnet50_v1d": ("resnet50_d", 64), "gluoncv:resnet18_v1b": ("resnet18", 64),
    "gluoncv:googlenet": ("googlenet_bn", 224), "gluoncv:se_resnet50_v1": ("se_resnet50_v1", 64),
    "gluoncv:alexnet": ("alexnet_one_tower", 224), "gluoncv:inceptionv3": ("inception_v3", 299),
    "gluoncv:resnext50_32x4d": ("resnext50_32x4d", 64), "gluoncv:se_resnext50_32x4d": ("se_resnext50_32x4d", 64),
    "gluoncv:resnext101_64x4d": ("resnext101_64x4d", 64),
}  # fmt: skip


def zoo_block(name: str) -> Any:
    if not name.startswith("gluoncv:"):
        return pytest.importorskip("mxnet.gluon").model_zoo.vision.get_model(name, classes=3)
    if find_spec("gluoncv") is None:
        pytest.skip("bash scripts/install_zoo.sh gluoncv")
    from imagenet_pipeline.engines.gluon import zoo

    return zoo._classifiers()[name.removeprefix("gluoncv:")](pretrained=False, classes=3)


def inside(block: Any) -> Any:
    yield block
    for child in block._children.values():
        yield from inside(child)


def fill(mx: Any, block: Any, pixels: Any) -> Any:
    """Random values everywhere, but for the scales and shifts that the block holds; its logits."""
    block.initialize(mx.init.Xavier(magnitude=2.5))
    block(pixels)
    draw = np.random.default_rng(1)
    for parameter in block.collect_params().values():
        if len(parameter.shape) == 1 and (parameter.grad_req != "null" or "running" in parameter.name):
            parameter.set_data(mx.nd.array(draw.uniform(0.3, 1, parameter.shape)))
    return block(pixels).asnumpy()


@pytest.mark.parametrize("prefixed", [False, True] if LONG else [False])
@pytest.mark.parametrize("name", [*ZOO, *GLUONCV, *([*LONG_ZOO, *LONG_GLUONCV] if LONG else [])])
def test_a_file_of_the_zoos_gives_the_zoos_logits(name: str, prefixed: bool, mx: Any, tmp_path: Path) -> None:
    wanted_name, size = (ZOO | LONG_ZOO | GLUONCV | LONG_GLUONCV)[name]
    images = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    block = zoo_block(name)
    wanted = fill(mx, block, mx.nd.array(((images - 127.0) / 60.0).transpose(0, 3, 1, 2)))
    file = tmp_path / "net.params"
    if prefixed:  # as save_params did
        block.collect_params().save(str(file), strip_prefix=block.prefix)
    else:
        block.save_parameters(str(file))
    imported = import_gluon(file, name, size)
    assert (imported.network, imported.classes, imported.normalisation) == (wanted_name, 3, None)
    network: Any = imported.layers or network_of(imported.network, 3)
    recipe = Recipe(network="", records="", devices="cpu", precision="float32")
    engine = create_engine(
        "gluon", Blueprint(without_taps(network), size, (127.0,) * 3, (60.0,) * 3, recipe), imported.values
    )
    assert np.abs(engine.logits(images) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_gluoncv_network_that_is_none_of_ours_becomes_a_run_of_layers(
    mx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    block, file, run = zoo_block("gluoncv:cifar_resnet20_v1"), tmp_path / "net.params", tmp_path / "run"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.float32)
    wanted = fill(mx, block, mx.nd.array((pixels - 127.0) / 60.0))
    block.save_parameters(str(file))
    words = ["--network", "gluoncv:cifar_resnet20_v1", "--input", "32", "--mean", "127,127,127", "--std", "60,60,60"]
    done("import", "--params", str(file), *words, "--out", str(run))
    assert (run / "network.json").is_file()
    done("export", str(run), "--format", "onnx", "--checkpoint", "latest", "--out", str(tmp_path / "net"))
    found = runtime.InferenceSession(str(tmp_path / "net.onnx")).run(None, {"images": pixels})[0]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()

    def refused(*_: object) -> None:
        raise BadInput("nothing here says so")

    monkeypatch.setattr("imagenet_pipeline.interchange.mxnet_import.import_graph", refused)
    imported = import_gluon(file, "gluoncv:cifar_resnet20_v1", 32)
    assert (imported.network, imported.layers) == ("gluoncv:cifar_resnet20_v1", None)
    assert imported.notes[0].endswith("its graph could not become layers (nothing here says so)")


def done(*words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 0


def gluon_arrays(name: str = "resnet18", classes: int = 4, bias: bool = False) -> dict[str, Any]:
    """Arrays as Gluon would name those of one of our networks."""
    entry = catalog.entry(name)
    draw, arrays, numbers = np.random.default_rng(3), {}, {}
    for parameter in parameters(without_taps(entry.build(classes)), (3, entry.input_size, entry.input_size)).values():
        layer, _, ending = parameter.name.rpartition(".")
        number = numbers.setdefault(layer, len(numbers))
        is_norm = parameter.role in ("scale", "shift", "mean", "variance")
        theirs = {"weight": "gamma", "bias": "beta"}.get(ending, ending) if is_norm else ending
        fixed = parameter.role == "scale" and not parameter.trainable
        values = np.ones(parameter.shape) if fixed else draw.uniform(0.5, 1, parameter.shape)
        arrays[f"features.{number}.{theirs}"] = values.astype(np.float32)
        if bias and ending == "weight" and len(parameter.shape) == 4:
            arrays[f"features.{number}.bias"] = np.full(parameter.shape[0], 0.25, np.float32)
    return arrays


def saved(folder: Path, arrays: dict[str, Any]) -> Path:
    write_params(folder / "net.params", arrays)
    return folder / "net.params"


def test_any_order_and_prefixes_of_an_old_python_are_put_right(tmp_path: Path) -> None:
    arrays = gluon_arrays()
    names = list(arrays)
    random.Random(1).shuffle(names)
    plain, shuffled = saved(tmp_path, arrays), tmp_path / "old.params"
    write_params(shuffled, {f"arg:{name}": arrays[name] for name in names})
    wanted, found = import_gluon(plain, "resnet18"), import_gluon(shuffled, "resnet18")
    assert all(np.array_equal(found.values[name], array) for name, array in wanted.values.items())


def test_biases_before_a_normalisation_go_into_its_mean(tmp_path: Path) -> None:
    plain = import_gluon(saved(tmp_path, gluon_arrays()), "resnet18").values
    folded = import_gluon(saved(tmp_path, gluon_arrays(bias=True)), "resnet18").values
    assert np.array_equal(folded["stem.norm.running_mean"], plain["stem.norm.running_mean"] - np.float32(0.25))
    assert np.array_equal(folded["stem.conv.weight"], plain["stem.conv.weight"])


def test_without_a_name_the_networks_that_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"is of; found squeezenet1_0, squeezenet_book fit; say --network squeezenet1_0 or"
    ):
        import_gluon(saved(tmp_path, gluon_arrays("squeezenet1_0")), None)
    arrays = {name: array for name, array in gluon_arrays().items() if ".13." not in name}
    with pytest.raises(BadInput, match="none of ours fits; the nearest is resnet"):
        import_gluon(saved(tmp_path, arrays), None)


def test_what_does_not_fit_is_named_on_both_sides(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        import_gluon(saved(tmp_path, gluon_arrays("resnet18")), "resnet50_v1")
    assert str(caught.value).endswith(
        "not the parameters of resnet50_v1; found your features.2.weight (64, 64, 3, 3); "
        "resnet50_v1's stage1.unit1.conv1.weight (64, 64, 1, 1)"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features.0.weight": np.full((64, 3, 7, 7), np.nan, np.float32)}, "not finite"),
        ({"features.0.weight": np.ones((64, 3, 7, 7), np.int32)}, "no floating-point numbers"),
        ({"features.0.stuff": np.ones(3, np.float32)}, "ends in no role that Gluon has"),
        ({"features.99.weight": np.ones((4, 4), np.float32)}, r"your features.99.weight \(4, 4\); resnet18's nothing"),
    ],
)
def test_values_that_do_not_fit_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        import_gluon(saved(tmp_path, gluon_arrays() | change), "resnet18")


def test_a_file_that_fits_in_two_ways_is_refused() -> None:
    network = stack(flatten=Flatten(), one=Dense(12), two=Dense(12), three=Dense(3))
    layers = {number: {"weight": np.ones((3 if number == 2 else 12, 12)), "bias": np.ones(12)} for number in (1, 0, 2)}
    layers[2]["bias"] = np.ones(3)
    arrays = {f"{number}.{ending}": array for number, layer in layers.items() for ending, array in layer.items()}
    with pytest.raises(
        BadInput, match=r"fits in several ways; found 1.weight or 0.weight for the network's one.weight"
    ):
        structural_values(network, (3, 2, 2), arrays, "file")


def test_unknown_names(tmp_path: Path) -> None:
    file = saved(tmp_path, gluon_arrays())
    with pytest.raises(BadRecipe, match="did you mean resnet18"):
        import_gluon(file, "resnet181")
    with pytest.raises(BadRecipe, match="Gluon knows no such network"):
        import_gluon(file, "timm:resnet18")


@pytest.mark.parametrize("name", ["resnext101_32x4d", "MobileNetV3_Large", "mobilenetv3_large"])
def test_a_name_that_gluoncv_has_is_offered(name: str, mx: Any, tmp_path: Path) -> None:
    if find_spec("gluoncv") is None:
        pytest.skip("bash scripts/install_zoo.sh gluoncv")
    with pytest.raises(BadRecipe, match=f"did you mean gluoncv:{name.lower()}\\?$"):
        import_gluon(saved(tmp_path, gluon_arrays("lenet")), name)


def test_npz_and_initial_weights(tmp_path: Path) -> None:
    arrays = gluon_arrays("lenet")
    np.savez(tmp_path / "net.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    imported = import_gluon(tmp_path / "net.npz", "lenet")
    assert imported.classes == 4
    network, shape = catalog.entry("lenet").build(4), (3, 28, 28)
    for name in ("net.npz", "packed.npz"):
        found = read_weights(tmp_path / name)
        values = starting_values(tmp_path / name, found, network, shape, {})
        assert all(np.array_equal(values[ours], array) for ours, array in imported.values.items())
    head = ["classifier.weight", "classifier.bias"]
    other, drawn = (
        catalog.entry("lenet").build(7),
        {"classifier.weight": np.ones((7, 500)), "classifier.bias": np.ones(7)},
    )
    values = starting_values(tmp_path / "net.npz", found, other, shape, drawn, head)
    assert values["classifier.bias"].shape == (7,)
    with pytest.raises(
        BadInput, match=r"your features.3.weight \(4, 500\); the network's classifier.weight \(7, 500\)"
    ):
        starting_values(tmp_path / "net.npz", found, other, shape, drawn)


def npz_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_archives_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    header = b"\x93NUMPY\x01\x00" + len(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,)}\n").to_bytes(
        2, "little"
    )
    header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,)}\n"
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    object_bytes = (tmp_path / "object.npy").read_bytes()
    cases = [
        ({"a.npy": object_bytes}, zipfile.ZIP_STORED, "holds no numbers"),
        ({"a.npy": header + bytes(35)}, zipfile.ZIP_STORED, "size is not that of its shape"),
        ({"a.npy": header.replace(b"(9,)", b"(-9)") + bytes(36)}, zipfile.ZIP_STORED, "damaged|no numbers"),
        ({"a.npy": b"nothing"}, zipfile.ZIP_STORED, "damaged"),
        ({"a.npy": bytes(10**6)}, zipfile.ZIP_DEFLATED, "declares more than it can hold"),
        ({"a/data.pkl": b"x", "a.npy": header + bytes(36)}, zipfile.ZIP_STORED, "something else than arrays"),
    ]  # fmt: skip
    for members, method, words in cases:
        path = npz_of(tmp_path / "net.npz", members, method)
        assert is_npz(path)
        with pytest.raises(BadInput, match=words) as caught:
            read_npz(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:50])
    assert not is_npz(path)
    assert not is_npz(npz_of(tmp_path / "torch.pth", {"archive/data.pkl": b""}))


def test_the_verb_makes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path, gluon_arrays("lenet"))
    words = ["import", "--params", str(file), "--out", str(tmp_path / "run"), "--mean", "0,0,0", "--std", "1,1,1"]
    for more, code, said in [(["--network", "lenet"], 0, "lenet, 4 classes, 28 px"), ([], 3, "only lenet fits")]:
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        captured = capsys.readouterr()
        assert (stopped.value.code, said in captured.out + captured.err) == (code, True)
