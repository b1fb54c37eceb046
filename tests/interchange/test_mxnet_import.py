"""Foreign checkpoints: one MXNet 1.1 wrote, the zoo's, every network of our own, and graphs that are not ours."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, create_engine
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange import mxnet_import
from imagenet_pipeline.interchange.export import export_mxnet
from imagenet_pipeline.interchange.frozen import Imported
from imagenet_pipeline.interchange.mxnet_import import import_mxnet
from imagenet_pipeline.interchange.params import read_params, write_params
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import BatchNorm, Conv, Dense, Flatten, stack, without_taps
from imagenet_pipeline.networks.shapes import parameters

LONG = os.environ.get("IMAGENET_PIPELINE_LONG") == "1"
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
OF_NO_STEPS = ("convnext_tiny",)
"""It comes back as layers of its own: only networks of images are told by their steps."""
NOT_READ_BACK = ("vit_small_patch16_224",)
"""MXNet computes its file; its attention there is of operators that our reader does not have."""
CHEAP = (
    "lenet", "shallownet", "minivggnet", "minigooglenet", "emotion_vggnet", "googlenet", "googlenet_book",
    "inception_v3", "resnet18", "resnet50_v1", "resnet18_v2", "resnet18_d", "squeezenet1_1", "squeezenet_book",
    "densenet121",
)  # fmt: skip
ZOO = {"resnet18_v1": "resnet18", "resnet18_v2": "resnet18_v2", "squeezenet1.0": "squeezenet1_0"}
ZOO |= {"densenet121": "densenet121", "inceptionv3": "inception_v3"} if LONG else {}
ZOO |= {"resnet50_v1": "resnet50_v1", "alexnet": "alexnet_one_tower", "vgg11_bn": "vgg11_bn"} if LONG else {}


def our_logits(engine: str, imported: Imported, images: Any, mean: Any = MEAN, std: Any = STD) -> Any:
    network = without_taps(catalog.entry(imported.network).build(imported.classes))
    recipe = Recipe(network="", records="", devices="cpu", precision="float32")
    blueprint = Blueprint(network, imported.input_size, mean, std, recipe)
    return create_engine(engine, blueprint, imported.values).logits(images)


@pytest.fixture(scope="module")
def old_squeezenet(unpacked: Callable[[str], Path]) -> tuple[Path, Path]:
    """Symbol and values that MXNet 1.1 wrote."""
    symbol = next(unpacked("mxnet_files_shared.tar.xz").rglob("helmet-detection-model-symbol.json"))
    return symbol, symbol.with_name("helmet-detection-model-0000.params")


@pytest.fixture(scope="module")
def photos(unpacked: Callable[[str], Path]) -> Any:
    """Ten photos, one a class, [10, 224, 224, 3], RGB."""
    val = next(unpacked("imagenette224_6000.tar").rglob("val"))
    files = [min(folder.iterdir()) for folder in sorted(val.iterdir())]
    return np.stack([cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files])


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_a_squeezenet_of_mxnet_1_1_gives_module_s_logits(
    engine: str, old_squeezenet: tuple[Path, Path], photos: Any
) -> None:
    imported = import_mxnet(*old_squeezenet)
    assert (imported.network, imported.classes, imported.normalisation) == ("squeezenet1_1", 2, None)
    assert (imported.also, imported.unused) == ((), ())
    prefix = str(old_squeezenet[1]).removesuffix("-0000.params")
    symbol, arguments, statistics = mx.model.load_checkpoint(prefix, 0)
    module = mx.mod.Module(symbol, label_names=None)
    pixels = mx.nd.array(((photos - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2))
    module.bind([("data", pixels.shape)], for_training=False)
    module.set_params(arguments, statistics)
    module.forward(mx.io.DataBatch([pixels]), is_train=False)
    wanted = module.get_outputs()[0].asnumpy()
    assert len(wanted) == 10
    assert np.ptp(wanted, axis=0).max() > 0.1, "the photos must be told apart"
    assert np.abs(our_logits(engine, imported, photos) - wanted).max() <= 1e-5


@pytest.mark.parametrize("name", [name for name in catalog.names() if name not in NOT_READ_BACK] if LONG else CHEAP)
def test_an_exported_network_comes_back_bit_for_bit_and_is_recognised(name: str, tmp_path: Path) -> None:
    entry = catalog.entry(name)
    network, shape = entry.build(5), (3, entry.input_size, entry.input_size)
    random = np.random.default_rng(0)
    values = {
        one.name: np.ones(one.shape, np.float32)
        if one.role == "scale" and not one.trainable
        else random.random(one.shape, np.float32)
        for one in parameters(network, shape).values()
    }
    imported = import_mxnet(*export_mxnet(network, values, shape, tmp_path / "net", (MEAN, STD)))
    assert (imported.classes, imported.also, imported.normalisation) == (5, (), (MEAN, STD))
    if name in OF_NO_STEPS:
        assert imported.layers is not None
        assert sum(array.size for array in imported.values.values()) == sum(array.size for array in values.values())
        return
    assert imported.network == name
    assert set(imported.values) == set(parameters(without_taps(network), shape))
    assert all(array.tobytes() == values[name].tobytes() for name, array in imported.values.items())


@pytest.mark.parametrize("name", ZOO)
def test_what_gluon_exports_of_its_zoo(name: str, tmp_path: Path) -> None:
    size = 299 if name == "inceptionv3" else 224
    block = mx.gluon.model_zoo.vision.get_model(name, classes=3)
    block.initialize(mx.init.Xavier(magnitude=2.5))
    block.hybridize()
    images = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    pixels = mx.nd.array(((images - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2))
    block(pixels)
    random = np.random.default_rng(1)
    for parameter in block.collect_params().values():
        if len(parameter.shape) == 1 and not parameter.name.endswith("gamma"):
            parameter.set_data(mx.nd.array(random.uniform(0.3, 1, parameter.shape)))
    wanted = block(pixels).asnumpy()
    block.export(str(tmp_path / "zoo"))
    imported = import_mxnet(tmp_path / "zoo-symbol.json", tmp_path / "zoo-0000.params")
    assert imported.network == ZOO[name]
    assert np.abs(our_logits("gluon", imported, images) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def lenet_symbol(**changes: Any) -> Any:
    """LeNet as one writes it with Module, in ways of its own; `changes` spoil it."""
    settings = {"slope": "relu", "kernel": (5, 5), "pool": "max", "hidden": 500, **changes}
    net = (mx.sym.Variable("data") - 10.0) / 2.0
    net = mx.sym.broadcast_mul(net, mx.sym.Variable("factor", shape=(3, 1, 1)))
    net = mx.sym.Convolution(net, kernel=settings["kernel"], num_filter=20, pad=settings.get("pad", ()), name="one")
    net = mx.sym.Activation(net, act_type=settings["slope"])
    net = mx.sym.Pooling(net, kernel=(2, 2), stride=(2, 2), pool_type=settings["pool"], pooling_convention="full")
    net = settings.get("between", mx.sym.identity)(mx.sym.Convolution(net, kernel=(5, 5), num_filter=50, name="two"))
    net = mx.sym.Pooling(mx.sym.relu(net), kernel=(2, 2), stride=(2, 2), pool_type="max")
    net = mx.sym.Dropout(mx.sym.FullyConnected(net, num_hidden=settings["hidden"], name="three"), p=0.3)
    net = mx.sym.FullyConnected(mx.sym.Activation(net, act_type="relu"), num_hidden=4, name="four")
    return mx.sym.SoftmaxOutput(settings.get("end", lambda end: end)(net), name="softmax")


def save_module(symbol: Any, folder: Path, prefixes: bool = True) -> tuple[Path, Path]:
    shapes, _, _ = symbol.infer_shape(data=(1, 3, 28, 28))
    random = np.random.default_rng(0)
    given = zip(symbol.list_arguments(), shapes, strict=True)
    arrays = {name: random.random(shape, np.float32) + 0.5 for name, shape in given if name != "data"}
    arrays.pop("softmax_label", None)
    symbol.save(str(folder / "m-symbol.json"))
    write_params(folder / "m-0000.params", {("arg:" if prefixes else "") + name: one for name, one in arrays.items()})
    return folder / "m-symbol.json", folder / "m-0000.params"


@pytest.mark.parametrize("prefixes", [True, False])
def test_a_module_written_in_other_ways(prefixes: bool, tmp_path: Path) -> None:
    symbol = lenet_symbol()
    paths = save_module(symbol, tmp_path, prefixes)
    imported = import_mxnet(*paths)
    assert imported.network == "lenet"
    assert imported.normalisation is not None
    images = np.random.default_rng(2).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    arrays = {name.removeprefix("arg:"): mx.nd.array(one) for name, one in read_params(paths[1]).items()}
    data = mx.nd.array(images.transpose(0, 3, 1, 2).astype(np.float32))
    executor = symbol.bind(mx.cpu(), {**arrays, "data": data, "softmax_label": mx.nd.zeros(2)})
    wanted = executor.forward()[0].asnumpy()
    logits = our_logits("gluon", imported, images, *imported.normalisation)
    assert np.abs(mx.nd.softmax(mx.nd.array(logits)).asnumpy() - wanted).max() <= 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel": (3, 3)}, "found your one has kernel 3x3, lenet's 5x5"),
        ({"pad": (1, 1)}, "found your one has pad 1x1, lenet's 0x0"),
        ({"slope": "tanh"}, "has function tanh, lenet's relu"),
        ({"pool": "avg"}, "has pooling avg, lenet's max"),
        ({"hidden": 400}, "found your three has 400 units, lenet's 500"),
        ({"end": lambda end: mx.sym.relu(end)}, "an activation, where lenet ends"),
        (
            {"end": lambda end: mx.sym.softmax(end, name="twice") * 2},
            "found as lenet: 'twice': our layers have nothing like operator 'softmax'",
        ),
        ({"end": lambda end: mx.sym.concat(end, end)}, ", a concatenation of 2, where lenet ends"),
    ],
)
def test_a_difference_is_named_in_both_graphs(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        import_mxnet(*save_module(lenet_symbol(**changes), tmp_path), network="lenet")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_difference_from_the_nearest_network_is_named_as_it_computes(tmp_path: Path) -> None:
    imported = import_mxnet(*save_module(lenet_symbol(slope="tanh"), tmp_path))
    assert imported.layers is not None
    assert imported.network == "m"
    assert re.fullmatch(
        r"no network of ours; .*: your activation\d+ has function tanh, lenet's relu", imported.notes[0]
    )
    net = mx.sym.Convolution(mx.sym.Variable("data"), kernel=(5, 5), num_filter=10, name="conv0")
    net = mx.sym.FullyConnected(mx.sym.Activation(net, act_type="relu"), num_hidden=4, name="last")
    with pytest.raises(BadInput, match=r"not lenet; found your conv0 has 10 filters, lenet's 20$"):
        import_mxnet(*save_module(net, tmp_path), network="lenet")


def residual(gamma: bool, epsilon: float, folder: Path, swapped: bool = False) -> tuple[Path, Path]:
    """ResNet-18 exported, its graph then changed as text."""
    network = catalog.entry("resnet18").build(3)
    random = np.random.default_rng(0)
    declared = parameters(network, (3, 224, 224))
    values = {name: random.random(one.shape, np.float32) for name, one in declared.items()}
    symbol, params = export_mxnet(network, values, (3, 224, 224), folder / "net", None)
    whole = json.loads(symbol.read_text())
    for node in whole["nodes"]:
        if node["op"] == "BatchNorm":
            node["attrs"] |= {"eps": repr(epsilon), "fix_gamma": str(gamma)}
        if node["op"] == "elemwise_add" and swapped:
            node["inputs"].reverse()
    symbol.write_text(json.dumps(whole))
    return symbol, params


def test_a_scale_mxnet_holds_at_1_becomes_1(tmp_path: Path) -> None:
    imported = import_mxnet(*residual(True, 1e-5, tmp_path))
    assert (imported.values["stage1.unit1.norm1.weight"] == 1).all()


def test_a_sum_may_be_written_either_way_round(tmp_path: Path) -> None:
    paths = residual(False, 1e-5, tmp_path, swapped=True)
    imported = import_mxnet(*paths)
    weight = read_params(paths[1])["arg:stage2_unit1_shortcut_conv_weight"]
    assert np.array_equal(imported.values["stage2.unit1.shortcut.conv.weight"], weight)


def test_another_epsilon_is_another_network(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"found your stem_norm has epsilon 0\.001, resnet18's 1e-05$"):
        import_mxnet(*residual(False, 1e-3, tmp_path), network="resnet18")


def test_a_pooling_convention_counts_where_it_changes_something(tmp_path: Path) -> None:
    network = catalog.entry("squeezenet1_1").build(3)
    values = {name: np.ones(one.shape, np.float32) for name, one in parameters(network, (3, 224, 224)).items()}
    symbol, params = export_mxnet(network, values, (3, 224, 224), tmp_path / "net", None)
    assert '"full"' in symbol.read_text()
    symbol.write_text(symbol.read_text().replace('"full"', '"valid"'))
    assert import_mxnet(symbol, params).network == "squeezenet1_1"
    # 230 pixels become a map of 114, where the last window of 3 by steps of 2 is a partial one.
    with pytest.raises(BadInput, match=r"found your pool1 has ceil False, squeezenet1_1's True"):
        import_mxnet(symbol, params, "squeezenet1_1", 230)


def test_a_normalisation_of_the_input_becomes_its_mean_and_deviation(tmp_path: Path) -> None:
    data = mx.sym.BatchNorm(mx.sym.Variable("data"), eps=2e-5, fix_gamma=True, name="bn_data")
    net = lenet_symbol().get_internals()["four_output"]
    symbol = net(data=data)
    paths = save_module(symbol, tmp_path)
    arrays = read_params(paths[1]) | {
        "aux:bn_data_moving_mean": np.array([100, 110, 120], np.float32),
        "aux:bn_data_moving_var": np.array([400, 900, 1600], np.float32),
        "arg:bn_data_beta": np.array([0, 1, 0], np.float32),
        "arg:factor": np.full((3, 1, 1), 2, np.float32),
    }
    write_params(paths[1], arrays)
    mean, std = import_mxnet(*paths).normalisation or ((), ())
    # ((x - m) / s + beta - 10) / 2 * 2
    assert np.allclose(std, [20, 30, 40], rtol=1e-6)
    assert np.allclose(mean, [100 + 10 * 20, 110 + 9 * 30, 120 + 10 * 40], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arg:one_weight": None}, r"values are missing; found no 'one_weight' \(1 in all\)"),
        ({"arg:three_bias": np.ones(499, np.float32)}, "'three_bias': the array does not fit"),
        ({"arg:three_bias": np.ones(500, np.int32)}, "no floating-point numbers"),
        ({"arg:three_bias": np.full(500, np.nan, np.float32)}, "not finite"),
        ({"arg:factor": np.zeros((3, 1, 1), np.float32)}, "scale is unusable in float32"),
        ({"arg:factor": np.full((3, 1, 1), 1e38, np.float32)}, "scale is unusable in float32"),
        ({"arg:factor": np.ones((1, 3, 28, 28), np.float32)}, "not one number per channel"),
        ({"aux:one_weight": np.ones(1, np.float32)}, "as arg: and as aux:"),
    ],
)
def test_values_that_do_not_fit_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    symbol, params = save_module(lenet_symbol(), tmp_path)
    arrays = read_params(params) | change
    write_params(params, {name: one for name, one in arrays.items() if one is not None})
    with pytest.raises(BadInput, match=words):
        import_mxnet(symbol, params, network="lenet")


def test_values_of_another_graph_are_told_from_a_network_that_is_not_ours(tmp_path: Path) -> None:
    symbol, params = save_module(lenet_symbol(), tmp_path)
    write_params(params, {f"arg:fire{number}": np.ones(1, np.float32) for number in range(5)})
    with pytest.raises(BadInput) as caught:
        import_mxnet(symbol, params)
    assert str(caught.value) == (
        f"{params}: not the parameters of m-symbol.json; expected one_weight, one_bias, two_weight, ... (8 in all); "
        "found fire0, fire1, fire2, ... (5 in all); give the .params saved with it"
    )


def test_arrays_the_graph_does_not_know_are_listed(tmp_path: Path) -> None:
    symbol, params = save_module(lenet_symbol(), tmp_path)
    write_params(params, read_params(params) | {"arg:old_head": np.ones(1, np.float32)})
    assert import_mxnet(symbol, params).unused == ("old_head",)


def test_an_unknown_network_and_another_size(tmp_path: Path, old_squeezenet: tuple[Path, Path]) -> None:
    paths = save_module(lenet_symbol(), tmp_path)
    with pytest.raises(BadRecipe, match="no network is called 'lenett'"):
        import_mxnet(*paths, network="lenett")
    with pytest.raises(BadInput, match=r"at 32 pixels \(--input gives another size\)"):
        import_mxnet(*paths, input_size=32)
    # Its last pooling of 13x13 is the whole map at 224 pixels only.
    words = (
        r"is squeezenet1_1 at 224 pixels, not at 256; found your deep_dog_pool3_fwd has size 13x13, "
        r"squeezenet1_1's the whole map; leave --input out$"
    )
    with pytest.raises(BadInput, match=words):
        import_mxnet(*old_squeezenet, input_size=256)


@pytest.mark.parametrize("network", [None, "squeezenet1_1"])
def test_a_size_too_small_is_told_from_another_network(network: str | None, old_squeezenet: tuple[Path, Path]) -> None:
    with pytest.raises(BadRecipe) as caught:
        import_mxnet(*old_squeezenet, network=network, input_size=15)
    words = "--input 15: the input is too small for squeezenet1_1; expected an input of at least 25x25; found 15x15"
    assert str(caught.value) == words


def test_a_named_network_that_is_too_large_for_the_size(tmp_path: Path) -> None:
    with pytest.raises(
        BadRecipe, match="--input 15: the input is too small for squeezenet1_0; expected an input of at least"
    ):
        import_mxnet(*save_module(lenet_symbol(), tmp_path), network="squeezenet1_0", input_size=15)


def test_an_operator_without_a_layer_is_named_with_the_nearest_that_has_one(tmp_path: Path) -> None:
    net = mx.sym.Convolution(mx.sym.Variable("data"), kernel=(3, 3), num_filter=7, name="one")
    net = mx.sym.FullyConnected(mx.sym.contrib.div_sqrt_dim(net, name="odd"), num_hidden=4, name="three")
    symbol, params = save_module(net, tmp_path)
    with pytest.raises(BadInput) as caught:
        import_mxnet(symbol, params)
    words = "our layers have nothing like operator '_contrib_div_sqrt_dim'; did you mean _contrib_"
    assert str(caught.value).startswith(f"{symbol}: 'odd': {words}")


def test_an_average_over_single_pixels_is_no_layer(tmp_path: Path) -> None:
    """As in GluonCV's ResNets v1d of 101 and 152 layers."""
    symbol = lenet_symbol(between=lambda net: mx.sym.Pooling(net, kernel=(1, 1), stride=(1, 1), pool_type="avg"))
    assert import_mxnet(*save_module(symbol, tmp_path)).network == "lenet"


