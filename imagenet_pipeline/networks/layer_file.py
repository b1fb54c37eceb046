"""A network as a file: its layers in our vocabulary, for what stands in no catalogue.

    {"format": "imagenet-pipeline network", "version": 1, "name": "mine", "input_size": 224, "layers": [
      {"name": "conv1", "layer": "Conv", "channels": 64, "kernel": 7, "stride": 2, "pad": 3},
      {"name": "unit1", "layer": "Residual", "body": [...], "shortcut": [...]},
      {"name": "block1", "layer": "Graph", "items": [{"name": "a", "layer": "Conv", ..., "inputs": [""]}, ...]}]}

A layer is an object: its name, its class in `layers.py`, and that class's fields, those left out with their defaults;
an array stands for a tuple, and for the layers in a group. An input that is no square has [height, width] for
`input_size`, a grey one "channels": 1. The items of a Graph say what they read as `inputs`.

The same in TOML, for people to write, where only `layers` must be there, or in a recipe as the table `network`:

    input_size = 32
    layers = [{layer = "Conv", channels = 32, kernel = 5}, "relu", "Flatten", {layer = "Dense"}]

A layer's name may be left out, it is then conv1, relu1, ...; a layer without fields is a word, and so is an Activation;
the Dense that gives the scores needs no units. `base`, a network of the catalogue, `until` one of its layers, comes
before the layers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from imagenet_pipeline import files
from imagenet_pipeline.config import as_size
from imagenet_pipeline.errors import BadInput, BadRecipe, did_you_mean
from imagenet_pipeline.networks.head import score_shapes, with_classes
from imagenet_pipeline.networks.layers import (
    INPUTS,
    SHORTCUT,
    Activation,
    Concat,
    Dense,
    Graph,
    Layer,
    Residual,
    Sequential,
    Size,
    Tap,
    joined,
    pair,
    walk,
)
from imagenet_pipeline.networks.shapes import Shape, describe, output_shape

FORMAT, VERSION = "imagenet-pipeline network", 1
KEYS = ("format", "version", "name", "input_size", "layers")
ALL_KEYS = (*KEYS, "channels")
TABLE_KEYS = ("layers", "name", "input_size", "channels", "summary", "base", "until", "format", "version")
INPUT_SIZE, CLASSES_UNTIL_KNOWN = 224, 1000
CHANNELS = 3
LARGEST_BYTES = 2**23
MOST_LAYERS, MOST_LEVELS = 10_000, 30
LONGEST_NAME, LONGEST_PATH = 200, 240
LARGEST_INPUT, LARGEST_NUMBER = 4096, 2**31 - 1
MOST_PARAMETERS = 2**31 - 1
"""Numbers in all parameters: 8 GiB."""
CLASSES: dict[str, type[Layer]] = {kind.__name__: kind for kind in get_args(Layer)}
GROUPS: dict[type[Layer], tuple[str, ...]] = {
    Sequential: ("items",), Residual: ("body", "shortcut"), Concat: ("branches",), Graph: ("items",), Tap: ("head",),
}  # fmt: skip
"""Layers made of layers, and which of their fields those are."""
_KINDS = {kind: get_type_hints(kind) for kind in CLASSES.values()}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", Size: "a whole number, or two in an array"}
_LOWEST = {
    **dict.fromkeys(("channels", "kernel", "stride", "groups", "dilation", "units", "scale", "step", "heads"), 1),
    "size": 1,
    **dict.fromkeys(("pad", "extra", "top", "bottom", "left", "right", "epsilon", "momentum", "rate", "drop_rate"), 0),
    "temperature": 1e-30,
}  # fmt: skip
_HIGHEST = {"momentum": 1, "rate": 0.999999, "drop_rate": 0.999999}
_MOST_AXES = 32
_NAMES = {"BatchNorm": "norm", "GlobalAveragePool": "pool", "LocalResponseNorm": "norm"}
_LARGEST_FLOAT = 1e300
Items = tuple[tuple[str, Layer], ...]


@dataclass(frozen=True)
class NetworkFile:
    """A network to write, or read and checked: `name` is for people, `input_size` pixels what it was designed for.

    `summary` says in a line what it is; it is not written. Of RGB images, or with 1 of `channels` of grey.
    """

    name: str
    input_size: Size
    layers: Sequential
    summary: str = ""
    channels: int = CHANNELS

    @property
    def classes(self) -> int:
        """Its number of outputs. Raises BadRecipe where it cannot take an input of its size."""
        return math.prod(output_shape(self.layers, self.input_shape))

    @property
    def input_shape(self) -> Shape:
        """(channels, height, width)."""
        return (self.channels, *pair(self.input_size))

    def build(self, classes: int) -> Sequential:
        """Its layers, the last of them with `classes` outputs (see `with_classes`)."""
        return with_classes(self.layers, self.input_shape, classes, self.name)


def network_text(network: NetworkFile) -> str:
    """The file of a network, a line a layer, defaults left out; equal networks give equal text.

    Raises ValueError for a number that is not finite, which JSON has no word for.
    """
    content = {
        "format": FORMAT, "version": VERSION, "name": network.name,
        "input_size": list(network.input_size) if isinstance(network.input_size, tuple) else network.input_size,
        **({} if network.channels == CHANNELS else {"channels": network.channels}),
        "layers": _entries(network.layers),
    }  # fmt: skip
    return _text(content, "") + "\n"


def _entries(group: Sequential | Concat | Graph) -> list[dict[str, Any]]:
    items = group.branches if isinstance(group, Concat) else group.items
    entries = [_entry(name, layer) for name, layer in items]
    if isinstance(group, Graph):
        for entry, links in zip(entries, group.links, strict=True):
            entry["inputs"] = list(links)
    return entries


def _entry(name: str, layer: Layer) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "layer": type(layer).__name__}
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.name in ("items", "branches"):
            entry[field.name] = _entries(layer)  # type: ignore[arg-type]
        elif isinstance(value, Sequential):
            entry[field.name] = _entries(value)
        elif field.name != "links" and value != field.default:
            entry[field.name] = list(value) if isinstance(value, tuple) else value
    return entry


def _text(value: Any, indent: str) -> str:
    """JSON in which every layer has a line of its own, further in by its depth."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        inner = f"{indent} "
        return "[\n" + ",\n".join(inner + _text(item, inner) for item in value) + f"\n{indent}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_text(item, indent)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_network(path: Path) -> NetworkFile:
    """Read and check a network's file.

    Raises BadInput for a file that is damaged or larger than LARGEST_BYTES, naming the layer, the field and what was
    expected; and where the layers do not fit together for its input, or do not end in a vector of scores.
    """
    if path.suffix == ".toml":
        return network_of_table(_toml(path), path, path.stem)
    content = _json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        expected = f'"format": "{FORMAT}"'
        raise BadInput("not the file of a network", where=path, expected=expected, found=_short(found))
    if content.get("version") != VERSION or type(content["version"]) is not int:
        what, advice = "the file is of another version", "a newer imagenet-pipeline may read it"
        raise BadInput(what, where=path, expected=VERSION, found=_short(content.get("version")), advice=advice)
    reader = _Reader(path)
    reader.require_keys(content, ALL_KEYS, KEYS, "")
    return _read(reader, content, ())


