"""A network's diagram in DOT, the language of Graphviz, and as Graphviz draws it."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, printable
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.evaluation.features import own_network
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import (
    Activation,
    Attention,
    BlurPool,
    Clip,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Elementwise,
    GlobalAveragePool,
    Join,
    L2Norm,
    Layer,
    LocalResponseNorm,
    Pad,
    Pool,
    Reduce,
    Scalar,
    Size,
    Slice,
    Softmax,
    Transpose,
    Upsample,
    pair,
)
from imagenet_pipeline.networks.shapes import Shape, describe, multiply_adds, parameter_count
from imagenet_pipeline.pictures.diagram import LayerBox, LayerGraph, LayerGroup, Part, Parts, diagram, is_folded

FORMATS = ("dot", "svg", "png", "pdf")
DOTS_PER_INCH = 120
SECONDS_LIMIT = 300


@dataclass(frozen=True)
class Diagram:
    """A finished diagram, and what it shows."""

    file: str
    network: str
    input_shape: Shape
    classes: int
    parameters: int
    multiply_adds: int


def draw_network(
    name: str, out: Path, input_size: int | None = None, classes: int | None = None, full: bool = False
) -> Diagram:
    """Draw the network `name`, or that of the run folder `name`, to a .dot, .svg, .png or .pdf file.

    Size and number of classes are the run's, or the network's own and 1000. `full`: every layer by itself.
    Raises BadRecipe for an unknown or a zoo's network and for another ending, and, but for .dot, where Graphviz is
    not installed.
    """
    files.require_ending(out, [f".{kind}" for kind in FORMATS], "the picture's format is unknown")
    kind = out.suffix.lower().removeprefix(".")
    network, title, trained, count = _network_of(name)
    description = own_network(network, classes or count)
    entry = catalog.entry(network)
    count = classes or count or entry.classes
    channels, *sides = trained or (entry.channels, *pair(entry.input_size))
    shape = (channels, *(pair(input_size) if input_size else sides))
    reports = describe(description, shape)
    made = Diagram(str(out), entry.name, shape, count, parameter_count(reports), multiply_adds(reports))
    remarks = [
        entry.summary,
        f"{made.parameters:,} parameters, {made.multiply_adds / 1e6:,.0f} million multiply-adds, {count:,} classes",
        "right in each box: the shape of its output (channels \u00d7 height \u00d7 width), and below it its parameters",
    ]
    parts = diagram(description, shape, full)
    if is_folded(parts):
        remarks.append("\u00d7 2 in a box or frame: two alike in a row; a \u2026 b: numbers of the first and the last")
    text = dot_text(parts, shape, title, remarks)
    files.write_whole(out, text if kind == "dot" else drawn(text, kind))
    return made


def drawn(text: str, kind: str) -> bytes:
    """A DOT text as Graphviz draws it. Raises BadRecipe where that is not installed, BadInput where it fails."""
    words = ["dot", f"-T{kind}", *([f"-Gdpi={DOTS_PER_INCH}"] if kind == "png" else [])]
    try:
        done = subprocess.run(words, input=text.encode(), capture_output=True, check=True, timeout=SECONDS_LIMIT)
    except FileNotFoundError as error:
        advice = "install Graphviz (Debian: apt-get install graphviz), or take a name that ends in .dot"
        raise BadRecipe(f"a .{kind} needs the program dot of Graphviz, which is not here", advice=advice) from error
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"Graphviz took longer than {SECONDS_LIMIT} s", advice="leave out --full") from error
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"").decode(errors="replace").strip() or error
        raise BadInput(f"Graphviz could not draw the network ({reason})") from error
    return done.stdout


def _network_of(name: str) -> tuple[str, str, Shape | None, int | None]:
    """Read a network's name or a run folder: the network, a title, and of a run the input's shape and the classes."""
    run = Path(name)
    if name in catalog.names() or catalog.is_zoo_name(name) or not run.is_dir():
        return name, catalog.title(name), None, None
    _, checkpoint = open_checkpoint(run, "best", {})
    state = checkpoint.state
    title = f"{state.network_name}, {checkpoint.folder.name} of {run.resolve().name}"
    return state.network, title, state.input_shape, len(state.classes)


INK, PALE_INK, LINE = "#1f2933", "#66727f", "#c3cad2"
BLUE, GREEN, ORANGE, JOIN_COLOUR, OTHER_COLOUR = "#dcebfa", "#dff2e1", "#fde8d0", "#ece3f7", "#eef0f3"
COLOURS: dict[type, str] = {
    **dict.fromkeys((Conv, ConvTranspose), BLUE),
    **dict.fromkeys((Pool, BlurPool, GlobalAveragePool, Reduce), GREEN),
    **dict.fromkeys((Elementwise, Join), JOIN_COLOUR),
    Dense: ORANGE,
}
GROUP_COLOURS = "#f7f8fa", "#ffffff"
MAIN = "main"
GAP = '<FONT POINT-SIZE="6"> </FONT><BR/>'
LINE_GAP = '<FONT POINT-SIZE="4"> </FONT><BR/>'
"""Graphviz sets lines without leading: as far apart as their letters are high."""
FONT = "Helvetica,Arial,sans-serif"
ACTIVATIONS = {
    "relu": "ReLU", "elu": "ELU", "prelu": "PReLU", "leaky": "leaky ReLU", "selu": "SELU", "gelu": "GELU",
    "swish": "Swish", "mish": "Mish", "hard_swish": "hard Swish", "hard_sigmoid": "hard sigmoid",
}  # fmt: skip
SIGNS = {"add": "+", "subtract": "\u2212", "multiply": "\u00d7", "divide": "/", "power": "^"}


def dot_text(parts: Parts, input_shape: Shape, title: str, remarks: Sequence[str]) -> str:
    """A diagram's parts as a DOT file, with a title and lines below it; the texts may hold any characters."""
    writer = _DotWriter()
    entrance = writer.box([["<B>image</B>", "   " + _shapes((input_shape, input_shape))]], OTHER_COLOUR, MAIN)
    writer.chain(parts, entrance, "", depth=0, line=MAIN)
    lines = [f'<FONT COLOR="{PALE_INK}" POINT-SIZE="11">{_text(remark)}</FONT>' for remark in remarks]
    below = f"<BR/>{LINE_GAP}".join(lines)
    heading = f'<B><FONT POINT-SIZE="18">{_text(title)}</FONT></B><BR/>{GAP}{below}<BR/>{GAP}'
    settings = [
        f'graph [label=<{heading}>, labelloc=t, fontname="{FONT}", fontsize=12, fontcolor="{INK}", '
        "rankdir=TB, newrank=true, nodesep=0.22, ranksep=0.26, pad=0.3, bgcolor=white]",
        f'node [shape=box, style="filled,rounded", color="{LINE}", fontname="{FONT}", fontsize=11, '
        f'fontcolor="{INK}", margin="0.09,0.04", height=0.3]',
        f'edge [color="{PALE_INK}", arrowsize=0.55]',
    ]
    lines = [f"  {line}" for line in (*settings, *writer.lines, *writer.arrows)]
    return "\n".join(["digraph network {", *lines, "}", ""])


