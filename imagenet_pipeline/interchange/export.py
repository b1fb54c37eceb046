"""Export a trained network: the files of a format, and a card beside them.

The card, `OUT.FORM.json`, says what a program needs to use them: input, normalisation, classes, origin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from imagenet_pipeline import __version__, files
from imagenet_pipeline.config import Size, as_size, pair, shown_size
from imagenet_pipeline.engines import Values
from imagenet_pipeline.engines.zoos import network_of
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, did_you_mean
from imagenet_pipeline.interchange.frozen import Imported, Normalisation, contents
from imagenet_pipeline.interchange.graph import is_usable, require_usable
from imagenet_pipeline.interchange.network_symbol import export_mxnet
from imagenet_pipeline.interchange.onnx_export import export_onnx
from imagenet_pipeline.interchange.torch_export import export_pytorch, export_torch_program, export_torchscript
from imagenet_pipeline.interchange.zoo_export import export_zoo
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Sequential, without_taps
from imagenet_pipeline.networks.shapes import Shape, parameters
from imagenet_pipeline.records.classes import ClassTable, LabelKind

AUTHOR = "imagenet-pipeline"
OUTPUTS: dict[LabelKind, str] = {
    "class": "logits, one a class: scores before the softmax",
    "classes": "a logit a class: scores before the sigmoid, above 0 a yes",
    "number": "the numbers themselves, in the order of the classes",
}
"""Words of a card on the output, by the kind of label."""


@dataclass(frozen=True)
class Format:
    """Files that a network can be written as: their endings, what their input is called there, and what writes them.

    `write(network, values, input_shape, out, normalisation)` gives the paths written; with `takes_notes` it has the
    card's content, as text, for a last argument. A zoo's networks are written by `zoo_export.WRITERS`.
    """

    endings: tuple[str, ...]
    input_name: str | None
    write: Callable[..., list[Path]]
    takes_notes: bool = False


FORMATS = {
    "mxnet": Format(("-symbol.json", "-0000.params"), "data", export_mxnet),
    "onnx": Format((".onnx",), "images", export_onnx, takes_notes=True),
    "pytorch": Format((".safetensors", ".py"), None, export_pytorch),
    "torchscript": Format((".pt",), None, export_torchscript),
    "torch-export": Format((".pt2",), None, export_torch_program),
}


def format_of(name: str) -> Format:
    """The format called `name`. Raises BadRecipe with the nearest names for another."""
    if name not in FORMATS:
        *others, last = FORMATS
        expected, advice = f"{', '.join(others)} or {last}", did_you_mean(name, FORMATS, "")
        raise BadRecipe("unknown format", where="--format", expected=expected, found=name, advice=advice or None)
    return FORMATS[name]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network to export, by name: its values, classes and input. Mean and std are in 0..255, RGB or grey.

    `temperature` is what `calibrate` found its logits to be divided by; the card says it, the network leaves it out.
    """

    network: str
    input_size: Size
    classes: ClassTable
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float
    values: Values
    weights_digest: str
    origin: str
    temperature: float = 1.0

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (len(self.mean), *pair(self.input_size))


@dataclass(frozen=True)
class Exported:
    """The paths written with their SHA-256, and the card: a JSON file beside them, with what it says.

    `replaced`: the network and the run folder whose earlier export stood there, None if none of another run did.
    """

    files: dict[Path, str]
    card: Path
    content: dict[str, Any]
    replaced: tuple[str, str] | None = None


Change = Callable[[list[Path]], dict[str, Any]]
"""Changes the files that a format wrote, in place, and gives what the card is to say of it."""


