"""Files of weights, ours and others': safetensors, MXNet's .params, PyTorch's .pth. Nothing in them is run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors

from imagenet_pipeline import files
from imagenet_pipeline.engines import Array, Values, check_fits
from imagenet_pipeline.errors import BadInput, first_few
from imagenet_pipeline.interchange.frozen import Normalisation
from imagenet_pipeline.interchange.gluon_import import Unfit, has_gluon_names, structural_values
from imagenet_pipeline.interchange.graph import require_usable
from imagenet_pipeline.interchange.network_symbol import DEVIATION, MEAN, symbol_names
from imagenet_pipeline.interchange.npz import is_npz, read_npz
from imagenet_pipeline.interchange.params import LIST_MAGIC, read_params
from imagenet_pipeline.interchange.pytorch_file import is_pytorch, read_pytorch
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape, describe

LONGEST_NAME = 250
CHANNELS = 3
TYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
COUNTER = "num_batches_tracked"
"""torch's count of the batches a BatchNorm has seen; no parameter, and nothing here needs it."""
FORMS = "safetensors, MXNet .params or .npz, or PyTorch's .pth"
OTHER_KINDS = {
    b"PK\x03\x04": "a ZIP archive that neither torch.save nor NumPy made",
    b"\x80": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
}


def read_weights(path: Path) -> dict[str, Array]:
    """Every array of a safetensors, .params, .npz or torch.save file by its name there; its content tells which it is.

    float16 and bfloat16 become float32, float64 stays. Raises BadInput for a file that is none of
    them, is damaged or cut short, or holds whole numbers, infinities, NaN or a name no parameter can have. Nothing is
    allocated that the file could not fill.
    """
    if path.is_dir():
        raise BadInput(
            "a folder is not a file of weights",
            where=path,
            advice="give the file RUN/checkpoints/EPOCH/weights.safetensors",
        )
    with files.regular_file(path) as (stream, _):
        start = stream.read(16)
    if start == LIST_MAGIC.to_bytes(8, "little") + bytes(8):
        arrays = read_params(path)
    elif start[8:9] == b"{":
        arrays = _read_safetensors(path)
    elif is_pytorch(path):
        arrays = read_pytorch(path)
    elif start.startswith(b"PK") and is_npz(path):
        arrays = read_npz(path)
    else:
        kind = next((kind for mark, kind in OTHER_KINDS.items() if start.startswith(mark)), None)
        raise BadInput("not a file of weights", where=path, expected=FORMS, found=kind)
    return {name: _checked(name, array, path) for name, array in arrays.items() if name.rpartition(".")[2] != COUNTER}


def without_normalisation(path: Path, arrays: Values) -> tuple[dict[str, Array], Normalisation | None]:
    """The arrays of a file, and apart from them mean and std, which our MXNet export may have among them.

    Raises BadInput where no network can compute with these.
    """
    names = [f"arg:{name}" for name in (MEAN, DEVIATION)]
    others = {name: array for name, array in arrays.items() if name not in names}
    if not any(name in arrays for name in names):
        return others, None
    missing = [name for name in names if name not in arrays or arrays[name].size not in (1, CHANNELS)]
    if missing or arrays[names[0]].size != arrays[names[1]].size:
        raise _bad((missing or names)[0], "is missing beside the other", path, expected=f"{CHANNELS} numbers")
    mean, std = (tuple(map(float, arrays[name].ravel())) for name in names)
    return others, require_usable(mean, std, path)


def starting_values(
    path: Path, found: Values, network: Sequential, input_shape: Shape, drawn: Values, head: Collection[str] = ()
) -> dict[str, Array]:
    """The weights `found` in a file for `network`, by our names, those of our MXNet export, or Gluon's.

    Those that `head` names keep their values among `drawn`, whatever the file has for them; so do auxiliary
    classifiers, which exports leave out, where the file has none.
    Raises BadInput naming the first few names or shapes that differ, and for a scale other than 1 where the network's
    batch normalisation has none.
    """
    found = dict(found)
    for ours, theirs in symbol_names(network, input_shape).items():
        if theirs in found:
            found[ours] = found.pop(theirs)
    if has_gluon_names(found):
        try:
            found = dict(structural_values(network, input_shape, found, path, head))
        except Unfit as error:
            raise BadInput("the arrays are not this network's", where=path, found=str(error)) from None
    reports = describe(network, input_shape)
    parameters = [parameter for report in reports for parameter in report.parameters]
    declared = {parameter.name: parameter.shape for parameter in parameters}
    auxiliary = [parameter.name for report in reports if report.auxiliary for parameter in report.parameters]
    for parameter in parameters:
        value, shape = found.get(parameter.name), parameter.shape
        if parameter.role in ("constant", "scale") and value is not None and value.ndim > len(shape):
            lengths, own = ([length for length in lengths if length > 1] for lengths in (value.shape, shape))
            # MXNet has it as a batch of one, and a Scale's in the shape of an image.
            found[parameter.name] = value.reshape(shape) if lengths == own else value
    values = {**{name: drawn[name] for name in auxiliary}, **found, **{name: drawn[name] for name in head}}
    require_fit(path, declared, values, reports[-1].output_shape[0])
    for parameter in parameters:
        # Nothing trains it and not every engine reads it: another value would make two networks of a single file.
        if parameter.role == "scale" and not parameter.trainable and (values[parameter.name] != 1).any():
            what = f"{parameter.name} scales a normalisation that has no scale"
            raise BadInput(what, where=path, expected="1 throughout")
    return {name: values[name] for name in declared}