class _DotWriter:
    """Notes boxes, groups and arrows in order; every name of a box is its own invention.

    Boxes of the same `line` stand straight below each other.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.arrows: list[str] = []
        self._boxes = self._groups = 0

    def chain(self, parts: Parts, entrance: str, within: str, depth: int, line: str) -> str:
        """Draw parts in sequence, and return the box that the last arrow leaves."""
        for part in parts:
            if isinstance(part, LayerBox):
                entrance = self.layer_box(part, [entrance], within, line, entrance if line else None)
            elif isinstance(part, LayerGraph):
                entrance = self.graph(part, entrance, depth, line)
            elif part.side:
                self.group(part, entrance, depth, "")
            else:
                entrance = self.group(part, entrance, depth, line)
        return entrance

    def layer_box(self, layer_box: LayerBox, entrances: list[str], within: str, line: str, straight: str | None) -> str:
        """Draw a box and the arrows to it, that from the box `straight` straight."""
        box = self.box(_rows(layer_box, within), _colour(layer_box), line)
        # Arrows stand outside the groups: inside, they would draw their other end in.
        weights = {straight: " [weight=6]"}
        self.arrows += [f"{entrance} -> {box}{weights.get(entrance, '')}" for entrance in entrances]
        return box

    def group(self, group: LayerGroup, entrance: str, depth: int, line: str) -> str:
        """Draw a frame and its content, and return the box that the arrow to the next part leaves."""
        self.open_frame(group, depth)
        main, straight = _main_lane(group), None
        ends, firsts = [], []
        for lane in group.lanes:
            if lane and isinstance(lane[0], LayerBox):
                firsts.append(f"box{self._boxes + 1}")
            ends.append(self.chain(lane, entrance, group.path, depth + 1, line if lane is main else ""))
            straight = ends[-1] if lane is main and line else straight
        end = ends[0] if group.join is None else self.layer_box(group.join, ends, group.path, line, straight)
        self.lines += [*_side_by_side(firsts), "}"]
        return end

    def open_frame(self, part: LayerGroup | LayerGraph, depth: int) -> None:
        """Begin a frame, which a line "}" ends."""
        self._groups += 1
        style = "filled,rounded,dashed" if isinstance(part, LayerGroup) and part.side else "filled,rounded"
        self.lines += [
            f"subgraph cluster_{self._groups} {{",
            f'label=<{_heading(part)}>; labeljust=l; style="{style}"; color="{LINE}"; '
            f'fillcolor="{GROUP_COLOURS[depth % 2]}"; fontname="{FONT}"; fontsize=10; fontcolor="{PALE_INK}"; margin=9',
        ]

    def graph(self, graph: LayerGraph, entrance: str, depth: int, line: str) -> str:
        """Draw a frame with the parts of a graph and arrows along its links, and return the box its output leaves."""
        self.open_frame(graph, depth)
        main = _main_line(graph) if line else []
        before = dict(pairwise(main))
        ends = [entrance]  # of part number n the last box is ends[n + 1]
        firsts = []
        for number, (part, links) in enumerate(zip(graph.parts, graph.links, strict=True)):
            own_line = line if number in main else ""
            sources = [ends[link + 1] for link in links]
            if isinstance(part, LayerBox):
                firsts += [f"box{self._boxes + 1}"] if links == (-1,) else []
                straight = ends[before[number] + 1] if number in before else None
                # Below what enters, even where a constant depends on nothing.
                self.arrows += [] if links else [f"{entrance} -> box{self._boxes + 1} [style=invis]"]
                ends.append(self.layer_box(part, sources, graph.path, own_line, straight))
            else:
                ends.append(self.chain((part,), sources[0], graph.path, depth + 1, own_line))
        self.lines += [*_side_by_side(firsts), "}"]
        return ends[graph.exit + 1]

    def box(self, rows: list[list[str]], colour: str, line: str) -> str:
        """Draw a box of rows of two cells, and return its name."""
        self._boxes += 1
        cells = "".join(
            f'<TR><TD ALIGN="LEFT">{left or " "}</TD><TD ALIGN="RIGHT">{right or " "}</TD></TR>' for left, right in rows
        )
        table = f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{cells}</TABLE>'
        alignment = f', group="{line}"' if line else ""
        self.lines.append(f'box{self._boxes} [label=<{table}>, fillcolor="{colour}"{alignment}]')
        return f"box{self._boxes}"


def _main_lane(group: LayerGroup) -> Parts | None:
    """The lane that keeps to the line of what stands before and after; None of several that are alike."""
    if group.join is None or group.join.kind == "add":
        return group.lanes[0]
    lanes = [lane for lane in group.lanes if lane]
    return lanes[0] if len(lanes) == 1 else None


def _main_line(graph: LayerGraph) -> list[int]:
    """The parts that keep to the line of what stands before and after, from the exit back, perhaps to what enters.

    The longest way; it ends at branches that are joined, which stand side by side.
    """
    lengths = {-1: 0.0}
    for number, links in enumerate(graph.links):
        lengths[number] = 1 + max(
            (lengths[link] for link in links), default=-math.inf
        )  # a constant goes on from nothing
    line = [graph.exit]
    while line[-1] >= 0:
        links, part = graph.links[line[-1]], graph.parts[line[-1]]
        is_join = isinstance(part, LayerBox) and isinstance(part.layers[0], Join)
        if not links or (is_join and len(links) > 1):
            break
        line.append(max(links, key=lengths.__getitem__))
    return line


def _side_by_side(boxes: list[str]) -> list[str]:
    """Put boxes side by side, in this order from left to right."""
    return [f"{{ rank=same; {' -> '.join(boxes)} [style=invis] }}"] if len(boxes) > 1 else []


def _rows(box: LayerBox, within: str) -> list[list[str]]:
    words = [_text(_phrase(layer)) for layer in box.layers]
    first = f"<B>{words.pop(0)}</B>" if box.kind == "layer" else f"<B>{box.kind}</B>"
    name = f"{_pale(_names(box, within))}  " if box.kind == "layer" else ""
    rows = [[name + first, f"   {_shapes(box.shapes)}"]]
    if words or box.parameters[1]:
        rows.append([_pale(" &#183; ".join(words)), _pale(_numbers(box.parameters))])
    return rows


def _names(part: Part, within: str) -> str:
    """A part's path inside its frame; where it stands for several, also that of the last, and how many."""
    first, last = (_text(path.removeprefix(f"{within}.")) for path in (part.path, part.last_path))
    return first if part.times == 1 else f"{first} to {last} <B>&#215; {part.times}</B>"


