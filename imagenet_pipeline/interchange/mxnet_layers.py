"""Any feed-forward MXNet graph as a network of our layers.

The graph is followed once for every size of image that is tried: the one asked for, or else the sizes in use and those
between them, until its dense layers fit what reaches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Size, as_size, pair, shown_size
from imagenet_pipeline.errors import BadInput, did_you_mean, first_few
from imagenet_pipeline.interchange import mxnet_array_operators as arrays
from imagenet_pipeline.interchange import mxnet_image_operators as images
from imagenet_pipeline.interchange import mxnet_layer_operators as layers
from imagenet_pipeline.interchange.frozen import Normalisation
from imagenet_pipeline.interchange.graph import COLOURS
from imagenet_pipeline.interchange.graph_operators import NORMS, before_softmax
from imagenet_pipeline.interchange.layer_graph import Flow, SizeUnfit, TwoScales
from imagenet_pipeline.interchange.mxnet_operator import (
    SKIPPED,
    Conversion,
    Operator,
    data_variable,
)
from imagenet_pipeline.interchange.params import AnyArray
from imagenet_pipeline.interchange.symbol import VARIABLE, Attributes, Output, Symbol
from imagenet_pipeline.networks.layers import Scalar, Sequential
from imagenet_pipeline.networks.shapes import describe

Rule = Callable[[Operator], Flow]

LOSSES = ("LinearRegressionOutput", "MAERegressionOutput", "SVMOutput", "MakeLoss", "make_loss")
"""Outputs that give what they read."""
_LABELLED = (*LOSSES, "SoftmaxOutput", "Softmax", "LogisticRegressionOutput")
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Convolution", "Convolution_v1"), layers.convolution),
    "Deconvolution": layers.deconvolution,
    "FullyConnected": layers.dense,
    **dict.fromkeys(NORMS, layers.batch_norm),
    "InstanceNorm": layers.instance_norm,
    "LayerNorm": layers.layer_norm,
    "GroupNorm": layers.group_norm,
    "LRN": layers.response_norm,
    "L2Normalization": layers.l2_norm,
    **dict.fromkeys(("Activation", *layers.FUNCTIONS), layers.activation),
    "LeakyReLU": layers.leaky,
    "hard_sigmoid": layers.hard_sigmoid,
    "clip": layers.clip,
    "Dropout": layers.dropout,
    **dict.fromkeys(("softmax", "log_softmax"), layers.softmax),
    **dict.fromkeys(("SoftmaxOutput", "Softmax", "SoftmaxActivation"), layers.softmax_output),
    "LogisticRegressionOutput": layers.logistic_output,
    **dict.fromkeys((*LOSSES, *SKIPPED), layers.same),
    **dict.fromkeys(("Pooling", "Pooling_v1"), images.pooling),
    "_contrib_AdaptiveAvgPooling2D": images.adaptive_pooling,
    "UpSampling": images.upsampling,
    "_contrib_BilinearResize2D": images.resize,
    **dict.fromkeys(("Pad", "pad"), images.padding),
    **dict.fromkeys(arrays.ARITHMETIC, arrays.arithmetic),
    **dict.fromkeys(arrays.SCALAR_ARITHMETIC, arrays.scalar),
    "negative": arrays.negative,
    **dict.fromkeys(("reciprocal", "rsqrt"), arrays.reciprocal),
    **dict.fromkeys(("ones_like", "zeros_like"), arrays.filled),
    **dict.fromkeys(arrays.REDUCTIONS, arrays.reduction),
    "norm": arrays.norm,
    "broadcast_like": arrays.broadcast_like,
    **dict.fromkeys(("Flatten", "flatten"), arrays.flatten),
    **dict.fromkeys(("Reshape", "reshape"), arrays.reshape),
    "transpose": arrays.transpose,
    **dict.fromkeys(("SwapAxis", "swapaxes"), arrays.swap_axes),
    "expand_dims": arrays.expand_dims,
    "squeeze": arrays.squeeze,
    **dict.fromkeys(("SliceChannel", "split"), arrays.split),
    "_split_v2": arrays.split_at,
    "slice_axis": arrays.slice_axis,
    **dict.fromkeys(("slice", "crop"), arrays.slice_all),
    "slice_like": arrays.slice_like,
    **dict.fromkeys(("Concat", "concat"), arrays.concat),
    "stack": arrays.stack,
}

USUAL_SIZES = (224, 299, 32, 28, 227, 112, 64, 48, 96, 128, 256, 331, 384, 448, 512, 100, 60, 40)
LARGEST_SIZE = 1024
MOST_STEPS = 50_000
"""Nodes followed in search of a size: of the usual sizes, as many are tried."""
SMALLEST_TEMPERATURE = 1e-6
"""Lowest temperature of a softmax; none is above the inverse of it either."""
MOST_WEIGHTLESS = 16
"""Nodes followed back from a layer with weights in search of the image."""


@dataclass(frozen=True)
class Layered:
    """A graph as layers, for images of `size` pixels; `sources` has the file's names of `values` by ours."""

    network: Sequential
    values: dict[str, npt.NDArray[np.float32]]
    sources: dict[str, str]
    size: Size
    classes: int
    normalisation: Normalisation | None
    notes: tuple[str, ...]


