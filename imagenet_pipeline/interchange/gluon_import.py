"""Files of Gluon's `save_parameters`: arrays named by their place among blocks, without the graph.

    features.0.weight  features.4.0.body.0.weight  features.4.0.body.1.running_mean  output.bias

They become a network's values layer by layer. Blocks stand in the file in the order they were made in: that of
computation, but for shortcuts, whose blocks come last or first. Python before 3.7 wrote them in any order; then the
numbers in their names tell it. Kinds and shapes of all layers have to agree.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import pair
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange.frozen import Imported, in_float32
from imagenet_pipeline.interchange.npz import is_npz, read_npz
from imagenet_pipeline.interchange.params import AnyArray, read_params
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import BatchNorm, Conv, Residual, Sequential, joined, parts, walk, without_taps
from imagenet_pipeline.networks.shapes import Parameter, Role, Shape, parameters

Values = dict[str, npt.NDArray[np.float32]]
Arrays = Mapping[str, AnyArray]

ROLES: dict[str, Role] = {
    "weight": "weight", "bias": "bias", "gamma": "scale", "beta": "shift", "running_mean": "mean",
    "running_var": "variance", "moving_mean": "mean", "moving_var": "variance", "alpha": "slope",
}  # fmt: skip
_NAME = re.compile(rf"(?:(?P<layer>.+)[._])?(?P<ending>{'|'.join(ROLES)})")
_NORM: tuple[Role, ...] = ("scale", "shift", "mean", "variance")
_AUXILIARY = re.compile(r"aux\w*\.")
CHANNELS = 3
_TWINS = {
    "alexnet": "alexnet_one_tower", "inceptionv3": "inception_v3", "googlenet": "googlenet_bn",
    **{f"squeezenet1.{number}": f"squeezenet1_{number}" for number in (0, 1)},
    **{f"resnet{depth}_{form}": f"resnet{depth}" for depth in (18, 34) for form in ("v1", "v1b")},
    **{f"resnet{depth}_v1b": f"resnet{depth}" for depth in (50, 101, 152)},
    **{f"resnet{depth}_v1d": f"resnet{depth}_d" for depth in (50, 101, 152)},
}  # fmt: skip
"""Networks of MXNet's and GluonCV's zoos that compute what one of ours does under another name; those of our names do,
too, but for alexnet and googlenet."""
_MOBILE = "mobilenet"
"""Networks that MXNet's own zoo has besides those. GluonCV's of these names are others."""


@dataclass(frozen=True)
class _Layer:
    """The arrays of a layer, name and shape by role; in a network the mean that can swallow a bias it does without."""

    arrays: dict[Role, tuple[str, Shape]]
    mean: str | None = None


Layers = list[_Layer]
Offer = Callable[[int], list[Layers]]
"""The layers of a network with so many classes, in every order in which Gluon may have made their blocks."""


@dataclass(frozen=True)
class _Pairing:
    """The file's name for each of ours, and for a mean of ours the bias it has to swallow."""

    classes: int
    names: dict[str, str]
    folded: dict[str, str]


class Unfit(Exception):
    """The arrays are not those of the network: the first difference, and how many layers agree before it."""

    def __init__(self, words: str, agreed: int) -> None:
        super().__init__(words)
        self.agreed = agreed


def import_gluon(path: Path, network: str | None, input_size: int | None = None) -> Imported:
    """Read a file of parameters as `network`: ours, of MXNet's own zoo, or gluoncv:NAME.

    Raises BadInput where they do not fit, naming the first difference, and without a `network`, naming those of ours
    that fit. Raises BadRecipe for an unknown network or a size it cannot have.
    """
    arrays = read_arrays(path)
    if network is None:
        raise _unnamed(path, arrays, input_size)
    library, _, name = network.rpartition(":")
    if library not in ("", "gluoncv"):
        raise BadRecipe("Gluon knows no such network", where=f"--network {network}", expected="NAME or gluoncv:NAME")
    names = [_TWINS.get(name, name)] if library else [name, _TWINS.get(name, name)]
    known = list(dict.fromkeys(word for word in names if word in catalog.names()))
    if not known and library:
        return _import_zoo(path, arrays, network, input_size)
    if not known and name.startswith(_MOBILE):
        return _import_own(path, arrays, name, input_size)
    faults, trunk = [], _trunk(arrays)
    for word in known or [_listed(name)]:
        try:
            return _imported(path, arrays, trunk, word, input_size)
        except Unfit as error:
            faults.append(error)
    raise _unlike(path, network, max(faults, key=lambda fault: fault.agreed))


