"""The DOT text: well-formed whatever the names, arrows that lead through the whole network."""

from __future__ import annotations

import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import (
    Activation,
    Clip,
    Concat,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Graph,
    Greyscale,
    InstanceNorm,
    Join,
    L2Norm,
    Layer,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Scalar,
    Slice,
    Softmax,
    Transpose,
    Upsample,
    stack,
    walk,
)
from imagenet_pipeline.pictures.diagram import diagram
from imagenet_pipeline.pictures.graphviz import dot_text

SHAPE = (3, 8, 8)
HOSTILE = 'a"]; </B><script>&amp;\n\x1b[2J\udc80 \u202eabc } subgraph ü犬'


def text_of(name: str, full: bool = False) -> str:
    entry = catalog.entry(name)
    shape = (3, entry.input_size, entry.input_size)
    return dot_text(diagram(entry.build(1000), shape, full), shape, name, [entry.summary])


def arrows(text: str) -> list[tuple[str, str]]:
    visible = [line for line in text.splitlines() if "style=invis" not in line]
    return re.findall(r"^\s*(box\d+) -> (box\d+)", "\n".join(visible), re.MULTILINE)


def labels(text: str) -> list[str]:
    """The words of every label, out of its HTML, which must be well-formed."""
    found = re.findall(r"label=<(.*?)>(?:[,;\]])", text)
    return ["".join(ElementTree.fromstring(f"<a>{one}</a>").itertext()).replace("\u00d7", "x") for one in found]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", catalog.names())
def test_every_box_is_on_the_way_and_only_heads_and_the_classifier_end_it(name: str, full: bool) -> None:
    text = text_of(name, full)
    boxes = re.findall(r"^\s*(box\d+) \[", text, re.MULTILINE)
    ways = arrows(text)
    assert len(boxes) == len(set(boxes))
    assert {one for way in ways for one in way} == set(boxes)
    constants = sum(isinstance(layer, Constant) for _, layer in walk(catalog.build(name, 2)))
    beginnings = set(boxes) - {end for _, end in ways}
    assert ("box1" in beginnings, len(beginnings)) == (True, 1 + constants)
    heads = text.count("(in training only)")
    assert len(set(boxes) - {start for start, _ in ways}) == 1 + heads
    # Boxes are numbered in order of computation: no arrow leads back.
    assert all(int(start[3:]) < int(end[3:]) for start, end in ways)
    assert text.count("{") == text.count("}")


def test_a_lenet_reads_from_the_image_to_the_classes() -> None:
    words = [" ".join(one.split()) for one in labels(text_of("lenet"))]
    assert words[1:] == [
        "image 3x28x28", "conv1 conv 5x5 20x24x24ReLU1,520", "pool1 max pool 2x2, stride 2 20x12x12",
        "conv2 conv 5x5 50x8x8ReLU25,050", "pool2 max pool 2x2, stride 2 800flatten",
        "dense1 dense 500ReLU400,500", "classifier dense 1000 501,000",
    ]  # fmt: skip


def test_groups_say_what_they_stand_for() -> None:
    words = [" ".join(one.split()) for one in labels(text_of("resnet101"))]
    assert {"stage3", "unit1", "unit2 to unit23 x 22"} <= set(words)


SHUFFLE = Graph(
    (("left", Slice(0, 0, 4)), ("right", Slice(0, 4, None)), ("conv", stack(conv=Conv(4, 3, pad=2, dilation=2))),
     ("spread", ConvTranspose(4, 2, stride=2, groups=2)), ("small", Reduce("mean", (1, 2), keep=True)),
     ("scaled", Elementwise("multiply")), ("number", Constant((4, 1, 1))), ("shifted", Elementwise("add")),
     ("large", Upsample(2)), ("join", Join()), ("groups", Reshape((2, 4, 16, 16))),
     ("turned", Transpose((1, 0, 2, 3))), ("half", Scalar("multiply", 0.5)), ("rest", Scalar("subtract", 1, True)),
     ("top", Reduce("max", (0,))), ("edge", Softmax(-1))),
    (("",), ("",), ("left",), ("conv",), ("spread",), ("spread", "small"), (), ("scaled", "number"),
     ("right",), ("shifted", "large"), ("join",), ("groups",), ("turned",), ("half",), ("rest",), ("top",)),
)  # fmt: skip