def export(trained: TrainedNetwork, form: str, out: Path, raw: bool = False, change: Change | None = None) -> Exported:
    """Write `out` with the endings of `form`, and the card `out`.FORM.json: all of them or, where a file fails, none.

    The exported network normalises its input itself, or with `raw` takes it normalised. `change` is applied to the
    files before they are whole, and says more for the card. Raises BadInput where
    another's file stands in the way or float32 cannot normalise so, BadRecipe where `out` is a folder, and as the
    formats' own functions do.
    """
    endings = format_of(form).endings
    out = _without_ending(out, endings)
    card = out.with_name(f"{out.name}.{form}.json")
    _require_replaceable(card, [f"{out.name}{ending}" for ending in endings])
    replaced = _of_another_run(_earlier(card), trained)
    content = _content(trained, form, raw)
    require_usable(trained.mean, trained.std, trained.origin)
    with files.part_folder(out) as part:
        written = _write(trained, form, part / out.name, raw, content)
        content |= change(written) if change else {}
        digests = {path.name: files.sha256_of(path) for path in written}
        content["files"] = digests
        files.write_json(part / card.name, content)
        # The card first: it knows the others for ours, should this end between two of them.
        for path in (part / card.name, *written):
            files.rename(path, out.with_name(path.name))
    return Exported({out.with_name(name): digest for name, digest in digests.items()}, card, content, replaced)


def _write(trained: TrainedNetwork, form: str, out: Path, raw: bool, content: dict[str, Any]) -> list[Path]:
    network = network_of(trained.network, len(trained.classes))
    normalisation = None if raw else (trained.mean, trained.std)
    if network.engine is not None:
        return export_zoo(network, trained.values, trained.input_shape, out, normalisation, form)
    writer = format_of(form)
    written = partial(writer.write, network, trained.values, trained.input_shape, out, normalisation)
    if not writer.takes_notes:
        return written()
    return written({key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()})


def _content(trained: TrainedNetwork, form: str, raw: bool) -> dict[str, Any]:
    return {
        "written_by": f"{AUTHOR} {__version__}",
        "format": form,
        "network": catalog.title(trained.network),
        "origin": trained.origin,
        "weights_digest": trained.weights_digest,
        "input": {
            "name": format_of(form).input_name,
            "shape": ["n", *trained.input_shape],
            "type": "float32",
            "values": contents(len(trained.mean), raw),
        },
        "output": OUTPUTS[trained.classes.label_kind],
        "mean": trained.mean,
        "std": trained.std,
        "crop_fraction": trained.crop_fraction,
        "classes": trained.classes.as_json(),
        **({} if trained.temperature == 1 else {"temperature": trained.temperature}),
    }


def _without_ending(out: Path, endings: tuple[str, ...]) -> Path:
    if out.is_dir():
        raise _no_name(f"--out {out}")
    name = out.name
    for ending in endings:
        name = name.removesuffix(ending)
    if not name:
        raise _no_name(f"--out {out}")
    return out.with_name(name)


def _no_name(where: str) -> BadRecipe:
    return BadRecipe("not a usable name for an export", where=where, expected="FOLDER/NAME, as in exported/resnet18")


def _require_replaceable(card: Path, names: list[str]) -> None:
    """Raise BadInput where a file of these names exists that no earlier export, known by its card, has written."""
    ours: list[str] = []
    if card.exists():
        content = _earlier(card)
        if not str(content.get("written_by")).startswith(AUTHOR):
            raise _in_the_way(card)
        written = content.get("files")
        ours = list(written) if isinstance(written, dict) else []
    for name in names:
        if name not in ours and (card.parent / name).exists():
            raise _in_the_way(card.parent / name)


def _earlier(card: Path) -> dict[str, Any]:
    try:
        content = files.read_json(card)
    except Damaged:
        content = None
    return content if isinstance(content, dict) else {}


def normalisation_beside(file: Path) -> tuple[Normalisation, Path] | None:
    """Mean and std that the card beside a file of an export names, and the card; None where it is not this file's.

    Raises BadInput where the card of this very file names none that a network can compute with.
    """
    found = card_beside(file)
    if found is None:
        return None
    content, card = found
    mean, std = (_of_channels(content.get(key), card) for key in ("mean", "std"))
    return require_usable(mean, std, card), card


def card_beside(file: Path) -> tuple[dict[str, Any], Path] | None:
    """The card beside a file of an export, read, and its path; None where it does not name this very file's digest."""
    for form, written in FORMATS.items():
        for ending in (ending for ending in written.endings if file.name.endswith(ending)):
            card = file.with_name(f"{file.name.removesuffix(ending)}.{form}.json")
            content = _earlier(card)
            digests = content.get("files")
            if isinstance(digests, dict) and digests.get(file.name) == files.sha256_of(file):
                return content, card
    return None