def read_arrays(path: Path) -> dict[str, AnyArray]:
    """The arrays of a .params file, or of MXNet 2's .npz, without `arg:` and `aux:`. Raises BadInput."""
    arrays = read_npz(path) if is_npz(path) else read_params(path)
    bare = {name.removeprefix("arg:").removeprefix("aux:"): array for name, array in arrays.items()}
    if len(bare) < len(arrays):
        raise BadInput("two arrays have the same name, as arg: and as aux:", where=path)
    return bare


def has_gluon_names(names: Collection[str]) -> bool:
    """True for the names that Gluon's `save_parameters` gives: blocks by attribute or number, scales called gamma."""
    if any(name.startswith(("arg:", "aux:")) for name in names):
        return False
    is_of_the_zoo = all(name.startswith(("features.", "output.")) for name in names)
    return bool(names) and (is_of_the_zoo or any(name.endswith((".gamma", "_gamma")) for name in names))


def structural_values(
    network: Sequential, image: Shape, arrays: Arrays, where: object, free: Collection[str] = ()
) -> Values:
    """The values of a network, without its taps, out of arrays that Gluon named. Shapes of `free` names may differ.

    Raises Unfit where they are not this network's, BadInput where they fit in several ways or are not finite.
    """
    offer = [_layers_of(without_taps(network), image, body_first) for body_first in (True, False)]
    pairing = _paired(_trunk(arrays), lambda _: offer, "the network", where, free)
    return _values(parameters(without_taps(network), image), arrays, pairing, where)


def _imported(path: Path, arrays: Arrays, trunk: Arrays, name: str, input_size: int | None) -> Imported:
    entry = catalog.entry(name)
    size = input_size or entry.input_size
    image = (CHANNELS, *pair(size))

    def offer(classes: int) -> list[Layers]:
        network = without_taps(entry.build(classes))
        return [_layers_of(network, image, body_first) for body_first in (True, False)]

    pairing = _paired(trunk, offer, name, path)
    declared = parameters(without_taps(entry.build(pairing.classes)), image)
    unused = tuple(other for other in arrays if other not in trunk)
    return Imported(name, pairing.classes, size, _values(declared, arrays, pairing, path), None, unused=unused)


def _import_zoo(path: Path, arrays: Arrays, name: str, input_size: int | None) -> Imported:
    """As a network of GluonCV's that is none of ours: its layers, or where its graph is refused, the zoo's own."""
    from imagenet_pipeline.engines.zoos import zoo_network

    size = input_size or catalog.INPUT_SIZE

    def offer(classes: int) -> list[Layers]:
        return [_grouped(zoo_network(name, classes).shapes((CHANNELS, size, size)))]

    try:
        pairing = _paired(arrays, offer, name, path)
    except Unfit as error:
        raise _unlike(path, name, error) from None
    values = {ours: _usable(arrays[theirs], theirs, path) for ours, theirs in pairing.names.items()}
    try:
        return _as_graph(path, name, pairing.classes, values, input_size)
    except (BadInput, BadRecipe) as error:
        reason = f"{name} as GluonCV has it, on the gluon engine alone: its graph could not become layers ({error})"
    assumed = (
        () if input_size else (f"input of {size} pixels assumed: the file does not say it (--input gives another)",)
    )
    return Imported(name, pairing.classes, size, values, None, notes=(reason, *assumed))