SPOILS = {
    "kernel": ["(3, 3)", "(1, 1)", "(2, 2)"], "stride": ["(1, 1)", "(2, 2)", "(1, 2)"], "pad": ["(0, 0)", "(1, 1)"],
    "pool_type": ["max", "avg", "sum"], "pooling_convention": ["valid", "full"], "global_pool": ["True"],
    "no_bias": ["True", "False"], "flatten": ["True", "False"], "num_group": ["1", "2"], "p": ["0.1"],
    "act_type": ["relu", "tanh"], "fix_gamma": ["True", "False"], "eps": ["0.001", "1e-05"], "dim": ["1", "2"],
    "use_global_stats": ["True"], "layout": ["NCHW", "NHWC"],
}  # fmt: skip
OTHER_OPS = [
    "Dropout",
    "identity",
    "Flatten",
    "relu",
    "elemwise_add",
    "Concat",
    "BlockGrad",
    "broadcast_sub",
    "Pooling",
]


def spoilt(whole: Any, random: np.random.Generator) -> Any:
    """A graph with one or two of its nodes changed: an attribute, the operator, an input, or the inputs' order."""
    changed = json.loads(json.dumps(whole))
    for _ in range(int(random.integers(1, 3))):
        place = int(random.choice([place for place, node in enumerate(changed["nodes"]) if node["op"] != "null"]))
        node = changed["nodes"][place]
        match int(random.integers(6)):
            case 0:
                node["op"] = str(random.choice(OTHER_OPS))
            case 1:
                node["inputs"][int(random.integers(len(node["inputs"])))][0] = int(random.integers(place))
            case 2:
                node["inputs"] = [node["inputs"][index] for index in random.permutation(len(node["inputs"]))]
            case _:
                key = str(random.choice([key for key in node.get("attrs", {}) if key in SPOILS] or ["p"]))
                node.setdefault("attrs", {})[key] = str(random.choice(SPOILS[key]))
    return changed


