"""An ONNX classifier as a network: one of our own exports by name, any other layer by layer.

The nodes that the scores depend on are followed in order of computation. What depends on no image is worked out
(`onnx_constants.py`), the rest becomes layers (`onnx_operators.py`, `onnx_layer_operators.py`, `onnx_attention.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagenet_pipeline.config import Size, as_size, pair
from imagenet_pipeline.errors import BadInput, BadRecipe, did_you_mean, first_few
from imagenet_pipeline.interchange.export import Stated, stated_in
from imagenet_pipeline.interchange.frozen import Imported, in_float32
from imagenet_pipeline.interchange.graph import COLOURS, InputScale
from imagenet_pipeline.interchange.layer_graph import Flow, LayerGraph, SizeUnfit, TwoScales
from imagenet_pipeline.interchange.mxnet_import import of_channels, recognised
from imagenet_pipeline.interchange.onnx_attention import ATTENTION_RULES
from imagenet_pipeline.interchange.onnx_constants import Folder
from imagenet_pipeline.interchange.onnx_file import Tensors, import_onnx_package, names_read, needed_nodes, read_model
from imagenet_pipeline.interchange.onnx_layer_operators import LAYER_RULES
from imagenet_pipeline.interchange.onnx_node import Conversion, Image, Operator, Rule, Value
from imagenet_pipeline.interchange.onnx_operators import ARRAY_RULES
from imagenet_pipeline.interchange.onnx_runtime import read_notes
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import without_taps
from imagenet_pipeline.networks.shapes import describe, parameters

RULES: dict[str, Rule] = {**ARRAY_RULES, **LAYER_RULES, **ATTENTION_RULES}
_LEFT_OFF = ("Softmax", "LogSoftmax")
_SKIPPED = ("Identity", "Cast")
_PLAIN = ("", "ai.onnx")
USUAL_SIZES = (224, 299, 32, 28, 227, 64, 48, 96, 128, 256, 384)


def import_onnx(
    path: Path, network: str | None = None, input_size: int | None = None, output: str | None = None
) -> Imported:
    """Read an ONNX file, as `network` if that is given.

    `input_size` is the side of the image in pixels, by default that of the file; `output` the output to take, by
    default the only one. A softmax at the end is left off. Raises BadInput for damaged files, for what our
    layers cannot say, naming operator and node, and where it is not `network`; BadRecipe where the onnx package is
    missing.
    """
    model, tensors = read_model(path), Tensors(path)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    stated = _stated(model)
    imported = None if stated is None else _own_export(stated, initializers, tensors, input_size)
    if imported is None:
        source = _Source(model, path, tensors, initializers, _output(model.graph, output, path))
        imported = _as_layers(source, input_size, stated.channels if stated else COLOURS)
        imported = stated.added_to(imported) if stated else imported
    if network is not None and imported.network != network:
        raise BadInput(f"not {network}", where=path, found=imported.network)
    return imported


def _stated(model: Any) -> Stated | None:
    """The statements of our exporter on its file; None for another's file, and for notes that are no longer whole."""
    return stated_in(read_notes({entry.key: entry.value for entry in model.metadata_props}))


def _own_export(
    stated: Stated, initializers: Mapping[str, Any], tensors: Tensors, input_size: int | None
) -> Imported | None:
    """The network of the catalogue that our exporter wrote; None where it is none, or was changed since."""
    name, size, count = stated.network, stated.size, len(stated.classes)
    if name not in catalog.names() or input_size not in (None, size) or count < 1:
        return None
    if any(word.startswith(f"{catalog.INPUT_TRANSFORM}.") for word in initializers):
        return None
    try:
        declared = parameters(without_taps(catalog.entry(name).build(count)), (stated.channels, *pair(size)))
    except BadRecipe:
        return None
    arrays = {word: tensors.array(initializers[word], word) for word in declared if word in initializers}
    if not all(word in arrays and arrays[word].size == math.prod(known.shape) for word, known in declared.items()):
        return None
    values = {word: in_float32(word, arrays[word].reshape(known.shape)) for word, known in declared.items()}
    return Imported(name, count, size, values, stated.normalisation, crop_fraction=stated.crop_fraction,
                    class_table=stated.classes, channels=stated.channels)  # fmt: skip