def _as_graph(path: Path, name: str, classes: int, values: Values, input_size: int | None) -> Imported:
    """As the layers of the graph that GluonCV makes of its network `name`, or as the network of ours that it is."""
    from imagenet_pipeline.engines.zoos import zoo_symbol
    from imagenet_pipeline.interchange.mxnet_import import import_graph
    from imagenet_pipeline.interchange.symbol import symbol_of_json

    size = input_size or catalog.INPUT_SIZE
    text, names = zoo_symbol(name, classes, (CHANNELS, size, size))
    params: dict[str, AnyArray] = {names[ours].partition(":")[2]: array for ours, array in values.items()}
    found = import_graph(symbol_of_json(text.encode(), path), params, path, input_size)
    return found if found.layers is None else replace(found, network=name.partition(":")[2])


def _import_own(path: Path, arrays: Arrays, name: str, input_size: int | None) -> Imported:
    """As a network of MXNet's own zoo that is none of ours: MXNet makes its graph, which is read like any other."""
    from imagenet_pipeline.engines.zoos import own_symbol
    from imagenet_pipeline.interchange.mxnet_import import import_graph
    from imagenet_pipeline.interchange.symbol import symbol_of_json

    layers = next(iter(_orders(arrays)))[1]
    try:
        text, names = own_symbol(name, max(_classes(layers), 1))
    except BadRecipe as error:
        raise _at_gluoncv(name, error) from None
    odd = next((word for word in arrays if word not in names), None)
    if odd is not None or len(arrays) < len(set(names.values())):
        found = f"{len(arrays)} arrays" if odd is None else f"your {odd} {arrays[odd].shape}, which it does not have"
        raise BadInput(f"not the parameters of {name}", where=path, found=found)
    symbol = symbol_of_json(text.encode(), path)
    params = {names[word]: array for word, array in arrays.items()}
    return replace(import_graph(symbol, params, path, input_size), network=name)


def _listed(name: str) -> str:
    """The name in our catalogue. Raises BadRecipe where there is none, which may offer GluonCV's."""
    try:
        return catalog.entry(name).name
    except BadRecipe as error:
        raise _at_gluoncv(name, error) from None


def _at_gluoncv(name: str, error: BadRecipe) -> BadRecipe:
    """The error for an unknown network, with GluonCV's of this name as advice where it is installed and has one."""
    from imagenet_pipeline.engines.zoos import zoo_names

    try:
        known = f"gluoncv:{name.lower()}" in zoo_names("gluoncv")
    except BadRecipe:
        return error
    advice = f"did you mean gluoncv:{name.lower()}?"
    return BadRecipe(error.what, where=error.where, found=error.found, advice=advice) if known else error


def _unlike(path: Path, network: str, fault: Unfit) -> BadInput:
    return BadInput(f"not the parameters of {network}", where=path, found=str(fault))


def _unnamed(path: Path, arrays: Arrays, input_size: int | None) -> BadInput:
    """The error that asks for a name: other networks with the very same parameters compute something else."""
    fitting, faults, trunk = [], [], _trunk(arrays)
    for name in catalog.names():
        try:
            _imported(path, arrays, trunk, name, input_size)
            fitting.append(name)
        except Unfit as error:
            faults.append((error, name))
        except BadRecipe:
            continue
    what = "the file does not say which network it is of"
    if fitting:
        found = f"only {fitting[0]} fits" if len(fitting) == 1 else f"{', '.join(fitting)} fit"
        return BadInput(what, where=path, found=found, advice=f"say --network {' or '.join(fitting)}")
    fault, nearest = max(faults, key=lambda pair: pair[0].agreed)
    found = f"none of ours fits; the nearest is {nearest}: {fault}"
    return BadInput(what, where=path, found=found, advice="say --network NAME, or --network gluoncv:NAME")


