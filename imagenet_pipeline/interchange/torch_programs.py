"""Write a network as a program for LibTorch: TorchScript, or the file of torch.export. Both need torch here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from imagenet_pipeline.engines import Values
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.frozen import Normalisation, freeze
from imagenet_pipeline.interchange.torch_export import module_text
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape


def export_torchscript(
    network: Sequential, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    """Write `out`.pt, for `torch.jit.load` in Python and in C++. Images and logits are those of `export_pytorch`.

    Raises BadRecipe where torch is missing or cannot write the network, and as `freeze` does.
    """
    return _export(network, values, input_shape, out, normalisation, ".pt")


def export_torch_program(
    network: Sequential, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    """Write `out`.pt2, for `torch.export.load`; the number of images is open. Raises as `export_torchscript` does."""
    return _export(network, values, input_shape, out, normalisation, ".pt2")


def torch_programs() -> ModuleType:
    """The engine's part that writes programs. Raises BadRecipe where PyTorch is not installed."""
    try:
        from imagenet_pipeline.engines.pytorch import programs
    except (ImportError, OSError) as error:
        raise BadRecipe(
            f"this format is written by PyTorch, which cannot be imported ({error})",
            where="--format",
            advice="pip install 'imagenet-pipeline[pytorch]'",
        ) from error
    return programs


def _export(
    network: Sequential,
    values: Values,
    input_shape: Shape,
    out: Path,
    normalisation: Normalisation | None,
    ending: str,
) -> list[Path]:
    """Write the program of the module in the Python file that --format pytorch writes."""
    programs = torch_programs()
    frozen = freeze(network, values, input_shape)
    module = programs.module_of(module_text(frozen, "exported", normalisation), frozen.values)
    written: list[Path] = programs.write_program(module, input_shape, out, ending)
    return written
