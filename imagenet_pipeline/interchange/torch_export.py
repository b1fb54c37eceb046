"""Write a network as a plain PyTorch module: a readable Python file, and its weights as safetensors.

The Python text is generated from the description. No text of a user goes into it: layers' names are checked to be
plain words, numbers are written by `repr`.
"""

from __future__ import annotations

import keyword
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from textwrap import indent

from safetensors.numpy import save

from imagenet_pipeline import __version__, files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.frozen import Frozen, Normalisation, freeze
from imagenet_pipeline.networks.layers import (
    SHORTCUT,
    Activation,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    LocalResponseNorm,
    Pool,
    Residual,
    Sequential,
    fold,
    pair,
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


def require_module_name(name: str) -> None:
    """Raise BadRecipe unless Python can import a file of this name without hiding what that file imports."""
    if not name.isidentifier() or keyword.iskeyword(name) or name in TAKEN:
        raise BadRecipe(
            "not the name of a Python module, which this format writes",
            where=f"--out {name}",
            expected="letters, digits and _, as in resnet18_best",
        )


USUAL: dict[str, object] = {
    "stride": 1, "padding": 0, "groups": 1, "bias": True, "eps": 1e-5, "momentum": 0.1, "ceil_mode": False,
    "count_include_pad": True,
}  # fmt: skip
"""torch's values of keywords that are not given."""
SHORT_CALL = 88
"""Longest call, in characters, that stays on a line."""

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

RESIDUAL = '''\
class Residual(nn.Sequential):
    """The items one after the other, plus what goes around them: `shortcut`, or the input as it is."""

    def __init__(self, **items):
        super().__init__(OrderedDict(items))

    def forward(self, x):
        body, around = x, x
        for name, item in self.named_children():
            if name == "shortcut":
                around = item(x)
            else:
                body = item(body)
        return body + around'''

CONCAT = '''\
class Concat(nn.Sequential):
    """What the items make of the same input, joined along the channels."""

    def __init__(self, **items):
        super().__init__(OrderedDict(items))

    def forward(self, x):
        return torch.cat([item(x) for item in self], dim=1)'''

PRELU = '''\
class PReLU(nn.Module):
    """torch's own, its parameter called `slope`."""

    def __init__(self, channels, slope):
        super().__init__()
        self.slope = nn.Parameter(torch.full((channels,), slope))

    def forward(self, x):
        return nn.functional.prelu(x, self.slope)'''

NORMALISE = '''\
class Normalise(nn.Module):
    """(x - mean) / std, channel by channel."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x):
        return (x - self.mean) / self.std'''

CLASSES = {"Residual": RESIDUAL, "Concat": CONCAT, "PReLU": PRELU, "Normalise": NORMALISE}


def module_text(frozen: Frozen, name: str, normalisation: Normalisation | None) -> str:
    """The whole file, to be saved as `name`.py. Raises BadRecipe for a layer's name that Python cannot take."""
    first = _CodeWriter(frozen.reports, {})
    first.items(frozen.network.items)
    recurring = [(text, paths) for text, paths in first.paths.items() if len(paths) > 1]
    writer = _CodeWriter(frozen.reports, {text: f"residual{number}" for number, (text, _) in enumerate(recurring, 1)})
    items = writer.items(frozen.network.items)
    units = [_unit(writer.units[text], text, paths) for text, paths in recurring]
    if normalisation:
        if any(name == "normalise" for name, _ in frozen.network.items):
            raise _unfit("normalise")
        mean, std = (tuple(map(float, numbers)) for numbers in normalisation)
        items = [f"normalise={writer.call('Normalise', [f'mean={mean!r}', f'std={std!r}'])}", *items]
    return TEMPLATE.format(
        name=name,
        version=__version__,
        input=", ".join(map(str, frozen.input_shape)),
        output=", ".join(map(str, frozen.output_shape)),
        reads="RGB in 0..255" if normalisation else "(RGB - mean) / std",
        definitions="\n\n\n".join([STACK, *(text for name, text in CLASSES.items() if name in writer.used), *units]),
        body=_inside(_broken("stack", items)),
    )


class _CodeWriter:
    """Writes layers as Python expressions.

    `units` are the functions to call in place of a Residual's expression; `paths` says where each was met.
    """

    def __init__(self, reports: dict[str, LayerReport], units: dict[str, str]) -> None:
        self.units = units
        self.paths: dict[str, list[str]] = defaultdict(list)
        self.used: set[str] = set()
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
                text = self.call("Residual", _named({**parts, **around}))
                self.paths[text].append(path)
                return f"{self.units[text]}()" if text in self.units else text
            case Concat():
                return self.call("Concat", _named(parts))
            case Activation(kind="prelu"):
                return self.call("PReLU", [str(self._reports[path].input_shape[0]), repr(layer.slope)])
            case _:
                return _leaf(layer, self._reports[path].input_shape)

    def call(self, name: str, words: list[str]) -> str:
        """A call of a class the file defines."""
        self.used.add(name)
        return _call(name, words)


def _leaf(layer: Layer, shape: Shape) -> str:
    channels = shape[0]
    match layer:
        case Conv(bias=bias, groups=groups):
            sizes = {"stride": layer.stride, "padding": layer.pad}
            return _module("Conv2d", channels, layer.channels, layer.kernel, **sizes, groups=groups, bias=bias)
        case Dense():
            return _module("Linear", channels, layer.units, bias=layer.bias)
        case BatchNorm():
            # torch's momentum is the share of the batch, ours that of the past.
            name = "BatchNorm2d" if len(shape) == 3 else "BatchNorm1d"
            return _module(name, channels, eps=layer.epsilon, momentum=round(1 - layer.momentum, 12))
        case Pool():
            return _pool(layer)
        case GlobalAveragePool():
            return _module("AdaptiveAvgPool2d", 1)
        case LocalResponseNorm():
            return _module("LocalResponseNorm", layer.size, alpha=layer.alpha, beta=layer.beta, k=layer.bias)
        case Flatten():
            return _module("Flatten")
        case Dropout():
            return _module("Dropout", layer.rate)
        case Activation():
            return _activation(layer)
        case _:
            raise NotImplementedError(f"PyTorch export has no rule for {type(layer).__name__}")


def _pool(layer: Pool) -> str:
    # Without a stride torch takes the window's size: it is always written.
    words = (layer.size, f"stride={layer.stride!r}")
    if layer.kind == "max":
        return _module("MaxPool2d", *words, padding=layer.pad, ceil_mode=layer.ceil)
    count = layer.count_pad or not any(pair(layer.pad))
    return _module("AvgPool2d", *words, padding=layer.pad, ceil_mode=layer.ceil, count_include_pad=count)


def _activation(layer: Activation) -> str:
    return {
        "relu": "nn.ReLU()",
        "elu": f"nn.ELU({layer.slope!r})",
        "leaky": f"nn.LeakyReLU({layer.slope!r})",
        "tanh": "nn.Tanh()",
        "sigmoid": "nn.Sigmoid()",
    }[layer.kind]


def _module(name: str, *words: object, **more: object) -> str:
    """A call of torch's `name`; keywords with torch's own value are left out."""
    named = [f"{key}={value!r}" for key, value in more.items() if key not in USUAL or value != USUAL[key]]
    return f"nn.{name}({', '.join([*map(str, words), *named])})"


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
    if not name.isidentifier() or keyword.iskeyword(name):
        raise _unfit(name)
    return name


def _unfit(name: str) -> BadRecipe:
    return BadRecipe("this format cannot name a layer so", where="--format pytorch", found=repr(name))
