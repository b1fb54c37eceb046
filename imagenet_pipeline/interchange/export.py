"""Export a trained network: the files of a format, MXNet's written here, and a card beside them.

The card, `OUT.FORM.json`, says what a program needs to use them: input, normalisation, classes, origin.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imagenet_pipeline import __version__, files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.engines.zoos import network_of
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged
from imagenet_pipeline.interchange.frozen import Normalisation
from imagenet_pipeline.interchange.graph import require_usable
from imagenet_pipeline.interchange.mxnet_export import export_mxnet
from imagenet_pipeline.interchange.onnx_export import export_onnx
from imagenet_pipeline.interchange.torch_export import export_pytorch
from imagenet_pipeline.interchange.zoo_export import export_zoo
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Sequential, without_taps
from imagenet_pipeline.networks.shapes import Shape, parameters
from imagenet_pipeline.records.classes import ClassTable

AUTHOR = "imagenet-pipeline"
Format = Literal["mxnet", "onnx", "pytorch"]
ENDINGS: dict[Format, tuple[str, ...]] = {
    "mxnet": ("-symbol.json", "-0000.params"),
    "onnx": (".onnx",),
    "pytorch": (".safetensors", ".py"),
}
INPUT_NAMES: dict[Format, str | None] = {"mxnet": "data", "onnx": "images", "pytorch": None}


@dataclass(frozen=True)
class TrainedNetwork:
    """A network to export, by name: its values, classes and input. Mean and std are in 0..255, RGB."""

    network: str
    input_size: int
    classes: ClassTable
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float
    values: Values
    weights_digest: str
    origin: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (len(self.mean), self.input_size, self.input_size)


@dataclass(frozen=True)
class Exported:
    """The paths written with their SHA-256, and the card: a JSON file beside them, with what it says.

    `replaced`: the network and the run folder whose earlier export stood there, None if none of another run did.
    """

    files: dict[Path, str]
    card: Path
    content: dict[str, Any]
    replaced: tuple[str, str] | None = None


def export(trained: TrainedNetwork, form: Format, out: Path, raw: bool = False) -> Exported:
    """Write `out` with the endings of `form`, and the card `out`.FORM.json: all of them or, where a file fails, none.

    The exported network normalises its input itself, or with `raw` takes it normalised. Raises BadInput where
    another's file stands in the way or float32 cannot normalise so, BadRecipe where `out` is a folder, and as the
    formats' own functions do.
    """
    out = _without_ending(out, form)
    card = out.with_name(f"{out.name}.{form}.json")
    _require_replaceable(card, [f"{out.name}{ending}" for ending in ENDINGS[form]])
    replaced = _of_another_run(_earlier(card), trained)
    content = _content(trained, form, raw)
    require_usable(trained.mean, trained.std, trained.origin)
    with files.part_folder(out) as part:
        written = _write(trained, form, part / out.name, raw, content)
        digests = {path.name: files.sha256_of(path) for path in written}
        content["files"] = digests
        files.write_json(part / card.name, content)
        # The card first: it knows the others for ours, should this end between two of them.
        for path in (part / card.name, *written):
            files.rename(path, out.with_name(path.name))
    return Exported({out.with_name(name): digest for name, digest in digests.items()}, card, content, replaced)


def _write(trained: TrainedNetwork, form: Format, out: Path, raw: bool, content: dict[str, Any]) -> list[Path]:
    network = network_of(trained.network, len(trained.classes))
    normalisation = None if raw else (trained.mean, trained.std)
    if network.engine is not None:
        return export_zoo(network, trained.values, trained.input_shape, out, normalisation, form)
    match form:
        case "onnx":
            notes = {key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()}
            return export_onnx(network, trained.values, trained.input_shape, out, normalisation, notes)
        case "pytorch":
            return export_pytorch(network, trained.values, trained.input_shape, out, normalisation)
        case "mxnet":
            return export_mxnet(network, trained.values, trained.input_shape, out, normalisation)


def _content(trained: TrainedNetwork, form: Format, raw: bool) -> dict[str, Any]:
    return {
        "written_by": f"{AUTHOR} {__version__}",
        "format": form,
        "network": catalog.title(trained.network),
        "origin": trained.origin,
        "weights_digest": trained.weights_digest,
        "input": {
            "name": INPUT_NAMES[form],
            "shape": ["n", *trained.input_shape],
            "type": "float32",
            "values": "(RGB - mean) / std" if raw else "RGB, 0..255",
        },
        "output": "logits, one a class: scores before the softmax",
        "mean": trained.mean,
        "std": trained.std,
        "crop_fraction": trained.crop_fraction,
        "classes": trained.classes.as_json(),
    }


def _without_ending(out: Path, form: Format) -> Path:
    if out.is_dir():
        raise _no_name(f"--out {out}")
    name = out.name
    for ending in ENDINGS[form]:
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
    for form, endings in ENDINGS.items():
        for ending in (ending for ending in endings if file.name.endswith(ending)):
            card = file.with_name(f"{file.name.removesuffix(ending)}.{form}.json")
            content = _earlier(card)
            digests = content.get("files")
            if isinstance(digests, dict) and digests.get(file.name) == files.sha256_of(file):
                mean, std = (_three(content.get(key), card) for key in ("mean", "std"))
                return require_usable(mean, std, card), card
    return None


def _three(numbers: object, card: Path) -> tuple[float, ...]:
    if isinstance(numbers, list) and len(numbers) == 3 and all(type(number) in (int, float) for number in numbers):
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


def require_input_size(name: str, network: Sequential, size: int, own: int) -> None:
    """Raise BadRecipe where the network `name`, whose weights are for `own` pixels, cannot take `size` pixels."""
    try:
        if _shapes(network, size) == _shapes(network, own):
            return
    except BadRecipe as error:
        if _shapes(network, 2 * own) == _shapes(network, own):
            what = f"the input is too small for {name}"
            raise BadRecipe(what, where=f"--input {size}", expected=error.expected, found=f"{size}x{size}") from None
    what = f"the dense layers of {name} fix its input"
    raise BadRecipe(what, where=f"--input {size}", expected=own, advice="leave --input out")


def _shapes(network: Sequential, size: int) -> list[Shape]:
    return [parameter.shape for parameter in parameters(without_taps(network), (3, size, size)).values()]
