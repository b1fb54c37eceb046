"""Write a network for PyTorch: a readable Python file with its weights as safetensors, or a program for LibTorch.

The Python text is generated from the description. No text of a user goes into it: layers' names are checked to be
plain words, numbers are written by `repr`.
"""

from __future__ import annotations

import keyword
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill, indent
from types import ModuleType

from safetensors.numpy import save

from imagenet_pipeline import __version__, files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.frozen import Frozen, Normalisation, contents, freeze
from imagenet_pipeline.interchange.torch_layers import CLASSES, arithmetic, computed_by, module_of
from imagenet_pipeline.networks.layers import (
    SHORTCUT,
    Concat,
    Elementwise,
    Graph,
    Join,
    Layer,
    Residual,
    Sequential,
    fold,
    joined,
)
from imagenet_pipeline.networks.shapes import LayerReport, Shape

TAKEN = {*sys.stdlib_module_names, "torch", "safetensors", "numpy", "timm"}


def export_pytorch(
    network: Sequential, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    """Write `out`.safetensors (float32, by our parameters' names) and `out`.py (the module, and `load`).

    The module takes float32 [n, channels, height, width], RGB in 0..255 with `normalisation` inside, or else
    (RGB - mean) / std, and gives logits [n, classes]. It needs torch and safetensors alone. Its state has the
    file's names, beside torch's counters of batches, which strict loading does not ask for.
    Raises BadRecipe where `out` is no name for a Python module, and as `freeze` does.
    """
    require_module_name(out.name)
    frozen = freeze(network, values, input_shape)
    weights, code = (out.with_name(f"{out.name}{ending}") for ending in (".safetensors", ".py"))
    files.write_whole(weights, save(frozen.values, metadata={"format": "pt"}))
    files.write_whole(code, module_text(frozen, out.name, normalisation))
    return [weights, code]


def export_torchscript(
    network: Sequential, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    """Write `out`.pt, for `torch.jit.load` in Python and in C++. Images and logits are those of `export_pytorch`.

    Raises BadRecipe where torch is missing or cannot write the network, and as `freeze` does.
    """
    return _export_program(network, values, input_shape, out, normalisation, ".pt")


def export_torch_program(
    network: Sequential, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    """Write `out`.pt2, for `torch.export.load`; the number of images is open. Raises as `export_torchscript` does."""
    return _export_program(network, values, input_shape, out, normalisation, ".pt2")


def _programs() -> ModuleType:
    """The engine's part that writes programs. Raises BadRecipe where PyTorch is not installed."""
    try:
        from imagenet_pipeline.engines.pytorch import programs
    except (ImportError, OSError) as error:
        raise BadRecipe(
            f"this format is written by PyTorch, which cannot be imported ({error})",
            where="--format",
            advice="pip install 'imagenet-pipeline[pytorch]'",
        ) from error
    return programs


def _export_program(
    network: Sequential,
    values: Values,
    input_shape: Shape,
    out: Path,
    normalisation: Normalisation | None,
    ending: str,
) -> list[Path]:
    """Write the program of the module in the Python file that --format pytorch writes."""
    programs = _programs()
    frozen = freeze(network, values, input_shape)
    module = programs.module_of(module_text(frozen, "exported", normalisation), frozen.values)
    written: list[Path] = programs.write_program(module, input_shape, out, ending)
    return written


def require_module_name(name: str) -> None:
    """Raise BadRecipe unless Python can import a file of this name without hiding what that file imports."""
    if not name.isidentifier() or keyword.iskeyword(name) or name in TAKEN:
        raise BadRecipe(
            "not the name of a Python module, which this format writes",
            where=f"--out {name}",
            expected="letters, digits and _, as in resnet18_best",
        )


SHORT_CALL = 88
"""Longest expression, in characters, that stays on a line."""

TEMPLATE = '''\
"""{name}: images, float32 [n, {input}], {reads}, to logits [n, {output}].

    from {name} import load

    network = load()  # with the weights of {name}.safetensors beside this file, ready to score
    logits = network(images)

Written by imagenet-pipeline {version}. Needs torch and safetensors alone. Layers' names are those of the weights.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn


{definitions}


def network():
    """The layers, with values of torch's choice."""
    return {body}


def load(path=Path(__file__).with_suffix(".safetensors")):
    """The network with the weights of a file, ready to score."""
    from safetensors.torch import load_file

    loaded = network()
    loaded.load_state_dict(load_file(path))
    return loaded.eval()
'''

STACK = '''\
def stack(**items):
    """The named items one after the other."""
    return nn.Sequential(OrderedDict(items))'''


_TORCH_NAMES = """
T_destination add_module append apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches
eval extend extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half insert ipu
load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module
register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state
set_submodule share_memory state_dict to to_empty train training type xpu zero_grad self
"""
TAKEN_BY_TORCH = frozenset(_TORCH_NAMES.split())
"""Names that no layer of an nn.Sequential can have, beside those with an underscore in front."""
TAKEN_IN_FORWARD = ("x", "self", "torch", "float")


def module_text(frozen: Frozen, name: str, normalisation: Normalisation | None) -> str:
    """The whole file, to be saved as `name`.py. Raises BadRecipe for a layer's name that Python cannot take."""
    first = _CodeWriter(frozen.reports, {})
    first.items(frozen.network.items)
    recurring = [(text, paths) for text, paths in first.paths.items() if len(paths) > 1]
    writer = _CodeWriter(frozen.reports, {text: f"residual{number}" for number, (text, _) in enumerate(recurring, 1)})
    items = writer.items(frozen.network.items)
    if normalisation:
        if any(name == "normalise" for name, _ in frozen.network.items):
            raise _unfit("normalise")
        mean, std = (tuple(map(float, numbers)) for numbers in normalisation)
        items = [f"normalise={_call('Normalise', [f'mean={mean!r}', f'std={std!r}'])}", *items]
    units = [_unit(writer.units[text], text, paths) for text, paths in recurring]
    own = [*(_class(writer.graphs[text], text, paths) for text, paths in writer.graph_paths.items()), *units]
    body = _inside(_broken("stack", items))
    used = [text for name, text in CLASSES.items() if re.search(rf"\b{name}\(", "\n".join([body, *own]))]
    return TEMPLATE.format(
        name=name,
        version=__version__,
        input=", ".join(map(str, frozen.input_shape)),
        output=", ".join(map(str, frozen.output_shape)),
        reads=contents(frozen.input_shape[0], not normalisation).replace(",", " in"),
        definitions="\n\n\n".join([STACK, *used, *own]),
        body=body,
    )


class _CodeWriter:
    """Writes layers as Python expressions.

    `units` are the functions to call in place of a Residual's expression; `paths` says where each was met. `graphs`
    are the classes of Graphs, by their text; `graph_paths` says where each was met.
    """

    def __init__(self, reports: dict[str, LayerReport], units: dict[str, str]) -> None:
        self.units = units
        self.paths: dict[str, list[str]] = defaultdict(list)
        self.graphs: dict[str, str] = {}
        self.graph_paths: dict[str, list[str]] = defaultdict(list)
        self._reports = reports

    def items(self, items: Iterable[tuple[str, Layer]]) -> list[str]:
        """`name=expression` for each of a network's items."""
        return _named({name: fold(item, name, self.expression) for name, item in items})

    def expression(self, layer: Layer, path: str, parts: dict[str, str]) -> str:
        """The expression that makes `layer`, at `path`, in PyTorch, out of those of its parts."""
        match layer:
            case Sequential():
                return _call("stack", _named(parts))
            case Residual():
                # The class adds what its last item gives to what the others give.
                around = {SHORTCUT: parts.pop(SHORTCUT)} if layer.shortcut else {}
                words = _named({**parts, **around})
                text = (
                    _call("DroppingResidual", [repr(layer.drop_rate), *words])
                    if layer.drop_rate
                    else _call("Residual", words)
                )
                self.paths[text].append(path)
                return f"{self.units[text]}()" if text in self.units else text
            case Concat():
                return _call("Concat", _named(parts))
            case Graph():
                return self._graph(layer, path, parts)
            case Elementwise() | Join():
                return ""  # stands in the Graph's forward alone
            case _:
                return module_of(layer, self._reports[path].input_shape)

    def _graph(self, graph: Graph, path: str, parts: dict[str, str]) -> str:
        text = _ForwardWriter(graph, path, parts, self._reports).text()
        if text not in self.graphs:
            name = "".join(word[:1].upper() + word[1:] for word in path.replace(".", "_").split("_")) or "Block"
            while name in {*CLASSES, "Path", "OrderedDict", *self.graphs.values()}:
                name += "_"
            self.graphs[text] = name
        self.graph_paths[text].append(path)
        return f"{self.graphs[text]}()"


class _ForwardWriter:
    """Writes a Graph as the body of a class: a line of `forward` for each item, under the item's name."""

    def __init__(self, graph: Graph, path: str, parts: dict[str, str], reports: dict[str, LayerReport]) -> None:
        self._graph, self._path, self._parts, self._reports = graph, path, parts, reports
        names = {name for name, _ in graph.items}
        self._variables = {"": "x"} | {name: _free(name, names) for name in names}
        self._constants: set[str] = set()
        self._modules: list[str] = []

    def text(self) -> str:
        """`__init__`, where a layer has a module, and `forward`, both to be indented."""
        lines = []
        for (name, layer), links in zip(self._graph.items, self._graph.links, strict=True):
            lines.append(f"{self._variables[name]} = {_filled(self._line(name, layer, links))}")
            if self._constants.issuperset(links):
                self._constants.add(name)
        lines[-1] = f"return {lines[-1].partition(' = ')[2]}"
        forward = f"def forward(self, x):\n{indent(chr(10).join(lines), ' ' * 4)}"
        if not self._modules:
            return forward
        modules = "\n".join(["super().__init__()", *self._modules])
        return f"def __init__(self):\n{indent(modules, ' ' * 4)}\n\n{forward}"

    def _line(self, name: str, layer: Layer, links: tuple[str, ...]) -> str:
        words = [self._variables[link] for link in links]
        match layer:
            case Elementwise():
                return arithmetic(layer, words)
            case Join(axis=axis):
                images = next((link for link in links if link not in self._constants), None)
                words = [self._repeated(link, images) for link in links]
                return f"torch.cat([{', '.join(words)}], dim={axis + 1})"
        report = self._reports.get(joined(self._path, name))
        computed = computed_by(layer, report.input_shape, words[0]) if report and words else None
        if computed is not None:
            return computed
        self._modules.append(f"self.{_plain(name)} = {self._parts[name]}")
        return f"self.{name}({', '.join(words)})"

    def _repeated(self, link: str, images: str | None) -> str:
        """A variable, of a Constant as often as there are images."""
        word = self._variables[link]
        if images is None or link not in self._constants:
            return word
        return f"{word}.expand({self._variables[images]}.shape[0], *{word}.shape[1:])"


def _filled(text: str) -> str:
    """A long expression in brackets, on as many lines as it takes."""
    if len(text) <= SHORT_CALL:
        return text
    return fill(f"({text})", SHORT_CALL, subsequent_indent=" " * 4, break_long_words=False, break_on_hyphens=False)


def _free(name: str, names: set[str]) -> str:
    """The variable of an item: its name, or one near it that means nothing else in `forward`."""
    while name in TAKEN_IN_FORWARD or keyword.iskeyword(name):
        name += "_"
        while name in names:
            name += "_"
    return name


def _class(name: str, text: str, paths: list[str]) -> str:
    return f"class {name}(nn.Module):\n    # {', '.join(paths)}\n{indent(text, ' ' * 4)}"


def _call(name: str, words: list[str]) -> str:
    line = f"{name}({', '.join(words)})"
    return line if len(line) <= SHORT_CALL and "\n" not in line else _broken(name, words)


def _broken(name: str, words: list[str]) -> str:
    """A call with an argument a line."""
    return f"{name}(\n{indent(''.join(f'{word},{chr(10)}' for word in words), ' ' * 4)})"


def _unit(name: str, text: str, paths: list[str]) -> str:
    return f"def {name}():\n    # {', '.join(paths)}\n    return {_inside(text)}"


def _inside(text: str) -> str:
    """`text` as it stands in a function's body, behind a first word."""
    return indent(text, " " * 4).lstrip()


def _named(expressions: dict[str, str]) -> list[str]:
    return [f"{_plain(name)}={expression}" for name, expression in expressions.items()]


def _plain(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name in TAKEN_BY_TORCH:
        raise _unfit(name)
    return name


def _unfit(name: str) -> BadRecipe:
    return BadRecipe("this format cannot name a layer so", where="--format", found=repr(name), advice="onnx can")