def network_of_table(content: dict[str, Any], where: Path | str, name: str) -> NetworkFile:
    """Read and check a network as people write it, called `name` where it does not say. Raises as `read_network`."""
    reader = _Reader(where, by_hand=True)
    reader.require_keys(content, TABLE_KEYS, ("layers",), "")
    content = {"name": name, "input_size": INPUT_SIZE, "format": FORMAT, "version": VERSION} | content
    for key, expected in (("format", FORMAT), ("version", VERSION)):
        if content[key] != expected:
            raise reader.bad("", key, repr(expected), content[key])
    return _read(reader, content, reader.base(content))


def _read(reader: _Reader, content: dict[str, Any], base: Items) -> NetworkFile:
    name, size, summary = content["name"], content["input_size"], content.get("summary", "")
    for key, text in (("name", name), ("summary", summary)):
        if not isinstance(text, str) or not text.isprintable() or not (key == "name") <= len(text) <= LONGEST_NAME:
            raise reader.bad("", key, f"1 to {LONGEST_NAME} letters that can be printed", text)
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    if not all(type(side) is int and 1 <= side <= LARGEST_INPUT for side in sides):
        raise reader.bad("", "input_size", f"pixels, 1 to {LARGEST_INPUT}", size)
    channels = content.get("channels", CHANNELS)
    if type(channels) is not int or channels not in (1, CHANNELS):
        raise reader.bad("", "channels", "3 of RGB, or 1 of grey", channels)
    items = reader.items(content["layers"], "", "layers", 1, taken=[name for name, _ in base])
    network = NetworkFile(name, as_size(*sides), Sequential((*base, *items)), summary, channels)
    _require_scores(network, reader.where)
    _require_units(network, reader)
    return network