@dataclass(frozen=True)
class Stated:
    """Statements of a card, or of an ONNX file's own notes, on an exported network."""

    network: str
    size: Size
    classes: ClassTable
    normalisation: Normalisation
    crop_fraction: float
    raw: bool = False
    """True where the exported network takes its input normalised."""
    temperature: float = 1.0

    @property
    def channels(self) -> int:
        """Channels of the input: 3, RGB, or 1, grey."""
        return len(self.normalisation[0])

    def added_to(self, imported: Imported) -> Imported:
        """The network with its normalisation, unless its graph has one, crop and classes, unless they are others."""
        if (len(self.classes), self.channels) != (imported.classes, imported.channels):
            return imported
        normalisation = imported.normalisation or self.normalisation
        return replace(
            imported, normalisation=normalisation, crop_fraction=self.crop_fraction, class_table=self.classes
        )


def stated_in(content: Mapping[str, Any]) -> Stated | None:
    """The statements of a card's content; None where our exporter did not write them, or they are no longer whole."""
    if not str(content.get("written_by")).startswith(AUTHOR):
        return None
    try:
        classes = ClassTable.from_json(content["classes"])
        mean, std = (tuple(map(float, content[key])) for key in ("mean", "std"))
        channels, height, width = map(int, content["input"]["shape"][-3:])
        crop_fraction = float(content["crop_fraction"])
        raw = content["input"].get("values") == contents(channels, normalised=True)
        temperature = float(content.get("temperature", 1.0))
    except (KeyError, ValueError, TypeError, IndexError, OverflowError, RecursionError, Damaged, BadInput):
        return None
    usable = channels in (1, 3) and len(mean) == len(std) == channels and is_usable(mean, std)
    if not (usable and 0 < crop_fraction <= 1 and min(height, width) > 0 and 0 < temperature < math.inf):
        return None
    name, size = str(content.get("network", "")), as_size(height, width)
    return Stated(name, size, classes, (mean, std), crop_fraction, raw, temperature)


def _of_channels(numbers: object, card: Path) -> tuple[float, ...]:
    if isinstance(numbers, list) and len(numbers) in (1, 3) and all(type(number) in (int, float) for number in numbers):
        return tuple(map(float, numbers))
    raise BadInput("not the card of an export", where=card, expected="mean and std, three numbers", found=numbers)


def _of_another_run(content: dict[str, Any], trained: TrainedNetwork) -> tuple[str, str] | None:
    origin, network = content.get("origin"), content.get("network")
    if not isinstance(origin, str) or not isinstance(network, str):
        return None
    # A checkpoint lies in RUN/checkpoints.
    earlier, now = Path(origin).parent.parent, Path(trained.origin).parent.parent
    return None if earlier.absolute() == now.absolute() else (network, str(earlier))


def _in_the_way(path: Path) -> BadInput:
    return BadInput(
        "the file exists already, and no finished export wrote it",
        where=path,
        advice="remove it or choose another --out",
    )


def require_input_size(name: str, network: Sequential, size: Size, own: Size, channels: int = 3) -> None:
    """Raise BadRecipe where the network `name`, whose weights are for `own` pixels, cannot take `size` pixels."""
    kept = _shapes(network, own, channels)
    try:
        if _shapes(network, size, channels) == kept:
            return
    except BadRecipe as error:
        if _shapes(network, 2 * max(pair(own)), channels) == kept:
            what = f"the input is too small for {name}"
            raise BadRecipe(what, where=f"--input {size}", expected=error.expected, found=_by(size)) from None
    what = f"the dense layers of {name} fix its input"
    raise BadRecipe(what, where=f"--input {size}", expected=shown_size(own), advice="leave --input out")


def _by(size: Size) -> str:
    return "x".join(map(str, pair(size)))


def _shapes(network: Sequential, size: Size, channels: int) -> list[Shape]:
    return [parameter.shape for parameter in parameters(without_taps(network), (channels, *pair(size))).values()]
