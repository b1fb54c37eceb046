"""Write a network as an ONNX graph, for ONNX Runtime, OpenCV and others.

Operator set 13 (ONNX 1.8, 2020): no later set says anything these networks need.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagenet_pipeline import __version__, files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.frozen import Normalisation, contents, freeze
from imagenet_pipeline.interchange.onnx_graph import OnnxGraph
from imagenet_pipeline.networks.layers import Sequential, follow
from imagenet_pipeline.networks.shapes import Shape

OPERATOR_SET, FORMAT_VERSION = 13, 7
LARGEST_BYTES = 2**31 - 2**24
"""A protocol buffer ends at 2 GiB; the rest is for the graph itself."""


def export_onnx(
    network: Sequential,
    values: Values,
    input_shape: Shape,
    out: Path,
    normalisation: Normalisation | None,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `out`.onnx: `images` float32 [n, channels, height, width] to `logits` float32 [n, classes].

    `images` are RGB in 0..255 with `normalisation` inside, or else (RGB - mean) / std. Initializers have our
    parameters' names (a PReLU's slope has the shape [channels, 1, 1]); `metadata` goes into the model's own.
    Raises BadRecipe where the onnx package is missing or the network exceeds 2 GiB, and as `freeze` does.
    """
    onnx = _import_onnx()
    frozen = freeze(network, values, input_shape)
    size = sum(value.nbytes for value in frozen.values.values())
    if size > LARGEST_BYTES:
        raise BadRecipe(
            "too large for an ONNX file",
            where=out.name,
            expected=f"at most {LARGEST_BYTES:,} bytes of weights",
            found=f"{size:,}",
            advice="--format pytorch has no such limit",
        )
    model = _model(onnx, OnnxGraph(onnx, frozen), out.name, normalisation)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    target = out.with_name(f"{out.name}.onnx")
    with files.whole_file(target) as stream:
        stream.write(model.SerializeToString(deterministic=True))
    return [target]


def _import_onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise BadRecipe(
            f"the onnx package is not installed ({error})", advice="pip install 'imagenet-pipeline[onnx]'"
        ) from error
    return onnx


def _model(onnx: Any, graph: OnnxGraph, name: str, normalisation: Normalisation | None) -> Any:
    helper, frozen = onnx.helper, graph.frozen
    graph.finish(follow(frozen.network, "", graph.begin(normalisation), graph.add))
    reads = contents(frozen.input_shape[0], normalisation is None)
    described = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", *frozen.input_shape])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", *frozen.output_shape])],
        graph.initializers,
        doc_string=f"images: {reads}; logits: scores before the softmax",
    )
    return helper.make_model(
        described,
        opset_imports=[helper.make_opsetid("", OPERATOR_SET)],
        ir_version=FORMAT_VERSION,
        producer_name="imagenet-pipeline",
        producer_version=__version__,
        doc_string=f"{name}: images float32 [n, {', '.join(map(str, frozen.input_shape))}], {reads}, to logits",
    )
