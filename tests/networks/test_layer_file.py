"""A network's file: what is written comes back equal, and what is wrong in it is named in one line."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config.shipped import shipped_networks
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.networks import catalog, layer_file
from imagenet_pipeline.networks.layer_file import CLASSES, GROUPS, NetworkFile, network_text, read_network
from imagenet_pipeline.networks.layers import (
    INPUTS,
    Activation,
    BatchNorm,
    Concat,
    Constant,
    Conv,
    Dense,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Graph,
    Join,
    Pool,
    Reshape,
    Residual,
    Scalar,
    Sequential,
    Size,
    Softmax,
    Tap,
    stack,
)
from imagenet_pipeline.networks.shapes import describe, output_shape, parameter_count
from imagenet_pipeline.networks.summary import file_rows

BRANCHED = Graph(
    (("a", Conv(4, 3, pad=1)), ("b", Activation("relu")), ("k", Constant((4, 1, 1))), ("sum", Elementwise("add"))),
    (("",), ("a",), (), ("a", "b", "k")),
)
NETWORK = stack(block1=BRANCHED, unit=Residual(stack(conv=Conv(4, 1))), flat=Flatten(), scores=Dense(5))


@pytest.fixture
def written(tmp_path):
    """Write a network's layers (or any JSON value) to a file."""

    def write(content):
        path = tmp_path / "network.json"
        is_network = isinstance(content, Sequential)
        path.write_text(network_text(NetworkFile("mine", 8, content)) if is_network else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize("name", catalog.names())
def test_every_network_of_the_catalogue_comes_back_equal(name, written, tmp_path):
    entry = catalog.entry(name)
    path = tmp_path / f"{name}.json"
    path.write_text(network_text(NetworkFile(name, entry.input_size, entry.build(7))))
    read = read_network(path)
    assert (read.layers, read.classes, read.input_size) == (entry.build(7), 7, entry.input_size)
    assert read.build(12) == entry.build(12), "the new head is the one that the catalogue builds"
    assert catalog.is_same(str(path), name, 9)
    assert catalog.title(str(path)) == name
    assert not catalog.is_same(str(path), "shallownet" if name == "lenet" else "lenet", 9)


def test_the_file_is_what_its_documentation_shows(written):
    text = """\
{"format": "imagenet-pipeline network", "version": 1, "name": "mine", "input_size": 8, "layers": [
 {"name": "block1", "layer": "Graph", "items": [
  {"name": "a", "layer": "Conv", "channels": 4, "kernel": 3, "pad": 1, "inputs": [""]},
  {"name": "b", "layer": "Activation", "kind": "relu", "inputs": ["a"]},
  {"name": "k", "layer": "Constant", "shape": [4, 1, 1], "inputs": []},
  {"name": "sum", "layer": "Elementwise", "kind": "add", "inputs": ["a", "b", "k"]}
 ]},
 {"name": "unit", "layer": "Residual", "body": [
  {"name": "conv", "layer": "Conv", "channels": 4, "kernel": 1}
 ]},
 {"name": "flat", "layer": "Flatten"},
 {"name": "scores", "layer": "Dense", "units": 5}
]}
"""
    path = written(NETWORK)
    assert path.read_text() == text
    assert read_network(path) == NetworkFile("mine", 8, NETWORK)


def test_the_defaults_that_a_file_of_version_1_leaves_out_stay_what_they_are():
    defaults = {
        kind.__name__: {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
        for kind in CLASSES.values()
    }
    assert {name: fields for name, fields in defaults.items() if fields} == {
        "Conv": {"stride": 1, "pad": 0, "groups": 1, "bias": True, "dilation": 1},
        "ConvTranspose": {"stride": 1, "pad": 0, "extra": 0, "groups": 1, "bias": True, "dilation": 1},
        "Dense": {"bias": True, "last_axis": False, "trained": True},
        "Constant": {"trained": True},
        "BatchNorm": {"epsilon": 1e-5, "momentum": 0.9, "scale": True, "frozen": False},
        "InstanceNorm": {"epsilon": 1e-3},
        "LayerNorm": {"axis": -1, "epsilon": 1e-5},
        "Activation": {"slope": 0.25},
        "Softmax": {"axis": 0, "log": False, "temperature": 1.0},
        "Pool": {"pad": 0, "ceil": False, "count_pad": True},
        "LocalResponseNorm": {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 2.0},
        "L2Norm": {"epsilon": 1e-10},
        "Reduce": {"keep": False},
        "Slice": {"step": 1},
        "Pad": {"kind": "constant", "value": 0.0},
        "Scalar": {"reverse": False},
        "Join": {"axis": 0},
        "Residual": {"shortcut": None, "drop_rate": 0.0},
        "Scale": {"axis": -1, "initial": 1e-6},
        "BlurPool": {"size": 3, "stride": 2},
    }


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True).filter(lambda name: name != "shortcut")
SINGLE = [kind for kind in CLASSES.values() if kind not in GROUPS]


@st.composite
def single_layers(draw, kinds=SINGLE):
    kind = draw(st.sampled_from(kinds))
    fields = {field.name: draw(_values(get_type_hints(kind)[field.name], field)) for field in dataclasses.fields(kind)}
    try:
        return kind(**fields)
    except ValueError:  # windows of a Pool that do not fit, or a BlurPool's of one pixel
        return Pool("max", 3, 2) if kind is Pool else kind()


def _values(kind, field):
    numbers = st.integers(1, 9)
    shares = field.name in ("momentum", "rate", "epsilon", "temperature")
    floats = st.floats(0.01, 0.99) if shares else st.floats(-1e30, 1e30)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    known = {bool: st.booleans(), int: numbers, float: floats, Size: numbers | st.tuples(numbers, numbers)}
    return known[kind] if kind in known else st.none() | numbers if kind == int | None else st.tuples(numbers, numbers)


@st.composite
def layers(draw, depth=2):
    if depth == 0 or draw(st.booleans()):
        return draw(single_layers([kind for kind in SINGLE if kind not in INPUTS]))
    inner = st.lists(st.tuples(NAMES, layers(depth - 1)), min_size=1, max_size=3, unique_by=lambda item: item[0])
    items = tuple(draw(inner))
    made = draw(st.sampled_from([Sequential, Concat, Residual, Graph]))
    if made is Residual:
        shortcut = draw(st.none() | inner.map(lambda more: Sequential(tuple(more))))
        return Residual(Sequential(items), shortcut, draw(st.sampled_from([0.0, 0.25])))
    if made is Graph:
        names = [name for name, _ in items]
        ends = (*items, ("Sum", Elementwise("add")), ("Both", Join(draw(st.integers(0, 2)))))
        links = [(draw(st.sampled_from(["", *names[:index]])),) for index in range(len(items))]
        return Graph(ends, (*links, ("", names[-1]), ("Sum", "")))
    return made(items)


@given(st.lists(st.tuples(NAMES, layers()), min_size=1, max_size=4, unique_by=lambda item: item[0]))
def test_any_layers_come_back_equal(items):
    network = Sequential(tuple(items))
    entries = json.loads(network_text(NetworkFile("any", 8, network)))["layers"]
    reader = layer_file._Reader("somewhere")
    assert Sequential(reader.items(entries, "", "layers", 1)) == network


VALID = json.loads(network_text(NetworkFile("mine", 8, NETWORK)))


def _places(value, place=()):
    yield place
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*place, key))


