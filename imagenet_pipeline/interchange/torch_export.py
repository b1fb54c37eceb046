"""Write a network as a plain PyTorch module: a readable Python file, and its weights as safetensors."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path

from safetensors.numpy import save

from imagenet_pipeline import files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.frozen import Normalisation, freeze
from imagenet_pipeline.interchange.torch_code import module_text
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape

TAKEN = {*sys.stdlib_module_names, "torch", "safetensors", "numpy", "timm"}


def export_pytorch(
    network: Sequential, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    """Write `out`.safetensors (float32, by our parameters' names) and `out`.py (the module, and `load`).

    The module takes float32 [n, channels, height, width], RGB in 0..255 with `normalisation` inside, or else
    (RGB - mean) / std, and gives logits [n, classes]. It needs torch and safetensors alone. Its state has the
    file's names, beside torch's counters of batches, which strict loading does not ask for.
    Raises BadRecipe where `out` is no name for a Python module, and as `freeze` does.
    """
    require_module_name(out.name)
    frozen = freeze(network, values, input_shape)
    weights, code = (out.with_name(f"{out.name}{ending}") for ending in (".safetensors", ".py"))
    files.write_whole(weights, save(frozen.values, metadata={"format": "pt"}))
    files.write_whole(code, module_text(frozen, out.name, normalisation))
    return [weights, code]


def require_module_name(name: str) -> None:
    """Raise BadRecipe unless Python can import a file of this name without hiding what that file imports."""
    if not name.isidentifier() or keyword.iskeyword(name) or name in TAKEN:
        raise BadRecipe(
            "not a name for a Python module, which this format writes",
            where=f"--out {name}",
            expected="letters, digits and _, as in resnet18_best",
        )
