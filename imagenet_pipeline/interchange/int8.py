"""ONNX files in int8, by ONNX Runtime's static quantisation.

Weights are int8 with a scale for each channel, activations int8 with a scale and an offset an array, from the smallest
and the largest value seen on some images; a QuantizeLinear and a DequantizeLinear around every operator say so. What
has no int8 form, the normalisation of the input among it, stays in float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.onnx_runtime import INPUT, Pixels
from imagenet_pipeline.networks.catalog import INPUT_TRANSFORM

METHOD = "static, QDQ: weights int8 a channel, activations int8 an array, least and greatest value seen"
_LOWEST_SCALED = -1e30


def require_runtime() -> Any:
    """The package onnxruntime. Raises BadRecipe where it, or onnx, is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except (ImportError, OSError) as error:
        raise BadRecipe(
            f"--int8 needs the packages onnx and onnxruntime ({error})",
            advice="pip install 'imagenet-pipeline[int8]'",
        ) from error
    return onnxruntime


def quantise(path: Path, batches: Iterator[Pixels]) -> None:
    """Replace an ONNX file by its int8 form, calibrated on batches of what the network reads.

    Raises BadRecipe where ONNX Runtime cannot quantise it, OutOfRoom where the disk is full.
    """
    import onnx

    require_runtime()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    original = onnx.load(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, files.explaining(path), _quiet():
        fused, quantised = Path(folder, "fused.onnx"), Path(folder, "int8.onnx")
        try:
            # Batch normalisations go into their convolutions first: between two int8 operators they could not.
            quant_pre_process(path, fused, skip_symbolic_shape=True)
            model = onnx.load(fused)
            left_out = [*_grouped_transposes(model), *_bottomless_margins(model), *_input_transforms(model)]
            quantization.quantize_static(fused, quantised, _Feed(batches), per_channel=True, nodes_to_exclude=left_out)
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0]
            what = f"ONNX Runtime cannot quantise this network ({reason})"
            raise BadRecipe(what, where="--int8", advice="leave --int8 out") from error
        model = onnx.load(quantised)
    _tell_as_before(model, original)
    with files.whole_file(path) as stream:
        stream.write(model.SerializeToString(deterministic=True))


def _tell_as_before(model: Any, original: Any) -> None:
    """Say of an int8 model what its float32 form says, and name the operator sets it uses alone."""
    used = {node.domain for node in model.graph.node}
    sets = [operators for operators in model.opset_import if operators.domain in used]
    for field, values in (("opset_import", sets), ("metadata_props", list(original.metadata_props))):
        model.ClearField(field)
        getattr(model, field).extend(values)
    model.graph.name, model.doc_string = original.graph.name, f"{original.doc_string}; int8"
    model.producer_name, model.producer_version = original.producer_name, original.producer_version


def _grouped_transposes(model: Any) -> list[str]:
    """Transposed convolutions in groups, whose scales ONNX Runtime 1.32 counts by the group and not by the channel."""
    transposes = [node for node in model.graph.node if node.op_type == "ConvTranspose"]
    return [node.name for node in transposes if any(field.name == "group" and field.i > 1 for field in node.attribute)]


def _bottomless_margins(model: Any) -> list[str]:
    """Margins of float32's lowest number and the maxima that pass over it: no scale of int8 holds it and the rest."""
    import onnx

    fills = {array.name: onnx.numpy_helper.to_array(array) for array in model.graph.initializer}
    margins = [node for node in model.graph.node if node.op_type == "Pad" and len(node.input) > 2
               and np.min(fills.get(node.input[2], 0)) < _LOWEST_SCALED]  # fmt: skip
    padded = {node.output[0] for node in margins}
    return [node.name for node in (*margins, *(node for node in model.graph.node if node.input[0] in padded))]


def _input_transforms(model: Any) -> list[str]:
    """Whitening enlarges what pixels differ in little, less than a step of int8 may be."""
    return [node.name for node in model.graph.node if node.name.startswith(f"{INPUT_TRANSFORM}.")]


class _Feed:
    """Batches as ONNX Runtime asks for them."""

    def __init__(self, batches: Iterator[Pixels]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Pixels] | None:
        pixels = next(self._batches, None)
        return None if pixels is None else {INPUT: pixels}


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantiser tells the root logger what it thinks of a graph."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
