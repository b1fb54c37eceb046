"""Write a network as a program for LibTorch: TorchScript, or the file of torch.export. Both need torch here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from imagenet_pipeline import files
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
    programs = torch_programs()
    module = _module(programs, network, values, input_shape, normalisation)
    target = out.with_name(f"{out.name}.pt")
    files.write_whole(target, programs.script_bytes(module, input_shape))
    return [target]


def export_torch_program(
    network: Sequential, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    """Write `out`.pt2, for `torch.export.load`; the number of images is open. Raises as `export_torchscript` does."""
    programs = torch_programs()
    module = _module(programs, network, values, input_shape, normalisation)
    target = out.with_name(f"{out.name}.pt2")
    files.write_whole(target, programs.program_bytes(module, input_shape))
    return [target]


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


def _module(
    programs: ModuleType,
    network: Sequential,
    values: Values,
    input_shape: Shape,
    normalisation: Normalisation | None,
) -> object:
    """The module of the Python file that --format pytorch writes."""
    frozen = freeze(network, values, input_shape)
    return programs.module_of(module_text(frozen, "exported", normalisation), frozen.values)