def _heading(part: LayerGroup | LayerGraph) -> str:
    names = _names(part, part.path.rpartition(".")[0])
    return f"{names} (in training only)" if isinstance(part, LayerGroup) and part.side else names


def _shapes(ends: tuple[Shape, Shape]) -> str:
    texts = ["&#215;".join(map(str, shape)) for shape in ends]
    return _range(*texts)


def _numbers(ends: tuple[int, int]) -> str:
    return _range(*(f"{number:,}" for number in ends)) if ends[1] else ""


def _range(first: str, last: str) -> str:
    return first if first == last else f"{first} &#8230; {last}"


def _pale(text: str) -> str:
    return f'<FONT COLOR="{PALE_INK}" POINT-SIZE="9.5">{text}</FONT>' if text else ""


def _text(text: str) -> str:
    return escape(printable(text))


def _colour(box: LayerBox) -> str:
    return COLOURS.get(type(box.layers[0]), OTHER_COLOUR) if box.kind == "layer" else JOIN_COLOUR


def _phrase(layer: Layer) -> str:
    match layer:
        case Conv() | ConvTranspose():
            groups = f", {layer.groups} groups" if layer.groups > 1 else ""
            dilation = f", dilation {_short(layer.dilation)}" if pair(layer.dilation) != (1, 1) else ""
            kind = "conv" if isinstance(layer, Conv) else "transposed conv"
            return f"{kind} {_window(layer.kernel, layer.stride)}{dilation}{groups}"
        case Pool():
            return f"{layer.kind} pool {_window(layer.size, layer.stride)}"
        case BlurPool():
            return f"blur pool {_window(layer.size, layer.stride)}"
        case Attention():
            return f"attention, {layer.heads} heads"
        case Activation():
            return ACTIVATIONS.get(layer.kind, layer.kind)
        case Dropout():
            return f"dropout {layer.rate:g}"
        case LocalResponseNorm():
            return "response norm"
        case L2Norm():
            return f"L2 norm over {_axes(layer.axes)}"
        case Softmax():
            return "log softmax" if layer.log else "softmax"
        case Reduce():
            return f"{layer.kind} over {_axes(layer.axes)}"
    return _rearranging_phrase(layer)