def _output(graph: Any, name: str | None, path: Path) -> str:
    outputs = [value.name for value in graph.output]
    if name is None:
        if len(outputs) > 1:
            advice = "--output NAME takes one of them"
            raise BadInput("the graph has several outputs", where=path, found=first_few(outputs), advice=advice)
        return str(outputs[0])
    known = [*outputs, *(output for node in graph.node for output in node.output if output)]
    if name not in known:
        advice = did_you_mean(name, known, f"its own: {first_few(outputs)}")
        raise BadInput(f"the graph has no output {name[:80]!r}", where=path, advice=advice)
    return name


@dataclass(frozen=True)
class _Source:
    """A model, and the name of the output to take."""

    model: Any
    path: Path
    tensors: Tensors
    initializers: Mapping[str, Any]
    output: str

    def image(self) -> tuple[str, list[int | None]]:
        """The name of the only input that is no parameter, and its lengths, None for those that are open."""
        inputs = [value for value in self.model.graph.input if value.name not in self.initializers]
        if len(inputs) != 1:
            found = first_few([value.name for value in inputs]) if inputs else "none"
            raise BadInput("the graph does not read a single image", where=self.path, found=found)
        dims = inputs[0].type.tensor_type.shape.dim
        lengths: list[int | None] = [
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims
        ]
        if len(lengths) != 4:
            expected = "[n, channels, height, width]"
            raise BadInput("its input is no image", where=self.path, expected=expected, found=lengths[:8])
        return inputs[0].name, lengths


def _as_layers(source: _Source, input_size: int | None, channels_read: int) -> Imported:
    """The graph's own layers, for the first size that fits.

    With `channels_read` 1 they read grey; else RGB, and what reads grey has a layer that makes it in front.
    """
    name, shape = source.image()
    batch, *lengths = shape
    is_last = lengths[0] not in (1, COLOURS) and lengths[2] in (1, COLOURS)
    channels = lengths[2] if is_last else lengths[0] or COLOURS
    height, width = lengths[:2] if is_last else lengths[1:]
    if channels not in (1, COLOURS):
        expected = "images of 3 channels, or of 1"
        raise BadInput("its input is no such image", where=source.path, expected=expected, found=lengths)
    stated = as_size(height, width) if height and width else height or width
    failure: BadInput | None = None
    sizes: Sequence[Size] = [input_size] if input_size else [stated] if stated else USUAL_SIZES
    for size in sizes:
        image = _Input(name, channels or COLOURS, size, is_last, batch, channels_read)
        try:
            imported = _read(source, image)
        except SizeUnfit as error:
            failure = failure or error
            continue
        return imported
    raise failure or BadInput("no size of image fits the graph", where=source.path)


@dataclass(frozen=True)
class _Input:
    name: str
    channels: int
    size: Size
    is_last: bool
    batch: int | None
    channels_read: int


def _read(source: _Source, image: _Input) -> Imported:
    try:
        return _read_scaled(source, image, split=True)
    except TwoScales:
        return _read_scaled(source, image, split=False)


def _read_scaled(source: _Source, image: _Input, split: bool) -> Imported:
    graph = source.model.graph
    root = _before_softmax(graph, source.output)
    nodes = needed_nodes(graph, root, {image.name, *source.initializers}, source.path)
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in names_read(node):
            readers.setdefault(name, []).append(node)
    most = source.tensors.most_numbers(source.initializers.values())
    layers = LayerGraph((image.channels_read, *pair(image.size)), most)
    conversion = Conversion(
        source.path, layers, image.channels, image.batch, _opset(source), split, readers, source.tensors,
        source.initializers,
    )  # fmt: skip
    conversion.values[image.name] = Image(InputScale.none(image.channels), image.is_last)
    folder = Folder(conversion)
    for node in nodes:
        _follow(conversion, folder, node)
    return _imported(conversion, conversion.values[root])


