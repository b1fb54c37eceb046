"""ONNX classifiers, ours, PyTorch's, and graphs drawn at random, against ONNX Runtime; and files that are none."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from onnx import helper, numpy_helper

from imagenet_pipeline.cli import main
from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, choose_engine, create_engine
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.export import TrainedNetwork, export
from imagenet_pipeline.interchange.frozen import Imported
from imagenet_pipeline.interchange.onnx_export import export_onnx
from imagenet_pipeline.interchange.onnx_import import import_onnx
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import without_taps
from imagenet_pipeline.networks.shapes import parameters
from imagenet_pipeline.records.classes import ClassTable

LONG = os.environ.get("IMAGENET_PIPELINE_LONG") == "1"
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
LIMIT = 1e-5


def runtime_logits(path: Path, pixels: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pixels})[0].reshape(len(pixels), -1)


def difference(path: Path, imported: Imported, batch: int = 2, shape: str = "nchw", grey: bool = False) -> float:
    """The largest difference of our logits from ONNX Runtime's, relative to the largest logit."""
    size = imported.input_size
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    if grey:
        images[:] = images[..., :1]
    mean, std = imported.normalisation or (MEAN, STD)
    pixels = images if imported.normalisation else (images - np.array(MEAN)) / np.array(STD)
    if grey and not imported.normalisation:
        mean, std = (MEAN[0],) * 3, (STD[0],) * 3
        pixels = (images - MEAN[0]) / STD[0]
    pixels = pixels.astype(np.float32) if shape == "nhwc" else pixels.astype(np.float32).transpose(0, 3, 1, 2)
    wanted = runtime_logits(path, pixels[:, :1] if grey else pixels)
    network = imported.layers or without_taps(catalog.entry(imported.network).build(imported.classes))
    recipe = Recipe(network="", records="", devices="cpu", precision="float32")
    engine = create_engine(choose_engine("cpu"), Blueprint(network, size, mean, std, recipe), imported.values)
    return float(np.abs(engine.logits(images) - wanted).max() / np.abs(wanted).max())