@given(st.data())
def test_a_file_changed_anywhere_gives_a_network_or_bad_input(tmp_path_factory, data):
    content = copy.deepcopy(VALID)
    *way, last = data.draw(st.sampled_from([place for place in _places(VALID) if place]))
    inner = content
    for key in way:
        inner = inner[key]
    odd = st.sampled_from([None, True, 0, -1, 10**400, 1.5, 1e308, "", "x", [], {}, [[]], "shortcut", 2**31, [""]])
    if data.draw(st.booleans()):
        inner[last] = data.draw(odd)
    elif isinstance(inner, dict):
        del inner[last]
    else:
        inner.append(copy.deepcopy(inner[last]))
    path = tmp_path_factory.mktemp("changed", numbered=True) / "network.json"
    path.write_text(json.dumps(content))
    said = ""
    try:
        said = f"{path}: {read_network(path).name}"
    except BadInput as error:
        said = str(error)
    assert said.startswith(str(path))
    assert "\n" not in said


def changed(**fields):
    """The valid file with a field of its last layer changed; None takes it away."""
    content = copy.deepcopy(VALID)
    content["layers"][-1] |= fields
    content["layers"][-1] = {key: value for key, value in content["layers"][-1].items() if value is not None}
    return content


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (changed(units="5"), r"layer scores: 'units' is wrong; expected a whole number, 1 to .*; found '5'"),
        (changed(unit=5), "layer scores: 'unit' is wrong; expected .*; found 'an unknown key'; did you mean units"),
        (changed(units=None), "layer scores: 'units' is wrong; expected a value; found 'none'"),
        (changed(layer="dense"), "layer scores: 'layer' is wrong.*found 'dense'; did you mean Dense"),
        (changed(bias=1), "layer scores: 'bias' is wrong; expected true or false; found '1'"),
        (changed(name="flat"), r"'layers\[3\].name' is wrong; expected a plain word that no layer beside it"),
        (changed(units=2**31 - 1), "too many parameters"),
        (
            changed(layer="Elementwise", kind="add", units=None),
            "layer scores: 'layer' is wrong; expected a layer of a single input",
        ),
        ({**VALID, "version": 2}, "of another version; expected 1; found '2'"),
        ({**VALID, "format": "other"}, "not the file of a network"),
        ([], "not the file of a network"),
        ({**VALID, "layers": VALID["layers"][:2]}, "does not end in a vector of scores"),
        ({**VALID, "input_size": 0}, "'input_size' is wrong; expected pixels"),
    ],
)
def test_what_is_wrong_is_named(written, content, text):
    with pytest.raises(BadInput, match=text):
        read_network(written(content))