def _require_units(network: NetworkFile, reader: _Reader) -> None:
    """Raise BadInput for a Dense without units that does not give scores."""
    if not reader.without_units:
        return
    try:
        other = dict(walk(network.build(network.classes + 1)))
    except BadRecipe:
        other = dict(walk(network.layers))
    for path, layer in walk(network.layers):
        if path in reader.without_units and other[path] == layer:
            raise reader.bad(path, "units", "a value", "none")


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_content(path).decode())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"cannot be read as TOML ({ascii(str(error))[1:-1][:200]})", where=path) from error


def _content(path: Path) -> bytes:
    with files.regular_file(path) as (stream, size):
        if size > LARGEST_BYTES:
            expected = f"at most {LARGEST_BYTES:,} bytes"
            raise BadInput("too large for the file of a network", where=path, expected=expected, found=f"{size:,}")
        return stream.read(LARGEST_BYTES)


def _json(path: Path) -> Any:
    content = _content(path)
    try:
        return json.loads(content.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"cannot be read as JSON ({ascii(str(error))[1:-1][:200]})", where=path) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object has a key twice")
    return content


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _require_scores(network: NetworkFile, path: Path | str) -> None:
    try:
        reports = describe(network.layers, network.input_shape)
        scores = score_shapes(network.layers, network.input_shape)
    except BadRecipe as error:
        where = path if error.where is None else f"{path}: {error.where}"
        raise BadInput(error.what, where=where, expected=error.expected, found=error.found) from error
    if len(scores) != 1 or len(min(scores)) != 1:
        what = "the network does not end in a vector of scores, a number for each class, or not every tap does"
        raise BadInput(what, where=path, found=", ".join(map(str, sorted(scores))))
    numbers = sum(math.prod(parameter.shape) for report in reports for parameter in report.parameters)
    if numbers > MOST_PARAMETERS:
        expected = f"at most {MOST_PARAMETERS:,}"
        raise BadInput("the network has too many parameters", where=path, expected=expected, found=f"{numbers:,}")


