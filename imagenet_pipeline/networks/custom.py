"""Networks of one's own, by the names that a recipe has for them.

mine.toml, mine.json              a file; or one that is shipped, "networks/mlp_1024.toml"
{"layers": [...]}                 a recipe's table, as JSON
mlp:512,512                       dense layers of so many units, each with its activation, and a classifier
lenet?dropout=0.3&width=2         any of these, or a network of the catalogue, with a recipe's options
lenet?threshold=0.5               any of these with a single output for two classes, as a recipe's loss may ask for
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

from imagenet_pipeline.config import parse_overrides, read_recipe
from imagenet_pipeline.config.recipe import NetworkOptions
from imagenet_pipeline.config.shipped import shipped_networks
from imagenet_pipeline.errors import BadInput, BadRecipe, did_you_mean
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.head import has_two_scores, with_classes, with_two_scores
from imagenet_pipeline.networks.layer_file import (
    LARGEST_NUMBER,
    LONGEST_NAME,
    MOST_LAYERS,
    NetworkFile,
    network_of_table,
    read_network,
)
from imagenet_pipeline.networks.layers import Activation, Dense, Dropout, Flatten, Layer, Sequential, pair

MLP = "mlp:"
MLP_INPUT_SIZE = 28
"""MNIST's."""
CIFAR_SIZE = 32


def custom_network(name: str) -> NetworkFile:
    """The network that a custom `name` stands for, its options made.

    Raises BadInput for a file, and BadRecipe for a name, a table or options, that give no network.
    """
    found = catalog.WITH_OPTIONS.fullmatch(name)
    if catalog.is_file_name(name):
        file = read_network(_found(name))
        return replace(file, summary=file.summary or f"of the file {name}")
    if found is not None and catalog.THRESHOLD in name:
        return _with_single_output(found[1], float(found[2].partition("=")[2]))
    if found is not None:
        return _with_options(found[1], found[2])
    return _of_table(name) if name.startswith("{") else _mlp(name)


def _found(name: str) -> Path:
    """The path of a network's file; where there is none, that of the shipped file of this name."""
    path, shipped = Path(name), shipped_networks()
    short = path.as_posix().removeprefix("config/")
    if os.path.exists(path) or not short.startswith("networks/"):
        return path
    if short not in shipped:
        raise BadRecipe("no such network file", where=name, advice=did_you_mean(short, shipped, "") or None)
    return shipped[short]


def _of_table(text: str) -> NetworkFile:
    try:
        return network_of_table(json.loads(text), "network", "network")
    except BadInput as error:
        raise BadRecipe(
            error.what, where=error.where, expected=error.expected, found=error.found, advice=error.advice
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadRecipe(f"cannot be read as JSON ({error})", where="network") from error


def _mlp(name: str, dropout: bool = False) -> NetworkFile:
    """Dense layers of the widths named, `mlp:784,1024`, each with a ReLU, and Dropout behind it if asked for."""
    words = name.removeprefix(MLP).split(",")
    widths = [int(word) for word in words if re.fullmatch("[0-9]{1,10}", word.strip())]
    if (
        len(widths) < len(words)
        or len(words) > MOST_LAYERS // 4
        or not all(0 < width <= LARGEST_NUMBER for width in widths)
    ):
        expected = "widths of dense layers, as in mlp:512,512"
        raise BadRecipe("not a network of dense layers", where=f"network {name[:80]!r}", expected=expected)
    items: dict[str, Layer] = {"flatten": Flatten()}
    for number, width in enumerate(widths, 1):
        items |= {f"dense{number}": Dense(width), f"relu{number}": Activation("relu")}
        items |= {f"dropout{number}": Dropout(0.5)} if dropout else {}
    layers = Sequential((*items.items(), ("classifier", Dense(1000))))
    return NetworkFile(name[:80], MLP_INPUT_SIZE, layers, summary="dense layers alone")


def _with_options(base: str, text: str) -> NetworkFile:
    from imagenet_pipeline.networks.rewriting import rewritten

    options = _options(base, text)
    if catalog.is_zoo_name(base):
        what = "the layers of a zoo's network are not known here, so that no option can change them"
        raise BadRecipe(what, where="network_options", found=f"network {base}")
    if base.startswith(MLP) and catalog.WITH_OPTIONS.fullmatch(base) is None:
        own = _mlp(base, options.dropout != "own")
        entry = catalog.NetworkEntry(own.name, own.build, own.input_size, own.summary, own.classes, own.channels)
    else:
        entry = catalog.entry(base)
    shape = (entry.channels, *pair(entry.input_size))
    layers = rewritten(entry.build(entry.classes), options, entry.name, shape)
    layers = with_classes(layers, shape, entry.classes, entry.name)
    words = ", ".join(text.split("&")).replace("=", " ")
    size = CIFAR_SIZE if options.stem == "cifar" else entry.input_size
    return NetworkFile(f"{entry.name} ({words})"[:LONGEST_NAME], size, layers, entry.summary, entry.channels)


def _with_single_output(base: str, threshold: float) -> NetworkFile:
    """The network with one output for two classes; one that has it already as it is, since a run's own file has."""
    entry = catalog.entry(base)
    layers = entry.build(2)
    if has_two_scores(layers):
        return NetworkFile(entry.name, entry.input_size, layers, entry.summary, entry.channels)
    name = f"{entry.name} (threshold {threshold:g})"[:LONGEST_NAME]
    layers = with_two_scores(entry.build(1), threshold)
    return NetworkFile(name, entry.input_size, layers, entry.summary, entry.channels)


def _options(base: str, text: str) -> NetworkOptions:
    values = {"network": base, "records": "", "network_options": parse_overrides(text.split("&"))}
    return read_recipe(values, f"network {base[:80]}").network_options