def _trunk(arrays: Arrays) -> Arrays:
    """The arrays without those of auxiliary classifiers, as GluonCV names them, and of layers that stand there twice.

    A block that is also an attribute of another is saved under both names.
    """
    trunk: dict[str, AnyArray] = {}
    twice: list[str] = []
    seen: set[bytes] = set()
    for name, array in arrays.items():
        layer, _, ending = name.rpartition(".")
        if ending == "weight" and array.ndim > 1 and np.ptp(array):
            key = hashlib.sha256(array.tobytes()).digest() + str(array.shape).encode()
            twice += [f"{layer}."] * (key in seen)
            seen.add(key)
        if not _AUXILIARY.match(name):
            trunk[name] = array
    return {name: array for name, array in trunk.items() if not name.startswith(tuple(twice))}


def _layers_of(network: Sequential, image: Shape, body_first: bool) -> Layers:
    """The layers that have parameters, a shortcut's behind or before its body's."""
    declared = parameters(network, image)
    means = _following_means(network)
    paths = dict.fromkeys(name.rpartition(".")[0] for name in declared)
    if not body_first:
        paths = {path: None for path, _ in walk(network) if path in paths}
    layers: dict[str, _Layer] = {path: _Layer({}, means.get(path)) for path in paths}
    for name, parameter in declared.items():
        layers[name.rpartition(".")[0]].arrays[parameter.role] = (name, parameter.shape)
    return list(layers.values())


def _following_means(network: Sequential) -> dict[str, str]:
    """The mean of the normalisation directly behind each convolution that has one, by the convolution's path."""
    means = {}
    for path, group in [("", network), *walk(network)]:
        items = parts(group)
        for (name, layer), (following, norm) in pairwise(items):
            if isinstance(group, Sequential | Residual) and isinstance(layer, Conv) and isinstance(norm, BatchNorm):
                means[joined(path, name)] = f"{joined(path, following)}.running_mean"
    return means


def _grouped(shapes: Mapping[str, Shape]) -> Layers:
    """Arrays by the layers they belong to, in the order of each layer's first. Raises Unfit for a name without role."""
    layers: dict[str, _Layer] = {}
    for name, shape in shapes.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise Unfit(f"your {name[:80]!r} ends in no role that Gluon has: {', '.join(ROLES)}", 0)
        layer = layers.setdefault(found["layer"] or "", _Layer({}))
        layer.arrays[ROLES[found["ending"]]] = (name, shape)
    return list(layers.values())


def _orders(arrays: Arrays) -> Iterator[list[Layers]]:
    """The layers of a file in the orders that it may mean: the likely ones, then those by their names alone."""
    layers = _grouped({name: array.shape for name, array in arrays.items()})
    stems: dict[str, int] = {}

    def words(layer: _Layer) -> list[tuple[str, int]]:
        name, _ = next(iter(layer.arrays.values()))
        pieces = re.findall(r"([^0-9._]*)(\d*)", name)
        return [(stem, int(digits or -1)) for stem, digits in pieces if stem or digits]

    for layer in layers:
        for stem, _ in words(layer):
            stems.setdefault(stem, len(stems))
    yield [layers, sorted(layers, key=lambda layer: [(stems[stem], number) for stem, number in words(layer)])]
    by_name = [sorted(layers, key=words)]
    # "conv1" before "bn1": by number first, and what has none, "downsample", behind.
    far = 10**9
    for sign in (1, -1):
        by_name.append(sorted(layers, key=lambda layer: [
            (far if number < 0 else number, [sign * ord(letter) for letter in stem]) for stem, number in words(layer)
        ]))  # fmt: skip
    yield by_name


