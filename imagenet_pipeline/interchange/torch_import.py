"""torchvision's and timm's weights as the values of a network of ours, and what those weights were fed with.

The names and shapes in a file tell which network it is (`torch_names`). Mean, std and crop are stated by timm's
config.json beside it, by the list of public weights where the file is one of them, or are its zoo's usual ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.config import Size, pair
from imagenet_pipeline.engines import Array, check_fits
from imagenet_pipeline.errors import BadInput, BadRecipe, did_you_mean, first_few
from imagenet_pipeline.interchange.export import require_input_size
from imagenet_pipeline.interchange.frozen import Imported, Normalisation, in_float32
from imagenet_pipeline.interchange.graph import require_usable
from imagenet_pipeline.interchange.params import LIST_MAGIC
from imagenet_pipeline.interchange.public_weights import weights_of_digest
from imagenet_pipeline.interchange.torch_names import NAMINGS, in_our_shape, spelled_today, their_names
from imagenet_pipeline.interchange.weights import read_weights
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.shapes import Shape, describe
from imagenet_pipeline.records.class_names import read_user_json

CHANNELS = 3
CONFIG = "config.json"


@dataclass(frozen=True)
class _Names:
    """The names of a network's parameters, by theirs."""

    network: str
    ours: dict[str, str]
    auxiliary: frozenset[str]
    """Their parameters of auxiliary classifiers."""
    head: str
    """The weight of the classifier, whose rows are the classes."""

    def is_of_head(self, name: str) -> bool:
        return name.rpartition(".")[0] == self.head.rpartition(".")[0]


@dataclass(frozen=True)
class Statement:
    """The mean, std and crop that a network's weights were trained with, and the source that says so."""

    normalisation: Normalisation
    crop_fraction: float
    origin: str


def import_torch(path: Path, network: str | None = None, input_size: int | None = None) -> Imported:
    """Read a file of torchvision's or timm's as `network`, or as whichever network of ours its names are those of.

    Auxiliary classifiers come along where the file has them. `input_size` is the side of the image in pixels, by
    default that of the network. Raises BadInput for a damaged file, and where the names or shapes are those of no
    network of ours: then it says where the nearest differs. Raises BadRecipe for a `network` of which neither has
    weights, or that cannot take `input_size`.
    """
    _require_no_params(path)
    arrays = read_weights(path)
    names = _recognised(path, arrays) if network is None else _forced(path, arrays, network)
    entry = catalog.entry(names.network)
    classes = _classes(path, arrays, names)
    size = input_size or entry.input_size
    built = entry.build(classes)
    require_input_size(names.network, built, size, entry.input_size)
    found = _renamed(names, arrays)
    declared = _shapes(names.network, classes, size, with_auxiliary=names.auxiliary <= _today(names.network, arrays))
    check_fits(declared, found, f"weights of {path}, named like {NAMINGS[names.network].zoo}'s {names.network},")
    stated = stated_with(path, names.network)
    return Imported(
        names.network,
        classes,
        size,
        {name: in_float32(name, found[name]) for name in declared},
        stated.normalisation,
        normalisation_from=stated.origin,
        crop_fraction=stated.crop_fraction,
    )


def _require_no_params(path: Path) -> None:
    with files.regular_file(path) as (stream, _):
        start = stream.read(8)
    if start == LIST_MAGIC.to_bytes(8, "little"):
        what, advice = "the file holds MXNet parameters", "--params FILE, with --symbol FILE or --network NAME"
        raise BadInput(what, where=path, expected="weights of torchvision or timm", advice=advice)


def stated_with(path: Path, network: str) -> Statement:
    """Mean, std and crop of a zoo's weights, by the first of three sources that says them."""
    config = _config_beside(path, network)
    if config is not None:
        return config
    naming = NAMINGS[network]
    public = weights_of_digest(files.sha256_of(path))
    if public is not None and public.network == network:
        return Statement(naming.normalisation, public.crop_fraction, f"{public.source}: {public.file_name}")
    return Statement(naming.normalisation, naming.crop_fraction, f"{naming.zoo}, as is usual for its {network}")


def in_our_names(
    path: Path, arrays: Mapping[str, Array], network: str, ours: Collection[str]
) -> dict[str, Array] | None:
    """The arrays by our names, `ours`, where they are named as `network` is in its zoo; None where they are not.

    The head may be missing. Raises BadInput where the names are those of another network of ours.
    """
    if any(name in ours for name in arrays):
        return None
    if network in NAMINGS:
        names = _names(network)
        today = _today(network, arrays)
        missing = names.ours.keys() - today - names.auxiliary
        if today <= names.ours.keys() and all(names.is_of_head(name) for name in missing):
            return _renamed(names, arrays)
    other = _matching(arrays)
    if other is not None:
        what = f"the weights are those of {NAMINGS[other.network].zoo}'s {other.network}"
        advice = f"take network={other.network}"
        raise BadInput(what, where=path, expected=network, advice=advice)
    return None


@cache
def _names(network: str) -> _Names:
    entry = catalog.entry(network)
    reports = describe(entry.build(2), (CHANNELS, *pair(entry.input_size)))
    here = [parameter.name for report in reports for parameter in report.parameters]
    theirs = their_names(network, here)
    auxiliary = [theirs[parameter.name] for report in reports if report.auxiliary for parameter in report.parameters]
    head = next(theirs[name] for name in reversed(here) if name.endswith("classifier.weight"))
    return _Names(network, {theirs[name]: name for name in here}, frozenset(auxiliary), head)