def _rearranging_phrase(layer: Layer) -> str:
    match layer:
        case Clip():
            return f"clip {layer.low:g} to {layer.high:g}"
        case Scalar():
            sign = SIGNS.get(layer.kind, layer.kind)
            return f"{layer.value:g} {sign}" if layer.reverse else f"{sign} {layer.value:g}"
        case Elementwise():
            return layer.kind
        case Join():
            return "concat" if layer.axis == 0 else f"concat along axis {layer.axis}"
        case Transpose():
            return f"transpose {', '.join(map(str, layer.axes))}"
        case Slice():
            step = f":{layer.step}" if layer.step > 1 else ""
            return f"slice {layer.begin}:{'' if layer.end is None else layer.end}{step} of {_axes((layer.axis,))}"
        case Pad(kind=kind):
            margins = f"{layer.top}, {layer.bottom}, {layer.left}, {layer.right}"
            return f"{'' if kind == 'constant' else f'{kind} '}pad {margins}"
        case Upsample():
            return f"upsample \u00d7 {layer.scale}"
    # GlobalAveragePool: "global average pool"
    return re.sub("(?<!^)([A-Z])", r" \1", type(layer).__name__).lower()


def _axes(axes: tuple[int, ...]) -> str:
    words = {(0,): "channels", (1, 2): "positions", (-2, -1): "positions"}
    return words.get(axes, f"ax{'i' if len(axes) == 1 else 'e'}s {', '.join(map(str, axes))}")


def _window(size: Size, stride: Size) -> str:
    if pair(stride) == (1, 1):
        return _sides(size)
    return f"{_sides(size)}, stride {_short(stride)}"


def _short(size: Size) -> str:
    down, across = pair(size)
    return str(down) if down == across else _sides(size)


def _sides(size: Size) -> str:
    return "\u00d7".join(map(str, pair(size)))