def test_nesting_repeats_and_sizes_are_bounded(written, tmp_path):
    path = tmp_path / "network.json"
    for text, what in (
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"format": 1, "format": 2}', "an object has a key twice"),
        ('{"format": NaN}', "NaN is no number"),
        ("\x80\x04", "cannot be read as JSON"),
    ):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(BadInput, match=what):
            read_network(path)
    with open(path, "wb") as stream:
        stream.truncate(layer_file.LARGEST_BYTES + 1)
    with pytest.raises(BadInput, match="too large"):
        read_network(path)
    deep = {"name": "a", "layer": "Flatten"}
    for _ in range(40):
        deep = {"name": "a", "layer": "Sequential", "items": [deep]}
    with pytest.raises(BadInput, match="30 deep"):
        read_network(written({**VALID, "layers": [deep]}))
    with pytest.raises(BadInput, match="cannot be read"):
        read_network(tmp_path / "nowhere.json")


def test_scores_of_another_number_come_from_the_last_layer_with_weights():
    conv_head = stack(
        block=Graph((("scores", Conv(5, 1)), ("pool", GlobalAveragePool())), (("",), ("scores",))),
        shape=Reshape((5,)),
        soft=Softmax(),
    )
    made = NetworkFile("n", 8, conv_head).build(9)
    assert output_shape(made, (3, 8, 8)) == (9,)
    assert made.items[0][1].items[0] == ("scores", Conv(9, 1))
    assert made.items[1][1] == Reshape((9,))
    tapped = stack(aux=Tap(stack(f=Flatten(), d=Dense(5)), 0.3), f=Flatten(), d=Dense(5), norm=BatchNorm())
    made = NetworkFile("n", 8, tapped).build(2)
    assert made.items[0][1].head.items[-1] == ("d", Dense(2))
    assert made.items[2] == ("d", Dense(2))
    assert NetworkFile("n", 8, tapped).build(5) is tapped


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (stack(f=Flatten(), r=Residual(stack(d=Dense(192)))), "layer r: a Residual gives the scores"),
        (
            stack(f=Flatten(), g=Graph((("d", Dense(4)), ("two", Elementwise("add"))), (("",), ("d", "d")))),
            "layer g.two: a Elementwise gives the scores",
        ),
        (stack(p=Pool("max", 8, 8), f=Flatten(), s=Scalar("add", 1.0)), "does not have an output for each of its 3"),
    ],
)
def test_a_network_without_such_a_layer_keeps_its_classes(network, text):
    file = NetworkFile("mine", 8, network)
    assert file.build(file.classes) == network
    with pytest.raises(BadRecipe, match=f"network mine.*{text}"):
        file.build(7)