def _paired(arrays: Arrays, offer: Offer, title: str, where: object, free: Collection[str] = ()) -> _Pairing:
    """Pair a file's layers with those of a network. Raises Unfit, and BadInput where several ways fit."""
    fault = Unfit(f"no arrays, where {title} has some", -1)
    offered: dict[int, list[Layers]] = {}
    for orders in _orders(arrays):
        fits: list[_Pairing] = []
        for layers in orders:
            classes = _classes(layers)
            if classes and classes not in offered:
                offered[classes] = offer(classes)
            for wanted in offered.get(classes, []):
                try:
                    pairing = _aligned(layers, wanted, classes, title, free)
                except Unfit as error:
                    fault = max(fault, error, key=lambda fault: fault.agreed)
                    continue
                if pairing not in fits:
                    fits.append(pairing)
        if len(fits) > 1:
            first, second = fits[:2]
            ours = next(name for name, theirs in first.names.items() if second.names[name] != theirs)
            found = f"{first.names[ours]} or {second.names[ours]} for {title}'s {ours}"
            raise BadInput(
                "the file fits in several ways", where=where, found=found, advice="import it with its symbol"
            )
        if fits:
            return fits[0]
    raise fault


def _classes(layers: Layers) -> int:
    """The outputs of the last layer with weights; 0 where there is none."""
    weights = [layer.arrays["weight"][1] for layer in layers if "weight" in layer.arrays]
    return next((shape[0] for shape in reversed(weights) if shape), 0)


def _aligned(theirs: Layers, ours: Layers, classes: int, title: str, free: Collection[str]) -> _Pairing:
    pairing = _Pairing(classes, {}, {})
    for index, (layer, wanted) in enumerate(zip_longest(theirs, ours)):
        if layer is None or wanted is None:
            raise Unfit(_difference(layer, wanted, title), index)
        have, need = dict(layer.arrays), wanted.arrays
        if wanted.mean and "bias" in have and "bias" not in need:
            pairing.folded[wanted.mean] = have.pop("bias")[0]
        missing = [role for role in need if role not in have]
        if set(have) - set(need) or (missing and not ("mean" in have and set(missing) <= {"scale", "shift"})):
            raise Unfit(_difference(layer, wanted, title), index)
        for role, (name, shape) in have.items():
            single = role == "slope" and shape == (1,)  # the same for all channels
            if shape != need[role][1] and need[role][0] not in free and not single:
                raise Unfit(_difference(layer, wanted, title, role), index)
            pairing.names[need[role][0]] = name
    return pairing


def _difference(theirs: _Layer | None, ours: _Layer | None, title: str, role: Role | None = None) -> str:
    def words(layer: _Layer | None, owner: str) -> str:
        if layer is None:
            return f"{owner} nothing"
        shown = [layer.arrays[role]] if role else list(layer.arrays.values())
        return f"{owner} " + ", ".join(f"{name} {shape}" for name, shape in shown)

    possessive = f"{title}'s"
    return f"{words(theirs, 'your')}; {words(ours, possessive)}"


def _values(declared: Mapping[str, Parameter], arrays: Arrays, pairing: _Pairing, where: object) -> Values:
    values = {}
    for name, parameter in declared.items():
        theirs = pairing.names.get(name)
        if theirs is None:
            # A normalisation that Gluon gave no scale or no shift.
            values[name] = np.full(parameter.shape, parameter.role == "scale", np.float32)
            continue
        array = _usable(arrays[theirs], theirs, where)
        if parameter.role == "slope":
            array = np.broadcast_to(array, parameter.shape)
        if name in pairing.folded:
            array = in_float32(theirs, array - _usable(arrays[pairing.folded[name]], pairing.folded[name], where))
        if parameter.role == "scale" and not parameter.trainable and (array != 1).any():
            what, expected = "scales a normalisation that has no scale", f"1, as {name} is"
            raise BadInput(what, where=f"{where}: {theirs!r}", expected=expected)
        values[name] = np.ascontiguousarray(array)
    return values


def _usable(array: AnyArray, name: str, where: object) -> npt.NDArray[np.float32]:
    if array.dtype.kind != "f":
        raise BadInput("the array holds no floating-point numbers", where=f"{where}: {name!r}", found=array.dtype)
    return in_float32(f"{name} of {where}", array)
