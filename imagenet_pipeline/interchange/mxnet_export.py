"""Write a network as MXNet's files: a symbol and its parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.interchange.frozen import Normalisation, freeze
from imagenet_pipeline.interchange.network_symbol import DEVIATION, MEAN, symbol_names, symbol_of
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.interchange.symbol import symbol_text
from imagenet_pipeline.networks.layers import Constant, Sequential


def export_mxnet(
    network: Sequential,
    values: Values,
    input_shape: tuple[int, ...],
    out: Path,
    normalisation: Normalisation | None,
) -> list[Path]:
    """Write `OUT-symbol.json` and `OUT-0000.params`, for `mx.gluon.SymbolBlock.imports` and `mx.mod.Module`.

    The input is called `data`, [n, channels, height, width]: RGB, 0..255, with a `normalisation`, which the graph
    then does itself; else already normalised. The output is the logits. All values are float32; a Constant has a batch
    axis of length 1 in front.
    Files of these names are replaced, each in a single step. Raises BadInput and BadRecipe as `freeze` does, OutOfRoom
    when the disk is full.
    """
    frozen = freeze(network, values, input_shape)
    symbol = symbol_of(frozen.network, input_shape, normalisation)
    names = symbol_names(frozen.network, input_shape)
    constants = {f"{path}.value" for path, report in frozen.reports.items() if isinstance(report.layer, Constant)}
    arrays = {names[name]: array[None] if name in constants else array for name, array in frozen.values.items()}
    if normalisation is not None:
        for name, numbers in zip((MEAN, DEVIATION), normalisation, strict=True):
            arrays[f"arg:{name}"] = np.array(numbers, np.float32).reshape(1, -1, 1, 1)
    written = [out.with_name(f"{out.name}-0000.params"), out.with_name(f"{out.name}-symbol.json")]
    write_params(written[0], arrays)
    files.write_whole(written[1], symbol_text(symbol))
    return [written[1], written[0]]