def toml(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_for_people_is_short_and_says_the_same(tmp_path):
    path = toml(
        tmp_path,
        """
        input_size = 8
        layers = [
            {layer = "Conv", channels = 4, kernel = [3, 1], pad = 1}, "BatchNorm", "relu",
            {name = "unit", layer = "Residual", body = [{layer = "Conv", channels = 4, kernel = 1}, "swish"]},
            {layer = "Conv", channels = 4, kernel = 1}, "relu", {layer = "Pool", kind = "max", size = 2, stride = 2},
            {layer = "Tap", weight = 0.3, head = ["Flatten", "Dense"]},
            "Flatten", {layer = "Dense", units = 9}, {name = "relu1", layer = "Activation", kind = "elu"},
            "Dense",
        ]
        """,
    )
    file = read_network(path)
    assert (file.name, file.input_size, file.classes) == ("mine", 8, 1000)
    assert file.build(5) == stack(
        conv1=Conv(4, (3, 1), pad=1), norm1=BatchNorm(), relu2=Activation("relu"),
        unit=Residual(stack(conv1=Conv(4, 1), swish1=Activation("swish"))),
        conv2=Conv(4, 1), relu3=Activation("relu"), pool1=Pool("max", 2, 2),
        tap1=Tap(stack(flatten1=Flatten(), classifier=Dense(5)), 0.3),
        flatten1=Flatten(), dense1=Dense(9), relu1=Activation("elu"), classifier=Dense(5),
    )  # fmt: skip
    assert read_network(toml(tmp_path, "[[layers]]\nlayer='Flatten'\n[[layers]]\nlayer='Dense'\nunits=3")).classes == 3


def test_a_file_may_begin_as_a_network_of_the_catalogue(tmp_path):
    file = read_network(toml(tmp_path, 'base="lenet"\nuntil="pool2"\ninput_size=28\nlayers=["Flatten", "Dense"]'))
    lenet = catalog.build("lenet", 3).items
    assert file.build(3).items == (*lenet[:6], ("flatten1", Flatten()), ("classifier", Dense(3)))


FLAT = '"Flatten", {layer = "Dense"'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layers = [", "cannot be read as TOML"),
        ("layers = 3", "'layers' is wrong; expected an array of layers; found '3'"),
        ("name = 'x'", "'layers' is wrong; expected a value; found 'none'"),
        (f"layers = [{FLAT}]", "cannot be read as TOML"),
        (f"layers = [{FLAT}, unit = 5}}]", "layer classifier: 'unit' is wrong.*did you mean units"),
        ("layers = ['Flaten', 'Dense']", "layer flaten1: 'layer' is wrong.*did you mean Flatten"),
        ("layers = ['Flatten', 'rleu', 'Dense']", "layer rleu1: 'layer' is wrong.*did you mean relu"),
        (f"layers = [{FLAT}}}, 'relu', {{layer = 'Dense', units = 3}}]",
         "layer classifier: 'units' is wrong; expected a value; found 'none'"),
        (f"layer = 3\nlayers = [{FLAT}}}]", "'layer' is wrong.*did you mean layers"),
        ("layers = ['Flatten', {layer = 'Dropout', rate = nan}, 'Dense']", "'rate' is wrong; expected a number, 0 to"),
        ("layers = ['Flatten', {layer = 'Dense', units = 1979-05-27}]", "'units' is wrong; expected a whole number"),
        ("layers = [{layer = 'Graph', items = [{name = 'a', layer = 'Flatten', inputs = ['b']}, "
         "{name = 'b', layer = 'Dense', units = 3, inputs = ['a']}]}]", "a reads .'b'., which no earlier item is"),
        ("layers = [{layer = 'Conv', channels = 3, kernel = 3}, 'Dense']", "classifier: the layer needs a vector"),
        ("base = 'lenett'\nuntil = 'x'\nlayers = ['Dense']", "'base' is wrong.*did you mean lenet"),
        ("base = 'lenet'\nlayers = ['Dense']", "'until' is wrong; expected a layer of lenet"),
        ("base = 'lenet'\nuntil = 'pol2'\nlayers = ['Dense']", "'until' is wrong.*did you mean pool2"),
        ("base = 'mine.toml'\nuntil = 'pol2'\nlayers = ['Dense']", "'base' is wrong"),
        (f"version = 2\nlayers = [{FLAT}}}]", "'version' is wrong; expected 1; found '2'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_for_people_is_named(text, said, tmp_path):
    with pytest.raises(BadInput, match=said) as caught:
        read_network(toml(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "mine.toml"))


GREY_28 = {  # by hand: weights and biases of each layer for [1, 28, 28], 10 classes
    "mlp_1024": 785 * 1024 + 1025 * 10,
    "mlp_200_200": 785 * 200 + 201 * 200 + 201 * 10,
    "mlp_16": 785 * 16 + 17 * 10,
    "mlp_wider": 785 * 32 + 33 * 10,
    "mlp_deeper": 785 * 16 + 17 * 16 + 17 * 10,
    "conv5_64_fc100": 26 * 64 + (14 * 14 * 64 + 1) * 100 + 101 * 10,
    "conv5_32_conv5_64_fc1024": 26 * 32 + (25 * 32 + 1) * 64 + (7 * 7 * 64 + 1) * 1024 + 1025 * 10,
    "lenet_strides_2_3": 26 * 20 + (25 * 20 + 1) * 50 + (4 * 4 * 50 + 1) * 500 + 501 * 10,
}


@pytest.mark.parametrize("name", GREY_28)
def test_shipped_files_have_the_parameters_counted_by_hand(name):
    network = catalog.build(f"networks/{name}.toml", 10)
    assert parameter_count(describe(network, (1, 28, 28))) == GREY_28[name]


@pytest.mark.parametrize(
    ("name", "classes", "size", "count"),
    [
        # 14,714,688 in the convolutions, a vector of 512, two dense layers of 4096.
        ("vgg16", 2, 50, 14_714_688 + 513 * 4096 + 4097 * 4096 + 4097 * 2),
        ("networks/car_or_truck.toml", 2, 128, 14_714_688 + (512 * 4 * 4 + 1) * 6 + 7 * 2),
        ("networks/minivgg_one_block.toml", 7, 32,
         28 * 32 + 64 + 289 * 32 + 64 + (16 * 16 * 32 + 1) * 512 + 1024 + 513 * 7),
        ("networks/resnet18_cifar.toml", 10, 32, 11_173_962),
    ],
)  # fmt: skip
def test_networks_of_the_courses_have_the_parameters_counted_by_hand(name, classes, size, count):
    assert parameter_count(describe(catalog.build(name, classes), (3, size, size))) == count
    assert name != "vgg16" or count == 33_605_442


def test_every_shipped_file_is_listed_read_and_names_what_it_is():
    rows = {row.name: row for row in file_rows()}
    assert tuple(rows) == tuple(shipped_networks())
    for name, row in rows.items():
        assert row.parameters
        assert not row.summary.startswith("of the file")
        assert catalog.title(name) == name.removeprefix("networks/").removesuffix(".toml")
        assert catalog.build(f"config/{name}", 3) == catalog.build(name, 3)
    with pytest.raises(BadRecipe, match=r"no such network file; did you mean networks/mlp_1024.toml"):
        catalog.build("networks/mlp_102.toml", 3)


def test_a_short_form_is_dense_layers_with_dropout_where_that_is_asked_for():
    assert catalog.build("mlp:7,6", 3).items == (
        ("flatten", Flatten()), ("dense1", Dense(7)), ("relu1", Activation("relu")),
        ("dense2", Dense(6)), ("relu2", Activation("relu")), ("classifier", Dense(3)),
    )  # fmt: skip
    dropped = catalog.build("mlp:7?dropout=0.15&activation=tanh", 3)
    assert [name for name, _ in dropped.items] == ["flatten", "dense1", "relu1", "dropout1", "classifier"]
    assert dict(dropped.items)["relu1"] == Activation("tanh")
    assert not catalog.is_zoo_name("mlp:7")
    for name in ("mlp:", "mlp:7,", "mlp:-1", "mlp:0", "mlp:99999999999"):
        with pytest.raises(BadRecipe, match="expected widths of dense layers"):
            catalog.build(name, 3)


def test_the_documentation_names_the_fields_of_layers_and_their_defaults():
    page = (Path(__file__).resolve().parents[2] / "docs" / "networks.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z]\w+)` \| (.*) \|$", page, re.M))
    assert {"Conv", "Dense", "Pool", "Residual"} <= set(rows)
    for name, text in rows.items():
        fields = {field.name: field.default for field in dataclasses.fields(CLASSES[name])}
        told = re.findall(r"`([a-z]\w*)`(?: \(([^)]*)\))?", text)
        assert told
        for field, default in told:
            assert field in fields, (name, field)
            assert not default or fields[field] == json.loads(default), (name, field)