def stripped(path: Path) -> Path:
    """The same graph without what our exporter says of it."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path.with_name("stripped.onnx"))
    return path.with_name("stripped.onnx")


@pytest.mark.parametrize("name", ["lenet", "resnet18_v2", "minivggnet", *(catalog.names() if LONG else [])])
def test_our_own_exports_come_back_with_and_without_their_notes(name: str, tmp_path: Path) -> None:
    entry, draw = catalog.entry(name), np.random.default_rng(0)
    shape = (3, entry.input_size, entry.input_size)
    values = {}
    for parameter in parameters(entry.build(3), shape).values():
        spread = (2 / max(1, np.prod(parameter.shape[1:]))) ** 0.5
        drawn = (
            draw.normal(0, spread, parameter.shape)
            if parameter.role == "weight"
            else draw.uniform(0.5, 1, parameter.shape)
        )
        is_fixed = parameter.role == "scale" and not parameter.trainable
        values[parameter.name] = np.asarray(np.ones(parameter.shape) if is_fixed else drawn, np.float32)
    table = ClassTable("folder", ("a", "b", "c"), ("A", "B", "C"))
    trained = TrainedNetwork(name, entry.input_size, table, MEAN, STD, 0.9, values, "digest", "run/checkpoints/e")
    path = next(iter(export(trained, "onnx", tmp_path / "net").files))
    imported = import_onnx(path, name)
    assert (imported.network, imported.classes, imported.normalisation) == (name, 3, (MEAN, STD))
    assert (imported.class_table, imported.crop_fraction) == (table, 0.9)
    anew = import_onnx(stripped(path))
    assert (name in (anew.network, *anew.also), anew.normalisation, anew.layers) == (True, (MEAN, STD), None)
    model = onnx.load(path)
    next(entry for entry in model.metadata_props if entry.key == "network").value = "of_no_catalogue"
    other_name = import_onnx(saved(tmp_path / "other.onnx", model))
    assert (other_name.class_table, other_name.crop_fraction, other_name.layers) == (table, 0.9, None)
    for other in (imported, anew):
        assert all(np.array_equal(array, values[key]) for key, array in other.values.items())
    assert difference(path, imported) <= LIMIT


def test_networks_of_every_layer_come_back(samples: Mapping[str, Any], tmp_path: Path) -> None:
    for name, sample in samples.items():
        if name not in catalog.names():
            (path,) = export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / name, (MEAN, STD))
            imported = import_onnx(path)
            assert imported.layers is not None
            assert difference(path, imported) <= LIMIT, name


def torch_modules() -> dict[str, Any]:
    """Modules with what exporters spell in ways of their own: squeezes, shapes, GELUs, group and response norms."""
    from torch import nn

    class Changed(nn.Module):
        def __init__(self, change: Callable[[Any, Any], Any], *modules: Any) -> None:
            super().__init__()
            self.change, self.inner = change, nn.Sequential(*modules)

        def forward(self, x: Any) -> Any:
            return self.change(x, self.inner)

    def shuffled(x: Any, inner: Any) -> Any:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    def excited(x: Any, inner: Any) -> Any:
        return x * inner(x.mean((2, 3))).view(x.size(0), -1, 1, 1)

    def halved(x: Any, inner: Any) -> Any:
        first, second = x.chunk(2, 1)
        return inner(first) + second[:, :, :, :]

    conv, norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
    nn.init.uniform_(norm.running_mean)
    residual = Changed(lambda x, inner: (inner(x) + x).relu(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    excite = Changed(excited, nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 8), nn.Sigmoid())
    last = Changed(lambda x, inner: x + inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                   nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())  # fmt: skip
    return {
        "residual": nn.Sequential(
            conv, norm, nn.ReLU6(), nn.MaxPool2d(3, 2, 1), residual, excite, nn.Flatten(), nn.Linear(128, 4)
        ),
        "shuffled": nn.Sequential(
            nn.Conv2d(3, 8, 3), Changed(shuffled), nn.Hardswish(), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.ReflectionPad2d(2), nn.PReLU(8), nn.GroupNorm(2, 8), last, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(0.5), nn.Linear(8, 3),
        ),
        "halved": nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), Changed(halved, nn.Softplus(), nn.Mish()), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1),
            nn.Upsample(scale_factor=2), nn.InstanceNorm2d(6, affine=True), nn.LocalResponseNorm(3),
            nn.AvgPool2d(3, 2, 1), nn.ELU(0.7), nn.SELU(), nn.SiLU(), nn.Softsign(), nn.Hardsigmoid(),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        ),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [11, 18, *([13, 17, 20] if LONG else [])])
def test_what_pytorch_exports(opset: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for name, module in torch_modules().items():
        for dynamic in (False, True):
            content = io.BytesIO()
            axes = {"dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}} if dynamic else {}
            torch.onnx.export(module.eval(), torch.zeros(1, 3, 16, 16), content, opset_version=opset, dynamo=False,
                              input_names=["x"], output_names=["y"], **axes)  # fmt: skip
            path = tmp_path / "net.onnx"
            path.write_bytes(content.getvalue())
            assert difference(path, import_onnx(path), batch=2 if dynamic else 1) <= LIMIT, (name, dynamic)


class Drawn:
    """A graph put together at random; `values` are names of arrays made of the image, with their shapes."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.opset = int(self.draw.choice([9, 11, 13, 17, 18, 21]))
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []
        self.values: dict[str, tuple[int, ...]] = {"x": (3, 12, 12)}

    def array(self, *shape: int, low: float = -0.5, high: float = 0.5) -> str:
        name = f"w{len(self.arrays)}"
        self.arrays.append(numpy_helper.from_array(self.draw.uniform(low, high, shape).astype(np.float32), name))
        return name

    def integers(self, *numbers: int) -> str:
        self.arrays.append(numpy_helper.from_array(np.array(numbers, np.int64), f"w{len(self.arrays)}"))
        return f"w{len(self.arrays) - 1}"

    def node(self, op: str, inputs: list[str], shape: tuple[int, ...], outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        self.values |= dict.fromkeys(names, shape)
        return names[0]

    def step(self) -> None:
        x = list(self.values)[int(self.draw.integers(max(0, len(self.values) - 3), len(self.values)))]
        c, h, w = self.values[x]
        getattr(self, f"add_{self.draw.choice(KINDS)}")(x, c, h, w)

    def add_convolution(self, x: str, c: int, h: int, w: int) -> None:
        kernel, stride, dilation = (int(self.draw.integers(1, most)) for most in (4, 3, 3))
        groups = c if self.draw.random() < 0.3 else 1
        pads = [int(number) for number in self.draw.integers(0, 3, 4)]
        reach = dilation * (kernel - 1) + 1
        out = [(n + pads[i] + pads[i + 2] - reach) // stride + 1 for i, n in enumerate((h, w))]
        if min(out) < 2:
            return
        channels = groups * int(self.draw.integers(1, 5))
        bias = [self.array(channels)] if self.draw.random() < 0.5 else []
        attributes = {"strides": [stride] * 2, "dilations": [dilation] * 2, "group": groups, "pads": pads}
        if self.draw.random() < 0.3:
            attributes |= {"auto_pad": str(self.draw.choice(["SAME_UPPER", "SAME_LOWER"])), "dilations": [1, 1]}
            attributes.pop("pads")
            out = [-(-n // stride) for n in (h, w)]
        weight = self.array(channels, c // groups, kernel, kernel)
        self.node("Conv", [x, weight, *bias], (channels, *out), **attributes)

    def add_transposed(self, x: str, c: int, h: int, w: int) -> None:
        stride = int(self.draw.integers(1, 3))
        pads = [int(number) for number in self.draw.integers(0, 2, 4)]
        extra = [int(number) for number in self.draw.integers(0, stride, 2)]
        out = [(n - 1) * stride + extra[i] + 3 - pads[i] - pads[i + 2] for i, n in enumerate((h, w))]
        if min(out) >= 2 and max(out) < 40:
            self.node("ConvTranspose", [x, self.array(c, 3, 3, 3)], (3, *out), strides=[stride] * 2, pads=pads,
                      output_padding=extra)  # fmt: skip

    def add_pooling(self, x: str, c: int, h: int, w: int) -> None:
        size, stride = int(self.draw.integers(2, 4)), int(self.draw.integers(1, 4))
        pads = [int(number) for number in self.draw.integers(0, size, 4)]
        op = str(self.draw.choice(["MaxPool", "AveragePool"]))
        attributes: dict[str, Any] = {}
        if op == "AveragePool":
            pads = [pads[0] // 2] * 4
            attributes["count_include_pad"] = int(self.draw.integers(2))
        ceil = int(self.draw.integers(2)) if self.opset >= 10 and stride <= size - max(pads) else 0
        room = [n + pads[i] + pads[i + 2] - size for i, n in enumerate((h, w))]
        out = [(-(-n // stride) if ceil else n // stride) + 1 for n in room]
        if min(room) >= 0 and min(out) >= 2:
            if self.opset >= 10:
                attributes["ceil_mode"] = ceil
            self.node(op, [x], (c, *out), kernel_shape=[size] * 2, strides=[stride] * 2, pads=pads, **attributes)

    def add_norm(self, x: str, c: int, h: int, w: int) -> None:
        kind = str(self.draw.choice(["BatchNormalization", "InstanceNormalization", "LRN", "LpNormalization"]))
        if kind == "BatchNormalization":
            arrays = [self.array(c), self.array(c), self.array(c), self.array(c, low=0.5, high=1)]
            self.node(kind, [x, *arrays], (c, h, w), epsilon=1e-3)
        elif kind == "InstanceNormalization":
            self.node(kind, [x, self.array(c), self.array(c)], (c, h, w), epsilon=1e-2)
        elif kind == "LRN":
            self.node(kind, [x], (c, h, w), size=3, alpha=0.1, beta=0.6, bias=1.5)
        else:
            self.node("LpNormalization", [self.node("Abs", [x], (c, h, w))], (c, h, w), axis=1, p=2)

    def add_function(self, x: str, c: int, h: int, w: int) -> None:
        kind = str(self.draw.choice(FUNCTIONS))
        inputs, attributes = [x], {}
        if kind == "PRelu":
            inputs.append(self.array(c, 1, 1))
        if kind == "Clip" and self.opset < 11:
            attributes = {"min": -0.4, "max": 0.6}
        if kind == "Clip" and self.opset >= 11:
            inputs += [self.array(low=-0.4, high=-0.3), self.array(low=0.3, high=0.4)]
        if kind == "Softmax":
            attributes = {"axis": 1}
        self.node(kind, inputs, (c, h, w), **attributes)

    def add_arithmetic(self, x: str, c: int, h: int, w: int) -> None:
        op = str(self.draw.choice(["Add", "Sub", "Mul", "Div", "Max", "Min"]))
        others = [name for name, shape in self.values.items() if shape == (c, h, w)]
        shapes = [(), (c, 1, 1), (1, c, 1, 1), (1, 1, w)]
        constant = self.array(*shapes[int(self.draw.integers(4))], low=0.5, high=1.5)
        other = str(self.draw.choice(others)) if self.draw.random() < 0.4 and op != "Div" else constant
        is_turned = op != "Div" and self.draw.random() < 0.3
        self.node(op, [other, x] if is_turned else [x, other], (c, h, w))

    def add_arrangement(self, x: str, c: int, h: int, w: int) -> None:
        match int(self.draw.integers(5)):
            case 0:
                self.node("Transpose", [x], (c, w, h), perm=[0, 1, 3, 2])
            case 1:
                flat = self.node("Reshape", [x, self.integers(0, c, -1)], (c, h * w))
                self.values.pop(flat)
                self.node("Reshape", [flat, self.integers(-1, c, h, w)], (c, h, w))
            case 2:
                others = [name for name, shape in self.values.items() if shape[1:] == (h, w)]
                other = str(self.draw.choice(others))
                if c + self.values[other][0] < 24:
                    self.node("Concat", [x, other], (c + self.values[other][0], h, w), axis=1)
            case 3 if c % 2 == 0:
                self.node("Split", [x], (c // 2, h, w), 2, axis=1, **({"num_outputs": 2} if self.opset >= 18 else {}))
            case 4 if h > 3 and self.opset >= 10:
                ends = [self.integers(number) for number in (1, 2**62, 2, 2)]  # every second row from row 1
                self.node("Slice", [x, *ends], (c, h // 2, w))

    def add_border(self, x: str, c: int, h: int, w: int) -> None:
        amounts = [0, 0, 1, 2, 0, int(self.draw.integers(2)), 2, 0]
        mode = str(self.draw.choice(["constant", "edge"]))
        shape = (c + amounts[5], h + 3, w + 2)
        if self.opset < 11:
            self.node("Pad", [x], shape, pads=amounts, mode=mode)
        else:
            self.node("Pad", [x, self.integers(*amounts)], shape, mode=mode)

    def model(self, classes: int = 4) -> Any:
        """The whole graph, with a mean over the image and scores behind it."""
        last = list(self.values)[-1]
        channels = self.values[last][0]
        vector = self.node("Flatten", [self.node("GlobalAveragePool", [last], ())], ())
        self.nodes.append(helper.make_node("Gemm", [vector, self.array(channels, classes), self.array(classes)], ["y"],
                                           alpha=0.7, beta=1.3))  # fmt: skip
        return made(self.nodes, self.arrays, self.opset)


FUNCTIONS = (
    "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Abs", "Neg", "LeakyRelu", "Elu", "Selu", "HardSigmoid", "PRelu",
    "Clip", "Softmax",
)  # fmt: skip
KINDS = (
    "convolution",
    "convolution",
    "transposed",
    "pooling",
    "norm",
    "function",
    "arithmetic",
    "arrangement",
    "border",
)


def made(
    nodes: list[Any], arrays: list[Any], opset: int = 13, shape: Any = ("n", 3, 12, 12), outputs: Any = ("y",)
) -> Any:
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "drawn", [helper.make_tensor_value_info("x", float32, shape)],
        [helper.make_tensor_value_info(name, float32, None) for name in outputs], arrays,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("seed", range(300 if LONG else 30))
def test_graphs_drawn_at_random(seed: int, tmp_path: Path) -> None:
    drawn = Drawn(seed)
    for _ in range(3 + seed % 20):
        drawn.step()
    path = tmp_path / "net.onnx"
    onnx.save(drawn.model(), path)
    assert difference(path, import_onnx(path)) <= LIMIT, [node.op_type for node in drawn.nodes]


def array(name: str, *shape: int, seed: int = 0) -> Any:
    return numpy_helper.from_array(np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32), name)


def node(op: str, *inputs: str, out: str, **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), [out], **attributes)


def ending(x: str = "c", features: int = 4) -> tuple[list[Any], list[Any]]:
    """A mean over the image, and scores."""
    nodes = [node("GlobalAveragePool", x, out="g"), node("Flatten", "g", out="f"), node("Gemm", "f", "d", out="y")]
    return nodes, [array("d", features, 3)]


def saved(path: Path, model: Any) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def convolved(*first: Any, x: str = "x", channels: int = 3, more: Any = (), **options: Any) -> Any:
    """`first`, a convolution and an ending."""
    nodes, arrays = ending()
    return made(
        [*first, node("Conv", x, "w", out="c"), *nodes], [array("w", 4, channels, 3, 3), *arrays, *more], **options
    )


def test_arithmetic_done_to_the_image_first_is_its_normalisation(tmp_path: Path) -> None:
    constants = [
        numpy_helper.from_array(np.array(numbers, np.float32).reshape(shape), name)
        for name, numbers, shape in (
            ("byte", 255, ()), ("mean", [0.5, 0.25, 0.125], (1, 3, 1, 1)), ("std", [0.25, 0.5, 1], (3, 1, 1)),
        )
    ]  # fmt: skip
    first = [node("Div", "x", "byte", out="a"), node("Sub", "a", "mean", out="b"), node("Div", "b", "std", out="z")]
    imported = import_onnx(saved(tmp_path / "net.onnx", convolved(*first, x="z", more=constants)))
    assert imported.normalisation is not None
    assert np.allclose(imported.normalisation, [[127.5, 63.75, 31.875], [63.75, 127.5, 255.0]])
    assert difference(tmp_path / "net.onnx", imported) <= LIMIT
    # The image also as it comes: then the arithmetic is layers.
    both = [*first, node("Add", "z", "x", out="s")]
    imported = import_onnx(saved(tmp_path / "both.onnx", convolved(*both, x="s", more=constants)))
    assert imported.normalisation is None
    assert difference(tmp_path / "both.onnx", imported) <= LIMIT


def test_images_laid_out_channels_last_and_grey_ones(tmp_path: Path) -> None:
    mean = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "mean")
    first = [node("Sub", "x", "mean", out="a"), node("Transpose", "a", out="z", perm=[0, 3, 1, 2])]
    path = saved(tmp_path / "last.onnx", convolved(*first, x="z", more=[mean], shape=("n", 12, 12, 3)))
    imported = import_onnx(path)
    assert imported.normalisation == ((1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
    assert difference(path, imported, shape="nhwc") <= LIMIT
    path = saved(tmp_path / "grey.onnx", convolved(channels=1, shape=("n", 1, 12, 12)))
    assert difference(path, import_onnx(path), grey=True) <= LIMIT
    open_size = saved(tmp_path / "open.onnx", convolved(shape=("n", 3, "h", "w")))
    assert (import_onnx(open_size).input_size, import_onnx(open_size, input_size=40).input_size) == (224, 40)


def test_several_outputs_and_a_softmax_at_the_end(tmp_path: Path) -> None:
    nodes, arrays = ending()
    nodes = [node("Conv", "x", "w", out="c"), *nodes, node("Softmax", "y", out="p"), node("Sigmoid", "y", out="q")]
    path = saved(tmp_path / "net.onnx", made(nodes, [array("w", 4, 3, 3, 3), *arrays], outputs=("p", "q")))
    with pytest.raises(BadInput, match=r"several outputs; found p, q \(2 in all\); --output NAME takes one of them"):
        import_onnx(path)
    with pytest.raises(BadInput, match="no output 'pp'; did you mean p"):
        import_onnx(path, output="pp")
    layers = import_onnx(path, output="p").layers
    assert layers is not None
    assert [name for name, _ in layers.items][-1] == "gemm"
    last = import_onnx(path, output="q").layers
    assert last is not None
    assert len(last.items) == len(layers.items) + 1
    ends = [node("Softmax", "y", out="p"), node("LogSoftmax", "p", out="r"), node("Softmax", "r", out="s")]
    path = saved(tmp_path / "twice.onnx", made([*nodes[:-2], *ends], [array("w", 4, 3, 3, 3), *arrays], outputs=("s",)))
    twice = import_onnx(path).layers
    assert twice is not None
    assert [type(layer).__name__ for _, layer in twice.items][-2:] == ["Dense", "Softmax"]


def test_data_beside_the_file_is_read_and_data_elsewhere_is_not(tmp_path: Path) -> None:
    path = tmp_path / "in" / "net.onnx"
    path.parent.mkdir()
    model = convolved()
    plain = import_onnx(saved(path, model)).values
    onnx.save_model(model, str(path), save_as_external_data=True, location="net.data", size_threshold=0)
    assert all(np.array_equal(values, plain[name]) for name, values in import_onnx(path).values.items())
    (tmp_path / "net.data").write_bytes((path.parent / "net.data").read_bytes())
    for place, words in (("../net.data", "outside the file's folder"), (str(tmp_path / "net.data"), "outside"),
                         ("absent", "cannot be read"), (".", "outside")):  # fmt: skip
        model = onnx.load_model(path, load_external_data=False)
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = place
        with pytest.raises(BadInput, match=words):
            import_onnx(saved(path.parent / "other.onnx", model))
    (path.parent / "net.data").write_bytes(b"short")
    with pytest.raises(BadInput, match="its data is not in the file of data"):
        import_onnx(path)


def huge() -> Any:
    tensor = array("w", 4, 3, 3, 3)
    del tensor.dims[:]
    tensor.dims.extend([2**40, 3, 3, 3])
    return tensor


def unfit_models() -> list[tuple[Any, str]]:
    """Models that are refused, and words of the line that says why."""
    ends, scores = ending()
    weight, nan = array("w", 4, 3, 3, 3), np.full((4, 3, 3, 3), np.nan, np.float32)
    conv = node("Conv", "x", "w", out="c")
    constant = node("ConstantOfShape", "big", out="o")
    big = numpy_helper.from_array(np.array([2**40, 2], np.int64), "big")
    doubled = [node("Concat", *([f"o{i}"] * 2), out=f"o{i + 1}", axis=0) for i in range(40)]
    one = numpy_helper.from_array(np.ones(2, np.float32), "o0")
    mixed = numpy_helper.from_array(np.array([-1], np.int64), "s")
    other = helper.make_node("Conv", ["x", "w"], ["c"], domain="com.microsoft")
    bounds = [numpy_helper.from_array(np.array([number], np.int64), name) for name, number in (("o", 1), ("t", 2))]
    products = [node("Transpose", "x", out="t", perm=[0, 1, 3, 2]), node("MatMul", "x", "t", out="p")]
    return [
        (made([conv, *ends], [numpy_helper.from_array(nan, "w"), *scores]), "not finite"),
        (made([conv, *ends], scores), "reads 'w', which nothing in the file gives"),
        (made([conv, *ends], [huge(), *scores]), "size is not that of its shape"),
        (made([node("Add", "x", "b", out="a"), node("Relu", "a", out="b"), node("Conv", "b", "w", out="c"), *ends],
              [weight, *scores]), "in a circle"),
        (made([node("Relu", "x", out="c"), conv, *ends], [weight, *scores]), "two nodes have the same output"),
        (made([node("NonMaxSuppression", "x", out="c"), *ends], scores), "nothing like this operator"),
        (made([node("Cov", "x", "w", out="c"), *ends], [weight, *scores]), "did you mean Conv"),
        (made([other, *ends], [weight, *scores]), "another set of operators; found com.microsoft"),
        (made([constant, node("Add", "x", "o", out="c"), *ends], [big, *scores]), "constants are larger than the file"),
        (made([*doubled, node("Add", "x", "o40", out="c"), *ends], [one, *scores]), "are larger than the file"),
        (made([node("Reshape", "x", "s", out="c"), *ends], [mixed, *scores]), "the reshape mixes images"),
        (made([node("Erf", "x", out="c"), *ends], scores), "a part of GELU alone"),
        (made([conv], [weight], outputs=("c",)), "not a vector of scores; found 4x10x10"),
        (made([node("Identity", "x", out="y")], []), "no layers between"),
        (made([conv, *ends], [weight, *scores], opset=999), "the set of operators is unknown"),
        (made([conv, *ends], [weight, *scores], shape=("n", 3, 12)), "its input is no image"),
        (made([conv, *ends], [weight, *scores], shape=("n", 4, 12, 14)), "its input is no such image"),
        (made([node("Conv", "x", "w", out="c", pads=[-1, 0, 0, 0]), *ends], [weight, *scores]), "attribute 'pads'"),
        (made([node("Conv", "x", "w", out="c", pads=[2**40] * 4), *ends], [weight, *scores]), "larger than any memory"),
        (made([node("Conv", "x", "w", out="c", group="one"), *ends], [weight, *scores]), "attribute 'group'"),
        (made([*products, node("MatMul", "t", "p", out="c"), *ends], scores), "as a part of attention alone"),
        (made([node("Slice", "x", "o", "t", "o", out="s"), node("MatMul", "x", "s", out="c"), *ends],
              [*bounds, *scores]), "otherwise than self-attention does"),
        (made([*products, node("Relu", "p", out="c"), *ends], scores), "as a part of attention alone"),
        (made([*products, node("Softmax", "p", out="c", axis=1), *ends], scores), "is over the keys"),
        (made([*products, node("MatMul", "p", "x", out="c"), *ends], scores), "not the softmax of products"),
        (made([node("ReduceMean", "x", out="c"), *ends], scores), "mixes images"),
    ]  # fmt: skip


def test_what_does_not_come_in_is_one_line_that_says_why(tmp_path: Path) -> None:
    for model, words in unfit_models():
        with pytest.raises(BadInput, match=words) as caught:
            import_onnx(saved(tmp_path / "net.onnx", model))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04}.", b"PK\x03\x04", b"\x08\x07" + b"\xff" * 50])
def test_files_of_another_format(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(BadInput, match="not an ONNX file"):
        import_onnx(tmp_path / "net.onnx")


def test_damaged_files_are_refused_in_a_line(tmp_path: Path) -> None:
    content, draw = convolved().SerializeToString(), np.random.default_rng(0)
    for _ in range(3000 if LONG else 60):
        damaged = bytearray(content)
        for place in draw.integers(0, len(content), int(draw.integers(1, 4))):
            damaged[place] = int(draw.integers(256))
        (tmp_path / "net.onnx").write_bytes(damaged)
        with contextlib.suppress(BadInput):
            import_onnx(tmp_path / "net.onnx")


def test_the_verb_makes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "net.onnx", convolved())
    words = ["import", "--onnx", str(path), "--out", str(tmp_path / "run"), "--mean", "0,0,0", "--std", "1,1,1"]
    for more, code, said in ((["--params", "x"], 2, "leave --symbol and --params out"), ([], 0, "3 classes, 12 px")):
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        captured = capsys.readouterr()
        assert stopped.value.code == code
        assert said in captured.out + captured.err