@pytest.mark.parametrize("full", [False, True])
def test_a_graph_has_its_arrows_along_the_links(full: bool) -> None:
    network = stack(first=Conv(8, 1), unit=SHUFFLE, last=Dense(2, last_axis=True))
    text = dot_text(diagram(network, SHAPE, full), SHAPE, "graph", [])
    found = re.findall(r"^\s*(box\d+) \[label=<(.*)>, fillcolor", text, re.MULTILINE)
    boxes = {box: "".join(ElementTree.fromstring(label).itertext()).split()[0] for box, label in found}
    ways = {(boxes[start], boxes[end]) for start, end in arrows(text)}
    entering = {("first", "left"), ("first", "right"), ("spread", "small"), ("spread", "scaled"), ("small", "scaled"),
                ("number", "shifted"), ("scaled", "shifted"), ("shifted", "join"), ("large", "join")}  # fmt: skip
    assert entering <= ways
    assert ways - entering - {("image", "first"), ("left", "conv"), ("conv", "spread"), ("right", "large")} == (
        {("join", "groups"), ("groups", "turned"), ("turned", "half"), ("half", "rest"), ("rest", "top"),
         ("top", "edge"), ("edge", "last")}
        if full else {("join", "groups"), ("groups", "turned"), ("turned", "top"), ("top", "last")}
    )  # fmt: skip
    render(text)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Conv(8, 3, dilation=2), "conv 3x3, dilation 2"),
        (ConvTranspose(9, 4, stride=(2, 1), groups=3), "transposed conv 4x4, stride 2x1, 3 groups"),
        (Pool("sum", 2, 2), "sum pool 2x2, stride 2"),
        (Clip(0, 6), "clip 0 to 6"),
        (Softmax(log=True), "log softmax"),
        (L2Norm((0,)), "L2 norm over channels"),
        (Reduce("mean", (1,)), "mean over axis 1"),
        (Slice(0, 1, None, 2), "slice 1::2 of channels"),
        (Pad(1, 1, 0, 0, "edge"), "edge pad 1, 1, 0, 0"),
        (Scalar("subtract", 1, True), "1 \u2212"),
        (Greyscale(), "greyscale"),
        (InstanceNorm(), "instance norm"),
        (Activation("gelu"), "GELU"),
        (Activation("swish"), "Swish"),
    ],
    ids=str,
)
def test_layers_are_called_by_the_field_s_words(layer: Layer, words: str) -> None:
    text = labels(dot_text(diagram(stack(layer=layer), SHAPE), SHAPE, "", []))[-1]
    assert f"layer {words} " in " ".join(text.split())


def test_names_of_any_kind_stay_text() -> None:
    network = stack(mixed=Concat(((HOSTILE, Conv(2, 1)), ("größe", Conv(2, 3, pad=1)))))
    text = dot_text(diagram(network, SHAPE), SHAPE, HOSTILE, [HOSTILE])
    assert all(one.isprintable() for one in text.replace("\n", ""))
    assert "<script>" not in text
    title, *others = labels(text)
    assert title.startswith('a"]; </B><script>&amp;\\n\\x1b[2J\\udc80 \\u202eabc } subgraph ü犬')
    assert any("größe" in one for one in others)
    render(text)


@pytest.mark.parametrize("name", ["lenet", "resnet50", "googlenet", "inception_v3", "densenet121", "squeezenet1_1"])
def test_graphviz_draws_it_without_a_word(name: str) -> None:
    render(text_of(name))


def render(text: str) -> None:
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed: no program dot")
    done = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=True)
    assert done.stderr == b""
    ElementTree.fromstring(done.stdout)