class _Reader:
    """Makes layers of JSON values, each checked against the fields of its class."""

    def __init__(self, where: Path | str, by_hand: bool = False) -> None:
        self.where = where
        self._by_hand = by_hand
        self.without_units: set[str] = set()
        """The paths of those Dense whose units are left out, as those of scores may be."""
        self._layers = 0

    def base(self, content: dict[str, Any]) -> Items:
        """The layers of the network `base` up to the layer `until`; none without them."""
        from imagenet_pipeline.networks import catalog
        from imagenet_pipeline.networks.subnetwork import until

        name, path = content.get("base"), content.get("until")
        if name is None and path is None:
            return ()
        if not isinstance(name, str) or name.partition("?")[0] not in catalog.names():
            advice = did_you_mean(str(name)[:80], catalog.names(), "`imagenet-pipeline networks` lists them")
            raise self.bad("", "base", "a network of the catalogue", name, advice)
        if not isinstance(path, str):
            raise self.bad("", "until", f"a layer of {name}, its last here", path)
        try:
            return until(catalog.build(name, CLASSES_UNTIL_KNOWN), path, name).items
        except BadRecipe as error:
            raise self.bad("", "until", f"a layer of {name}", path, error.advice) from error

    def items(
        self,
        value: Any,
        path: str,
        key: str,
        level: int,
        others: tuple[str, ...] = (),
        taken: Iterable[str] = (),
    ) -> Items:
        """The named layers of a group at `path`, whose field is `key`; `others` are keys they have besides."""
        if not isinstance(value, list):
            raise self.bad(path, key, "an array of layers", value)
        self._layers += len(value)
        if self._layers > MOST_LAYERS or level > MOST_LEVELS:
            raise self.bad(path, key, f"at most {MOST_LAYERS:,} layers, {MOST_LEVELS} deep", f"{self._layers:,} layers")
        items: dict[str, Layer] = {}
        names = {*taken, *(str(entry.get("name")) for entry in value if isinstance(entry, dict))}
        for number, entry in enumerate(value):
            if isinstance(entry, str) and self._by_hand:
                entry = _of_word(entry)
            if not isinstance(entry, dict):
                raise self.bad(path, f"{key}[{number}]", 'an object, as {"name": ..., "layer": ...}', entry)
            name = entry.get("name", _made_name(entry, names) if self._by_hand else "")
            names.add(str(name))
            is_word = isinstance(name, str) and name.isidentifier() and not (key == "body" and name == SHORTCUT)
            if not is_word or name in items or name in taken:
                raise self.bad(path, f"{key}[{number}].name", "a plain word that no layer beside it is called", name)
            if len(joined(path, name)) > LONGEST_PATH:
                raise self.bad(path, f"{key}[{number}].name", f"a path of at most {LONGEST_PATH} letters", name)
            items[name] = self._layer(entry, joined(path, name), level, others)
        return tuple(items.items())

    def _layer(self, entry: dict[str, Any], path: str, level: int, others: tuple[str, ...]) -> Layer:
        kind = entry.get("layer")
        if not isinstance(kind, str) or kind not in CLASSES:
            words = (*CLASSES, *get_args(_KINDS[Activation]["kind"])) if self._by_hand else CLASSES
            advice = did_you_mean(kind[:80], words, "") if isinstance(kind, str) else ""
            raise self.bad(path, "layer", "a layer's class, as Conv", kind, advice or None)
        made = CLASSES[kind]
        if made in INPUTS and not others:
            raise self.bad(path, "layer", "a layer of a single input, as all outside a Graph are", kind)
        fields = {field.name: field for field in dataclasses.fields(made) if field.name != "links"}
        needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
        if made is Dense and "units" not in entry and self._by_hand:
            self.without_units.add(path)
            entry = {**entry, "units": CLASSES_UNTIL_KNOWN}
        self.require_keys(entry, ("name", "layer", *fields, *others), (*needed, *others), path)
        given = {name: self._field(made, name, entry[name], path, level) for name in fields if name in entry}
        if made is Graph:
            items = zip(entry["items"], given["items"], strict=True)
            given["links"] = tuple(self._links(item, joined(path, name)) for item, (name, _) in items)
        try:
            return made(**given)
        except ValueError as error:
            raise BadInput(str(error)[:300], where=f"{self.where}: layer {path}") from error

    def _field(self, made: type[Layer], name: str, value: Any, path: str, level: int) -> Any:
        if name not in GROUPS.get(made, ()):
            return self._value(_KINDS[made][name], name, value, path)
        if value is None and name == SHORTCUT:
            return None
        inner = joined(path, SHORTCUT) if name == SHORTCUT else path
        items = self.items(value, inner, name, level + 1, ("inputs",) if made is Graph else ())
        if not items and made in (Concat, Graph, Tap):
            raise self.bad(path, name, "a layer at least", value)
        return Sequential(items) if name in ("body", SHORTCUT, "head") else items

    def _links(self, entry: dict[str, Any], path: str) -> tuple[str, ...]:
        links = entry["inputs"]
        if not isinstance(links, list) or not all(isinstance(link, str) for link in links):
            raise self.bad(path, "inputs", 'an array of names, "" for what enters the graph', links)
        return tuple(links)

    def _value(self, kind: Any, name: str, value: Any, path: str) -> Any:
        """The value of a field of a single layer, of the type that its class declares."""
        if get_origin(kind) is Literal:
            if value not in get_args(kind) or not isinstance(value, str):
                near = did_you_mean(value[:80], get_args(kind), "") if isinstance(value, str) else ""
                raise self.bad(path, name, " | ".join(get_args(kind)), value, near or None)
            return value
        if kind == tuple[int, ...]:
            if not isinstance(value, list) or len(value) > _MOST_AXES:
                raise self.bad(path, name, f"an array of at most {_MOST_AXES} whole numbers", value)
            return tuple(self._number(int, name, item, path) for item in value)
        if kind == Size and isinstance(value, list) and len(value) == 2:
            return tuple(self._number(int, name, item, path) for item in value)
        if kind == int | None:
            return None if value is None else self._number(int, name, value, path)
        if kind is bool:
            if not isinstance(value, bool):
                raise self.bad(path, name, _WORDS[bool], value)
            return value
        return self._number(float if kind is float else int, name, value, path)

    def _number(self, kind: type, name: str, value: Any, path: str) -> Any:
        low, high = _LOWEST.get(name, -LARGEST_NUMBER), _HIGHEST.get(name, LARGEST_NUMBER)
        if kind is float and name not in _LOWEST:
            low, high = -_LARGEST_FLOAT, _LARGEST_FLOAT
        if type(value) not in (int, kind) or not low <= value <= high:
            limits = f", {low:g} to {high:g}" if name in _LOWEST else ""
            raise self.bad(path, name, _WORDS[kind] + limits, value)
        return kind(value)

    def require_keys(self, entry: dict[str, Any], known: tuple[str, ...], needed: tuple[str, ...], path: str) -> None:
        """Raise BadInput for a key that is not known, and for one that is missing."""
        for key in entry:
            if key not in known:
                raise self.bad(path, key, ", ".join(known), "an unknown key", did_you_mean(key[:80], known, "") or None)
        for key in needed:
            if key not in entry:
                raise self.bad(path, key, "a value", "none")

    def bad(self, path: str, key: str, expected: str, found: object, advice: str | None = None) -> BadInput:
        """The error of a field of the layer at `path`; of the network's own without a path."""
        where = f"{self.where}: layer {path}" if path else self.where
        return BadInput(f"{key[:80]!a} is wrong", where=where, expected=expected, found=_short(found), advice=advice)


def _of_word(word: str) -> dict[str, Any]:
    """The layer that a word stands for: a kind of Activation, or a layer's class."""
    is_kind = word in get_args(_KINDS[Activation]["kind"])
    return {"layer": "Activation", "kind": word} if is_kind else {"layer": word}


def _made_name(entry: dict[str, Any], taken: set[str]) -> str:
    """A name for a layer that has none: relu1, conv2, flatten1, by its kind; "classifier" for a Dense of scores."""
    kind = entry.get("layer")
    if kind == "Dense" and "units" not in entry and "classifier" not in taken:
        return "classifier"
    word = str(entry.get("kind") if kind == "Activation" else _NAMES.get(str(kind), kind)).lower()
    return next(f"{word}{number}" for number in range(1, MOST_LAYERS + 2) if f"{word}{number}" not in taken)


def _short(value: object) -> str:
    if isinstance(value, list | dict):
        return "an array" if isinstance(value, list) else "an object"
    return ascii(value[:80] if isinstance(value, str) else str(value)[:80])