def _before_softmax(graph: Any, name: str) -> str:
    """The name of the scores in front of the softmax at the end, which none of our networks has.

    A LogSoftmax in front of it changes nothing; another Softmax does.
    """
    makers = {output: node for node in graph.node for output in node.output if output}
    left_off: tuple[str, ...] = _LEFT_OFF
    for _ in graph.node:
        node = makers.get(name)
        if node is None or not node.input or node.input[0] not in makers:
            break
        if node.op_type in left_off:
            left_off = _LEFT_OFF[1:]
        elif node.op_type not in _SKIPPED:
            break
        name = node.input[0]
    return name


def _opset(source: _Source) -> int:
    versions = [entry.version for entry in source.model.opset_import if entry.domain in _PLAIN]
    newest = import_onnx_package().defs.onnx_opset_version()
    if not versions or not 1 <= versions[0] <= newest:
        expected, found = f"1 to {newest}", versions[:1]
        raise BadInput("the set of operators is unknown", where=source.path, expected=expected, found=found)
    return int(versions[0])


def _follow(conversion: Conversion, folder: Folder, node: Any) -> None:
    """Work out what leaves a node, all nodes before it known."""
    values = conversion.values
    if id(node) in conversion.absorbed:
        values[node.output[0]] = values[conversion.absorbed[id(node)]]
        return
    helper = import_onnx_package().helper
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = tuple(conversion.value(name) if name else None for name in node.input)
    operator = Operator(conversion, node, inputs, attributes)
    found = _chosen(operator, folder) if node.op_type == "If" else _value(operator, folder)
    results = found if isinstance(found, tuple) else (found,)
    for place, name in enumerate(node.output):
        if place < len(results):
            values[name] = results[place]
        elif name in conversion.readers:
            raise operator.bad(f"its output {place} is read, which our layers have not", found=repr(name[:80]))


def _chosen(operator: Operator, folder: Folder) -> tuple[Value, ...]:
    """The output of an If whose condition depends on no image: PyTorch writes a squeeze so."""
    condition = operator.array(0, "condition")
    branch = operator.attributes.get("then_branch" if condition.size == 1 and condition.all() else "else_branch")
    if condition.size != 1 or branch is None or branch.initializer:
        raise operator.bad("a choice that our layers have not")
    for node in branch.node:
        if node.op_type == "If":
            raise operator.bad("a choice within a choice")
        _follow(operator.conversion, folder, node)
    results = [operator.conversion.value(value.name) for value in branch.output]
    return tuple(result for result in results if result is not None)


def _value(operator: Operator, folder: Folder) -> Value | tuple[Value, ...]:
    op = operator.node.op_type
    if operator.node.domain not in _PLAIN:
        raise operator.bad("our layers have nothing of another set of operators", found=operator.node.domain[:80])
    if op == "Constant":
        return folder.constant(operator)
    known = folder.shape(operator)
    if known is not None:
        return known
    folded = folder.folded(operator)
    if folded is not None:
        return folded
    if op not in RULES:
        advice = did_you_mean(op, RULES, "import reads feed-forward image classifiers")
        raise operator.bad("our layers have nothing like this operator", advice=advice)
    return operator.rescaled() or RULES[op](operator)


def _imported(conversion: Conversion, value: Value) -> Imported:
    graph, path = conversion.graph, conversion.path
    end = graph.scores(value if isinstance(value, Flow) else None, path)
    network, values, _ = graph.network(end)
    describe(network, graph.image.shape)
    notes, image = tuple(graph.notes), graph.image.shape
    normalisation = of_channels(conversion.scale.normalisation if conversion.scale else None, image[0])
    ours, difference = recognised(network, values, image, path)
    if ours is not None:
        return replace(ours, normalisation=normalisation, notes=notes)
    notes = (f"no network of ours; the nearest differs: {difference}", *notes) if difference else notes
    name = re.sub(r"[^\w.-]", "_", path.stem) or "network"
    size = as_size(*image[1:])
    return Imported(name, end.shape[0], size, values, normalisation, layers=network, notes=notes, channels=image[0])