def require_fit(path: Path, declared: Mapping[str, Shape], values: Values, classes: int) -> None:
    """Raise BadInput where values out of the file `path` are not those of a network with these parameters."""
    _require_names(path, declared, values)
    _require_classes(path, declared, values, classes)
    check_fits(dict(declared), values, f"weights of {path}")


def _require_names(path: Path, declared: Mapping[str, Shape], values: Values) -> None:
    """Raise BadInput where most names of the network are missing: another program's file, or another network's."""
    missing = [name for name in declared if name not in values]
    foreign = [name for name in values if name not in declared]
    if not foreign or 2 * len(missing) < len(declared):
        return
    from_mxnet = any(name.startswith(("arg:", "aux:")) for name in foreign)
    advice = "import it with its -symbol.json, then give RUN/checkpoints/epoch-0000/weights.safetensors"
    raise BadInput(
        "the arrays are not named like this network's parameters",
        where=path,
        expected=first_few(missing),
        found=first_few(foreign),
        advice=advice if from_mxnet else None,
    )


def _require_classes(path: Path, declared: Mapping[str, Shape], values: Values, classes: int) -> None:
    """Raise BadInput where all that differs is the number of classes."""
    if declared.keys() != values.keys():
        return
    differing = {name for name, shape in declared.items() if values[name].shape != shape}
    alike = all(declared[name] == (classes, *values[name].shape[1:]) for name in differing)
    counts = {values[name].shape[:1] for name in differing}
    if alike and len(counts) == 1 and differing >= set(list(declared)[-1:]):
        raise BadInput(
            "the last layer was trained for another number of classes",
            where=path,
            expected=classes,
            found=counts.pop()[0],
            advice="initial.new_head=true starts that layer anew and takes the others",
        )


def _read_safetensors(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    with files.regular_file(path) as (stream, _):
        content = stream.read()
    try:
        tensors = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        reason = ascii(str(error))[1:-1].removeprefix("Error while deserializing: ")[:200]
        raise BadInput(
            f"the safetensors file is damaged ({reason})", where=path, advice="copy or download it again"
        ) from error
    # They come in another order each time.
    by_name = sorted(tensors, key=lambda pair: pair[0])
    return {name: _array(name, tensor["dtype"], tensor["shape"], tensor["data"], path) for name, tensor in by_name}


def _array(name: str, kind: str, shape: list[int], content: bytearray, path: Path) -> npt.NDArray[np.generic]:
    if kind not in TYPES:
        raise _bad(name, "has a type that weights do not have", path, expected=", ".join(TYPES), found=kind)
    try:
        numbers = np.frombuffer(content, TYPES[kind]).reshape(shape)
    except (ValueError, OverflowError):
        # safetensors multiplies the axes in any order, so an axis of length 0 hides what NumPy cannot count.
        raise _bad(name, "has an impossible shape", path, found=str(shape)[:200]) from None
    if kind == "BF16":  # the upper half of the float32 of the same value
        return np.asarray(np.left_shift(numbers, 16, dtype=np.uint32)).view(np.float32)
    return numbers


def _checked(name: str, array: npt.NDArray[np.generic], path: Path) -> Array:
    if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise _bad(name, "cannot be the name of a parameter", path)
    if not np.issubdtype(array.dtype, np.floating):
        raise _bad(name, "holds no real numbers", path, expected="float16, 32, 64 or bfloat16", found=array.dtype)
    with np.errstate(over="ignore"):
        in_float32 = np.asarray(array, np.float32, order="C")
    if not np.isfinite(in_float32).all():
        raise _bad(name, "holds infinities or NaN, in float32 at least", path)
    return np.asarray(array, order="C") if array.dtype == np.float64 else in_float32


def _bad(name: str, what: str, path: Path, expected: object = None, found: object = None) -> BadInput:
    return BadInput(f"the array {name[:LONGEST_NAME]!a} {what}", where=path, expected=expected, found=found)