def _today(network: str, names: Iterable[str]) -> frozenset[str]:
    return frozenset(spelled_today(network, names).values())


def _are(names: _Names, arrays: Mapping[str, Array]) -> bool:
    """True where the arrays have these names, those of auxiliary classifiers all or none."""
    found = _today(names.network, arrays)
    return found in (names.ours.keys(), names.ours.keys() - names.auxiliary)


def _matching(arrays: Mapping[str, Array]) -> _Names | None:
    """The network whose names these are, and of several (ResNets and their kin) the one whose shapes they have, too."""
    found = [names for names in map(_names, NAMINGS) if _are(names, arrays)]
    fitting = (names for names in found if len(found) == 1 or _have_shapes(names, arrays))
    return next(fitting, found[0] if found else None)


def _have_shapes(names: _Names, arrays: Mapping[str, Array]) -> bool:
    """True where the arrays before the head have the shapes that this network's have."""
    entry = catalog.entry(names.network)
    declared = _shapes(names.network, 2, entry.input_size, with_auxiliary=True)
    found = _renamed(names, arrays)
    return all(array.shape == declared[name] for name, array in found.items() if "classifier" not in name)


def _recognised(path: Path, arrays: Mapping[str, Array]) -> _Names:
    """The network whose names these are. Raises BadInput with the nearest where they are those of none."""
    known = [_names(network) for network in NAMINGS]
    found = _matching(arrays)
    if found is not None:
        return found
    nearest = min(known, key=lambda names: len(names.ours.keys() ^ _today(names.network, arrays)))
    raise _unlike(path, arrays, nearest, "named like no network of torchvision's or timm's that is known here")


def _forced(path: Path, arrays: Mapping[str, Array], network: str) -> _Names:
    catalog.entry(network)
    if network not in NAMINGS:
        advice = did_you_mean(network, NAMINGS, f"those known are {', '.join(NAMINGS)}")
        raise BadRecipe(f"neither torchvision nor timm has weights of {network}", where="--network", advice=advice)
    names = _names(network)
    if not _are(names, arrays):
        raise _unlike(path, arrays, names, f"not named like {NAMINGS[network].zoo}'s {network}")
    return names


def _unlike(path: Path, arrays: Mapping[str, Array], names: _Names, what: str) -> BadInput:
    """The error for names that are not those of a network; where most are, with those that only one of the two has."""
    today = _today(names.network, arrays)
    missing = [name for name in names.ours if name not in today and name not in names.auxiliary]
    foreign = [name for name in arrays if name not in names.ours]
    if 2 * len(today & names.ours.keys()) < len(names.ours):
        return BadInput(what, where=path, found=first_few(foreign))
    expected = f"{first_few(missing)} too, as {names.network} has" if missing else f"the names of {names.network} alone"
    return BadInput(what, where=path, expected=expected, found=first_few(foreign) if foreign else None)


def _classes(path: Path, arrays: Mapping[str, Array], names: _Names) -> int:
    head = arrays[names.head]
    if head.ndim < 2 or not head.shape[0]:
        raise BadInput("the classifier has no classes", where=f"{path}: {names.head!r}", found=head.shape)
    return head.shape[0]


def _shapes(network: str, classes: int, size: Size, with_auxiliary: bool) -> dict[str, Shape]:
    reports = describe(catalog.entry(network).build(classes), (CHANNELS, *pair(size)))
    wanted = [report for report in reports if with_auxiliary or not report.auxiliary]
    return {parameter.name: parameter.shape for report in wanted for parameter in report.parameters}


def _renamed(names: _Names, arrays: Mapping[str, Array]) -> dict[str, Array]:
    today = spelled_today(names.network, arrays)
    return {
        names.ours.get(today[name], name): in_our_shape(names.network, name, array) for name, array in arrays.items()
    }


def _config_beside(path: Path, network: str) -> Statement | None:
    """Mean, std and crop by timm's config.json in the same folder, where it is of this network."""
    config = path.with_name(CONFIG)
    content = read_user_json(config) if config.is_file() else None
    if not isinstance(content, dict) or content.get("architecture") not in (network, network.replace("_d", "d")):
        return None
    fed = content.get("pretrained_cfg")
    if not isinstance(fed, dict):
        return None
    mean, std = (tuple(255 * number for number in _three(fed.get(key), config)) for key in ("mean", "std"))
    share = fed.get("crop_pct", 0.875)
    if type(share) not in (int, float) or not 0 < share <= 1:
        raise BadInput("states no share to crop", where=config, expected="crop_pct above 0, up to 1", found=share)
    return Statement(require_usable(mean, std, config), float(share), str(config))


def _three(numbers: Any, config: Path) -> list[float]:
    if (
        not isinstance(numbers, list)
        or len(numbers) != 3
        or not all(type(number) in (int, float) for number in numbers)
    ):
        raise BadInput("states no mean and std", where=config, expected="three numbers each", found=repr(numbers)[:80])
    return [float(number) for number in numbers]