def layered(
    symbol: Symbol,
    params: Mapping[str, AnyArray],
    size: Size | None,
    where: tuple[Path, Path],
    channels_given: int = COLOURS,
) -> Layered:
    """The graph, of a single output, as layers; `size` is that of its images if it is known.

    With `channels_given` 1 the layers read grey; else RGB, and what reads grey has a layer that makes it in front.

    `where` are the files of the symbol and the parameters. A softmax at the end is left off. Raises BadInput for what
    our layers cannot say, naming the operator and the node, and where no size of image fits.
    """
    root, temperature = before_softmax(symbol, (*LOSSES, *SKIPPED))
    if not SMALLEST_TEMPERATURE <= temperature <= 1 / SMALLEST_TEMPERATURE:
        raise BadInput("invalid temperature of the softmax", where=where[0], expected="above 0", found=temperature)
    needed = sorted(_needed(symbol, root))
    _require_known(symbol, needed, where[0])
    failure: BadInput | None = None
    stated = _stated_size(symbol, params)
    for channels in _channels(symbol, params, where[0]):
        usual = USUAL_SIZES[: max(2, MOST_STEPS // len(needed))]
        sizes = _Sizes([size] if size else [*([stated] if stated else []), *usual], size is None)
        for side in sizes:
            try:
                wanted = _Wanted(root, temperature, needed, channels_given)
                found = _converted(symbol, params, (channels, *pair(side)), wanted, where)
            except SizeUnfit as error:
                failure = failure or error
                sizes.narrow(side, error.larger)
                continue
            if size is None and side != stated:
                note = f"input of {shown_size(side)} pixels assumed: the graph does not say it (--input gives another)"
                found = replace(found, notes=(note, *found.notes))
            return found
    raise _of_no_size(failure, size, where[0])


def _of_no_size(failure: BadInput | None, size: Size | None, where: Path) -> BadInput:
    """The error of the graph for images of the first size tried."""
    if failure is None:
        return BadInput("no size of image fits the graph", where=where)
    advice = "no size of image that was tried fits: --input SIDE gives another" if size is None else None
    return BadInput(failure.what, where=failure.where, expected=failure.expected, found=failure.found, advice=advice)


class _Sizes:
    """Sides to try, in order; after those of the list, halving, sides between what is too small and too large."""

    def __init__(self, listed: list[Size], halving: bool) -> None:
        self._listed = listed
        self._low, self._high = 0, LARGEST_SIZE + 1
        self._halving = halving

    def __iter__(self) -> Iterator[Size]:
        for side in self._listed:
            if isinstance(side, tuple) or self._low < side < self._high:
                yield side
        while self._halving and self._high <= LARGEST_SIZE and self._high - self._low > 1:
            side = (self._low + self._high) // 2
            yield side
            if self._low < side < self._high:
                return

    def narrow(self, side: Size, larger: bool | None) -> None:
        """Take note that only larger, or only smaller, images can fit."""
        if isinstance(side, tuple):
            return
        if larger is True:
            self._low = max(self._low, side)
        if larger is False:
            self._high = min(self._high, side)


def with_output(symbol: Symbol, name: str | None, where: Path) -> Symbol:
    """The graph with a single output: its own, or what `name` names: NODE, NODE_output or NODE_outputK.

    Raises BadInput where there is none of that name, or several outputs and no name.
    """
    if name is None:
        if len(symbol.heads) == 1:
            return symbol
        names = [_output_name(symbol, head) for head in symbol.heads]
        what = "the graph has several outputs"
        raise BadInput(what, where=where, found=first_few(names), advice="--output NAME takes one of them")
    found = {
        known: (index, which)
        for index, node in enumerate(symbol.nodes)
        for which in range(_outputs(node.op, node.attributes))
        for known in _names(node.op, node.name, which, _outputs(node.op, node.attributes))
    }
    if name not in found:
        heads = [_output_name(symbol, head) for head in symbol.heads]
        advice = did_you_mean(name, found, f"its own: {first_few(heads)}")
        raise BadInput(f"the graph has no output {name[:80]!r}", where=where, advice=advice)
    return Symbol(symbol.nodes, (found[name],))


def _outputs(op: str, attributes: Mapping[str, str]) -> int:
    count = attributes.get("num_outputs", "1") if op in ("SliceChannel", "split") else "1"
    return min(int(count), 1000) if count.isdecimal() and len(count) < 5 else 1


def _names(op: str, name: str, which: int, count: int) -> tuple[str, ...]:
    if op == VARIABLE:
        return ()
    return (name, f"{name}_output") if count == 1 else (f"{name}_output{which}",)


def _output_name(symbol: Symbol, output: Output) -> str:
    node = symbol.nodes[output[0]]
    names = _names(node.op, node.name, output[1], _outputs(node.op, node.attributes))
    return names[-1] if names else node.name


def _needed(symbol: Symbol, root: Output) -> set[Output]:
    reached, waiting = {root}, [root]
    while waiting:
        node = symbol.nodes[waiting.pop()[0]]
        for output in node.inputs[: 1 if node.op in _LABELLED else None]:
            if output not in reached:
                reached.add(output)
                waiting.append(output)
    return reached


def _rule(op: str) -> Rule:
    return _RULES[arrays.bare(op)]


def _require_known(symbol: Symbol, needed: list[Output], where: Path) -> None:
    for index, which in needed:
        node = symbol.nodes[index]
        place = f"{where}: {node.name[:80]!r}"
        if node.op != VARIABLE and arrays.bare(node.op) not in _RULES:
            advice = did_you_mean(node.op, _RULES, "import reads feed-forward image classifiers")
            raise BadInput(f"our layers have nothing like operator {node.op[:80]!r}", where=place, advice=advice)
        if which and node.op not in ("SliceChannel", "split", "_split_v2"):
            raise BadInput(f"reads output {which} of a {node.op[:80]}, which our layers have not", where=place)


def _stated_size(symbol: Symbol, params: Mapping[str, AnyArray]) -> Size | None:
    """The size of images that the input's variable declares."""
    index = data_variable(symbol, params)
    if index is None:
        return None
    shape = Attributes({"shape": symbol.nodes[index].attributes.get("__shape__", "")}, "the input").integers("shape")
    is_image = len(shape) == 4 and shape[1] in (1, COLOURS) and all(1 <= side <= LARGEST_SIZE for side in shape[2:])
    return as_size(shape[2], shape[3]) if is_image else None


def _channels(symbol: Symbol, params: Mapping[str, AnyArray], where: Path) -> tuple[int, ...]:
    """The channels of the image to try: those the first convolution reads, or three and one."""
    for node in symbol.nodes:
        if node.op in ("Convolution", "Convolution_v1") and len(node.inputs) > 1:
            array = params.get(symbol.nodes[node.inputs[1][0]].name)
            if array is None or array.ndim != 4:
                break
            place = f"{where}: {node.name[:80]!r}"
            channels = array.shape[1] * Attributes(node.attributes, place).integer("num_group", 1)
            if channels not in (1, COLOURS) and _reads_image(symbol, node.inputs[0][0]):
                what = f"{node.name[:80]} reads images of {channels} channels"
                raise BadInput(what, where=where, expected="3, or 1 of grey images")
            return (channels,) if channels in (1, COLOURS) else (COLOURS, 1)
        if node.op == "FullyConnected":
            break
    return COLOURS, 1


def _reads_image(symbol: Symbol, index: int) -> bool:
    """True where nothing but single-input nodes stand between the node and a variable."""
    for _ in range(MOST_WEIGHTLESS):
        node = symbol.nodes[index]
        if node.op == VARIABLE:
            return True
        if len(node.inputs) != 1 or node.op in ("Reshape", "reshape", "SliceChannel", "slice_axis"):
            return False
        index = node.inputs[0][0]
    return False


@dataclass(frozen=True)
class _Wanted:
    """The scores of a graph, the temperature of the softmax behind them, and what they are made of, in order.

    `channels` are those that the layers are to read.
    """

    root: Output
    temperature: float
    needed: list[Output]
    channels: int


def _converted(
    symbol: Symbol,
    params: Mapping[str, AnyArray],
    image: tuple[int, int, int],
    wanted: _Wanted,
    where: tuple[Path, Path],
) -> Layered:
    try:
        return _read(Conversion(symbol, params, image, True, where, wanted.channels), wanted)
    except TwoScales:
        return _read(Conversion(symbol, params, image, False, where, wanted.channels), wanted)


def _read(conversion: Conversion, wanted: _Wanted) -> Layered:
    for output in wanted.needed:
        conversion.read(output, _rule)
    graph, scale = conversion.graph, conversion.scale
    end = graph.scores(conversion.flow(wanted.root), conversion.where)
    if wanted.temperature != 1:
        end = graph.add("temperature", Scalar("divide", wanted.temperature), (end,))
    network, values, sources = graph.network(end)
    describe(network, graph.image.shape)
    normalisation = scale.normalisation if scale else None
    size = as_size(*graph.image.shape[1:])
    return Layered(network, values, sources, size, end.shape[0], normalisation, tuple(graph.notes))