@pytest.mark.parametrize(("name", "size", "count"), [("lenet", 28, 60), ("resnet18", 33, 8)])
def test_a_spoilt_graph_is_refused_or_gives_stock_mxnet_s_logits(
    name: str, size: int, count: int, tmp_path: Path
) -> None:
    network, shape = without_taps(catalog.entry(name).build(3)), (3, size, size)
    random = np.random.default_rng(4)
    values = {
        key: random.random(one.shape, np.float32) * (0.1 if one.role == "weight" else 1)
        for key, one in parameters(network, shape).items()
    }
    symbol, params = export_mxnet(network, values, shape, tmp_path / "net", (MEAN, STD))
    whole, arrays = json.loads(symbol.read_text()), mx.model.load_params(str(tmp_path / "net"), 0)
    images = random.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    data = mx.nd.array(images.transpose(0, 3, 1, 2).astype(np.float32))
    accepted = 0
    for _ in range(count * (10 if LONG else 1)):
        symbol.write_text(json.dumps(spoilt(whole, random)))
        try:
            imported = import_mxnet(symbol, params, name, size)
        except BadInput:
            continue
        accepted += 1
        stock = mx.sym.load(str(symbol))
        given = {key: array for key, array in arrays[0].items() if key in stock.list_arguments()}
        wanted = stock.bind(mx.cpu(), {**given, "data": data}, aux_states=arrays[1]).forward()[0].asnumpy()
        logits = our_logits("gluon", imported, images, *(imported.normalisation or ((0, 0, 0), (1, 1, 1))))
        assert np.abs(logits - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert count / 10 < accepted < 10 * count


def test_several_outputs_are_refused(tmp_path: Path) -> None:
    symbol, params = save_module(lenet_symbol(), tmp_path)
    whole = json.loads(symbol.read_text())
    symbol.write_text(json.dumps({**whole, "heads": [*whole["heads"], [0, 0, 0]]}))
    with warnings.catch_warnings(), pytest.raises(BadInput, match="the graph has several outputs"):
        import_mxnet(symbol, params)


def test_one_of_several_outputs_is_taken_by_its_name(tmp_path: Path) -> None:
    whole = lenet_symbol()
    symbol, params = save_module(mx.sym.Group([whole, whole.get_internals()["three_output"]]), tmp_path)
    with pytest.raises(BadInput, match=r"several outputs; found softmax_output, three_output \(2 in all\); --output"):
        import_mxnet(symbol, params)
    assert import_mxnet(symbol, params, output="softmax").network == "lenet"
    inner = import_mxnet(symbol, params, input_size=28, output="three_output")
    assert (inner.network, inner.classes) == ("m", 500)
    assert inner.sources["one.weight"] == "one_weight"


def test_a_bias_that_folds_to_no_finite_number_is_refused(tmp_path: Path) -> None:
    network, shape = stack(conv=Conv(4, 3, bias=False), norm=BatchNorm(), flatten=Flatten(), last=Dense(2)), (3, 8, 8)
    declared = parameters(network, shape)["norm.running_mean"]
    largest = np.finfo(np.float32).max
    foreign = SimpleNamespace(params={"m": np.full(4, largest), "b": np.full(4, -largest)}, params_path=Path("p"))
    candidate = SimpleNamespace(
        network=stack(norm=BatchNorm()), image=(4, 8, 8), declared={"norm.running_mean": declared}, name="n"
    )
    graph = SimpleNamespace(folded={"m": "b"}, fixed=())
    with pytest.raises(BadInput, match="'m': holds numbers that are not finite"):
        mxnet_import._values(candidate, foreign, {"norm.running_mean": "m"}, graph)  # type: ignore[arg-type]
