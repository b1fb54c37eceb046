"""Files of weights, ours and others': safetensors and MXNet's .params. Nothing in them is run, only read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors

from imagenet_pipeline.engines import Array, Values, check_fits
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.network_symbol import DEVIATION, MEAN, symbol_names
from imagenet_pipeline.interchange.params import LIST_MAGIC, read_params
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape, describe

LONGEST_NAME = 250
TYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
COUNTER = "num_batches_tracked"
"""torch's count of the batches a BatchNorm has seen; no parameter, and nothing here needs it."""
OTHER_KINDS = {
    b"PK\x03\x04": "a PyTorch pickle or NumPy archive",
    b"\x80": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
}


def read_weights(path: Path) -> dict[str, Array]:
    """Every array of a safetensors or MXNet .params file by its name there; the content tells which it is.

    float16 and bfloat16 become float32, float64 stays. Raises BadInput, one line, for a file that is neither, is
    damaged or cut short, or holds whole numbers, infinities, NaN or a name no parameter can have. Nothing is
    allocated that the file could not fill.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror or error})", where=path) from error
    if start == LIST_MAGIC.to_bytes(8, "little") + bytes(8):
        arrays = read_params(path)
    elif start[8:9] == b"{":
        arrays = _read_safetensors(path)
    else:
        kind = next((kind for mark, kind in OTHER_KINDS.items() if start.startswith(mark)), None)
        raise BadInput("not a file of weights", where=path, expected="safetensors or MXNet .params", found=kind)
    return {name: _checked(name, array, path) for name, array in arrays.items() if name.rpartition(".")[2] != COUNTER}


def starting_values(path: Path, network: Sequential, input_shape: Shape, drawn: Values) -> dict[str, Array]:
    """The weights in a file for `network`, by our names or by those of our MXNet export.

    Auxiliary classifiers, which exports leave out, keep their values among `drawn` where the file has none.
    Raises BadInput as `read_weights` does, and naming the first few names or shapes that differ.
    """
    found = read_weights(path)
    for ours, theirs in symbol_names(network, input_shape).items():
        if theirs in found:
            found[ours] = found.pop(theirs)
    for constant in (MEAN, DEVIATION):
        found.pop(f"arg:{constant}", None)
    reports = describe(network, input_shape)
    declared = {parameter.name: parameter.shape for report in reports for parameter in report.parameters}
    auxiliary = [parameter.name for report in reports if report.auxiliary for parameter in report.parameters]
    values = {**{name: drawn[name] for name in auxiliary}, **found}
    check_fits(declared, values, f"weights of {path}")
    return {name: values[name] for name in declared}


def _read_safetensors(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        tensors = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror or error})", where=path) from error
    except safetensors.SafetensorError as error:
        reason = ascii(str(error))[1:-1].removeprefix("Error while deserializing: ")[:200]
        raise BadInput(
            f"a damaged safetensors file ({reason})", where=path, advice="copy or download it again"
        ) from error
    return {name: _array(name, tensor["dtype"], tensor["shape"], tensor["data"], path) for name, tensor in tensors}


def _array(name: str, kind: str, shape: list[int], content: bytearray, path: Path) -> npt.NDArray[np.generic]:
    if kind not in TYPES:
        raise _bad(name, "has a type that weights do not have", path, expected=", ".join(TYPES), found=kind)
    numbers = np.frombuffer(content, TYPES[kind]).reshape(shape)
    # A bfloat16 is the upper half of the float32 of the same value.
    return (numbers.astype("<u4") << 16).view("<f4") if kind == "BF16" else numbers


def _checked(name: str, array: npt.NDArray[np.generic], path: Path) -> Array:
    if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise _bad(name, "is no name for a parameter", path)
    if not np.issubdtype(array.dtype, np.floating):
        raise _bad(name, "holds no real numbers", path, expected="float16, 32, 64 or bfloat16", found=array.dtype)
    if not np.isfinite(array).all():
        raise _bad(name, "holds infinities or NaN", path)
    return np.ascontiguousarray(array, np.float64 if array.dtype == np.float64 else np.float32)


def _bad(name: str, what: str, path: Path, expected: object = None, found: object = None) -> BadInput:
    return BadInput(f"the array {name[:LONGEST_NAME]!a} {what}", where=path, expected=expected, found=found)
